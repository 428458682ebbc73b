"""Bytes and descriptors that outlive the process: record, journal, shelf, reply pipe, store.

It knows nothing of what they mean.
"""
