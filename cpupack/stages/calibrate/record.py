"""Runs a model and hands the output of every call to a function: node by node, or with hooks without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.chains import residual_summands
from cpupack.graph.hiding import hiding_calls, ordinary

Record = Callable[[str, Any, nn.Module | None], None]
"""Takes the name of a call as the quantize stage names it, its output, and the called module (None: a function)."""


class RecordedGraph:
    """A graph whose calls are recorded. Several threads may run it at once."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._summands = residual_summands(module)
        self._late = {node for summands in self._summands.values() for node in summands}
        self._hiding = hiding_calls(module)

    def run(self, batch: torch.Tensor, record: Record) -> Any:
        """Run one batch and return the model's output."""
        return _Interpreter(self._module, record, self._summands, self._late, self._hiding).run(batch)


class _Interpreter(fx.Interpreter):
    def __init__(
        self,
        module: fx.GraphModule,
        record: Record,
        summands: dict[fx.Node, tuple[fx.Node, ...]],
        late: set[fx.Node],
        hiding: set[fx.Node],
    ) -> None:
        super().__init__(module)
        self._record, self._summands, self._late, self._hiding = record, summands, late, hiding

    def run_node(self, n: fx.Node) -> Any:
        for summand in self._summands.get(n, ()):
            self._record_summand(n, summand)  # before the call, which may change the summand in place
        value = super().run_node(n)
        if n.op not in {"output", "get_attr"} and n not in self._late:
            hides = n in self._hiding and isinstance(value, torch.Tensor) and value.is_floating_point()
            self._record(n.name, ordinary(value) if hides else value, self._called(n))
        return value

    def _record_summand(self, add: fx.Node, summand: fx.Node) -> None:
        """Record a summand x of relu(x + y) as max(x, -y), which gives the same result: values below -y do not matter.

        A range chosen for max(x, -y) clips only values that do not matter, and has finer steps for the others.
        """
        (other,) = (each for each in add.all_input_nodes if each is not summand)
        value, opposite = self.env[summand], self.env[other]
        if isinstance(value, torch.Tensor) and isinstance(opposite, torch.Tensor) and value.shape == opposite.shape:
            value = torch.maximum(value, -opposite)
        self._record(summand.name, value, self._called(summand))

    def _called(self, n: fx.Node) -> nn.Module | None:
        return self.fetch_attr(str(n.target)) if n.op == "call_module" else None


@contextmanager
def hooked(module: nn.Module, record: Record) -> Iterator[None]:
    """Record the output of every module inside ``module`` that runs while this is open."""

    def hook_of(name: str) -> Any:
        def hook(called: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            # FloatFunctional passes its result through a child of this name. Eager mode attaches the observer there.
            record(name.removesuffix(".activation_post_process"), output, called)

        return hook

    hooks = [child.register_forward_hook(hook_of(name)) for name, child in module.named_modules() if name]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
