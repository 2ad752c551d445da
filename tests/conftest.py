"""Fixtures that unit and integration tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny_wheel import TinyWheel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWheel:
    from tiny_wheel import make_tiny  # here, because it imports torch and most tests do not need it

    return make_tiny(tmp_path_factory.mktemp("tiny"))
