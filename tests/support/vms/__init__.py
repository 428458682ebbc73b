"""VMs: real guests, and simulated ones that live in other processes."""
