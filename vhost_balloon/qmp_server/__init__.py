"""A QMP server for any table of commands: clients, negotiation, arguments, events and the schema.

It knows neither VMs nor the policy: a command acts on a subject, which is the caller's.
"""
