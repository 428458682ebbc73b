"""When to poll, how much to discard per second, and how long a request may have waited.

It does not know what it is used for.
"""
