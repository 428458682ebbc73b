"""One QEMU's connection: receives messages, carries out their effects and answers.

session/ decides what a message means. What outlives the process goes through store/.
"""
