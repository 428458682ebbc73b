"""Wire formats of vhost-user, split virtqueues, the virtio balloon and QMP.

Pure descriptions: standard library and construct only, no I/O. Everything else in this
repository, the daemon and the simulator alike, takes its layouts from here.
"""
