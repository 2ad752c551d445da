"""Exceptions that the program's own signal handlers raise, such as timeouts. They arrive at any line, also inside the
decoder of an image, whose errors say that the image is damaged. They are no error of an input.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, ParamSpec, TypeVar

from .errors import RunnerError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def keeps_theirs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make ``function`` raise what a signal handler raised, where that was taken for an error of its inputs."""

    @functools.wraps(function)
    def call(*args: _P.args, **named: _P.kwargs) -> _R:
        handled = sys.exc_info()[1]  # the caller may be dealing with an error of before
        try:
            return function(*args, **named)
        except RunnerError as error:
            theirs = _theirs(error, handled)
            if theirs is None:
                raise
        raise theirs

    return call


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``: then the handler is among the frames that it has left."""
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return bool(codes & _codes(error.__traceback__))


def _theirs(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """Return what a handler raised among the causes of ``error``, but for what was ``handled`` before."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = {id(handled)}
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if raised_by_handler(one):
            return one
        seen.add(id(one))
        waiting += [one.__context__, one.__cause__]
    return None


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
