"""Programs that the benchmarks run beside the daemon, each in its own process."""
