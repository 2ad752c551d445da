"""A stream: a sequence that is fed to a runner chunk by chunk, with the model's states carried from one to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import rows
from .arrays import MOST_FLOAT, is_finite, like_inputs
from .errors import InputError, RunnerError
from .handlers import keeps_theirs
from .signature import Array, Floats, Signature
from .tensor_spec import batch_text

NO_STATE = (
    "this model keeps no state, so it has no streams; [model] stream = true in its recipe, or state in an [[input]], "
    "makes a wheel that does"
)
"""What is said of streams of a model without one."""


class Stream:
    """One sequence, or several side by side, in a model that keeps a state. ``runner.stream()`` makes it.

    Each call takes the next chunk and returns its outputs without the states. The first chunk decides how many
    sequences there are. Streams of one runner are independent of each other, and may be called from several threads at
    once.
    """

    def __init__(
        self,
        signature: Signature,
        run: Callable[[Floats], npt.NDArray[np.float32]],
        state: Mapping[str, Any] | None = None,
        *,
        check_finite: bool = True,
    ) -> None:
        self._signature, self._run, self._check_finite = signature, run, check_finite
        self._specs = {spec.name: (spec, output) for spec, output in signature.states}
        if not self._specs:
            raise InputError(NO_STATE)
        self._one_at_a_time = threading.Lock()
        self._state: dict[str, Array] = {} if state is None else self._checked(state)

    @keeps_theirs
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs for the next chunk of each sequence: an array ``(n, ...)``, or a dict of several by name.

        Takes what the runner takes, without the states. Outputs are tensors if an input is one. Raises InputError,
        and RunnerError where the model fails; the state then stays that of the chunk before.
        """
        if len(inputs) == 1 and not named and not isinstance(inputs[0], Mapping):
            given = {self._chunk_names()[0]: inputs[0]}
        else:
            given = rows.by_name(self._signature, self._in_order(inputs), named)
        if own := [name for name in given if name in self._specs]:
            raise InputError(f'the stream keeps the state "{own[0]}" itself; runner.stream(state=...) sets it')
        with self._one_at_a_time:
            batch = rows.pack(self._signature, {**given, **self._fitting(given)}, check_finite=self._check_finite)
            signature = self._of_size(batch)
            raw = signature.split(self._run(batch))
            state = {spec.name: raw[output.name] for spec, output in self._specs.values()}
            if self._check_finite:
                _require_finite(state)
            self._state = state
        return like_inputs(self._results(signature, raw), given)

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the states after the last chunk, float32 ``(n, ...)`` by name; empty at the beginning."""
        with self._one_at_a_time:
            return {name: each.copy() for name, each in self._state.items()}

    def reset(self) -> None:
        """Begin anew: the next chunk is the first of its sequences."""
        with self._one_at_a_time:
            self._state = {}

    def _chunk_names(self) -> list[str]:
        """Return the inputs that a call takes."""
        return [each.name for each in self._signature.inputs if each.name not in self._specs]

    def _in_order(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return one dict of inputs that are given by position: those of the runner without the states."""
        if not inputs or (len(inputs) == 1 and isinstance(inputs[0], Mapping)):
            return inputs
        names = self._chunk_names()
        if len(inputs) > len(names):
            raise InputError(f"got {len(inputs)} inputs; a chunk of this stream has {', '.join(names)}")
        return (dict(zip(names, inputs, strict=False)),)

    def _fitting(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Return the states for a chunk. Raises InputError where it has another number of sequences."""
        ranks = {each.name: 1 + len(each.shape) for each in self._signature.inputs}
        # One of another rank lacks the batch, which is said where inputs are packed.
        sizes = {
            name: len(each)
            for name, each in given.items()
            if hasattr(each, "__len__") and getattr(each, "ndim", ranks[name]) == ranks[name]
        }
        for name, size in sizes.items():
            for each in self._state.values():
                if size != len(each):
                    raise InputError(
                        f'input "{name}": got {size} sequences, and the chunks before had {len(each)}; reset() begins '
                        "anew, and each group of sequences can have a stream of its own"
                    )
        return self._state

    def _checked(self, state: Mapping[str, Any]) -> dict[str, Array]:
        if not isinstance(state, Mapping):
            raise InputError(f"state is a {type(state).__name__}; expected a dict as stream.state gives it")
        if unknown := [name for name in state if name not in self._specs]:
            raise InputError(f'the model has no state "{unknown[0]}"; it has {self._told()}')
        if not state:
            return {}
        if missing := [name for name in self._specs if name not in state]:
            raise InputError(f'the state "{missing[0]}" is missing; the model has {self._told()}')
        found = {
            name: rows.batch_of(self._specs[name][0], each, check_finite=self._check_finite).copy()
            for name, each in state.items()
        }
        counts = {name: len(each) for name, each in found.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"the states are of different numbers of sequences: {counts}")
        return found

    def _told(self) -> str:
        return ", ".join(f"{name} float32 {batch_text(spec.shape)}" for name, (spec, _) in self._specs.items())

    def _of_size(self, batch: Floats) -> Signature:
        """Return the signature with the shapes that outputs have for a chunk of this size."""
        sizes = self._signature.sizes
        return self._signature if sizes is None else self._signature.of_size(sizes.size_in(batch))

    def _results(self, signature: Signature, raw: Mapping[str, Floats]) -> Any:
        states = {output.name for _, output in self._specs.values()}
        found = {each.name: each.finish(raw[each.name]) for each in signature.outputs if each.name not in states}
        return next(iter(found.values())) if len(found) == 1 else found

    def __reduce__(self) -> NoReturn:
        raise RunnerError(
            "a stream cannot be pickled or copied: take its state with stream.state, and go on with "
            "runner.stream(state=...), here or in another process"
        )

    def __repr__(self) -> str:
        begun = f"{len(next(iter(self._state.values())))} sequences" if self._state else "at its beginning"
        return f"<Stream of {self._told()}: {begun}>"


def _require_finite(state: Mapping[str, Array]) -> None:
    """Raise RunnerError for a state with which no chunk could follow."""
    for name, value in state.items():
        if not is_finite(value):
            sequence = next(number for number, one in enumerate(value) if not is_finite(one))
            raise RunnerError(
                f'the state "{name}" of sequence {sequence} is not finite or above {MOST_FLOAT:g} after this chunk, so '
                "the stream stays where it was; are the chunk's values far larger than those that the model knows?"
            )
