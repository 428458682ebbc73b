"""The log: its lines, and how they are written without waiting for a reader.

Every room of the daemon and the hub may use it. Knows nothing of VMs but their names.
"""
