"""The stage: runs all samples through the fused FP32 model, and collects statistics of its activations."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpupack.accuracy import FloatArray
from cpupack.artifacts import CalibratedModel, FusedModel, Samples, Seen
from cpupack.errors import CalibrationError
from cpupack.graph.fused import channel_axis
from cpupack.graph.infinities import lasting
from cpupack.graph.parts import SAMPLES_AT_ONCE, Part, in_threads, parts_of
from cpupack.layout import batch_channels_last, weights_channels_last
from cpupack.model.user_code import running_on
from cpupack.progress import Progress
from cpupack.stages.calibrate.linear import measure_linear
from cpupack.stages.calibrate.record import RecordedGraph, hooked
from cpupack.stages.calibrate.recurrent import measure_recurrent
from cpupack.statistics import ActivationStats, StatsCollector, countable


def calibrate(fused: FusedModel, samples: Samples | None, batch_size: int, progress: Progress) -> CalibratedModel:
    """Run ``samples`` through the fused FP32 model and collect the statistics of its activations.

    Of recurrent layers it measures what codes of 8 bits cost, and of linear layers over tokens whether they lose less
    with channels of nearer sizes (``divisors``); of all linear layers it keeps some of what they read (``rows``). The
    first is all for a model to quantize dynamically. Raises CalibrationError, with the layer and the samples, when an
    activation is not finite and no later call replaces what is not, and when the model does not run on some of the
    samples.
    """
    recurrent = {} if samples is None else measure_recurrent(fused.canonical, samples)
    if fused.style == "dynamic" or samples is None:
        return CalibratedModel(fused, {}, samples=0, origin="none needed", recurrent_sqnr_db=recurrent)
    recorder = _Recorder(samples, fused.module)
    with running_on(samples.origin):
        _run(fused.module, recorder, samples, batch_size, progress)
    divisors, rows = measure_linear(fused.canonical, samples)
    stats = recorder.finish()
    if passing := [name for name, each in stats.items() if each.infinite]:
        progress.note(f"values that are not finite, which later calls replace, are in {', '.join(passing)}: FP32")
    return CalibratedModel(fused, stats, len(samples), samples.origin, recurrent, divisors, rows)


def observe(
    calibrated: CalibratedModel, samples: Samples, batch_size: int, progress: Progress
) -> tuple[dict[str, Seen], FloatArray]:
    """Run other samples through the model.

    Return the extremes of its tensors, by the names of the statistics, and its outputs, float32 ``(n, *output_shape)``.
    """
    watcher = _Watcher(calibrated)
    outputs = _run(calibrated.fused.module, watcher, samples, batch_size, progress, keep=True)
    return watcher.finish(), np.concatenate(outputs)


def _run(
    module: nn.Module,
    recorder: _Recorder | _Watcher,
    samples: Samples,
    batch_size: int,
    progress: Progress,
    *,
    keep: bool = False,
) -> list[FloatArray]:
    """Run all samples once, record every call, and return the outputs in order if they are to be kept.

    A graph has no state, so several parts of it may run at once.
    """
    weights_channels_last(module)
    outputs: dict[int, FloatArray] = {}

    def finished(part: Part, output: Any) -> None:
        if keep:
            outputs[part.rows.start] = output.numpy()

    if isinstance(module, fx.GraphModule):
        graph = RecordedGraph(module)

        def run(part: Part) -> None:
            finished(part, graph.run(batch_channels_last(samples.tensor(part.rows)), recorder.of(part)))

        in_threads(run, parts_of(len(samples), batch_size, SAMPLES_AT_ONCE), progress)
    else:
        for part in parts_of(len(samples), batch_size):
            with torch.inference_mode(), hooked(module, recorder.of(part)):
                finished(part, module(batch_channels_last(samples.tensor(part.rows))))
            progress.step(part.rows.stop, len(samples), "samples")
    return [outputs[start] for start in sorted(outputs)]


class _Recorder:
    """Collects the output of every call, under the name that the quantize stage uses for it."""

    def __init__(self, samples: Samples, module: nn.Module) -> None:
        self._samples, self._module = samples, module
        self._infinite: dict[str, str] = {}
        self._collectors: dict[str, StatsCollector] = {}
        self._lock = threading.Lock()

    def of(self, part: Part) -> Any:
        """Return the function that records the calls of one part."""

        def record(name: str, value: Any, module: nn.Module | None) -> None:
            if not _has_numbers(value):
                return
            with self._lock:
                if name not in self._collectors:
                    axis = channel_axis(module) if module is not None and value.ndim > 1 else None
                    self._collectors[name] = StatsCollector(axis)
            if not self._collectors[name].add(value, part.batch, part.number):
                names = self._samples.names[part.rows]
                with self._lock:
                    self._infinite.setdefault(name, f"{names[0]} to {names[-1]}")
                if not isinstance(self._module, fx.GraphModule):
                    raise self._refusal(name)  # nothing says which call reads it
                self._collectors[name].add(countable(value), part.batch, part.number)

        return record

    def finish(self) -> dict[str, ActivationStats]:
        """Return the statistics. Raises CalibrationError where values that are not finite go on into the answer."""
        if self._infinite:
            assert isinstance(self._module, fx.GraphModule)
            name = lasting(self._module, self._infinite)
            if name is not None:
                raise self._refusal(name)
        return {
            name: dataclasses.replace(collector.finish(), infinite=name in self._infinite)
            for name, collector in self._collectors.items()
        }

    def _refusal(self, name: str) -> CalibrationError:
        return CalibrationError(
            f"the output of {name} is not finite (or beyond 8e37) on the calibration samples {self._infinite[name]}",
            hint="look for NaN or huge values in these samples, or for an overflow in the FP32 model",
        )


class _Watcher:
    """Keeps the extremes of each calibrated tensor."""

    def __init__(self, calibrated: CalibratedModel) -> None:
        self._stats = calibrated.stats
        self._extremes: dict[str, tuple[float, float]] = {}
        self._outside: Counter[str] = Counter()
        self._values: Counter[str] = Counter()
        self._lock = threading.Lock()

    def of(self, part: Part) -> Any:
        """Return the function that records the calls of one part."""
        del part
        return self._record

    def _record(self, name: str, value: Any, module: nn.Module | None) -> None:
        del module
        stats = self._stats.get(name)
        if stats is None or not _has_numbers(value):
            return
        if stats.infinite:
            value = countable(value)
        low, high = float(value.amin()), float(value.amax())
        outside = 0
        if low < stats.minimum or high > stats.maximum:
            outside = int(((value < stats.minimum) | (value > stats.maximum)).sum())
        with self._lock:
            self._outside[name] += outside
            self._values[name] += value.numel()
            before = self._extremes.get(name, (low, high))
            self._extremes[name] = min(before[0], low), max(before[1], high)

    def finish(self) -> dict[str, Seen]:
        return {
            name: Seen(*extremes, self._outside[name] / self._values[name]) for name, extremes in self._extremes.items()
        }


def _has_numbers(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
