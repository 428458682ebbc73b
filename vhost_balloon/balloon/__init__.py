"""The device as its guest sees it: config space, target, queue map, statistics.

Pure. It knows nothing of rings, memory or messages.
"""
