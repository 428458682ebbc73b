"""The real-guest rig: Debian's QEMU and kernels, provisioned without root and driven by tests.

Start with `tests.rig.fixtures` (pytest) or `python -m tests.rig --help` (by hand).
"""
