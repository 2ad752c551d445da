"""A build from a lock: what was decided and measured is taken from it. Also writes the lock of a finished build."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cpupack.artifacts import BuiltWheel, TunePlan
from cpupack.errors import LockError, PackagingError
from cpupack.lock import Lock, WheelLock, differences, lock_path, lock_wheel, read_lock, recovery_of, write_lock
from cpupack.lock.facts import inputs_of
from cpupack.lock.model import Inputs
from cpupack.pipeline.candidates import candidates
from cpupack.pipeline.contest import Settled, judged, with_quantize
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.entries import check, enter
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import LoadedRecipe, Quantize, Recipe, TargetArm, TargetX86
from cpupack.stages.verify import Speed, choose

_MOST_THREADS = 4096


def check_parts(lock: Lock, path: Path) -> None:
    """Read everything in a lock that a build will use. Raises LockError where somebody changed it by hand."""
    try:
        threads = lock.inputs.host["threads"]
        if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
            raise ValueError(f"threads is {threads!r}")  # noqa: TRY301 - one place says what is damaged
        for cpu, part in lock.wheels.items():
            table = {"x86_64": TargetX86, "aarch64": TargetArm}[cpu]
            table.model_validate({"engine": part.engine, "isa": part.isa or "auto"})
            Quantize.model_validate(part.quantize)
            plan_again(part)
            _speed(part)
            recovery_of(part.measured)
            _check_measured(part)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        said = str(error).splitlines()[0]
        raise LockError(
            f"{path} is damaged: {type(error).__name__}: {said}", hint="run `cpupack lock` again"
        ) from error


def _check_measured(lock: WheelLock) -> None:
    for name, kind in (("report", dict), ("time_shares", list), ("measured", dict), ("plan", dict), ("engines", dict)):
        if not isinstance(lock.measured[name], kind):
            raise TypeError(f"measured.{name} is {type(lock.measured[name]).__name__}")


@contextmanager
def fp32_threads(lock: Lock | None) -> Iterator[None]:
    """Run FP32 with the lock's number of threads: the order of its sums, so the last bits, may depend on it."""
    before = torch.get_num_threads()
    if lock is not None:
        torch.set_num_threads(int(lock.inputs.host["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inputs_read(prepared: Prepared) -> Inputs:
    """Return all that a build has read for its lock."""
    return inputs_of(
        prepared.loaded,
        prepared.model,
        prepared.graph_sha256,
        prepared.fused,
        prepared.calibration,
        prepared.reference.samples,
    )


def settle_again(
    prepared: Prepared, cpu: str, work: Path, corrections: Corrections, lock: WheelLock, progress: Progress
) -> Settled:
    """Build the lock's engine with the lock's settings, and judge it by the lock's speed. Nothing is raced."""
    spec = Quantize.model_validate(lock.quantize)
    if spec != prepared.loaded.recipe.quantize:
        prepared = with_quantize(prepared, spec)
    (target,) = candidates(_pinned(prepared.loaded.recipe, cpu, lock), cpu, supported_engines())
    with progress.stage(f"quantize ({cpu})"):
        entry = enter(prepared, target, work / f"{cpu}-{target.engine}.pt", corrections, progress)
        entry = dataclasses.replace(entry, speed=_speed(lock))
    with progress.stage(f"verify ({cpu})"):
        found = judged(prepared, check(prepared, entry, work, corrections, progress, races=False))
        choose([found])
    return Settled(prepared, found, (found,), {}, (), recovery_of(lock.measured))


def plan_again(lock: WheelLock) -> TunePlan:
    """Return the setting that the lock's build found."""
    raw = dict(lock.measured["plan"])
    return TunePlan(**{**raw, "rows": tuple(raw["rows"])})


def keep_lock(
    loaded: LoadedRecipe,
    inputs: Inputs,
    wheels: Sequence[tuple[BuiltWheel, Settled]],
    epoch: int | None,
    progress: Progress,
    *,
    renew: bool,
) -> None:
    """Write the lock of a finished build beside the recipe, if there is none or ``renew`` asks for it.

    An earlier lock is else left as it is, and a note says what this build has differently. A directory that cannot be
    written is a warning, unless ``renew`` asked: then it raises PackagingError.
    """
    path = lock_path(loaded.path)
    if path.exists() and not renew:
        _compare(path, inputs, progress)
        return
    parts = {
        settled.winner.scripted.target.cpu: lock_wheel(
            wheel,
            loaded.recipe.package.import_name,
            settled.winner.scripted.target,
            settled.prepared.loaded.recipe.quantize,
        )
        for wheel, settled in wheels
    }
    try:
        write_lock(path, Lock(source_date_epoch=epoch, inputs=inputs, wheels=parts))
    except OSError as error:
        if renew:
            raise PackagingError(f"cannot write {path}: {error.strerror or error}") from error
        progress.warn(f"no lock is written: {path}: {error.strerror or error}")
        return
    progress.note(f"{path.name} is written: `cpupack build --locked` builds the same bytes again")


def _compare(path: Path, inputs: Inputs, progress: Progress) -> None:
    try:
        found = differences(read_lock(path).inputs, inputs)
    except LockError as error:
        found = [error.message]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        progress.note(f"{path.name} is kept, and is of another build ({found[0]}{more}); `cpupack lock` renews it")


def _pinned(recipe: Recipe, cpu: str, lock: WheelLock) -> Recipe:
    """Return the recipe with the lock's engine and instruction set for ``cpu``: nothing is left to the host."""
    table = getattr(recipe.target, cpu).model_copy(update={"engine": lock.engine, "isa": lock.isa or "auto"})
    return recipe.model_copy(update={"target": recipe.target.model_copy(update={cpu: table})})


def _speed(lock: WheelLock) -> Speed | None:
    report = lock.measured["report"]
    if report["speedup"] is None:
        return None
    ci95 = report["speedup_ci95"]
    return Speed(report["speedup"], None if ci95 is None else (ci95[0], ci95[1]), tuple(report["speed_rows"]))
