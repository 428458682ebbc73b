"""When to poll, how much at once, and whether a request may have waited.

It knows nothing of what is waited for.
"""
