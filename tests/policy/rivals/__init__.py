"""Rules that ours is compared with, written from their published descriptions and constants.

Each file has one class that follows tests/policy/rule.py. oracle.py also knows the future.
"""
