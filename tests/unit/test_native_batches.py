"""Tensors that have the batch in another dimension, or joined with one, get it in front; the answer stays the same."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from cpupack.stages.quantize.native.batches import bring_batches_forward
from cpupack.stages.quantize.native.calls import Calls

TOKENS, CHANNELS, HEADS = 6, 8, 2


def graph_of(*modules: nn.Module, build: Callable[[fx.Graph, fx.Node], fx.Node]) -> fx.GraphModule:
    """Return a graph of ``(batch, TOKENS, CHANNELS)`` in the vocabulary; the modules are named 0, 1, ..."""
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    root = nn.ModuleList(modules)
    root.register_buffer("capsules", torch.randn(4, 1, TOKENS, CHANNELS, CHANNELS))
    return fx.GraphModule(root, graph).eval()


def parts_in_front(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Queries, keys and values as most models have them: ``(3, batch, heads, tokens, channels)``."""
    each = CHANNELS // HEADS
    joined = graph.call_function(torch.reshape, (graph.call_module("0", (x,)), (-1, TOKENS, 3, HEADS, each)))
    turned = graph.call_function(torch.permute, (joined, (2, 0, 3, 1, 4)))
    parts = [graph.call_function(operator.getitem, (turned, (slice(i, i + 1),))) for i in range(3)]
    parts = [graph.call_function(torch.reshape, (part, (-1, HEADS, TOKENS, each))) for part in parts]
    found = graph.call_function(F.scaled_dot_product_attention, (*parts, None, 0.0, False))
    return graph.call_function(
        torch.reshape, (graph.call_function(torch.permute, (found, (0, 2, 1, 3))), (-1, TOKENS, CHANNELS))
    )


def tokens_in_front(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """``nn.MultiheadAttention``: tokens first, heads joined with the batch, in the end tokens with the batch."""
    each = CHANNELS // HEADS
    first = graph.call_function(torch.permute, (x, (1, 0, 2)))
    joined = graph.call_module("0", (first,))
    parts = []
    for i in range(3):
        part = graph.call_function(operator.getitem, (joined, (slice(None), slice(None), slice(8 * i, 8 * i + 8))))
        part = graph.call_function(torch.reshape, (part, (TOKENS, -1, each)))
        parts.append(graph.call_function(torch.permute, (part, (1, 0, 2))))
    scores = graph.call_function(torch.matmul, (parts[0], graph.call_function(torch.permute, (parts[1], (0, 2, 1)))))
    found = graph.call_function(torch.matmul, (graph.call_module("2", (scores,)), parts[2]))
    found = graph.call_function(torch.permute, (found, (1, 0, 2)))
    flat = graph.call_module("1", (graph.call_function(torch.reshape, (found, (-1, CHANNELS))),))
    back = graph.call_function(torch.reshape, (flat, (TOKENS, -1, CHANNELS)))
    return graph.call_function(torch.permute, (back, (1, 0, 2)))


def windows(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Swin: windows joined with the batch, a norm and a mean in each of them."""
    cut = graph.call_function(torch.reshape, (x, (-1, 3, CHANNELS)))
    inside = graph.call_module("1", (graph.call_module("3", (cut,)),))
    means = graph.call_function(torch.mean, (inside, [1], True))
    found = graph.call_function(torch.sub, (inside, means))
    return graph.call_function(torch.reshape, (found, (-1, TOKENS, CHANNELS)))


def tokens_before_parts_of_a_sample(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """``nn.MultiheadAttention`` in PatchTST: rows are those of a token, of a sample, of one of its series."""
    cut = graph.call_module("1", (graph.call_function(torch.reshape, (x, (-1, 3, CHANNELS))),))
    first = graph.call_function(torch.permute, (cut, (1, 0, 2)))
    flat = graph.call_module("3", (graph.call_function(torch.reshape, (first, (-1, CHANNELS))),))
    back = graph.call_function(
        torch.permute, (graph.call_function(torch.reshape, (flat, (3, -1, CHANNELS))), (1, 0, 2))
    )
    return graph.call_function(torch.reshape, (graph.call_function(torch.add, (cut, back)), (-1, TOKENS, CHANNELS)))


def filtered(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """kornia: each channel of each sample is an image, with borders that reflect it."""
    images = graph.call_function(torch.reshape, (x, (-1, 1, 3, CHANNELS)))
    padded = graph.call_function(F.pad, (images, [1, 1, 1, 1], "reflect"))
    return graph.call_function(torch.reshape, (graph.call_module("4", (padded,)), (-1, TOKENS, CHANNELS)))


def borders(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """``torch.stft``: the batch is the second dimension while borders reflect the signal; others have zeros there."""
    signals = graph.call_function(torch.reshape, (x, (1, -1, TOKENS * CHANNELS)))
    padded = graph.call_function(F.pad, (signals, [4, 4], "reflect", 0.0))
    back = graph.call_function(torch.reshape, (padded, (-1, TOKENS + 1, CHANNELS)))
    first = graph.call_function(torch.permute, (back, (1, 0, 2)))
    wider = graph.call_function(F.pad, (first, [3, 1], "constant", 0.0))
    return graph.call_function(torch.permute, (wider, (1, 0, 2)))


def batch_in_columns(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Diffusion over a graph (DCRNN): channels are rows, and the tokens of all samples columns."""
    weight = graph.get_attr("1.weight")
    columns = graph.call_function(torch.reshape, (graph.call_function(torch.permute, (x, (1, 2, 0))), (CHANNELS, -1)))
    mixed = graph.call_function(torch.matmul, (weight, columns))
    both = graph.call_function(torch.cat, ([graph.call_function(torch.mul, (mixed, 2.0)), columns], 0))
    rows = graph.call_function(torch.reshape, (both, (2, TOKENS, CHANNELS, -1)))
    turned = graph.call_function(torch.permute, (rows, (3, 0, 1, 2)))
    return graph.call_function(torch.sum, (turned, (1,), False))


def unknown(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """A call that may do anything reads the windows as the model has them."""
    cut = graph.call_module("1", (graph.call_function(torch.reshape, (x, (-1, 3, CHANNELS))),))
    summed = graph.call_function(torch.ops.aten.renorm.default, (cut, 2.0, 1, 1.0))
    return graph.call_function(torch.reshape, (summed, (-1, TOKENS, CHANNELS)))


def along_a_dimension(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Orders, sums and values at places of windows, each along a dimension that it names."""
    aten = torch.ops.aten
    cut = graph.call_module("1", (graph.call_function(torch.reshape, (x, (-1, 3, CHANNELS))),))
    ordered = graph.call_function(aten.sort.default, (cut, 1))
    values, places = (graph.call_function(operator.getitem, (ordered, each)) for each in (0, 1))
    summed = graph.call_function(aten.cumsum.default, (graph.call_function(aten.gather.default, (cut, 1, places)), -2))
    best = graph.call_function(aten.argmax.default, (summed, 2, True))
    mixed = graph.call_function(torch.add, (values, graph.call_function(aten.gather.default, (summed, 2, best))))
    wide = graph.call_function(aten.expand.default, (mixed, [2, -1, -1, -1]))
    parts = graph.call_function(torch.sum, (graph.call_function(torch.mul, (wide, wide)), (0,), False))
    return graph.call_function(torch.reshape, (parts, (-1, TOKENS, CHANNELS)))


def scores_in_front(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Transformer-XL's scores are ``(queries, keys, batch, heads)``: a softmax over the keys."""
    turned = graph.call_function(torch.permute, (graph.call_module("1", (x,)), (1, 2, 0)))
    keys = graph.call_function(torch.reshape, (turned, (TOKENS, CHANNELS, -1, 1)))
    soft = graph.call_module("5", (graph.call_function(torch.mul, (keys, 0.5)),))
    return graph.call_function(torch.permute, (graph.call_function(torch.sum, (soft, (3,), False)), (2, 0, 1)))


def operands_of_fewer_dimensions(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """``(tokens, batch, channels) + (batch, channels)``, and ``q.t() / q.sum(1)``, whose sums are of the columns."""
    first = graph.call_function(torch.permute, (graph.call_module("1", (x,)), (1, 0, 2)))
    step = graph.call_function(torch.mean, (x, (1,), False))
    added = graph.call_function(torch.add, (first, step))
    turned = graph.call_function(torch.permute, (step, (1, 0)))
    divided = graph.call_function(torch.div, (turned, graph.call_function(torch.sum, (step, (1,), False))))
    back = graph.call_function(torch.permute, (divided, (1, 0)))
    moved = graph.call_function(torch.mul, (added, graph.call_function(torch.sum, (added, (0,), False))))
    whole = graph.call_function(torch.permute, (moved, (1, 0, 2)))
    rows = graph.call_function(torch.reshape, (back, (-1, 1, CHANNELS)))
    return graph.call_function(torch.add, (whole, rows))


def priors_of_capsules(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """``u[None, :, :, None] @ weights[:, None]``: a product with a matrix for each class and place."""
    aten = torch.ops.aten
    wide = graph.call_function(aten.expand.default, (graph.call_function(
        torch.reshape, (graph.call_module("1", (x,)), (1, -1, TOKENS, 1, CHANNELS))), [4, -1, -1, -1, -1]
    ))  # fmt: skip
    found = graph.call_function(torch.matmul, (wide, graph.get_attr("capsules")))
    return graph.call_function(torch.sum, (graph.call_function(torch.sum, (found, (0,), False)), (2,), False))


@pytest.mark.parametrize(
    "build",
    [
        scores_in_front,
        operands_of_fewer_dimensions,
        priors_of_capsules,
        parts_in_front,
        tokens_in_front,
        windows,
        tokens_before_parts_of_a_sample,
        filtered,
        borders,
        along_a_dimension,
        batch_in_columns,
        unknown,
    ],
)
def test_the_batch_comes_first(build: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
    torch.manual_seed(0)
    graph = graph_of(
        nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS), nn.Softmax(-1), nn.LayerNorm(CHANNELS),
        nn.Conv2d(1, 1, 3), nn.Softmax(1), build=build,
    )  # fmt: skip
    names = {node.name for node in graph.graph.nodes if node.op == "call_module"}
    batches = [torch.randn(count, TOKENS, CHANNELS) for count in (1, 2, 3, 5)]
    with torch.inference_mode():
        expected = [graph(each) for each in batches]
        bring_batches_forward(graph, (TOKENS, CHANNELS))
        for x, y in zip(batches, expected, strict=True):
            torch.testing.assert_close(graph(x), y)
    assert names <= {node.name for node in graph.graph.nodes}
    across = Calls(graph, (TOKENS, CHANNELS)).across_samples()
    if build is unknown:
        assert any(node.name.startswith("renorm") for node in across)
    else:
        assert across == []


def test_a_graph_with_the_batch_first_stays_as_it_is() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_function(torch.permute, (graph.call_module("0", (x,)), (0, 2, 1)))

    graph = graph_of(nn.Linear(CHANNELS, 4), build=build)
    before = str(graph.graph)
    bring_batches_forward(graph, (TOKENS, CHANNELS))
    assert str(graph.graph) == before
