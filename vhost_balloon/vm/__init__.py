"""What the VM is: its settings, its life, its snapshot.

It sees an attached front end only through the protocol that it declares itself.
"""
