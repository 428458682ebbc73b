"""Values that other rooms read: counters, refusal reasons, states, discard policy, statistics.

Pure. It decides nothing and holds no resources.
"""
