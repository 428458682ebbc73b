"""Programs that the benchmarks run beside the daemon, each in a process of its own."""
