"""What runs inside a guest: its initramfs with the scripts, and workloads."""
