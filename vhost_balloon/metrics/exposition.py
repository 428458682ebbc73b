"""Prometheus' text formats, written fast enough for an event loop that serves guests.

The client library writes 200,000 lines a second, and a VM has 140: 100 VMs would take 60 ms of
every scrape, 64 times as long as this. So the library writes each line once, for a VM without a
name, and a scrape inserts names and values. The library's formats and escaping apply;
metrics/accept.py chooses the format.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from vhost_balloon.metrics.accept import OPENMETRICS, TEXT, MediaType, negotiate
from vhost_balloon.metrics.document import Document
from vhost_balloon.metrics.families import EVERY_FAMILY, BuildCollector
from vhost_balloon.metrics.family import Family, Values
from vhost_balloon.metrics.process import ProcessCollector
from vhost_balloon.printable import encodable

Encoder = Callable[[Collector], bytes]
Rows = Sequence[tuple[str, Document | None]]
"""VM names and snapshots; None for a VM without one, whose `up` is 0."""
Snapshots = Callable[[], Awaitable[Rows]]

_PLACE: Final = "\N{NULL}vm\N{NULL}"
"""Placeholder for a VM's name. No path contains it, so no VM's name does."""

_END: Final = "# EOF\n"
"""The last line in OpenMetrics; Prometheus' own format has none."""

_ENCODERS: Final[Mapping[MediaType, Encoder]] = {
    TEXT: generate_latest,
    OPENMETRICS: openmetrics.generate_latest,
}
"""All supported versions of the library write these formats when called with a collector alone.
How they escape metric names does not matter: ours are plain."""

MIN_INTERVAL: Final = 0.1
"""Seconds for which all clients get the same text, so that no client can keep us busy."""

_DOWN: Final[Document] = {}
"""Replaces a missing snapshot: no family but `up` has a value for it."""


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


@dataclass(frozen=True, slots=True)
class Layout:
    """A family in one format: its header lines, and a VM's series with %s for each value."""

    header: str
    series: str

    @classmethod
    def of(cls, family: Family, encode: Encoder) -> Layout:
        text = encode(_One(family.metric([(_PLACE, family.zeros())]))).decode()
        lines = text.removesuffix(_END).splitlines(keepends=True)
        names = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
        return cls(
            "".join(line for line in lines if line.startswith("#")),
            "".join(f"{name.replace('%', '%%')} %s\n" for name in names),
        )

    def of_vm(self, vm_id: str) -> VmSeries:
        name = encodable(vm_id).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return VmSeries(self.series.replace(_PLACE, name.replace("%", "%%")))


_LAYOUTS: Final = {
    media: [Layout.of(family, encode) for family in EVERY_FAMILY]
    for media, encode in _ENCODERS.items()
}


class VmSeries:
    """One VM's series of a family. Most values are those of the previous scrape."""

    __slots__ = ("template", "text", "values")

    def __init__(self, template: str) -> None:
        self.template = template
        self.values: Values | None = None
        self.text = ""


class Format:
    """All families in one format. A VM's layout is kept as long as the VM exists."""

    def __init__(self, media: MediaType) -> None:
        self.content_type: Final = media.content_type
        self._encode = _ENCODERS[media]
        self._layouts = _LAYOUTS[media]
        self._vms: dict[str, list[VmSeries]] = {}
        self._body = b""
        self._made = float("-inf")

    def render(self, rows: Rows, registry: CollectorRegistry, now: float) -> bytes:
        """The series of the VMs, then those of registry. now: when the VMs were asked."""
        if now != self._made:
            # The registry comes last, because it writes the last line of OpenMetrics.
            self._body = self._fill(rows).encode() + self._encode(registry)
            self._made = now
        return self._body

    def _fill(self, snapshots: Rows) -> str:
        self._vms = {name: self._vms.get(name) or self._lay_out(name) for name, _ in snapshots}
        rows = [(vm or _DOWN, self._vms[name]) for name, vm in snapshots]
        parts: list[str] = []
        for number, (family, layout) in enumerate(zip(EVERY_FAMILY, self._layouts, strict=True)):
            parts.append(layout.header)
            read = family.read
            for vm, families in rows:
                values = read(vm)
                if values is None:
                    continue
                series = families[number]
                if values != series.values:
                    series.values, series.text = values, series.template % values
                parts.append(series.text)
        return "".join(parts)

    def _lay_out(self, vm_id: str) -> list[VmSeries]:
        return [layout.of_vm(vm_id) for layout in self._layouts]


class Exposition:
    """The answer to a scrape: the VMs, this program and its process."""

    def __init__(self, snapshots: Snapshots, collectors: Iterable[Collector] = ()) -> None:
        self._snapshots = snapshots
        self._registry = CollectorRegistry()
        for collector in (BuildCollector(), *collectors, ProcessCollector()):
            self._registry.register(collector)
        self._asking = trio.Lock()
        self._rows: Rows = ()
        self._asked = float("-inf")
        self._formats = {media: Format(media) for media in _ENCODERS}

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, for a client with this Accept header.

        Scrapes during a query of the VMs or within MIN_INTERVAL after it share its result.
        """
        async with self._asking:
            if trio.current_time() - self._asked >= MIN_INTERVAL:
                # Others wait for this too, so the end of one client must not cancel it.
                with trio.CancelScope(shield=True):
                    self._rows = await self._snapshots()
                self._asked = trio.current_time()
        chosen = self._formats[negotiate(accept)]
        return chosen.render(self._rows, self._registry, self._asked), chosen.content_type
