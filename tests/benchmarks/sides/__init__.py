"""What gives memory back in the device benchmarks: both balloon devices, and the kernel alone."""
