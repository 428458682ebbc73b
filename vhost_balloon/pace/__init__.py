"""When to poll, how much to discard per second, and how long a request may have waited.

Imports no other room.
"""
