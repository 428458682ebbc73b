"""vhost-user on the wire: numbers and layouts as copied from docs/interop/vhost-user.rst."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as p

REQUESTS = """
1 GET_FEATURES 2 SET_FEATURES 3 SET_OWNER 4 RESET_OWNER 5 SET_MEM_TABLE 6 SET_LOG_BASE 7 SET_LOG_FD
8 SET_VRING_NUM 9 SET_VRING_ADDR 10 SET_VRING_BASE 11 GET_VRING_BASE 12 SET_VRING_KICK
13 SET_VRING_CALL 14 SET_VRING_ERR 15 GET_PROTOCOL_FEATURES 16 SET_PROTOCOL_FEATURES
17 GET_QUEUE_NUM 18 SET_VRING_ENABLE 19 SEND_RARP 20 NET_SET_MTU 21 SET_BACKEND_REQ_FD
22 IOTLB_MSG 23 SET_VRING_ENDIAN 24 GET_CONFIG 25 SET_CONFIG 26 CREATE_CRYPTO_SESSION
27 CLOSE_CRYPTO_SESSION 28 POSTCOPY_ADVISE 29 POSTCOPY_LISTEN 30 POSTCOPY_END 31 GET_INFLIGHT_FD
32 SET_INFLIGHT_FD 33 GPU_SET_SOCKET 34 RESET_DEVICE 35 VRING_KICK 36 GET_MAX_MEM_SLOTS
37 ADD_MEM_REG 38 REM_MEM_REG 39 SET_STATUS 40 GET_STATUS 41 GET_SHARED_OBJECT
42 SET_DEVICE_STATE_FD 43 CHECK_DEVICE_STATE 44 GET_SHMEM_CONFIG 45 GET_VRING_BASE_SKIP_DRAIN
"""
BACKEND_REQUESTS = """
1 IOTLB_MSG 2 CONFIG_CHANGE_MSG 3 VRING_HOST_NOTIFIER_MSG 4 VRING_CALL 5 VRING_ERR
6 SHARED_OBJECT_ADD 7 SHARED_OBJECT_REMOVE 8 SHARED_OBJECT_LOOKUP 9 SHMEM_MAP 10 SHMEM_UNMAP
"""
PROTOCOL_BITS = """
0 MQ 1 LOG_SHMFD 2 RARP 3 REPLY_ACK 4 MTU 5 BACKEND_REQ 6 CROSS_ENDIAN 7 CRYPTO_SESSION 8 PAGEFAULT
9 CONFIG 10 BACKEND_SEND_FD 11 HOST_NOTIFIER 12 INFLIGHT_SHMFD 13 RESET_DEVICE
14 INBAND_NOTIFICATIONS 15 CONFIGURE_MEM_SLOTS 16 STATUS 17 XEN_MMAP 18 SHARED_OBJECT
19 DEVICE_STATE 20 GET_VRING_BASE_INFLIGHT 21 GPA_ADDRESSES 22 SHMEM 23 GET_VRING_BASE_SKIP_DRAIN
"""


def numbered(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number) for number, name in zip(words[::2], words[1::2], strict=True)}


def test_numbers_match_the_specification() -> None:
    assert {r.name: r.value for r in vu.Request} == numbered(REQUESTS)
    assert {r.name: r.value for r in vu.BackendRequest} == numbered(BACKEND_REQUESTS)
    bits = {name: 1 << bit for name, bit in numbered(PROTOCOL_BITS).items()}
    assert {f.name: f.value for f in vu.ProtocolFeature} == bits
    assert {f.name: f.value for f in vu.VhostFeature} == {
        "LOG_ALL": 0x400_0000,
        "PROTOCOL_FEATURES": 0x4000_0000,
    }
    assert (vu.VERSION, vu.HeaderFlag.REPLY, vu.HeaderFlag.NEED_REPLY) == (1, 4, 8)
    assert (vu.REPLY_FLAGS, vu.NO_FD, vu.DEVICE_STATE_NO_FD) == (5, 0x100, 0x100)
    assert (vu.ConfigFlag.WRITABLE, vu.ConfigFlag.MIGRATION) == (0, 1)


REGION_BYTES = (
    "0000000001000000"  # guest address: 0x1_0000_0000
    "0000008000000000"  # size: 2 GiB
    "00000000f07f0000"  # user address
    "0000008000000000"  # mmap offset: 2 GiB
)
REGION = {
    "guest_address": 0x1_0000_0000,
    "size": 0x8000_0000,
    "user_address": 0x7FF0_0000_0000,
    "mmap_offset": 0x8000_0000,
}
LAYOUTS: list[tuple[str, Any, str, Any]] = [
    (
        "header",
        vu.Header,
        "18000000 09000000 1c000000",  # GET_CONFIG, version 1 | need_reply, 28 bytes
        {"request": 24, "flags": 9, "size": 28},
    ),
    ("vring state", p.VringState, "02000000 00010000", {"index": 2, "num": 256}),
    (
        "vring address",
        p.VringAddr,
        "03000000 01000000"
        "0010000000000000"  # descriptor table
        "0030000000000000"  # used ring
        "0020000000000000"  # available ring
        "0040000000000000",  # log
        {
            "index": 3,
            "flags": 1,
            "descriptor": 0x1000,
            "used": 0x3000,
            "available": 0x2000,
            "log": 0x4000,
        },
    ),
    (
        "memory table",
        p.MemoryTable,
        "02000000 00000000" + 2 * REGION_BYTES,
        {"num_regions": 2, "padding": 0, "regions": [REGION, REGION]},
    ),
    (
        "single region",
        p.SingleMemoryRegion,
        "0000000000000000" + REGION_BYTES,
        {"padding": 0, "region": REGION},
    ),
    (
        "config",
        p.Config,
        "04000000 04000000 01000000 deadbeef",
        {"offset": 4, "size": 4, "flags": 1, "payload": bytes.fromhex("deadbeef")},
    ),
    (
        "inflight",
        p.Inflight,
        "0020000000000000 0010000000000000 0500 4000",
        {"mmap_size": 0x2000, "mmap_offset": 0x1000, "num_queues": 5, "queue_size": 64},
    ),
    (
        "shared memory regions",
        p.ShmemConfig,
        "01000000 00000000 0010000000000000" + 255 * "0000000000000000",
        {"num_regions": 1, "padding": 0, "sizes": [0x1000] + [0] * 255},
    ),
    ("u64 (device status FEATURES_OK)", p.U64, "0800000000000000", 8),
]


def plain(value: Any) -> Any:
    """A construct result without its containers."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not key.startswith("_")}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "layout", "golden", "value"), LAYOUTS)
def test_a_layout_matches_the_specification_both_ways(
    name: str, layout: Any, golden: str, value: Any
) -> None:
    data = bytes.fromhex(golden)
    assert layout.build(value) == data
    assert plain(layout.parse(data)) == value


def test_parsed_values_have_each_field_in_its_place() -> None:
    by_name = {name: bytes.fromhex(golden) for name, _, golden, _ in LAYOUTS}
    region = p.Region(**REGION)
    assert p.parse_vring_state(by_name["vring state"]) == (2, 256)
    assert p.build_vring_state(2, 256) == by_name["vring state"]
    assert p.parse_vring_addr(by_name["vring address"]) == p.VringAddress(
        3, 1, descriptor=0x1000, used=0x3000, available=0x2000, log=0x4000
    )
    assert p.parse_memory_table(by_name["memory table"]) == [region, region]
    assert p.parse_single_region(by_name["single region"]) == region
    access = p.parse_config(by_name["config"])
    assert access == p.ConfigAccess(4, 4, 1, bytes.fromhex("deadbeef"))
    assert p.parse_u64(bytes.fromhex("efcdab8967452301")) == 0x0123_4567_89AB_CDEF
    assert p.build_u64(0x0123_4567_89AB_CDEF) == bytes.fromhex("efcdab8967452301")
    assert p.parse_memory_table(bytes(8)) == []
    assert bytes(8 + 256 * 8) == p.NO_SHMEM


@pytest.mark.parametrize(
    ("golden", "expected"),
    [
        ("0000000000000000", (0, True)),
        ("0401000000000000", (4, False)),
        ("ff00000000000000", (255, True)),
    ],
)
def test_kick_call_and_err_carry_eight_bits_of_index_and_the_no_descriptor_bit(
    golden: str, expected: tuple[int, bool]
) -> None:
    assert p.parse_vring_fd(bytes.fromhex(golden)) == expected


@pytest.mark.parametrize("bit", range(9, 64))
def test_reserved_bits_of_kick_call_and_err_are_refused(bit: int) -> None:
    with pytest.raises(p.PayloadError, match="reserved"):
        p.parse_vring_fd((1 << bit).to_bytes(8, "little"))


def test_a_memory_table_padded_to_eight_regions_is_read_by_its_count() -> None:
    padded = bytes.fromhex("01000000 00000000" + REGION_BYTES) + bytes(7 * 32)
    assert p.parse_memory_table(padded) == [p.Region(**REGION)]


SIZED = [
    (p.parse_empty, 0),
    (p.parse_u64, 8),
    (p.parse_vring_state, 8),
    (p.parse_vring_fd, 8),
    (p.parse_vring_addr, 40),
    (p.parse_single_region, 40),
]


@pytest.mark.parametrize(("parse", "size"), SIZED)
def test_a_payload_of_any_other_size_is_refused(parse: Any, size: int) -> None:
    parse(bytes(size))
    for wrong in {*range(64)} - {size}:
        with pytest.raises(p.PayloadError):
            parse(bytes(wrong))


@pytest.mark.parametrize(
    "payload",
    [
        bytes(7),
        b"\x01" + bytes(7),  # names a region but has none
        b"\x01" + bytes(7 + 31),
        b"\x01" + bytes(7 + 64),
        b"\x09" + bytes(7 + 9 * 32),  # more than the spec's eight
        b"\xff\xff\xff\xff" + bytes(4 + 256),
    ],
)
def test_a_memory_table_whose_count_and_size_differ_is_refused(payload: bytes) -> None:
    with pytest.raises(p.PayloadError):
        p.parse_memory_table(payload)


@pytest.mark.parametrize("size", [0, 3, 5, 0xFFFF_FFFF])
def test_a_config_access_whose_size_and_payload_differ_is_refused(size: int) -> None:
    with pytest.raises(p.PayloadError):
        p.parse_config(bytes(4) + size.to_bytes(4, "little") + bytes(4) + b"1234")
    with pytest.raises(p.PayloadError):
        p.parse_config(bytes(11))


@given(st.binary(max_size=400))
def test_any_payload_is_parsed_or_raises_payload_error(payload: bytes) -> None:
    for parse in (*(parse for parse, _ in SIZED), p.parse_memory_table, p.parse_config):
        with contextlib.suppress(p.PayloadError):
            parse(payload)


@given(st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 3))
def test_the_fast_forms_match_the_layouts(words: tuple[int, int, int]) -> None:
    request, flags, size = words
    assert vu.HEADER.pack(*words) == vu.Header.build(
        {"request": request, "flags": flags, "size": size}
    )
    assert vu.HEADER.size == vu.HEADER_SIZE == vu.Header.sizeof() == 12
    built = p.Config.build({"offset": request, "size": 3, "flags": flags, "payload": b"abc"})
    assert p.CONFIG.pack(request, 3, flags) + b"abc" == built
