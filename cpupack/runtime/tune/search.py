"""The search for threads x instances x batch size: what to measure next, when to stop, which one wins.

It knows no processes and no clock of its own: ``measure`` and ``clock`` come from outside, so tests drive it
with made-up machines. Starting a process costs more than measuring in it, so the order matters more than the
count. A coarse grid first: some of the layouts at a middle batch size. Then refinement: the neighbours of the best
layout, twice the threads where the CPU has SMT, and the batch sizes of the good layouts outward from the middle. Then
the finals: the leaders, and the setting in use so far, again and again in turn, until the best of them beats each
other one by more than the noise (``noise.py``). Probes are not counted there: the best of many looks better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, median_high, median_low
from typing import Any

from ..errors import RunnerError
from .noise import Fit, fit
from .space import Layout, Setting, Space, layout_of, make_space, measured_setting, setting_of, weight

PROBE_S, PROBE_MIN_S, PROBE_MAX_S = 1 / 60, 0.5, 3.0
"""Measured time of one probe, as a share of the budget, and its bounds in seconds: starting a process costs more."""
EXPLORE_SHARES = (0.6, 0.85)
"""Share of the budget after which no new setting is begun, before the finals and after them."""
COARSE = 4
"""Layouts of one kind in the coarse grid at most."""
WORTH_WALKING = 0.9
"""A layout whose probe is below this share of the best layout's is not looked at further."""
FINALISTS, MIN_ROUNDS, MAX_ROUNDS = 3, 2, 5
"""At most so many leaders are measured again in at least and at most so many rounds."""
LEADER_SHARE, INCUMBENT_SHARE = 0.9, 0.8
"""Share of the best probe that makes a finalist, and that which the setting in use needs."""
DISTURBED_RARELY = 3
"""A disturbed probe is repeated while at most one run in so many was disturbed."""
TIE, MOST_GIVEN_UP = 0.02, 0.03
"""Settings this close are equal whatever the noise, and not even a noisy host makes equal what is further apart; of
equals the one in use wins, else the one with fewer samples in flight, since its latency is lower."""


__all__ = [
    "MeasurementFailedError",
    "Outcome",
    "Setting",
    "Space",
    "TuningFailedError",
    "make_space",
    "search",
]


class TuningFailedError(RunnerError):
    """Nothing could be measured, or nothing meets the latency bound."""


class MeasurementFailedError(RunnerError):
    """One setting could not be measured; the search goes on without it."""


@dataclass(frozen=True)
class Outcome:
    """The chosen setting, the sentence that says why, and every row measured. ``searched_s`` in seconds.

    ``noise`` is the standard deviation of one measurement as a share, None where the finals could not tell.
    """

    setting: Setting
    reason: str
    rows: tuple[dict[str, Any], ...]
    measured: int
    total: int
    searched_s: float
    noise: float | None = None

    @property
    def disturbed(self) -> int:
        """The number of runs during which something outside the bench took CPU time."""
        return _disturbed(self.rows)


Measure = Callable[[Setting, float], dict[str, Any]]
"""(setting, duration_s) -> bench result with throughput_per_s and latency_ms {p50, p99}."""


def search(
    measure: Measure,
    space: Space,
    objective: str,
    max_latency_ms: float | None,
    budget_s: float,
    clock: Callable[[], float],
    on_row: Callable[[dict[str, Any]], None] = lambda _row: None,
    incumbent: Setting | None = None,
) -> Outcome:
    """Find the setting of highest throughput, or of lowest p99 for ``latency``, within ``budget_s`` seconds.

    A setting is not chosen when its median p99 is above ``max_latency_ms``. ``incumbent`` is what is used so far: it is
    kept unless another setting beats it by more than the noise. At least one setting is measured however small the
    budget. ``on_row`` sees each row as it comes. Raises TuningFailedError when nothing could be measured or nothing
    meets the bound.
    """
    run = _Run(measure, space, objective, max_latency_ms, budget_s, clock, on_row, incumbent, started_s=clock())
    run.share = EXPLORE_SHARES[0]
    run.explore()
    run.finals()
    # The finals may have another order than the probes: what is next to their winner is looked at too. And one step
    # further, since a probe that was disturbed may hide a better setting behind it.
    run.share, seen = EXPLORE_SHARES[1], 0
    while len(run.rows) > seen:
        seen, run.out_of_time, run.reach = len(run.rows), False, 2
        run.explore()
        run.finals()
    run.smallest_call()
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
    incumbent: Setting | None
    started_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: dict[Setting, list[dict[str, Any]]] = field(default_factory=dict)
    share: float = 1.0
    out_of_time: bool = False
    reach: int = 1

    def explore(self) -> None:
        """Measure each setting that is worth it and was not measured before, once."""
        sizes = self.space.batch_sizes
        middle = (len(sizes) - 1) // 2
        if self.incumbent is not None and self.incumbent in self.space:
            self._try(self.incumbent)
        full, smt, alone = self.space.kinds()
        self._coarse(full, sizes[middle])
        threads = max(full, key=lambda one: self._rank(setting_of(one, sizes[middle])))[0]
        near = [setting_of(one, sizes[middle]) for one in smt]
        self._climb(near, [one for one in near if one.threads in (threads, 2 * threads)], reach=1)
        self._walk_good(full + smt, middle)
        # Part of the cores, or one call at a time, is of use only where latency counts.
        if alone and (self.max_latency_ms is not None or self.objective == "latency"):
            self._coarse(alone, sizes[middle])
            self._walk_good(alone, middle)
        if not self._feasible():
            # The last resort before saying that it cannot be done.
            for layout in self.space.layouts:
                self._try(setting_of(layout, sizes[0]))

    def smallest_call(self) -> None:
        """Measure the best layout's smallest batch with the time that is left: planning for latency starts there."""
        was, self.share = self.out_of_time, 1.0
        if feasible := self._feasible():
            self._try(setting_of(layout_of(max(feasible, key=self._value)), self.space.batch_sizes[0]))
        self.out_of_time = was

    def _coarse(self, layouts: list[Layout], batch_size: int) -> None:
        """Measure some layouts evenly spaced from fewest to most threads, then those around the best."""
        line = [setting_of(one, batch_size) for one in layouts]
        self._climb(line, [*line[:: -(-len(line) // COARSE)], line[-1]], reach=1)

    def _walk_good(self, layouts: list[Layout], middle: int) -> None:
        """Look for the best batch size of each layout whose probe at the middle one was good."""
        sizes = self.space.batch_sizes
        probed = [setting for setting in self.results if setting.batch_size == sizes[middle]]
        best = max(probed, key=self._rank, default=None)
        for setting in sorted(probed, key=self._rank, reverse=True):
            if best is not None and layout_of(setting) in layouts and self._worth_walking(setting, best):
                self._climb([setting_of(layout_of(setting), size) for size in sizes], [setting], self.reach)

    def _climb(self, line: list[Setting], start: list[Setting], reach: int) -> None:
        """Measure ``start``, then what is within ``reach`` of the best of ``line``, until all of that is measured."""
        for setting in start:
            self._try(setting)
        steps = [step for distance in range(1, reach + 1) for step in (distance, -distance)]
        while measured := [setting for setting in line if setting in self.results]:
            at = line.index(max(measured, key=self._rank))
            around = [line[at + step] for step in steps if 0 <= at + step < len(line)]
            new = [one for one in around if not self._attempts(one) and not self._beyond_bound(one)]
            if not new or not (self._try(new[0]) or self._attempts(new[0])):
                return

    def _beyond_bound(self, setting: Setting) -> bool:
        """Return whether a smaller batch of the same layout is too slow or failed: p99 and memory grow with it."""
        smaller = {measured_setting(row) for row in self.rows if row["batch_size"] < setting.batch_size}
        return any(layout_of(one) == layout_of(setting) and not self._meets(one) for one in smaller)

    def _worth_walking(self, probe: Setting, best: Setting) -> bool:
        if self._meets(probe) and self._meets(best):
            return self._value(probe) >= WORTH_WALKING * self._value(best)
        # Above the bound the rates say little: smaller batches decide, unless another layout fits already.
        return not self._meets(best) or self._meets(probe)

    def finals(self) -> None:
        """Measure the finalists in rounds, forward and backward in turn, until the best of them is known."""
        finalists = self._finalists()
        for number in range(1, MAX_ROUNDS + 1):
            missing = [one for one in finalists if self._final_runs(one) < number]
            for setting in missing if number % 2 else reversed(missing):
                if not self._run_one(setting, number):
                    return
            finalists = [one for one in finalists if self._meets(one)]
            if number >= MIN_ROUNDS and (found := self._fit(finalists)) is not None:
                best = max(finalists, key=found.level.__getitem__)
                finalists = [one for one in finalists if one == best or not self._settled(found, best, one)]
                if len(finalists) == 1:
                    return

    def _finalists(self) -> list[Setting]:
        """Return the best by their probes, the runner-up in any case, and the incumbent unless it is far behind."""
        feasible = sorted(self._feasible(), key=self._value, reverse=True)
        leaders = [s for s in feasible[:FINALISTS] if self._value(s) >= LEADER_SHARE * self._value(feasible[0])]
        chosen = leaders if len(leaders) > 1 else feasible[:2]
        if self.incumbent in feasible and self._value(self.incumbent) >= INCUMBENT_SHARE * self._value(feasible[0]):
            chosen = [*chosen, self.incumbent]
        return list(dict.fromkeys(chosen))

    @staticmethod
    def _settled(found: Fit[Setting], best: Setting, other: Setting) -> bool:
        """Return whether more rounds would not change what is chosen of the two."""
        gain, margin = found.gain(best, other), found.margin(best, other)
        return gain > max(margin, TIE) or gain + margin < TIE

    def _fit(self, settings: Sequence[Setting]) -> Fit[Setting] | None:
        """Return the model of what the finals measured of ``settings``, None while they tell no noise."""
        final = [
            (setting, int(row["round"]), self._row_value(row))
            for setting in settings
            for row in _undisturbed([row for row in self.results.get(setting, []) if row["round"]])
        ]
        return fit(final)

    def _final_runs(self, setting: Setting) -> int:
        return sum(bool(row["round"]) and measured_setting(row) == setting for row in self.rows)

    def _try(self, setting: Setting) -> bool:
        """Measure a setting not seen before. Returns whether it has a result."""
        if not self._attempts(setting):
            done = self._run_one(setting, 0)
            # Where a disturbance is the exception it is worth a second look; where it is the rule it would not help.
            rarely = _disturbed(self.rows) <= max(1, len(self.rows) // DISTURBED_RARELY)
            if done and rarely and self.rows[-1].get("disturbed"):
                self._run_one(setting, 0)
        return setting in self.results

    def _attempts(self, setting: Setting) -> int:
        return sum(measured_setting(row) == setting for row in self.rows)

    def _run_one(self, setting: Setting, round_number: int) -> bool:
        """Measure and return true, or return false when that would probably outlast the budget."""
        duration_s = min(PROBE_MAX_S, max(PROBE_MIN_S, self.budget_s * PROBE_S))
        spent_s = self.clock() - self.started_s
        # Until something fits the bound there are no finals, so exploring may have it all.
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
            if not any("error" in earlier for earlier in self.rows if measured_setting(earlier) == setting):
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
        alike = [row for row in good if layout_of(measured_setting(row)) == layout_of(setting)] or good
        nearest = min(alike, key=lambda row: abs(row["batch_size"] - setting.batch_size))
        expected_call_s = call_s(nearest) * max(1.0, setting.batch_size / nearest["batch_size"])
        return 1.02 * float(start_s + max(duration_s, expected_call_s) + calls * expected_call_s)

    def _value(self, setting: Setting) -> float:
        """Return the figure to maximise: samples a second, or requests a second at the p99 latency."""
        return 1000.0 / self._p99_ms(setting) if self.objective == "latency" else self._rate_per_s(setting)

    def _row_value(self, row: dict[str, Any]) -> float:
        return 1000.0 / row["latency_ms"]["p99"] if self.objective == "latency" else float(row["throughput_per_s"])

    # Of an even number of runs the better middle one counts: what disturbs a run only ever slows it.
    def _rate_per_s(self, setting: Setting) -> float:
        return float(median_high(row["throughput_per_s"] for row in _undisturbed(self.results[setting])))

    def _p99_ms(self, setting: Setting) -> float:
        return float(median_low(row["latency_ms"]["p99"] for row in _undisturbed(self.results[setting])))

    def _meets(self, setting: Setting) -> bool:
        if setting not in self.results:
            return False
        return self.max_latency_ms is None or self._p99_ms(setting) <= self.max_latency_ms

    def _feasible(self) -> list[Setting]:
        return [setting for setting in self.results if self._meets(setting)]

    def _rank(self, setting: Setting) -> tuple[bool, float]:
        if setting not in self.results:
            return False, -math.inf
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
            every_core = [s for s in feasible if s.threads * s.instances >= self.space.full_threads]
            tried += ", so only settings that use every core were considered" if every_core else ""
            feasible = every_core or feasible
        # A single lucky run does not win against settings that held up when repeated.
        repeated = [setting for setting in feasible if len(self.results[setting]) > 1] or feasible
        found = self._fit(repeated)
        chosen, why = self._decide(found) if found is not None else self._by_median(repeated)
        return Outcome(
            chosen,
            f"{chosen}: {self._figure(chosen)}{why}; {tried}",
            tuple(self.rows),
            len(self.results),
            len(self.space),
            self.clock() - self.started_s,
            None if found is None else found.noise,
        )

    def _decide(self, found: Fit[Setting]) -> tuple[Setting, str]:
        """Return the best setting, or an equal one that is in use already or simpler, and the reason."""
        ranked = sorted(found.level, key=found.level.__getitem__, reverse=True)
        best = ranked[0]
        equal = [s for s in ranked if found.gain(best, s) <= max(TIE, min(MOST_GIVEN_UP, found.margin(best, s)))]
        noise = f"one run varies by {found.noise:.1%}"
        if self.incumbent in equal:
            if self.incumbent == best:
                return best, f", the setting in use, and nothing was better ({noise})"
            gain = found.gain(best, self.incumbent)
            return self.incumbent, f", the setting in use: {best} is {gain:+.1%}, not more than the noise ({noise})"
        chosen = min(equal, key=lambda s: (*weight(s), -found.level[s]))
        if chosen != best:
            gain = found.gain(best, chosen)
            return chosen, f", lighter than {best}, which is {gain:+.1%}, not more than the noise ({noise})"
        second = ranked[1]
        beats = "more than" if found.beats(best, second) else "not more than"
        return best, f", {found.gain(best, second):+.1%} against {second}, {beats} the noise ({noise})"

    def _by_median(self, settings: list[Setting]) -> tuple[Setting, str]:
        """Choose without knowing the noise, for want of time or of another setting to compare with."""
        top = max(self._value(setting) for setting in settings)
        equal = [setting for setting in settings if self._value(setting) >= (1 - TIE) * top]
        if self.incumbent in equal:
            return self.incumbent, ", the setting in use"
        return min(equal, key=lambda s: (*weight(s), -self._value(s))), ", too few runs to tell the noise"

    def _figure(self, setting: Setting) -> str:
        runs = len(self.results[setting])
        median_of = f"median of {runs} runs" if runs > 1 else "one run"
        p99 = f"p99 {self._p99_ms(setting):.1f} ms"
        bound = f" within {self.max_latency_ms:g} ms" if self.max_latency_ms is not None else ""
        if self.objective == "latency":
            return f"{p99}{bound} ({median_of})"
        return f"{self._rate_per_s(setting):.1f} samples/s, {p99}{bound} ({median_of})"


def _undisturbed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that nothing disturbed, all where there is no such row."""
    return [row for row in rows if not row.get("disturbed")] or rows


def _disturbed(rows: Sequence[dict[str, Any]]) -> int:
    return sum(bool(row.get("disturbed")) for row in rows)
