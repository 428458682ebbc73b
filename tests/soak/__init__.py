"""A soak: guests under real systemd, whose daemon is restarted all the time."""
