"""Starting and ending the daemon: a service manager, deaths at chosen steps, restart scenarios."""
