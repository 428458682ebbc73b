"""One VM's daemon: puts the parts together, and fixes the order of start and end.

No other room but __main__ imports it.
"""
