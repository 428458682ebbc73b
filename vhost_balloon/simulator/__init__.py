"""A vhost-user front end and a guest with a balloon driver, for tests, demo and benchmarks.

It imports only `protocol`, nothing of the daemon, so that both sides read the specification
on their own. From the bottom: `events` and `memory` (real eventfds, real shared memory),
`ring` (a virtqueue's driver side), `wire` and `connection` (messages), `front_end` (QEMU's
sequences of messages), `allocator` and `driver` (what Linux does), `guest` (the whole).
"""
