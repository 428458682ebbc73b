"""The command line and the configuration files, checked and then frozen.

It opens no socket and starts nothing.
"""
