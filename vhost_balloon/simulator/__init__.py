"""A vhost-user front end and a guest with a balloon driver, for tests, demo and benchmarks.

It imports only `protocol` and nothing of the daemon, so that both sides implement the specification
independently. From the bottom: `events` and `memory` (real eventfds and shared memory), `ring` (the
driver's side of a virtqueue), `wire` and `connection` (messages), `front_end` (QEMU's sequences of
messages), `allocator` and `driver` (Linux's behaviour), `guest` (the whole).
"""
