"""Whether a model whose recurrent layers carry their states answers to chunks as it does to the whole sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cpupack.errors import ModelError
from cpupack.model.leaves import leaves_of
from cpupack.model.one_row import OneRow
from cpupack.model.pasts import Past, Pasts, longer
from cpupack.progress import Progress
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.signature import Signature

_SAME = 1e-3
"""Of the largest output: what FP32 outputs of chunks and of the whole may differ by. As in the proof of capture."""


def check_stream(model: OneRow, signature: Signature, source: str, progress: Progress) -> None:
    """Compare two chunks of random values, one after the other, with both as one sequence, in FP32.

    Raises ModelError for a model whose answer to a chunk depends on later ones, or on more than the states: a mean over
    all steps, a convolution that looks ahead. A model that takes no longer sequence is not compared, with a warning.
    """
    rows = random_rows(signature.inputs, np.random.default_rng(0), 2)
    with torch.no_grad():
        chunks = [model.tensors(torch.from_numpy(rows[number : number + 1])) for number in range(2)]
        whole = _of_whole(model, chunks)
        if whole is None:
            progress.warn(
                f"[model] stream: {source} runs on chunks of one length alone, so nobody could check that it answers "
                "to chunks as to the whole sequence"
            )
            return
        first = signature.split(model(torch.from_numpy(rows[:1])).numpy())
        for spec, place in zip(signature.inputs, signature.input_places(), strict=True):
            if spec.state is not None:
                rows[1, place] = first[spec.state].reshape(-1)
        second = signature.split(model(torch.from_numpy(rows[1:])).numpy())
    states = {each.name for _, each in signature.states}
    for taken, output in zip(model.taken, signature.outputs, strict=True):
        if output.name in states:
            continue
        expected = whole[taken.name].movedim(taken.axis, 0).numpy()
        found = _joined(first[output.name], second[output.name], expected)
        apart = np.inf if found is None else np.abs(found - expected).max() / (np.abs(expected).max() or 1.0)
        if not apart <= _SAME:
            told = "" if found is None else f" (they differ by {apart:.2g} of its largest value)"
            raise ModelError(
                f'[model] stream: the output "{output.name}" of {source} is another one for two chunks than for both '
                f"as one sequence{told}",
                hint="what came before reaches a chunk through the states of recurrent layers and the padding of "
                "causal convolutions alone: no mean over all steps, no convolution that sees later ones. Drop that "
                'output, or let forward take and return what it needs and name it in [[input]] state = "..."',
            )


def _of_whole(model: OneRow, chunks: Sequence[list[torch.Tensor]]) -> Mapping[str, torch.Tensor] | None:
    """Return the outputs for both chunks as one sequence, None where no dimension of the inputs can be longer."""
    single, _ = _steps(model, chunks[0])
    for number in range(max(each.ndim for each in chunks[0]) - 1):
        joined = [longer(each, number, axis) for *each, axis in zip(*chunks, model.axes, strict=True)]
        try:
            steps, result = _steps(model, joined)
        except Exception:  # noqa: BLE001 - user code on a shape that it may not take
            steps, result = 0, None
        if steps > single:
            return leaves_of(result).tensors
    return None


def _steps(model: OneRow, tensors: list[torch.Tensor]) -> tuple[int, Any]:
    """Return how many steps the first of what carries a state runs, and what the user's model gives."""
    first = model.carried[0]
    if isinstance(first, Past):
        with Pasts() as run:
            result = model.call_user(tensors)
        return run.seen[first.number].steps, result
    layer: Any = model.user.get_submodule(first.path)
    seen: list[int] = []
    handle = layer.register_forward_hook(
        lambda _, args, kwargs, __: seen.append(
            1 if first.is_cell else (args[0] if args else kwargs["input"]).shape[1 if layer.batch_first else 0]
        ),
        with_kwargs=True,
    )
    try:
        result = model.call_user(tensors)
    finally:
        handle.remove()
    return sum(seen) if first.is_cell else seen[0], result


def _joined(first: Any, second: Any, whole: Any) -> Any:
    """Return the outputs of two chunks as that of the whole: side by side, or the last one. None where neither fits."""
    if second.shape == whole.shape:
        return second
    for axis in range(1, whole.ndim):
        if whole.ndim == first.ndim and whole.shape[axis] == first.shape[axis] + second.shape[axis]:
            found = np.concatenate([first, second], axis)
            return found if found.shape == whole.shape else None
    return None
