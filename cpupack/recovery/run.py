"""A whole recovery: chooses the engine, searches, tries the settings found on the other engines, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpupack.artifacts import Contender, Recovery, Trial
from cpupack.errors import QuantizationError, VerificationError
from cpupack.recipe import Quantize
from cpupack.recovery.closeness import closest, pareto_front, shortfall_db
from cpupack.recovery.search import Found, Scope, Workbench, as_trial, fastest_passing, search
from cpupack.recovery.settings import KNOBS, differences, render_toml
from cpupack.recovery.table import closest_table

_KNOBS_WITHOUT_GRAPH = {"eager": frozenset({"observer", "weights"}), "dynamic": frozenset[str]()}


@dataclass(frozen=True)
class Recovered:
    """The settings with which all gates hold, and every engine built with them, fastest first."""

    quantize: Quantize
    contenders: tuple[Contender, ...]
    recovery: Recovery


def wanted(quantize: Quantize, contenders: Sequence[Contender]) -> bool:
    """Whether the recipe asks for recovery and it may help: no engine passes, and one of them fails on accuracy."""
    return quantize.recover and not any(each.report.passed for each in contenders) and closest(contenders) is not None


def knobs_of(style: str) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Return the settings of ``KNOBS`` that apply to a fused model's style.

    A model with its own stubs (``eager``) has no graph, which corrections need. For dynamic quantization the search can
    only keep layers in FP32.
    """
    allowed = _KNOBS_WITHOUT_GRAPH.get(style)
    return tuple(knob for knob in KNOBS if allowed is None or knob[0] in allowed)


def recover(quantize: Quantize, contenders: Sequence[Contender], built_s: float, workbench: Workbench) -> Recovered:
    """Search for settings with which every gate holds, and try the other engines with these settings.

    ``contenders`` are the engines with the recipe's settings, fastest first. ``built_s`` is the time to build one.
    Raises VerificationError with the closest trials when the budget or the search ends without a trial that passes.
    """
    best = closest(contenders)
    assert best is not None  # checked by ``wanted``
    engine = best.scripted.target.engine
    engines = list(dict.fromkeys(each.scripted.target.engine for each in contenders))
    mixing = closest([each for each in contenders if workbench.mixes(each.scripted.target.engine)])
    layer_engine = mixing.scripted.target.engine if mixing is not None and workbench.style != "eager" else None
    why = _why(best, contenders)
    workbench.progress.note(f"recovery on {engine}: {why}")
    first = as_trial("as in the recipe", engine, {}, built_s, best.report)
    scope = Scope(engine, layer_engine, knobs_of(workbench.style), quantize.budget_s)
    found = search(quantize, first, scope, workbench)
    if found.winner is None:
        raise _not_recovered(found, quantize, layer_engine, contenders)
    if found.stopped is not None:
        workbench.progress.warn(
            f"recovery spent [quantize] budget_s = {quantize.budget_s:g} before it tried {found.stopped}; "
            "there may be settings that lose less speed"
        )
    setting = found.settings[found.winner]
    tried = {trial.engine for trial, each in zip(found.trials, found.settings, strict=True) if each == setting}
    others = [other for other in engines if other not in tried and (workbench.mixes(other) or not setting.skip)]
    trials, built = _on_other_engines(setting, quantize, others, found, workbench)
    won = found.passing[found.winner]
    finished = sorted([won, *built], key=lambda each: each.report.speedup or 0.0, reverse=True)
    every = (*found.trials, *trials)
    candidates = [number for number in range(len(every)) if number == found.winner or number >= len(found.trials)]
    fastest = fastest_passing([every[number] for number in candidates], workbench.layers)
    assert fastest is not None  # the winner passes
    winner = candidates[fastest]
    return Recovered(
        setting,
        tuple(sorted(finished, key=lambda each: each.scripted.target.engine != every[winner].engine)),
        Recovery(
            trials=every,
            winner=winner,
            pareto=pareto_front(every),
            toml=render_toml(setting, quantize, _facts(every[winner])),
            engine=engine,
            why=why,
            budget_s=quantize.budget_s,
            seconds=found.seconds + sum(trial.seconds for trial in trials),
            stopped=found.stopped,
        ),
    )


def _why(best: Contender, contenders: Sequence[Contender]) -> str:
    if len(contenders) == 1:
        return "the only engine"
    short = shortfall_db(best.report.gates)
    rivals = [
        f"{each.scripted.target.engine} {shortfall_db(each.report.gates):.1f} dB"
        for each in contenders
        if each is not best
    ]
    return f"closest to its gates, {short:.1f} dB short ({', '.join(rivals)})"


def _on_other_engines(
    setting: Quantize, recipe: Quantize, others: Sequence[str], found: Found, workbench: Workbench
) -> tuple[list[Trial], list[Contender]]:
    """Build the other engines with the settings found, within the budget. Another engine may pass and be faster."""
    trials: list[Trial] = []
    built: list[Contender] = []
    spent = found.seconds
    longest = max(trial.seconds for trial in found.trials)
    for engine in others:
        if spent + longest > recipe.budget_s:
            workbench.progress.note(f"{engine} is not tried with these settings: the budget is spent")
            continue
        begin = workbench.clock()
        label, settings = f"the same on {engine}", differences(setting, recipe)
        try:
            contender = workbench.build(setting, engine)
        except (QuantizationError, VerificationError) as error:
            trials.append(
                Trial(label, engine, settings, workbench.clock() - begin, error=error.message.splitlines()[0])
            )
        else:
            built.append(contender)
            trials.append(as_trial(label, engine, settings, workbench.clock() - begin, contender.report))
        spent += trials[-1].seconds
    return trials, built


def _facts(winner: Trial) -> list[str]:
    speed = f", {winner.speedup:.2f}x FP32" if winner.speedup is not None else ""
    sqnr = f"SQNR {winner.sqnr_db:.1f} dB" if winner.sqnr_db is not None else "no SQNR"
    return [
        f"Found by recovery on {winner.engine}: {sqnr}{speed}.",
        "Replace the recipe's [quantize] with this table.",
    ]


def _not_recovered(
    found: Found, quantize: Quantize, layer_engine: str | None, contenders: Sequence[Contender]
) -> VerificationError:
    tried, engine = len(found.trials) - 1, found.trials[0].engine
    head = f"[evaluation] the gates do not hold (on {contenders[0].report.data}), and recovery on {engine} failed"
    if tried == 0:
        return VerificationError(
            f"{head}: [quantize] budget_s = {quantize.budget_s:g} is too short for one trial, which takes about "
            f"{found.trials[0].seconds:.0f} s",
            hint=f"set budget_s to about {max(600, round(60 * found.trials[0].seconds))}",
        )
    words = [
        f"{head}; {tried} trial{'s' if tried > 1 else ''} in {found.seconds:.0f} s, the closest first:",
        *(f"  {line}" for line in closest_table(found.trials)),
        f"  tried: {'; '.join(trial.label for trial in found.trials[1:])}",
    ]
    if found.stopped is not None:
        words.append(
            f"  not tried, because budget_s = {quantize.budget_s:g} was spent: {found.stopped} and later steps"
        )
        hint = "raise [quantize] budget_s, or lower the gate that fails"
    elif layer_engine is None:
        hint = f"{engine} cannot keep layers of this model in FP32; another engine or form of the model may allow it"
    else:
        hint = "use more or better calibration samples, or lower the gate"
    return VerificationError("\n".join(words), hint=hint)
