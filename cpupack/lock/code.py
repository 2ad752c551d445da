"""The code of others that a build runs: the user's own modules by their files, installed packages by their versions."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import cpupack
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.files import PYTHON, named_files, sources
from cpupack.recipe.places import PACKAGE
from cpupack.recipe.text_checks import DIRECTORIES

MODULE = f"{PYTHON}:"
"""Begins the name of a module that is found by Python's path, not by the recipe's place."""
_HERE = Path(cpupack.__file__).resolve().parent
_STANDARD = tuple(str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_OF_DIRECTORIES = ("transformers", "tokenizers", "safetensors")


def is_users(path: Path) -> bool:
    """Whether a file of code is the user's: not of the standard library, of an installed package, or of cpupack."""
    if _is_installed(str(path)):  # most are, and to follow the links of thousands of modules takes half a second
        return False
    place = path.resolve()  # a directory of packages may be a link, and so may what is in it
    return not (_is_installed(str(place)) or place.is_relative_to(_HERE))


def _is_installed(path: str) -> bool:
    return path.startswith(_STANDARD) or any(each in path for each in _PACKAGES)


def imported(loaded: LoadedRecipe) -> dict[str, Path]:
    """Return the files of the user's modules that are loaded, by their names for a lock.

    Modules below the recipe, and beside a Python file that it names, have their path from the recipe. What else these
    import was found by Python's path, which may be another one elsewhere: it has the name of the module.
    """
    base = loaded.path.parent.resolve()
    bases = {base, *_beside(loaded, base)}
    found, roots = {}, set(_named_roots(loaded))
    others = []
    for name, path in _users_modules():
        if any(path.is_relative_to(each) for each in bases):
            found[Path(os.path.relpath(path, base)).as_posix()] = path
            roots |= _imports(path)
        else:
            others.append((name, path))
    seen: set[str] = set()
    while new := roots - seen:
        seen |= new
        for name, path in others:
            if name.partition(".")[0] in new and name != "__main__":
                found[f"{MODULE}{name}"] = path
                roots |= _imports(path)
    return found


def _beside(loaded: LoadedRecipe, base: Path) -> Iterator[Path]:
    for each in named_files(loaded.recipe, loaded.path.parent):
        if each.name.endswith(".py") and not each.name.startswith(PACKAGE):
            yield (base / each.name).resolve().parent


def _users_modules() -> Iterator[tuple[str, Path]]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == "torch" or not isinstance(file, str) or not file.endswith(".py"):
            continue
        if is_users(Path(file)):
            yield name, Path(file).resolve()


def _imports(path: Path) -> set[str]:
    """Return the first names of all modules that a file imports anywhere."""
    found: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # removed or changed since it was imported
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def module_file(name: str) -> Path | None:
    """Return the file of a module by its name (without ``python:``), None where there is none. Nothing is imported."""
    first, *others = name.split(".")
    found = importlib.machinery.PathFinder.find_spec(first)
    if found is None:
        return None
    if not others:
        return None if found.origin is None else Path(found.origin)
    for place in found.submodule_search_locations or ():
        inside = Path(place, *others)
        for path in (inside.with_name(f"{inside.name}.py"), inside / "__init__.py"):
            if path.is_file():
                return path
    return None


def package_versions(loaded: LoadedRecipe) -> dict[str, str]:
    """Return the versions of the installed packages that the recipe names, and that the user's modules import."""
    roots = set(_named_roots(loaded)).union(*map(_imports, imported(loaded).values())) - sys.stdlib_module_names
    found = installed(roots)  # most packages have the name of their module, and to list all takes half a second
    others = {each for each in roots if each.lower() not in found and _is_elsewhere(each)}
    known = importlib.metadata.packages_distributions() if others else {}
    return found | installed({each for root in others for each in known.get(root, ())})


def _is_elsewhere(name: str) -> bool:
    """Whether a module can be found and is not the user's."""
    found = importlib.machinery.PathFinder.find_spec(name)
    return found is not None and (found.origin is None or not is_users(Path(found.origin)))


def installed(names: set[str]) -> dict[str, str]:
    """Return the versions of packages by their names, of those that are installed."""
    found = {}
    for name in sorted(names):
        try:
            found[name.lower()] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _named_roots(loaded: LoadedRecipe) -> Iterator[str]:
    recipe = loaded.recipe
    for source in sources(recipe).values():
        kind, _, rest = source.partition(":")
        place = rest.rpartition(":")[0]
        if kind == PYTHON and not place.endswith(".py"):
            yield place.partition(".")[0]
        elif kind in DIRECTORIES:
            yield from (kind.replace("-", "_"), *_OF_DIRECTORIES)
    if recipe.tokenizer is not None:
        yield "tokenizers"
    named = [recipe.model.weights, *(source.partition(":")[2] for source in sources(recipe).values())]
    for each in (*named, (recipe.tokenizer.source if recipe.tokenizer else None) or ""):
        if each.startswith(PACKAGE):
            yield each.removeprefix(PACKAGE).partition("/")[0]
