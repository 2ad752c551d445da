"""Fixtures that unit and integration tests share."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("helpers")  # their assertions then show values as those of tests do

if TYPE_CHECKING:
    from helpers.tiny_wheel import TinyWheel


def pytest_configure() -> None:
    os.environ["CPUPACK_NO_CACHE"] = "1"  # a test asks for the work, and not for what another has kept
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        import torch  # here, because most single tests need none

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(workers)))
    # A job started in the background has SIGINT ignored, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWheel:
    from helpers.tiny_wheel import make_tiny  # here, because it imports torch and most tests do not need it

    return make_tiny(tmp_path_factory.mktemp("tiny"))
