"""``helpers.once``: what several workers share is made by one of them, whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from helpers.once import once


def test_others_wait_and_take_what_the_first_has_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    name, made, found = f"shared-{os.getpid()}", [], []
    inside, go_on = threading.Event(), threading.Event()

    def make(root: Path) -> None:
        made.append(root)
        inside.set()
        assert go_on.wait(60)
        (root / "wheel").write_text("whole")

    def ask() -> None:
        found.append((once(tmp_path_factory, name, make) / "wheel").read_text())

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert inside.wait(60)
    go_on.set()
    for asker in askers:
        asker.join()
    assert (len(made), found) == (1, ["whole"] * 3)


def test_what_failed_half_made_is_made_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    name = f"failed-{os.getpid()}"

    def fail(root: Path) -> None:
        (root / "half").touch()
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        once(tmp_path_factory, name, fail)
    again = once(tmp_path_factory, name, lambda root: (root / "whole").touch())
    assert [path.name for path in again.iterdir()] == ["whole"]


def test_workers_of_one_session_share_a_directory(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        own = tmp_path / f"popen-{worker}"  # as pytest-xdist has them
        monkeypatch.setattr(tmp_path_factory, "getbasetemp", lambda own=own: own)
        found.add(once(tmp_path_factory, "wheel", lambda root: (root / "a").touch()))
    assert found == {tmp_path / "once" / "wheel"}
