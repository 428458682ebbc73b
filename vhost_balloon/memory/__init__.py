"""Guest memory and giving it back to the host: regions, ranges, gathering, discarding, pins.

It knows nothing of rings, messages or the guest's driver.
"""
