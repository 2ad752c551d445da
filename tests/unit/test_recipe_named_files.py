"""The files that a recipe names: what the lock hashes, and the cache those of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpupack.recipe.file import load_recipe
from cpupack.recipe.files import NamedFile, named_files, place_of, sources
from cpupack.recipe.recipe import Recipe

BASE = {
    "schema": 1,
    "package": {"name": "net"},
    "model": {"source": "torchvision:resnet18", "weights": "random", "input_shape": [4]},
    "calibration": {"source": "synthetic"},
}


def recipe(**tables: dict[str, object]) -> Recipe:
    """Return a recipe with keys changed. Only its form is checked, not whether its files are there."""
    return Recipe.model_validate({**BASE, **{name: {**BASE.get(name, {}), **keys} for name, keys in tables.items()}})


def named(made: Recipe, directory: Path) -> list[tuple[str, str]]:
    return [(each.key, each.name) for each in named_files(made, directory)]


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("")


def test_names_that_are_no_files_name_none(tmp_path: Path) -> None:
    touch(tmp_path, "resnet18", "random", "synthetic", "imagenet")
    assert named(recipe(), tmp_path) == []
    assert named(recipe(model={"labels": "imagenet"}), tmp_path) == []
    assert named(recipe(model={"labels": ["a", "b"]}), tmp_path) == []
    assert named(recipe(model={"source": "python:pkg.mod:factory"}), tmp_path) == []


@pytest.mark.parametrize(
    ("key", "value", "file"),
    [
        ("model.source", "python:code/net.py:make", "code/net.py"),
        ("model.source", "export:net.pt2", "net.pt2"),
        ("model.source", "torchscript:net.pt", "net.pt"),
        ("model.weights", "net.pt", "net.pt"),
        ("model.weights", "net.pth", "net.pth"),
        ("model.weights", "net.ckpt", "net.ckpt"),
        ("model.weights", "net.tar", "net.tar"),
        ("model.weights", "net.bin", "net.bin"),
        ("model.weights", "deep/net.safetensors", "deep/net.safetensors"),
        ("model.labels", "labels.txt", "labels.txt"),
        ("calibration.source", "arrays:data.npz", "data.npz"),
        ("calibration.source", "text:lines.txt", "lines.txt"),
        ("calibration.source", "python:data.py:load", "data.py"),
        ("evaluation.source", "arrays:data.npz", "data.npz"),
        ("evaluation.source", "text:lines.jsonl", "lines.jsonl"),
        ("evaluation.source", "python:data.py:load", "data.py"),
        ("evaluation.metric", "python:metric.py:score", "metric.py"),
        ("evaluation.targets", "coco:boxes.json", "boxes.json"),
        ("evaluation.targets", "csv:rows.csv", "rows.csv"),
        ("tokenizer.source", "tokenizer.json", "tokenizer.json"),
    ],
)
def test_every_key_that_names_a_file(tmp_path: Path, key: str, value: str, file: str) -> None:
    table, _, name = key.partition(".")
    made = recipe(**{table: {name: value}})
    assert named(made, tmp_path) == [], "a file that is not there"
    touch(tmp_path, file)
    assert named(made, tmp_path) == [(key, file)]
    assert place_of(file, tmp_path) == (tmp_path / file).resolve()


@pytest.mark.parametrize("kind", ["transformers", "sentence-transformers"])
def test_a_directory_of_a_model_names_all_in_it(tmp_path: Path, kind: str) -> None:
    """In one order, whatever order the disk has; the same with a slash at its end."""
    touch(tmp_path, "saved/model.safetensors", "saved/config.json", "saved/1_Pooling/config.json", "beside.json")
    (tmp_path / "saved" / "empty").mkdir()
    files = ["saved/1_Pooling/config.json", "saved/config.json", "saved/model.safetensors"]
    for name in ("saved", "saved/"):
        made = recipe(model={"source": f"{kind}:{name}"})
        assert named(made, tmp_path) == [("model.source", file) for file in files]


def test_folders_of_data_are_not_walked(tmp_path: Path) -> None:
    """Which of their photos a build reads is known when it has read them."""
    touch(tmp_path, "photos/a.jpg", "masks/a.png")
    made = recipe(
        calibration={"source": "images:photos"}, evaluation={"source": "images:photos", "targets": "masks:masks"}
    )
    assert named(made, tmp_path) == []


def test_the_place_of_a_checkout_is_not_in_a_name(tmp_path: Path) -> None:
    """What is below the recipe's directory begins there; what is elsewhere keeps its place."""
    here, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    touch(here, "net.pt", "saved/config.json")
    touch(elsewhere, "net.pt")
    assert named(recipe(model={"weights": str(here / "net.pt")}), here) == [("model.weights", "net.pt")]
    outside = str(elsewhere / "net.pt")
    assert named(recipe(model={"weights": outside}), here) == [("model.weights", outside)]
    assert named(recipe(model={"weights": "../elsewhere/net.pt"}), here) == [("model.weights", "../elsewhere/net.pt")]
    saved = recipe(model={"source": f"transformers:{here / 'saved'}"})
    assert named(saved, here) == [("model.source", "saved/config.json")]


def test_files_of_an_installed_package_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "named_files_weights/__init__.py", "named_files_weights/net.pt")
    monkeypatch.syspath_prepend(tmp_path)
    name = "package:named_files_weights/net.pt"
    assert named(recipe(model={"weights": name}), tmp_path) == [("model.weights", name)]
    assert place_of(name, tmp_path) == tmp_path / "named_files_weights" / "net.pt"
    assert place_of("package:named_files_that_nobody_has/net.pt", tmp_path) is None
    assert named(recipe(model={"weights": "package:named_files_that_nobody_has/net.pt"}), tmp_path) == []


def test_all_of_one_recipe_in_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "net.py", "net.pt", "labels.txt", "data.npz", "metric.py")
    made = recipe(
        model={"source": "python:net.py:make", "weights": "net.pt", "labels": "labels.txt"},
        calibration={"source": "arrays:data.npz"},
        evaluation={"source": "arrays:data.npz", "metric": "python:metric.py:score"},
    )
    assert list(sources(made)) == ["model.source", "calibration.source", "evaluation.source", "evaluation.metric"]
    assert list(named_files(made, tmp_path)) == [
        NamedFile("model.source", "net.py"),
        NamedFile("calibration.source", "data.npz"),
        NamedFile("evaluation.source", "data.npz"),
        NamedFile("evaluation.metric", "metric.py"),
        NamedFile("model.weights", "net.pt"),
        NamedFile("model.labels", "labels.txt"),
    ]


def test_a_recipe_reached_by_a_link_names_the_same(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    touch(real, "net.pt")
    link.symlink_to(real)
    assert named(recipe(model={"weights": str(link / "net.pt")}), link) == [("model.weights", "net.pt")]


def test_the_recipe_of_a_file_names_what_lies_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "net.py", "net.safetensors")
    path = tmp_path / "net.toml"
    path.write_text(
        'schema = 1\n[package]\nname = "net"\n[model]\nsource = "python:net.py:make"\nweights = "net.safetensors"\n'
        'input_shape = [4]\n[calibration]\nsource = "synthetic"\n'
    )
    loaded = load_recipe(path)
    assert named(loaded.recipe, loaded.path.parent) == [
        ("model.source", "net.py"),
        ("model.weights", "net.safetensors"),
    ]
