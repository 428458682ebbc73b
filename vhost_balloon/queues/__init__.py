"""From a kick to a used entry: rings, chains, decoding, and one processor for each kind of queue.

The guest's hot path. No vhost-user message comes here.
"""
