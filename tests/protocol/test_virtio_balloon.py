"""The balloon's wire formats, as copied from the virtio specification and Linux's uapi header."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol import virtio_balloon as vb

# tag, name in VIRTIO_BALLOON_S_*, key in QEMU's guest-stats
TAGS = """
0 SWAP_IN stat-swap-in
1 SWAP_OUT stat-swap-out
2 MAJFLT stat-major-faults
3 MINFLT stat-minor-faults
4 MEMFREE stat-free-memory
5 MEMTOT stat-total-memory
6 AVAIL stat-available-memory
7 CACHES stat-disk-caches
8 HTLB_PGALLOC stat-htlb-pgalloc
9 HTLB_PGFAIL stat-htlb-pgfail
10 OOM_KILL stat-oom-kills
11 ALLOC_STALL stat-alloc-stalls
12 ASYNC_SCAN stat-async-scans
13 DIRECT_SCAN stat-direct-scans
14 ASYNC_RECLAIM stat-async-reclaims
15 DIRECT_RECLAIM stat-direct-reclaims
"""


def test_all_sixteen_statistics_tags() -> None:
    rows = [line.split() for line in TAGS.split("\n") if line]
    assert [(tag.value, tag.name, vb.STAT_NAMES[tag]) for tag in vb.StatTag] == [
        (int(number), name, key) for number, name, key in rows
    ]
    assert vb.STAT_UNKNOWN == 0xFFFF_FFFF_FFFF_FFFF


def test_feature_bits() -> None:
    assert {f.name: f.value for f in vb.BalloonFeature} == {
        "MUST_TELL_HOST": 0x01,
        "STATS_VQ": 0x02,
        "DEFLATE_ON_OOM": 0x04,
        "FREE_PAGE_HINT": 0x08,
        "PAGE_POISON": 0x10,
        "PAGE_REPORTING": 0x20,
    }


def test_queues_and_numbers() -> None:
    assert vb.VIRTIO_ID == 5
    assert (vb.INFLATE_INDEX, vb.DEFLATE_INDEX, vb.FIRST_OPTIONAL_INDEX) == (0, 1, 2)
    assert vb.NUM_QUEUES == len(vb.Queue) == 5
    assert [(int(bit), queue) for bit, queue in vb.OPTIONAL_QUEUES] == [
        (0x02, vb.Queue.STATS),
        (0x08, vb.Queue.FREE_PAGE),
        (0x20, vb.Queue.REPORTING),
    ]
    assert (vb.PFN_SHIFT, vb.PFN_SIZE, vb.BALLOON_PAGE_SIZE) == (12, 4, 4096)
    assert (vb.CMD_ID_STOP, vb.CMD_ID_DONE) == (0, 1)


def test_the_config_space() -> None:
    golden = bytes.fromhex("00000200 00000100 03000000 aaaaaaaa")
    fields = {
        "num_pages": 0x20000,
        "actual": 0x10000,
        "free_page_hint_cmd_id": 3,
        "poison_val": 0xAAAA_AAAA,
    }
    assert vb.ConfigSpace.build(fields) == golden
    assert vb.CONFIG_SPACE.pack(*fields.values()) == golden
    assert vb.CONFIG_SPACE.size == vb.CONFIG_SIZE == vb.ConfigSpace.sizeof() == 16


def test_a_statistics_buffer() -> None:
    golden = bytes.fromhex("0400 00000040000000000a00 0200000000000000")
    assert [(s.tag, s.value) for s in vb.Stats.parse(golden)] == [(4, 1 << 30), (10, 2)]
    assert vb.STAT.size == 10


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, vb.STAT_UNKNOWN))))
def test_the_fast_statistics_match_the_layout(entries: list[tuple[int, int]]) -> None:
    data = b"".join(vb.STAT.pack(tag, value) for tag, value in entries)
    assert data == vb.Stats.build([{"tag": tag, "value": value} for tag, value in entries])
    assert list(vb.STAT.iter_unpack(data)) == entries


@given(st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 4))
def test_the_fast_config_space_matches_the_layout(words: tuple[int, int, int, int]) -> None:
    parsed = vb.ConfigSpace.parse(vb.CONFIG_SPACE.pack(*words))
    assert words == (
        parsed.num_pages,
        parsed.actual,
        parsed.free_page_hint_cmd_id,
        parsed.poison_val,
    )
