"""Likenesses and distances of two tensors, and bags of ids: captured as arithmetic that the native engine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.graph.native_model import MixedModel, NativeModel
from helpers.captured import Net
from helpers.lowered import needs_kernels, program_buffers
from helpers.tiny_models import quantized, recipe, run, samples

PROTOTYPES = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)
PAIRS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "cosine": lambda net, x: F.cosine_similarity(net.a(x), net.b(x))[:, None],
    "cosine, small vectors": lambda net, x: F.cosine_similarity(net.a(x) * 1e-3, net.b(x), dim=-1, eps=1e-2)[:, None],
    "cosine to constants": lambda net, x: F.cosine_similarity(net.a(x)[:, None], net.prototypes[None], dim=2),
    "distance": lambda net, x: F.pairwise_distance(net.a(x), net.b(x))[:, None],
    "distance, L1": lambda net, x: F.pairwise_distance(net.a(x), net.b(x), p=1.0, keepdim=True),
}


@needs_kernels
@pytest.mark.parametrize("name", PAIRS)
def test_likenesses_run_natively(name: str) -> None:
    torch.manual_seed(0)
    net = Net(PAIRS[name], a=nn.Linear(12, 8), b=nn.Linear(12, 8), prototypes=PROTOTYPES)
    model, int8 = quantized(net, "native", spec=recipe((12,)))
    assert isinstance(int8.module, NativeModel)
    data = samples((12,), seed=1)
    expected, found = run(model, data), run(int8, data)
    assert found.shape == expected.shape
    # One step of 255 is a large share of a short vector, and the direction of one of 16 samples is that far off.
    assert accuracy.sqnr_db(expected, found) > 20.0


_FAR = torch.sin(torch.arange(40 * 8.0)).reshape(40, 8) + 3.0
MANY: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "to many constants": lambda net, x: torch.cdist(net.a(x), net.far),
    "of many vectors of a sample": lambda net, x: torch.cdist(net.a(x), net.b(x)),
    "of rows of all samples": lambda net, x: torch.cdist(net.a(x).flatten(0, 1), net.far).view(-1, 30, 40),
    "written out": lambda net, x: (
        net.a(x).pow(2).sum(-1, keepdim=True) - 2 * net.a(x) @ net.far.T + net.far.pow(2).sum(-1)
    ).clamp(min=0).sqrt(),
    "by products as asked for": lambda net, x: torch.cdist(
        net.a(x[:, :5]), net.b(x[:, :4]), compute_mode="use_mm_for_euclid_dist"
    ),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", MANY)
def test_distances_of_many_vectors_are_products_in_fp32(name: str) -> None:
    torch.manual_seed(0)
    shape = (30, 12)
    net = Net(MANY[name], a=nn.Linear(12, 8), b=nn.Linear(12, 8), far=_FAR)
    model, int8 = quantized(net, "native", spec=recipe(shape, quantize={"observer": "minmax"}))
    assert isinstance(int8.module, NativeModel)
    # All differences of a sample would be 30 x 40 x 8 values: no buffer has them.
    assert max(int(each["channels"]) * int(each["height"]) for each in program_buffers(int8)) < 4 * 30 * 40 * 8
    data = samples(shape, seed=1)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


def bag(**settings: Any) -> nn.EmbeddingBag:
    torch.manual_seed(0)
    return nn.EmbeddingBag(20, 8, **settings)


BAGS: dict[str, tuple[nn.EmbeddingBag, bool]] = {
    "sum": (bag(mode="sum"), False),
    "mean": (bag(mode="mean"), False),
    "max": (bag(mode="max"), False),
    "sum without padding": (bag(mode="sum", padding_idx=3), False),
    "mean without padding": (bag(mode="mean", padding_idx=3), False),
    "weighted sum": (bag(mode="sum"), True),
}


class Bags(nn.Module):
    """Two bags of ids, and the share of each id of one of them, beside other numbers."""

    def __init__(self, table: nn.EmbeddingBag, weighted: bool) -> None:
        super().__init__()
        self.table, self.weighted, self.head = table, weighted, nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = x[:, 2:7].long()
        shares = ids.float() * 0.1 if self.weighted else None
        result: torch.Tensor = self.head(torch.cat([x[:, :2], self.table(ids, per_sample_weights=shares)], 1))
        return result


def rows(count: int = 32) -> Samples:
    random = np.random.default_rng(0)
    found = np.concatenate([random.standard_normal((count, 2)), random.integers(0, 20, (count, 5))], axis=1)
    return Samples(found.astype(np.float32), "rows", tuple(map(str, range(count))))


@needs_kernels
@pytest.mark.parametrize("name", BAGS)
def test_bags_of_one_size_run_natively(name: str) -> None:
    table, weighted = BAGS[name]
    model, int8 = quantized(Bags(table, weighted), "native", spec=recipe((7,)), data=rows())
    assert isinstance(int8.module, NativeModel)
    assert accuracy.sqnr_db(run(model, rows()), run(int8, rows())) > 25.0


@needs_kernels
@pytest.mark.parametrize("name", [name for name in BAGS if name != "max"])
def test_bags_of_one_id_with_offsets_that_count_the_samples_run_natively(name: str) -> None:
    class Fields(Bags):
        """As DLRM looks up each of its categories."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            offsets, found = torch.arange(len(x)), [x[:, :2]]
            for ids in x[:, 2:4].long().unbind(1):
                shares = ids.float() * 0.1 if self.weighted else None
                found.append(self.table(ids, offsets, per_sample_weights=shares)[:, :4])
            result: torch.Tensor = self.head(torch.cat(found, 1))
            return result

    table, weighted = BAGS[name]
    model, int8 = quantized(Fields(table, weighted), "native", spec=recipe((7,)), data=rows())
    assert isinstance(int8.module, NativeModel)
    assert accuracy.sqnr_db(run(model, rows()), run(int8, rows())) > 25.0


@needs_kernels
def test_bags_of_other_forms_stay_torchs() -> None:
    """Where each bag begins is a list as long as the batch, which is made of no tensor."""
    table = bag(mode="max", padding_idx=3)
    model, int8 = quantized(Bags(table, weighted=False), "native", spec=recipe((7,)), data=rows())
    assert isinstance(int8.module, MixedModel)
    assert accuracy.sqnr_db(run(model, rows()), run(int8, rows())) > 25.0
