"""Moves memory by itself: takes page cache from guests while the host is short, and gives it back.

decide.py holds the rule. It and everything that it uses are pure: they read no clock and no file.
runner.py feeds it. The room does not know how VMs are found and asked; hub/ does.
"""
