"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from helpers import forked


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of builds from a process that has imported torch."""
    monkeypatch.setattr("cpupack.workers.client.run", forked.run_worker)
