"""The command line and the configuration files: read, checked and frozen.

Opens no sockets and starts nothing.
"""
