"""Loads cpupack's own INT8 kernels (``runtime/kernels/``) and registers them as one torch operator, ``cpupack::run_3``.

torch's operators belong to the whole process, and the packages of several models may each bring the library. The first
one that is loaded serves all. The number in the operator's name is the format of the programs that it runs. Only
``load`` imports torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import HostError
from ..host import cpu
from ..host.limits import system_fault
from ..manifest import hash_file
from .prototypes import declare

ENGINE = "native"
"""The engine's name in manifests and recipes."""

OPERATOR = "cpupack::run_3"
LIBRARIES = {family: Path("kernels") / f"cpupack_int8.{family}.so" for family in cpu.LEVELS}
"""CPU family -> path of its library relative to the runtime. A wheel has that of its own family alone."""

CODE_PATHS = {"x86_64": ("avx2", "vnni", "amx"), "aarch64": ("neon", "dotprod", "i8mm")}
"""CPU family -> its code paths in the library, which ``CPUPACK_ISA`` may name (kernels/engine/cpu.c)."""


class _Process(ModuleType):
    """What all copies of this module in one process share. It is in ``sys.modules``, under a name with the format."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "The cpupack kernels that this process has loaded.")
        self.lock = threading.Lock()
        self.path: Path | None = None
        self.library: ctypes.CDLL | None = None


_NAME = f"_{OPERATOR.replace('::', '_')}"
# Another package's copy of this module may have made it; that object has the same three attributes.
_process: Any = sys.modules.setdefault(_NAME, _Process(_NAME))


@dataclass(frozen=True)
class Kernels:
    """The kernels on this host.

    ``isa`` is the code path they take (one of ``CODE_PATHS``). ``problem`` says why they do not run, None if they do.
    ``path`` is None where there is no library. ``loaded`` means that this process has loaded it.
    """

    path: str | None
    sha256: str | None
    isa: str | None
    loaded: bool
    problem: str | None


def open_library() -> ctypes.CDLL:
    """Load this package's own library, to be called without torch. Each package of a process loads its own.

    Raises HostError when this CPU or system cannot run it, or when there is no library.
    """
    path = _own_path()
    problem = _problem(path)
    if problem is not None:
        raise HostError(problem)
    return _open(path)


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        raise HostError(
            f"the system cannot load the native kernels: {error}; they need glibc 2.28 or later, and a file "
            "system that is not mounted noexec"
        ) from error
    try:
        declare(library)
    except AttributeError as error:
        raise HostError(
            f"the native kernels {path} do not fit this package ({error}); in a checkout run: make kernels"
        ) from error
    if library.cpupack_isa() is None:
        raise HostError(_why_none(os.environ.get("CPUPACK_ISA")))
    return library


def _why_none(wish: str | None) -> str:
    """Return why the kernels take no code path: that which the user forces is not there, or none is."""
    paths = CODE_PATHS.get(cpu.machine(), ())
    if not wish:
        return f"the native kernels do not run on {cpu.cpu_info()[0]}; {_remedy()}"
    if wish in paths:
        return f"CPUPACK_ISA is {wish}, and this CPU ({cpu.detect_isa()}) cannot run these kernels; unset it"
    return f"CPUPACK_ISA is {wish!r}; on {cpu.machine()} it may be {', '.join(paths)}"


def _remedy() -> str:
    return (
        f'build the wheel again with [target.{cpu.machine()}] engine = "auto" and isa = "auto", here or on a CPU like '
        "this one"
    )


def load() -> None:
    """Load the library and define the operator, once for each process; may be called again, from any thread.

    Raises HostError when this CPU, system or torch cannot run it, or when there is no library.
    """
    with _process.lock:
        if _process.library is not None:
            return
        library = open_library()
        _register(library)
        _process.path, _process.library = _own_path(), library


def set_threads(count: int) -> None:
    """Set how many threads compute a call of the calling thread, that thread included. Call ``load`` first."""
    if count < 1:
        raise ValueError(f"count is {count}; it starts at 1")
    _process.library.cpupack_set_threads(count)


def describe() -> dict[str, Any]:
    """Return the fields of ``Kernels`` as a dict. Loads the library to see that it can be, but not torch."""
    library = _process.library
    path = _process.path or _own_path()
    exists, problem = path.is_file(), None
    isa = None
    try:
        isa = (library or open_library()).cpupack_isa().decode()
    except HostError as error:
        problem = str(error)
    return asdict(
        Kernels(
            path=str(path) if exists else None,
            sha256=hash_file(path) if exists else None,
            isa=isa,
            loaded=library is not None,
            problem=problem,
        )
    )


def runs_on(machine: str, isa: str | None) -> bool:
    """Return whether a CPU of the family ``machine`` with the instruction set ``isa`` (of ``cpu.LEVELS``) will do."""
    return isa is not None and isa in cpu.LEVELS.get(machine, ())


def path_for(machine: str) -> Path:
    """Return where this package's library for a CPU family is, or would be. Raises KeyError for another family."""
    return Path(__file__).parents[1] / LIBRARIES[machine]


def _own_path() -> Path:
    """Return the path of this host's library. On a family without one it is a file that does not exist."""
    family = cpu.machine()
    return path_for(family) if family in LIBRARIES else Path(__file__).parents[1] / "kernels" / "none"


def _problem(path: Path) -> str | None:
    """Return why ``path`` cannot be loaded here, None if no reason is known. Does not try to load it."""
    if cpu.machine() not in LIBRARIES:
        return f"the native kernels are for {' and '.join(LIBRARIES)}, and this host is {cpu.machine()}"
    if not runs_on(cpu.machine(), cpu.detect_isa()):
        needed, lacking = cpu.LEVELS[cpu.machine()][0], cpu.LACKING[cpu.machine()]
        return f"the native kernels need {needed} and this CPU has {lacking}; {_remedy()}"
    if not path.is_file():
        return f"the native kernels are not built: {path} is missing; in a checkout run: make kernels; else reinstall"
    return None


def _register(library: ctypes.CDLL) -> None:
    """Give the library the functions of torch's C ABI that it asks for by name, and have it define the operator."""
    import torch

    names: list[str] = []
    while (name := library.cpupack_torch_symbol(len(names))) is not None:
        names.append(name.decode())
    try:
        # RTLD_NOLOAD finds the copy that torch has loaded, wherever its file is, and never loads a second one.
        libtorch = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = [ctypes.cast(libtorch[name], ctypes.c_void_p) for name in names]
    except (OSError, AttributeError) as error:
        raise HostError(
            f"torch {torch.__version__} has no C interface for the native kernels ({error}); install an official CPU "
            "build of torch 2.10 or later"
        ) from error
    step = library.cpupack_register((ctypes.c_void_p * len(names))(*functions))
    if step != 0:
        raise HostError(
            f"torch {torch.__version__} refused the operator {OPERATOR} (step {step}, its reason is on stderr); "
            "another library in this process may have one of that name"
        )
