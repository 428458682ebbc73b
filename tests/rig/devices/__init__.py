"""Devices that a guest gains and loses: its balloon, and shared memory of every kind."""
