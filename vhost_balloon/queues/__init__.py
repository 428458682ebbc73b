"""From a kick to a used entry: rings, chains, decoding, and a processor for each kind of queue.

This is the guest's hot path. vhost-user messages are handled elsewhere.
"""
