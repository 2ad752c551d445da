"""Runs a graph on many samples: in small parts, several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cpupack.progress import Progress

SAMPLES_AT_ONCE = 4
"""Few, so that an activation is still in the cache when the next call or a statistic reads it."""
_MOST_WORKERS = 4
"""More parts at once would need more memory. On a host with more cores each worker has several threads."""


@dataclass(frozen=True)
class Part:
    """Some samples of one batch. ``rows`` are theirs among all samples. ``number`` counts the parts of the batch."""

    batch: int
    number: int
    rows: slice


def parts_of(count: int, batch_size: int, most: int | None = None) -> list[Part]:
    """Return the parts of ``count`` samples in batches: each with at most ``most`` samples, None for whole batches."""
    size = batch_size if most is None else min(most, batch_size)
    found = []
    for batch, begin in enumerate(range(0, count, batch_size)):
        end = min(begin + batch_size, count)
        found += [
            Part(batch, number, slice(start, min(start + size, end)))
            for number, start in enumerate(range(begin, end, size))
        ]
    return found


def in_threads(run: Callable[[Part], object], parts: Sequence[Part], progress: Progress) -> None:
    """Call ``run`` for every part, in inference mode, several at once. Steps of ``progress`` are samples.

    Several parts at once, each with its share of the cores, are faster than one part on all cores: everything runs in
    parallel then, also what torch does with one thread. The error of the first part that fails is raised.
    """
    threads = torch.get_num_threads()
    workers = max(min(threads, _MOST_WORKERS, len(parts)), 1)

    def work(part: Part) -> None:
        with torch.inference_mode():
            run(part)

    def begin() -> None:
        torch.set_num_threads(max(threads // workers, 1))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="parts", initializer=begin)
    try:
        for part, _ in zip(parts, pool.map(work, parts), strict=True):
            progress.step(part.rows.stop, parts[-1].rows.stop, "samples")
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' number became that of libraries for all threads
