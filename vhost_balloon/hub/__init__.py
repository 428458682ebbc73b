"""Serves the metrics of all VMs of a host, which it finds and queries by their control sockets.

Any VM's daemon may have been taken over by its guest. So a VM's name never comes from its answer,
and no daemon can make a scrape take longer. The hub reaches a VM by its control socket alone.
"""
