"""The arguments of ``NAME.ray:app``: what they are, and which values are possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..bench.options import require_positive
from ..errors import InputError


@dataclass(frozen=True)
class AppOptions:
    """How Ray Serve is to run the model. None leaves a number to the plan.

    ``max_latency_ms`` is the promise, as of ``NAME serve``. ``cpus`` are those of a replica. ``replicas`` is a fixed
    number; without it there are ``min_replicas`` to ``max_replicas``, as the load is. With ``min_replicas`` 0 there is
    none without a load, and the first requests wait until one has started. ``fronts`` are the processes that hand
    requests to replicas, and to another one where a replica dies. Raises InputError.
    """

    max_latency_ms: float | None = None
    cpus: int | None = None
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    replicas: int | None = None
    min_replicas: int = 1
    max_replicas: int = 10
    fronts: int = 2
    max_body_mb: int = 32
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "min_replicas":
                require_positive(field.name, getattr(self, field.name))
        if self.min_replicas < 0:
            raise InputError(f"min_replicas {self.min_replicas}: not a number from 0")
        if self.replicas is not None and (self.min_replicas, self.max_replicas) != (1, 10):
            raise InputError("replicas is a fixed number; leave out min_replicas and max_replicas, or leave it out")
        if self.min_replicas > self.max_replicas:
            raise InputError(f"min_replicas is {self.min_replicas}, above max_replicas, {self.max_replicas}")
        if self.cpus is not None and (self.threads or 1) * (self.instances or 1) > self.cpus:
            raise InputError(
                f"{self.threads or 1} threads x {self.instances or 1} instances need more than the {self.cpus} cpus of "
                "a replica"
            )


def read_arguments(arguments: Mapping[str, Any]) -> AppOptions:
    """Return the options that ``serve run NAME.ray:app KEY=VALUE`` or a config file gives. Raises InputError."""
    kinds = get_type_hints(AppOptions)
    if unknown := sorted(set(arguments) - set(kinds)):
        raise InputError(f"unknown argument {', '.join(unknown)}; there are {', '.join(kinds)}")
    return AppOptions(**{name: _number(name, value, kinds[name]) for name, value in arguments.items()})


def _number(name: str, value: Any, kind: Any) -> Any:
    whole = kind in (int, int | None)
    error = InputError(f"{name} is {value!r}; expected a {'whole ' * whole}number")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise error
    try:
        return int(value) if whole and isinstance(value, str) else _whole(value) if whole else float(value)
    except (ValueError, OverflowError):
        raise error from None


def _whole(value: Any) -> int:
    if value != int(value):
        raise ValueError
    return int(value)
