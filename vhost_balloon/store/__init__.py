"""What outlives the process: record, journal, shelf, reply pipe, lock, and the descriptor store.

Knows nothing of their meaning.
"""
