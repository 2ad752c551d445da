"""Searches threads x instances x batch size: what to measure next, and when to stop.

It starts no processes and has no clock: ``measure`` and ``clock`` come from outside, so tests drive it with made-up
machines. Starting a process costs more than measuring in it, so the order of the measurements matters. The search has
three parts:

1. A coarse grid: some of the layouts at a middle batch size.
2. Refinement: the neighbours of the best layout, twice the threads where the CPU has SMT, and the batch sizes of the
   good layouts, from the middle outward.
3. The finals: the leaders and the setting in use so far are measured again in rounds, until the best of them beats
   each other one by more than the noise (``noise.py``). Probes do not count here, because the best of many single runs
   looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..errors import RunnerError
from .choice import Outcome, choose, is_settled
from .rows import Row, Rows
from .space import Layout, Setting, Space, layout_of, setting_of

PROBE_S, PROBE_MIN_S, PROBE_MAX_S = 1 / 60, 0.5, 3.0
"""Measured time of one probe as a share of the budget, and its bounds in seconds."""
EXPLORE_SHARES = (0.6, 0.85)
"""Shares of the budget after which no new setting is begun: before the finals and after them."""
COARSE = 4
"""Layouts of one kind in the coarse grid, at most."""
WORTH_WALKING = 0.9
"""Share of the best layout's value that a layout's probe needs for its other batch sizes to be measured."""
FINALISTS, MIN_ROUNDS, MAX_ROUNDS = 3, 2, 5
"""Leaders in the finals at most, and rounds of the finals at least and at most."""
LEADER_SHARE, INCUMBENT_SHARE = 0.9, 0.8
"""Shares of the best probe that make a finalist: for a leader, and for the setting in use."""
FIRST_SHARE = 0.25
"""Share of the budget that the first probe may take, where the time of a sample is known: else it starts smaller."""
DISTURBED_RARELY = 3
"""A disturbed probe is repeated only while at most one run in this many was disturbed."""

_CALLS = 4
"""Calls of a measurement besides those that its duration holds: three to warm up, and one begun just before the end."""

Measure = Callable[[Setting, float], Mapping[str, Any]]
"""(setting, duration_s) -> fields of the bench's JSON, with throughput_per_s and latency_ms {p50, p99} at least."""


class MeasurementFailedError(RunnerError):
    """One setting could not be measured; the search goes on without it."""


def search(
    measure: Measure,
    space: Space,
    objective: str,
    max_latency_ms: float | None,
    budget_s: float,
    clock: Callable[[], float],
    on_row: Callable[[Row], None] = lambda _row: None,
    incumbent: Setting | None = None,
    sample_s: float = 0.0,
) -> Outcome:
    """Find the setting of highest throughput, or of lowest p99 for ``latency``, within ``budget_s`` seconds.

    A setting whose median p99 is above ``max_latency_ms`` is not chosen. ``incumbent`` is the setting in use so far: it
    is kept unless another one beats it by more than the noise. At least one setting is measured, however small the
    budget is; ``sample_s``, what a sample takes, keeps that from being a batch of minutes. ``on_row`` sees each row as
    it comes. Raises TuningFailedError when nothing could be measured or nothing meets the bound.
    """
    rows = Rows(objective, max_latency_ms)
    run = _Run(measure, space, rows, budget_s, clock, on_row, incumbent, sample_s, started_s=clock())
    run.share = EXPLORE_SHARES[0]
    run.explore()
    run.finals()
    # The finals may rank settings otherwise than the probes did, so the neighbours of their winner are measured too.
    # The reach is two steps: a probe that was disturbed may hide a better setting beyond it.
    run.share, seen = EXPLORE_SHARES[1], 0
    while len(run.rows.all) > seen:
        seen, run.out_of_time, run.reach = len(run.rows.all), False, 2
        run.explore()
        run.finals()
    run.smallest_call()
    return choose(run.rows, space, incumbent, clock() - run.started_s, out_of_time=run.out_of_time)


@dataclass
class _Run:
    measure: Measure
    space: Space
    rows: Rows
    budget_s: float
    clock: Callable[[], float]
    on_row: Callable[[Row], None]
    incumbent: Setting | None
    sample_s: float
    started_s: float
    share: float = 1.0
    out_of_time: bool = False
    reach: int = 1

    def explore(self) -> None:
        """Measure once each setting that is worth it and has no measurement yet."""
        sizes = self.space.batch_sizes
        middle = (len(sizes) - 1) // 2
        while middle > 0 and (_CALLS + 1) * sizes[middle] * self.sample_s > self.budget_s * FIRST_SHARE:
            middle -= 1
        if self.incumbent is not None and self.incumbent in self.space:
            self._try(self.incumbent)
        full, smt, alone = self.space.kinds()
        self._coarse(full, sizes[middle])
        threads = max(full, key=lambda one: self.rows.rank(setting_of(one, sizes[middle])))[0]
        near = [setting_of(one, sizes[middle]) for one in smt]
        self._climb(near, [one for one in near if one.threads in (threads, 2 * threads)], reach=1)
        self._walk_good(full + smt, middle)
        # Settings that use a part of the cores, or one call at a time, help only where latency counts.
        if alone and (self.rows.max_latency_ms is not None or self.rows.objective == "latency"):
            self._coarse(alone, sizes[middle])
            self._walk_good(alone, middle)
        if not self.rows.feasible():
            # The last attempt before the search says that nothing meets the bound.
            for layout in self.space.layouts:
                self._try(setting_of(layout, sizes[0]))

    def smallest_call(self) -> None:
        """Measure the best layout's smallest batch with the time that is left: ``NAME plan`` needs its call time."""
        was, self.share = self.out_of_time, 1.0
        if feasible := self.rows.feasible():
            best = max(feasible, key=self.rows.value)
            self._try(setting_of(layout_of(best), self.space.batch_sizes[0]))
        self.out_of_time = was

    def _coarse(self, layouts: list[Layout], batch_size: int) -> None:
        """Measure some layouts evenly spaced from fewest to most threads, then those around the best."""
        line = [setting_of(one, batch_size) for one in layouts]
        self._climb(line, [*line[:: -(-len(line) // COARSE)], line[-1]], reach=1)

    def _walk_good(self, layouts: list[Layout], middle: int) -> None:
        """Look for the best batch size of each layout whose probe at the middle size was good."""
        sizes = self.space.batch_sizes
        probed = [setting for setting in self.rows.good if setting.batch_size == sizes[middle]]
        best = max(probed, key=self.rows.rank, default=None)
        for setting in sorted(probed, key=self.rows.rank, reverse=True):
            if best is not None and layout_of(setting) in layouts and self._worth_walking(setting, best):
                self._climb([setting_of(layout_of(setting), size) for size in sizes], [setting], self.reach)

    def _climb(self, line: list[Setting], start: list[Setting], reach: int) -> None:
        """Measure ``start``, then what is within ``reach`` of the best of ``line``, until all of that is measured."""
        for setting in start:
            self._try(setting)
        steps = [step for distance in range(1, reach + 1) for step in (distance, -distance)]
        while measured := [setting for setting in line if setting in self.rows.good]:
            at = line.index(max(measured, key=self.rows.rank))
            around = [line[at + step] for step in steps if 0 <= at + step < len(line)]
            new = [one for one in around if not self.rows.of(one) and not self._beyond_bound(one)]
            if not new or not (self._try(new[0]) or self.rows.of(new[0])):
                return

    def _beyond_bound(self, setting: Setting) -> bool:
        """Return whether a smaller batch of this layout failed or is too slow: p99 and memory grow with the batch."""
        smaller = {row.setting for row in self.rows.all if row.setting.batch_size < setting.batch_size}
        return any(layout_of(one) == layout_of(setting) and not self.rows.meets(one) for one in smaller)

    def _worth_walking(self, probe: Setting, best: Setting) -> bool:
        if self.rows.meets(probe) and self.rows.meets(best):
            return self.rows.value(probe) >= WORTH_WALKING * self.rows.value(best)
        # Above the bound, rates say little. Smaller batches may keep it, unless another layout keeps it already.
        return not self.rows.meets(best) or self.rows.meets(probe)

    def finals(self) -> None:
        """Measure the finalists in rounds, alternately forward and backward, until the best of them is known."""
        finalists = self._finalists()
        for number in range(1, MAX_ROUNDS + 1):
            missing = [one for one in finalists if self.rows.final_runs(one) < number]
            for setting in missing if number % 2 else reversed(missing):
                if not self._run_one(setting, number):
                    return
            finalists = [one for one in finalists if self.rows.meets(one)]
            if number >= MIN_ROUNDS and (found := self.rows.fit(finalists)) is not None:
                best = max(finalists, key=found.level.__getitem__)
                finalists = [one for one in finalists if one == best or not is_settled(found, best, one)]
                if len(finalists) == 1:
                    return

    def _finalists(self) -> list[Setting]:
        """Return the best by their probes, always the second best, and the incumbent unless it is far slower."""
        feasible = sorted(self.rows.feasible(), key=self.rows.value, reverse=True)
        values = {setting: self.rows.value(setting) for setting in feasible}
        leaders = [each for each in feasible[:FINALISTS] if values[each] >= LEADER_SHARE * values[feasible[0]]]
        chosen = leaders if len(leaders) > 1 else feasible[:2]
        if self.incumbent in values and values[self.incumbent] >= INCUMBENT_SHARE * values[feasible[0]]:
            chosen = [*chosen, self.incumbent]
        return list(dict.fromkeys(chosen))

    def _try(self, setting: Setting) -> bool:
        """Measure a setting that has no measurement yet. Returns whether it has a result."""
        if not self.rows.of(setting):
            done = self._run_one(setting, 0)
            # Where disturbances are rare, a second run is worth its time. Where they are the rule, it would not help.
            rarely = self.rows.disturbed <= max(1, len(self.rows.all) // DISTURBED_RARELY)
            if done and rarely and self.rows.all[-1].disturbed:
                self._run_one(setting, 0)
        return setting in self.rows.good

    def _run_one(self, setting: Setting, round_number: int) -> bool:
        """Measure and return true, or return false when that would probably take longer than the budget."""
        duration_s = min(PROBE_MAX_S, max(PROBE_MIN_S, self.budget_s * PROBE_S))
        spent_s = self.clock() - self.started_s
        # Until some setting meets the bound there are no finals, so exploring may use the whole budget.
        share = self.share if round_number == 0 and self.rows.feasible() else 1.0
        if self.rows.all and spent_s + self._estimate_s(setting, duration_s) > self.budget_s * share:
            self.out_of_time = True
            return False
        begin_s = self.clock()
        fields: Mapping[str, Any] = {}
        error = None
        try:
            fields = self.measure(setting, duration_s)
        except MeasurementFailedError as failure:
            error = str(failure)
        row = Row(setting, round_number, self.clock() - begin_s, fields, error)
        self.rows.add(row)
        self.on_row(row)
        return True

    def _estimate_s(self, setting: Setting, duration_s: float) -> float:
        """Return what measuring will probably cost: start of the process, warm-up, and a call that ends late."""
        good = [row for rows in self.rows.good.values() for row in rows]
        if not good:
            return max(row.cost_s for row in self.rows.all)
        start_s = median(
            max(
                0.0,
                row.cost_s - (duration_s if row.duration_s is None else row.duration_s) - _CALLS * row.p50_ms / 1000.0,
            )
            for row in good
        )
        alike = [row for row in good if layout_of(row.setting) == layout_of(setting)] or good
        nearest = min(alike, key=lambda row: abs(row.setting.batch_size - setting.batch_size))
        expected_call_s = nearest.p50_ms / 1000.0 * max(1.0, setting.batch_size / nearest.setting.batch_size)
        return 1.02 * float(start_s + max(duration_s, expected_call_s) + _CALLS * expected_call_s)
