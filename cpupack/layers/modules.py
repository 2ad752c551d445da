"""The layers of a model without a graph (eager and dynamic quantization). Hooks record both models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cpupack.artifacts import LayerFact
from cpupack.graph.names import kind_of
from cpupack.layers.facts import Setting, float_weight, kernel_of, output_sqnr_db, qparams, weight_sqnr_db
from cpupack.operators import OperatorCounter

_STEP = ".activation_post_process"
"""The child of FloatFunctional that its results pass through. torch's eager mode attaches the observer there."""


def module_layers(module: nn.Module, floats: nn.Module, batch: torch.Tensor, setting: Setting) -> tuple[LayerFact, ...]:
    """Return the facts of an INT8 ``module`` whose children have the same names as in the FP32 model ``floats``."""
    expected: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            expected[name] = output.clone() if isinstance(output, torch.Tensor) else output

        return hook

    handles = [child.register_forward_hook(keep(name)) for name, child in floats.named_modules() if name]
    try:
        floats(batch)
    finally:
        for handle in handles:
            handle.remove()
    return _Watch(module, floats, expected, setting).run(batch)


class _Watch:
    """Attributes every operator to the module whose forward calls it."""

    def __init__(self, module: nn.Module, floats: nn.Module, expected: dict[str, Any], setting: Setting) -> None:
        self._module = module
        self._floats = dict(floats.named_modules())
        self._expected, self._setting = expected, setting
        self._facts: list[LayerFact] = []
        self._frames: list[_Frame] = []
        self._counter = OperatorCounter()

    def run(self, batch: torch.Tensor) -> tuple[LayerFact, ...]:
        handles = []
        for name, child in self._module.named_modules():
            handles.append(child.register_forward_pre_hook(self._enter(name)))
            handles.append(child.register_forward_hook(self._leave(name, child)))
        try:
            with self._counter:
                self._module(batch)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(self._facts)

    def _enter(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any) -> None:
            self._settle()
            self._frames.append(_Frame(name))

        return hook

    def _leave(self, name: str, module: nn.Module) -> Any:
        source = self._floats.get(name)

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._settle()
            frame = self._frames.pop()
            if name.endswith(_STEP):  # the sum or product that the parent has just computed
                self._note(name.removesuffix(_STEP), None, self._frames[-1].take(), output, None, name)
            elif _is_layer(module, source):
                weight = float_weight(source) if source is not None else None
                kind = kind_of(source) if source is not None else type(module).__name__
                self._note(name, kind, frame.counts, output, weight_sqnr_db(module, weight), name)
            else:
                for part in frame.counts.each():  # functions that a container's forward calls directly
                    self._note(f"{name}.", None, part, None, None, "")
            self._counter.forget()  # drop the operators that computed these figures

        return hook

    def _settle(self) -> None:
        """Attribute the operators since the last event to the innermost module."""
        if self._frames:
            self._frames[-1].counts.int8.update(self._counter.int8)
            self._frames[-1].counts.fp32.update(self._counter.fp32)
        self._counter.forget()

    def _note(
        self, name: str, kind: str | None, counts: _Counts, output: Any, weight_error: float | None, expected: str
    ) -> None:
        found = kernel_of(counts)
        if found is None:
            return
        precision, kernel = found
        if kind is None:
            kind = kernel.rpartition("::")[2]
            name = f"{name}{kind}".lstrip(".") if name.endswith(".") else name
        scale, zero_point = qparams(output)
        self._facts.append(
            LayerFact(
                name=name,
                kind=kind,
                precision=precision,
                kernel=kernel,
                scale=scale,
                zero_point=zero_point,
                weight_sqnr_db=weight_error,
                output_sqnr_db=output_sqnr_db(self._expected.get(expected), output),
                reason="" if precision == "int8" else self._setting.reason(name, kind),
            )
        )


def _is_layer(module: nn.Module, source: nn.Module | None) -> bool:
    """Whether a module is one layer: it has no children, or it is the INT8 form of a module in the FP32 model."""
    if callable(getattr(module, "weight", None)) or not any(True for _ in module.children()):
        return True
    return source is not None and not any(True for _ in source.children())


class _Counts:
    def __init__(self) -> None:
        self.int8: Counter[str] = Counter()
        self.fp32: Counter[str] = Counter()

    def each(self) -> Iterator[_Counts]:
        """Yield the counts of each operator alone."""
        for precision in ("int8", "fp32"):
            for operator in getattr(self, precision):
                alone = _Counts()
                getattr(alone, precision)[operator] = 1
                yield alone


class _Frame:
    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = _Counts()

    def take(self) -> _Counts:
        """Return the counts of this frame, and reset them."""
        counts, self.counts = self.counts, _Counts()
        return counts
