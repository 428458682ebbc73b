"""Soak test: guests under real systemd whose daemons are restarted continuously."""
