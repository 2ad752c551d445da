"""Fourier transforms as layers, and the calls after one whose values go over many powers of ten."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.recurrent import Recurrent

_MARK = "fourier"
_BACK = "back"
"""The mark of a transform that gives values again, not a spectrum."""


class Transform(NamedTuple):
    """A Fourier transform of the last dimension, whose ``size`` values are cut or filled up to ``length``.

    ``kind`` is fft, ifft, rfft or irfft, ``norm`` as torch has it. Complex values are all real parts, then all
    imaginary ones.
    """

    kind: str
    size: int
    length: int
    norm: str

    def matrix(self) -> torch.Tensor:
        """Return what rows of values are multiplied with, float64."""
        transform: Any = getattr(torch.fft, self.kind)
        ones = torch.eye(self.size, dtype=torch.float64)
        rows = ones if self.kind == "rfft" else torch.cat([ones + 0j, ones * 1j])
        found = transform(rows, n=self.length, norm=self.norm)
        return torch.cat([found.real, found.imag], 1) if found.is_complex() else found

    def layer(self) -> nn.Linear:
        """Return the product as a layer, marked."""
        weight = self.matrix().t().float().contiguous()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        setattr(layer, _MARK, _BACK if self.kind.startswith("i") else True)
        return layer


def transform(x: torch.Tensor, how: tuple[str, int, int, str]) -> torch.Tensor:
    """Return the transform of the last dimension: ``how`` is a ``Transform`` as a plain tuple."""
    weight = Transform(*how).matrix().to(x)
    return x @ weight


def stft_parts(
    x: torch.Tensor, window: torch.Tensor | None, length: int, hop: int, own: int, normalized: bool, onesided: bool
) -> torch.Tensor:
    """Return a short-time transform of ``(n, values)``, not centred, as ``(n, 2 * bins, windows)``."""
    window = torch.ones(own, dtype=x.dtype, device=x.device) if window is None else window
    left = (length - own) // 2
    whole = torch.nn.functional.pad(window.double(), (left, length - own - left))
    waves = fourier(whole, hop, onesided=onesided, normalized=normalized).weight.detach()
    return (x.unfold(1, length, hop) @ waves[:, 0].t()).transpose(1, 2)


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
    found, spectra = set[fx.Node](), set[fx.Node]()
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        layer = None if module is None else core(module)
        if (
            getattr(layer, _MARK, False)
            or _reads_complex(node)
            or (any(each in spectra for each in node.all_input_nodes) and _keeps_spectrum(layer))
        ):
            found.add(node)
            if getattr(layer, _MARK, False) != _BACK:
                spectra.add(node)
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
