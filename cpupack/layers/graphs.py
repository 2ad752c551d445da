"""The layers of a model with a graph: runs the INT8 graph node by node and compares it with the FP32 graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.artifacts import LayerFact
from cpupack.graph.chains import residual_summands
from cpupack.graph.names import kind_of, scoped_name
from cpupack.graph.pixel_model import PixelModel, fold_normalization
from cpupack.layers.facts import Setting, float_weight, kernel_of, output_sqnr_db, qparams, weight_sqnr_db
from cpupack.layers.twins import Twins, called, is_clamp
from cpupack.operators import OperatorCounter
from cpupack.runtime.images.preprocess import PreprocessSpec


class GraphLayers:
    """Collects the facts of one INT8 model. ``walk`` must be called with its parts in order."""

    def __init__(self, floats: fx.GraphModule, batch: torch.Tensor, setting: Setting) -> None:
        self._floats, self._setting = floats, setting
        self._twins = Twins(floats)
        self._facts: list[LayerFact] = []
        self._fp32: dict[fx.Node, str] = {}
        recorder = _Recorder(floats)
        recorder.run(batch)
        self._expected = recorder.values
        self._other_summand = {
            each: next(other for other in add.all_input_nodes if other is not each)
            for add, summands in residual_summands(floats).items()
            for each in summands
        }
        self._input = next(node for node in floats.graph.nodes if node.op == "placeholder")

    def facts(self) -> tuple[LayerFact, ...]:
        """Return the collected facts, in the order of execution."""
        return tuple(self._facts)

    def pixel_stem(self, model: PixelModel, pixels: torch.Tensor, preprocess: PreprocessSpec) -> Any:
        """Run the first convolution on pixels, record it, and return its output: the input of ``model.body``."""
        assert isinstance(model.float_stem, fx.GraphModule)
        conv = [node for node in model.float_stem.graph.nodes if node.op == "call_module"][-1]
        module = model.pixel_stem.get_submodule("conv")
        own = self._own_call(conv)
        assert own is not None
        with OperatorCounter() as counter:
            value = model.pixel_stem(pixels)
        kind = kind_of(self._module(own))
        folded = fold_normalization(_weight(self._module(own)), preprocess)
        self._note(conv, own, (scoped_name(own), kind), counter, value, weight_sqnr_db(module, folded))
        self._input = own
        return value

    def float_stem(self, model: PixelModel, batch: torch.Tensor) -> Any:
        """Run the first convolution on normalized floats, record it, and return its output."""
        assert isinstance(model.float_stem, fx.GraphModule)
        value = _Walk(model.float_stem, self).run(batch)
        self._input = self._own_call([node for node in model.float_stem.graph.nodes if node.op == "call_module"][-1])
        return value

    def walk(self, graph: fx.GraphModule, value: Any) -> None:
        """Run a part of the INT8 model on ``value``, its input, and record each node that computes."""
        _Walk(graph, self).run(value)

    def see(self, graph: fx.GraphModule, node: fx.Node, counter: OperatorCounter, value: Any) -> None:
        """Record one node of the INT8 model, which has just run."""
        if node.op == "placeholder":
            self._twins.set(node, self._input)
            return
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        twin = self._twins.find(node, module)
        if kernel_of(counter) is None:
            made = [self._fp32[each] for each in node.all_input_nodes if each in self._fp32]
            if made and isinstance(value, torch.Tensor) and not value.is_quantized:
                self._fp32[node] = made[0]  # a view of an FP32 output
            return
        own = self._own_call(node)
        error = None
        if own is not None and module is not None:
            named = scoped_name(own), kind_of(self._module(own)) + _joined(module)
            error = weight_sqnr_db(module, float_weight(self._module(own)))
        else:
            named = self._function(node, module, twin)
        self._note(node, twin, named, counter, value, error)

    def _note(
        self,
        node: fx.Node,
        twin: fx.Node | None,
        named: tuple[str, str],
        counter: OperatorCounter,
        value: Any,
        weight_error: float | None,
    ) -> None:
        found = kernel_of(counter)
        assert found is not None
        (precision, kernel), (name, kind) = found, named
        scale, zero_point = qparams(value)
        reason = ""
        if precision == "fp32":
            self._fp32[node] = name
            after = next((self._fp32[each] for each in node.all_input_nodes if each in self._fp32), "")
            own = self._own_call(node)
            weighted = own is not None and float_weight(self._module(own)) is not None
            reason = self._setting.reason(name, kind, target=str(node.target), after="" if weighted else after)
        before = self._facts[-1] if self._facts else None
        if before is not None and before.name == name and is_clamp(node):
            self._facts.pop()  # this node is the ReLU6 of the convolution before; its value is the result of both
            kernel, weight_error = f"{before.kernel} + {kernel}", before.weight_sqnr_db
        self._facts.append(
            LayerFact(
                name=name,
                kind=kind,
                precision=precision,
                kernel=kernel,
                scale=scale,
                zero_point=zero_point,
                weight_sqnr_db=weight_error,
                output_sqnr_db=self._output_sqnr_db(twin, value) if twin is not None else None,
                reason=reason,
            )
        )

    def _output_sqnr_db(self, twin: fx.Node, value: Any) -> float | None:
        expected = self._expected.get(twin)
        if twin in self._other_summand and isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor):
            # A summand x of relu(x + y) is compared as max(x, -y), because its range was chosen for max(x, -y).
            hidden = -self._expected[self._other_summand[twin]]
            if hidden.shape == value.shape:
                actual = value.dequantize() if value.is_quantized else value
                return output_sqnr_db(torch.maximum(expected, hidden), torch.maximum(actual, hidden))
        return output_sqnr_db(expected, value)

    def _function(self, node: fx.Node, module: nn.Module | None, twin: fx.Node | None) -> tuple[str, str]:
        """Return name and kind of a node that does not call a module with the same name as in the FP32 model."""
        if twin is None:
            return node.name, called(node, module)
        if twin.op == "call_module" and not (module is None and called(node, None).endswith("_relu")):
            return scoped_name(twin), kind_of(self._module(twin))
        if called(node, module).endswith("_relu"):  # the twin is the ReLU; the node before it gives the name
            source = twin.all_input_nodes[0]
            return scoped_name(source), f"{called(source, None)}+ReLU"
        return scoped_name(twin), called(twin, None)

    def _own_call(self, node: fx.Node) -> fx.Node | None:
        """Return the node of the FP32 graph that calls the same module as ``node``."""
        nodes = self._floats.graph.nodes
        return next(
            (each for each in nodes if each.op == node.op == "call_module" and each.target == node.target), None
        )

    def _module(self, node: fx.Node) -> nn.Module:
        return self._floats.get_submodule(str(node.target))


class _Recorder(fx.Interpreter):
    """Keeps a copy of the value of every node, because a later call may change it in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


class _Walk(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, layers: GraphLayers) -> None:
        super().__init__(module)
        self._graph, self._layers = module, layers

    def run_node(self, n: fx.Node) -> Any:
        with OperatorCounter() as counter:
            value = super().run_node(n)
        if n.op != "output":
            self._layers.see(self._graph, n, counter, value)
        return value


def _weight(module: nn.Module) -> torch.Tensor:
    weight = float_weight(module)
    assert weight is not None
    return weight


def _joined(module: nn.Module) -> str:
    """Return the names of the other operations in an INT8 module: the addition after a convolution, and the ReLU."""
    name = type(module).__name__
    if "Add" not in name:
        return ""
    return "+add+ReLU" if "ReLU" in name else "+add"
