"""A guest, one second at a time. Sizes in MiB.

Its memory outside the balloon (actual) is anonymous memory in RAM, page cache and free memory. Of
the free memory, `unreported` still occupies the host.
"""

from __future__ import annotations

from tests.policy.rule import SampleView
from tests.policy.worlds.spec import NEVER, GuestSpec

LEAST_WATERMARK = 32.0
WATERMARK = 0.012
LEAST_CACHE = 0.015
"""Shares of the size: what stays free, and what of the cache is never dropped."""
DEFLATE = 2048.0
DROP = 3000.0
SWAP_OUT = 200.0
SWAP_IN = 100.0
INFLATE_SWAP = 100.0
"""MiB/s: of deflation, of dropping cache for demand, of swapping for demand, of swapping in, and of
swapping for the balloon."""
TAKES_BACK = 16.0
"""MiB that a guest without memory takes out of its balloon in a second."""
FAULTS_A_MIB = 20.0
"""Major faults for one MiB that is read again through a mapping: 50 KiB each."""
USUAL_INTERVAL = 10
ASKED_INTERVAL = 2
"""Seconds between samples."""


class Guest:
    """A guest in a run. What it did in the last second: stall, swapped_in, forced_out, reread,
    starved (a second of guest OOM). Totals since its boot have `total` or `moved` in their name.
    """

    __slots__ = (
        "actual",
        "anonymous",
        "asked",
        "cache",
        "due",
        "faults",
        "forced_out",
        "least_cache",
        "moved",
        "next_sample",
        "ordered",
        "reread",
        "sample",
        "spec",
        "stall",
        "starved",
        "swapped",
        "swapped_in",
        "target",
        "took_back",
        "total_reread",
        "total_swapped_in",
        "total_swapped_out",
        "unreported",
        "watermark",
    )

    def __init__(self, spec: GuestSpec) -> None:
        self.spec = spec
        self.watermark = max(LEAST_WATERMARK, WATERMARK * spec.size)
        self.least_cache = LEAST_CACHE * spec.size
        self.actual = self.target = self.ordered = spec.size
        self.due = NEVER
        self.anonymous = spec.demand[0] if spec.boots == 0 else 0.0
        self.cache = spec.cache
        self.unreported = spec.kept * (spec.size - self.anonymous - self.cache)
        if spec.boots:
            self.unreported = 0.0
        self.swapped = 0.0
        self.asked = False
        self.sample: SampleView | None = None
        self.next_sample = max(spec.driver, spec.boots) + spec.phase
        self.stall = self.swapped_in = self.forced_out = self.reread = self.took_back = 0.0
        self.starved = False
        self.faults = self.moved = 0.0
        self.total_reread = self.total_swapped_in = self.total_swapped_out = 0.0

    @property
    def free(self) -> float:
        return self.actual - self.anonymous - self.cache

    @property
    def resident(self) -> float:
        """What the host spends on it."""
        if self.spec.pinned:
            return self.spec.size
        return self.anonymous + self.cache + self.unreported

    @property
    def available(self) -> float:
        """The kernel's estimate of what can be had without swapping."""
        cache = self.cache
        usable = cache - min(cache / 2, self.watermark)
        return max(0.0, self.free - self.watermark) + usable

    @property
    def is_troubled(self) -> bool:
        """Whether the last second was one of distress."""
        return self.actual < self.spec.size - 1 and (
            self.stall > 0 or self.swapped_in >= 5 or self.forced_out >= 1 or self.reread >= 10
        )

    def order(self, second: int, target: float) -> None:
        """A new target. While one is on its way, it only replaces that."""
        self.ordered = target
        if self.due == NEVER:
            self.due = max(second + self.spec.delay, self.spec.driver)

    def ask(self, second: int, asked: bool) -> None:
        """Whether it is asked for statistics each ASKED_INTERVAL from now on."""
        if asked and not self.asked:
            last = self.sample.taken if self.sample is not None else -ASKED_INTERVAL
            soon = max(second + 1, last + ASKED_INTERVAL, self.spec.driver)
            self.next_sample = min(self.next_sample, soon)
        self.asked = asked

    def step(self, second: int) -> None:
        """Live through a second."""
        if self.due <= second:
            self.target, self.due = self.ordered, NEVER
        before = self.actual
        if before < self.target:
            self.actual = min(before + DEFLATE, self.target)
        need = self.spec.demand[second] - self.anonymous - self.swapped
        self.stall = self.forced_out = self.swapped_in = self.took_back = 0.0
        self.starved = False
        if need > 0:
            self._grow(need)
        elif need < 0:
            self._shrink(-need)
        if self.swapped > 0:
            self._swap_in()
        if self.actual > self.target:
            self._inflate()
        self.moved += abs(self.actual - before)
        self._read(second)
        if second >= self.next_sample and self.stall == 0:
            self._answer(second)

    def _answer(self, second: int) -> None:
        """Send a sample. A guest that stalls does not; it answers once it has memory."""
        spec = self.spec
        wait = USUAL_INTERVAL - (second - spec.phase) % USUAL_INTERVAL
        self.next_sample = second + (ASKED_INTERVAL if self.asked else wait)
        if second >= spec.silent:
            self.next_sample = NEVER
            return
        self.sample = SampleView(
            taken=second,
            actual=self.actual,
            available=self.available if spec.claims is None else spec.claims,
            free=self.free,
            total=self.actual,
            faults=self.faults,
            swapped_in=self.total_swapped_in,
            swapped_out=self.total_swapped_out,
        )

    def _grow(self, need: float) -> None:
        room = self.actual - self.anonymous - self.cache - self.watermark
        if room > 0:
            need -= self._use(min(need, room))
        if need > 0:
            dropped = min(need, self.cache - self.least_cache, DROP)
            if dropped > 0:
                self.cache -= dropped
                self.anonymous += dropped
                need -= dropped
        if need > 0:
            out = min(need, SWAP_OUT, 0.7 * self.anonymous, self.spec.swap - self.swapped)
            if out > 0:
                self.swapped += out  # what is swapped out makes room for as much that is new
                self.total_swapped_out += out
                self.forced_out = out
                need -= out
        if need > 0:
            self._stall(need)

    def _use(self, amount: float) -> float:
        """Take anonymous memory from free memory, first from what still occupies the host."""
        self.anonymous += amount
        self.unreported = max(0.0, self.unreported - amount)
        return amount

    def _stall(self, need: float) -> None:
        self.stall = need
        if self.spec.swap - self.swapped > 1e-6:
            return
        self.starved = need > TAKES_BACK
        if self.spec.deflates_on_oom:
            self.took_back = min(TAKES_BACK, self.spec.size - self.actual)
            self.actual += self.took_back

    def _shrink(self, surplus: float) -> None:
        """Free from RAM and swap in proportion."""
        in_ram = surplus * self.anonymous / (self.anonymous + self.swapped)
        self.anonymous -= in_ram
        self.unreported += in_ram
        self.swapped = max(0.0, self.swapped - (surplus - in_ram))

    def _swap_in(self) -> None:
        """What is used comes back, the rest slowly. What has no room goes out again at once."""
        swapped = self.swapped
        missing = 0.7 * (self.anonymous + swapped) - self.anonymous
        wanted = min(max(missing, 0.001 * swapped), SWAP_IN, swapped)
        self.swapped_in = wanted
        self.total_swapped_in += wanted
        room = self.actual - self.anonymous - self.cache - self.watermark
        came = self._use(min(wanted, room)) if room > 0 else 0.0
        against = min(wanted - came, self.cache - self.least_cache)
        if against > 0:
            self.cache -= against
            self.anonymous += against
            came += against
        self.swapped = swapped - came
        self.total_swapped_out += wanted - came

    def _inflate(self) -> None:
        """Towards a lower target: from free memory, then cache, then by swapping."""
        spec = self.spec
        wanted = min(spec.inflate, self.actual - max(self.target, spec.least))
        if wanted <= 0:
            return
        free = self.actual - self.anonymous - self.cache
        taken = min(wanted, free - self.watermark)
        if taken > 0:
            self.unreported -= taken * self.unreported / free
            self.actual -= taken
            wanted -= taken
        taken = min(wanted, self.cache - self.least_cache)
        if taken > 0:
            swapped = min(taken * spec.dropped_share, spec.swap - self.swapped)
            self._swap_out(swapped)
            self.cache -= taken - swapped
            self.actual -= taken
            wanted -= taken
        taken = min(wanted, INFLATE_SWAP, self.anonymous / 2, spec.swap - self.swapped)
        if taken > 0:
            self._swap_out(taken)
            self.actual -= taken

    def _swap_out(self, amount: float) -> None:
        self.anonymous -= amount
        self.swapped += amount
        self.total_swapped_out += amount

    def _read(self, second: int) -> None:
        """Read hot cache again, fill new cache, report free pages."""
        spec = self.spec
        cache = self.cache
        free = self.actual - self.anonymous - cache
        used = 0.0
        if cache < spec.hot:
            self.reread = reread = spec.reread * (1 - cache / spec.hot)
            self.total_reread += reread
            if spec.maps:
                self.faults += reread * FAULTS_A_MIB
            used = max(0.0, min(reread, free - self.watermark))
        else:
            self.reread = 0.0
        fill = spec.boot_fill if second < spec.boots + 12 and spec.boots else spec.fill
        room = min(spec.cache_limit - cache, free - 1.3 * self.watermark) - used
        if room > 0:
            used += min(fill, room)
        unreported = self.unreported
        if used > 0:
            self.cache = cache + used
            free -= used
            unreported = max(0.0, unreported - used)
        if spec.reports:
            leaving = unreported - spec.kept * free
            if leaving > 0:
                unreported -= leaving / 2
        self.unreported = unreported
