"""Serves the metrics of all VMs of a host, which it finds and queries by their control sockets, and
runs the policy that moves memory between them.

Any VM's daemon may have been taken over by its guest. So a VM's name never comes from its answer,
and no daemon can make a scrape or a decision take longer. The hub reaches a VM by its control
socket alone.
"""
