"""``[target]``, ``[tune]``, ``[bench]``: the CPUs to build for, and what is measured on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpupack.recipe.tables.base import PositiveFloat, PositiveInt, Seconds, Table
from cpupack.targets.engines import ArmEngine, X86Engine

Isa = Literal["avx2", "avx512", "avx512_vnni", "amx"]
ArmIsa = Literal["neon", "dotprod", "i8mm"]
Cpu = Literal["x86_64", "aarch64"]


class TargetX86(Table):
    """Engine and instruction set on x86-64."""

    engine: Literal["auto", X86Engine] = "auto"
    """``auto`` builds every engine that this CPU can run and keeps the fastest that passes the gates. ``native`` is
    cpupack's own engine; the others are torch's."""
    isa: Literal["auto"] | Isa = "auto"
    """The lowest instruction set on which the wheel must be correct. ``auto`` is ``avx512_vnni`` if this host has VNNI,
    else ``avx2``. A wheel for ``avx2`` is correct on all of them."""


class TargetArm(Table):
    """Engine and instruction set on 64-bit ARM."""

    engine: Literal["auto", ArmEngine] = "auto"
    """``auto`` builds ``native``, cpupack's own engine, which takes the fewest instructions, and ``qnnpack`` where
    ``native`` cannot run the model or fails a gate. An ARM host also times them and keeps the faster. ``qnnpack`` and
    ``onednn`` are torch's."""
    isa: Literal["auto"] | ArmIsa = "auto"
    """The lowest instruction set that the wheel asks for: the runner refuses a CPU without it. ``auto`` is ``neon``,
    which every 64-bit ARM CPU has. Each CPU uses the highest set that it has, and the results are equal on all."""


class Target(Table):
    """The CPUs to build for."""

    cpu: Annotated[list[Cpu], Field(min_length=1)] = ["x86_64"]
    """One wheel is built for each entry."""
    x86_64: TargetX86 = Field(default_factory=TargetX86)
    aarch64: TargetArm = Field(default_factory=TargetArm)


class Tune(Table):
    """The search for threads, instances and batch size."""

    objective: Literal["throughput", "latency"] = "throughput"
    """``throughput`` maximizes samples per second. ``latency`` minimizes the p99 latency of one request."""
    max_latency_ms: PositiveFloat | None = None
    """Settings with a p99 latency above this are not chosen."""
    threads: Literal["auto"] | Annotated[list[PositiveInt], Field(min_length=1)] = "auto"
    """Numbers of threads of one instance to try. ``auto`` tries the divisors of the number of usable cores, and with
    SMT those of twice that number."""
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 4, 8, 16, 32, 64]
    """Batch sizes to try."""
    budget_s: Seconds = 60.0
    """Time limit of the whole search, in seconds."""


class Bench(Table):
    """Defaults of the bench in the wheel."""

    duration_s: Seconds = 5.0
    """Measured time of one run, in seconds, after the warm-up."""
