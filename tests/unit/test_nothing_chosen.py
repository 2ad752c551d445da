"""A maximum over what a mask chooses, which may be nothing: the error says where and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cpupack.errors import CalibrationError, ModelError
from cpupack.model.trial_run import run_zeros
from cpupack.model.user_code import hint_of_nothing, running_on
from cpupack.runtime.tensor_spec import TensorSpec


class Best(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x[x.sum(1) > 0].max()


def test_a_maximum_of_nothing_names_the_line_and_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"Best does not run on .*x\[x\.sum\(1\) > 0\]\.max\(\)") as caught:
        run_zeros(Best(), "Best", (TensorSpec("x", (4,)),), 1)
    assert "the first run is on zeros; it is asked of no value" in (caught.value.hint or "")
    with pytest.raises(CalibrationError, match=r"fails on photos: .*\.max\(\)") as told, running_on("photos"):
        Best()(-torch.ones(2, 4))
    assert "torch.where(mask, x, -1e30).amax(1)" in (told.value.hint or "")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.max(0), lambda x: x.amin(), lambda x: x.argmax(), lambda x: torch.quantile(x, 0.5),
        lambda x: torch.aminmax(x), lambda x: x[-1], lambda x: x.kthvalue(1, 0),
    ],
)  # fmt: skip
def test_all_that_torch_asks_of_no_value_is_known(call: object) -> None:
    with pytest.raises((RuntimeError, IndexError)) as caught:
        call(torch.ones(3, 4)[torch.zeros(3, dtype=torch.bool)])  # type: ignore[operator]
    assert hint_of_nothing(caught.value)


def test_other_failures_are_told_as_before() -> None:
    with pytest.raises(IndexError) as caught:
        torch.ones(3)[torch.tensor([7])]
    assert hint_of_nothing(caught.value) is None
