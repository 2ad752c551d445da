"""The photo that a server decodes when it starts: one that the model takes, whatever its preprocessing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.runner import Runner
from cpupack.runtime.serve.model import ServedModel
from cpupack.runtime.serve.promise import learn_decoding
from cpupack.runtime.serve.times import PrepareTimes


@pytest.mark.parametrize(
    ("resize", "crop"),
    [(None, None), ([1, 1], None), (1, None), (20, "own"), (None, "own")],
)
def test_any_preprocessing_has_a_photo(edited: Callable[..., Path], resize: Any, crop: Any) -> None:
    """A model without resize and crop could not be served: the photo had 640 x 480 pixels."""
    package = edited()
    with Runner(package, check=False) as runner:
        size = list(runner.manifest.input_shape[1:])
    own = {"own": size, None: None}
    resize = size if isinstance(resize, list) else min(size) if resize == 1 else resize
    package = edited(preprocess={"resize": resize, "crop": own[crop]})
    with Runner(package, check=False) as runner:
        assert learn_decoding(ServedModel(runner, package), PrepareTimes()) > 0.0
