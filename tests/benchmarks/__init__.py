"""Benchmarks: the daemon compared with QEMU's own balloon and with the kernel's own cost.

`python -m tests.benchmarks --help` shows how to run them. They are not tests: nothing passes or
fails on time; the table only says which bars are met.
"""
