"""The demo: a simulated guest on a real daemon, drawn in a terminal.

It uses the daemon only through its sockets, as any front end or QMP client does.
"""
