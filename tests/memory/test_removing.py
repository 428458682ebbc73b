"""Punching many holes with one process_madvise, and the fallback where the kernel cannot."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from protocol.vhost_user_payloads import Region
from tests.support.helpers import HUGE, MIB, PAGE, Piece, memfd, parts, punch_all, resident
from tests.support.huge_pages import HugePages
from vhost_balloon.fds import OwnedFd
from vhost_balloon.memory import syscalls
from vhost_balloon.memory.discard import REMOVE_RANGES
from vhost_balloon.memory.region import MappedRegion
from vhost_balloon.memory.vector import RangeVector

SIZE = 16 * MIB
START = 4 * MIB
"""The region's offset in the file; not 0, so that a wrong base hits another page."""


@pytest.fixture
def region() -> Iterator[MappedRegion]:
    """The middle of a memfd that is entirely resident."""
    fd = memfd(SIZE)
    os.pwrite(fd.fileno(), b"x" * SIZE, 0)
    mapped = MappedRegion(Region(64 * MIB, 8 * MIB, 0, START), fd)
    yield mapped
    mapped.close()


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what earlier calls found out about the kernel."""
    monkeypatch.setattr(syscalls, "_remove_supported", True)


@pytest.fixture
def punched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets that were punched individually."""
    offsets: list[int] = []
    real = syscalls.punch_hole

    def watched(fd: int, offset: int, length: int) -> None:
        offsets.append(offset)
        real(fd, offset, length)

    monkeypatch.setattr(syscalls, "punch_hole", watched)
    return offsets


def kernel(monkeypatch: pytest.MonkeyPatch, *answers: int | OSError | None) -> list[int]:
    """Answer each process_madvise with bytes done, an error, or the real call (None). Returns the
    numbers of ranges asked for. A call without an answer fails."""
    asked: list[int] = []
    real, left = syscalls._remove, list(answers)

    def answering(origin: int, ranges: RangeVector) -> int:
        asked.append(len(ranges))
        answer = left.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return real(origin, ranges) if answer is None else answer

    monkeypatch.setattr(syscalls, "_remove", answering)
    return asked


@pytest.fixture
def needs_remove(region: MappedRegion) -> None:
    """Skip if the kernel (before 6.13) does not let a process do this to itself."""
    with region.borrowed() as (origin, _):
        last = RangeVector.of([(START + 8 * MIB - PAGE, START + 8 * MIB)])
        if not syscalls.remove(origin, last):
            pytest.skip("process_madvise(MADV_REMOVE) is not supported here")
    os.pwrite(region.fd.fileno(), b"x" * PAGE, START + 8 * MIB - PAGE)


def every_other(region: MappedRegion, count: int, first: int = START) -> list[Piece]:
    """Pieces of one and of two pages, none of them adjacent."""
    return [(region, first + 4 * i * PAGE, PAGE * (1 + i % 2)) for i in range(count)]


def size(pieces: list[Piece]) -> int:
    return sum(length for _, _, length in pieces)


def offsets(pieces: list[Piece]) -> list[int]:
    return [offset for _, offset, _ in pieces]


def check(region: MappedRegion, pieces: list[Piece]) -> int:
    """Punch pieces, and check that they are gone and nothing else is. Returns the bytes freed."""
    before = bytearray(os.pread(region.fd.fileno(), SIZE, 0))
    result = punch_all(parts(*pieces))
    assert (result.failed, result.error) == (0, None)
    for _, offset, length in pieces:
        before[offset : offset + length] = bytes(length)
    assert os.pread(region.fd.fileno(), SIZE, 0) == before
    return result.freed


@pytest.mark.usefixtures("needs_remove")
@pytest.mark.parametrize("count", [REMOVE_RANGES, 256, 500])
def test_many_pieces_go_with_one_call(region: MappedRegion, punched: list[int], count: int) -> None:
    pieces = every_other(region, count)
    assert check(region, pieces) == size(pieces)
    assert resident(region.fd) == SIZE - size(pieces)
    assert punched == []


@pytest.mark.usefixtures("needs_remove")
def test_more_pieces_than_fit_one_call(
    region: MappedRegion, punched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "MAX_REMOVED", 100)
    asked = kernel(monkeypatch, None, None, None)
    check(region, every_other(region, 250))
    assert (asked, punched) == ([100, 100, 50], [])


def test_few_pieces_are_punched_individually(region: MappedRegion, punched: list[int]) -> None:
    pieces = every_other(region, REMOVE_RANGES - 1)
    check(region, pieces)
    assert punched == offsets(pieces)


@pytest.mark.usefixtures("needs_remove")
def test_pieces_of_two_regions(region: MappedRegion, punched: list[int]) -> None:
    other = MappedRegion(Region(0, 4 * MIB, 0, 12 * MIB), OwnedFd(os.dup(region.fd.fileno())))
    check(region, [*every_other(region, 30), *every_other(other, 30, 12 * MIB)])
    assert punched == []
    other.close()


@pytest.mark.usefixtures("needs_remove")
@pytest.mark.parametrize(
    ("offset", "length"),
    [(START - PAGE, PAGE), (START + 8 * MIB - PAGE, 2 * PAGE), (START + 8 * MIB, PAGE)],
)
def test_pieces_outside_the_mapping_are_punched_through_the_descriptor(
    region: MappedRegion, punched: list[int], offset: int, length: int
) -> None:
    pieces = [*every_other(region, 30), (region, offset, length)]
    check(region, pieces)
    assert len(punched) == 31


@pytest.mark.parametrize(("offset", "length"), [(5, PAGE), (0, PAGE - 1), (0, 1)])
def test_a_partial_page_is_not_rounded_up(
    region: MappedRegion, punched: list[int], offset: int, length: int
) -> None:
    check(region, [*every_other(region, 30), (region, START + 4 * MIB + offset, length)])
    assert len(punched) == 31


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_a_kernel_without_support_is_asked_only_once(
    region: MappedRegion, punched: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked = kernel(monkeypatch, OSError(number, ""))
    for turn in range(2):
        pieces = every_other(region, 30, START + turn * 4 * MIB)
        assert check(region, pieces) == size(pieces)
    assert (asked, len(punched)) == ([30], 60)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_after_a_transient_failure_it_is_tried_again(
    region: MappedRegion, punched: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked = kernel(monkeypatch, OSError(number, ""), OSError(number, ""))
    for turn in range(2):
        check(region, every_other(region, 30, START + turn * 4 * MIB))
    assert (asked, len(punched)) == ([30, 30], 60)


@pytest.mark.parametrize(("done", "left"), [(0, 20), (PAGE, 19), (PAGE + 1, 19), (9 * PAGE, 11)])
def test_the_rest_after_a_short_count_is_punched(
    region: MappedRegion,
    punched: list[int],
    monkeypatch: pytest.MonkeyPatch,
    done: int,
    left: int,
) -> None:
    """A piece that was removed in part is punched entirely."""
    pieces = [(region, START + 2 * i * PAGE, PAGE) for i in range(20)]
    asked = kernel(monkeypatch, done)
    punch_all(parts(*pieces))
    assert asked == [20]
    assert punched == offsets(pieces[20 - left :])


def test_an_error_after_a_success_does_not_mean_lack_of_support(
    region: MappedRegion, punched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "MAX_REMOVED", 20)
    asked = kernel(monkeypatch, 20 * PAGE, OSError(errno.EINVAL, ""), 30 * PAGE)
    pieces = [(region, START + 2 * i * PAGE, PAGE) for i in range(30)]
    punch_all(parts(*pieces))
    assert punched == offsets(pieces[20:])
    punch_all(parts(*pieces[:20]))
    assert asked == [20, 10, 20]


@pytest.mark.usefixtures("needs_remove")
def test_the_kernel_stops_at_the_first_range_that_fails(region: MappedRegion) -> None:
    with region.borrowed() as (origin, mapped):
        first = origin + mapped.start
        starts = [first + 2 * i * PAGE for i in range(4)]
        starts.insert(2, 1 << 46)  # nothing is ever mapped there
        assert syscalls.remove(0, RangeVector.of([(start, start + PAGE) for start in starts])) == 2
    assert resident(region.fd) == SIZE - 2 * PAGE


@pytest.mark.usefixtures("needs_remove")
def test_no_descriptor_is_left_open(region: MappedRegion) -> None:
    before = os.listdir("/proc/self/fd")
    punch_all(parts(*every_other(region, 30)))
    assert os.listdir("/proc/self/fd") == before


def test_a_mapping_cannot_be_unmapped_while_it_is_borrowed(region: MappedRegion) -> None:
    with region.borrowed() as (_, mapped):
        assert mapped == range(START, START + 8 * MIB)
        with pytest.raises(BufferError):
            region.unmap()
    check(region, every_other(region, 30))


def test_huge_pages_are_punched_individually(huge_pages: HugePages, punched: list[int]) -> None:
    assert huge_pages.free() >= 0
    region = MappedRegion(Region(0, 32 * HUGE, 0, 0), memfd(32 * HUGE, flags=os.MFD_HUGETLB))
    punch_all(parts(*[(region, 2 * i * HUGE, HUGE) for i in range(16)]))
    assert len(punched) == 16
    region.close()
