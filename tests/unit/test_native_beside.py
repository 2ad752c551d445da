"""What goes past all layers with weights stays FP32, natively: factorization machines beside a deep network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.stages.quantize import reasons
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run


class DeepFM(nn.Module):
    """Ids of six columns in; products of all pairs of their vectors, beside layers that read the vectors too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors, self.weights = nn.Embedding(60, 8), nn.Embedding(60, 1)
        self.deep = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))
        self.register_buffer("first", torch.arange(6) * 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = x.long() + self.first
        vectors = self.vectors(ids)
        pairs = 0.5 * (vectors.sum(1).pow(2) - vectors.pow(2).sum(1)).sum(1, keepdim=True)
        result: torch.Tensor = self.weights(ids).sum(1) + pairs + self.deep(vectors.flatten(1))
        return result


@needs_kernels
def test_sums_of_products_of_embeddings_are_exact() -> None:
    ids = np.random.default_rng(0).integers(0, 10, (48, 6)).astype(np.float32)
    data = Samples(ids, "ids", tuple(map(str, range(48))))
    model, int8 = quantized(DeepFM(), "native", spec=recipe((6,)), data=data)
    assert not any(each.kernel == "aten" for each in int8.layers)
    assert {each.name for each in int8.layers if each.precision == "int8"} == {"deep.0", "deep.2"}
    assert any(each.reason == reasons.BESIDE for each in int8.layers)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 50.0
