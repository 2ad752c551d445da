"""Samples of any length, as texts: other engines get a batch that is cut to its longest sample.

A wheel does not compute padding (``runtime/engine/lengths.py``). Users of the other engines do what their documentation
shows: they leave the length open in the exported model and pad a batch to its longest text. So that is measured.
Where an engine's model takes the greatest length alone, or gives something else for a shorter batch, it gets whole
ones, and its description says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpupack.peers.job import Array, Batch, Job, Pool
from cpupack.runtime.accuracy import sqnr_db

_FILE = "whole.json"
_SAME_DB = 10.0
"""A cut batch gives the whole one's result at least this well. Engines that look for ranges in a batch differ by that
much; one whose exported model has the length of its example inside gives another result."""


def lengths(job: Job, arguments: Sequence[Array]) -> npt.NDArray[np.int64]:
    """Return for each sample how many positions it has without the padding at its end, at least one."""
    found: npt.NDArray[np.int64] = np.ones(len(arguments[0]), np.int64)
    for number in job.open_inputs:
        assert job.named is not None
        values, pad = arguments[number], job.named.inputs[number].pad
        real = (values != pad).reshape(*values.shape[:2], -1).any(axis=2)
        ends = np.where(real.any(axis=1), real.shape[1] - real[:, ::-1].argmax(axis=1), 1)
        found = np.maximum(found, ends)
    return found


def cut(job: Job, arguments: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the arguments of a batch without the positions after its longest sample."""
    opened = job.open_inputs
    longest = int(lengths(job, arguments).max())
    return tuple(
        np.ascontiguousarray(each[:, :longest]) if number in opened else each for number, each in enumerate(arguments)
    )


def served(job: Job) -> list[Batch]:
    """Return the batches to measure: ``job.stored_batches``, those of samples with a length in order of it.

    So the samples of one batch are of like length, as in any server that sorts them. They are cut to the longest if the
    engine takes such batches.
    """
    batches = job.stored_batches()
    if not job.open_inputs:
        return list(batches)
    ordered = np.split(_by_length(job, np.concatenate(batches)), len(batches))
    return [cut(job, job.arguments(each)) for each in ordered] if gets_cut(job) else list(ordered)


def _by_length(job: Job, samples: Array) -> Array:
    return samples[np.argsort(lengths(job, job.arguments(samples)), kind="stable")]


def choose(job: Job, open_pool: Callable[[Job], Pool]) -> str:
    """Try the engine's model on a cut batch, note whether it gets such, and return what to say of it."""
    if not job.open_inputs:
        return ""
    _place(job).write_text("null", encoding="utf-8")  # so that the engine opens its model for such batches
    problem = _tried(job, open_pool)
    _place(job).write_text(json.dumps(problem), encoding="utf-8")
    return ", batches padded to their longest sample" if problem is None else f", batches of full length: {problem}"


def gets_cut(job: Job) -> bool:
    """Whether ``choose`` found that the engine takes cut batches, or is finding it."""
    place = _place(job)
    return place.exists() and json.loads(place.read_text(encoding="utf-8")) is None


def _tried(job: Job, open_pool: Callable[[Job], Pool]) -> str | None:
    """Return why a cut batch cannot be used, None where its result is that of the whole one."""
    samples = _by_length(job, job.ready(job.evaluation.load(slice(0, 64))))
    whole = job.arguments(samples[: job.batch_size])
    short = cut(job, whole)
    longest = job.input_shapes[job.open_inputs[0]][0]
    pool = open_pool(job)
    try:
        expected = job.outputs(pool.submit(pool.adapt(whole), 0).result())
        try:
            found = job.outputs(pool.submit(pool.adapt(short), 0).result())
        except Exception as error:  # noqa: BLE001 - the engine's libraries may raise anything, and it can still take part
            return f"a shorter one fails ({type(error).__name__})"
    finally:
        pool.close()
    for one, other in zip(expected, found, strict=True):
        shared = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
        odd = [a for a, b in zip(one.shape, other.shape, strict=True) if a != b and a != longest]
        if odd or sqnr_db(one[shared], other[shared]) < _SAME_DB:
            return "a shorter one gives another result"
    return None


def _place(job: Job) -> Path:
    return job.work / _FILE
