"""The log: its lines, and how they are written without waiting for a reader.

Every room may use it. Knows nothing of VMs but their names.
"""
