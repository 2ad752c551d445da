"""The threads beside the event loop: for JSON, for loading, for the access log. What is sent to them stops none."""

from __future__ import annotations

import asyncio
import ctypes
import json
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from cpupack.runtime.errors import RunnerError
from cpupack.runtime.serve import access_log
from cpupack.runtime.serve.access_log import AccessLog
from cpupack.runtime.serve.aside import Aside
from helpers.waiting import wait_until


class StrikeError(Exception):
    """What the tests send to a thread."""


def strike(ident: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(StrikeError))


def leave() -> NoReturn:
    raise SystemExit


def test_calls_have_their_values_and_their_errors() -> None:
    async def run() -> None:
        aside = Aside()
        try:
            assert await aside.run(divmod, 7, 2) == (3, 1)
            with pytest.raises(ZeroDivisionError):
                await aside.run(divmod, 7, 0)
            with pytest.raises(RunnerError, match="the call was interrupted"):  # SystemExit would end the event loop
                await aside.run(leave)
        finally:
            aside.close()

    asyncio.run(run())


def test_its_thread_goes_on_when_it_is_struck_between_two_calls() -> None:
    async def run() -> None:
        aside = Aside()
        try:
            ident = await aside.run(threading.get_ident)
            for _ in range(20):
                strike(ident)
                try:
                    assert await asyncio.wait_for(aside.run(threading.get_ident), 60) == ident
                except StrikeError:  # in the midst of the call
                    continue
        finally:
            aside.close()

    asyncio.run(run())


def test_a_cancelled_wait_costs_nothing() -> None:
    async def run() -> None:
        aside, gate = Aside(), threading.Event()
        try:
            waiting = aside.run(gate.wait)
            waiting.cancel()
            gate.set()
            assert await aside.run(int) == 0
        finally:
            aside.close()

    asyncio.run(run())


def test_the_log_is_written_after_its_thread_was_struck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idents: list[int] = []
    real = access_log.os.write

    def write(descriptor: int, data: bytes) -> int:
        idents.append(threading.get_ident())
        if len(idents) == 2:
            strike(idents[0])
        return real(descriptor, data)

    lost: list[None] = []
    monkeypatch.setattr(access_log.os, "write", write)
    log = AccessLog(str(tmp_path / "log"), lambda: lost.append(None))
    for number in range(5):
        log.write({"number": number})
        wait_until(lambda number=number: len(idents) + len(lost) > number)
    log.close()
    numbers = [json.loads(line)["number"] for line in (tmp_path / "log").read_text().splitlines()]
    assert {0, 4} <= set(numbers)
    assert len(lost) <= 1
