"""Runs the model over a stream of inputs: reads and decodes ahead, keeps every instance busy, and skips no input.

What cannot be read becomes an outcome with its error. What is wrong with the model or the host is raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.crew import Crew
from ..errors import HostError, InputError, IntegrityError, RunnerError
from ..runner import Runner
from ..text.texts import is_text
from ..threads import Answer
from .results import Outcome
from .shards import Id, Item

_MOST_TOGETHER = 4
"""Inputs that wait for one batch, at most, in batches: where many cannot be read, a batch fills up slowly."""


@dataclass(frozen=True)
class _Loaded:
    """One input, decoded, with its frame; or why it could not be read."""

    id: Id
    array: npt.NDArray[Any] | None = None
    frame: Any = None
    error: str | None = None
    truncated: bool | None = None


class Stream:
    """Runs a runner over items. ``readers`` threads read and decode, twice as many as there are cores in the plan:
    while one waits for a file, another one decodes.
    """

    def __init__(self, runner: Runner, top_k: int) -> None:
        self._runner, self._top_k = runner, top_k
        self._readers = Crew(2 * runner.plan.threads * runner.plan.instances)

    def close(self) -> None:
        """End the threads."""
        self._readers.close()

    def outcomes(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """Yield what becomes of each item, in order."""
        waiting: deque[tuple[list[_Loaded], Answer[npt.NDArray[Any]] | None]] = deque()
        for together in self._batches(self._loaded(items)):
            waiting.append((together, self._submit(together)))
            if len(waiting) > 2 * self._runner.plan.instances:
                yield from self._presented(*waiting.popleft())
        while waiting:
            yield from self._presented(*waiting.popleft())

    def _loaded(self, items: Iterable[Item]) -> Iterator[_Loaded]:
        ahead = self._runner.plan.batch_size * (self._runner.plan.instances + 1)
        waiting: deque[Answer[_Loaded]] = deque()
        for item in items:
            waiting.append(self._readers.submit(self._load, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _load(self, item: Item) -> _Loaded:
        try:
            value = item.read()
            if self._is_ready(value):
                self._runner.check_batch(str(value.dtype), (1, *value.shape))
                return _Loaded(item.id, self._runner.finite(value[None])[0], self._runner.answers.frame(value))
            if self._runner.tokenizer is not None and is_text(value):
                tokens = self._runner.tokenizer.tokens(value)
                frame = self._runner.answers.frame(tokens)
                return _Loaded(item.id, self._runner.load(tokens), frame, truncated=tokens.truncated)
            return _Loaded(item.id, self._runner.load(value), self._runner.answers.frame(value))
        except InputError as error:
            return _Loaded(item.id, error=str(error))

    def _is_ready(self, value: Any) -> bool:
        """Return whether an array needs no preprocessing: floats, or pixels that have the model's own size."""
        pixels = self._runner.pixel_shape()
        if pixels is None or not isinstance(value, np.ndarray) or self._runner.signature.takes_rows:
            return False
        known = self._runner.sizes is None  # pixels of any size may have to be filled up
        return bool(value.dtype.kind == "f" or (known and value.dtype == np.uint8 and value.shape == pixels))

    def _batches(self, loaded: Iterable[_Loaded]) -> Iterator[list[_Loaded]]:
        size = self._runner.plan.batch_size
        together: list[_Loaded] = []
        count = 0
        for one in loaded:
            first = next((each.array for each in together if each.array is not None), None)
            kind = self._runner.kind_of
            if first is not None and one.array is not None and kind(first) != kind(one.array):
                yield together
                together, count = [], 0
            together.append(one)
            count += one.array is not None
            most = size if one.array is None else self._runner.most_samples(one.array[None], size)
            if count >= most or len(together) == _MOST_TOGETHER * size:
                yield together
                together, count = [], 0
        if together:
            yield together

    def _submit(self, together: list[_Loaded]) -> Answer[npt.NDArray[Any]] | None:
        arrays = [each.array for each in together if each.array is not None]
        if not arrays:
            return None
        batch = np.stack(arrays)
        missing = self._runner.plan.batch_size - len(batch)
        if missing > 0 and not self._runner.pool.is_program:  # a model of torch prepares anew for each size
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        return self._runner.pool.submit(self._runner.ready(batch))

    def _presented(self, together: list[_Loaded], answer: Answer[npt.NDArray[Any]] | None) -> Iterator[Outcome]:
        rows = iter(np.asarray(answer.result(), np.float32)) if answer is not None else iter(())
        for one in together:
            if one.error is not None:
                yield Outcome(one.id, None, one.error)
                continue
            try:
                size = None if one.array is None else self._runner.size_of(one.array)
                result = self._runner.present(next(rows), one.frame, self._top_k, size)
                yield Outcome(one.id, result, None, one.truncated)
            except (HostError, IntegrityError):
                raise
            except RunnerError as error:  # of this input alone: its outputs hold NaN
                yield Outcome(one.id, None, str(error))


@contextmanager
def streaming(runner: Runner, top_k: int) -> Iterator[Stream]:
    """Open a stream, and end its threads."""
    stream = Stream(runner, top_k)
    try:
        yield stream
    finally:
        stream.close()
