"""Fuzzing: targets with one invariant each, the drivers that run them, and past findings.

A target is a plain function of bytes that raises when its invariant is broken. test_fuzz replays
all findings and a fixed number of mutations; `python -m tests.fuzz TARGET` keeps fuzzing. To
add a target, write a module with a function, seeds and tokens, and add one line to targets.
"""
