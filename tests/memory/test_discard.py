"""Punching holes in bounded pieces, and measuring exactly what comes back: nothing else touches the
memory here."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.vhost_user_payloads import Region
from tests.support.helpers import (
    GIB,
    HUGE,
    MIB,
    PAGE,
    Piece,
    memfd,
    parts,
    pieces,
    punch_all,
    resident,
)
from tests.support.huge_pages import HugePages
from vhost_balloon.fds import OwnedFd
from vhost_balloon.memory import discard as module
from vhost_balloon.memory import syscalls
from vhost_balloon.memory.discard import PIECE_BYTES, PIECE_RANGES
from vhost_balloon.memory.discard import pieces as cut
from vhost_balloon.memory.region import MappedRegion, Part
from vhost_balloon.memory.syscalls import Filesystem
from vhost_balloon.memory.vector import page_vector

SIZE = 8 * MIB


def mapped(fd: OwnedFd, size: int = SIZE) -> MappedRegion:
    return MappedRegion(Region(0, size, 0, 0), fd)


def fill(region: MappedRegion, size: int = SIZE) -> None:
    os.pwrite(region.fd.fileno(), b"x" * size, 0)


def content(region: MappedRegion, offset: int, length: int) -> set[int]:
    return set(os.pread(region.fd.fileno(), length, offset))


@pytest.fixture
def region() -> Iterator[MappedRegion]:
    """A region over a memfd that is entirely resident."""
    region = mapped(memfd(SIZE))
    fill(region)
    assert resident(region.fd) == SIZE
    yield region
    region.close()


# Pieces


def joined(items: Iterable[Piece]) -> list[tuple[int, int]]:
    """(offset, length) of items, adjacent ones joined."""
    found: list[tuple[int, int]] = []
    for _, offset, length in items:
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 4) | st.integers(1, 1 << 16))),
    st.sampled_from([PAGE, HUGE, GIB]),
    st.sampled_from([3, PIECE_RANGES]),
    st.booleans(),
)
def test_pieces_cover_everything_in_order_and_are_bounded(
    spans: list[tuple[int, int]], page_size: int, most: int, two_regions: bool
) -> None:
    regions = [mapped(memfd(SIZE)) for _ in range(2)]
    for region in regions:
        region.page_size = page_size
    whole = [
        (regions[number % (1 + two_regions)], at * page_size, min(n * page_size, 8 * GIB))
        for number, (at, n) in enumerate(spans)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_RANGES", most)
        found = [piece for part in parts(*whole) for piece in cut(part)]
    for piece in found:
        items = pieces([piece])
        assert 1 <= len(items) == len(piece.ranges) <= most
        total = sum(length for _, _, length in items)
        assert total == piece.size
        assert total <= PIECE_BYTES or (len(items) == 1 and total == page_size)
        assert all(at % page_size == length % page_size == 0 for _, at, length in items)
        assert all(length > 0 for _, _, length in items)
    for region in regions:
        mine = [item for piece in found for item in pieces([piece]) if item[0] is region]
        assert joined(mine) == joined(item for item in whole if item[0] is region)
        region.close()


def test_4_gib_are_cut_into_pieces_of_8_mib(region: MappedRegion) -> None:
    (part,) = parts((region, PAGE, 4 * GIB))
    found = list(cut(part))
    assert [len(piece.ranges) for piece in found] == [1] * 512
    assert {piece.size for piece in found} == {8 * MIB}


def test_scattered_pages_are_cut_by_their_number(region: MappedRegion) -> None:
    numbers = [2 * number for number in range(PIECE_RANGES + 1)]
    part = Part(region, page_vector(numbers), len(numbers) * PAGE)
    assert [len(piece.ranges) for piece in cut(part)] == [PIECE_RANGES, 1]


# What comes back


def test_a_punch_frees_the_piece_and_nothing_else(region: MappedRegion) -> None:
    result = punch_all(parts((region, MIB, MIB), (region, 4 * MIB, PAGE)))
    assert result.freed == MIB + PAGE == SIZE - resident(region.fd)
    assert (result.failed, result.error) == (0, None)
    assert result.seconds > 0
    assert content(region, MIB, MIB) == content(region, 4 * MIB, PAGE) == {0}
    assert content(region, 0, MIB) == content(region, 2 * MIB, 2 * MIB) == {ord("x")}
    assert content(region, 4 * MIB + PAGE, 4 * MIB - PAGE) == {ord("x")}
    assert os.fstat(region.fd.fileno()).st_size == SIZE


def test_holes_do_not_count_as_freed_again(region: MappedRegion) -> None:
    assert punch_all(parts((region, 0, MIB))).freed == MIB
    assert punch_all(parts((region, 0, 2 * MIB))).freed == MIB
    assert punch_all(parts((region, 0, 2 * MIB))).freed == 0


def test_a_file_behind_two_regions_is_counted_once(region: MappedRegion) -> None:
    other = MappedRegion(Region(GIB, MIB, GIB, 4 * MIB), OwnedFd(os.dup(region.fd.fileno())))
    assert punch_all(parts((region, 0, MIB), (other, 4 * MIB, MIB))).freed == 2 * MIB
    other.close()


def test_two_files_are_counted_together(region: MappedRegion) -> None:
    other = mapped(memfd(SIZE))
    fill(other, MIB)
    assert punch_all(parts((region, 0, MIB), (other, 0, 2 * MIB))).freed == 2 * MIB
    other.close()


def test_a_file_on_tmpfs() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(SIZE)
        region = mapped(OwnedFd(os.dup(file.fileno())))
        fill(region)
        assert punch_all(parts((region, MIB, MIB))).freed == MIB == SIZE - resident(region.fd)
        region.close()


def test_only_whole_huge_pages_come_back(huge_pages: HugePages) -> None:
    region = mapped(memfd(SIZE, flags=os.MFD_HUGETLB))
    os.posix_fallocate(region.fd.fileno(), 0, SIZE)
    with region.view(0, SIZE) as view:
        view[:] = b"x" * SIZE
    free = huge_pages.free()
    assert punch_all(parts((region, HUGE, HUGE))).freed == HUGE
    assert huge_pages.free() == free + 1
    assert resident(region.fd) == SIZE - HUGE
    # Why partial huge pages are kept: the content is lost, and nothing comes back.
    assert punch_all(parts((region, 2 * HUGE, PAGE))).freed == 0
    assert content(region, 2 * HUGE, PAGE) == {0}
    assert content(region, 2 * HUGE + PAGE, HUGE - PAGE) == {ord("x")}
    region.close()


@pytest.mark.usefixtures("shmem_huge_pages")
def test_transparent_huge_pages_come_back_in_small_pages() -> None:
    region = mapped(memfd(SIZE))
    fill(region)
    assert os.fstat(region.fd.fileno()).st_blksize == HUGE  # not the unit in which memory is freed
    assert region.page_size == PAGE
    assert punch_all(parts((region, PAGE, PAGE))).freed == PAGE
    assert punch_all(parts((region, HUGE, HUGE))).freed == HUGE
    assert content(region, 0, PAGE) == content(region, 2 * PAGE, PAGE) == {ord("x")}
    assert resident(region.fd) == SIZE - HUGE - PAGE
    region.close()


def test_a_range_that_fails_is_counted_and_the_others_are_punched(
    region: MappedRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.punch_hole

    def failing(fd: int, offset: int, length: int) -> None:
        if offset == MIB:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(fd, offset, length)

    monkeypatch.setattr(syscalls, "punch_hole", failing)
    result = punch_all(parts(*[(region, i * MIB, MIB) for i in range(3)]))
    assert (result.freed, result.failed) == (2 * MIB, MIB)
    assert result.error is not None
    assert result.error.errno == errno.EOPNOTSUPP


def test_the_kernels_refusal_is_a_result_not_an_exception(region: MappedRegion) -> None:
    result = punch_all(parts((region, 0, PAGE), (region, 1 << 63, 2 * PAGE)))
    assert (result.freed, result.failed) == (PAGE, 2 * PAGE)
    assert result.error is not None
    assert result.error.errno == errno.EINVAL


def test_memory_that_grows_meanwhile_counts_as_nothing_freed(
    region: MappedRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    punch_all(parts((region, 0, MIB)))
    monkeypatch.setattr(syscalls, "punch_hole", lambda *_: fill(region, MIB))
    assert punch_all(parts((region, 0, PAGE))).freed == 0


def test_holes_that_others_punch_meanwhile_do_not_count(
    region: MappedRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU does where memory is unplugged."""
    real = syscalls.punch_hole
    monkeypatch.setattr(syscalls, "punch_hole", lambda fd, at, _: real(fd, at, 4 * MIB))
    assert punch_all(parts((region, 0, PAGE))).freed == PAGE
    assert punch_all(parts((region, 0, MIB))).freed == 0


def test_file_systems_are_recognised_by_their_magic() -> None:
    assert Filesystem(0x01021994, PAGE).kind == "tmpfs"
    assert Filesystem(0x958458F6, HUGE).kind == "hugetlb"
    assert Filesystem(0xEF53, PAGE).kind == "other"
