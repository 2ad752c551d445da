"""What a lock names: every file of data, every module of the user's, every package that the model is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cpupack.artifacts import FusedModel, Samples
from cpupack.errors import LockError
from cpupack.lock import Lock, check_early, inputs_of
from cpupack.lock.code import installed, module_file, package_versions
from cpupack.lock.model import Inputs
from cpupack.model.sources import load_factory
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.file import load_recipe
from cpupack.runtime.images.preprocess import PreprocessSpec
from helpers.tiny_models import float_model
from helpers.tiny_text import write_tokenizer

RECIPE = """
schema = 1
[package]
name = "net"
[model]
source = "{source}"
weights = "random"
input_shape = [3, 4, 4]
[preprocess]
[calibration]
source = "images:photos"
{more}"""
MASKS = 'source = "images:photos"\ntargets = "masks:masks"\nmin_metric = 0.1\n'


@pytest.fixture(autouse=True)
def forgets_modules() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def project(root: Path, source: str = "python:net.py:make", more: str = "") -> LoadedRecipe:
    """Write a recipe in ``root/recipes``, with code there that imports ``lock_parts`` from beside it."""
    for name in ("recipes/photos/a.png", "recipes/masks/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    path = root / "recipes" / "net.toml"
    path.write_text(RECIPE.format(source=source, more=more))
    return load_recipe(path)


def code(directory: Path, *imported: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["import lock_parts", *(f"import {name}" for name in imported), "def make(): pass"]
    (directory / "net.py").write_text("\n".join(lines))
    (directory / "lock_parts.py").write_text("WIDTH = 1\n")


def read(loaded: LoadedRecipe) -> Inputs:
    """Return what a build of the recipe has read, when its code is loaded."""
    load_factory(loaded.recipe.model.source.removeprefix("python:"), loaded, key="source")
    samples = Samples(np.zeros((1, 4, 4, 3), np.uint8), "images:photos", ("a.png",), PreprocessSpec())
    model = float_model(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4))
    fused = FusedModel(model.module, "fx", (), max_abs_diff=0.0, max_abs_output=1.0)
    return inputs_of(loaded, model, "0" * 64, fused, samples, samples)


def drift(loaded: LoadedRecipe, inputs: Inputs) -> str:
    """Return what is found before anything is loaded."""
    with pytest.raises(LockError) as caught:
        check_early(Lock(inputs=inputs, wheels={}), Path("net.lock.toml"), loaded, None)
    return caught.value.message


def holds(loaded: LoadedRecipe, inputs: Inputs) -> bool:
    check_early(Lock(inputs=inputs, wheels={}), Path("net.lock.toml"), loaded, None)
    return True


def test_masks_are_named_one_by_one(tmp_path: Path) -> None:
    code(tmp_path / "recipes")
    loaded = project(tmp_path, more='[task]\nkind = "segmentation"\n[evaluation]\nmetric = "miou"\n' + MASKS)
    inputs = read(loaded)
    assert set(inputs.files) == {"photos/a.png", "masks/a.png", "net.py", "lock_parts.py"}
    assert holds(loaded, inputs)
    (tmp_path / "recipes/masks/a.png").write_text("another")
    assert "masks/a.png: changed" in drift(loaded, inputs)


def test_maps_of_numbers_are_named_one_by_one(tmp_path: Path) -> None:
    code(tmp_path / "recipes")
    maps = 'source = "images:photos"\ntargets = "maps:maps"\nmax_metric = 0.1\n'
    (tmp_path / "recipes/maps").mkdir()
    loaded = project(tmp_path, more='[task]\nkind = "regression"\n[evaluation]\nmetric = "mae"\n' + maps)
    (tmp_path / "recipes/maps/a.npy").write_text("a")
    assert "maps/a.npy" in read(loaded).files


def test_masks_of_each_class_are_named_one_by_one(tmp_path: Path) -> None:
    code(tmp_path / "recipes")
    loaded = project(tmp_path, more='[task]\nkind = "masks"\n[evaluation]\nmetric = "miou"\n' + MASKS)
    for label in ("cloud", "snow"):
        (tmp_path / "recipes/masks" / label).mkdir()
        (tmp_path / "recipes/masks" / label / "a.png").write_text(label)
    assert {"masks/cloud/a.png", "masks/snow/a.png"} < set(read(loaded).files)


def test_true_pictures_are_named_one_by_one_whatever_their_ending(tmp_path: Path) -> None:
    code(tmp_path / "recipes")
    sharp = 'source = "images:photos"\ntargets = "images:sharp"\nmin_metric = 20.0\n'
    (tmp_path / "recipes/sharp").mkdir()
    loaded = project(tmp_path, more='[task]\nkind = "image"\n[evaluation]\nmetric = "psnr"\n' + sharp)
    (tmp_path / "recipes/sharp/a.webp").write_text("a")
    assert "sharp/a.webp" in read(loaded).files


def test_code_above_the_recipe_is_named_by_its_path(tmp_path: Path) -> None:
    """A recipe in a folder of recipes, and the code beside that folder: also what it imports."""
    code(tmp_path / "lib")
    loaded = project(tmp_path, "python:../lib/net.py:make")
    inputs = read(loaded)
    assert {"../lib/net.py", "../lib/lock_parts.py"} < set(inputs.files)
    assert holds(loaded, inputs)
    (tmp_path / "lib/lock_parts.py").write_text("WIDTH = 2\n")
    assert "../lib/lock_parts.py: changed" in drift(loaded, inputs)
    (tmp_path / "lib/lock_parts.py").unlink()
    assert "../lib/lock_parts.py: missing" in drift(loaded, inputs)


def test_modules_on_the_path_are_named_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PYTHONPATH leads may be another place on another host."""
    for place in ("here", "there"):
        code(tmp_path / place / "lock_own")
        (tmp_path / place / "lock_own" / "__init__.py").write_text("")
        (tmp_path / place / "lock_parts.py").write_text("WIDTH = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    loaded = project(tmp_path, "python:lock_own.net:make")
    inputs = read(loaded)
    assert {"python:lock_own", "python:lock_own.net", "python:lock_parts"} < set(inputs.files)
    assert holds(loaded, inputs)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "there"), *sys.path[1:]])
    assert holds(loaded, inputs)
    (tmp_path / "there/lock_own/net.py").write_text("def make(): pass")
    (tmp_path / "there/lock_parts.py").unlink()
    assert drift(loaded, inputs).splitlines()[1:] == [
        "  python:lock_own.net: changed", "  python:lock_parts: missing",
    ]  # fmt: skip


def test_a_module_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock_deep" / "inner").mkdir(parents=True)
    for name in ("lock_deep/__init__.py", "lock_deep/inner/__init__.py", "lock_deep/inner/last.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("lock_deep", "lock_deep.inner", "lock_deep.inner.last", "lock_deep.none", "lock_none.x")
    assert [found and found.relative_to(tmp_path).as_posix() for found in map(module_file, names)] == [
        "lock_deep/__init__.py", "lock_deep/inner/__init__.py", "lock_deep/inner/last.py", None, None,
    ]  # fmt: skip


def test_packages_that_the_code_imports_are_named_with_their_versions(tmp_path: Path) -> None:
    code(tmp_path / "recipes", "yaml", "json")
    loaded = project(tmp_path)
    inputs = read(loaded)
    assert inputs.versions["pyyaml"]
    assert not {"json", "pip", "pytest"} & set(inputs.versions)
    assert holds(loaded, inputs)
    inputs.versions["pyyaml"] = "0.1"
    assert "version of pyyaml: 0.1 in the lock, now " in drift(loaded, inputs)
    inputs.versions["not-installed"] = "1.0"
    assert "version of not-installed: 1.0 in the lock, now absent" in drift(loaded, inputs)


def test_the_libraries_of_a_directory_and_of_a_tokenizer_are_named(tmp_path: Path) -> None:
    wanted = {"transformers", "tokenizers"} & set(installed({"transformers", "tokenizers"}))
    code(tmp_path / "recipes")
    loaded = project(tmp_path)
    recipe = loaded.recipe.model_copy(
        update={"model": loaded.recipe.model.model_copy(update={"source": "transformers:model"})}
    )
    assert wanted <= set(package_versions(loaded.model_copy(update={"recipe": recipe})))


TEXT_RECIPE = """
schema = 1
[package]
name = "net"
[model]
source = "python:net.py:make"
weights = "factory"
[[input]]
name = "input_ids"
shape = [8]
dtype = "int64"
vocabulary = 18
[[input]]
name = "attention_mask"
shape = [8]
dtype = "int64"
vocabulary = 2
default = 1
[tokenizer]
source = "words.json"
[calibration]
source = "text:texts.txt"
[evaluation]
source = "text:judged.jsonl"
"""


def test_a_tokenizer_and_texts_are_named(tmp_path: Path) -> None:
    """With another tokenizer the same texts are other ids: a wheel whose vectors mean something else."""
    code(tmp_path)
    write_tokenizer(tmp_path / "words.json")
    (tmp_path / "texts.txt").write_text("one text\nanother\n")
    (tmp_path / "judged.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "net.toml").write_text(TEXT_RECIPE)
    loaded = load_recipe(tmp_path / "net.toml")
    inputs = read(loaded)
    assert {"words.json", "texts.txt", "judged.jsonl", "net.py", "lock_parts.py"} <= set(inputs.files)
    inputs.files.pop("photos/a.png", None)  # of the samples that `read` makes up
    assert holds(loaded, inputs)
    for name in ("words.json", "texts.txt", "judged.jsonl"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before + b"\n")
        assert f"{name}: changed" in drift(loaded, inputs)
        (tmp_path / name).write_bytes(before)
    assert holds(loaded, inputs)
