"""An aarch64 Python with packages from apt and pip, run by qemu's user mode on an x86-64 Debian host. Installs nothing.

``python tests/arm/environment.py [--torch] setup`` makes it, ``... [--torch] [--cpu CPU] run ARGUMENTS`` runs its
Python. Everything lies in the user's cache (``CPUPACK_ARM_CACHE`` names another directory) and is made once. It takes
no root: packages are unpacked, apt has lists of its own. A minute without torch, some minutes with it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from arm import emulator  # noqa: E402 - found by the line before
from arm.emulator import UnavailableError  # noqa: E402 - found by that line too

CACHE = emulator.cache()
"""Where it lies. Read at once, because tests give each process a cache of its own."""

TORCH = "2.10.0"
"""The newest torch whose wheel for aarch64 is a CPU build, and the oldest that cpupack supports."""

CPUS = {
    "cortex-a53": 0x410FD034,
    "cortex-a72": 0x410FD083,
    "cortex-a76": 0x414FD0B1,
    "neoverse-n1": 0x413FD0C1,
    "max": 0x000F0510,
}
"""The CPUs that are emulated, and the register that names each (MIDR_EL1). ``max`` is none of any maker."""

_FEATURES = {
    "cortex-a53": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a72": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "neoverse-n1": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "max": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp i8mm",
}
_PLATFORMS = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 26, 24, 17)] + [
    "--platform=manylinux2014_aarch64"
]
_BASE = ("numpy>=1.26,<3", "pillow>=10,<14")
_TORCH_NEEDS = ("filelock", "typing_extensions>=4.10", "sympy>=1.13.3", "networkx", "jinja2", "fsspec")


@dataclass(frozen=True)
class ArmEnvironment:
    """An environment that is ready. ``torch`` says that its Python has torch too."""

    directory: Path
    torch: bool

    @property
    def emulator(self) -> Path:
        return self.directory / "qemu-aarch64"

    def python(self, cpu: str = "neoverse-n1") -> Path:
        """Return a program that is Python on that CPU: a script, so that Python can start itself again."""
        return self.directory / "bin" / f"python-{cpu}"

    def venv(self, directory: Path) -> Path:
        """Make a virtual environment that sees the packages, without pip of its own (see ``pip``). Returns its Python.

        Beside it is a Python for each CPU, of the same names as those of ``python``.
        """
        _run([self.python(), "-m", "venv", "--without-pip", directory], 600)
        (site,) = directory.glob("lib/python3*/site-packages")
        sites = [self.directory / "site", *([self.directory / "site-torch"] if self.torch else [])]
        (site / "arm.pth").write_text("".join(f"{each}\n" for each in sites))
        for cpu in CPUS:
            path = directory / "bin" / self.python(cpu).name
            if not path.is_symlink():
                path.symlink_to(self.python(cpu))
        return directory / "bin" / self.python().name

    def pip(self, python: Path, *arguments: str | Path) -> list[str | Path]:
        """Return the command that runs the system's pip with a Python of this environment."""
        (wheel,) = (self.directory / "root/usr/share/python-wheels").glob("pip-*.whl")
        return [python, wheel / "pip", "--disable-pip-version-check", *arguments]


def ensure(*, torch: bool = False, patience_s: float = 1800.0) -> ArmEnvironment:
    """Make the environment unless it is there. Raises UnavailableError, after ``patience_s`` at the latest."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        raise UnavailableError(f"it emulates on x86-64 Linux, and this is {platform.machine()} {sys.platform}")
    end_s = time.monotonic() + patience_s
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with _locked(CACHE / "lock", end_s):
            _once("root-1", lambda: _system(end_s))
            _launchers()
            _once("site-1", lambda: _packages("site", _BASE, end_s))
            if torch:
                _once(f"torch-{TORCH}", lambda: _torch(end_s))
    except OSError as error:
        raise UnavailableError(f"{CACHE}: {error}") from error
    return ArmEnvironment(CACHE, torch)


def add(name: str, requirements: Sequence[str], patience_s: float = 1800.0) -> Path:
    """Have aarch64 packages in a directory of their own, beside an environment that is there. Returns the directory."""
    end_s = time.monotonic() + patience_s
    with _locked(CACHE / "lock", end_s):
        _once(f"{name}-1", lambda: _packages(name, requirements, end_s))
    return CACHE / name


def _once(name: str, make: object) -> None:
    done = CACHE / f"{name}.done"
    if not done.exists():
        assert callable(make)
        make()
        done.touch()


@contextlib.contextmanager
def _locked(path: Path, end_s: float) -> Iterator[None]:
    """Hold the cache, so that processes of one test run make it once."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    raise UnavailableError("another process is still making it") from None
                time.sleep(0.5)
        yield


def _run(command: Sequence[str | Path], seconds: float, **environment: str) -> str:
    """Run a command and return its stdout. Raises UnavailableError with what it said."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
            timeout=max(1.0, seconds), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{shlex.join(words[:4])} ... took longer than {seconds:.0f} s") from None
    except OSError as error:
        raise UnavailableError(f"{words[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise UnavailableError(f"{shlex.join(words[:4])} ... failed: {' / '.join(said)}")
    return done.stdout


def _left(end_s: float) -> float:
    left = end_s - time.monotonic()
    if left <= 0:
        raise UnavailableError("it took longer than the time that was given; the next try goes on from here")
    return left


def _system(end_s: float) -> None:
    """Download qemu for this host, and Debian's Python with all it needs for arm64, by apt's own resolver."""
    state, root = CACHE / "apt", CACHE / "root"
    for name in ("lists/partial", "state", "archives/partial", "sources"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()  # nothing is installed: every package is needed
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    debian = [path for path in sources if path.is_file() and "/debian" in path.read_text("utf-8", "replace")]
    if not debian:
        raise UnavailableError("this host has no sources of Debian packages")
    for path in debian:
        shutil.copy(path, state / "sources")
    (state / "apt.conf").write_text(
        f"""\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; "amd64"; }};
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "{state}/state";
Dir::State::Lists "{state}/lists";
Dir::State::status "{state}/status";
Dir::Cache "{state}";
Dir::Cache::archives "{state}/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{state}/sources";
Debug::NoLocking "1";
"""
    )
    config = str(state / "apt.conf")
    _run(["apt-get", "-qq", "update"], _left(end_s), APT_CONFIG=config)
    wanted = ["python3-venv", "libstdc++6", "qemu-user-static:amd64"]
    _run(["apt-get", "-qq", "-y", "--download-only", "install", *wanted], _left(end_s), APT_CONFIG=config)
    shutil.rmtree(root, ignore_errors=True)
    for package in sorted((state / "archives").glob("*.deb")):
        if package.name.startswith("qemu-user-static"):
            _run(["dpkg-deb", "-x", package, CACHE / "qemu"], _left(end_s))
        elif package.name.endswith(("_arm64.deb", "_all.deb")):
            _run(["dpkg-deb", "-x", package, root], _left(end_s))
    for name in ("doc", "locale", "man"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    if not (root / "lib").exists():  # where all is below /usr, the link to it is made by what was not installed
        (root / "lib").symlink_to("usr/lib")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    emulator.keep(CACHE / "qemu/usr/bin/qemu-aarch64-static", CACHE / "qemu-aarch64")  # another process may run it
    for name in ("apt", "qemu"):
        shutil.rmtree(CACHE / name)


def interpreter() -> Path:
    """Return the program that an environment's Python is, for aarch64."""
    return sorted((CACHE / "root/usr/bin").glob("python3.[0-9]*"))[0]


def _launchers() -> None:
    """Write Python for each CPU, and the kernel's files that name it.

    Below the directory of ``qemu -L`` a file hides the host's of the same name. Else the program would read the host's
    own /proc/cpuinfo, and torch and oneDNN fail on the words of another family.
    """
    (CACHE / "bin").mkdir(exist_ok=True)
    for cpu, midr in CPUS.items():
        root = CACHE / "cpus" / cpu
        root.mkdir(parents=True, exist_ok=True)
        for entry in (CACHE / "root").iterdir():
            if entry.name not in {"proc", "sys"} and not (root / entry.name).is_symlink():
                (root / entry.name).symlink_to(entry)
        text = ""
        for number in range(os.cpu_count() or 1):
            registers = root / f"sys/devices/system/cpu/cpu{number}/regs/identification"
            registers.mkdir(parents=True, exist_ok=True)
            _write(registers / "midr_el1", f"{midr:#018x}\n")
            text += (
                f"processor\t: {number}\nBogoMIPS\t: 243.75\nFeatures\t: {_FEATURES[cpu]}\n"
                f"CPU implementer\t: {midr >> 24:#04x}\nCPU architecture: 8\nCPU variant\t: {midr >> 20 & 15:#x}\n"
                f"CPU part\t: {midr >> 4 & 0xFFF:#05x}\nCPU revision\t: {midr & 15}\n\n"
            )
        (root / "proc").mkdir(exist_ok=True)
        _write(root / "proc/cpuinfo", text)
        quoted = {name: shlex.quote(str(path)) for name, path in (("qemu", CACHE / "qemu-aarch64"), ("root", root))}
        script = CACHE / "bin" / f"python-{cpu}"
        _write(
            script,
            f'#!/bin/sh\nexec {quoted["qemu"]} -cpu {cpu} -L {quoted["root"]} -0 "$0" '
            f'{shlex.quote(str(interpreter()))} "$@"\n',
            0o755,
        )


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one step, unless it has that text: another process may be reading it."""
    if path.exists() and path.read_text() == text:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.chmod(mode)
    part.replace(path)


def _packages(name: str, requirements: Sequence[str], end_s: float, *options: str) -> None:
    """Have the host's pip unpack wheels for aarch64 into the directory ``name``."""
    version = interpreter().name.removeprefix("python")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *_PLATFORMS]
    command += ["--upgrade", f"--target={CACHE / name}", *options, *requirements]
    _run(command, _left(end_s), PIP_ROOT_USER_ACTION="ignore", PIP_NO_INPUT="1")


def _torch(end_s: float) -> None:
    # Without its dependencies: newer wheels name CUDA libraries among them.
    _packages("site-torch", [f"torch=={TORCH}"], end_s, "--no-deps")
    _packages("site-torch", _TORCH_NEEDS, end_s)
    for name in ("include", "test"):
        shutil.rmtree(CACHE / "site-torch/torch" / name, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["setup", "run"])
    parser.add_argument("--torch", action="store_true", help="with torch")
    parser.add_argument("--cpu", choices=list(CPUS), default="neoverse-n1")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of Python")
    options = parser.parse_args(argv)
    try:
        made = ensure(torch=options.torch)
    except UnavailableError as error:
        print(f"the environment cannot be made: {error}", file=sys.stderr)
        return 1
    if options.command == "setup":
        print(made.directory)
        return 0
    sites = [made.directory / "site", *([made.directory / "site-torch"] if options.torch else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [*sites, *filter(None, [os.environ.get("PYTHONPATH")])]))
    python = str(made.python(options.cpu))
    return subprocess.run([python, *options.arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
