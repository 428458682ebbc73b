"""What one run looked like, second by second, for a picture. Sizes in MiB."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class VmRecording:
    """A VM, one entry a second of the run. NaN before it boots. trouble: seconds of distress."""

    name: str
    size: float
    target: list[float] = field(default_factory=list)
    actual: list[float] = field(default_factory=list)
    demand: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    trouble: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Recording:
    """A run. available: the host's, one entry a second; k: min(1, available / reserve), not below
    0. reserve: R of our rule. line: R0 of the measures."""

    scenario: str
    seed: int
    rule: str
    total: float
    reserve: float
    line: float
    available: list[float] = field(default_factory=list)
    k: list[float] = field(default_factory=list)
    vms: list[VmRecording] = field(default_factory=list)
