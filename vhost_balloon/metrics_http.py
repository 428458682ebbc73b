"""As much of HTTP/1.1 as a scrape needs: one request a connection, no body."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from vhost_balloon import __version__

MAX_HEAD: Final = 16 << 10
"""Bytes of a request: Prometheus sends some 500."""
HEAD_END: Final = b"\r\n\r\n"

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


class BadRequest(Exception):
    """Not HTTP, or too much of it."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What counts of a request. The path is without its query."""

    method: str
    path: str
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets, after which the connection ends."""

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
        return "\r\n".join(lines).encode("latin-1") + HEAD_END


def parse_head(head: bytes) -> Request:
    """What precedes a request's empty line. Raises BadRequest."""
    first, *lines = head.decode("latin-1").split("\r\n")
    match first.split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"] if target.startswith("/"):
            pass
        case _:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
    headers = [line.partition(":") for line in lines]
    accept = [value.strip() for name, _, value in headers if name.lower() == "accept"]
    return Request(method, target.partition("?")[0], ",".join(accept))


def plain(status: HTTPStatus, *headers: str) -> Answer:
    """A status that says itself."""
    return Answer(status, f"{status.value} {status.phrase}\n".encode(), headers=headers)


def answer_page(request: Request) -> Answer | None:
    """The answer to everything but a request for the metrics."""
    if request.method not in ("GET", "HEAD"):
        return plain(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
    if request.path == METRICS_PATH:
        return None
    if request.path == "/":
        return Answer(HTTPStatus.OK, LANDING_PAGE.encode(), "text/html; charset=utf-8")
    return plain(HTTPStatus.NOT_FOUND)
