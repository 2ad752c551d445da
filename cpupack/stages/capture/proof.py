"""The proof that a canonical graph answers as the user's model does, and the true cause where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.stages.capture.export import batch_is_fixed
from cpupack.stages.capture.rewrites import Rewrite

_TOLERANCE = 1e-3
"""Folding reorders FP32 sums; more than this share of the largest output means a wrong graph."""


def check_model(module: nn.Module, batch: torch.Tensor) -> None:
    """Raise ModelError where the FP32 model has no one answer for a sample, float32 ``batch`` of three."""
    alone, together = _answer(module, batch[:1]), _answer(module, batch)
    if not torch.isfinite(together).all():
        return  # the fuse stage says it
    if close(alone, together[:1]):
        return
    again = _answer(module, batch[:1])
    if not close(alone, again):
        raise ModelError(
            f"the model answers differently each time: the same sample twice differs by {_gap(alone, again):.3g} "
            f"(largest output {float(alone.abs().max()):.3g})",
            hint="something random is on in eval mode: F.dropout without training=self.training, or torch.rand",
        )
    raise ModelError(
        f"the model's answer to a sample depends on the other samples of its batch: alone and among {len(batch)} it "
        f"differs by {_gap(alone, together[:1]):.3g} (largest output {float(alone.abs().max()):.3g})",
        hint="look for statistics or a softmax over dimension 0, the batch, and for a batch size in the code",
    )


def close(expected: torch.Tensor, actual: torch.Tensor) -> bool:
    """Whether two outputs are equal up to rounding."""
    if expected.shape != actual.shape:
        return False
    return _gap(expected, actual) <= _TOLERANCE * float(expected.abs().max())


def _gap(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).abs().max()) if expected.shape == actual.shape else float("inf")


def _answer(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(batch.clone())  # the model may work in place
    return result.float()


@dataclass(frozen=True)
class Proof:
    """Compares graphs with ``module`` on batches of 1, 2 and 3 of ``batch``.

    ``lines`` are the user's that ask for the batch size.
    """

    module: nn.Module
    batch: torch.Tensor
    lines: tuple[str, ...]

    def of(
        self,
        graph: fx.GraphModule,
        used: tuple[Rewrite, ...],
        rewritten: Callable[[tuple[Rewrite, ...]], fx.GraphModule],
    ) -> None:
        """Raise ModelError with the cause where ``graph`` differs; ``rewritten`` makes it with some of the rewrites."""
        wrong = self._differing(graph)
        if wrong is None or not torch.isfinite(_answer(self.module, self.batch)).all():
            return
        size, difference = wrong
        if self._answers_differently():
            raise ModelError(
                "the model answers differently each time",
                hint="something random is on in eval mode: F.dropout without training=self.training, or torch.rand",
            )
        if self._differing(rewritten(())) is not None:
            if size != 2 and self.lines:  # it was exported with batches of two
                raise batch_is_fixed(2, self.lines)
            raise ModelError(
                f"internal: the exported graph differs from the model by {difference:.3g} with a batch of {size}",
                hint="this is a fault of cpupack; please report the model, and use a model with its own QuantStub, or "
                '[quantize] mode = "dynamic", until then',
            )
        for count in range(1, len(used) + 1):
            if self._differing(rewritten(used[:count])) is not None:
                raise ModelError(
                    f"internal: the rewrite {used[count - 1].__name__} changes the model's answer by {difference:.3g}",
                    hint="this is a fault of cpupack; please report the model",
                )

    def _differing(self, graph: fx.GraphModule) -> tuple[int, float] | None:
        for size in (2, 1, len(self.batch)):
            expected, actual = _answer(self.module, self.batch[:size]), _answer(graph, self.batch[:size])
            if not close(expected, actual):
                return size, _gap(expected, actual)
        return None

    def _answers_differently(self) -> bool:
        one, two = _answer(self.module, self.batch), _answer(self.module, self.batch)
        return not close(one, two)
