"""Serves the metrics of all VMs of a host: finds them by their control sockets, and asks them.

Any VM's daemon may have been taken over by its guest. So a VM's name does not come from its answer,
and no daemon can make a scrape take longer.
"""
