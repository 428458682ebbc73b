"""vhost-balloonctl: the operator's tool, a QMP client of the daemons' control sockets.

It must start as fast as `ls`. So it imports only the fast parts of the standard library, and
`sizes`, `printable`, `name_text` and the version of this package.
"""
