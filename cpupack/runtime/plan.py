"""Decides threads, instances and batch size on the host at hand, and says why. No torch is imported here.

Each number comes from the first of these that has it: the caller's explicit argument; for threads, the user's
own ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` (never overwritten); the host-tuned table; the build's tuned
plan, when it was made on an equal CPU; the cores this process may use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import host, tuned
from .host import HostProbe
from .manifest import Manifest

DEFAULT_BATCH_SIZE = 8
"""Batch size for throughput where nothing was tuned: past it the INT8 models measured here gain little."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""In the order torch reads them (aten/src/ATen/ParallelCommon.cpp)."""


@dataclass(frozen=True)
class Plan:
    """How to run: ``instances`` of the model with ``threads`` each, fed ``batch_size`` samples a call.

    ``reasons`` has one sentence for each of the three. ``source`` is ``host-tuned``, ``build-tuned`` or
    ``host``.
    """

    threads: int
    instances: int
    batch_size: int
    reasons: dict[str, str]
    source: str


@dataclass(frozen=True)
class _Base:
    """A complete setting before the caller's wishes are laid over it."""

    threads: int
    instances: int
    batch_size: int
    source: str
    why: dict[str, str]


def decide(
    manifest: Manifest,
    *,
    threads: int | None = None,
    instances: int | None = None,
    batch_size: int | None = None,
    objective: str | None = None,
    environ: Mapping[str, str] = os.environ,
    probe: HostProbe | None = None,
) -> Plan:
    """Return the plan for this host. ``objective`` None means what the user, else the build, tuned for.

    Raises ValueError for an explicit number below 1.
    """
    for name, value in (("threads", threads), ("instances", instances), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it starts at 1")
    probe = probe or HostProbe()
    budget = probe.budget()
    base = _base(manifest, objective, budget, environ, probe)
    variable, user_threads = _user_threads(environ)
    reasons = dict(base.why)

    chosen_threads, chosen_instances = base.threads, base.instances
    if threads is not None:
        chosen_threads, reasons["threads"] = threads, "given explicitly."
    elif user_threads is not None:
        chosen_threads, reasons["threads"] = user_threads, f"{variable} is set to {environ[variable]}."
    elif variable:
        reasons["threads"] += f" {variable}={environ[variable]!r} is not a number from 1 and was ignored."
    if instances is not None:
        chosen_instances, reasons["instances"] = instances, "given explicitly."

    # A wish for one of the two leaves the other to fill the usable cores, unless it is what was tuned anyway.
    if instances is None and chosen_threads != base.threads and base.instances > 1:
        chosen_instances = max(1, budget.usable // chosen_threads)
        reasons["instances"] = f"{_cores(budget.usable)} / {chosen_threads} threads each."
    elif threads is None and user_threads is None and chosen_instances != base.instances:
        chosen_threads = max(1, budget.usable // chosen_instances)
        reasons["threads"] = f"{_cores(budget.usable)} / {_count(chosen_instances, 'instance')}."

    if batch_size is not None:
        reasons["batch_size"] = "given explicitly."
    wanted = chosen_threads * chosen_instances
    if wanted > budget.usable:
        reasons["threads"] += (
            f" {chosen_threads} x {chosen_instances} threads are more than {_cores(budget.usable)} "
            f"({budget.reason}), so they will share."
        )
    return Plan(
        chosen_threads,
        chosen_instances,
        base.batch_size if batch_size is None else batch_size,
        reasons,
        base.source,
    )


def _base(
    manifest: Manifest,
    wanted: str | None,
    budget: host.CpuBudget,
    environ: Mapping[str, str],
    probe: HostProbe,
) -> _Base:
    objective = wanted or manifest.plan.objective
    here = host.fingerprint(probe)
    refused: list[str] = []

    path = tuned.table_path(manifest, environ)
    table = tuned.read_table(path, rerun=f"{manifest.name} tune")
    if table is not None:
        problem = _mismatch(table.fingerprint, here, table.cores_usable, table.threads * table.instances, budget.usable)
        if table.model != tuned.model_digest(manifest):
            problem = "it is of another build of this package"
        if wanted is not None and table.objective != wanted:
            problem = f"it is tuned for {table.objective}, not {objective}"
        if problem is None:
            text = f"tuned on this host for {table.objective} ({path})."
            return _Base(table.threads, table.instances, table.batch_size, "host-tuned", _same(text))
        refused.append(f"The host-tuned table was not used: {problem}.")

    plan = manifest.plan
    if plan.tuned and plan.threads and plan.instances and plan.batch_size:
        built_on = manifest.build.get("host") or {}
        cores = built_on.get("cores_usable")
        problem = _mismatch(built_on, here, cores, plan.threads * plan.instances, budget.usable)
        if plan.objective != objective:
            problem = f"it is tuned for {plan.objective}, not {objective}"
        if problem is None:
            text = f"tuned for {plan.objective} at build time on an equal CPU."
            return _Base(plan.threads, plan.instances, plan.batch_size, "build-tuned", _same(text))
        refused.append(f"The build's tuned plan was not used: {problem}.")

    derived = _derived(manifest, objective, budget)
    # Said once: the threads are what the tables would have changed first.
    derived.why["threads"] = " ".join([derived.why["threads"], *refused])
    return derived


def _derived(manifest: Manifest, objective: str, budget: host.CpuBudget) -> _Base:
    cores = f"{_cores(budget.usable)} ({budget.reason})"
    if objective == "latency":
        why = {
            "threads": f"latency: every core for one request, {cores}.",
            "instances": "latency: one request at a time.",
            "batch_size": "latency: one sample a request.",
        }
        return _Base(budget.usable, 1, 1, "host", why)
    why = {
        "threads": "throughput: one thread an instance wastes none on synchronization.",
        "instances": f"throughput: one a core, {cores}.",
    }
    built = manifest.plan.batch_size if manifest.plan.objective == objective else None
    why["batch_size"] = "the build's tuned batch size." if built else "the default for throughput; nothing was tuned."
    return _Base(1, budget.usable, built or DEFAULT_BATCH_SIZE, "host", why)


def _mismatch(
    made_on: Mapping[str, Any], here: Mapping[str, Any], cores: int | None, wanted: int, usable: int
) -> str | None:
    """Return why a table does not hold here, None when it does."""
    for key, value in here.items():
        if made_on.get(key) != value:
            return f"it was made with {key} = {made_on.get(key)!r}, and here it is {value!r}"
    if cores is not None and cores != usable:
        return f"it was made with {_cores(cores)}, and here there {'is' if usable == 1 else 'are'} {usable}"
    if wanted > usable:
        return f"it wants {wanted} threads, and here there {'is' if usable == 1 else 'are'} {_cores(usable)}"
    return None


def user_threads(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the thread count the user's environment asks for, None when it asks for none."""
    return _user_threads(environ)[1]


def _user_threads(environ: Mapping[str, str]) -> tuple[str, int | None]:
    """Return (variable, its first number). The number is None where the text is not one."""
    for variable in _THREAD_VARIABLES:
        text = environ.get(variable, "").strip()
        if text:
            first = text.split(",")[0].strip()  # OpenMP allows one number for each nesting level
            return variable, int(first) if first.isdecimal() and int(first) >= 1 else None
    return "", None


def _same(text: str) -> dict[str, str]:
    return {"threads": text, "instances": text, "batch_size": text}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _cores(number: int) -> str:
    return _count(number, "usable core")
