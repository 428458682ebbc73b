"""Prometheus' text formats, fast enough for an event loop that serves guests.

The client library writes some 200,000 lines a second, and a VM has 140: 100 VMs would take 60 ms
of every scrape. So the library writes each line once, for one VM of no name, and a scrape puts
names and values into these. What the library says of formats, escaping and Accept headers holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from vhost_balloon.metrics import FAMILIES, BuildCollector, vm_label
from vhost_balloon.metrics_family import Family, Values
from vhost_balloon.metrics_process import ProcessCollector
from vhost_balloon.vm import VmStatistics

Encoder = Callable[[Collector], bytes]
Snapshots = Callable[[], Iterable[VmStatistics]]

_PLACE: Final = "\N{NULL}vm\N{NULL}"
"""Stands for a VM's name until it is known: no path, and so no VM, has it in its name."""

_END: Final = "# EOF\n"
"""The last line in OpenMetrics; Prometheus' own format has none."""

MAX_FORMATS: Final = 4
"""A client may ask for any version of OpenMetrics. Beyond so many formats it gets the plain one,
which every client reads."""

MIN_INTERVAL: Final = 0.1
"""Seconds that a text is given to all who ask, so that no client makes us write in a loop."""


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


class VmSeries:
    """One VM's series of a family. Most values are those of the scrape before."""

    __slots__ = ("template", "text", "values")

    def __init__(self, template: str) -> None:
        self.template = template
        self.values: Values | None = None
        self.text = ""


class Format:
    """All families in one format; what was laid out for a VM is kept as long as the VM is there."""

    def __init__(self, encode: Encoder, content_type: str) -> None:
        self.content_type: Final = content_type
        self._encode = encode
        self._layouts = [Layout.of(family, encode) for family in FAMILIES]
        self._vms: dict[str, list[VmSeries]] = {}
        self._body = b""
        self._made = float("-inf")

    def render(self, snapshots: Snapshots, registry: CollectorRegistry, now: float) -> bytes:
        """The VMs' series, then registry's."""
        if now - self._made >= MIN_INTERVAL:
            # The registry comes last: OpenMetrics ends with a line that it writes.
            self._body = self._fill(snapshots()).encode() + self._encode(registry)
            self._made = now
        return self._body

    def _fill(self, vms: Iterable[VmStatistics]) -> str:
        rows = [(vm, self._vms.get(vm.id) or self._lay_out(vm.id)) for vm in vms]
        self._vms = {vm.id: families for vm, families in rows}
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

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._registry = CollectorRegistry()
        self._registry.register(BuildCollector())
        self._registry.register(ProcessCollector())
        self._formats: dict[str, Format] = {}

    def render(self, accept: str, now: float) -> tuple[bytes, str]:
        """The metrics and their content type, for a client that accepts this.

        now: the monotonic clock in seconds; within MIN_INTERVAL they are the same.
        """
        chosen = self._choose(accept)
        return chosen.render(self._snapshots, self._registry, now), chosen.content_type

    def _choose(self, accept: str) -> Format:
        encode, content_type = choose_encoder(accept)
        if content_type not in self._formats and len(self._formats) >= MAX_FORMATS:
            encode, content_type = choose_encoder("")
        if content_type not in self._formats:
            self._formats[content_type] = Format(encode, content_type)
        return self._formats[content_type]
