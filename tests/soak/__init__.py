"""A soak: guests under real systemd, whose daemons are restarted all the time."""
