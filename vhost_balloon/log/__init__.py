"""The log: its lines, and how they are written without ever waiting for a reader.

Every room may use it. It knows nothing of VMs but their names.
"""
