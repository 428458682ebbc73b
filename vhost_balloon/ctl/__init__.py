"""vhost-balloonctl: the operator's tool, a QMP client of the daemons' control sockets.

It imports the standard library and `vhost_balloon`'s version, nothing else, and of that library
nothing that is slow to load: a command has to be as quick as `ls`.
"""
