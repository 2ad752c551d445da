"""Which nodes of a cluster can run a wheel, by their labels."""

from __future__ import annotations

from cpupack.errors import UsageError
from cpupack.runtime.host.cpu import LEVELS
from cpupack.runtime.manifest import Manifest

ARCH = "kubernetes.io/arch"
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_PREFIX = "feature.node.kubernetes.io/cpu-cpuid."
# The names of Node Feature Discovery for x86-64. A level contains the ones before it. On ARM a CPU of the lowest level
# runs every wheel that asks for no more, and NEON belongs to the architecture.
_FEATURES = {
    "avx2": ("AVX2", "FMA3"),
    "avx512": ("AVX512F", "AVX512BW", "AVX512VL", "AVX512DQ"),
    "avx512_vnni": ("AVX512VNNI",),
    "amx": ("AMXTILE", "AMXINT8"),
    "neon": (),
    "dotprod": ("ASIMDDP",),
    "i8mm": (),  # has no label
}


def node_selector(manifest: Manifest, asked: dict[str, str]) -> dict[str, str]:
    """Return the labels that a node must have: Linux, the CPU family, what the user asked for.

    Raises UsageError where the user asks for another family than the wheel's.
    """
    cpu = manifest.target["cpu"]
    own = {"kubernetes.io/os": "linux", ARCH: _ARCHES[cpu]}
    for key, value in own.items():
        if asked.get(key, value) != value:
            raise UsageError(
                f"--node-selector {key}={asked[key]}: the wheel is for {cpu}, whose nodes have {key}={value}",
                hint="leave it out, or build a wheel for that CPU",
            )
    return {**own, **asked}


def feature_labels(manifest: Manifest) -> list[str]:
    """Return the labels of Node Feature Discovery that the wheel's instruction set asks for."""
    isa = manifest.target["isa"]
    levels = LEVELS[manifest.target["cpu"]]
    if isa not in levels:
        return []
    return [_PREFIX + name for level in levels[: levels.index(isa) + 1] for name in _FEATURES[level]]
