"""The place of a virtqueue in its ring: base, used elements, rewinding and recovery."""

from __future__ import annotations

import pytest

from tests.support.ring_driver import SIZE, Driver, heads, pop
from vhost_balloon.errors import RingError


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_used_elements_appear_only_when_published(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(2, 0, 3)
    taken = heads([pop(queue), pop(queue), pop(queue)])
    assert taken == [2, 0, 3]
    for head in taken:
        queue.push(head)
    assert driver.used_elements() == []
    queue.publish()
    assert driver.used_elements() == [(2, 0), (0, 0), (3, 0)]


def test_the_base_is_the_first_unused_chain(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, 1, 2)
    assert (queue.base, queue.pending()) == (0, 3)
    pop(queue)
    pop(queue)
    assert (queue.base, queue.pending()) == (0, 1)
    queue.push(0)
    assert queue.base == 1


def test_a_rewound_queue_pops_unused_chains_again(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, 1, 2)
    heads([pop(queue), pop(queue), pop(queue)])
    queue.push(0)
    queue.publish()
    queue.rewind()
    assert (queue.base, queue.pending()) == (1, 2)
    assert heads([pop(queue), pop(queue), pop(queue)]) == [1, 2]
    assert driver.used_elements() == [(0, 0)]


def test_a_broken_chain_does_not_count_as_popped(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, SIZE)
    pop(queue)
    with pytest.raises(RingError):
        pop(queue)
    queue.push(0)
    queue.publish()
    assert queue.base == 1
    assert driver.used_elements() == [(0, 0)]


def test_a_new_queue_starts_at_its_base_and_at_the_rings_used_index() -> None:
    driver = Driver(index=7)
    driver.offer(3, 1)
    queue = driver.queue(base=8)
    assert heads([pop(queue), pop(queue)]) == [1]
    queue.push(1)
    queue.publish()
    assert driver.used_elements(since=7) == [(1, 0)]


def test_indexes_wrap_at_65536() -> None:
    driver = Driver(index=65534)
    queue = driver.queue()
    for round_start in (65534, 1):
        driver.offer(0, 1, 2)
        assert heads([pop(queue), pop(queue), pop(queue)]) == [0, 1, 2]
        assert queue.base == round_start
        for head in range(3):
            queue.push(head)
        queue.publish()
        assert driver.used_elements(since=round_start) == [(0, 0), (1, 0), (2, 0)]
    assert queue.base == 4


def test_a_released_queue_no_longer_holds_the_memory(driver: Driver) -> None:
    queue = driver.queue()
    with pytest.raises(BufferError):
        driver.used.append(0)
    queue.release()
    for part in (driver.descriptors, driver.available, driver.used):
        part.append(0)


def test_a_recovered_queue_continues_from_the_published_index() -> None:
    """Neither from the base that the ring was started with, nor from an unpublished element."""
    driver = Driver(index=7)
    driver.offer(3, 1, 2)
    before = driver.queue(base=8)  # the front end used one chain itself
    assert before.lead == 1
    heads([pop(before), pop(before)])
    before.push(1)
    before.publish()
    assert (before.lead, before.base) == (1, 9)
    before.push(2)  # the process dies before it publishes
    after = driver.queue(base=0)
    after.recover(1)
    assert (after.base, after.lead) == (9, 1)
    assert heads([pop(after)]) == [2]


def test_a_lead_wraps() -> None:
    driver = Driver(index=0xFFFF)
    driver.offer(0, 1)
    queue = driver.queue(base=0)
    assert queue.lead == 1
    after = driver.queue(base=5)
    after.recover(1)
    assert (after.base, heads([pop(after)])) == (0, [1])
