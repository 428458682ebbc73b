"""The service manager: descriptors it hands over, notifications; listening sockets and their files.

Knows nothing of VMs.
"""
