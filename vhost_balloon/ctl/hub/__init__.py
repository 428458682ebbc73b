"""The policy, as the hub tells it: asks for it, checks and lays it out, and gives orders.

Imported only by commands that need it, so that the others start as fast as before.
"""
