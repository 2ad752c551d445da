"""Mixtures of experts as transformers has them: all experts for all tokens, each with its share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.stages.capture import all_experts
from helpers.captured import Net, captured
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples
from helpers.tiny_text import library

_SHAPE = (6, 16)


def _block(experts: int, way: str) -> nn.Module:
    """Return Mixtral's block of experts, of which each token has two."""
    transformers = library("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=experts, num_experts_per_tok=2, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=10,
    )  # fmt: skip
    config._experts_implementation = way
    torch.manual_seed(0)
    block: Any = transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for each in block.parameters():
            each.copy_(torch.randn_like(each) * 0.3)
    return copy.deepcopy(block).eval()


@needs_kernels
@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_experts_run_natively_whatever_way_the_library_computes_them(way: str) -> None:
    net = Net(lambda net, x: x + net.experts(x), experts=_block(4, way))
    captured(net, _SHAPE)
    data = samples(_SHAPE)
    spec = recipe(_SHAPE, quantize={"observer": "minmax"})
    model, int8 = quantized(net, "native", spec=spec, data=data)
    assert [each.kernel for each in int8.layers if each.kernel.startswith("aten")] == []
    # A token whose second expert changes has another answer: the router stays FP32, so none does here.
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_many_experts_of_which_a_token_has_few_stay_those_of_the_library() -> None:
    net = Net(lambda net, x: x + net.experts(x), experts=_block(20, "grouped_mm"))
    graph = captured(net, _SHAPE)
    assert any("grouped_mm" in str(node.target) for node in graph.graph.nodes)


def test_experts_of_a_release_with_other_names_stay_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_experts, "_FACTS", ("a_name_of_another_release",))
    net = Net(lambda net, x: x + net.experts(x), experts=_block(4, "grouped_mm"))
    graph = captured(net, _SHAPE)
    assert any("grouped_mm" in str(node.target) for node in graph.graph.nodes)
