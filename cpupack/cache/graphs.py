"""A canonical graph as JSON and tensors, and back. Only modules of the vocabulary are made, and none is constructed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from cpupack.cache.values import NotStorableError, decode, decode_function, encode, encode_function
from cpupack.graph.recurrent import LAYERS
from cpupack.graph.vocabulary import MODULES

_KNOWN: tuple[type[nn.Module], ...] = (nn.Module, *MODULES, *LAYERS)
_CLASSES = {f"{each.__module__}.{each.__qualname__}": each for each in _KNOWN}
_OWN = frozenset(vars(nn.Module()))
"""What every module has of torch's: tensors and modules, which have their own place here, and hooks."""
_WEAK = "_flat_weight_refs"
"""Of recurrent layers: weak references to ``_flat_weights``."""
_PASSING_META = {"val", "tensor_meta", "kept"}
"""Keys of ``meta`` that only the capture reads."""


def pack_graph(graph: fx.GraphModule) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a graph as JSON and tensors. Raises NotStorableError where it has something that cannot be kept."""
    tensors = _Tensors()
    modules: dict[int, str] = {}
    root = {
        "modules": {name: _packed(each, name, tensors, modules) for name, each in graph._modules.items()},
        "buffers": _buffers(graph, tensors),
    }
    if any(True for _ in graph.named_parameters(recurse=False)):
        raise NotStorableError("a parameter of the graph itself")
    return {"root": root, "nodes": [_node(each) for each in graph.graph.nodes]}, tensors.by_name


def unpack_graph(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """Return the graph of what ``pack_graph`` gave. Raises ValueError or KeyError for something else."""
    root = nn.Module()
    found = _Found(tensors)
    for name, raw in facts["root"]["modules"].items():
        root.add_module(name, _module(raw, name, found))
    for name, raw in facts["root"]["buffers"].items():
        root.register_buffer(name, found.tensor(raw["tensor"]), persistent=raw["persistent"])
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for raw in facts["nodes"]:
        target = decode_function(raw["target"]) if raw["op"] == "call_function" else raw["target"]
        args, kwargs = decode(raw["args"], nodes.__getitem__), decode(raw["kwargs"], nodes.__getitem__)
        node = graph.create_node(raw["op"], target, args, kwargs, name=raw["name"])
        if node.name != raw["name"]:
            raise ValueError(f"the name {raw['name']} is not free")
        node.meta = {key: decode(value, nodes.__getitem__) for key, value in raw["meta"].items()}
        nodes[node.name] = node
    return fx.GraphModule(root, graph).eval()


class _Tensors:
    """Names the tensors of a graph. One that is in several places is kept once."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}
        self._same: list[torch.Tensor] = []  # so that no id is used again

    def name(self, tensor: torch.Tensor) -> str:
        if id(tensor) not in self._names:
            if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided:
                raise NotStorableError(f"a tensor of type {type(tensor).__name__}, {tensor.layout}")
            if tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
                raise NotStorableError(f"a tensor of {tensor.dtype} on {tensor.device}")
            plain = tensor.detach()
            dense = plain.is_contiguous() or not _is_dense(plain)
            name = f"{len(self.by_name)}{'' if dense else ' ' + ','.join(map(str, plain.stride()))}"
            self._names[id(tensor)] = name
            self._same.append(tensor)
            self.by_name[name] = plain.contiguous().clone()
        return self._names[id(tensor)]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


class _Found:
    """Finds tensors and modules while a graph is made."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._laid: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.modules: dict[str, nn.Module] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor with the strides that it had."""
        if name not in self._laid:
            plain, strides = self._tensors[name], name.partition(" ")[2]
            if strides:
                laid = torch.empty_strided(plain.shape, tuple(map(int, strides.split(","))), dtype=plain.dtype)
                plain = laid.copy_(plain)
            self._laid[name] = plain
        return self._laid[name]

    def parameter(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(self.tensor(name), requires_grad=False)
        return self._parameters[name]


def _packed(module: nn.Module | None, path: str, tensors: _Tensors, modules: dict[int, str]) -> dict[str, Any] | None:
    if module is None:
        return None
    if id(module) in modules:
        return {"same": modules[id(module)]}
    modules[id(module)] = path
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if _CLASSES.get(name) is not type(module):
        raise NotStorableError(f"a module of the class {name}")
    if any(vars(module)[hooks] for hooks in _OWN if hooks.endswith("hooks")):
        raise NotStorableError(f"hooks on {path}")

    def reference(value: Any) -> str | None:
        return tensors.name(value) if isinstance(value, nn.Parameter) else None

    own = {key: value for key, value in vars(module).items() if key not in _OWN and key != _WEAK}
    return {
        "class": name,
        "training": module.training,
        "attributes": {key: encode(value, reference) for key, value in own.items()},
        "parameters": {
            key: None if value is None else tensors.name(value) for key, value in module._parameters.items()
        },
        "buffers": _buffers(module, tensors),
        "modules": {key: _packed(each, f"{path}.{key}", tensors, modules) for key, each in module._modules.items()},
    }


def _buffers(module: nn.Module, tensors: _Tensors) -> dict[str, Any]:
    return {
        key: None
        if value is None
        else {"tensor": tensors.name(value), "persistent": key not in module._non_persistent_buffers_set}
        for key, value in module._buffers.items()
    }


def _module(raw: Mapping[str, Any] | None, path: str, found: _Found) -> nn.Module | None:
    if raw is None:
        return None
    if "same" in raw:
        return found.modules[raw["same"]]
    kind = _CLASSES.get(raw["class"])
    if kind is None:
        raise ValueError(f"no module of a graph: {raw['class']}")
    # No constructor: it would draw random weights first.
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    found.modules[path] = module
    for key, name in raw["parameters"].items():
        module.register_parameter(key, None if name is None else found.parameter(name))
    for key, buffer in raw["buffers"].items():
        value = None if buffer is None else found.tensor(buffer["tensor"])
        module.register_buffer(key, value, persistent=buffer is None or buffer["persistent"])
    for key, inner in raw["modules"].items():
        module.add_module(key, _module(inner, f"{path}.{key}", found))
    for key, value in raw["attributes"].items():
        if key in _OWN:
            raise ValueError(f"no attribute of a module: {key}")
        vars(module)[key] = decode(value, found.parameter)
    module.training = raw["training"]
    if "_flat_weights" in raw["attributes"]:
        weights = vars(module)["_flat_weights"]
        vars(module)[_WEAK] = [None if each is None else weakref.ref(each) for each in weights]
    return module


def _node(node: fx.Node) -> dict[str, Any]:
    def reference(value: Any) -> str | None:
        return value.name if isinstance(value, fx.Node) else None

    kept = {key: value for key, value in node.meta.items() if key not in _PASSING_META}
    return {
        "op": node.op,
        "name": node.name,
        "target": encode_function(node.target) if node.op == "call_function" else str(node.target),
        "args": encode(node.args, reference),
        "kwargs": encode(node.kwargs, reference),
        "meta": {key: encode(value, reference) for key, value in kept.items()},
    }
