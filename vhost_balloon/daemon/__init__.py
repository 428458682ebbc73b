"""One VM's daemon: puts the parts together, and fixes the order of start and end.

Nothing below imports it.
"""
