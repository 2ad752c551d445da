"""One call of the model: decodes its inputs, computes, and formats the answers. On whatever thread runs it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, RunnerError
from .line import Job
from .model import ServedModel
from .request import Observer, Part, Request
from .times import PrepareTimes

Done = list[tuple[Request, Any, Exception | None]]
"""Requests that are over, each with its answer or its error."""
Notes = list[tuple[Callable[..., None], tuple[Any, ...]]]
"""What is to be learnt from a call, once its answers are on their way."""


class Calls:
    """Runs calls of ``model``, and teaches ``prepare_times`` and ``observer`` how long they took.

    ``report`` gets the traceback of an error that nobody expected. It ends the request that it comes from, and not the
    others of the call.
    """

    def __init__(
        self, model: ServedModel, prepare_times: PrepareTimes, observer: Observer, report: Callable[[str], None]
    ) -> None:
        self._model, self._prepare_times, self._observer, self._report = model, prepare_times, observer, report
        self._lock = threading.Lock()  # of the requests: parts of one may run on several instances

    def run(
        self, instance: int, jobs: Sequence[Job], on_decoded: Callable[[int], None] = lambda instance: None
    ) -> tuple[Done, bool, Notes]:
        """Decode, compute and format one call. Returns the requests that it ends, whether all went well, and notes.

        ``on_decoded`` is called with the instance between the first two. ``note`` is for when the answers are handed
        over: nobody waits for it.
        """
        notes: Notes = []
        begin_s = time.monotonic()
        ready: list[tuple[Job, npt.NDArray[Any]]] = []
        done: Done = []
        for job in jobs:
            part: Part = job.payload
            if part.request.over:
                continue
            try:
                array = self._model.prepare(part.data)
            except (InputError, RunnerError, MemoryError) as error:
                done.append((part.request, None, error))
                continue
            except Exception:  # noqa: BLE001 - reported with its traceback
                done.append((part.request, None, self._unexpected("the input could not be decoded")))
                continue
            now_s = time.monotonic()
            notes.append((self._prepare_times.observe, (part.data.kind, job.size_bytes, now_s - begin_s)))
            part.request.prepare_s += now_s - begin_s
            begin_s = now_s
            ready.append((job, array))
            waits = (max(0.0, job.predicted_s - job.arrived_s), job.started_s - job.arrived_s)
            notes.append((self._observer.wait, waits))
        on_decoded(instance)
        ok = not done
        for group in self._groups(ready):
            ok = self._compute(instance, group, done, notes) and ok
        now_s = time.monotonic()
        for request, _, _ in done:
            request.finished_s = now_s
        return done, ok, notes

    def note(self, notes: Notes) -> None:
        """Learn from a call."""
        for function, arguments in notes:
            function(*arguments)

    def _groups(self, ready: Sequence[tuple[Job, npt.NDArray[Any]]]) -> list[list[tuple[Job, npt.NDArray[Any]]]]:
        """Return what is computed together: samples of one type and shape, as many as the memory is for."""
        groups: dict[Any, list[list[tuple[Job, npt.NDArray[Any]]]]] = {}
        for job, array in ready:
            own = groups.setdefault(self._model.runner.kind_of(array[0]), [[]])
            together = sum(len(each) for _, each in own[-1])
            if own[-1] and together + len(array) > self._model.most_samples(array):
                own.append([])
            own[-1].append((job, array))
        return [group for own in groups.values() for group in own]

    def _compute(self, instance: int, group: Sequence[tuple[Job, npt.NDArray[Any]]], done: Done, notes: Notes) -> bool:
        begin_s = time.monotonic()
        batch = group[0][1] if len(group) == 1 else np.concatenate([array for _, array in group])
        try:
            logits = self._model.run(batch, instance)
        except RunnerError as error:
            done.extend((job.payload.request, None, error) for job, _ in group)
            return False
        compute_s = time.monotonic() - begin_s
        prepare_s = sum(job.payload.request.prepare_s for job, _ in group)
        notes.append((self._observer.call, (len(batch), prepare_s, compute_s)))
        at = 0
        for job, array in group:
            part: Part = job.payload
            rows, at = logits[at : at + len(array)], at + len(array)
            request = part.request
            with self._lock:
                request.logits[part.number] = rows
                request.missing -= 1
                last = not request.missing
            request.started_s = max(request.started_s, job.started_s)
            request.compute_s += compute_s
            request.batch = max(request.batch, len(batch))
            if not last:
                continue
            whole = [one for one in request.logits if one is not None]
            try:
                answer = request.format(_together(whole), request)
            except (InputError, RunnerError) as error:
                done.append((request, None, error))
            except Exception:  # noqa: BLE001 - reported with its traceback
                done.append((request, None, self._unexpected("the answer could not be made")))
            else:
                done.append((request, answer, None))
        return True

    def _unexpected(self, what: str) -> RunnerError:
        """Report the error that is being handled, and return the one for the client."""
        self._report(f"{what}\n{traceback.format_exc()}")
        return RunnerError(f"{what}; the server's log says why")


def _together(parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the outputs of a request: of images of several sizes as an array of arrays, one for each."""
    if len(parts) == 1:
        return parts[0]
    if len({each.shape[1:] for each in parts}) == 1:
        return np.concatenate(parts)
    rows = [row for each in parts for row in each]
    found: npt.NDArray[Any] = np.empty(len(rows), object)
    found[:] = rows
    return found
