"""Chooses among the settings that were measured, and says why in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RunnerError
from .noise import Fit
from .rows import Row, Rows, count_disturbed
from .space import Setting, Space, weight

TIE, MOST_GIVEN_UP = 0.02, 0.03
"""Settings closer than ``TIE`` are equal, whatever the noise. Settings further apart than ``MOST_GIVEN_UP`` are never
equal, even on a noisy host. Of equal settings the one in use wins, else the one with fewer samples in flight, because
its latency is lower."""


class TuningFailedError(RunnerError):
    """Nothing could be measured, or nothing meets the latency bound."""


@dataclass(frozen=True)
class Outcome:
    """The chosen setting, the sentence that says why, and every row measured. ``searched_s`` in seconds.

    ``measured`` of ``total`` settings have a result. ``noise`` is the standard deviation of one measurement as a share,
    None where the finals had too few runs to know it.
    """

    setting: Setting
    reason: str
    rows: tuple[Row, ...]
    measured: int
    total: int
    searched_s: float
    noise: float | None = None

    @property
    def disturbed(self) -> int:
        """The number of runs during which something outside the bench took CPU time."""
        return count_disturbed(self.rows)


def choose(rows: Rows, space: Space, incumbent: Setting | None, searched_s: float, *, out_of_time: bool) -> Outcome:
    """Choose a setting. Raises TuningFailedError when nothing could be measured or nothing meets the bound."""
    if not rows.good:
        first = next(row.error for row in rows.all if row.error is not None)
        raise TuningFailedError(f"no setting could be measured; the first failure: {first}")
    tried = f"{len(rows.good)} of {len(space)} settings measured"
    tried += f", {len(rows.all)} runs in {searched_s:.0f} s"
    tried += " (the budget is spent)" if out_of_time else ""
    if disturbed := rows.disturbed:
        tried += f"; other work disturbed {disturbed} of {len(rows.all)} runs"
    feasible = rows.feasible()
    if not feasible:
        best = min(rows.good, key=rows.p99_ms)
        raise TuningFailedError(
            f"no setting meets max_latency_ms = {rows.max_latency_ms:g}: the lowest p99 is "
            f"{rows.p99_ms(best):.1f} ms ({best}); {tried}"
        )
    if rows.objective == "throughput" and 2 * rows.disturbed > len(rows.all):
        # On a busy host a layout that leaves cores idle looks good only because it avoids the other work.
        every_core = [each for each in feasible if each.threads * each.instances >= space.full_threads]
        tried += ", so only settings that use every core were considered" if every_core else ""
        feasible = every_core or feasible
    # A single lucky run does not win against settings that were measured again.
    repeated = [setting for setting in feasible if len(rows.good[setting]) > 1] or feasible
    found = rows.fit(repeated)
    chosen, why = _by_fit(found, incumbent) if found is not None else _by_median(rows, repeated, incumbent)
    return Outcome(
        setting=chosen,
        reason=f"{chosen}: {_figure(rows, chosen)}{why}; {tried}",
        rows=tuple(rows.all),
        measured=len(rows.good),
        total=len(space),
        searched_s=searched_s,
        noise=None if found is None else found.noise,
    )


def is_settled(found: Fit[Setting], best: Setting, other: Setting) -> bool:
    """Return whether more rounds would not change which of the two is chosen."""
    gain, margin = found.gain(best, other), found.margin(best, other)
    return gain > max(margin, TIE) or gain + margin < TIE


def _by_fit(found: Fit[Setting], incumbent: Setting | None) -> tuple[Setting, str]:
    """Return the best setting, or an equal one that is in use already or lighter, and the reason."""
    ranked = sorted(found.level, key=found.level.__getitem__, reverse=True)
    best = ranked[0]
    equal = [
        each for each in ranked if found.gain(best, each) <= max(TIE, min(MOST_GIVEN_UP, found.margin(best, each)))
    ]
    noise = f"one run varies by {found.noise:.1%}"
    if incumbent in equal:
        if incumbent == best:
            return best, f", the setting in use, and nothing was better ({noise})"
        gain = found.gain(best, incumbent)
        return incumbent, f", the setting in use: {best} is {gain:+.1%}, not more than the noise ({noise})"
    chosen = min(equal, key=lambda each: (*weight(each), -found.level[each]))
    if chosen != best:
        gain = found.gain(best, chosen)
        return chosen, f", lighter than {best}, which is {gain:+.1%}, not more than the noise ({noise})"
    second = ranked[1]
    beats = "more than" if found.beats(best, second) else "not more than"
    return best, f", {found.gain(best, second):+.1%} against {second}, {beats} the noise ({noise})"


def _by_median(rows: Rows, settings: list[Setting], incumbent: Setting | None) -> tuple[Setting, str]:
    """Choose without knowing the noise, because there was no time, or no other setting to compare with."""
    top = max(rows.value(setting) for setting in settings)
    equal = [setting for setting in settings if rows.value(setting) >= (1 - TIE) * top]
    if incumbent in equal:
        return incumbent, ", the setting in use"
    return min(equal, key=lambda each: (*weight(each), -rows.value(each))), ", too few runs to know the noise"


def _figure(rows: Rows, setting: Setting) -> str:
    runs = len(rows.good[setting])
    median_of = f"median of {runs} runs" if runs > 1 else "one run"
    p99 = f"p99 {rows.p99_ms(setting):.1f} ms"
    bound = f" within {rows.max_latency_ms:g} ms" if rows.max_latency_ms is not None else ""
    if rows.objective == "latency":
        return f"{p99}{bound} ({median_of})"
    return f"{rows.rate_per_s(setting):.1f} samples/s, {p99}{bound} ({median_of})"
