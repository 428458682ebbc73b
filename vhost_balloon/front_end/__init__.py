"""One QEMU's connection: its messages, and the effects that they have.

session/ decides what a message means; this room receives it, carries it out and answers.
"""
