"""docs/explanation/families.md, from the rows."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from family.measure import CLOSE_DB, Row, is_behind

_HEAD = """\
# Families of models and their engines

<!-- Written by `python benchmarks/families.py`. -->

Architectures of torchvision and timm, from capture to INT8, with default settings. The table shows which structures
have native kernels, how the native engine rounds beside torch's, and how fast both are. For trained networks on real
photographs see [the comparisons](../../benchmarks/README.md).

- **Weights** are random, but like trained ones in two ways. Filters are combinations of what they see, so that they let
  pass what images vary in. Gains, shifts, layer scales and statistics of norms are no round numbers.
- **SQNR** is that of the result against FP32 on 8 synthetic images, with which both engines were calibrated. It depends
  on the random weights. So compare the two engines in a row, not the rows. Differences of 2 dB and less mean nothing.
  With one set of weights the two engines may be 10 dB apart in either direction by chance: what counts is the part of
  an error that all positions share, in the few directions in which 8 images differ. So where the native engine is
  further below, the row has the medians of three to seven sets of weights. The others have one set, so some of those
  that are far above are so by chance. How much the filters are learnt (0.6) was chosen among five ways to make weights,
  by the SQNR of small sets of networks. Rows below 10 dB say little on either engine.
  [What was found behind gaps](#gaps) is below the table.
- **INT8** is the share of the multiply-adds that the native engine runs in INT8.
- **Speed** is that of one thread with a batch of 4: how many times as fast the native engine is as FP32 torch, and as
  torch's INT8 engine onednn. It is a ratio of CPU times. Images are small, so that a row takes seconds. Batches of
  large images on all cores give other ratios.

"""
_TABLE = """
| model | input | native | onednn | INT8 | to FP32 | to onednn | in FP32, and why |
|---|---|---:|---:|---:|---:|---:|---|
"""
_GAPS = """
<a id="gaps"></a>
## Gaps, and what was behind them

Five rows were more than 2 dB below torch's engine in the median of three sets of weights. Other sets of weights and the
means of each layer over positions, of both engines side by side, showed three things.

- **DenseNet's small features had few steps.** A concatenation that grows was in the range of its largest part. Where
  norms alone read it, which multiply each channel by a factor of its own, each part now has its own scale. densenet121
  gained 4 to 10 dB.
- **Tables rounded neighbouring values in one direction.** A SiLU after a convolution is a table of 256 codes. Where the
  steps of its input and its result drift apart slowly, a dozen codes near zero are all rounded up, or all down, and
  channels are off by the same at every position. The steps of the input are now chosen so that such errors cancel out,
  by the statistics of the calibration. In cs3sedarknet_l the mean of a layer's channels went from 30 to 42 dB, and the
  network gained 2 dB in the mean of eleven sets of weights.
- **The rest was chance.** shufflenet_v2_x1_0 differs from torch's engine by -11 to +7 dB with one set or another, and
  efficientnetv2_rw_t by -6 to +18. The medians are equal. cspresnext50 differed by -10 to +6 with eleven sets, -2.4 in
  the median, before the change of the tables, which its LeakyReLUs are too. Its row is newer: +0.4, medians of seven.

The rows of densenet121, cs3sedarknet_l, cspresnext50, shufflenet_v2_x1_0 and efficientnetv2_rw_t are newer than these
changes, the others older.

The last average was suspected first, because it reads 8-bit codes natively and FP32 values in torch's engine. It is not
the cause: with the same codes, an average and a linear layer in FP32 give the same result to 0.3 dB.
"""
_SHORT = {
    "the native engine has no INT8 kernel for it": "no INT8 kernel",
    "the native engine has no kernel for it": "no kernel",
    "the native engine has no kernel for values whose first dimension is not the batch": "the batch is not first",
    "gives or takes values that are not float32 (indices, truth values), for which INT8 has no codes": "not float32",
    "what it divides would be infinite where INT8 rounds it to zero": "a divisor",
    "lies between layers in FP32": "between these",
    "lies among INT8 layers that take and give float32 values": "between these",
    "comes before or after the INT8 part": "at the end",
}


def page(rows: Collection[Row]) -> str:
    """Return the page of all rows."""
    return _HEAD + _summary(rows) + _TABLE + "".join(map(_line, rows)) + _GAPS


def _summary(rows: Collection[Row]) -> str:
    built = [row for row in rows if "native_sqnr_db" in row]
    convolutional = [row for row in built if row["convolutional"]]
    whole = [row for row in convolutional if (row.get("native_share") or 0) >= 0.99]
    faster = [row["native_over_fp32"] for row in built if "native_over_fp32" in row]
    lines = [
        f"{len(built)} of {len(rows)} architectures run on the native engine.",
        f"Of {len(convolutional)} convolutional ones, {len(whole)} run at least 99 % of the multiply-adds in INT8.",
    ]
    if faster:
        lines.append(
            f"The median is {statistics.median(faster):.1f} times as fast as FP32 "
            f"({min(faster):.1f} to {max(faster):.1f})."
        )
    if behind := [row["name"] for row in built if is_behind(row)]:
        lines.append(f"\nMore than {CLOSE_DB:.0f} dB below torch's engine: {', '.join(behind)}.")
    ahead = [row for row in built if _gap(row) > CLOSE_DB]
    lines.append(f"More than {CLOSE_DB:.0f} dB above it: {len(ahead)}.")
    return "\n".join(lines) + "\n"


def _gap(row: Row) -> float:
    """Return by how many dB the native engine is closer to FP32 than torch's, 0 where one of them is unknown."""
    native, other = row.get("native_sqnr_db"), row.get("onednn_sqnr_db")
    return 0.0 if native is None or other is None else float(native) - float(other)


def _line(row: Row) -> str:
    cells = [row["name"], f"{row['size']} x {row['size']}"]
    if stopped := row.get("refused") or row.get("crashed"):
        return f"| {' | '.join(cells)} | | | | | | refused: {_in_cell(stopped)} |\n"
    cells += [_decibels(row, name) for name in ("native", "onednn")]
    share = row.get("native_share")
    cells.append("" if share is None else f"{share:.1%}")
    cells += [f"{row[key]:.2f}" if key in row else "" for key in ("native_over_fp32", "native_over_onednn")]
    reasons = [
        f"{', '.join(kinds)} ({_SHORT.get(reason, reason.removeprefix('the native engine has '))})"
        for reason, kinds in row.get("fp32", {}).items()
    ]
    cells.append(_in_cell(row.get("native_refused") or row.get("native_crashed") or "; ".join(reasons)))
    return f"| {' | '.join(cells)} |\n"


def _in_cell(text: str) -> str:
    return text.splitlines()[0].replace("|", "\\|") if text else ""


def _decibels(row: Row, engine: str) -> str:
    key = f"{engine}_sqnr_db"
    if key not in row:
        return "refused" if f"{engine}_refused" in row else ""
    return "equal" if row[key] is None else f"{row[key]:.1f} dB"
