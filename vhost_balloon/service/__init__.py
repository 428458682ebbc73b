"""Talks to the service manager (descriptors, notifications), and opens sockets and their files.

Knows nothing of VMs.
"""
