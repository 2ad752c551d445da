"""The schemas of what a model takes agree with what it is: images, texts, inputs of any size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest

from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.serve import tensor_schemas
from cpupack.runtime.serve.model import ServedModel, TensorFacts
from cpupack.runtime.tensor_spec import TensorSpec

IMAGE = PreprocessSpec(mean=(0.5,) * 3, std=(0.5,) * 3)
FILE = {"type": "string", "format": "binary"}


def model(*inputs: tuple[TensorSpec, TensorFacts], takes_text: bool = False) -> ServedModel:
    specs, facts = zip(*inputs, strict=True)
    found = SimpleNamespace(inputs=facts, signature=SimpleNamespace(inputs=specs), takes_text=takes_text)
    return cast(ServedModel, found)


PAIR = model(
    *(
        (TensorSpec(name, (3, 2, 4), preprocess=IMAGE), TensorFacts(name, "UINT8", (-1, 2, 4, 3), (2, 4, 3)))
        for name in ("left", "right")
    )
)
TEXT = model(
    (TensorSpec("ids", (5,), "int64", vocabulary=9), TensorFacts("ids", "INT64", (-1, 5), (5,))),
    takes_text=True,
)
TIME = range(4, 33, 4)
OPEN = model((TensorSpec("x", (8, 64), names=("", "time")), TensorFacts("x", "FP32", (-1, 8, -1), (8, TIME))))


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def fits(schema: dict[str, Any], value: Any) -> bool:
    jsonschema.Draft202012Validator.check_schema(schema)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    ("one", "inputs", "taken"),
    [
        (
            PAIR,
            [tensor("left", "UINT8", [1, 2, 4, 3], [7] * 24), tensor("right", "FP32", [1, 3, 2, 4], [0.5] * 24)],
            True,
        ),
        (
            PAIR,
            [tensor("left", "UINT8", [1, 3, 2, 4], [7] * 24), tensor("right", "FP32", [1, 3, 2, 4], [0.5] * 24)],
            False,
        ),
        (PAIR, [tensor("left", "UINT8", [1, 2, 4, 3], [7] * 24)], False),
        (PAIR, [tensor(name, "BYTES", [1], ["x"]) for name in ("left", "right")], False),
        (TEXT, [tensor("text", "BYTES", [2], ["a", "b"]), tensor("text_pair", "BYTES", [2, 1], ["c", "d"])], True),
        (TEXT, [tensor("text_pair", "BYTES", [1], ["a"])], False),
        (TEXT, [tensor("ids", "INT32", [1, 5], [8] * 5)], True),
        (TEXT, [tensor("ids", "INT32", [1, 5], [9] * 5)], False),
        (TEXT, [tensor("text", "BYTES", [1], ["a"]), tensor("ids", "INT32", [1, 5], [8] * 5)], False),
        (OPEN, [tensor("x", "FP32", [1, 8, 4], [0.5] * 32)], True),
        (OPEN, [tensor("x", "FP32", [1, 8, 32], [[[0.5] * 32] * 8])], True),
        (OPEN, [tensor("x", "FP32", [1, 7, 4], [0.5] * 28)], False),
        (OPEN, [tensor("x", "FP32", [1, 8, 3], [0.5] * 24)], False),
        (OPEN, [tensor("x", "FP32", [1, 8, 6], [0.5] * 48)], False),
        (OPEN, [tensor("x", "FP32", [1, 8, 36], [0.5] * 288)], False),
    ],
)
def test_tensors(one: ServedModel, inputs: list[dict[str, Any]], taken: bool) -> None:
    assert fits(tensor_schemas.tensors(one), inputs) is taken


def test_a_sample_has_sides_that_the_model_takes() -> None:
    schema = tensor_schemas.sample(OPEN)
    assert [fits(schema, {"x": [[0.5] * size] * 8}) for size in (3, 4, 32, 33)] == [False, True, True, False]


def test_each_output_is_asked_for_once() -> None:
    schema = tensor_schemas.each_once({"a": False, "b": False})
    a, b = {"name": "a"}, {"name": "b"}
    assert [fits(schema, each) for each in ([], [a], [b, a], [a, a])] == [True, True, True, False]


def test_an_image_beside_others_is_base64_or_its_floats() -> None:
    schema = tensor_schemas.sample(PAIR)
    floats = [[[0.5] * 4] * 2] * 3
    assert fits(schema, {"left": "/9j/", "right": floats})
    assert not fits(schema, {"left": "/9j/", "right": [[[0.5] * 3] * 4] * 2})
    assert not fits(schema, {"left": "/9j/"})
    assert tensor_schemas.fields(PAIR, FILE)["properties"]["left"] == FILE
