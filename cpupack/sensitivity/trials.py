"""Runs a model with one layer at a time in INT8. In a graph only the part from that layer on runs again."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn

from cpupack.artifacts import FusedModel
from cpupack.graph.chains import residual_summands
from cpupack.graph.names import kind_of
from cpupack.graph.trace import last_readers
from cpupack.layout import weights_channels_last
from cpupack.sensitivity.rounding import Noise, Range, round_activation
from cpupack.sensitivity.sites import Site, find_sites, rounded_weights, weights_of


@dataclass(frozen=True)
class Layer:
    """A layer that a trial rounds. ``weights`` are its FP32 weights, each with its axis of scales (None: one scale)."""

    name: str
    kind: str
    skip: str | None
    weights: tuple[tuple[torch.Tensor, int | None], ...]
    rounds_output: bool


class Trials(Protocol):
    """A model that can run with one of its ``layers`` in INT8. ``reference`` is the FP32 output of the last batch."""

    @property
    def layers(self) -> Sequence[Layer]: ...

    reference: torch.Tensor

    def run(self, batch: torch.Tensor, noises: Sequence[Noise]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (index of the layer, the model's output with that layer in INT8) for every layer.

        Adds the rounding error of the layer's output to ``noises[index]``. ``reference`` is set after the last layer.
        """


def trials_of(fused: FusedModel, ranges: Mapping[str, Range], levels: int) -> Trials:
    """Return the trials of a fused model, for a graph or for modules."""
    if isinstance(fused.module, fx.GraphModule):
        return GraphTrials(fused.module, ranges, levels)
    return ModuleTrials(fused.module, ranges, levels)


def layers_of(fused: FusedModel, calibrated: Container[str]) -> list[Layer]:
    """Return the layers that the trials of a fused model round, in the order of execution.

    ``calibrated`` are the names of the tensors that calibration saw (``CalibratedModel.stats``).
    """
    if isinstance(fused.module, fx.GraphModule):
        return _layers_of_sites(find_sites(fused.module, calibrated))
    return _layers_of_modules(_weighted(fused.module), calibrated)


def _layers_of_sites(sites: Sequence[Site]) -> list[Layer]:
    return [Layer(site.name, site.kind, site.skip, site.weights, rounds_output=True) for site in sites]


def _layers_of_modules(modules: Mapping[str, nn.Module], calibrated: Container[str]) -> list[Layer]:
    return [
        Layer(name, kind_of(child), name, tuple(weights_of(child).values()), rounds_output=name in calibrated)
        for name, child in modules.items()
    ]


def _weighted(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with weights that INT8 rounds. A fused chain counts as one module."""
    found = {name: child for name, child in module.named_modules() if weights_of(child) and name}
    inside = [name for name in found if name.rpartition(".")[0] in found]  # the convolution inside a fused chain
    return {name: child for name, child in found.items() if name not in inside}


class GraphTrials:
    """Runs a graph once in FP32. At each layer the rest of the graph runs a second time, on the rounded values."""

    def __init__(self, graph: fx.GraphModule, ranges: Mapping[str, Range], levels: int) -> None:
        weights_channels_last(graph)
        self._graph, self._ranges, self._levels = graph, ranges, levels
        self._sites = find_sites(graph, ranges)
        self.layers = _layers_of_sites(self._sites)
        self.reference = torch.empty(0)
        self._at = {site.node: index for index, site in enumerate(self._sites)}
        self._ends: dict[fx.Node, list[int]] = {}
        for index, site in enumerate(self._sites):
            self._ends.setdefault(site.last, []).append(index)
        self._done_after = last_readers(graph)
        self._summands = residual_summands(graph)
        self._late = {each for summands in self._summands.values() for each in summands}

    def run(self, batch: torch.Tensor, noises: Sequence[Noise]) -> Iterator[tuple[int, torch.Tensor]]:
        interpreter = fx.Interpreter(self._graph, garbage_collect_values=False)
        interpreter.args_iter = iter([batch])
        values = interpreter.env
        for node in self._graph.graph.nodes:
            if node in self._at:
                site = self._sites[self._at[node]]
                yield self._at[node], self._rest(site, self._rounded(interpreter, site), values)
            if node.op == "output":
                self.reference = interpreter.run_node(node)
                return
            for summand in self._summands.get(node, ()):
                self._add_summand(node, summand, values, noises)  # before the call, which may change it in place
            values[node] = interpreter.run_node(node)
            if node not in self._late:
                for index in self._ends.get(node, ()):
                    noises[index].add(values[node], self._round(node, values[node]))
            for done in self._done_after.get(node, ()):
                del values[done]

    def _add_summand(
        self, add: fx.Node, summand: fx.Node, values: Mapping[fx.Node, Any], noises: Sequence[Noise]
    ) -> None:
        """Add the noise of a summand x of relu(x + y) as that of max(x, -y), for which its range was chosen."""
        (other,) = (each for each in add.all_input_nodes if each is not summand)
        exact, hidden = values[summand], -values[other]
        for index in self._ends.get(summand, ()):
            noises[index].add(torch.maximum(exact, hidden), torch.maximum(self._round(summand, exact), hidden))

    def _rest(self, site: Site, rounded: torch.Tensor, values: Mapping[fx.Node, Any]) -> torch.Tensor:
        """Run the graph after ``site`` on its rounded output, and return the model's output."""
        interpreter = fx.Interpreter(self._graph, garbage_collect_values=False)
        # Cloned, because operators that work in place would change the values that the next layers start from.
        interpreter.env = {
            node: value.clone() if isinstance(value, torch.Tensor) else value for node, value in values.items()
        }
        interpreter.env[site.last] = rounded
        node = site.node
        while node.op != "output":
            node = node.next
            if node is site.last:
                continue
            interpreter.env[node] = interpreter.run_node(node)
            for done in self._done_after.get(node, ()):
                interpreter.env.pop(done, None)
        result: torch.Tensor = interpreter.env[node]
        return result

    def _rounded(self, interpreter: fx.Interpreter, site: Site) -> torch.Tensor:
        """Return the output of ``site`` as INT8 computes it from its FP32 inputs."""
        node = site.node

        def argument(each: fx.Node) -> Any:
            value = interpreter.env[each]
            return self._round(each, value) if isinstance(value, torch.Tensor) else value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), argument)
        if node.op == "call_module":
            module = self._graph.get_submodule(str(node.target))
            result = torch.func.functional_call(module, rounded_weights(module), args, kwargs)
        else:
            result = interpreter.call_function(node.target, args, kwargs)
        if site.last is not node:
            result = torch.relu(result)
        return self._round(site.last, result)

    def _round(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        """Round a tensor to its calibrated range. A tensor that was not calibrated (a constant) stays unchanged."""
        limits = self._ranges.get(node.name)
        if limits is None or not value.is_floating_point():
            return value.clone()
        return round_activation(value, limits, self._levels)


class ModuleTrials:
    """Runs a whole model without a graph once for each layer. Hooks do the rounding.

    ``ranges`` is keyed by module name. An input gets the range of the module that made it. If there is no such range
    (dynamic quantization, or an input that no module made), it gets its own extremes.
    """

    def __init__(self, module: nn.Module, ranges: Mapping[str, Range], levels: int) -> None:
        self._module, self._ranges, self._levels = module, ranges, levels
        self._modules = _weighted(module)
        self.layers = _layers_of_modules(self._modules, ranges)
        self.reference = torch.empty(0)

    def run(self, batch: torch.Tensor, noises: Sequence[Noise]) -> Iterator[tuple[int, torch.Tensor]]:
        makers: dict[int, str] = {}
        kept: list[Any] = []  # kept alive, because ids of dead tensors are reused
        inputs: dict[str, Range | None] = {}

        def remember(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                inputs[name] = self._ranges.get(makers.get(id(args[0]), "")) if args else None
                if isinstance(output, torch.Tensor):
                    makers[id(output)] = name
                    kept.append(output)
                    if name in self._modules and name in self._ranges:
                        noises[list(self._modules).index(name)].add(output, self._rounded_output(name, output))

            return hook

        handles = [child.register_forward_hook(remember(name)) for name, child in self._module.named_modules() if name]
        try:
            self.reference = self._module(batch)
        finally:
            for handle in handles:
                handle.remove()
        for index, name in enumerate(self._modules):
            yield index, self._with_rounded(name, batch, inputs.get(name))

    def _with_rounded(self, name: str, batch: torch.Tensor, limits: Range | None) -> torch.Tensor:
        child = self._modules[name]

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            first, *others = args
            if not (isinstance(first, torch.Tensor) and first.is_floating_point()):
                return args
            low, high = limits or (min(float(first.min()), 0.0), max(float(first.max()), 0.0))
            return (round_activation(first, (low, high), self._levels), *others)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return self._rounded_output(name, output) if isinstance(output, torch.Tensor) else output

        handles = [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
        parameters = dict(child.named_parameters())
        rounded = rounded_weights(child)
        kept = {weight: parameters[weight].data for weight in rounded}
        try:
            # Not functional_call, because recurrent layers hold their weights twice.
            for weight, value in rounded.items():
                parameters[weight].data = value
            result: torch.Tensor = self._module(batch)
        finally:
            for weight, value in kept.items():
                parameters[weight].data = value
            for handle in handles:
                handle.remove()
        return result

    def _rounded_output(self, name: str, output: torch.Tensor) -> torch.Tensor:
        limits = self._ranges.get(name)
        return output if limits is None else round_activation(output, limits, self._levels)
