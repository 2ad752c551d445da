"""Maps of numbers: a regression with a number for each pixel, in the size of the original image."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_task_results import CROPPED, SQUARE, present

from cpupack.runtime.errors import RunnerError
from cpupack.runtime.export.meaning import meaning_of
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks import false_colours, kinds
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec

RAMP = np.arange(64, dtype=np.float32).reshape(8, 8)


def maps(output: Any, frame: Frame | None = None, labels: Any = None, **settings: Any) -> Any:
    return present("regression", output, frame, labels, maps=True, **settings)


def test_each_map_has_a_name_a_unit_and_its_numbers() -> None:
    flow = np.stack([RAMP, -RAMP])
    found = maps(flow, labels=("x", "y"), units=["px", ""], scale=[2, 1], offset=[1, 0])
    np.testing.assert_array_equal(found["x"], 2 * RAMP + 1)
    np.testing.assert_array_equal(found["y"], -RAMP)
    assert [(one.name, one.unit, one.min, one.max, one.mean) for one in found.maps] == [
        ("x", "px", 1.0, 127.0, 64.0),
        ("y", "", -63.0, 0.0, -31.5),
    ]
    assert "  x  from 1 to 127 px, mean 64" in found.text()
    with pytest.raises(KeyError, match="x, y"):
        found["z"]
    assert maps(RAMP)["value"].shape == (8, 8)
    assert maps({"depth": RAMP, "normal": flow}, labels=("a", "b", "c"))["c"].tolist() == (-RAMP).tolist()


def test_a_map_gets_the_size_of_the_image_and_is_unknown_where_the_crop_cut_it_off() -> None:
    frame = Frame.of(40, 20, CROPPED)  # resized to 16 x 8, of which columns 4 to 12 are left: 10 to 30 of the image
    found = maps(np.tile(np.arange(8, dtype=np.float32), (8, 1)), frame)["value"]
    assert found.shape == (20, 40)
    assert np.isnan(found[:, :10]).all()
    assert np.isnan(found[:, 30:]).all()
    # The middle of column i of the map is at 10 + 2.5 i + 1.25 of the image, and numbers between are between.
    expected = ((np.arange(10, 30) + 0.5 - 11.25) / 2.5).clip(0, 7)
    np.testing.assert_allclose(found[7, 10:30], expected, atol=1e-5)
    same = maps(RAMP, Frame.of(8, 8, SQUARE))
    np.testing.assert_array_equal(same["value"], RAMP)


def test_json_has_the_numbers_as_a_file_of_numpy() -> None:
    found = maps(RAMP, Frame.of(16, 8, CROPPED), units=["m"])
    told = found.to_dict()
    assert (told["width"], told["height"]) == (16, 8)
    assert told["maps"][0] == {"name": "value", "unit": "m", "min": 0.0, "max": 63.0, "mean": 31.5}
    values = np.load(io.BytesIO(base64.b64decode(told["values_npy"])))
    np.testing.assert_array_equal(values, found.values)


def test_nothing_is_made_of_a_map_without_a_finite_number() -> None:
    assert maps(np.where(RAMP > 9, np.inf, RAMP)).maps[0].max == 9.0
    with pytest.raises(RunnerError, match="no number of the map 'value' is finite"):
        maps(np.full((2, 2), np.inf))


def test_a_drawing_has_the_map_in_colours_and_a_scale_below() -> None:
    drawn = np.asarray(maps(RAMP).draw(Image.new("RGB", (8, 8))))
    assert drawn.shape[1] >= 240  # 8 pixels, 30 times as large
    assert drawn.shape[0] > drawn.shape[1]
    assert drawn[0, 0].tolist() == [68, 1, 84]  # viridis
    assert drawn[239, 239].tolist() == [253, 231, 37]
    around = false_colours.coloured(np.float32([-2, 0, 1, np.nan, 9]), (-2.0, 2.0))
    assert around.tolist() == [[33, 102, 172], [247, 247, 247], [244, 165, 130], [128, 128, 128], [178, 24, 43]]
    assert maps(np.stack([RAMP] * 3)).draw(Image.new("RGB", (8, 8))).width == 2 * 240
    flat = maps(np.zeros((8, 8))).draw(Image.new("RGB", (8, 8)))
    assert flat.height > 240
    one_wild = np.where(np.eye(20) > 0, 0, np.linspace(1, 2, 400).reshape(20, 20))
    one_wild[3, 4] = 1e6
    assert maps(one_wild).ranges()[0][1] < 2.1


def test_a_map_needs_no_image_to_be_drawn_and_a_row_of_values_is_not_drawn() -> None:
    spec = TaskSpec.of("regression", maps=True)
    assert spec.draws
    assert spec.draws_alone
    assert TaskSpec.from_dict(spec.to_dict(), ()) == spec
    assert not TaskSpec.of("regression").draws
    assert "maps of numbers, one for each pixel" in " ".join(meaning_of(spec))


def test_maps_in_parquet_are_what_predict_prints() -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
    from cpupack.runtime.batch.results import Outcome, schema_of, table_of

    found = maps(np.stack([RAMP, RAMP]), units=["m", "s"])
    of = Signature((TensorSpec("input", (3, 8, 8)),), (OutputSpec("output", (2, 8, 8)),))
    task = TaskSpec.of("regression")
    schema = schema_of(task, of, pa.string(), {})
    (good,) = table_of(task, of, [Outcome("a", found)], schema).to_pylist()
    told = found.to_dict()
    assert good == {"id": "a", "error": None, **told, "values_npy": base64.b64decode(told["values_npy"])}


def test_outputs_that_are_neither_rows_nor_maps_of_one_size_do_not_fit() -> None:
    assert kinds.misfit("regression", {"a": (8, 8), "b": (2, 8, 8)}) is None
    for shapes in ({"a": (8, 8), "b": (4, 4)}, {"a": (8, 8), "b": (3,)}, {"a": (1, 2, 8, 8)}):
        assert "maps of numbers of one size" in (kinds.misfit("regression", shapes) or "")
