"""Fuzzing: targets with one invariant each, the drivers that run them, and what was found.

A target is a plain function of bytes that raises where its invariant is broken. tests.fuzz.test_fuzz
replays all that was found and a fixed number of mutations; `python -m tests.fuzz TARGET` runs on.
A new target is one function with seeds and tokens in a module, and one line in tests.fuzz.targets.
"""
