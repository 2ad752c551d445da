"""Parts of a model that are TorchScript (``torch.jit.script`` of a block), run as Python: torch.export follows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from cpupack.errors import ModelError
from cpupack.model.fit import listed
from cpupack.model.leaves import leaves_of
from cpupack.model.scripted import Scripted, as_module, is_alike
from cpupack.model.user_code import first_line
from cpupack.progress import Progress

_INSTEAD = "return the Python module that it was scripted or traced from"


def with_parts_in_python(module: nn.Module, source: str, progress: Progress) -> nn.Module:
    """Return the model with Python in place of the outermost modules in TorchScript, with the same weights and names.

    Raises ModelError for one that cannot become Python; at the first call for one that then answers otherwise.
    """
    made: dict[int, nn.Module] = {}
    names: list[str] = []
    if isinstance(module, torch.jit.ScriptModule):
        module = _in_python(module, "the model itself", source)
        names.append("the model itself")
    for path, parent in list(module.named_modules()):
        if isinstance(parent, torch.jit.ScriptModule):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.jit.ScriptModule):
                where = f"{path}.{name}".lstrip(".")
                if id(child) not in made:
                    made[id(child)] = _in_python(child, where, source)
                    names.append(where)
                parent.add_module(name, made[id(child)])
    if names:
        progress.note(f"run as Python in place of TorchScript: {listed(names)}")
    return module


def _in_python(script: torch.jit.ScriptModule, where: str, source: str) -> nn.Module:
    what = f"[model] {source}: {where} is a TorchScript module"
    try:
        module = as_module(script.eval())
    except Exception as error:  # torch raises errors of many classes for operators
        raise _unknown(what, error) from error

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        try:
            name = _differing(script, module, args, kwargs)
        except Exception as error:  # as above, for operators that are looked up when they run
            raise _unknown(what, error) from error
        if name is not None:
            raise ModelError(f"{what}, of which the graph answers otherwise: its {name} differs", hint=_INSTEAD)

    handle = module.register_forward_pre_hook(check, with_kwargs=True)
    return module


def _unknown(what: str, error: Exception) -> ModelError:
    return ModelError(f"{what}, which cannot be turned into a graph: {first_line(error)}", hint=_INSTEAD)


def _differing(
    script: torch.jit.ScriptModule, module: Scripted, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Return the output in which a module differs from its program on noise, None where there is none or it is random.

    The trial run of a model is on zeros, of which both may make zeros by chance.
    """
    generator = torch.Generator().manual_seed(0)

    def noisy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return value.clone()
        return value + torch.randn(value.shape, generator=generator, dtype=value.dtype)

    def fresh() -> Any:  # a program may write into what it is given
        return pytree.tree_map(lambda each: each.clone() if isinstance(each, torch.Tensor) else each, given)

    given = pytree.tree_map(noisy, (args, kwargs))
    with torch.no_grad():
        try:
            wanted, again = (script(*ordered, **named) for ordered, named in (fresh(), fresh()))
        except RuntimeError:  # values that it does not take: said where the model runs
            return None
        module.name_fields(wanted)
        ordered, named = fresh()
        found = leaves_of(module.run(module.bound(*ordered, **named))).tensors
    expected, repeated = leaves_of(wanted).tensors, leaves_of(again).tensors
    if expected.keys() != found.keys():
        return f"number of outputs ({len(found)} for {len(expected)})"
    steady = (name for name in expected if is_alike(expected[name], repeated[name]))
    return next((name for name in steady if not is_alike(expected[name], found[name])), None)
