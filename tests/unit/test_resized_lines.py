"""What a line that is resized is a weighted sum of: as torch resizes it, however long it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cpupack.stages.quantize.native import windows
from cpupack.stages.quantize.native.windows import Windows, adaptive_windows, average_windows, interpolation_windows

MODES = [
    ("nearest", 1, None), ("nearest-exact", 1, None), ("linear", 1, False), ("linear", 1, True), ("area", 1, None),
    ("bilinear", 2, False), ("bicubic", 2, False), ("bicubic", 2, True), ("trilinear", 3, True),
]  # fmt: skip


def whole(found: Windows) -> torch.Tensor:
    """Return windows as a matrix ``(results, length)``."""
    result = torch.zeros(len(found.begins), found.length, dtype=torch.float64)
    for row, begin, weights in zip(result, found.begins, found.weights, strict=True):
        row[begin : begin + len(weights)] = torch.from_numpy(np.asarray(weights))
    return result


@pytest.mark.parametrize(("mode", "axes", "corners"), MODES)
@pytest.mark.parametrize(("length", "result"), [(40, 80), (53, 61), (97, 33), (16, 17), (1, 5), (35, 1)])
def test_long_lines_are_asked_in_parts(
    mode: str, axes: int, corners: bool | None, length: int, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [1] * (axes - 1)
    lines = torch.eye(length, dtype=torch.float64).reshape(1, length, length, *others)
    torchs = F.interpolate(lines, (result, *others), mode=mode, align_corners=corners).reshape(length, result).t()
    monkeypatch.setattr(windows, "_RESIZED_AT_ONCE", 0)
    found = whole(interpolation_windows(length, result, axes, mode, corners))
    assert torch.allclose(found, torchs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("include", [True, False])
def test_windows_of_averages(include: bool) -> None:
    lines = torch.eye(23, dtype=torch.float64)[None]
    torchs = F.avg_pool1d(lines, 5, 3, 2, ceil_mode=True, count_include_pad=include)[0].t()
    assert torch.allclose(whole(average_windows(23, len(torchs), 5, 3, 2, include=include)), torchs)
    assert torch.allclose(whole(adaptive_windows(23, 7)), F.adaptive_avg_pool1d(lines, 7)[0].t())


def test_some_rows_of_windows_as_a_matrix() -> None:
    found = interpolation_windows(12, 24, 1, "linear", corners=False)
    first, some = found.matrix(7, 11)
    assert torch.equal(some, whole(found)[7:11, first : first + some.shape[1]].float())
    assert not bool(whole(found)[7:11, :first].any())
