"""Fixtures that unit and integration tests share."""

from __future__ import annotations

import pytest
from tiny_wheel import TinyWheel, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWheel:
    return make_tiny(tmp_path_factory.mktemp("tiny"))
