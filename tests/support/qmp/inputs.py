"""Input to a QMP server, well-formed and not.

NAME is a request that QEMU and the daemon both have; PROBE is another, which shows when a server
recovers from the input before it.
"""

from __future__ import annotations

from typing import Final

NAME: Final = b'{"execute":"query-name"}'
PROBE: Final = b'{"execute":"query-name","id":"probe"}'


def with_id(text: bytes) -> bytes:
    """A request with this text as its id."""
    return b'{"execute":"query-name","id":' + text + b"}"


SPREAD: Final = (
    b'{"execute":\n"query-name"}',
    b'{"execute":\r\n"query-name"\r\n}\r\n',
    b'{\r"execute":\r"query-name"\r}\r',
    b'{\n\n\t"execute"\n:\n"query-name"\n,\n"id"\n:\n[\n1\n,\n2\n]\n}\n',
    b"\n\n\r\n" + NAME + b"\n\n",
    NAME * 3,
    NAME + b" " + NAME + b"\t" + NAME + b"\r" + NAME + b"\n",
    b"{'execute':\n'query-name','id':'it\\'s'}",
    b"{'execute':'query-name','id':'a\"b'}",
    with_id(b'"it\'s"'),
    with_id(b"\"'\\'\""),
)
"""Well-formed requests, split by blanks or not at all, with either quote."""

MISTAKES: Final = (
    *(b"garbage\n", b"foo bar\n", b"Hello World\n", b"help\n", b"info balloon\n", b"?\n"),
    *(b"@@@ ### \n", b"quit\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"/* c */", b"// c\n"),
    *(b"# c\n", b"%d\n", b"tru,", b"nul\n", b"null\n", b"true false\n", b"5\n", b"5 6\n", b"-5 "),
    *(b"-\n", b"01\n", b"1.\n", b"1e5\n", b".5\n", b"+1\n", b"-@", b"-{}", b'"abc"', b"''", b"[]"),
    *(b"}", b"]", b"}}}", b",", b":", b",,,\n", b"[}\n", b"{]\n", b"[[1}]", b'{"a":[1}]', b"{}{}"),
    *(b"[1}", b'{"a":1]', b"[1,]", b"[,1]", b"[1 2]", b"[:]", b"{,}", b"{1:2}", b"{null:1}"),
    *(b"{[]:1}", b"{{}:1}", b'{"a":}', b'{"a"::1}', b'{"a" 1}', b'{"execute"}', b'{"a":1 "b":2}'),
    b'{"execute":"query-name" "id":1}',
    b'{"execute":"query-name",}',
    b'{"execute": \n}\n',
    b'{"execute":"query-name","execute":"query-name"}',
    b'{"execute":"a","id":{"x":1,"x":2}}',
    b'{"a":1,"a":[1,{"b":2}],"c":3}',
    *(NAME + end for end in (b"trailing\n", b",", b";", b"\xc2\xa0", b"}", b"]", b'"\n', b"\xff")),
    b'{"execute":"query-name" /* x */}\n',
    *(with_id(b) for b in (b"nul", b"Null", b"NaN", b"-Infinity", b"01", b"1e", b"0e9", b"%d")),
    *(with_id(b) for b in (b"1.", b"-", b"--1", b"+1", b".5", b"0x10", b"1_0", b"undefined")),
    *(b"\x00", b"\x01", b"\xff", b"\xff\xff\xff", b"\xef\xbb\xbf", b"\x1f", b"\x0b\x0b", b"\x7f"),
    *(b"\x80", b"@\x00", b"@\x00\x00", b"@ \t\xff", b"@\r", b'@"\n', b'@"{}', b"@}", b"@\x0b@"),
    *(b'"abc\xff', b'"abc\xff\xff', b"\xff\n\xff", b"abc\xff", b"12\xff", b"1.\xff", b'"\\\xff'),
    *(b'{"lost":[\xff', b'{"lost":[\x00', b'{"lost":["\xff', b'{"lost":["\n', b'"\n', b'"\\\n'),
    *(b'{"execute": garbage \xff', b'{"execute": garbage @ \n', b'{"execute": garbage @ \n}'),
    *(b'{"execute": garbage ["\xff', b'{"execute": garbage foo 5 ,,, }', b'{"a": b ] }'),
    *(b'{"execute": garbage foo "abc\n }', b'["\\q", @]\n', b'{"a":"\\q"}', b'"a\\qb"'),
    *(with_id(b'"%s"' % b) for b in (b"\n", b"\t", b"\x01", b"\x7f", b"\\\n", b"\xff", b"\xfe")),
)
"""After each of these a server answers the next request."""

SWALLOWING: Final = (
    b'{"execute": \ngarbage\n',
    b'{"execute": "query-name"\n',
    b"[\n",
    b"{" * 7,
    b'{"a": b [',
    b'[@\n["b',
    with_id(b"'a\""),
)
"""After each of these the next request is still part of the input, until reset or closed."""

STRINGS: Final = tuple(
    b'"%s"' % text
    for text in (
        *(b"a\\/b\\b\\f\\n\\r\\t\\u0041", b"\\x41", b"\\u00", b"\\u0000", b"\\u00zz", b"100%d"),
        *(b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\uD83D\\uDE00", b"\\ud83dx"),
        *(b"\\ud83d\\u0041", b"\\ude00\\ud83d", b"\xc3\xa9", b"\xc3(", b"\xc0\x80", b"\xc1\xbf"),
        *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x82\x82\xac", b"\xfd\xbf\xbf\xbf\xbf\xbf"),
        *(
            b"\xf0\x9f\x98\x80 \xe2\x82\xac",
            b"\xef\xbb\xbf",
            b"\\u0085\xc2\x85 \\u2028",
            b"",
            b"\\",
        ),
        *(b"\\u", b"\\uG000", b"\\u 041", b"\\u+041", b"\\\\u0041", b"\\\\\\u0041"),
    )
)
"""Strings, of which not all are valid."""

NUMBERS: Final = (
    *(b"0", b"-0", b"-0.0", b"1", b"-1", b"1.5", b"1e9", b"1E+2", b"1e-2", b"0.1e2", b"123.25"),
    *(b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809"),
    b"123456789012345678901234567890",
)

REQUESTS: Final = (
    *(b'{"id":1}', b"{}", b'{"execute":5,"id":1}', b'{"x":1,"execute":5,"id":7}', b'{"":1,"id":2}'),
    *(b'{"execute":"query-name","x":1,"id":7}', b'{"id":1,"id":2}', b'{"\\u0041":1}'),
    *(b'{"exec-oob":"query-name"}', b'{"exec-oob":"query-name","execute":"query-name"}'),
    b'{"execute":"query-name","control":{"run-oob":true}}',
    *(b'{"execute":"query-name","arguments":%s,"id":3}' % b for b in (b"null", b"{}", b"[]", b"1")),
    *(b'{"execute":"%s","id":[1,2]}' % b for b in (b"", b"QUERY-NAME", b"no\\n\xc3\xa9", b"quit ")),
    b'{"execute":"query-name\\u0000x"}',
    b'{"execute":"query-name","arguments":{"x":1},"id":null}',
    b'{"execute":"qmp_capabilities"}',
    with_id(b'{"":[null,true,false,{"a":{}}]}'),
)
