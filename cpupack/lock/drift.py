"""Compares a lock with a build: before the long work, and when model and data are loaded. All drift is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpupack.errors import LockError
from cpupack.lock.code import MODULE, installed, module_file
from cpupack.lock.facts import host, recipe_hashes
from cpupack.lock.model import Inputs, Lock
from cpupack.lock.names import candidates
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.files import place_of
from cpupack.runtime.manifest import hash_file
from cpupack.wheel.tools import versions

_LISTED = 20
_HINT = "restore what has changed, or accept it with `cpupack lock` (and the same --set, --target and --no-tune)"


def check_early(lock: Lock, path: Path, loaded: LoadedRecipe, epoch: int | None) -> None:
    """Compare what can be compared before anything is loaded: recipe, versions, CPU, files.

    Raises LockError that names everything that differs.
    """
    wanted = lock.inputs
    found = [
        *_recipe(wanted.recipe, recipe_hashes(loaded)),
        *_values("version of", wanted.versions, {**installed(set(wanted.versions)), **versions()}),
        *_values("this CPU's", _without_threads(wanted.host), _without_threads(host())),
        *_changed_files(wanted.files, loaded),
    ]
    if epoch is not None and epoch != lock.source_date_epoch:
        found.append(f"SOURCE_DATE_EPOCH: {lock.source_date_epoch} in the lock, now {epoch}")
    _raise(found, path)


def check_build(lock: Lock, path: Path, inputs: Inputs) -> None:
    """Compare what a build has read. Raises LockError that names everything that differs."""
    _raise(differences(lock.inputs, inputs), path)


def differences(wanted: Inputs, found: Inputs) -> list[str]:
    """Return everything in which two builds differ, one line each."""
    return [
        *_recipe(wanted.recipe, found.recipe),
        *_values("version of", wanted.versions, found.versions),
        *_values("this CPU's", _without_threads(wanted.host), _without_threads(found.host)),
        *_files(wanted.files, found.files),
        *(f"the {_NAMES[name]} changed" for name in _changed(wanted.model, found.model)),
        *(f"the samples of the {name} changed" for name in _changed(wanted.data, found.data)),
        *_chains(wanted.fused, found.fused),
    ]


_NAMES = {
    "state": "loaded weights",
    "graph": "captured graph (how the model is written, or how cpupack captures it)",
    "weights": "file of the weights",
}


def _recipe(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    tables = [name for name in _changed(wanted, found) if name != "text"]
    if tables:
        return [f"[{name}] of the recipe changed" for name in tables]
    return ["the recipe's text changed (comments or layout): the wheel holds it"] if _changed(wanted, found) else []


def _values(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} {name}: {wanted.get(name, 'absent')} in the lock, now {found.get(name, 'absent')}"
        for name in _changed(wanted, found)
    ]


def _files(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    words = []
    for name in _changed(wanted, found):
        if name not in found:
            words.append(f"{name}: in the lock, but this build did not read it")
        else:
            words.append(f"{name}: {'changed' if name in wanted else 'not in the lock'}")
    return words


def _changed_files(wanted: Mapping[str, str], loaded: LoadedRecipe) -> list[str]:
    words = []
    for name, sha256 in wanted.items():
        try:
            path = _place(name, loaded)
            if path is None:
                words.append(f"{name}: missing")
            elif hash_file(path) != sha256:
                words.append(f"{name}: changed")
        except OSError as error:
            words.append(f"{name}: cannot be read: {error.strerror or error}")
    return words


def _place(name: str, loaded: LoadedRecipe) -> Path | None:
    """Return the file of a lock's name, None where it is missing."""
    if name.startswith(MODULE):
        return module_file(name.removeprefix(MODULE))
    places = (place_of(each, loaded.path.parent) for each in candidates(name))
    return next((path for path in places if path is not None and path.is_file()), None)


def _chains(wanted: list[list[str]], found: list[list[str]]) -> list[str]:
    lost = [chain for chain in wanted if chain not in found]
    new = [chain for chain in found if chain not in wanted]
    words = [f"no longer fused: {' + '.join(chain)}" for chain in lost] + [
        f"newly fused: {' + '.join(chain)}" for chain in new
    ]
    return words or (["the order of the fused chains changed"] if wanted != found else [])


def _changed(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def _without_threads(host_facts: Mapping[str, str | int]) -> dict[str, str | int]:
    """The number of threads is no drift: a locked build runs FP32 with the lock's number."""
    return {name: value for name, value in host_facts.items() if name != "threads"}


def _raise(found: list[str], path: Path) -> None:
    if found:
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        listed = "\n".join(f"  {each}" for each in [*found[:_LISTED], *more])
        raise LockError(f"{path} does not hold any more:\n{listed}", hint=_HINT)
