"""Split rings in memory, as copied from the virtio specification, "Split Virtqueues"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import virtio_ring as vr

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))


def test_flags_and_feature_bits() -> None:
    assert [(f.name, f.value) for f in vr.DescriptorFlag] == [
        ("NEXT", 1),
        ("WRITE", 2),
        ("INDIRECT", 4),
    ]
    assert (vr.AvailableFlag.NO_INTERRUPT, vr.UsedFlag.NO_NOTIFY) == (1, 1)
    assert {f.name: f.value.bit_length() - 1 for f in vr.RingFeature} == {
        "NOTIFY_ON_EMPTY": 24,
        "ANY_LAYOUT": 27,
        "INDIRECT_DESC": 28,
        "EVENT_IDX": 29,
        "VERSION_1": 32,
        "ACCESS_PLATFORM": 33,
        "RING_PACKED": 34,
        "IN_ORDER": 35,
    }
    assert {s.name: s.value for s in vr.DeviceStatus} == {
        "ACKNOWLEDGE": 1,
        "DRIVER": 2,
        "DRIVER_OK": 4,
        "FEATURES_OK": 8,
        "DEVICE_NEEDS_RESET": 64,
        "FAILED": 128,
    }


def test_a_descriptor_and_a_used_element() -> None:
    golden = bytes.fromhex("00f0debc9a785634 00004000 0300 0700")
    fields = {"address": 0x3456_789A_BCDE_F000, "length": 4 << 20, "flags": 3, "next": 7}
    assert vr.Descriptor.build(fields) == golden
    assert vr.DESCRIPTOR.pack(*fields.values()) == golden
    assert vr.DESCRIPTOR.size == vr.DESCRIPTOR_SIZE == 16
    assert vr.UsedElement.build({"id": 5, "length": 256}) == bytes.fromhex("05000000 00010000")
    assert vr.USED_ELEMENT.size == vr.USED_ELEMENT_SIZE == 8


def test_the_rings() -> None:
    available = vr.AvailableRing.parse(bytes.fromhex("0100 0300 0500 0600 0900"), queue_size=2)
    assert (available.flags, available.index, list(available.ring)) == (1, 3, [5, 6])
    assert available.used_event == 9
    used = vr.UsedRing.parse(
        bytes.fromhex("0100 0200 05000000 00100000 06000000 00000000 0800"), queue_size=2
    )
    assert (used.flags, used.index, used.avail_event) == (1, 2, 8)
    assert [(e.id, e.length) for e in used.ring] == [(5, 0x1000), (6, 0)]


@pytest.mark.parametrize(
    ("queue_size", "descriptors", "available", "used"),
    [(1, 16, 6, 12), (64, 1024, 132, 516), (32768, 524288, 65540, 262148)],
)
def test_sizes_without_the_event_words(
    queue_size: int, descriptors: int, available: int, used: int
) -> None:
    assert vr.descriptor_table_size(queue_size) == descriptors
    assert vr.available_ring_size(queue_size) == available
    assert vr.used_ring_size(queue_size) == used
    if queue_size <= 64:
        empty = {"flags": 0, "index": 0, "used_event": 0, "avail_event": 0}
        heads, elements = [0] * queue_size, [{"id": 0, "length": 0}] * queue_size
        layout = vr.AvailableRing.build({**empty, "ring": heads}, queue_size=queue_size)
        assert len(layout) == available + 2
        assert (
            len(vr.UsedRing.build({**empty, "ring": elements}, queue_size=queue_size)) == used + 2
        )


def test_limits_and_alignments() -> None:
    assert (vr.MAX_QUEUE_SIZE, vr.INDEX_MASK) == (32768, 65535)
    alignments = (vr.DESCRIPTOR_ALIGNMENT, vr.AVAILABLE_ALIGNMENT, vr.USED_ALIGNMENT)
    assert alignments == (16, 2, 4)


@given(U64, U32, U16, U16)
def test_the_fast_descriptor_matches_the_layout(
    address: int, length: int, flags: int, following: int
) -> None:
    data = vr.DESCRIPTOR.pack(address, length, flags, following)
    fields = {"address": address, "length": length, "flags": flags, "next": following}
    assert data == vr.Descriptor.build(fields)
    parsed = vr.Descriptor.parse(data)
    assert {name: parsed[name] for name in fields} == fields


@given(U32, U32)
def test_the_fast_used_element_matches_the_layout(head: int, length: int) -> None:
    assert vr.USED_ELEMENT.pack(head, length) == vr.UsedElement.build(
        {"id": head, "length": length}
    )
