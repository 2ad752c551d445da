"""Several inputs with named dimensions: what is refused, how rows say their size, and the program of each size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.errors import CalibrationError, ModelError, QuantizationError, RecipeError
from cpupack.model.named_inputs import inputs_at, sizes_of_inputs
from cpupack.pipeline.sized_samples import resized_rows
from cpupack.quantized_engine import engine
from cpupack.recipe.file import parse_recipe
from cpupack.runtime.decoding import together
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.sized import SizedPrograms
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.errors import InputError, RunnerError
from cpupack.runtime.feed import Feed
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.open_inputs import OpenInput
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.size_terms import Fit, probes
from cpupack.stages.quantize.native.sizes import same_program
from cpupack.stages.script import save
from helpers.input_nets import INPUTS, SIZES, opened, recipe_text
from helpers.lowered import needs_kernels

IMAGES = OpenSizes(
    (8, 8), (64, 96), (4, 4), (((2, 0, 0, 0), (0, 2, 0, 0), (0, 0, 2, 0)),), ("height", "width"), (),
    inputs=(OpenInput((3, 16, 24), ("", "height", "width")), OpenInput((16, 24), ("height", "width")),
            OpenInput((5,), ("",))),
)  # fmt: skip
PAIR = OpenSizes(
    (8, 8), (64, 96), (1, 2), names=("q", "m"), axes=(),
    inputs=(OpenInput((16, 4), ("q", "")), OpenInput((24, 6), ("m", ""))),
)  # fmt: skip
SIGNATURE = Signature(
    (
        TensorSpec("image", (3, 16, 24), preprocess=PreprocessSpec(mean=(0.5,)), names=("", "height", "width")),
        TensorSpec("mask", (16, 24), "bool", default=1.0, names=("height", "width")),
        TensorSpec("ages", (5,), default=0.0),
    ),
    (OutputSpec("map", (2, 8, 12)), OutputSpec("other", (1,))),
)  # fmt: skip


def test_names_have_products_with_those_that_they_may_meet() -> None:
    assert IMAGES.products == ((), (0,), (1,), (0, 1))
    assert PAIR.products == ((), (0,), (1,), (0, 0), (0, 1), (1, 1))
    assert PAIR.powers((9, 14)) == [1, 9, 7, 81, 63, 49]
    assert IMAGES.shapes((12, 20)) == ((2, 6, 10),)
    for each in (IMAGES, PAIR):
        assert OpenSizes.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    for damage in (
        {"names": ["q"]},
        {"least": [8]},
        {"outputs": [[[1, 2]]]},
        {"inputs": [{"shape": [1], "names": []}]},
    ):
        with pytest.raises(ValueError, match=r"name|no height|terms"):
            OpenSizes.from_dict(PAIR.to_dict() | damage)


@pytest.mark.parametrize("sizes", [IMAGES, PAIR])
def test_terms_are_found_from_few_sizes(sizes: OpenSizes) -> None:
    """Numbers are made of random terms, so these are what must be found; one that has none is refused."""
    asked = np.array([sizes.powers(size) for size in probes((16, 24), sizes)])
    counts = np.array([[a // b for a, b in zip(each, sizes.multiple, strict=True)] for each in probes((16, 24), sizes)])
    wanted = np.random.default_rng(0).integers(-9, 9, (20, len(sizes.products)))
    found = Fit(counts, sizes.products).all_terms(asked @ wanted.T, "a number")
    assert np.array_equal(found, wanted)
    with pytest.raises(QuantizationError, match="a cube changes in another way"):
        Fit(counts, sizes.products).terms(counts[:, 0] ** 3, "a cube")


def test_a_row_ends_with_its_size_and_batches_have_one() -> None:
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, IMAGES)
    tall, wide = (
        pack(signature, {"image": np.zeros((1, 3, *size), np.float32), "mask": np.ones((1, *size), bool)})
        for size in ((16, 8), (8, 16))
    )
    assert tall.shape == wide.shape == (1, 4 * 128 + 5 + 2)
    assert (tall[0, -2:].tolist(), wide[0, -2:].tolist()) == ([16.0, 8.0], [8.0, 16.0])
    assert np.array_equal(random_rows(SIGNATURE.inputs, np.random.default_rng(0), 2)[:, -2:], [[16, 24]] * 2)
    pixels = pack(signature, {"image": np.zeros((2, 12, 20, 3), np.uint8)})
    assert pixels.shape == (2, 4 * 240 + 5 + 2)
    feed = Feed(signature, None, None, False, False)
    batches = list(together([tall[0], wide[0], wide[0]], lambda _: 8, feed.kind))
    assert [len(each) for each in batches] == [1, 2]
    assert [feed.size_of(each) for each in batches] == [(16, 8), (8, 16)]
    assert IMAGES.size_in(np.full((1, 9), np.nan)) == (0, 0)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ((1, 3, 16, 8), (1, 16, 12), r'width is 8 in the input "image" and 12 in "mask"; inputs that share a name'),
        (
            (3, 16, 8),
            (1, 16, 8),
            r'"image": got float32 \(3, 16, 8\); expected .*\(n, 3, height, width\).*image\[None\]',
        ),
        ((1, 16, 8), (1, 16, 8), r'"image": got float32 \(1, 16, 8\); expected [^;]*$'),
        ((1, 3, 18, 8), (1, 18, 8), r'^height of "image" is 18; the model takes height 8 to 64 in steps of 4'),
        ((1, 2, 16, 8), (1, 16, 8), r'"image": got float32 \(1, 2, 16, 8\); expected float32 \(n, 3, 16, 8\)'),
        ((2, 3, 16, 8), (1, 16, 8), "different numbers of samples: image 2, mask 1"),
    ],
)
def test_shapes_that_disagree_name_the_inputs(image: tuple[int, ...], mask: tuple[int, ...], message: str) -> None:
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, IMAGES)
    with pytest.raises(InputError, match=message):
        pack(signature, {"image": np.zeros(image, np.float32), "mask": np.ones(mask, bool)})


def problems_of(directory: Path, text: str) -> str:
    (directory / "nets.py").write_text("")
    recipe, problems, _ = parse_recipe(text, "r.toml", directory)
    assert recipe is None
    return "\n".join(text for _, text in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": ('name = "a"\nshape = ["t", "u", "v"]', 'name = "b"\nshape = [1]')},
            "has 3 names; one input has two",
        ),
        (
            {"inputs": ('name = "a"\nshape = ["t"]\npad = 0', 'name = "b"\nshape = [1]')},
            "pad: is for a shape of numbers",
        ),
        ({"inputs": ('name = "a"\nshape = ["t"]', 'name = "b"\nshape = [9]\npad = 0')}, "another input has a pad"),
        ({"sizes": "max = { time = 9 }"}, "needs min = { time = "),
        ({"sizes": "min = { t = 1 }\nmax = { time = 9 }"}, "has t, and the shape has the names time"),
        (
            {"inputs": tuple(f'name = "{each}"\nshape = ["{each}"]' for each in "abcde")},
            r"have 5 names (a, b, c, d, e); four are the most",
        ),
    ],
)
def test_what_no_recipe_may_say(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    assert message in problems_of(tmp_path, recipe_text("Masked", **changes))  # type: ignore[arg-type]  # of a table


def test_a_size_that_is_no_multiple_names_the_nearest(tmp_path: Path) -> None:
    net, _ = opened("Painter", tmp_path)
    table = net.recipe.sizes
    assert table is not None
    with pytest.raises(RecipeError, match=r"max: a height of 97 is no multiple of 2.*: 96 or 98"):
        sizes_of_inputs(net.model.module, net.model.signature, table.model_copy(update={"max": [97, 128]}))  # type: ignore[arg-type]  # it is NamedSizes


@needs_kernels
@pytest.mark.parametrize("name", INPUTS)
def test_a_size_has_the_program_and_the_answers_of_a_wheel_of_that_size(name: str, tmp_path: Path) -> None:
    net, sizes = opened(name, tmp_path)
    assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))).to_dict() == sizes.to_dict()
    names = net.sizes.names
    size = tuple(
        low + (4 + 3 * place) * step
        for place, (low, step) in enumerate(
            zip(net.sizes.least[-len(names) :], net.sizes.multiple[-len(names) :], strict=True)
        )
    )
    size = size if len(size) > 1 else (1, *size)
    alone = net.at(size)
    stored = net.at(net.typical)
    programs = SizedPrograms(stored.get_buffer("program").numpy().copy(), sizes)
    assert same_program(programs.alone(*size).tobytes(), alone.get_buffer("program").numpy().tobytes())
    paths = [tmp_path / "open.pt", tmp_path / "alone.pt"]
    batch = net.batch(size)
    with engine("native"):
        save(stored.with_sizes(sizes), torch.zeros(1, *net.model.input_shape), paths[0])
        save(alone, torch.from_numpy(batch[:1]), paths[1])
    with InstancePool(paths[0], "native", 2, 1) as pool, InstancePool(paths[1], "native", 1, 1) as fixed:
        found = pool.run(batch)
        assert np.array_equal(found, fixed.run(batch).reshape(found.shape))
        mixed = np.concatenate([batch, batch])
        mixed[1, -1] += net.sizes.multiple[-1]
        with pytest.raises(RunnerError, match="rows have different sizes"):
            pool.run(mixed)
        mixed[:, -1] += 1000
        with pytest.raises(RunnerError, match=f"it takes {names[0]}"):
            pool.run(mixed)


def test_calibration_data_are_cut_together_and_must_agree(tmp_path: Path) -> None:
    net, _ = opened("Painter", tmp_path)
    before = net.model.signature.inputs
    rows = net.samples.data[:1]
    after = inputs_at(before, {"height": 8, "width": 8})
    (found,) = resized_rows(rows, before, after)
    image = rows[0, : 16 * 24 * 3].reshape(16, 24, 3)[:8, :8]
    mask = rows[0, 16 * 24 * 3 : 16 * 24 * 4].reshape(16, 24)[:8, :8]
    assert np.array_equal(found, [*image.ravel(), *mask.ravel(), 8, 8])
    assert SIZES["Painter"]
    np.savez(tmp_path / "data.npz", values=np.zeros((4, 4, 30), np.float32), mask=np.zeros((4, 29), np.float32))
    from cpupack.pipeline.data import calibration_samples
    from cpupack.progress import SilentProgress
    from cpupack.recipe import LoadedRecipe
    from cpupack.stages.load import load

    text = recipe_text("Masked").replace('"synthetic"', '"arrays:data.npz"')
    recipe, problems, _ = parse_recipe(text, "r.toml", tmp_path)
    assert recipe is not None, problems
    loaded = LoadedRecipe(recipe=recipe, path=tmp_path / "r.toml", text=text)
    model = load(loaded, SilentProgress())
    with pytest.raises(CalibrationError, match='time is 30 in "values" and 29 in "mask"'):
        calibration_samples(loaded, model, SilentProgress())
    ramp = np.arange(30, dtype=np.float32)
    np.savez(tmp_path / "data.npz", values=np.tile(ramp, (4, 4, 1)), mask=np.tile(ramp, (4, 1)))
    samples = calibration_samples(loaded, model, SilentProgress())
    assert samples is not None
    assert np.array_equal(samples.data[0], [*np.tile(ramp[3:27], 4), *ramp[3:27], 24])  # the centre of both


def test_a_model_that_takes_one_size_is_refused(tmp_path: Path) -> None:
    code = "class Masked(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.last = nn.Linear(24, 3)\n    def forward(self, values, mask):\n"
    code += "        return self.last(values.mean(1) * mask)\n"
    (tmp_path / "nets.py").write_text("from torch import nn\n" + code)
    from cpupack.progress import SilentProgress
    from cpupack.recipe import LoadedRecipe
    from cpupack.stages.load import load

    recipe, problems, text = parse_recipe(recipe_text("Masked"), "r.toml", tmp_path)
    assert recipe is not None, problems
    with pytest.raises(ModelError, match=r"takes no other time.*at time = 8: in last \(Linear\)"):
        load(LoadedRecipe(recipe=recipe, path=tmp_path / "r.toml", text=text), SilentProgress())
