"""One engine's way into the contest: it enters with a saved INT8 model, is timed, and is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpupack.artifacts import Contender, QuantizedModel, SaturationReport, ScriptedModel
from cpupack.cache import script_hash
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared, race_batch_size
from cpupack.progress import Progress
from cpupack.runtime.host.probe import HostProbe
from cpupack.stages.quantize import quantize
from cpupack.stages.saturate import Quantize, make_safe
from cpupack.stages.script import script
from cpupack.stages.verify import Speed, compare, race, speeds_of, timed
from cpupack.targets import Target


@dataclass(frozen=True)
class Entry:
    """An engine's saved INT8 model before the check. ``speed`` is None until it was timed.

    If ``quantized.target`` adds products in 16 bits, its sums have yet to be made safe, which may change the model.
    """

    target: Target
    quantized: QuantizedModel
    scripted: ScriptedModel
    speed: Speed | None = None


def enter(prepared: Prepared, target: Target, path: Path, corrections: Corrections, progress: Progress) -> Entry:
    """Quantize the model for a target and save it at ``path``: with 8-bit activations where these are tried first."""
    first = dataclasses.replace(target, activation_bits=8) if _is_made_safe(prepared, target) else target
    quantized = _quantizer(prepared, corrections, progress)(first, frozenset())
    return Entry(target, quantized, _scripted(prepared, quantized, path))


def time_entries(prepared: Prepared, entries: Sequence[Entry], work: Path, progress: Progress) -> list[Entry]:
    """Time the entries against FP32 and return them with their speed, fastest first.

    The batch size and the threads are those that suit the recipe's objective.
    """
    speeds = _race(prepared, [each.scripted for each in entries], work, progress)
    found = [dataclasses.replace(each, speed=speeds[each.target.engine]) for each in entries]
    return sorted(found, key=lambda each: speeds[each.target.engine].speedup, reverse=True)


def check(
    prepared: Prepared,
    entry: Entry,
    work: Path,
    corrections: Corrections,
    progress: Progress,
    *,
    races: bool = True,
) -> Contender:
    """Make the 16-bit sums safe on CPUs that have them, verify the outputs, and time what was not timed yet.

    Without ``races`` nothing is timed: the speed stays that of ``entry``.
    """
    quantized, scripted, speed = entry.quantized, entry.scripted, entry.speed
    saturation = _saturation_of(quantized)
    if _is_made_safe(prepared, entry.target):
        assert prepared.calibration is not None
        quantize_for = _quantizer(prepared, corrections, progress)

        def first_as_entered(target: Target, limited: frozenset[str]) -> QuantizedModel:
            known = target == entry.quantized.target and not limited
            return entry.quantized if known else quantize_for(target, limited)

        quantized, saturation = make_safe(first_as_entered, entry.target, prepared.calibration, progress)
    if quantized is not entry.quantized:
        scripted, speed = _scripted(prepared, quantized, scripted.path), None if races else speed
    contender = compare(quantized, scripted, prepared.reference, work, progress)
    if races and speed is None and entry.target.runs_here and prepared.is_timed:
        speed = _race(prepared, [scripted], work, progress)[entry.target.engine]
    return dataclasses.replace(timed(contender, speed), saturation=saturation)


def _is_made_safe(prepared: Prepared, target: Target) -> bool:
    return target.saturates and prepared.calibration is not None and prepared.fused.style != "dynamic"


def _saturation_of(quantized: QuantizedModel) -> SaturationReport | None:
    """Return the report of an engine whose weights were chosen so that no 16-bit sum overflows, else None."""
    target = quantized.target
    if not target.adds_in_16_bits or target.saturates:
        return None
    return SaturationReport(target.isa, target.activation_bits, 0, "", quantized.sums)


def _quantizer(prepared: Prepared, corrections: Corrections, progress: Progress) -> Quantize:
    def quantize_for(target: Target, limited: frozenset[str]) -> QuantizedModel:
        # Corrected for the bits of this try: biases that compensate for 7 bits make 8 bits worse, and vice versa.
        calibrated = corrections.corrected(prepared, prepared.loaded.recipe.quantize, target, progress)
        return quantize(calibrated, prepared.model.module, prepared.loaded.recipe, target, limited)

    return quantize_for


def _scripted(prepared: Prepared, quantized: QuantizedModel, path: Path) -> ScriptedModel:
    sample = prepared.reference.samples.spread(1).tensor(slice(None))
    return script(quantized, prepared.model.input_shape, path, sample)


def _race(prepared: Prepared, models: Sequence[ScriptedModel], work: Path, progress: Progress) -> dict[str, Speed]:
    """Return the speed of each model by its engine. The same files on the same CPU were perhaps timed before."""
    recipe = prepared.loaded.recipe
    batch_size = race_batch_size(recipe, prepared.model.macs)
    threads = HostProbe().budget().usable if recipe.tune.objective == "latency" else 1
    inputs = prepared.model.signature.inputs
    # A gate that is judged by its interval needs every round, however long that takes.
    every_round = recipe.evaluation.confident and recipe.evaluation.min_speedup is not None

    def make(heard: Progress) -> list[dict[str, Any]]:
        path = prepared.timed_float.saved(heard)
        return race(models, path, inputs, work, heard, batch_size=batch_size, threads=threads, every_round=every_round)

    files = [(each.target.engine, script_hash(each.path), each.pixel_input) for each in models]
    facets = (files, [each.to_dict() for each in inputs], batch_size, threads, every_round)
    return speeds_of(prepared.cache.race(facets, progress, make), [each.target.engine for each in models])
