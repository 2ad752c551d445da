"""The layers of a wheel as text, from its ``build.json``: how each layer runs, and which stayed FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]
_HEADINGS = ("layer", "kind", "precision", "operator", "scale", "zero", "weights", "output")


def format_layers(layers: Sequence[Layer]) -> str:
    """Return a table of layers (``LayerFact`` as in ``build.json``), in the order of execution, then the reasons."""
    rows = [_HEADINGS, *(_row(layer) for layer in layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join([*left, *right]).rstrip())
    float_layers = [layer for layer in layers if layer["precision"] == "fp32"]
    lines += ["", f"{len(layers) - len(float_layers)} of {len(layers)} layers run in INT8."]
    lines += [f"  {layer['name']} ({layer['kind']}) stayed FP32: {layer['reason']}" for layer in float_layers]
    lines += [
        "",
        "weights, output: SQNR in dB against FP32. The error of an output includes those of all layers before it.",
    ]
    return "\n".join(lines)


def _row(layer: Layer) -> tuple[str, ...]:
    return (
        layer["name"],
        layer["kind"],
        layer["precision"],
        layer["kernel"],
        "" if layer["scale"] is None else f"{layer['scale']:.5g}",
        "" if layer["zero_point"] is None else str(layer["zero_point"]),
        _db(layer["weight_sqnr_db"]),
        _db(layer["output_sqnr_db"]),
    )


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
