"""What clients of a control socket send, and a QEMU to compare with."""
