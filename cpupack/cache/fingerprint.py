"""The SHA-256 of a module as it is in memory: its tensors, attributes, and the code of its classes and functions."""

from __future__ import annotations

import hashlib
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpupack.lock.facts import target_name

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range)
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format, torch.device, torch.Size)
_BY_NAME = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
_WEAK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
_SCRIPTS = "torch.jit."
"""Where the classes of scripted modules are. Their code is not in Python's objects."""
_DEEPEST = 200


class UnknownError(Exception):
    """An object that no hash can stand for, such as an open file or a lock."""


class Fingerprint:
    """Takes objects in order; ``hexdigest`` is then the hash of all. ``modules`` are those that the code came from.

    Equal objects that were made in the same way have equal hashes. Raises UnknownError for what it cannot hash.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._same: list[Any] = []  # so that no id is used again
        self._depth = 0

    def add(self, value: Any) -> Fingerprint:
        """Add an object with all that it holds."""
        try:
            self._depth += 1
            if self._depth > _DEEPEST:
                raise UnknownError("objects inside objects without end")
            self._add(value)
        finally:
            self._depth -= 1
        return self

    def hexdigest(self) -> str:
        """Return the hash of everything so far."""
        return self._hash.hexdigest()

    def _word(self, *words: object) -> None:
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(raw)}:".encode() + raw)

    def _add(self, value: Any) -> None:
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            self._word(type(value).__name__, repr(value) if not isinstance(value, bytes) else value)
            return
        if isinstance(value, _OF_TORCH):
            self._word("torch", value)
            return
        if id(value) in self._seen:
            self._word("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._same.append(value)
        self._once(value)

    def _once(self, value: Any) -> None:
        for kinds, take in self._TAKERS:
            if isinstance(value, kinds):
                take(self, value)
                return
        if type(value).__module__ in {"torch._ops", "builtins"} and hasattr(value, "__name__"):
            self._word("name", type(value).__name__, value)
            return
        self._reduced(value)

    def _tensor(self, value: torch.Tensor) -> None:
        kind = type(value)
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UnknownError(f"a tensor of {value.dtype}, {value.layout}, on {value.device}")
        plain = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = hashlib.sha256(plain.view(torch.uint8).numpy().data).digest() if plain.numel() else b""
        self._word("tensor", kind.__qualname__, value.dtype, tuple(value.shape), value.requires_grad, data)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        self._word("array", value.dtype.str, value.shape)
        if value.dtype.hasobject:
            self.add(value.tolist())
        else:
            self._word(hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data).digest())

    def _sequence(self, value: Any) -> None:
        self._word(type(value).__qualname__, len(value))
        for each in list(value):
            self.add(each)

    def _set(self, value: Any) -> None:
        self._word(type(value).__qualname__, *sorted(map(repr, value)))  # no order of its own

    def _dict(self, value: dict[Any, Any]) -> None:
        self._word(type(value).__qualname__, len(value))
        for key, each in list(value.items()):
            self.add(key)
            self.add(each)
        if type(value) is not dict and getattr(value, "__dict__", None):
            self.add(dict(vars(value)))

    def _graph(self, value: fx.GraphModule) -> None:
        self._word("graph", value.code)
        for node in value.graph.nodes:
            self._word(node.op, node.name, target_name(node.target), node.args, node.kwargs)
        held = {key: each for key, each in vars(value).items() if key not in {"_graph", "shape_env", "meta"}}
        self.add(held)

    def _module(self, value: nn.Module) -> None:
        if type(value).__module__.startswith(_SCRIPTS):
            raise UnknownError("TorchScript")
        self._word("module")
        self.add(type(value))
        self.add(dict(vars(value)))

    def _class(self, value: type) -> None:
        self._word("class", value.__module__, value.__qualname__)
        self.modules.add(value.__module__)
        if value.__module__.partition(".")[0] in {"torch", "builtins"}:
            return
        for base in value.__bases__:
            self.add(base)
        for name, each in vars(value).items():
            inner = each.__func__ if isinstance(each, staticmethod | classmethod) else each
            parts = (inner.fget, inner.fset) if isinstance(inner, property) else (inner,)
            hidden = name.startswith("__") and not isinstance(inner, types.FunctionType)
            for part in parts:
                if not hidden and isinstance(part, (types.FunctionType, *_PLAIN)):
                    self._word(name)
                    self.add(part)

    def _function(self, value: types.FunctionType) -> None:
        self._word("function", value.__module__, value.__qualname__)
        self.modules.add(str(value.__module__))
        if str(value.__module__).partition(".")[0] == "torch":
            return
        self.add(value.__code__)
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self._word("empty cell")

    def _code(self, value: types.CodeType) -> None:
        self._word("code", value.co_code, value.co_names, value.co_varnames, value.co_flags)
        self.add(value.co_consts)

    def _method(self, value: types.MethodType) -> None:
        self._word("method")
        self.add(value.__func__)
        self.add(value.__self__)

    def _library(self, value: types.ModuleType) -> None:
        self._word("library", value.__name__)
        self.modules.add(value.__name__)

    def _weak(self, value: Any) -> None:
        self._word("weak")  # what it points to is held by something else

    def _named(self, value: Any) -> None:
        self._word("builtin", getattr(value, "__module__", ""), value.__qualname__)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.add(owner)

    def _reduced(self, value: Any) -> None:
        """Add any other object by what pickle would keep of it. Nothing is ever loaded from that."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise UnknownError(f"a {type(value).__module__}.{type(value).__qualname__}") from error
        self._word("object")
        self.add(type(value))
        if isinstance(reduced, str):
            self._word(reduced)
            return
        make, arguments, *rest = reduced
        self.add(make)
        self.add(arguments)
        for each in rest:
            self.add(list(each) if hasattr(each, "__next__") else each)

    _TAKERS: tuple[tuple[Any, Callable[[Any, Any], None]], ...] = (
        (torch.Tensor, _tensor),
        (np.ndarray, _array),
        (fx.GraphModule, _graph),
        (nn.Module, _module),
        (type, _class),
        (types.FunctionType, _function),
        (types.CodeType, _code),
        (types.MethodType, _method),
        (types.ModuleType, _library),
        (_WEAK, _weak),
        (_BY_NAME, _named),
        (dict, _dict),
        ((list, tuple), _sequence),
        ((set, frozenset), _set),
    )
