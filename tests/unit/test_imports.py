"""Who may import whom, read from the sources; and that light commands stay light."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

import cpupack

ROOT = Path(cpupack.__file__).parent
DOCS = ROOT.parent / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_map", DOCS / "generate_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAP = generator()
SOURCES, imports = MAP.SOURCES, MAP.imports
RUNTIME_MAY_IMPORT = {"torch", "numpy", "PIL", "jinja2", "mlperf_loadgen", "__future__"}
SERVE_MAY_IMPORT = {"httptools", "uvloop", "grpc", "google"}
"""The extra serve. Only modules that `serve` loads after its check for the extra may import it."""
TEXT_MAY_IMPORT = {"tokenizers"}
"""A dependency of wheels that take text alone, so it is imported where a tokenizer is opened."""
RAY_MAY_IMPORT = {"ray", "pyarrow", "starlette"}
"""The extras batch and ray. Only modules that a check for them comes before may import them."""
PRINTERS = {"cli.py", "entry.py", "runtime/cli.py"}
USERS_TORCHSCRIPT = {"model/saved.py", "model/script_parts.py"}  # read the files and the parts that are a user's
TUTORIAL = "peers/fbgemm.py"  # quantizes and saves as PyTorch's own tutorial does, to be compared with


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def files_importing(package: str) -> set[str]:
    return {file for file in SOURCES if any(within(name, package) for name in imports(file))}


def stage_of(file: str) -> str | None:
    """Return the stage a file belongs to; a directory under stages/ is one stage."""
    parts = Path(file).parts
    return Path(parts[1]).stem if parts[0] == "stages" and parts[1] != "__init__.py" else None


def test_the_runtime_imports_itself_and_its_declared_dependencies_only() -> None:
    for file in (file for file in SOURCES if file.startswith("runtime/")):
        for node in ast.walk(SOURCES[file]):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < len(Path(file).parts), f"{file} leaves the runtime"
                names = [node.module or ""] if node.level == 0 else []
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                extra = SERVE_MAY_IMPORT if file.startswith("runtime/serve/") else set()
                extra = RAY_MAY_IMPORT if file.startswith("runtime/on_ray/") else extra
                extra = TEXT_MAY_IMPORT if file == "runtime/text/tokenizer.py" else extra
                extra = {"pyarrow"} if file.startswith("runtime/batch/") else extra
                assert top in RUNTIME_MAY_IMPORT | extra or top in sys.stdlib_module_names, f"{file} imports {name}"


def levels(groups: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, int]:
    """Return the number of each package's group, the topmost 0."""
    return {name: number for number, (_, names) in enumerate(groups) for name in names}


@pytest.mark.parametrize(
    ("under", "groups"),
    [("", [*MAP.BUILDER[:-1], ("", MAP.FOUNDATION), MAP.BUILDER[-1]]), ("runtime", MAP.RUNTIME)],
    ids=["builder", "runtime"],
)
def test_no_import_goes_up_or_in_a_circle(under: str, groups: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """In this order a newcomer can read them. A new package needs a place in docs/generate_map.py."""
    found, level = MAP.arrows(under), levels(groups)
    assert set(found) == set(level)
    assert sum(len(names) for _, names in groups) == len(level)
    upward = {f"{each} -> {other}" for each in found for other in found[each] if level[other] < level[each]}
    assert not upward
    assert not {each for each in found if each in MAP.reached(found, each)}


def test_an_arrow_is_any_import_wherever_it_is() -> None:
    found = MAP.arrows()
    assert "wheel" in found["api"]  # inside a function
    assert "stages" in found["pipeline"]
    assert "engine" in MAP.arrows("runtime")["images"]  # relative
    assert MAP.reached({"a": {"b"}, "b": {"c"}, "c": {"a"}}, "a") == {"a", "b", "c"}


def test_the_map_of_the_documentation_is_current() -> None:
    page = MAP.PAGE.read_text(encoding="utf-8")
    assert page == MAP.with_map(page), "run: python docs/generate_map.py"
    stages = {stage_of(file) for file in SOURCES} - {None}
    assert set(re.findall(r"^\| (\w+) \|", page.partition("## Where")[0], flags=re.M)) - {"stage"} == stages


def test_no_stage_imports_another() -> None:
    for file in SOURCES:
        own = stage_of(file)
        if own is None:
            continue
        for name in imports(file):
            if within(name, "cpupack.stages"):
                parts = name.split(".")
                assert len(parts) < 3 or parts[2] == own, f"{file} imports {name}"


def test_only_the_pipeline_knows_the_stages() -> None:
    outside = {file for file in files_importing("cpupack.stages") if stage_of(file) is None}
    assert {file for file in outside if not file.startswith("pipeline/")} == set()


def test_the_quantize_stage_owns_torch_ao_quantization() -> None:
    users = files_importing("torch.ao.quantization") - {TUTORIAL}
    assert users
    assert all(file.startswith("stages/quantize/") for file in users)
    owners = ("stages/quantize/", "graph/", TUTORIAL)
    assert all(file.startswith(owners) for file in files_importing("torch.ao.nn"))


def test_torch_jit_has_one_owner_in_the_build_and_one_in_the_runner() -> None:
    users = {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.jit"
    }
    found = (users | files_importing("torch.jit")) - {TUTORIAL} - USERS_TORCHSCRIPT
    assert found == {"stages/script.py", "runtime/engine/torch_jit.py"}


def test_only_the_command_lines_print_or_exit() -> None:
    for file, tree in SOURCES.items():
        if file in PRINTERS or file.startswith(("commands/", "workers/")):  # parts of cli.py; processes of their own
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "sys.exit", "exit", "os._exit", "click.echo"}, f"{file}: {called}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT.parent, check=False)


RECIPE = """
schema = 1
package = { name = "light" }
model = { source = "python:m.py:make", weights = "random", input_shape = [3, 8, 8] }
quantize = { mode = "dynamic" }
"""


def test_the_command_line_loads_no_torch() -> None:
    finished = run("-c", "import sys, cpupack.cli; print(sorted({'torch', 'torchvision'} & set(sys.modules)))")
    assert (finished.stdout.strip(), finished.returncode) == ("[]", 0), finished.stderr


def test_checking_a_recipe_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def make(): ...")
    recipe = tmp_path / "light.toml"
    recipe.write_text(RECIPE)
    code = """
import sys
from cpupack.cli import main
try:
    main(["check", sys.argv[1]])
except SystemExit as stopped:
    print(stopped.code, "torch" in sys.modules)
"""
    finished = run("-c", code, str(recipe))
    assert finished.stdout.splitlines()[-1] == "0 False", finished.stdout + finished.stderr
