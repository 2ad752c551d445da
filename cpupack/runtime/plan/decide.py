"""Decides threads, instances and batch size on this host, and says why. Imports no torch.

Each number comes from the first of these that has it:

1. the caller's explicit argument;
2. for threads, the user's own ``OMP_NUM_THREADS``, else ``MKL_NUM_THREADS``; neither is ever overwritten. What Ray
   sets in its workers is not the user's: there the CPUs of the worker count (``host/granted.py``);
3. the host-tuned table, when it was made on this CPU with as many usable cores;
4. the build's tuned plan, on the same condition;
5. the cores this process may use.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..host import probe as host_probe
from ..host.probe import HostProbe
from ..host.topology import Topology, binding_variable, spread
from ..manifest import Manifest
from . import table as plan_table

DEFAULT_BATCH_SIZE = 8
"""Batch size for throughput where nothing was tuned. The INT8 models that were measured gain little beyond it."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""In the order torch reads them (aten/src/ATen/ParallelCommon.cpp)."""


@dataclass(frozen=True)
class Plan:
    """How to run: ``instances`` of the model with ``threads`` each, fed ``batch_size`` samples a call.

    ``cpus`` are the CPUs that each instance keeps to, None where the scheduler decides. ``reasons`` has a sentence
    for each of these four. ``source`` is ``host-tuned``, ``build-tuned`` or ``host``.
    """

    threads: int
    instances: int
    batch_size: int
    reasons: dict[str, str]
    source: str
    cpus: tuple[tuple[int, ...], ...] | None = None


def placement(plan: Plan, topology: Topology) -> tuple[frozenset[int], ...] | None:
    """Return the CPUs that each instance of ``plan`` should keep to, None where there is only one NUMA node.

    All threads of an instance stay on one node if it has room for them, and instances are spread over the nodes.
    """
    return spread(plan.threads, plan.instances, topology)


@dataclass(frozen=True)
class _Base:
    """A complete setting, before the numbers that the caller gave replace parts of it."""

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
    """Return the plan for this host. ``objective`` None means the one that the user tuned for, else the build's.

    Raises ValueError for an explicit number below 1.
    """
    for name, value in (("threads", threads), ("instances", instances), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it starts at 1")
    probe = probe or HostProbe()
    budget = probe.budget()
    topology = probe.topology()
    base = _base(manifest, objective, budget, topology, environ, probe)
    variable, user_threads = _user_threads(environ, budget)
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

    # If only one of the two is given, the other one fills the usable cores, unless the given one is the tuned value.
    if instances is None and chosen_threads != base.threads and base.instances > 1:
        chosen_instances = max(1, budget.usable // chosen_threads)
        reasons["instances"] = f"{_cores(budget.usable)} / {chosen_threads} threads each."
    elif threads is None and user_threads is None and chosen_instances != base.instances:
        chosen_threads = max(1, budget.usable // chosen_instances)
        reasons["threads"] = f"{_cores(budget.usable)} / {_count(chosen_instances, 'instance')}."

    if batch_size is not None:
        reasons["batch_size"] = "given explicitly."
    wanted = chosen_threads * chosen_instances
    if wanted > budget.most:
        reasons["threads"] += (
            f" {chosen_threads} x {chosen_instances} threads are more than {_cores(budget.usable)} "
            f"({budget.reason}), so they will share cores."
        )
    elif wanted > budget.usable:
        also = "SMT siblings are" if budget.fast is None else "slow cores are"
        reasons["threads"] += f" {wanted} threads on {_cores(budget.usable)}: {also} used too."
    decided = Plan(
        chosen_threads,
        chosen_instances,
        base.batch_size if batch_size is None else batch_size,
        reasons,
        base.source,
    )
    return _placed(decided, topology, budget.fast, environ)


def _placed(plan: Plan, topology: Topology, fast: frozenset[int] | None, environ: Mapping[str, str]) -> Plan:
    nodes = len(topology.nodes)
    if nodes == 1 and fast is not None:
        return _on_fast_cores(plan, fast, environ)
    if nodes == 1:
        return _with_cpus(plan, None, "left to the scheduler: one NUMA node.")
    if variable := binding_variable(environ):
        return _with_cpus(plan, None, f"left to OpenMP: {variable} is set to {environ[variable]}.")
    cpus = placement(plan, topology)
    if cpus is None or all(own == topology.cpus for own in cpus):
        return _with_cpus(plan, None, f"left to the scheduler: no NUMA node has {plan.threads} CPUs free.")
    used = sum(any(own == node.cpus for own in cpus) for node in topology.nodes)
    text = f"{nodes} NUMA nodes: the threads of an instance stay on one, {_count(plan.instances, 'instance')} on {used}"
    return _with_cpus(plan, cpus, f"{text}.")


def _on_fast_cores(plan: Plan, fast: frozenset[int], environ: Mapping[str, str]) -> Plan:
    """Keep the threads off the slow cores of an ARM host: one there makes all threads of its instance wait."""
    if variable := binding_variable(environ):
        return _with_cpus(plan, None, f"left to OpenMP: {variable} is set to {environ[variable]}.")
    if plan.threads * plan.instances > len(fast):
        return _with_cpus(plan, None, f"left to the scheduler: {_count(len(fast), 'fast core')} for more threads.")
    return _with_cpus(plan, (fast,) * plan.instances, "the fast cores, because the others would slow them down.")


def _with_cpus(plan: Plan, cpus: tuple[frozenset[int], ...] | None, why: str) -> Plan:
    lists = None if cpus is None else tuple(tuple(sorted(own)) for own in cpus)
    return dataclasses.replace(plan, cpus=lists, reasons={**plan.reasons, "cpus": why})


def _base(
    manifest: Manifest,
    wanted: str | None,
    budget: host_probe.CpuBudget,
    topology: Topology,
    environ: Mapping[str, str],
    probe: HostProbe,
) -> _Base:
    objective = wanted or manifest.plan.objective
    refused: list[str] = []

    found = plan_table.find_table(manifest, environ, probe)
    if (table := found.table) is not None:
        problem = found.problem or _too_many(table.wanted, budget)
        if wanted is not None and table.objective != wanted:
            problem = f"it is tuned for {table.objective}, not {objective}"
        if problem is None:
            when = f" on {table.tuned_at[:10]}" if table.tuned_at else ""
            text = f"tuned on this host for {table.objective}{when} ({found.path})."
            return _Base(table.threads, table.instances, table.batch_size, "host-tuned", _same(text))
        refused.append(f"The host-tuned table was not used: {problem}.")

    plan = manifest.plan
    if plan.tuned and plan.threads and plan.instances and plan.batch_size:
        built_on = manifest.build.get("host") or {}
        problem = plan_table.mismatch(built_on, built_on.get("cores_usable"), probe)
        problem = problem or _too_many(plan.threads * plan.instances, budget)
        if plan.objective != objective:
            problem = f"it is tuned for {plan.objective}, not {objective}"
        if problem is None:
            text = f"tuned for {plan.objective} at build time on an equal CPU."
            return _Base(plan.threads, plan.instances, plan.batch_size, "build-tuned", _same(text))
        refused.append(f"The build's tuned plan was not used: {problem}.")

    derived = _derived(manifest, objective, budget, topology)
    # Said once, with the threads, although the tables hold all three numbers.
    derived.why["threads"] = " ".join([derived.why["threads"], *refused])
    return derived


def _derived(manifest: Manifest, objective: str, budget: host_probe.CpuBudget, topology: Topology) -> _Base:
    cores = f"{_cores(budget.usable)} ({budget.reason})"
    if objective == "latency":
        largest = max(node.cores for node in topology.nodes)
        if largest < budget.usable:
            text = f"latency: the cores of one NUMA node for one request, {largest} of {cores}."
        else:
            text = f"latency: every core for one request, {cores}."
        why = {
            "threads": text,
            "instances": "latency: one request at a time.",
            "batch_size": "latency: one sample a request.",
        }
        return _Base(min(budget.usable, largest), 1, 1, "host", why)
    why = {
        "threads": "throughput: one thread an instance, so no time is lost to synchronization.",
        "instances": f"throughput: one a core, {cores}.",
    }
    built = manifest.plan.batch_size if manifest.plan.objective == objective else None
    why["batch_size"] = "the build's tuned batch size." if built else "the default for throughput; nothing was tuned."
    return _Base(1, budget.usable, built or DEFAULT_BATCH_SIZE, "host", why)


def _too_many(wanted: int, budget: host_probe.CpuBudget) -> str | None:
    """Return why a setting with ``wanted`` threads cannot be used, None when it can."""
    if wanted <= budget.most:
        return None
    return f"it wants {wanted} threads, and here there {'is' if budget.usable == 1 else 'are'} {_cores(budget.usable)}"


def user_threads(budget: host_probe.CpuBudget, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the thread count the user's environment asks for, None when it asks for none."""
    return _user_threads(environ, budget)[1]


def _user_threads(environ: Mapping[str, str], budget: host_probe.CpuBudget) -> tuple[str, int | None]:
    """Return (variable, its first number). The number is None where the text is not one."""
    for variable in _THREAD_VARIABLES:
        text = environ.get(variable, "").strip()
        if text and not (budget.grant is not None and budget.grant.set_by_giver(variable, environ)):
            first = text.split(",")[0].strip()  # OpenMP allows one number for each nesting level
            return variable, int(first) if first.isdecimal() and int(first) >= 1 else None
    return "", None


def _same(text: str) -> dict[str, str]:
    return {"threads": text, "instances": text, "batch_size": text}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _cores(number: int) -> str:
    return _count(number, "usable core")
