"""The CPUs that a cluster's scheduler has given this process without setting any limit of the kernel's.

Ray counts CPUs and keeps no process to its share: an actor of two CPUs sees all CPUs of the host. It also sets
``OMP_NUM_THREADS`` in its workers, which so is no wish of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

RAY = "Ray"


@dataclass(frozen=True)
class Grant:
    """``cpus`` of this host are for this process, says ``giver``, the name of the scheduler."""

    cpus: int
    giver: str

    @property
    def text(self) -> str:
        """The clause for ``CpuBudget.reason``."""
        return f"{self.giver} gives this process {self.cpus}"

    def set_by_giver(self, variable: str, environ: Mapping[str, str]) -> bool:
        """Return whether the scheduler, and not the user, set a variable that holds a number of threads.

        Ray sets ``OMP_NUM_THREADS`` to the CPUs of the worker where nobody has set it. So another number is the user's.
        """
        return variable == "OMP_NUM_THREADS" and environ.get(variable, "").strip() == str(self.cpus)


def find() -> Grant | None:
    """Return what this process has been given, None where it is no worker of a scheduler."""
    return _of_ray()


def _of_ray() -> Grant | None:
    ray = sys.modules.get("ray")  # a worker of Ray has imported it
    if ray is None or not getattr(ray, "is_initialized", bool)():
        return None
    try:
        resources = ray.get_runtime_context().get_assigned_resources()
    except (AssertionError, AttributeError, RuntimeError):  # a driver, or a client of a cluster, which has no share
        return None
    # An actor without num_cpus has no CPU of its own while it runs; Ray then means one thread, too.
    return Grant(max(1, int(resources.get("CPU", 0))), RAY)
