"""What the program's own signal handlers raise in the middle of a call: it stays what it is."""

from __future__ import annotations

import functools
import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.handlers import raised_by_handler
from cpupack.runtime.runner import Runner


class Struck(io.BytesIO):
    """A file that is struck by a signal while it is read, as a slow one is by a timeout."""

    def read(self, size: int | None = -1) -> bytes:
        signal.raise_signal(signal.SIGUSR1)
        return super().read(size)


class Handlers:
    """The ways to write a handler."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def method(self, *_: Any) -> None:
        raise self.error

    def __call__(self, *_: Any) -> None:
        self.method()

    def function(self) -> Callable[..., None]:
        def handler(*_: Any) -> None:
            raise self.error

        return handler


@pytest.fixture
def handle() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: (signal.signal(signal.SIGUSR1, handler), None)[1]
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def runner(package_dir: Path) -> Iterator[Runner]:
    with Runner(package_dir, threads=1, instances=1) as one:
        yield one


@pytest.mark.parametrize("kind", [TimeoutError, OSError, ValueError, SyntaxError])
@pytest.mark.parametrize("form", ["method", "function", "partial", "object"])
def test_the_exception_of_a_handler_is_no_error_of_the_input(
    runner: Runner, handle: Callable[[Any], None], kind: type[Exception], form: str
) -> None:
    made = Handlers(kind("out of time"))
    handle(
        {
            "method": made.method,
            "function": made.function(),
            "partial": functools.partial(made.function(), 1),
            "object": made,
        }[form]
    )
    with pytest.raises(kind) as found:
        runner.predict(Struck(b"no image"))
    assert found.value is made.error


def test_an_error_of_the_input_stays_one_while_a_timeout_of_before_is_dealt_with(
    runner: Runner, handle: Callable[[Any], None]
) -> None:
    handle(Handlers(TimeoutError("out of time")).method)
    try:
        runner.predict(Struck(b""))
    except TimeoutError:
        with pytest.raises(InputError, match="not an image"):
            runner.predict(b"no image")
    with pytest.raises(InputError, match="not an image") as found:
        runner.predict(b"no image")
    assert not raised_by_handler(found.value)
