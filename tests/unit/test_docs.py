"""The documentation is true: generated pages are current, links and paths exist, commands and recipes parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cpupack import errors
from cpupack.cli import cli
from cpupack.recipe.file import parse_recipe
from cpupack.runtime import cli as wheel_cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SEVERAL_INPUTS = ("siamese.py", "siamese.npz", "heads.py", "tokens.py", "tokens.npz", "table.py", "table_data.py")
ENTRIES = ("person.py", "person.safetensors", "people.npz")
STREAMS = ("words.py", "words.npz", "chunks.npz", "denoise.py", "sound.npz")
MINIMAL = """\
schema = 1
[package]
name = "x"
[model]
source = "torchvision:resnet18"
weights = "random"
input_shape = [3, 224, 224]
[preprocess]
[calibration]
source = "synthetic"
"""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a language, also those that are indented under a step of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [textwrap.dedent(body) for _, body in found]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield what follows each ``$`` prompt, split as a shell would, comments and pipes left out."""
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ (.*)$", block, flags=re.M):
            for one in line.split(" && "):
                yield shlex.split(one, comments=True)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_current() -> None:
    page = generator()
    # Word by word: another version of click or argparse may break lines elsewhere.
    assert page.PAGE.read_text(encoding="utf-8").split() == page.render().split(), "run: python docs/generate_cli.py"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@every_page
def test_files_of_the_repository_that_it_names_exist(page: Path) -> None:
    directories = "recipes|docs|cpupack|tests|templates|benchmarks"
    for named in re.findall(rf"`((?:{directories})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / named).exists(), named


@every_page
def test_commands_parse(page: Path, tmp_path: Path) -> None:
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    wheels = re.findall(r'\[package\]\nname = "(.+)"', page.read_text(encoding="utf-8"))
    for program, *arguments in commands(page):
        if program == "cpupack":
            command = cli.commands[arguments[0]]
            context = cli.make_context("cpupack", [], resilient_parsing=True)  # click keeps the names of its help
            command.make_context(arguments[0], arguments[1:], parent=context)
        elif Path(program).name.endswith("-int8") or program in wheels:
            # --help last: the arguments before it are parsed, and nothing is run.
            assert wheel_cli.main(tmp_path, [*arguments, "--help"], prog=program) == 0, arguments
        elif program == "make":
            assert f"\n{arguments[0]}:" in targets


VIDEOS = ("clips.npz", "labelled.npz", "labels.txt")
SIZES = (
    "unet.py", "unet.safetensors", "gestures.py", "gestures.safetensors", "recordings.npz", "events.py",
    "events.safetensors", "pairs.py", "pairs.safetensors", "pairs.npz",
)  # fmt: skip


@every_page
def test_recipes_and_parts_of_recipes_are_valid(page: Path, tmp_path: Path) -> None:
    plain = ("model.py", "shapes.pt", "metrics.py", "masks.npz", "boxes.json")
    for name in (*plain, *SEVERAL_INPUTS, *ENTRIES, *STREAMS, *VIDEOS, *SIZES):
        (tmp_path / name).touch()
    for name in ("photos/cat", "held-out/cat"):
        (tmp_path / name).mkdir(parents=True)
    encoder = tmp_path / "models" / "my-encoder"
    encoder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "modules.json"):
        (encoder / name).write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.txt").write_text("How?\n", encoding="utf-8")
    (tmp_path / "data" / "pairs.jsonl").write_text('{"text": "How?", "label": 0}\n', encoding="utf-8")
    for block in blocks(page, "toml"):
        text = block if "schema = 1" in block else f"{MINIMAL}{block}"
        recipe, problems, _ = parse_recipe(text, page.name, tmp_path)
        assert recipe is not None, problems


def test_the_readme_tells_every_command_and_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.commands:
        assert f"`cpupack {name} " in text or f"`cpupack {name}`" in text
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.CpupackError):
            assert re.search(rf"\| {error.exit_code} \|", text), error


def test_make_help_tells_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", text, flags=re.M)
    told = re.findall(r"^# make ([\w-]+)  +\S", text, flags=re.M)
    assert sorted(told) == sorted(targets.split())
    assert set(re.findall(r"^([a-z-]+):(?!=)", text, flags=re.M)) == set(told)


def test_every_guide_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index.read_text())}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= linked


def test_the_readmes_recipe_is_as_short_as_it_says() -> None:
    (recipe,) = blocks(ROOT / "README.md", "toml")
    assert len(recipe.splitlines()) < 20
