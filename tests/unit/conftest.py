"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from helpers import forked


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of builds, and the engines of comparisons, from a process that has imported torch."""
    forked.use(monkeypatch.setattr)
