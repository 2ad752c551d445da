"""Fixtures of the integration tests: a stranger's project, and the command line run in it."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpupack.cli import main
from helpers import forked
from helpers.tiny_recipes import Outcome, Project, make_project


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of builds, and the engines of comparisons, from a process that has imported torch."""
    forked.use(monkeypatch.setattr)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@pytest.fixture
def cpupack(
    project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Outcome]]:
    """Run the command line in the project's directory, in this process: torch is imported once for all tests."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("TMPDIR", str(project.root / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, *capfd.readouterr())

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
