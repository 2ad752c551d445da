"""Greys are in both layouts to torch, and their steps say in which one a convolution answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.layout import strictly_channels_last, strictly_contiguous
from cpupack.model.trial_run import runs_channels_last
from helpers.captured import Net
from helpers.tiny_models import float_model

SHAPE = (1, 8, 6)


def decoded(count: int) -> torch.Tensor:
    """Return greys as decoding gives them: channels come last."""
    return torch.from_numpy(np.random.default_rng(0).random((count, 8, 6, 1), np.float32).transpose(0, 3, 1, 2))


def test_steps_are_those_of_the_layout() -> None:
    assert strictly_channels_last(torch.zeros(2, *SHAPE)).stride() == decoded(2).stride() == (48, 1, 6, 1)
    assert strictly_contiguous(decoded(2)).stride() == (48, 48, 6, 1)
    for shape in ((2, 3, 8, 6), (2, 5), (2, 3, 4)):
        x = torch.randn(shape)
        assert torch.equal(strictly_channels_last(x), x)
        assert torch.equal(strictly_contiguous(strictly_channels_last(x)), x)
        assert strictly_contiguous(strictly_channels_last(x)).is_contiguous()


@pytest.mark.parametrize("views", [True, False])
def test_code_that_views_what_a_convolution_gives_takes_greys(views: bool) -> None:
    module = Net(
        lambda net, x: net.a(x).view(len(x), -1) if views else net.a(x).flatten(1), a=nn.Conv2d(1, 4, 3)
    ).eval()
    model = float_model(module, SHAPE)
    assert runs_channels_last(module, model.signature.inputs) is not views
    model = dataclasses.replace(model, channels_last=not views)
    with torch.inference_mode():
        expected = module(torch.zeros(2, *SHAPE).copy_(decoded(2)))
        torch.testing.assert_close(model.fast_module()(model.fast_batch(decoded(2))), expected)
