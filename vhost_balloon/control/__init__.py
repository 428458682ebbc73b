"""The QMP socket of the VM: commands, objects, events, schema and report.

It changes the VM only through vm/ and never touches rings or memory.
"""
