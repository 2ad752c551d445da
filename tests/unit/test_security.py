"""What the sources must not do, read from the sources: docs/security.md states it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import cpupack
from cpupack.cli import main

ROOT = Path(cpupack.__file__).parent
DOCS = ROOT.parent / "docs"
FETCHES = {"urllib.request", "http.client", "ftplib", "requests", "httpx", "torch.hub"}


def trees(*places: str) -> dict[str, ast.Module]:
    found = [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in found}


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_runner_never_unpickles() -> None:
    for file, tree in trees("runtime").items():
        assert not imported(tree) & {"pickle", "marshal", "shelve", "dill", "joblib"}, file
        for call in calls(tree):
            name = ast.unparse(call.func)
            assert name not in {"torch.load", "eval", "exec", "pickle.loads"}, f"{file}: {name}"
            if name in {"np.load", "numpy.load"}:
                keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
                assert keywords.get("allow_pickle", "False") == "False", f"{file}: {ast.unparse(call)}"


def test_the_runner_never_fetches() -> None:
    """Commands that measure a server talk to the address that the user gives them; nothing else opens a connection."""
    clients = {file for file, tree in trees("runtime").items() if imported(tree) & FETCHES}
    assert all(file.startswith("runtime/serve/") for file in clients), clients


def test_checkpoints_are_read_without_code() -> None:
    for file, tree in trees("model", "stages", "sources", "lock", "wheel", "pipeline", "workers").items():
        for call in calls(tree):
            if ast.unparse(call.func) == "torch.load":
                keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
                assert keywords.get("weights_only") == "True", f"{file}: {ast.unparse(call)}"


def test_reading_a_wheel_imports_no_code_of_it() -> None:
    for file, tree in trees("wheel", "signing", "bundle").items():
        names = {ast.unparse(call.func) for call in calls(tree)}
        assert not names & {"importlib.import_module", "runpy.run_path", "runpy.run_module", "exec", "eval"}, file
        assert not {each for each in names if each.endswith((".extractall", ".extract"))}, file


def test_check_says_what_a_build_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"open({str(marker)!r}, 'w')\ndef make(): ...\n")
    (tmp_path / "net.toml").write_text(
        'schema = 1\n[package]\nname = "net"\n[model]\nsource = "python:net.py:make"\nweights = "random"\n'
        'input_shape = [4]\n[quantize]\nmode = "dynamic"\n'
    )

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        return capsys.readouterr()

    out, err = run("check", "net.toml")
    assert out == "net.toml: ok\n"
    assert err == 'net.toml: a build runs Python of yours: model.source = "python:net.py:make"\n'
    out, err = run("check", "net.toml", "--json")
    assert json.loads(out)["recipes"][0]["runs_python"] == ['model.source = "python:net.py:make"']
    assert err == ""
    assert not marker.exists()


def _tests() -> Callable[[str], bool]:
    sources = {path.name: path.read_text("utf-8") for path in (ROOT.parent / "tests").rglob("test_*.py")}
    return lambda named: f"def {named.partition('::')[2]}(" in sources.get(named.partition("::")[0], "")


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    exists = _tests()
    named = re.findall(r"`(test_\w+\.py::test_\w+)`", (DOCS / "security.md").read_text("utf-8"))
    assert len(named) > 20
    assert [name for name in named if not exists(name)] == []
