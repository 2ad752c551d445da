"""Runs a coroutine at once, without a task of asyncio's: most answers need one wait or none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


def run_at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutine`` until it waits for a future, and on when that is done.

    A task begins in the next turn of the loop, and is made and registered for each request: a tenth of the time of a
    small one. What runs here cannot be cancelled, and has no ``asyncio.current_task()``. It may await futures only.
    """
    steps: Generator[Any, None, None] = coroutine.__await__()

    def step(_: asyncio.Future[Any] | None = None) -> None:
        try:
            waits_for: asyncio.Future[Any] = next(steps)
        except StopIteration:
            return
        waits_for.add_done_callback(step)

    step()
