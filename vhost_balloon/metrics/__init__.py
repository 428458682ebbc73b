"""What Prometheus is told, made from snapshots, and the address where it asks.

It reads snapshots only, so that hub and daemon share it.
"""
