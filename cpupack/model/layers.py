"""Which layer of a user's module was running when it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Whereabouts:
    """The stack of modules whose ``forward`` has begun and not ended."""

    def __init__(self, module: nn.Module) -> None:
        self._names = {id(each): name for name, each in module.named_modules()}
        self._stack: list[nn.Module] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        self._stack.append(module)

    def leave(self, module: nn.Module, *_: Any) -> None:
        # The modules above it on the stack have failed, and the user's code has caught the exception.
        while self._stack and self._stack.pop() is not module:
            pass

    @property
    def layer(self) -> str:
        """The innermost running module as ``name (Class)``. Empty in the model's own forward and outside the model."""
        named = [each for each in self._stack if self._names.get(id(each))]
        return f"{self._names[id(named[-1])]} ({type(named[-1]).__name__})" if named else ""

    @property
    def module(self) -> nn.Module | None:
        """The innermost running module, None outside the model."""
        return self._stack[-1] if self._stack else None


@contextmanager
def watched(module: nn.Module) -> Iterator[Whereabouts]:
    """Run a model inside this context. After an exception ``layer`` says where it was raised.

    >>> with watched(model) as at:
    ...     try:
    ...         model(x)
    ...     except RuntimeError as error:
    ...         raise ModelError(describe_failure(error, at.layer))
    """
    at = Whereabouts(module)
    handles = [register_module_forward_pre_hook(at.enter), register_module_forward_hook(at.leave)]
    try:
        yield at
    finally:
        for handle in handles:
            handle.remove()
