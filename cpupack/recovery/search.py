"""The search: first settings that cost no speed, then the fewest layers in FP32 with which every gate holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpupack.artifacts import Contender, Trial, VerifyReport
from cpupack.errors import QuantizationError, VerificationError
from cpupack.graph.names import is_within
from cpupack.progress import Progress
from cpupack.recipe import Quantize
from cpupack.recovery.closeness import accurate, helped
from cpupack.recovery.settings import changed, differences, in_words, whole_blocks, with_skip

_SAME_SPEED = 0.97
"""Speeds count as equal if their ratio is at least this, or if their intervals overlap."""


@dataclass(frozen=True)
class Workbench:
    """The functions that build trials. ``pipeline`` passes them in.

    ``build`` quantizes with a setting for an engine, verifies, times and judges the gates. It raises QuantizationError
    or VerificationError if that fails. ``rank`` returns the layers that may be kept in FP32 on an engine, the most
    sensitive first. ``mixes`` says whether an engine can have layers in FP32 at all. ``style`` is the fused model's.
    ``layers`` are the names of the modules with weights, in the order of execution. ``clock`` is in seconds.
    """

    build: Callable[[Quantize, str], Contender]
    rank: Callable[[Quantize, str], Sequence[str]]
    mixes: Callable[[str], bool]
    style: str
    layers: Sequence[str]
    progress: Progress
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Scope:
    """What a search may try, and for how long.

    Settings without layers in FP32 are tried on ``engine``. Settings with such layers are tried on ``layer_engine``:
    the same engine, or another if ``engine`` only runs whole models, or None if no engine can. ``knobs`` are the
    settings of ``settings.KNOBS`` that apply to the model.
    """

    engine: str
    layer_engine: str | None
    knobs: Sequence[tuple[str, Sequence[Any]]]
    budget_s: float


@dataclass(frozen=True)
class Found:
    """The result of a search. ``settings[i]`` belongs to ``trials[i]``. ``winner`` is None when no trial passed.

    ``passing`` has the build of each trial that passed. ``stopped`` says what was not tried because the budget was
    spent, None if the search was completed.
    """

    trials: tuple[Trial, ...]
    settings: tuple[Quantize, ...]
    winner: int | None
    stopped: str | None
    seconds: float
    passing: Mapping[int, Contender]


def search(recipe: Quantize, failed: Trial, scope: Scope, workbench: Workbench) -> Found:
    """Search, starting from the recipe's settings, which failed. Return every trial and the best that passes.

    Tries in this order: the values of each knob, which are kept if they help; the first and last layer in FP32; the
    most sensitive layers in FP32, whose smallest number is found by doubling and bisection; then returning layers to
    INT8 while the gates hold. The first knob with which all gates hold ends the search, because it costs no speed.
    Raises no errors of its own.
    """
    run = _Search(recipe, failed, scope, workbench)
    stopped = None
    try:
        run.run()
    except _BudgetSpentError as spent:
        stopped = spent.untried
    return Found(
        tuple(run.trials),
        tuple(run.settings),
        fastest_passing(run.trials, workbench.layers),
        stopped,
        workbench.clock() - run.start,
        run.passing,
    )


def fastest_passing(trials: Sequence[Trial], layers: Sequence[str]) -> int | None:
    """Return the index of the fastest trial that passes, None when none passes.

    Among trials of equal speed, the one with the fewest of the ``layers`` in FP32 wins, then the one with the highest
    SQNR.
    """

    def in_fp32(trial: Trial) -> int:
        return sum(is_within(layer, trial.settings.get("skip", ())) for layer in layers)

    passing = [number for number, trial in enumerate(trials) if trial.passed]
    if not passing:
        return None
    fastest = max((trials[number] for number in passing), key=lambda trial: trial.speedup or 0.0)
    as_fast = [number for number in passing if _as_fast(trials[number], fastest)]
    return min(as_fast, key=lambda number: (in_fp32(trials[number]), -(trials[number].sqnr_db or 0.0)))


def _as_fast(trial: Trial, fastest: Trial) -> bool:
    """Whether a trial's speed equals that of the fastest trial within the accuracy of the measurement."""
    if (trial.speedup or 0.0) >= _SAME_SPEED * (fastest.speedup or 0.0):
        return True
    return (
        trial.speedup_ci95 is not None
        and fastest.speedup_ci95 is not None
        and trial.speedup_ci95[1] >= fastest.speedup_ci95[0]
    )


class _BudgetSpentError(Exception):
    def __init__(self, untried: str) -> None:
        super().__init__(untried)
        self.untried = untried


class _Search:
    def __init__(self, recipe: Quantize, failed: Trial, scope: Scope, workbench: Workbench) -> None:
        self.trials, self.settings = [failed], [recipe]
        self.start = workbench.clock()
        self._recipe = recipe
        self.passing: dict[int, Contender] = {}
        self._scope, self._workbench = scope, workbench
        self._engine = scope.engine
        self._known = {self._key(recipe): failed}

    def run(self) -> None:
        settings = self._turn_knobs(self._recipe)
        if self._known[self._key(settings)].passed or self._scope.layer_engine is None:
            return
        if self._scope.layer_engine != self._engine:
            self._engine = self._scope.layer_engine
            if self._accurate_with(settings, (), f"the same on {self._engine}"):
                return
        self._keep_layers_in_fp32(settings)

    def _turn_knobs(self, settings: Quantize) -> Quantize:
        """Try the values of one knob after another. Return the settings with the values that helped."""
        for key, values in self._scope.knobs:
            best, before = settings, settings
            for value in values:
                if value == getattr(before, key):
                    continue
                setting = changed(before, {key: value})
                trial = self._try(in_words({key: value}), setting)
                if trial.passed:
                    return setting
                if helped(trial, self._known[self._key(best)]):
                    best = setting
            settings = best
        return settings

    def _keep_layers_in_fp32(self, settings: Quantize) -> None:
        """Try first and last layer in FP32, then the most sensitive ones, and return layers to INT8 that need no FP32.

        The ranking starts without layers in FP32 even if first and last helped. If they matter, they rank high; if not,
        they would cost speed without benefit.
        """
        layers = [name for name in self._workbench.layers if not is_within(name, settings.skip)]
        ends = list(dict.fromkeys((layers[0], layers[-1]))) if layers else []
        most = len(layers) - 1  # at least one layer must stay INT8
        if 0 < len(ends) <= most and self._accurate_with(settings, ends, "first and last layer in FP32"):
            kept = self._give_back(settings, ends)
            most = min(most, len(kept) - 1)  # other layers are worth trying only if they are fewer
        if most < 1:
            return
        ranked = self._rank(settings)
        needed = self._fewest(settings, ranked, most)
        if needed:
            self._give_back(settings, ranked[:needed][::-1])  # the least sensitive first

    def _rank(self, settings: Quantize) -> list[str]:
        self._check_budget("the most sensitive layers in FP32")
        return [
            name
            for name in self._workbench.rank(settings, self._scope.layer_engine or self._engine)
            if not is_within(name, settings.skip)
        ]

    def _fewest(self, settings: Quantize, ranked: Sequence[str], most: int) -> int | None:
        """Return how many of the most sensitive layers must be FP32: at most ``most``, None if these are too few."""
        works, fails, count = None, 0, 1
        most = min(most, len(ranked))
        while works is None and fails < most:
            count = min(count, most)
            if self._accurate_with(settings, ranked[:count], _most_sensitive(ranked[:count])):
                works = count
            else:
                fails, count = count, 2 * count
        while works is not None and works - fails > 1:
            middle = (works + fails) // 2
            if self._accurate_with(settings, ranked[:middle], _most_sensitive(ranked[:middle])):
                works = middle
            else:
                fails = middle
        return works

    def _accurate_with(self, settings: Quantize, names: Sequence[str], label: str) -> bool:
        layers = list(self._workbench.layers)
        in_order = sorted(names, key=lambda name: layers.index(name) if name in layers else len(layers))
        trial = self._try(label, with_skip(settings, whole_blocks(in_order, layers)))
        return trial.error is None and accurate(trial.gates)

    def _give_back(self, settings: Quantize, names: Sequence[str]) -> list[str]:
        """Return layers to INT8 while the gates hold, in the given order: halves first, then quarters, then single."""
        kept = list(names)
        size = max(1, len(kept) // 2)
        while size and kept:
            for chunk in [kept[start : start + size] for start in range(0, len(kept), size)]:
                rest = [name for name in kept if name not in chunk]
                what = chunk[0] if len(chunk) == 1 else f"{len(chunk)} layers"
                if self._accurate_with(settings, rest, f"{what} back in INT8"):
                    kept = rest
            size //= 2
        return kept

    def _try(self, label: str, setting: Quantize) -> Trial:
        key = self._key(setting)
        if key in self._known:
            return self._known[key]
        self._check_budget(label)
        trial, built = self._measured(label, setting)
        self._known[key] = trial
        if built is not None and trial.passed:
            self.passing[len(self.trials)] = built
        self.trials.append(trial)
        self.settings.append(setting)
        self._report(trial)
        return trial

    def _key(self, setting: Quantize) -> tuple[str, str]:
        return self._engine, changed(setting, {"skip": sorted(setting.skip)}).model_dump_json()

    def _check_budget(self, what: str) -> None:
        """Stop if another trial of median length would end after the budget."""
        spent = self._workbench.clock() - self.start
        if spent + statistics.median(trial.seconds for trial in self.trials) > self._scope.budget_s:
            raise _BudgetSpentError(what)

    def _measured(self, label: str, setting: Quantize) -> tuple[Trial, Contender | None]:
        begin = self._workbench.clock()
        settings = differences(setting, self._recipe)
        try:
            built = self._workbench.build(setting, self._engine)
        except (QuantizationError, VerificationError) as error:
            seconds = self._workbench.clock() - begin
            return Trial(label, self._engine, settings, seconds, error=error.message), None
        return as_trial(label, self._engine, settings, self._workbench.clock() - begin, built.report), built

    def _report(self, trial: Trial) -> None:
        progress = self._workbench.progress
        spent = self._workbench.clock() - self.start
        progress.step(min(round(spent), round(self._scope.budget_s)), round(self._scope.budget_s), "s")
        if trial.error is not None:
            progress.note(f"{trial.label}: {trial.error.splitlines()[0]}")
        else:
            speed = f", {trial.speedup:.2f}x FP32" if trial.speedup is not None else ""
            verdict = "every gate holds" if trial.passed else "a gate fails"
            progress.note(f"{trial.label}: SQNR {trial.sqnr_db:.1f} dB{speed}, {verdict}")


def as_trial(label: str, engine: str, settings: dict[str, Any], seconds: float, report: VerifyReport) -> Trial:
    """Return a verified and judged build as a trial."""
    drop = (
        report.top1_fp32 - report.top1_int8 if report.top1_fp32 is not None and report.top1_int8 is not None else None
    )
    return Trial(
        label,
        engine,
        settings,
        seconds,
        sqnr_db=report.sqnr_db,
        agreement=report.agreement,
        drop=drop,
        speedup=report.speedup,
        speedup_ci95=report.speedup_ci95,
        gates=report.gates,
        passed=report.passed,
    )


def _most_sensitive(names: Sequence[str]) -> str:
    return f"{len(names)} most sensitive in FP32" if len(names) > 1 else f"{names[0]} in FP32"
