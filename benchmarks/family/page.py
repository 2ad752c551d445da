"""docs/explanation/families.md, from the rows."""

from __future__ import annotations

from collections.abc import Iterable

from family.measure import Row

_HEAD = """\
# Families of models and their engines

<!-- Written by `python benchmarks/families.py`. -->

Networks of torchvision and timm with random weights, from capture to INT8. SQNR is that of the result against FP32 on
the images of the calibration (synthetic, mostly small), with default settings. Random networks are harder to quantize
than trained ones, and their SQNR says little on its own. But engines can be compared on them.

"INT8" is the share of the multiply-adds that the native engine runs in INT8. Speed is that of one thread with batches
of 4: how many times as fast the native engine is as FP32 torch, and as the INT8 model of onednn. `benchmarks/results/`
has the rows.

| model | input | native | onednn | fbgemm | INT8 | to FP32 | to onednn | in FP32, and why |
|---|---|---:|---:|---:|---:|---:|---:|---|
"""
_SHORT = {
    "the native engine has no kernel for it": "no kernel",
    "the native engine has no kernel for values whose first dimension is not the batch": "the batch is not first",
    "the native engine has no kernel for values that are not float32": "not float32",
    "what it divides would be infinite where INT8 rounds it to zero": "a divisor",
    "lies between layers in FP32": "between these",
    "comes before or after the INT8 part": "at the end",
}


def page(rows: Iterable[Row]) -> str:
    """Return the page of all rows."""
    return _HEAD + "".join(map(_line, rows))


def _line(row: Row) -> str:
    cells = [row["name"], f"{row['size']} x {row['size']}"]
    if "refused" in row:
        return f"| {' | '.join(cells)} | refused: {row['refused']} |" + " |" * 6 + "\n"
    cells += [_decibels(row, name) for name in ("native", "onednn", "fbgemm")]
    share = row.get("native_share")
    cells.append("" if share is None else f"{share:.1%}")
    cells += [f"{row[key]:.2f}" if key in row else "" for key in ("native_over_fp32", "native_over_onednn")]
    reasons = [
        f"{', '.join(kinds)} ({_SHORT.get(reason, reason.removeprefix('the native engine has '))})"
        for reason, kinds in row.get("fp32", {}).items()
    ]
    cells.append(row.get("native_refused") or "; ".join(reasons))
    return f"| {' | '.join(cells)} |\n"


def _decibels(row: Row, engine: str) -> str:
    key = f"{engine}_sqnr_db"
    if key not in row:
        return "refused" if f"{engine}_refused" in row else ""
    return "equal" if row[key] is None else f"{row[key]:.1f} dB"
