"""Runs a TorchScript program as Python, operator by operator, so that torch.export sees what its branches do.

torch's converter of TorchScript leaves branches and loops inside the graph, or refuses them. Here they are Python: an
``if`` on a shape or a setting is decided once, and a loop is as many copies of its body as it has rounds.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cpupack.model.script_calls import DTYPES, FORMATS, LAYOUTS, NUMBERS, OF_TENSORS, PLAIN, PRIM, TRACED

_ENUMS: Mapping[str, Sequence[Any]] = {"ScalarType": DTYPES, "Layout": LAYOUTS, "MemoryFormat": FORMATS}
"""Arguments that TorchScript passes as a number."""


class ScriptError(Exception):
    """An operator of TorchScript that is not known here."""


@dataclass(frozen=True)
class _Step:
    """One operator: ``kind`` is its name, ``value`` a constant or the name of an attribute or a tensor's buffer."""

    kind: str
    schema: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    value: Any = None
    blocks: tuple[_Block, ...] = ()


@dataclass(frozen=True)
class _Block:
    inputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[str, ...]


class Scripted(nn.Module):
    """A TorchScript program as a module of Python, with the same names of weights."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self._tuples: dict[str, tuple[str, ...]] = {}
        for name, tensor in script.named_parameters():
            _place(self, name).register_parameter(name.rpartition(".")[2], nn.Parameter(tensor, tensor.requires_grad))
        for name, tensor in script.named_buffers():
            _place(self, name).register_buffer(name.rpartition(".")[2], tensor)
        self._constants: list[torch.Tensor] = []
        self._attributes: dict[str, Any] = {}
        graph = script.inlined_graph
        self._root = next(graph.inputs()).debugName()
        self._program = self._block(graph, script, {self._root: ""})
        for number, tensor in enumerate(self._constants):
            self.register_buffer(f"constant_{number}", tensor)

    def _block(self, block: Any, script: Any, modules: dict[str, str]) -> _Block:
        """Return a block of a graph as steps. ``modules`` has the paths of the values that are modules."""
        steps = []
        for node in block.nodes():
            kind = node.kind()
            outputs = tuple(each.debugName() for each in node.outputs())
            inputs = tuple(each.debugName() for each in node.inputs())
            value: Any = None
            if kind == "prim::GetAttr":
                path = f"{modules[inputs[0]]}.{node.s('name')}".lstrip(".")
                found = _attribute(script, path)
                if node.output().type().kind() == "ClassType":
                    modules[outputs[0]] = path
                    continue
                if not isinstance(found, torch.Tensor):
                    self._attributes[path] = found
                elif _attribute(self, path, None) is None:  # a tensor that is no buffer
                    _place(self, path).register_buffer(path.rpartition(".")[2], found)
                value = path
            elif kind == "prim::Constant":
                value = node.output().toIValue()
                if isinstance(value, torch.Tensor) and not value.ndim and value.dtype == torch.int64:
                    value = int(value)  # traced programs calculate sizes with them
                elif isinstance(value, torch.Tensor):
                    self._constants.append(value.detach())
                    kind, value = "constant", f"constant_{len(self._constants) - 1}"
            elif kind == "prim::TupleConstruct":
                value = str(node.output().type()).rpartition(".")[2]
            blocks = tuple(self._block(each, script, modules) for each in node.blocks())
            schema = "" if node.schema() == "(no schema)" else node.schema()
            steps.append(_Step(kind, schema, inputs, outputs, value, blocks))
        return _Block(
            tuple(each.debugName() for each in block.inputs()),
            tuple(steps),
            tuple(each.debugName() for each in block.outputs()),
        )

    def bound(self, *given: Any, **named: Any) -> list[Any]:
        """Return the arguments of the program, in their order, from those of a call."""
        raise NotImplementedError  # each program has its own

    def run(self, arguments: Sequence[Any]) -> Any:
        """Return what the program gives for its arguments, in their order."""
        values: dict[str, Any] = dict(zip(self._program.inputs, [None, *arguments], strict=True))
        (result,) = self._run(self._program, values)
        return result

    def name_fields(self, output: Any) -> None:
        """Take the fields of named tuples from an output of the program: its file does not say them."""
        fields = getattr(output, "_fields", None)
        if isinstance(output, tuple) and fields is not None:
            self._tuples[type(output).__name__] = fields
        for each in output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ():
            self.name_fields(each)

    def _run(self, block: _Block, values: dict[str, Any]) -> list[Any]:
        for step in block.steps:
            inputs = [values.get(name) for name in step.inputs]
            if step.kind == "prim::If":
                results = self._run(step.blocks[0 if inputs[0] else 1], values)
            elif step.kind == "prim::Loop":
                results = self._loop(step.blocks[0], inputs, values)
            else:
                results = self._step(step, inputs)
            values.update(zip(step.outputs, results, strict=True))
        return [values[name] for name in block.outputs]

    def _loop(self, body: _Block, inputs: list[Any], values: dict[str, Any]) -> list[Any]:
        most, on, carried = inputs[0], inputs[1], inputs[2:]
        number = 0
        while on and number < most:
            values.update(zip(body.inputs, [number, *carried], strict=True))
            on, *carried = self._run(body, values)
            number += 1
        return carried

    def _step(self, step: _Step, inputs: list[Any]) -> list[Any]:
        space, _, name = step.kind.partition("::")
        match step.kind:
            case "prim::Constant":
                return [step.value]
            case "constant":
                return [self.get_buffer(step.value)]
            case "prim::GetAttr":
                return [
                    self._attributes[step.value] if step.value in self._attributes else _attribute(self, step.value)
                ]
            case "prim::TupleUnpack" | "prim::ListUnpack":
                return list(inputs[0])
            case "prim::RaiseException":
                raise RuntimeError(str(inputs[0]))
            case "prim::TupleConstruct" if step.value in self._tuples:
                return [namedtuple(step.value, self._tuples[step.value])(*inputs)]
        if space == "prim" and name in PRIM:
            found = PRIM[name](*inputs)
        elif space == "aten":
            found = _aten(name, step.schema, inputs)
        else:
            raise ScriptError(f"the operator {step.kind} of TorchScript is not known")
        if len(step.outputs) == 1:
            return [found]
        return list(found) if step.outputs else []


def as_module(script: Any) -> Scripted:
    """Return a TorchScript program, in eval mode, as a module whose ``forward`` has the same arguments."""
    arguments = script.forward.schema.arguments[1:]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            each.name, kind, default=each.default_value if each.has_default_value() else inspect.Parameter.empty
        )
        for each in arguments
    ]
    signature = inspect.Signature(parameters)
    lists = {each.name for each in arguments if each.type.kind() == "ListType"}

    def bound(self: Scripted, *given: Any, **named: Any) -> list[Any]:
        found = signature.bind(*given, **named)
        found.apply_defaults()
        return [list(each) if name in lists else each for name, each in found.arguments.items()]

    def forward(self: Scripted, *given: Any, **named: Any) -> Any:
        return self.run(bound(self, *given, **named))

    own = inspect.Parameter("self", kind)
    forward.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]  # inspect reads it
    module: Scripted = type("Scripted", (Scripted,), {"forward": forward, "bound": bound})(script)
    return module.eval()


def is_alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether a module gave what its program gives, but for rounding."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    most = float(first.nan_to_num().abs().max()) if first.numel() else 0.0
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4 * most, equal_nan=True)


def _aten(name: str, schema: str, inputs: list[Any]) -> Any:
    """Return the result of an operator of the namespace aten."""
    takes_tensors = "Tensor" in schema.partition("(")[2].partition("->")[0]
    if name in PLAIN and not takes_tensors:
        return PLAIN[name](*inputs)
    if name in OF_TENSORS and isinstance(inputs[0], torch.Tensor):
        return OF_TENSORS[name](*inputs)
    if name in NUMBERS and all(isinstance(each, _NUMBER) for each in inputs[:2]):
        return _of_numbers(name, inputs)
    parsed = torch._C.parse_schema(schema)
    arguments = parsed.arguments
    values = [_value(argument, each) for argument, each in zip(arguments, inputs, strict=True)]
    if name in TRACED:
        return TRACED[name](*values)
    if name == "to":
        dtype = next((each for each in values[1:] if isinstance(each, torch.dtype)), None)
        like = next((each.dtype for each in values[1:] if isinstance(each, torch.Tensor)), dtype)
        return values[0] if like is None else values[0].to(like)
    call = getattr(getattr(torch.ops.aten, name, None), parsed.overload_name or "default", None)
    if call is None:
        raise ScriptError(f"the operator aten::{name} of TorchScript is not known")
    ordered = [each for argument, each in zip(arguments, values, strict=True) if not argument.kwarg_only]
    named = {argument.name: each for argument, each in zip(arguments, values, strict=True) if argument.kwarg_only}
    return call(*ordered, **named)


def _of_numbers(name: str, inputs: list[Any]) -> Any:
    """Return the result for numbers of which TorchScript has made tensors, as tracing does with sizes."""
    first, *others = inputs
    if name == "div" and len(inputs) == 3:
        found = first // others[0] if others[1] == "floor" else NUMBERS["__round_to_zero_floordiv"](first, others[0])
        return found if others[1] is not None else first / others[0]
    if name in {"add", "sub"} and len(inputs) == 3:
        others = [others[0] * others[1]]
    return NUMBERS[name](first, *others)


def _value(argument: Any, value: Any) -> Any:
    """Return an argument as Python has it: TorchScript writes dtypes, layouts and formats as numbers."""
    kind = str(argument.real_type).removeprefix("Optional[").removesuffix("]")
    if argument.name == "dtype" and kind == "int":
        kind = "ScalarType"
    if kind in _ENUMS and isinstance(value, int):
        return _ENUMS[kind][value]
    return torch.device("cpu") if kind == "Device" and value is not None else value


_NUMBER = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
_MISSING: Any = object()


def _place(root: nn.Module, path: str) -> nn.Module:
    """Return the module that holds the attribute of a path, made where it is not there yet."""
    module = root
    for part in path.split(".")[:-1]:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def _attribute(root: Any, path: str, default: Any = _MISSING) -> Any:
    found = root
    for part in path.split("."):
        found = getattr(found, part) if default is _MISSING else getattr(found, part, default)
    return found
