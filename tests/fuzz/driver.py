"""Our own driver: mutates inputs without coverage feedback, repeatably from a seed.

It has no dependencies. atheris, where installed, uses coverage and gets further in a long run
(tests.fuzz.__main__).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAX_SIZE: Final = 4096
CORPUS: Final = Path(__file__).parent / "corpus"

_EDGES: Final = (0, 1, 2, 4, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 1 << 31)


class Target(NamedTuple):
    """run raises if its invariant is broken; tokens are worth inserting into its input."""

    name: str
    invariant: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()

    @property
    def folder(self) -> Path:
        return CORPUS / self.name

    def kept(self) -> list[Path]:
        """The inputs of all past findings."""
        return sorted(self.folder.glob("*"))

    def start(self) -> list[bytes]:
        """The inputs that mutation starts from."""
        return [*self.seeds, *(path.read_bytes() for path in self.kept())]


class Finding(NamedTuple):
    data: bytes
    error: BaseException


class Mutator:
    """Makes new inputs from old ones."""

    def __init__(self, inputs: Sequence[bytes], tokens: Sequence[bytes], seed: int) -> None:
        self._inputs = inputs
        self._tokens = [*tokens, *(_edge(value) for value in _EDGES)]
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            data = bytearray(self._random.choice(self._inputs))
            for _ in range(self._random.choice((1, 1, 2, 3, 5, 8, 13))):
                self._change(data)
            yield bytes(data[:MAX_SIZE])

    def _change(self, data: bytearray) -> None:
        r = self._random
        start = r.randint(0, len(data))
        end = min(len(data), start + r.choice((1, 1, 2, 4, 8, 32)))
        match r.randrange(7):
            case 0:
                data[start:end] = r.randbytes(end - start)
            case 1:
                data[start:end] = b""
            case 2:
                data[start:start] = r.randbytes(r.choice((1, 2, 4, 8, 32)))
            case 3:
                data[start:start] = r.choice(self._tokens)
            case 4:
                token = r.choice(self._tokens)
                data[start : start + len(token)] = token
            case 5:
                data[start:start] = data[start:end] * r.choice((1, 2, 8))
            case 6:
                other = r.choice(self._inputs)
                cut = r.randint(0, len(other))
                data[start:start] = other[cut : cut + r.choice((4, 16, 64))]


def _edge(value: int) -> bytes:
    return value.to_bytes(max((value.bit_length() + 7) // 8, 1), "little")


def error_of(target: Target, data: bytes) -> BaseException | None:
    """Return the error a target raises; KeyboardInterrupt passes through."""
    try:
        target.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def fuzz(target: Target, seed: int) -> Iterator[Finding | None]:
    """Run one input after another for as long as the caller iterates."""
    inputs = target.start()
    for data in inputs:
        yield _tried(target, data)
    for data in Mutator(inputs, target.tokens, seed):
        yield _tried(target, data)


def _tried(target: Target, data: bytes) -> Finding | None:
    error = error_of(target, data)
    return None if error is None else Finding(data, error)


def shorten(target: Target, finding: Finding) -> Finding:
    """Remove bytes as long as the same kind of error remains."""
    size = len(finding.data) // 2
    while size:
        start = 0
        while start < len(finding.data):
            data = finding.data[:start] + finding.data[start + size :]
            error = error_of(target, data)
            if error is not None and kind(error) == kind(finding.error):
                finding = Finding(data, error)
            else:
                start += size
        size //= 2
    return finding


def kind(error: BaseException) -> str:
    """Return the innermost exception's type; trio wraps exceptions in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__


def keep(target: Target, finding: Finding) -> Path:
    """Write a finding to the corpus for replay; rename the file by hand after what it shows."""
    target.folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(finding.data).hexdigest()[:10]
    path = target.folder / f"{kind(finding.error).lower()}-{digest}"
    path.write_bytes(finding.data)
    return path
