"""Which columns each kind of task writes: those of ``predict --json``, and null for an input that has no result."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_task_results import present

from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks.raw import Raw
from cpupack.runtime.tasks.spec import OF_TEXT, SETTINGS, TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra dev")

from cpupack.runtime.batch.results import Outcome, schema_of, table_of  # noqa: E402 - after the check for pyarrow

RANDOM = np.random.default_rng(0).standard_normal
BOXES = {"boxes": [[0.1, 0.1, 0.9, 0.9], [0.2, 0.2, 0.4, 0.4]], "scores": [[0.9, 0.1], [0.1, 0.8]]}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "multilabel": (RANDOM(4), {}),
    "regression": (RANDOM(2), {"units": ["m", "s"]}),
    "embedding": (RANDOM(6), {}),
    "segmentation": (RANDOM((3, 8, 8)), {}),
    "masks": (RANDOM((3, 8, 8)), {}),
    "detection": (BOXES, {"scores": "probabilities", "box_format": "xyxy"}),
    "keypoints": (RANDOM((2, 8, 8)), {}),
    "image": (RANDOM((3, 8, 8)), {}),
    "raw": ({"one": RANDOM((2, 3)), "two": RANDOM(())}, {}),
}


def signature(output: Any) -> Signature:
    outputs = output if isinstance(output, dict) else {"output": output}
    specs = tuple(OutputSpec(name, np.asarray(value).shape) for name, value in outputs.items())
    return Signature((TensorSpec("input", (3, 8, 8)),), specs)


def test_there_is_a_case_for_each_kind() -> None:
    assert set(KINDS) | {"classification", *OF_TEXT} == set(SETTINGS)  # those of text: test_text_results.py


TURNED = {"boxes": [[4, 4, 4, 2, 0.5], [6, 3, 2, 2, 0.0]], "scores": [[0.9, 0.1], [0.1, 0.8]]}
FORMS = {
    **{kind: (kind, *case) for kind, case in KINDS.items()},
    "thresholds": ("multilabel", RANDOM(3), {"threshold": [0.1, 0.2, 0.3]}),
    "scans": ("masks", RANDOM((2, 3, 8, 8)), {"volume": True}),
    "turned": ("detection", TURNED, {"scores": "probabilities", "box_format": "cxcywh", "angle": "fifth"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_holds_what_predict_prints(form: str, tmp_path: Path) -> None:
    kind, output, settings = FORMS[form]
    result, of = present(kind, output, **settings), signature(output)
    task = TaskSpec.of(kind, **settings)
    schema = schema_of(task, of, pa.string(), {"cpupack.run": "x"})
    table = table_of(task, of, [Outcome("a", result), Outcome("b", None, "broken")], schema)
    pq.write_table(table, tmp_path / "t.parquet")
    good, bad = pq.read_table(tmp_path / "t.parquet").to_pylist()
    expected = result.to_dict()
    for name in ("png", "mask_png"):
        if name in expected:
            expected[name] = base64.b64decode(expected[name])
    if kind == "masks":
        file = "mask_npy" if form == "scans" else "mask_png"
        expected["masks"] = [{**one, file: base64.b64decode(one[file])} for one in expected["masks"]]
    if isinstance(result, Raw):  # in C order, with the shape beside it
        expected = {"outputs": {name: np.ravel(value).tolist() for name, value in result.items()}}
        expected["outputs"]["two"] = expected["outputs"]["two"][0]
        assert schema.field("outputs").type.field("one").metadata == {b"shape": b"[2, 3]"}
    assert good == {"id": "a", "error": None, **expected}
    assert bad == {"id": "b", "error": "broken", **dict.fromkeys(expected)}


def test_raw_outputs_of_images_of_any_size_have_shapes_of_their_own(tmp_path: Path) -> None:
    sizes = OpenSizes((8, 8), (64, 64), (8, 8))
    of = Signature((TensorSpec("input", (3, 8, 8)),), (OutputSpec("map", (2, 8, 8)),), sizes)
    task = TaskSpec.of("raw")
    schema = schema_of(task, of, pa.string(), {})
    maps = [RANDOM((2, 8, 8)).astype(np.float32), RANDOM((2, 16, 24)).astype(np.float32)]
    table = table_of(
        TaskSpec.of("raw"), of, [Outcome(str(i), Raw({"map": each})) for i, each in enumerate(maps)], schema
    )
    pq.write_table(table, tmp_path / "t.parquet")
    for each, row in zip(maps, pq.read_table(tmp_path / "t.parquet").to_pylist(), strict=True):
        found = row["outputs"]["map"]
        np.testing.assert_array_equal(np.float32(found["data"]).reshape(found["shape"]), each)
