"""The part of HTTP/1.1 (RFC 9112) that a scrape needs: one request, without a body. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from vhost_balloon import __version__
from vhost_balloon.metrics.accept import TOKEN

MAX_HEAD: Final = 16 << 10
"""Bytes of a request, including empty lines before it; Prometheus sends some 500."""

METRICS_PATH: Final = "/metrics"
LANDING_PAGE: Final = f"""\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>vhost-balloon</title></head>
<body>
<h1>vhost-balloon {__version__}</h1>
<p><a href="{METRICS_PATH}">Metrics</a> of this host's virtual machines, for Prometheus.</p>
</body>
</html>
"""

_METHODS: Final = ("GET", "HEAD")
_REQUEST_LINE: Final = re.compile(rf"({TOKEN}) ([!-~\x80-\xff]+) HTTP/([0-9])\.[0-9]")
_ABSOLUTE_FORM: Final = re.compile(
    r"https?://(?:\[[^][/?#@]+\]|[^][/?#@:]+)(?::[0-9]*)?(/[^?#]*)?(?:\?[^#]*)?", re.IGNORECASE
)
_FIELD: Final = re.compile(rf"({TOKEN}):([\t -~\x80-\xff]*)")


class BadRequest(Exception):
    """A request that is malformed or too long."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """The relevant parts of a request. path: without the query."""

    method: str
    path: str
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, after which the connection ends."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[str, ...] = ()

    def head(self) -> bytes:
        lines = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *self.headers,
            "Connection: close",
        )
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


class RequestReader:
    """Reads the head of one request from pieces of any length.

    Lines end with CRLF or LF; empty lines before the request are skipped (section 2.2). Each line
    is checked once it is complete, so a client that does not speak HTTP/1 is answered without
    sending an empty line.
    """

    def __init__(self) -> None:
        self.method: str | None = None
        """None until the request line is read."""
        self._path = ""
        self._accept: list[str] = []
        self._has_host = False
        self._data = bytearray()
        self._line_start = 0
        self._searched = len(self._data)

    def feed(self, data: bytes | bytearray) -> Request | None:
        """The request, once its head is complete. Raises BadRequest."""
        self._data += data
        while (end := self._data.find(b"\n", self._searched, MAX_HEAD)) >= 0:
            line = self._data[self._line_start : end].removesuffix(b"\r").decode("latin-1")
            self._line_start = self._searched = end + 1
            if self.method is None:
                if line:
                    self._read_request_line(line)
            elif line:
                self._read_field(line)
            else:
                return Request(self.method, self._path, ",".join(self._accept))
        self._searched = len(self._data)
        if self._searched >= MAX_HEAD:
            raise BadRequest(self._too_long())
        return None

    def _read_request_line(self, line: str) -> None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        self.method, target, major = match.groups()
        if major != "1":
            raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        path = _path(target)
        if path is None and self.method in _METHODS:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        self._path = path or target  # for other methods, such as "OPTIONS *"

    def _read_field(self, line: str) -> None:
        match = _FIELD.fullmatch(line)
        if match is None:  # such as a folded line or a space before the colon
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        name, value = match[1].lower(), match[2].strip(" \t")
        if name == "accept":
            self._accept.append(value)
        elif name == "host":
            if self._has_host:
                raise BadRequest(HTTPStatus.BAD_REQUEST)
            self._has_host = True

    def _too_long(self) -> HTTPStatus:
        if self.method is None and b" " in self._data[self._line_start : MAX_HEAD]:
            return HTTPStatus.REQUEST_URI_TOO_LONG
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def _path(target: str) -> str | None:
    """The path in origin form or absolute form (section 3.2); None for another form."""
    if target.startswith("/"):
        return target.partition("?")[0]
    match = _ABSOLUTE_FORM.fullmatch(target)
    return None if match is None else match[1] or "/"


def plain(status: HTTPStatus, *headers: str) -> Answer:
    """A status without further content."""
    return Answer(status, f"{status.value} {status.phrase}\n".encode(), headers=headers)


def answer_page(request: Request) -> Answer | None:
    """The response to any request but one for the metrics, for which it returns None."""
    if request.method not in _METHODS:
        return plain(HTTPStatus.METHOD_NOT_ALLOWED, f"Allow: {', '.join(_METHODS)}")
    if request.path == METRICS_PATH:
        return None
    if request.path == "/":
        return Answer(HTTPStatus.OK, LANDING_PAGE.encode(), "text/html; charset=utf-8")
    return plain(HTTPStatus.NOT_FOUND)
