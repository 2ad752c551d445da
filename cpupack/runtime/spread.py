"""Runs batches of any size: in calls of an even size, spread over all instances, with bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine.batches import even_size
from .engine.pool import InstancePool
from .feed import Feed
from .plan.decide import Plan
from .threads import Answer

Floats = npt.NDArray[np.float32]


class Spread:
    """Spreads batches over the instances of ``pool`` as ``plan`` says. ``feed`` makes what the pool takes."""

    def __init__(self, pool: InstancePool, plan: Plan, feed: Feed) -> None:
        self._pool, self._plan, self._feed = pool, plan, feed
        self._sample_s: float | None = None

    def share(self, count: int, turns: int = 1) -> int:
        """Return how many of ``count`` samples go into one call."""
        if count == 1 or not self._pool.is_program:  # a model of torch prepares for each new size
            return self._plan.batch_size
        if self._sample_s is None:
            self._sample_s = self._time_one()
        return even_size(count, self._plan.batch_size, self._plan.instances, self._sample_s, turns)

    def most(self, batch: npt.NDArray[Any], size: int) -> int:
        """Return how many samples like those of a batch go into one call, at most ``size``: for the sake of memory."""
        own = self._feed.size_of(batch)
        return size if own is None else min(size, self._pool.most_samples(*own))

    def alone(self, batch: npt.NDArray[Any]) -> Floats:
        """Return the output of one call."""
        return _floats(self._pool.run(self._feed.ready(batch)))

    def outputs(self, batch: npt.NDArray[Any]) -> Floats:
        """Return the output of a batch of any size."""
        size = self.most(batch, self.share(len(batch)))
        if len(batch) <= size:
            return self.alone(batch)
        chunks = (batch[start : start + size] for start in range(0, len(batch), size))
        return _joined(list(self.run(chunks, size)))

    def run(self, batches: Iterator[npt.NDArray[Any]], size: int) -> Iterator[Floats]:
        """Yield the logits of each batch in order. Keeps every instance busy, with bounded memory.

        For a model of torch the last of several batches is padded to the size of the others, because oneDNN would make
        new primitives for another size.
        """
        waiting: deque[tuple[Answer[npt.NDArray[Any]], int]] = deque()
        for number, batch in enumerate(batches):
            count = len(batch)
            if number and count < size and not self._pool.is_program:
                batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), batch.dtype)])
            waiting.append((self._pool.submit(self._feed.ready(batch)), count))
            if len(waiting) >= 2 * self._plan.instances:
                yield _rows(*waiting.popleft())
        while waiting:
            yield _rows(*waiting.popleft())

    def _time_one(self) -> float:
        one, begin_s = self._feed.example(1), time.perf_counter()
        self._pool.run(one)
        return time.perf_counter() - begin_s


def _rows(answer: Answer[npt.NDArray[Any]], count: int) -> Floats:
    return _floats(answer.result()[:count])


def _floats(output: npt.NDArray[Any]) -> Floats:
    return np.asarray(output, np.float32)


def _joined(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
