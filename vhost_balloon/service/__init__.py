"""What the service manager hands over and is told; listening sockets and their files.

It knows nothing of VMs.
"""
