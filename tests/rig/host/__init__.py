"""What stands for the host of guests: a memory cgroup, and the hub with its policy."""
