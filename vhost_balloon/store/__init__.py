"""Bytes and descriptors that outlive the process: record, journal, shelf, reply pipe, store.

Knows nothing of their meaning.
"""
