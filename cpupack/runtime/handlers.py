"""Errors that arrive at any line, also inside the decoder of an image, which then says that the image is damaged.

Such are the exceptions of the program's own signal handlers, for instance timeouts, and the system's refusals: no more
memory, no more open files. They are no error of an input.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from types import CodeType, TracebackType
from typing import Any, ParamSpec, TypeVar

from .errors import HostError, RunnerError
from .host.limits import system_fault

_P = ParamSpec("_P")
_R = TypeVar("_R")


def keeps_theirs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make ``function`` raise what a signal handler raised, where that was taken for an error of its inputs.

    Where the system refused something, it raises HostError that says what.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **named: _P.kwargs) -> _R:
        handled = sys.exc_info()[1]  # the caller may be dealing with an error of before
        try:
            return function(*args, **named)
        except (RunnerError, OSError, ImportError) as error:
            theirs = next((one for one in _causes(error, handled) if raised_by_handler(one)), None)
            if theirs is None:
                raise_refusal(error, handled)
                raise
        raise theirs

    return call


def raise_refusal(error: BaseException, handled: BaseException | None = None) -> None:
    """Raise HostError where the system refused something, and ``error`` is what came of it.

    What was ``handled`` before is no cause.
    """
    for one in _causes(error, handled):
        if (refused := system_fault(one)) is not None:
            raise HostError(refused) from error


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``: then the handler is among the frames that it has left."""
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return bool(codes & _codes(error.__traceback__))


def _causes(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all its causes, but for what was ``handled`` before."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = {id(handled)}
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        yield one
        seen.add(id(one))
        waiting += [one.__context__, one.__cause__]


def _codes(left: TracebackType | None) -> set[CodeType | None]:
    found: set[CodeType | None] = set()
    while left is not None:
        found.add(left.tb_frame.f_code)
        left = left.tb_next
    return found


def _code(handler: Any) -> CodeType | None:
    """Return the code of a handler: of a function, a method, a partial of one, or an object that can be called."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    for one in (handler, getattr(type(handler), "__call__", None)):  # noqa: B004 - its code is asked for
        if isinstance(code := getattr(getattr(one, "__func__", one), "__code__", None), CodeType):
            return code
    return None
