"""Fuzzing: targets with one invariant each, the drivers that run them, and what was found.

A target is a plain function of bytes that raises when its invariant is broken. test_fuzz replays
all findings and a fixed number of mutations; `python -m tests.fuzz TARGET` runs until stopped. To
add a target, write a function with seeds and tokens in a module, and one line in targets.
"""
