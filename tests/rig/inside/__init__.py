"""The guest's software: its initramfs with the scripts, and workloads."""
