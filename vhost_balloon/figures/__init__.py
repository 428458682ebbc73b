"""Values that other rooms only read: counters, refusal reasons, states, discard policy, statistics.

Pure. It decides nothing and holds nothing open.
"""
