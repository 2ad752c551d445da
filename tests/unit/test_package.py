"""The staged project of a tiny model, before it is finished."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
import pytest
import tomli
from packaging.requirements import Requirement

import cpupack
from cpupack.artifacts import StagedProject
from cpupack.errors import PackagingError
from cpupack.runtime.manifest import check_files, read_manifest
from cpupack.stages.package import build_wheel, finish, project, stage_project
from helpers.plan import FACTS, PLAN
from helpers.tiny_wheel import TinyWheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def staged(tiny: TinyWheel, tmp_path: Path) -> StagedProject:
    return stage_project(tiny.contents(), tmp_path / "project")


def pyproject(staged: StagedProject) -> dict:
    return tomli.loads((staged.root / "pyproject.toml").read_text())


# --- the staged project


def test_the_package_has_what_the_contract_names(staged: StagedProject) -> None:
    found = {path.relative_to(staged.package_dir).as_posix() for path in staged.package_dir.rglob("*.*")}
    named = {"__init__.py", "__main__.py", "_entry.py", "py.typed", "manifest.json", "model.pt", "golden.npz"}
    assert named | {"labels.txt", "recipe.toml", "manifest.sha256"} <= found


def test_the_runtime_is_copied_verbatim(staged: StagedProject) -> None:
    runtime = Path(cpupack.__file__).parent / "runtime"
    shipped = staged.package_dir / "_runtime"
    copied = {path.relative_to(shipped): path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    ours = (path for path in runtime.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    sources = [path for path in ours if path.suffix != ".so"]
    assert copied == {path.relative_to(runtime): path.read_bytes() for path in sources}
    assert {Path("serve/static/index.html"), Path("export/c/cpupack.h")} <= set(copied)
    assert Path("pages/templates/base.html.j2") in copied


def test_no_python_in_the_package_imports_cpupack(staged: StagedProject) -> None:
    for path in staged.package_dir.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "cpupack" for name in names), path


def test_the_manifest_hashes_every_file_but_itself(staged: StagedProject) -> None:
    manifest = read_manifest(staged.package_dir)
    shipped = {p.relative_to(staged.package_dir).as_posix() for p in staged.package_dir.rglob("*") if p.is_file()}
    assert set(manifest.files) == shipped - {"manifest.json", "manifest.sha256"}
    check_files(staged.package_dir, manifest)


def test_the_manifest_repeats_what_the_stages_measured(tiny: TinyWheel, staged: StagedProject) -> None:
    manifest, contents = read_manifest(staged.package_dir), tiny.contents()
    assert manifest.input_shape == contents.model.input_shape
    assert manifest.model["int8_bytes"] == (staged.package_dir / "model.pt").stat().st_size
    assert manifest.model["macs"] == contents.model.macs
    assert manifest.target["engine"] == contents.target.engine
    assert manifest.accuracy["sqnr_db"] == contents.report.sqnr_db
    assert manifest.preprocess is not None
    assert manifest.preprocess["crop"] == 8
    assert manifest.labels == "labels.txt"
    assert not manifest.plan.tuned
    assert manifest.bench == {"duration_s": 5.0, "build": None}


def test_the_host_is_among_the_measurements_alone(staged: StagedProject) -> None:
    assert "host" not in read_manifest(staged.package_dir).build
    before = (staged.package_dir / "manifest.json").read_bytes()
    finish(staged, PLAN, FACTS)
    host = read_manifest(staged.package_dir).build["host"]
    assert set(host) == {"cpu", "cpu_id", "cores_physical", "isa", "cores_usable"}
    assert (staged.package_dir / "manifest.json").read_bytes() == before


def test_licence_authors_and_addresses_reach_the_metadata_and_the_card(tiny: TinyWheel, tmp_path: Path) -> None:
    contents = tiny.contents()
    recipe = contents.loaded.recipe
    package = recipe.package.model_copy(
        update={
            "license": "apache-2.0 or mit",
            "authors": ["Ann O'Nym <ann@example.org>", 'B "quoted" C'],
            "urls": {"Homepage": "https://example.org/a?b=c"},
        }
    )
    loaded = contents.loaded.model_copy(update={"recipe": recipe.model_copy(update={"package": package})})
    staged = stage_project(dataclasses.replace(contents, loaded=loaded), tmp_path / "project")
    wheel = build_wheel(staged, tmp_path / "dist").path
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read("tiny_int8-1.0.0.dist-info/METADATA").decode())
        bill = json.loads(archive.read("tiny_int8-1.0.0.dist-info/sboms/tiny_int8.cdx.json"))
    assert metadata["License-Expression"] == "Apache-2.0 OR MIT"
    assert metadata["Author-email"] == "Ann O'Nym <ann@example.org>"
    assert metadata["Author"] == 'B "quoted" C'
    assert metadata.get_all("Project-URL") == ["Homepage, https://example.org/a?b=c"]
    assert "Licence of the weights: Apache-2.0 OR MIT." in metadata.get_payload()
    model = next(each for each in bill["components"] if each["bom-ref"] == "model")
    assert model["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    assert model["pedigree"]["ancestors"][0]["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]


def test_the_card_says_what_is_not_known(tiny: TinyWheel, staged: StagedProject) -> None:
    card = (staged.root / "README.md").read_text()
    assert "Licence of the weights: not stated" in card
    assert "calibrated on synthetic data" in card  # as the tiny wheel is
    assert "accuracy on labelled data was not measured" in card
    assert "The recipe names no licence" in card
    assert "weights are random" not in card


def test_infinite_measurements_are_null_in_the_files(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(sqnr_db=float("inf")), tmp_path / "project")
    finish(staged, PLAN, {"sqnr_db": float("inf")})
    for name in ("manifest.json", "build.json"):
        json.loads((staged.package_dir / name).read_text(), parse_constant=pytest.fail)
    assert read_manifest(staged.package_dir).accuracy["sqnr_db"] is None
    assert "SQNR infinite" in (staged.root / "README.md").read_text()


def test_golden_arrays_and_labels_come_back(tiny: TinyWheel, staged: StagedProject) -> None:
    with np.load(staged.package_dir / "golden.npz", allow_pickle=False) as golden:
        for name, array in tiny.contents().golden.items():
            np.testing.assert_array_equal(golden[name], array)
    labels = (staged.package_dir / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert tuple(labels) == tiny.contents().model.labels


def test_a_label_of_two_lines_is_refused(tiny: TinyWheel, tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="label 1 is"):
        stage_project(tiny.contents(labels=("cat", "a\nb", "dog")), tmp_path / "project")


def test_metadata(staged: StagedProject) -> None:
    project = pyproject(staged)["project"]
    assert project["name"] == "tiny-int8"
    assert project["requires-python"] == ">=3.10"
    assert project["scripts"] == {
        "tiny-int8": "tiny_int8._entry:main",
        "tiny-int8-bench": "tiny_int8._entry:bench_main",
    }
    assert [Requirement(text).name for text in project["dependencies"]] == [
        "torch",
        "numpy",
        "pillow",
    ]


def test_a_description_with_quotes_survives(tiny: TinyWheel, tmp_path: Path) -> None:
    text = 'says "hi"\\n \x7f | two = [1] \N{SNOWMAN}'
    staged = stage_project(tiny.contents(description=text), tmp_path / "project")
    assert pyproject(staged)["project"]["description"] == " ".join(text.split())


def test_random_weights_are_unmistakable(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(random_weights=True), tmp_path / "project")
    assert staged.version == "1.0.0+random"
    assert read_manifest(staged.package_dir).random_weights
    assert "RANDOM WEIGHTS" in (staged.root / "README.md").read_text()


def test_trained_weights_are_not_called_random(staged: StagedProject) -> None:
    assert staged.version == "1.0.0"
    assert "RANDOM" not in (staged.root / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "why"),
    [("2fast", "cannot import"), ("class", "cannot import"), ("torch", "would hide"), ("json", "would hide")],
)
def test_names_python_cannot_use_are_refused(tiny: TinyWheel, tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(PackagingError, match=why):
        stage_project(tiny.contents(name=name), tmp_path / "project")


def test_a_used_directory_is_refused(tiny: TinyWheel, staged: StagedProject) -> None:
    with pytest.raises(PackagingError, match="cannot write"):
        stage_project(tiny.contents(), staged.root)


def test_damaged_templates_are_noticed(tiny: TinyWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = project.render
    monkeypatch.setattr(project, "render", lambda path, /, **values: real(path, **{**values, "version": "9"}))
    with pytest.raises(PackagingError, match=r"version = '9', not '1\.0\.0'"):
        stage_project(tiny.contents(), tmp_path / "project")


# --- what importing the package does


def run_python(staged: StagedProject, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(staged.root / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_not_import_torch(staged: StagedProject) -> None:
    code = (
        "import sys, tiny_int8, tiny_int8._entry\n"
        "print(tiny_int8.__version__, 'Runner' in dir(tiny_int8), 'torch' in sys.modules)"
    )
    assert run_python(staged, code) == "1.0.0 True False"


@pytest.mark.parametrize(
    ("arguments", "limit", "mebibytes", "named"),
    [
        (["info"], "AS", 100, "memory in KiB (ulimit -v):"),
        (["--help"], "AS", 100, "memory in KiB (ulimit -v):"),
        (["predict", "a.png"], "AS", 100, "memory in KiB (ulimit -v):"),
        (["info"], "DATA", 30, "data in KiB (ulimit -d): 30720)"),
    ],
)
def test_a_process_without_room_for_numpy_is_told_so(
    staged: StagedProject, arguments: list[str], limit: str, mebibytes: int, named: str
) -> None:
    """OpenBLAS ends a process that gives it no memory, and numpy blames its installation for it."""
    limit = f"import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_{limit}, ({mebibytes} * 2**20,) * 2)\n"
    code = f"{limit}sys.argv[1:] = {arguments!r}\nrunpy.run_module('tiny_int8', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(staged.root / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (3, "", False)
    assert done.stderr.startswith(f"tiny-int8: error: there is not enough memory (the process's {named}")


def test_a_package_that_is_missing_is_named(staged: StagedProject) -> None:
    """As after ``pip install --no-deps``."""
    code = "import sys\nsys.modules['numpy'] = None\nfrom tiny_int8._entry import main\nprint(main())"
    environment = {**os.environ, "PYTHONPATH": str(staged.root / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert done.stderr.startswith("tiny-int8: error: tiny-int8 cannot be loaded: import of numpy halted")
    assert done.stderr.endswith("; pip install tiny-int8: it brings what is needed\n")


def test_an_unknown_name_is_an_attribute_error(staged: StagedProject) -> None:
    code = "import tiny_int8\ntry: tiny_int8.Runer\nexcept AttributeError as error: print(error)"
    assert run_python(staged, code) == "module 'tiny_int8' has no attribute 'Runer'"


def test_errors_and_warnings_are_imported_from_the_package(staged: StagedProject) -> None:
    """A caller who caught one had to name a private module."""
    from cpupack.runtime import errors

    own = [name for name, each in vars(errors).items() if isinstance(each, type)]
    code = (
        f"import sys, tiny_int8\nfrom tiny_int8 import {', '.join(own)}\nassert 'numpy' not in sys.modules\n"
        f"assert set({own}) <= set(tiny_int8.__all__) and issubclass(InputError, RunnerError)\n"
        "from tiny_int8 import Runner\ntry: Runner(threads=0)\nexcept InputError: print('caught')"
    )
    assert run_python(staged, code) == "caught"


def test_the_bound_runner_takes_every_option_of_the_runtimes(staged: StagedProject) -> None:
    from cpupack.runtime.runner import Runner

    tree = ast.parse((staged.package_dir / "_bound.py").read_text())
    init = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    wanted = [name for name in inspect.signature(Runner).parameters if name != "package_dir"]
    assert [argument.arg for argument in init.args.kwonlyargs] == wanted


def test_runner_has_help_and_runs(tiny: TinyWheel, staged: StagedProject) -> None:
    code = (
        "import pydoc, numpy, pathlib, tiny_int8\n"
        "text = pydoc.render_doc(tiny_int8.Runner)\n"
        "assert 'Runs tiny-int8 1.0.0' in text and 'threads' in text, text\n"
        "with tiny_int8.Runner(threads=1, instances=1) as runner:\n"
        "    golden = numpy.load(pathlib.Path(tiny_int8.__file__).parent / 'golden.npz')\n"
        "    print(numpy.abs(runner(golden['input']) - golden['output']).max() < 1e-5)\n"
    )
    assert run_python(staged, code) == "True"


def test_a_model_of_arrays_runs_too(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(images=False), tmp_path / "project")
    code = (
        "import numpy, pathlib, tiny_int8\n"
        "golden = numpy.load(pathlib.Path(tiny_int8.__file__).parent / 'golden.npz')\n"
        "with tiny_int8.Runner(threads=1, instances=1) as runner:\n"
        "    difference = runner(golden['input']) - golden['output']\n"
        "    print(golden['input'].dtype, numpy.abs(difference).max() < 1e-5)\n"
    )
    assert run_python(staged, code) == "float32 True"
    assert "photo.jpg" not in (staged.root / "README.md").read_text()
