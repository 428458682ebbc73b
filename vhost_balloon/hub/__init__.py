"""Serves the metrics of all VMs of a host, which it finds and queries by their control sockets, and
runs the policy that moves memory between them.

Any VM's daemon may have been taken over by its guest. So a VM's name never comes from its answer.
However many daemons hang, together they make a scrape take longer by 1 s at most, and a tick of the
policy by 3 s: the look at the VMs, another one if the host turned out to be short, and the orders.
The hub reaches a VM by its control socket alone.
"""
