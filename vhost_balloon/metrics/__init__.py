"""Metrics for Prometheus, made from snapshots, and the HTTP server that it scrapes.

It reads snapshots only, so the hub and the daemon share it.
"""
