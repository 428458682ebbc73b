"""One host: finds the VMs by their control sockets, asks them, and tells Prometheus of all.

Every VM's daemon is taken for one that may have been taken over by its guest. What the VMs are
called is no word of theirs, and neither is how long a scrape takes.
"""
