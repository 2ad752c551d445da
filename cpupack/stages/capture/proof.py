"""The proof that a canonical graph answers as the user's model does, and the true cause where it does not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.model.user_code import running_on
from cpupack.stages.capture.export import HINT, batch_is_fixed
from cpupack.stages.capture.rewrites import Rewrite

_TOLERANCE = 1e-3
"""Folding reorders FP32 sums; more than this share of the largest output means a wrong graph."""
_OTHERS = 1e-7
"""An output that is zero but for rounding may differ by that share of the largest of all outputs."""
_REPEATS = 8
_FAR_APART = (1.0, 1e-3, 1e3)
"""Factors for the three samples."""


def close(expected: torch.Tensor, actual: torch.Tensor, places: Sequence[slice] = ()) -> bool:
    """Whether two outputs are equal up to rounding; each for itself where they are rows of several, at ``places``."""
    if expected.shape != actual.shape:
        return False
    least = _OTHERS * float(expected.abs().max()) if places else 0.0
    pairs = [(expected[:, each], actual[:, each]) for each in places] or [(expected, actual)]
    return all(_gap(one, other) <= max(_TOLERANCE * float(one.abs().max()), least) for one, other in pairs)


def _gap(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).abs().max()) if expected.shape == actual.shape else float("inf")


def _answer(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(batch.clone())  # the model may work in place
    return result.float()


@dataclass(frozen=True)
class WrongRewrite:
    """A rewrite that changes the model's answer, and by how much."""

    rewrite: Rewrite
    difference: float


class Proof:
    """Compares graphs with the user's model on batches of 1, 2 and 3 of ``batch``, float32 ``(3, *input_shape)``.

    ``lines`` are the user's that ask for the batch size. ``places`` says where each of several outputs is.
    """

    def __init__(
        self, module: nn.Module, batch: torch.Tensor, lines: tuple[str, ...], places: tuple[slice, ...] = ()
    ) -> None:
        self._module, self._batch, self._lines, self._places = module, batch, lines, places
        with running_on("samples like those of the calibration"):
            self._expected = {size: _answer(module, batch[:size]) for size in (1, 2, len(batch))}
            # Each sample: one that holds the largest value of its batch may answer alone as it does among the others.
            self._alone = torch.cat([_answer(module, batch[place : place + 1]) for place in range(len(batch))])
        self._finite = all(bool(torch.isfinite(each).all()) for each in self._expected.values())

    def check_model(self) -> None:
        """Raise ModelError where the user's model has no one answer for a sample."""
        alone, together = self._alone, self._expected[len(self._batch)]
        if not self._finite:
            return  # the fuse stage says what is not finite
        if close(alone, together, self._places):
            self._check_reversed(together)
            return
        self._refuse_random()
        if self._lines:
            raise batch_is_fixed(len(self._batch), self._lines)
        if alone.shape != together.shape:
            raise ModelError(
                f"the shape of the model's answer depends on the batch: {len(self._batch)} samples alone give "
                f"{tuple(alone.shape)}, together {tuple(together.shape)}",
                hint="keep the batch in dimension 0: squeeze() without a dimension drops it for one sample. " + HINT,
            )
        raise ModelError(
            "the model's answer to a sample depends on the other samples of its batch: alone and among "
            f"{len(self._batch)} it differs by {_gap(alone, together):.3g} (largest output "
            f"{float(alone.abs().max()):.3g})",
            hint="look for a mean, a softmax or other statistics over dimension 0, the batch; nn.LSTM, nn.Transformer "
            "and others that are not batch_first need an [[input]] with batch_dim = 1. " + HINT,
        )

    def _check_reversed(self, together: torch.Tensor) -> None:
        """Raise ModelError where the answers stay behind when the samples change their places.

        Samples that are sorted, and not put back, may come in that order. A sample may have several rows, such as its
        windows.
        """
        found, count = _answer(self._module, self._batch.flip(0)), len(self._batch)
        if found.shape != together.shape or len(found) % count:
            return
        found = found.unflatten(0, (count, -1)).flip(0).flatten(0, 1)
        if close(together, found, self._places):
            return
        self._refuse_random()
        raise ModelError(
            "the model's answer to a sample depends on the other samples of its batch: with the same "
            f"{len(self._batch)} samples the other way round it differs by {_gap(together, found):.3g} (largest output "
            f"{float(together.abs().max()):.3g})",
            hint="a batch that is sorted has to be put back into its order: y[order.argsort()] after x[order]. " + HINT,
        )

    def check_far_apart(self, where: str) -> None:
        """Raise ModelError where samples that are far larger change a sample's answer; ``where`` all of them meet.

        A floor 80 dB below the loudest sample of a batch does not show in samples that are as loud as each other.
        """
        batch = self._batch * torch.tensor(_FAR_APART).reshape(-1, *[1] * (self._batch.ndim - 1))
        try:
            together = _answer(self._module, batch)
            alone = torch.cat([_answer(self._module, batch[place : place + 1]) for place in range(len(batch))])
        except (RuntimeError, TypeError, ValueError, LookupError):
            return  # the model's own checks of its input
        if alone.shape != together.shape or not bool(torch.isfinite(torch.cat([alone, together])).all()):
            return
        for one, other in zip(alone.split(1), together.split(1), strict=True):
            if not close(one, other, self._places):
                raise ModelError(
                    "the model's answer to a sample depends on the other samples of its batch: beside one that is "
                    f"{_FAR_APART[-1]:g} times as large it differs by {_gap(one, other):.3g} (largest output "
                    f"{float(one.abs().max()):.3g}); all samples meet in {where}",
                    hint="take the maximum or mean of each sample: dim=(1, 2, ...) with keepdim=True. AmplitudeToDB of "
                    "torchaudio with top_db needs (batch, 1, frequencies, time): unsqueeze(1) before it. " + HINT,
                )

    def wrong_rewrite(
        self,
        graph: fx.GraphModule,
        used: tuple[Rewrite, ...],
        rewritten: Callable[[tuple[Rewrite, ...]], fx.GraphModule],
    ) -> WrongRewrite | None:
        """Return the rewrite because of which ``graph`` differs; ``rewritten`` makes it with some of them.

        Raises ModelError where it differs for another cause.
        """
        wrong = self._differing(graph)
        if wrong is None or not self._finite:
            return None
        size, difference = wrong
        self._refuse_random()
        if self._differing(rewritten(())) is not None:
            if size != 2 and self._lines:  # it was exported with batches of two
                raise batch_is_fixed(2, self._lines)
            raise ModelError(
                f"internal: the exported graph differs from the model by {difference:.3g} with a batch of {size}",
                hint="this is a fault of cpupack, please report the model. " + HINT,
            )
        for count, each in enumerate(used, start=1):
            if self._differing(rewritten(used[:count])) is not None:
                return WrongRewrite(each, difference)
        return WrongRewrite(used[-1], difference)  # it is wrong after what follows the rewrites alone

    def _refuse_random(self) -> None:
        """Raise ModelError where the model gives several answers; few numbers may be dropped alike once or twice."""
        first = self._expected[len(self._batch)]
        for _ in range(_REPEATS):
            again = _answer(self._module, self._batch)
            if not close(first, again, self._places):
                raise ModelError(
                    f"the model answers differently each time: the same samples twice differ by "
                    f"{_gap(first, again):.3g} (largest output {float(first.abs().max()):.3g})",
                    hint="something random is on in eval mode: F.dropout without training=self.training, or "
                    "torch.rand. " + HINT,
                )

    def _differing(self, graph: fx.GraphModule) -> tuple[int, float] | None:
        for size, expected in sorted(self._expected.items(), key=lambda item: item[0] != 2):
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # FX prints the line of its own code that fails
                    actual = _answer(graph, self._batch[:size])
            except (RuntimeError, TypeError, ValueError, LookupError):
                return size, float("inf")  # a graph that does not even run
            if not close(expected, actual, self._places):
                return size, _gap(expected, actual)
        return None
