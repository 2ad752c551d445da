"""Runs from image files to outputs: Pillow and threads for the other engines, ``Runner.predict`` for the wheel.

The other engines get the code that a careful user would write. It decodes files in as many threads as there are cores,
to the pixels that the model was evaluated on. Every instance is kept busy while the next batches are decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from cpupack.peers.job import Array, Job, PeerError, Pool
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels

Feed = Callable[[Sequence[str]], int]
"""A function that runs all files and returns their number."""


def runner_feed(runner: Any) -> Feed:
    """Return a feed that calls ``predict`` of a wheel's Runner."""
    return lambda paths: len(runner.predict(list(paths), top_k=1))


def pillow_feed(pool: Pool, job: Job) -> Feed:
    """Return a feed that decodes and normalizes in ``job.cores`` threads, at most one batch ahead of each instance."""
    if job.evaluation.preprocess is None:
        raise PeerError("the recipe has no [preprocess], so its model takes no image files")
    spec = PreprocessSpec.from_dict(job.evaluation.preprocess)
    decoders = ThreadPoolExecutor(job.cores, "decode")

    def ready(path: str) -> Array:
        return job.ready(to_pixels(decode_image(path), spec)[None])

    def feed(paths: Sequence[str]) -> int:
        ahead = job.batch_size * (pool.instances + 1)
        decoding = deque(decoders.submit(ready, path) for path in paths[:ahead])
        position = len(decoding)
        running: deque[Future[Any]] = deque()
        number = 0
        while decoding:
            size = min(job.batch_size, len(decoding))
            batch = np.concatenate([decoding.popleft().result() for _ in range(size)])
            for path in paths[position : position + size]:
                decoding.append(decoders.submit(ready, path))
            position += size
            if size < job.batch_size:
                batch = batch[np.arange(job.batch_size) % size]
            running.append(pool.submit(pool.adapt(batch), number % pool.instances))
            number += 1
            while len(running) > pool.instances:
                running.popleft().result()
        while running:
            running.popleft().result()
        return len(paths)

    return feed
