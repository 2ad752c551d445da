"""Inputs decoded ahead of who reads them."""

from __future__ import annotations

import os
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine.crew import Crew
from .errors import InputError
from .threads import Answer, ThreadRefusedError

Load = Callable[[Any], npt.NDArray[Any]]


def together(
    arrays: Iterable[npt.NDArray[Any]],
    most: Callable[[npt.NDArray[Any]], int],
    kind: Callable[[npt.NDArray[Any]], Any] = np.shape,
) -> Iterator[npt.NDArray[Any]]:
    """Yield batches of arrays that follow each other and are of one ``kind``, as many as ``most`` says for it."""
    batch: list[npt.NDArray[Any]] = []
    for each in arrays:
        if batch and (kind(each) != kind(batch[0]) or len(batch) >= most(batch[0])):
            yield np.stack(batch)
            batch = []
        batch.append(each)
    if batch:
        yield np.stack(batch)


class _Wanted:
    """Lives as long as somebody waits for the decoded inputs of one call."""


class Decoders:
    """Up to ``count`` threads that decode. They start with the first call that needs them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._crews: dict[type[Decoders], Crew] = {}
        """One crew at most. A dictionary keeps the first of two that are put there at the same time."""

    def batches(self, items: Sequence[Any], load: Load, size: int, *, ahead: int) -> Iterator[npt.NDArray[Any]]:
        """Yield what ``load`` returns for each item, in order, ``size`` at a time and the rest.

        ``ahead`` items are decoded before they are asked for. Raises InputError that says which item.
        """
        return together(self.each(items, load, ahead=ahead), lambda _: size)

    def each(self, items: Sequence[Any], load: Load, *, ahead: int) -> Iterator[npt.NDArray[Any]]:
        """Yield what ``load`` returns for each item, in order. Raises InputError that says which item."""
        wanted = _Wanted()

        def one(position: int, asked: weakref.ref[_Wanted]) -> npt.NDArray[Any] | None:
            if asked() is None:
                return None  # the reader was interrupted, and nobody waits for this
            try:
                return load(items[position])
            except InputError as error:
                if isinstance(items[position], str | os.PathLike):  # a path names itself
                    raise
                raise InputError(f"input {position}: {error}") from error

        submit, asked = self._submit(), weakref.ref(wanted)
        # One image object given twice is decoded once: Pillow and files are not made for two threads at a time.
        shared = {key for key, count in Counter(map(id, items)).items() if count > 1}
        once: dict[int, Answer[npt.NDArray[Any] | None]] = {}

        def decode(position: int) -> Answer[npt.NDArray[Any] | None]:
            key = id(items[position])
            if key not in shared:
                return submit(one, position, asked)
            if key not in once:
                once[key] = submit(one, position, asked)
            return once[key]

        decoding = deque(decode(position) for position in range(min(ahead, len(items))))
        following = iter(range(len(decoding), len(items)))
        while decoding:
            found = decoding.popleft().result()
            if (position := next(following, None)) is not None:
                decoding.append(decode(position))
            assert found is not None  # while ``wanted`` lives
            yield found
        del wanted

    def close(self) -> None:
        """End the threads."""
        for crew in list(self._crews.values()):
            crew.close()

    def _submit(self) -> Callable[..., Answer[Any]]:
        """Return what gives a call to the threads. Where the system refuses them the caller decodes by itself."""
        try:
            return self._crew().submit
        except ThreadRefusedError:
            return _at_once

    def _crew(self) -> Crew:
        found = self._crews.get(Decoders)
        if found is None:  # two threads may both come here: the first crew is kept, the other one ends
            found = self._crews.setdefault(Decoders, Crew(self._count))
        return found


def _at_once(call: Callable[..., Any], *arguments: Any) -> Answer[Any]:
    answer: Answer[Any] = Answer()
    answer.run(call, arguments)
    return answer
