"""Short-time Fourier transforms as convolutions, and the calls after one whose values go over many powers of ten."""

from __future__ import annotations

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.tags import CONSTANT_NAME

_MARK = "fourier"
WAVES = "fourier.waves"
"""The name of the constants that the matrices of a transform are."""


def fourier(window: torch.Tensor, hop: int, *, onesided: bool, normalized: bool) -> nn.Conv1d:
    """Return a transform of windows that are ``hop`` values apart, as a convolution without padding.

    ``window`` is float ``(length,)``. Takes ``(n, 1, values)`` and returns ``(n, 2 * bins, windows)``: the real parts,
    then the imaginary ones.
    """
    length = len(window)
    bins = length // 2 + 1 if onesided else length
    places = torch.arange(length, dtype=torch.float64)
    # The product modulo the length is exact, and the angle of a large product would not be.
    angles = 2 * torch.pi / length * (torch.outer(places[:bins], places) % length)
    parts = torch.cat([torch.cos(angles), -torch.sin(angles)]) * window.double()
    layer = nn.Conv1d(1, 2 * bins, length, stride=hop, bias=False)
    with torch.no_grad():
        layer.weight.copy_((parts * (length**-0.5 if normalized else 1.0))[:, None])
    setattr(layer, _MARK, True)
    return layer


def spectral_calls(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the transforms of a graph, and what follows them up to the first layer with trained weights.

    A spectrum's values go over many powers of ten, and quiet ones matter as much as loud ones: 8 bits hold the loud
    ones only. Filters (mel) have weights of one sign, which trained layers do not have. The transform may be torch's:
    a call that makes real values of complex ones gives a spectrum, unless it transforms back.
    """
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        layer = None if module is None else core(module)
        if (
            getattr(layer, _MARK, False)
            or _reads_complex(node)
            or any(each.op == "get_attr" and each.meta.get(CONSTANT_NAME) == WAVES for each in node.all_input_nodes)
            or (any(each in found for each in node.all_input_nodes) and _keeps_spectrum(layer))
        ):
            found.add(node)
    return found


def _reads_complex(node: fx.Node) -> bool:
    """Whether a call takes complex values. Those that run know their dtypes (``Calls``)."""
    if "irfft" in str(node.target) or "istft" in str(node.target) or "hfft" in str(node.target):
        return False
    return any(each.meta.get("dtype", torch.float32).is_complex for each in node.all_input_nodes)


def _keeps_spectrum(layer: nn.Module | None) -> bool:
    if layer is None or isinstance(layer, nn.Linear):
        return layer is None or bool((layer.weight >= 0).all())
    return not isinstance(layer, Recurrent) and not list(layer.parameters())
