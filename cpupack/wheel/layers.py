"""The layers of a wheel as text, from its ``build.json``: how each layer runs, and which stayed FP32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]
_HEADINGS = ("layer", "kind", "precision", "operator", "scale", "zero", "weights", "rows", "range", "output", "time")
_FORMS = ("rows", "range")
_LEFT = 4


def format_layers(layers: Sequence[Layer]) -> str:
    """Return a table of layers (``LayerFact`` as in ``build.json``), in the order of execution, then the reasons."""
    timed = any(share_of(layer) is not None for layer in layers)
    compared = any(layer.get("rows_sqnr_db") is not None for layer in layers)
    shown = [heading for heading in _HEADINGS if (timed or heading != "time") and (compared or heading not in _FORMS)]
    rows = [tuple(row[_HEADINGS.index(each)] for each in shown) for row in (_HEADINGS, *map(_row, layers))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:_LEFT], widths[:_LEFT], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[_LEFT:], widths[_LEFT:], strict=True)]
        lines.append("  ".join([*left, *right]).rstrip())
    float_layers = slowest_first(layer for layer in layers if layer["precision"] == "fp32")
    lines += ["", f"{len(layers) - len(float_layers)} of {len(layers)} layers run in INT8{_time_of(float_layers)}."]
    lines += [
        f"  {layer['name']} ({layer['kind']}) stayed FP32{_takes(layer)}: {layer['reason']}" for layer in float_layers
    ]
    lines += [
        "",
        "weights, output: SQNR in dB against FP32. The error of an output includes those of all layers before it.",
    ]
    if compared:
        lines += [
            "rows, range: SQNR in dB of a linear layer's results on calibration data, where each row of activations",
            "has a scale of its own (the operator is cpupack::linear), and where all have one range (cpupack::conv).",
        ]
    if timed:
        lines.append(
            "time: share of an inference on the host of the build, with one thread. Copies between layers are extra."
        )
    return "\n".join(lines)


def share_of(layer: Layer) -> float | None:
    """Return a layer's share of the time, None in wheels that have none: of torch's engines, or of earlier versions."""
    found: float | None = layer.get("time_share")
    return found


def slowest_first(layers: Iterable[Layer]) -> list[Layer]:
    """Return layers by their share of the time, the largest first; without it in their order."""
    return sorted(layers, key=lambda layer: -(share_of(layer) or 0.0))


def percent(share: float) -> str:
    """Return a share (0 to 1) as a percentage with one decimal."""
    return f"{share:.1%}".replace("%", " %")


def _time_of(layers: Sequence[Layer]) -> str:
    shares = [share for share in map(share_of, layers) if share is not None]
    return f"; those in FP32 take {percent(sum(shares))} of the time" if shares else ""


def _takes(layer: Layer) -> str:
    share = share_of(layer)
    return "" if share is None else f", {percent(share)} of the time"


def _row(layer: Layer) -> tuple[str, ...]:
    share = share_of(layer)
    return (
        layer["name"],
        layer["kind"],
        layer["precision"],
        layer["kernel"],
        "" if layer["scale"] is None else f"{layer['scale']:.5g}",
        "" if layer["zero_point"] is None else str(layer["zero_point"]),
        _db(layer["weight_sqnr_db"]),
        _db(layer.get("rows_sqnr_db")),
        _db(layer.get("range_sqnr_db")),
        _db(layer["output_sqnr_db"]),
        "" if share is None else percent(share),
    )


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
