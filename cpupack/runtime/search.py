"""The search for threads x instances x batch size: what to measure next, when to stop, which one wins.

It knows no processes and no clock of its own: ``measure`` and ``clock`` come from outside, so tests drive it
with made-up machines. Starting a process costs more than measuring in it, so the order matters more than the
count: all layouts at a middle batch size, then the batch sizes of the best layouts outward from there, then
the leaders again in turn, since neighbours differ by less than the machine's mood within one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, median_high, median_low
from typing import Any

from .errors import RunnerError

PROBE_S, PROBE_MIN_S, PROBE_MAX_S = 1 / 60, 0.5, 3.0
"""Measured time of one probe, as a share of the budget, and its bounds in seconds."""
EXPLORE_SHARES = (0.7, 0.9)
"""Share of the budget after which no new setting is begun, in the first and the second pass."""
WORTH_WALKING = 0.8
"""A layout whose probe is below this share of the best layout's is not looked at further."""
PAST_THE_PEAK, WELL_PAST = 0.97, 0.9
"""A walk over batch sizes ends at two settings below the first share of the layout's best, or one below the second."""
LEADERS, MAX_ROUNDS = 3, 5
"""At most so many leaders are measured at most so many times."""
SECOND_CHANCE, LEADER_SHARE = 0.6, 0.92
"""Share of the best that earns a second measurement, and further ones: one run alone may have been disturbed."""
TIE = 0.02
"""Settings this close are equal; the one with fewer samples in flight wins, since its latency is lower."""


class TuningFailedError(RunnerError):
    """Nothing could be measured, or nothing meets the latency bound."""


class MeasurementFailedError(RunnerError):
    """One setting could not be measured; the search goes on without it."""


@dataclass(frozen=True, order=True)
class Setting:
    """``instances`` copies of the model with ``threads`` each, ``batch_size`` samples a call."""

    threads: int
    instances: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.instances} instance{'s' * (self.instances != 1)} x {self.threads} "
            f"thread{'s' * (self.threads != 1)}, batch {self.batch_size}"
        )


@dataclass(frozen=True)
class Space:
    """What may be chosen: layouts ``(threads, instances)``, best guess first, and ascending batch sizes."""

    layouts: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layouts or not self.batch_sizes:
            raise ValueError("a search needs at least one layout and one batch size")

    @property
    def most_threads(self) -> int:
        """The threads of the layouts that use every core."""
        return max(threads * instances for threads, instances in self.layouts)

    def __len__(self) -> int:
        return len(self.layouts) * len(self.batch_sizes)


@dataclass(frozen=True)
class Outcome:
    """The chosen setting, the sentence that says why, and every row measured. ``searched_s`` in seconds."""

    setting: Setting
    reason: str
    rows: tuple[dict[str, Any], ...]
    measured: int
    total: int
    searched_s: float

    @property
    def disturbed(self) -> int:
        """The number of runs during which something outside the bench took CPU time."""
        return _disturbed(self.rows)


Measure = Callable[[Setting, float], dict[str, Any]]
"""(setting, duration_s) -> bench result with throughput_per_s and latency_ms {p50, p99}."""


def make_space(usable: int, objective: str, threads: Sequence[int] | None, batch_sizes: Sequence[int]) -> Space:
    """Return the settings worth measuring on ``usable`` cores; ``threads`` None means its divisors.

    ``latency`` asks for one request at a time: one instance, and the smallest batch size.
    """
    wanted = sorted(set(threads)) if threads else [n for n in range(1, usable + 1) if usable % n == 0]
    if objective == "latency":
        return Space(tuple((n, 1) for n in reversed(wanted)), (min(batch_sizes),))
    full = [(n, max(1, usable // n)) for n in wanted]
    # One instance alone wins only under a tight latency bound, so those come last.
    single = [(n, 1) for n in reversed(wanted) if (n, 1) not in full]
    return Space(tuple(full + single), tuple(sorted(set(batch_sizes))))


def search(
    measure: Measure,
    space: Space,
    objective: str,
    max_latency_ms: float | None,
    budget_s: float,
    clock: Callable[[], float],
    on_row: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> Outcome:
    """Find the setting of highest throughput, or of lowest p99 for ``latency``, within ``budget_s`` seconds.

    A setting is judged by the median of its measurements, and not chosen when its median p99 is above
    ``max_latency_ms``. At least one setting is measured however small the budget. ``on_row`` sees each row as
    it comes. Raises TuningFailedError when nothing could be measured or nothing meets the bound.
    """
    run = _Run(measure, space, objective, max_latency_ms, budget_s, clock, on_row, started_s=clock())
    run.share = EXPLORE_SHARES[0]
    run.explore()
    run.repeat_leaders()
    # What the leaders leave over goes to settings that now look better, and what those leave over to new
    # leaders.
    run.share, seen = EXPLORE_SHARES[1], 0
    while len(run.rows) > seen:
        seen, run.out_of_time = len(run.rows), False
        run.explore()
        run.repeat_leaders()
    return run.outcome()


@dataclass
class _Run:
    measure: Measure
    space: Space
    objective: str
    max_latency_ms: float | None
    budget_s: float
    clock: Callable[[], float]
    on_row: Callable[[dict[str, Any]], None]
    started_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: dict[Setting, list[dict[str, Any]]] = field(default_factory=dict)
    share: float = 1.0
    out_of_time: bool = False

    def explore(self) -> None:
        """Probe the layouts that use every core, walk batch sizes of the good ones; then the other layouts."""
        sizes = self.space.batch_sizes
        middle = (len(sizes) - 1) // 2
        full = [layout for layout in self.space.layouts if layout[0] * layout[1] == self.space.most_threads]
        probed: list[Setting] = []
        for layouts in (full, [layout for layout in self.space.layouts if layout not in full]):
            new = [_setting(layout, sizes[middle]) for layout in layouts]
            probed += [setting for setting in new if self._try(setting)]
            probed.sort(key=self._rank, reverse=True)
            for setting in probed:
                if setting in new and self._worth_walking(setting, probed[0]):
                    self._walk((setting.threads, setting.instances), middle)
        if not self._feasible():
            # The last resort before saying that it cannot be done.
            for layout in self.space.layouts:
                self._try(_setting(layout, sizes[0]))

    def _walk(self, layout: tuple[int, int], start: int) -> None:
        """Measure batch sizes upward, then downward, each until it gets worse."""
        sizes = self.space.batch_sizes
        for indices in (range(start + 1, len(sizes)), range(start - 1, -1, -1)):
            upward = indices.step > 0
            first = _setting(layout, sizes[start])
            if not upward and self._meets(first) and self._value(first) < PAST_THE_PEAK * self._peak(layout):
                break  # it rose on the way up, so it falls on the way down
            below = 0
            for index in indices:
                if upward and not self._meets(_setting(layout, sizes[index - 1])):
                    break  # p99 grows with the batch
                setting = _setting(layout, sizes[index])
                if not self._try(setting):
                    break
                if not self._meets(setting):
                    continue
                share = self._value(setting) / self._peak(layout)
                below = below + 1 if share < PAST_THE_PEAK else 0
                if share < WELL_PAST or below == 2:
                    break

    def _peak(self, layout: tuple[int, int]) -> float:
        """Return the best value of a layout among its settings that meet the bound, 0 if none does."""
        found = [s for s in self._feasible() if (s.threads, s.instances) == layout]
        return max(map(self._value, found), default=0.0)

    def _worth_walking(self, probe: Setting, best: Setting) -> bool:
        if self._meets(probe) and self._meets(best):
            return self._value(probe) >= WORTH_WALKING * self._value(best)
        # Above the bound the rates say little: smaller batches decide, unless another layout fits already.
        return not self._meets(best) or self._meets(probe)

    def repeat_leaders(self) -> None:
        for round_number in range(1, MAX_ROUNDS):
            for setting in self._leaders(SECOND_CHANCE if round_number == 1 else LEADER_SHARE):
                if self._attempts(setting) <= round_number and not self._run_one(setting, round_number):
                    return

    def _leaders(self, share: float) -> list[Setting]:
        feasible = sorted(self._feasible(), key=self._value, reverse=True)
        return [s for s in feasible[:LEADERS] if self._value(s) >= share * self._value(feasible[0])]

    def _try(self, setting: Setting) -> bool:
        """Measure a setting not seen before. Returns whether it has a result."""
        if not self._attempts(setting):
            self._run_one(setting, 0)
        return setting in self.results

    def _attempts(self, setting: Setting) -> int:
        return sum(_of(row) == setting for row in self.rows)

    def _run_one(self, setting: Setting, round_number: int) -> bool:
        """Measure and return true, or return false when that would probably outlast the budget."""
        duration_s = min(PROBE_MAX_S, max(PROBE_MIN_S, self.budget_s * PROBE_S)) * (2 if round_number else 1)
        spent_s = self.clock() - self.started_s
        # Until something fits the bound there is nothing to repeat, so exploring may have it all.
        share = self.share if round_number == 0 and self._feasible() else 1.0
        if self.rows and spent_s + self._estimate_s(setting, duration_s) > self.budget_s * share:
            self.out_of_time = True
            return False
        begin_s = self.clock()
        row: dict[str, Any] = {**asdict(setting), "round": round_number}
        try:
            result = self.measure(setting, duration_s)
        except MeasurementFailedError as error:
            row |= {"error": str(error), "cost_s": self.clock() - begin_s}
            self.results.pop(setting, None)  # what fails once is not chosen, however fast it was before
        else:
            row |= {**result, **row, "cost_s": self.clock() - begin_s}
            if not any("error" in earlier for earlier in self.rows if _of(earlier) == setting):
                self.results.setdefault(setting, []).append(row)
        self.rows.append(row)
        self.on_row(row)
        return True

    def _estimate_s(self, setting: Setting, duration_s: float) -> float:
        """Return what measuring will probably cost: process start, warm-up, and a call that overruns."""
        good = [row for rows in self.results.values() for row in rows]
        if not good:
            return max(float(row["cost_s"]) for row in self.rows)

        def call_s(row: dict[str, Any]) -> float:
            return float(row["latency_ms"]["p50"]) / 1000.0

        calls = 4.0  # three to warm up, and one begun just before the end
        start_s = median(
            max(0.0, row["cost_s"] - row.get("duration_s", duration_s) - calls * call_s(row)) for row in good
        )
        alike = [r for r in good if (r["threads"], r["instances"]) == (setting.threads, setting.instances)] or good
        nearest = min(alike, key=lambda row: abs(row["batch_size"] - setting.batch_size))
        expected_call_s = call_s(nearest) * max(1.0, setting.batch_size / nearest["batch_size"])
        return float(start_s + max(duration_s, expected_call_s) + calls * expected_call_s)

    def _value(self, setting: Setting) -> float:
        """Return the figure to maximise: samples a second, or requests a second at the p99 latency."""
        if self.objective == "latency":
            return 1000.0 / self._p99_ms(setting)
        return self._rate_per_s(setting)

    # Of an even number of runs the better middle one counts: what disturbs a run only ever slows it.
    def _rate_per_s(self, setting: Setting) -> float:
        return float(median_high(row["throughput_per_s"] for row in self.results[setting]))

    def _p99_ms(self, setting: Setting) -> float:
        return float(median_low(row["latency_ms"]["p99"] for row in self.results[setting]))

    def _meets(self, setting: Setting) -> bool:
        if setting not in self.results:
            return False
        return self.max_latency_ms is None or self._p99_ms(setting) <= self.max_latency_ms

    def _feasible(self) -> list[Setting]:
        return [setting for setting in self.results if self._meets(setting)]

    def _rank(self, setting: Setting) -> tuple[bool, float]:
        meets = self._meets(setting)
        return meets, self._value(setting) if meets else -self._p99_ms(setting)

    def outcome(self) -> Outcome:
        if not self.results:
            first = next(row["error"] for row in self.rows if "error" in row)
            raise TuningFailedError(f"no setting could be measured; the first failure: {first}")
        tried = f"{len(self.results)} of {len(self.space)} settings measured"
        tried += f", {len(self.rows)} runs in {self.clock() - self.started_s:.0f} s"
        tried += " (the budget is spent)" if self.out_of_time else ""
        if disturbed := _disturbed(self.rows):
            tried += f"; other work disturbed {disturbed} of {len(self.rows)} runs"
        feasible = self._feasible()
        if not feasible:
            best = min(self.results, key=self._p99_ms)
            raise TuningFailedError(
                f"no setting meets max_latency_ms = {self.max_latency_ms:g}: the lowest p99 is "
                f"{self._p99_ms(best):.1f} ms ({best}); {tried}"
            )
        if self.objective == "throughput" and 2 * _disturbed(self.rows) > len(self.rows):
            # On a busy host a layout that leaves cores idle looks good for keeping out of the others' way.
            every_core = [s for s in feasible if s.threads * s.instances == self.space.most_threads]
            tried += ", so only settings that use every core were considered" if every_core else ""
            feasible = every_core or feasible
        # A single lucky run does not win against settings that held up when repeated.
        repeated = [setting for setting in feasible if len(self.results[setting]) > 1] or feasible
        top = max(self._value(setting) for setting in repeated)
        equal = [setting for setting in repeated if self._value(setting) >= (1 - TIE) * top]
        chosen = min(equal, key=lambda s: (s.batch_size * s.instances, s.threads * s.instances, -self._value(s)))
        return Outcome(
            chosen,
            f"{chosen}: {self._figure(chosen)}{self._margin(chosen, repeated)}; {tried}",
            tuple(self.rows),
            len(self.results),
            len(self.space),
            self.clock() - self.started_s,
        )

    def _figure(self, setting: Setting) -> str:
        runs = len(self.results[setting])
        median_of = f"median of {runs} runs" if runs > 1 else "one run"
        p99 = f"p99 {self._p99_ms(setting):.1f} ms"
        bound = f" within {self.max_latency_ms:g} ms" if self.max_latency_ms is not None else ""
        if self.objective == "latency":
            return f"{p99}{bound} ({median_of})"
        return f"{self._rate_per_s(setting):.1f} samples/s, {p99}{bound} ({median_of})"

    def _margin(self, chosen: Setting, repeated: list[Setting]) -> str:
        others = [setting for setting in repeated if setting != chosen]
        if not others:
            return ""
        second = max(others, key=self._value)
        gain = self._value(chosen) / self._value(second) - 1
        if abs(gain) <= TIE:
            return f", equal to {second} within {TIE:.0%} and lighter" if gain <= 0 else f", about equal to {second}"
        return f", {gain:.0%} better than {second}"


def _disturbed(rows: Sequence[dict[str, Any]]) -> int:
    return sum(bool(row.get("disturbed")) for row in rows)


def _setting(layout: tuple[int, int], batch_size: int) -> Setting:
    return Setting(layout[0], layout[1], batch_size)


def _of(row: dict[str, Any]) -> Setting:
    return Setting(row["threads"], row["instances"], row["batch_size"])
