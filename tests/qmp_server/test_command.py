"""Which arguments a command takes."""

from __future__ import annotations

from typing import Any

import pytest

from vhost_balloon.errors import CommandError
from vhost_balloon.qmp_server.command import Parameter, check_arguments

PARAMETERS = (
    Parameter("count", "int"),
    Parameter("colour", "Colour", optional=True, values=("red", "green")),
    Parameter("names", "[str]", optional=True),
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 0},
        {"count": -(1 << 63), "colour": "green"},
        {"names": [], "colour": "red", "count": (1 << 63) - 1},
    ],
)
def test_good_arguments_are_returned(arguments: Any) -> None:
    assert check_arguments(PARAMETERS, arguments) == arguments


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "Parameter 'count' is missing"),
        ({"count": 1 << 63}, "Invalid parameter type for 'count', expected: integer"),
        ({"count": True}, "Invalid parameter type for 'count', expected: integer"),
        ({"count": 1, "size": 1}, "Parameter 'size' is unexpected"),
        ({"count": 1, "colour": "blue"}, "Parameter 'colour' does not accept value 'blue'"),
        ({"count": 1, "colour": ""}, "Parameter 'colour' does not accept value ''"),
        ({"count": 1, "colour": ["red"]}, "Invalid parameter type for 'colour', expected: string"),
        ({"count": 1, "names": "red"}, "Invalid parameter type for 'names', expected: array"),
    ],
)
def test_bad_arguments_are_an_error(arguments: Any, text: str) -> None:
    with pytest.raises(CommandError) as error:
        check_arguments(PARAMETERS, arguments)
    assert str(error.value) == text
