"""Devices of a guest: its balloon, memory of every kind, and disks."""
