"""How many actors run, and how each of them uses its CPUs, from the plan of every node. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import HostError


@dataclass(frozen=True)
class NodeFacts:
    """One node: the CPUs that Ray has there, the plan of its package for them, and why it cannot work (None: it can).

    ``cpus`` are logical ones, ``threads`` x ``instances`` use each core once: on hosts with SMT they are fewer.
    """

    node_id: str
    host: str
    cpus: int
    threads: int = 1
    instances: int = 1
    batch_size: int = 1
    digest: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Setting:
    """How one actor runs the model."""

    threads: int
    instances: int
    batch_size: int


@dataclass(frozen=True)
class Pool:
    """``actors`` actors of ``cpus`` CPUs each. ``settings`` are those of an actor on each node, by the node's id."""

    actors: int
    cpus: int
    settings: dict[str, Setting]


def make_pool(
    nodes: Sequence[NodeFacts],
    *,
    threads: int | None = None,
    instances: int | None = None,
    batch_size: int | None = None,
) -> Pool:
    """Return the largest actors that leave no CPU of any node idle: all of Ray Data's pool have one size.

    That is one actor a node where all nodes are alike, and a part of the larger nodes where they are not. Numbers that
    are given decide: an actor then has ``threads`` x ``instances`` CPUs. Raises HostError where no actor fits.
    """
    if threads is not None or instances is not None:
        cpus = (threads or 1) * (instances or 1)
    else:
        cpus = math.gcd(*(node.cpus for node in nodes))
    actors = sum(node.cpus // cpus for node in nodes)
    if not actors:
        largest = max(node.cpus for node in nodes)
        raise HostError(f"an actor of {cpus} CPUs fits on no node; the largest one has {largest}")
    settings = {}
    for node in nodes:
        share = max(1, cpus * node.threads * node.instances // node.cpus)
        own = threads or min(node.threads, share)
        settings[node.node_id] = Setting(own, instances or max(1, share // own), batch_size or node.batch_size)
    return Pool(actors, cpus, settings)
