"""Checks what a factory returned: unwraps and converts it to an FP32 module on the CPU, or refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from cpupack.errors import ModelError
from cpupack.model.fit import listed
from cpupack.model.script_parts import with_parts_in_python
from cpupack.progress import Progress

_WRAPPERS = {
    "OptimizedModule": ("_orig_mod", "torch.compile"),
    "DataParallel": ("module", "DataParallel"),
    "DistributedDataParallel": ("module", "DistributedDataParallel"),
    "AveragedModel": ("module", "AveragedModel"),
}
"""torch's classes that wrap a user's module: the class, its attribute with the module, and its name in notes."""
_QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.qat",
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
)
_FLOAT_STILL = frozenset({"FloatFunctional", "FXFloatFunctional"})
"""Classes of torch's quantization that compute in FP32. Models with their own stubs add and concatenate with them."""


def accepted(made: Any, source: str, progress: Progress) -> nn.Module:
    """Return the module to build from what a factory made. Notes say what was changed.

    Wrappers of torch.compile, DataParallel and SWA are removed, and parts in TorchScript become Python. Weights are
    moved to the CPU, and those in half or double precision become FP32. Raises ModelError for anything that is not a
    module, is TorchScript that cannot become Python, is already quantized, or has weights without values.
    """
    if isinstance(made, type) and issubclass(made, nn.Module):
        raise ModelError(
            f"[model] {source} returned the class {made.__name__}, not an instance of it",
            hint=f"name the class itself as the factory, or return {made.__name__}(...)",
        )
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"[model] {source} returned {type(made).__name__}, not a torch.nn.Module",
            hint="the factory must return only the model, in FP32",
        )
    for each in made.modules():  # an exported program has no mode, and refuses to change it
        if isinstance(each, fx.GraphModule):
            for name in ("train", "eval"):
                each.__dict__.pop(name, None)
    module = with_parts_in_python(_unwrapped(made, progress), source, progress)
    _refuse_modules(module, source)
    _refuse_tensors(module, source)
    return _float32_on_cpu(module, progress)


def _unwrapped(module: nn.Module, progress: Progress) -> nn.Module:
    """Remove the wrappers of the model and of its parts. Modules get the names that they have without wrappers."""
    removed: set[str] = set()
    module = _inner(module, removed)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            inner = _inner(child, removed)
            if inner is not child:
                setattr(parent, name, inner)
        if getattr(parent, "_compiled_call_impl", None) is not None:  # Module.compile() works in place
            parent._compiled_call_impl = None
            removed.add("torch.compile")
    if removed:
        progress.note(
            f"the factory's module is wrapped by {' and '.join(sorted(removed))}: the module inside is packaged"
        )
    return module


def _inner(module: nn.Module, removed: set[str]) -> nn.Module:
    while type(module).__name__ in _WRAPPERS and type(module).__module__.startswith("torch."):
        attribute, name = _WRAPPERS[type(module).__name__]
        removed.add(name)
        module = getattr(module, attribute)
    return module


def _refuse_modules(module: nn.Module, source: str) -> None:
    for name, each in module.named_modules():
        where = name or "the model itself"
        kind = type(each).__module__
        if kind.startswith(_QUANTIZED) and type(each).__name__ not in _FLOAT_STILL:
            raise ModelError(
                f"[model] {source}: {where} ({type(each).__name__}) is already quantized or prepared for quantization",
                hint="return the FP32 model; cpupack quantizes it",
            )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _refuse_tensors(module: nn.Module, source: str) -> None:
    every = list(_tensors(module))
    if meta := [name for name, value in every if value.is_meta]:
        raise ModelError(
            f"[model] {source}: {listed(meta)} are on the meta device and have no values",
            hint="build the module on the CPU: leave out torch.device('meta')",
        )
    for name, value in every:
        lazy = is_lazy(value)
        if not lazy and (type(value.data) is not torch.Tensor or value.is_quantized):
            kind = "quantized" if value.is_quantized else f"of the class {type(value.data).__name__}"
            raise ModelError(
                f"[model] {source}: the weights {name} are {kind}, not plain numbers",
                hint="return the FP32 model with plain tensors; cpupack quantizes it",
            )
        if not lazy and value.layout != torch.strided:
            raise ModelError(
                f"[model] {source}: the weights {name} have the layout {value.layout}",
                hint="return dense tensors: tensor.to_dense()",
            )


def _float32_on_cpu(module: nn.Module, progress: Progress) -> nn.Module:
    every = list(_tensors(module))
    if devices := sorted({str(value.device) for _, value in every if value.device.type != "cpu"}):
        progress.note(f"weights are moved from {', '.join(devices)} to the CPU")
        module = module.cpu()
    if any(not is_lazy(value) and value.is_inference() for _, value in every):
        _replace_inference_tensors(module)
    others = sorted({str(value.dtype).removeprefix("torch.") for _, value in every if _is_other_type(value)})
    if others:
        progress.note(f"weights of {', '.join(others)} are converted to float32")
        module = module.float()
    return module


def _is_other_type(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float32


def _replace_inference_tensors(module: nn.Module) -> None:
    """Copy weights that were created in inference mode, because such tensors cannot be changed or fused."""
    copies: dict[int, torch.Tensor] = {}
    for each in module.modules():
        tables: list[dict[str, Any]] = [each._parameters, each._buffers]
        for table in tables:
            for name, value in table.items():
                if value is not None and not is_lazy(value) and value.is_inference():
                    if id(value) not in copies:
                        kept = value.detach().clone()
                        copies[id(value)] = nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept
                    table[name] = copies[id(value)]
