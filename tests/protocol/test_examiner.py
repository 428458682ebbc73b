"""What the examiner is asked and answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.examiner import (
    FREE,
    MAX_ANSWER,
    MAX_QUESTION,
    PINNED,
    UNKNOWN,
    answer,
    question,
    read_answer,
    read_question,
)
from tests.support.hostile.bad_questions import BAD_QUESTIONS


@given(st.integers(1, (1 << 31) - 1), st.integers(0, (1 << 64) - 1))
def test_a_question_is_read_as_it_was_asked(pid: int, memory_size: int) -> None:
    line = question(pid, memory_size)
    assert len(line) <= MAX_QUESTION
    assert read_question(line) == (pid, memory_size)


@pytest.mark.parametrize("line", BAD_QUESTIONS)
def test_no_question(line: bytes) -> None:
    with pytest.raises(ValueError, match="not PID BYTES"):
        read_question(line)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_question_or_none(line: bytes) -> None:
    try:
        found = read_question(line)
    except ValueError:
        return
    assert question(*found) == line


@given(st.text())
def test_any_reason_fits_an_answer(reason: str) -> None:
    line = answer(UNKNOWN, f"because {reason}")
    assert len(line) <= MAX_ANSWER
    assert line.endswith(b"\n")


@pytest.mark.parametrize(
    "found", [(FREE, ""), (PINNED, ""), (UNKNOWN, "it has ended"), (UNKNOWN, "x" * 200)]
)
def test_an_answer_is_read_as_it_was_given(found: tuple[str, str]) -> None:
    assert read_answer(answer(*found)) == found


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"free", b"FREE\n", b"free \n", b"free x\n", b"pinned x\n", b"unknown\n",
     b"unknown \n", b"unknown x\x1b\n", b"unknown x\ny\n", b"freefree\n", b"free\nfree\n",
     b"unknown \xff\n", b"maybe x\n", b"\0free\n"],
)  # fmt: skip
def test_no_answer(line: bytes) -> None:
    with pytest.raises(ValueError, match="none of the three words"):
        read_answer(line)
