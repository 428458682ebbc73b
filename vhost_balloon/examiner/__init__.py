"""One host: looks, for the VMs' daemons, whether a front end has memory pinned.

Its right to look into any process is one that a VM's daemon must not have, so this is a program of
its own, which serves neither guests nor QEMU.
"""
