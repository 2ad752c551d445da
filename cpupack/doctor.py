"""What this host can build and run: the first facts to look at when a build fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement

from cpupack import __version__
from cpupack.console import flow
from cpupack.errors import ModelError
from cpupack.model.vision import import_torchvision
from cpupack.quantized_engine import supported_engines
from cpupack.runtime.engine import library
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.cpu import ARM_ISA_LEVELS, ISA_LEVELS, LACKING, LEVELS
from cpupack.targets import ENGINES, arm, x86
from cpupack.targets.engines import raced

EXTRAS = {"torchvision": "torchvision", "timm": "timm", "digits": "scikit-learn"}
"""The distribution that each extra of pyproject.toml brings (``dev`` is not for users)."""

_WIDTH = 80
_ALLOCATORS = {"libc": "libc (preloading tcmalloc often gives 5 to 15 % more speed)"}
_MATCHING, _SHIMMED, _ABSENT, _BROKEN = "matching", "shimmed", "absent", "broken"
_TORCHVISION = {
    _MATCHING: "its operators load with this torch",
    _SHIMMED: "its C++ operators do not load with this torch (another build); models and transforms work",
    _BROKEN: "installed, but importing it fails",
    _ABSENT: 'no: pip install "cpupack[torchvision]"',
}


@dataclass(frozen=True)
class Build:
    """What this host can do for one CPU family. ``isa`` is what a wheel built with ``isa = "auto"`` requires."""

    cpu: str
    engines: list[str]
    isa: str | None
    activation_bits: int | None
    runs_here: bool


@dataclass(frozen=True)
class Torch:
    """The installed torch and its quantized engines."""

    version: str
    build: str
    quantized_engines: list[str]
    default_threads: int


@dataclass(frozen=True)
class Torchvision:
    """The version of torchvision. ``state`` says if it works with this torch: matching, shimmed, absent or broken."""

    version: str | None
    state: str


@dataclass(frozen=True)
class Findings:
    """What the doctor found. ``host`` and ``native`` come from the runtime's own probes.

    ``extras`` maps each extra of cpupack to the version of the distribution that it installs, None when missing.
    """

    cpupack: str
    host: Mapping[str, Any]
    torch: Torch
    native: Mapping[str, Any]
    torchvision: Torchvision
    builds: tuple[Build, ...]
    extras: Mapping[str, str | None]
    problems: list[str]


def collect() -> Findings:
    """Look at this host and installation."""
    here = host_probe.describe()
    engines = supported_engines()
    of_torch = [name for name in engines if name not in ENGINES or ENGINES[name].loader == "torch"]
    return Findings(
        cpupack=__version__,
        host=here,
        torch=Torch(torch.__version__, _torch_build(), of_torch, torch.get_num_threads()),
        native=library.describe(),
        torchvision=_torchvision(),
        builds=_builds(here["machine"], here["isa"], engines),
        extras={extra: _version(distribution) for extra, distribution in EXTRAS.items()},
        problems=_problems(here, engines),
    )


def format_doctor(found: Findings) -> str:
    """Return the findings as aligned text, in 80 columns unless a single word is longer."""
    here, with_torch, vision = found.host, found.torch, found.torchvision
    rows = [
        ("cpupack", f"{found.cpupack}, Python {here['python']}, {here['os']}"),
        ("CPU", f"{here['cpu']}, {here['machine']}"),
        ("ISA level", _isa(here)),
        ("CPU flags", " ".join(here["flags"]) or "none of those that cpupack uses"),
        ("cores", f"{here['cores_usable']} usable: {here['cores_usable_reason']}"),
        ("memory", f"{here['memory_bytes'] / 2**30:.1f} GiB" if here["memory_bytes"] else "unknown"),
        ("allocator", _ALLOCATORS.get(here["allocator"], here["allocator"])),
        ("torch", f"{with_torch.version}, {with_torch.build}"),
        ("engines", ", ".join(with_torch.quantized_engines) or "none"),
        ("native kernels", _native(here, found.native)),
        ("torchvision", (f"{vision.version}, " if vision.version else "") + _TORCHVISION[vision.state]),
        *((f"extra {extra}", version or f'no: pip install "cpupack[{extra}]"')
          for extra, version in found.extras.items() if extra != "torchvision"),
        *((f"build {build.cpu}", _build_text(build)) for build in found.builds),
    ]  # fmt: skip
    width = max(len(label) for label, _ in rows) + 2
    lines = []
    for label, text in rows:
        first, *rest = flow(text.split(" "), _WIDTH - width, joint=" ")
        lines += [f"{label:<{width}}{first}", *(" " * width + line for line in rest)]
    lines += ["", *(f"problem: {problem}" for problem in found.problems)]
    return "\n".join([*lines, *([] if found.problems else ["Nothing is wrong here."])])


def _native(here: Mapping[str, Any], kernels: Mapping[str, Any]) -> str:
    if kernels["problem"] is None:
        return str(kernels["isa"])
    if not library.runs_on(here["machine"], here["isa"]):
        return f"cannot run on this CPU: they need {' or '.join(levels[0] for levels in LEVELS.values())}"
    if kernels["path"] is None:
        return "not built: run `make kernels` in the checkout, or install cpupack again"
    return str(kernels["problem"])


def _isa(here: Mapping[str, Any]) -> str:
    levels = LEVELS.get(here["machine"])
    if levels is None:
        return f"none: only {' and '.join(LEVELS)} have levels"
    return f"{here['isa']} (of {', '.join(levels)})" if here["isa"] else f"below {levels[0]}"


def _build_text(build: Build) -> str:
    if not build.engines:
        return "cannot be built: this torch has no engine for it"
    text = f"engine{'s' * (len(build.engines) > 1)} {', '.join(build.engines)}"
    if build.isa:
        text += f"; wheels need {build.isa} or better"
    if build.activation_bits == 7:
        text += "; 8-bit activations; torch's engines use 7 bits, or 8 where that is safe"
    elif build.activation_bits:
        text += f"; {build.activation_bits}-bit activations"
    elif build.cpu == "x86_64":
        text += "; set [target.x86_64] isa in the recipe"
    return text + ("; timed and tuned here" if build.runs_here else "; verified here, but not timed or tuned")


def _builds(machine: str, isa: str | None, engines: list[str]) -> tuple[Build, Build]:
    needed = x86.floor(isa) if isa and machine == "x86_64" else None
    least_arm = ARM_ISA_LEVELS[0]
    return (
        Build(
            "x86_64",
            [each.name for each in raced(needed or x86.floor(ISA_LEVELS[0])) if each.name in engines],
            needed,
            x86.activation_bits(needed) if needed else None,
            machine == "x86_64",
        ),
        Build(
            "aarch64",
            [each.name for each in raced(arm.floor(least_arm)) if each.name in engines],
            least_arm,
            arm.ACTIVATION_BITS,
            machine == "aarch64",
        ),
    )


def _torch_build() -> str:
    for name, version in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)):
        if version:
            return f"{name} {version} build (a CPU build is enough, and gigabytes smaller)"
    return "CPU build"


def _torchvision() -> Torchvision:
    """Return the version of torchvision and whether it works with this torch."""
    try:
        import_torchvision()
    except ModelError:
        return Torchvision(None, _ABSENT)
    except (ImportError, OSError, RuntimeError):  # a build for another torch or Python
        return Torchvision(_version("torchvision"), _BROKEN)
    # import_torchvision declares the operator if the extension does not load; only the extension has its kernel.
    loaded = torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU")
    return Torchvision(_version("torchvision"), _MATCHING if loaded else _SHIMMED)


def _problems(here: Mapping[str, Any], engines: list[str]) -> list[str]:
    problems = []
    if here["machine"] in LEVELS and here["isa"] is None:
        problems.append(f"this CPU has {LACKING[here['machine']]}; wheels for {here['machine']} do not run here")
    if not engines:
        problems.append("this torch build has no quantized engine; install an official CPU build")
    return problems + _unmet()


def _unmet() -> list[str]:
    """Return the declared dependencies of cpupack whose installed version is not in their range."""
    try:
        declared = metadata.requires("cpupack") or []
    except metadata.PackageNotFoundError:  # a source checkout that was never installed has no metadata
        return []
    problems = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            extra = any(requirement.marker.evaluate({"extra": name}) for name in EXTRAS)
            if not extra or _version(requirement.name) is None:
                continue
        version = _version(requirement.name)
        if version is None:
            problems.append(f"{requirement.name} is not installed; cpupack needs {requirement.specifier}")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is installed; cpupack needs {requirement.specifier}")
    return problems


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
