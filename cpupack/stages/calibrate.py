"""FusedModel -> CalibratedModel: runs the calibration data once and keeps statistics of every activation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from cpupack.artifacts import CalibratedModel, FusedModel, Samples, Seen
from cpupack.errors import CalibrationError
from cpupack.graph.chains import residual_summands
from cpupack.graph.fused import channel_axis
from cpupack.layout import batch_channels_last, weights_channels_last
from cpupack.model.user_code import running_on
from cpupack.progress import Progress
from cpupack.statistics import StatsCollector


def calibrate(fused: FusedModel, samples: Samples | None, batch_size: int, progress: Progress) -> CalibratedModel:
    """Run ``samples`` through the fused FP32 model and collect the statistics of its activations.

    Raises CalibrationError, with the layer and the samples, when an activation is not finite, and when the model does
    not run on some of the samples.
    """
    if fused.style == "dynamic" or samples is None:
        return CalibratedModel(fused, {}, samples=0, origin="none needed")
    recorder = _Recorder()
    run = recorder.watch(fused.module)
    weights_channels_last(fused.module)
    done = 0
    with torch.inference_mode(), running_on(samples.origin):
        for batch in samples.batches(batch_size):
            recorder.batch_names = samples.names[done : done + len(batch)]
            run(batch_channels_last(batch))
            done += len(batch)
            progress.step(done, len(samples), "samples")
    return CalibratedModel(fused, recorder.finish(), samples=len(samples), origin=samples.origin)


def observe(calibrated: CalibratedModel, samples: Samples, batch_size: int, progress: Progress) -> dict[str, Seen]:
    """Run other samples through the model and return the extremes of its tensors, by the names of the statistics."""
    watcher = _Watcher(calibrated)
    done = 0
    with torch.inference_mode():
        run = watcher.watch(calibrated.fused.module)
        for batch in samples.batches(batch_size):
            run(batch_channels_last(batch))
            done += len(batch)
            progress.step(done, len(samples), "samples")
    watcher.finish()
    return {name: watcher.seen(name) for name in watcher.extremes}


class _Recorder:
    """Collects the output of every call, under the name that the quantize stage uses for it."""

    def __init__(self) -> None:
        self.collectors: dict[str, StatsCollector] = {}
        self.batch_names: tuple[str, ...] = ()
        self._hooks: list[RemovableHandle] = []

    def record(self, name: str, value: Any, module: nn.Module | None = None) -> None:
        """Collect the output of one call. ``module`` is the called module, None for functions."""
        if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()):
            return
        if name not in self.collectors:
            axis = channel_axis(module) if module is not None and value.ndim > 1 else None
            self.collectors[name] = StatsCollector(axis)
        if not self.collectors[name].add(value):
            raise CalibrationError(
                f"the output of {name} is not finite (or beyond 8e37) on the calibration samples "
                f"{self.batch_names[0]} to {self.batch_names[-1]}",
                hint="look for NaN or huge values in these samples, or for an overflow in the FP32 model",
            )

    def watch(self, module: nn.Module) -> Any:
        """Return a callable that runs ``module`` and records: node by node, or with hooks if there is no graph."""
        if isinstance(module, fx.GraphModule):
            return _RecordingInterpreter(module, self).run
        for name, child in module.named_modules():
            if name:
                self._hooks.append(child.register_forward_hook(self._hook(name)))
        return module

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            # FloatFunctional passes its result through a child of this name. Eager mode attaches the observer there.
            self.record(name.removesuffix(".activation_post_process"), output, module)

        return hook

    def finish(self) -> dict[str, Any]:
        for hook in self._hooks:
            hook.remove()
        return {name: collector.finish() for name, collector in self.collectors.items()}


class _Watcher(_Recorder):
    """Keeps the extremes of each calibrated tensor."""

    def __init__(self, calibrated: CalibratedModel) -> None:
        super().__init__()
        self._stats = calibrated.stats
        self.extremes: dict[str, tuple[float, float]] = {}
        self._outside: Counter[str] = Counter()
        self._values: Counter[str] = Counter()

    def record(self, name: str, value: Any, module: nn.Module | None = None) -> None:
        del module
        stats = self._stats.get(name)
        if stats is None or not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()):
            return
        low, high = float(value.amin()), float(value.amax())
        if low < stats.minimum or high > stats.maximum:
            self._outside[name] += int(((value < stats.minimum) | (value > stats.maximum)).sum())
        self._values[name] += value.numel()
        before = self.extremes.get(name, (low, high))
        self.extremes[name] = min(before[0], low), max(before[1], high)

    def seen(self, name: str) -> Seen:
        return Seen(*self.extremes[name], self._outside[name] / self._values[name])


class _RecordingInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, recorder: _Recorder) -> None:
        super().__init__(module)
        self._recorder = recorder
        self._summands = residual_summands(module)
        self._late = {node for summands in self._summands.values() for node in summands}

    def run_node(self, n: fx.Node) -> Any:
        for summand in self._summands.get(n, ()):
            self._record_summand(n, summand)  # before the call, which may change the summand in place
        value = super().run_node(n)
        if n.op not in {"output", "get_attr"} and n not in self._late:
            self._recorder.record(n.name, value, self._module(n))
        return value

    def _record_summand(self, add: fx.Node, summand: fx.Node) -> None:
        """Record a summand x of relu(x + y) as max(x, -y), which gives the same result: values below -y do not matter.

        A range chosen for max(x, -y) clips only values that do not matter, and has finer steps for the others.
        """
        (other,) = (each for each in add.all_input_nodes if each is not summand)
        value, opposite = self.env[summand], self.env[other]
        if isinstance(value, torch.Tensor) and isinstance(opposite, torch.Tensor) and value.shape == opposite.shape:
            value = torch.maximum(value, -opposite)
        self._recorder.record(summand.name, value, self._module(summand))

    def _module(self, n: fx.Node) -> Any:
        return self.fetch_attr(str(n.target)) if n.op == "call_module" else None
