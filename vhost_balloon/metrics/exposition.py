"""Prometheus' text formats, fast enough for an event loop that serves guests.

The client library writes some 200,000 lines a second, and a VM has 140: 100 VMs would take 60 ms
of every scrape. So the library writes each line once, for one VM of no name, and a scrape puts
names and values into these. The library's formats and its escaping hold; which of the two formats a
client gets is read from its request by ourselves (metrics_accept).
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
from vhost_balloon.metrics.families import FAMILIES, BuildCollector, vm_label
from vhost_balloon.metrics.family import Family, Values
from vhost_balloon.metrics.process import ProcessCollector

Encoder = Callable[[Collector], bytes]
Rows = Sequence[tuple[str, Document | None]]
"""Names of VMs and their snapshots; None where there is none, so that `up` is 0."""
Snapshots = Callable[[], Awaitable[Rows]]

_PLACE: Final = "\N{NULL}vm\N{NULL}"
"""Stands for a VM's name until it is known: no path, and so no VM, has it in its name."""

_END: Final = "# EOF\n"
"""The last line in OpenMetrics; Prometheus' own format has none."""

_ENCODERS: Final[Mapping[MediaType, Encoder]] = {
    TEXT: generate_latest,
    OPENMETRICS: openmetrics.generate_latest,
}
"""All versions of the library that are allowed write these formats if they are given nothing but a
collector. How they would escape other names does not matter: all of ours are plain."""

MIN_INTERVAL: Final = 0.1
"""Seconds that a text is given to all who ask, so that no client makes us write in a loop."""

_DOWN: Final[Document] = {}
"""In place of a snapshot that there is not: no family but `up` has a value of it."""


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


@dataclass(frozen=True, slots=True)
class Layout:
    """A family in one format: the lines before its series, and a VM's series with %s for values."""

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
        name = vm_label(vm_id).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return VmSeries(self.series.replace(_PLACE, name.replace("%", "%%")))


_LAYOUTS: Final = {
    media: [Layout.of(family, encode) for family in FAMILIES] for media, encode in _ENCODERS.items()
}


class VmSeries:
    """One VM's series of a family. Most values are those of the scrape before."""

    __slots__ = ("template", "text", "values")

    def __init__(self, template: str) -> None:
        self.template = template
        self.values: Values | None = None
        self.text = ""


class Format:
    """All families in one format; what was laid out for a VM is kept as long as the VM is there."""

    def __init__(self, media: MediaType) -> None:
        self.content_type: Final = media.content_type
        self._encode = _ENCODERS[media]
        self._layouts = _LAYOUTS[media]
        self._vms: dict[str, list[VmSeries]] = {}
        self._body = b""
        self._made = float("-inf")

    def render(self, rows: Rows, registry: CollectorRegistry, now: float) -> bytes:
        """The VMs' series, then registry's; now: when the VMs were asked."""
        if now != self._made:
            # The registry comes last: OpenMetrics ends with a line that it writes.
            self._body = self._fill(rows).encode() + self._encode(registry)
            self._made = now
        return self._body

    def _fill(self, snapshots: Rows) -> str:
        self._vms = {name: self._vms.get(name) or self._lay_out(name) for name, _ in snapshots}
        rows = [(vm or _DOWN, self._vms[name]) for name, vm in snapshots]
        parts: list[str] = []
        for number, (family, layout) in enumerate(zip(FAMILIES, self._layouts, strict=True)):
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
    """What a scrape gets: the VMs, this program and its process."""

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
        """The metrics and their content type, for a client that accepts this.

        Whoever asks while the VMs are being asked, or within MIN_INTERVAL after, gets the same.
        """
        async with self._asking:
            if trio.current_time() - self._asked >= MIN_INTERVAL:
                # Others wait for this too, so a client that goes meanwhile does not end it.
                with trio.CancelScope(shield=True):
                    self._rows = await self._snapshots()
                self._asked = trio.current_time()
        chosen = self._formats[negotiate(accept)]
        return chosen.render(self._rows, self._registry, self._asked), chosen.content_type
