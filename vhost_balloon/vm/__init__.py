"""The VM: its settings, its life, its snapshot.

It knows an attached front end only as the protocol in vm.py.
"""
