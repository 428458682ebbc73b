"""Benchmarks: the daemon beside QEMU's own balloon and beside the kernel's own cost.

`python -m tests.benchmarks --help` runs them. They are no tests: nothing here passes or fails by
the clock, except that a bar of the table is met or missed.
"""
