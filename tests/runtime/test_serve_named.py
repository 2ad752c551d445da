"""The server of a model with several tensors in and out, asked over HTTP and gRPC by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cpupack.runtime.runner import Runner
from helpers.named_package import answers, write_named_package
from helpers.once import once
from helpers.served import Served, serving

tritonclient = pytest.importorskip("tritonclient", reason="tritonclient[http,grpc] is not installed")
import tritonclient.grpc as grpc_client  # noqa: E402 - skipped above where it is missing
import tritonclient.http as http_client  # noqa: E402 - skipped above where it is missing
from tritonclient.utils import InferenceServerException  # noqa: E402 - skipped above where it is missing

MODEL = "tiny-int8"
IDS = np.array([[1, 99, 3], [7, 2, 4], [0, 0, 1]], np.int64)
FEATURES = np.random.default_rng(0).standard_normal((3, 2, 2), dtype=np.float32)
GATE = np.array([[True], [False], [True]])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "named", lambda root: write_named_package(root / "tiny_int8")) / "tiny_int8"


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Served]:
    with serving(package, "--grpc-port", "0") as served:
        yield served


@pytest.fixture(params=["HTTP", "gRPC"])
def client(request: pytest.FixtureRequest, server: Served) -> Iterator[tuple[Any, Any]]:
    module = grpc_client if request.param == "gRPC" else http_client
    port = server.grpc_port if request.param == "gRPC" else server.port
    made = module.InferenceServerClient(f"127.0.0.1:{port}")
    yield module, made
    made.close()


def tensors(module: Any, **arrays: tuple[np.ndarray[Any, Any], str]) -> list[Any]:
    found = []
    for name, (array, datatype) in arrays.items():
        found.append(module.InferInput(name, list(array.shape), datatype))
        found[-1].set_data_from_numpy(array)
    return found


def test_the_helper_is_the_model(package: Path) -> None:
    with Runner(package) as runner:
        for gate in (None, GATE):
            given = {"ids": IDS, "features": FEATURES, **({} if gate is None else {"gate": gate})}
            found = runner(given)
            for name, expected in answers(IDS, FEATURES, gate).items():
                np.testing.assert_array_equal(found[name], expected)


def test_the_metadata_names_every_tensor(client: tuple[Any, Any]) -> None:
    module, made = client
    options = {"as_json": True} if module is grpc_client else {}
    found = made.get_model_metadata(MODEL, **options)
    shapes = {each["name"]: (each["datatype"], [int(size) for size in each["shape"]]) for each in found["inputs"]}
    assert shapes == {"ids": ("INT64", [-1, 3]), "features": ("FP32", [-1, 2, 2]), "gate": ("BOOL", [-1, 1])}
    outputs = {each["name"]: each["datatype"] for each in found["outputs"]}
    assert outputs == {"pair": "FP32", "best": "INT64"}


def test_tensors_in_any_order_and_one_left_out(client: tuple[Any, Any]) -> None:
    module, made = client
    given = tensors(module, gate=(GATE, "BOOL"), features=(FEATURES, "FP32"), ids=(IDS, "INT64"))
    found = made.infer(MODEL, given)
    for name, expected in answers(IDS, FEATURES, GATE).items():
        np.testing.assert_array_equal(found.as_numpy(name), expected)
        assert found.as_numpy(name).dtype == expected.dtype
    found = made.infer(MODEL, tensors(module, ids=(IDS, "INT64"), features=(FEATURES, "FP32")))
    np.testing.assert_array_equal(found.as_numpy("pair"), answers(IDS, FEATURES)["pair"])


def test_only_the_outputs_that_are_asked_for(client: tuple[Any, Any]) -> None:
    module, made = client
    given = tensors(module, ids=(IDS, "INT64"), features=(FEATURES, "FP32"))
    found = made.infer(MODEL, given, outputs=[module.InferRequestedOutput("best")])
    np.testing.assert_array_equal(found.as_numpy("best"), answers(IDS, FEATURES)["best"])
    assert found.as_numpy("pair") is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ids": (IDS, "INT64")}, "features"),
        ({"ids": (IDS, "INT64"), "features": (FEATURES[:2], "FP32")}, "different numbers of samples"),
        ({"ids": (IDS, "INT64"), "features": (FEATURES, "FP32"), "more": (FEATURES, "FP32")}, "more"),
        ({"ids": (IDS + 1, "INT64"), "features": (FEATURES, "FP32")}, "ids"),
        ({"ids": (FEATURES[:, 0], "FP32"), "features": (FEATURES, "FP32")}, "ids"),
    ],
)
def test_what_does_not_fit_is_named(
    client: tuple[Any, Any], arrays: dict[str, tuple[np.ndarray[Any, Any], str]], said: str
) -> None:
    """Missing, of another length, unknown, an id that is 100 (the vocabulary has 100), of another type and shape."""
    module, made = client
    with pytest.raises(InferenceServerException, match=said):
        made.infer(MODEL, tensors(module, **arrays))


def test_json_by_name(server: Served) -> None:
    values = {"ids": IDS[0].tolist(), "features": FEATURES[0].tolist(), "gate": True}
    request = {
        "inputs": [
            {"name": "ids", "shape": [3, 3], "datatype": "INT64", "data": IDS.ravel().tolist()},
            {"name": "features", "shape": [3, 2, 2], "datatype": "FP32", "data": FEATURES.ravel().tolist()},
        ]
    }
    found = {each["name"]: each for each in server.infer(MODEL, request).json()["outputs"]}
    expected = answers(IDS, FEATURES)
    np.testing.assert_array_equal(found["best"]["data"], expected["best"])
    np.testing.assert_allclose(np.reshape(found["pair"]["data"], found["pair"]["shape"]), expected["pair"])
    values["gate"] = [True]
    answer = server.ask(
        "POST", "/predict", json.dumps({"inputs": [values]}).encode(), {"Content-Type": "application/json"}
    )
    assert answer.status == 200, answer.body
    assert "pair" in answer.body.decode()


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        ({"inputs": {"ids": [1, 2, 3]}}, 'must be a list with at least one element; one alone goes into "input"; send'),
        ({"input": {"ids": [1, 2, 3], "gate": "yes"}}, "gate is a string; expected true, false or a list of them"),
        ({"input": {"ids": [1, 2, None]}}, 'input "ids": has null or None where a number is expected'),
        ({"input": {"ids": [1, 2, 100], "features": [[1, 2], [3, 4]]}}, "the model takes 0 to 99"),
    ],
)
def test_json_that_does_not_fit_is_explained(server: Served, request_body: dict[str, Any], words: str) -> None:
    answer = server.ask("POST", "/predict", json.dumps(request_body).encode(), {"Content-Type": "application/json"})
    assert answer.status == 400
    assert words in json.loads(answer.body)["error"]


@pytest.mark.parametrize(("output", "why"), [("pair", r"the output has shape \[2, 1\]"), ("best", "of INT64")])
def test_classes_of_an_output_that_has_no_scores_are_refused(client: Any, output: str, why: str) -> None:
    module, made = client
    given = tensors(module, ids=(IDS, "INT64"), features=(FEATURES, "FP32"))
    asked = [module.InferRequestedOutput(output, class_count=2)]
    with pytest.raises(InferenceServerException, match=f"classification needs class scores; .*{why}"):
        made.infer(MODEL, given, outputs=asked)


def _tensor(name: str, datatype: str, shape: list[int], value: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": [value] * int(np.prod(shape))}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        *(({"ids": _tensor("ids", datatype, [2, 3], 1)}, 200) for datatype in ("INT8", "INT32", "UINT8", "UINT64")),
        ({"ids": _tensor("ids", "BOOL", [2, 3], True)}, 200),
        ({"ids": _tensor("ids", "FP32", [2, 3], 1)}, 400),
        ({"ids": _tensor("ids", "BYTES", [2, 3], "1")}, 400),
        ({"ids": _tensor("ids", "INT64", [2, 3], 100)}, 400),
        ({"ids": _tensor("ids", "INT64", [2, 4], 1)}, 400),
        ({"gate": _tensor("gate", "BOOL", [2, 1], True)}, 200),
        ({"gate": _tensor("gate", "INT64", [2, 1], 1)}, 200),
        ({"gate": _tensor("gate", "UINT8", [2, 1], 2)}, 400),
        ({"features": _tensor("features", "UINT8", [2, 2, 2], 1)}, 400),
        ({"features": _tensor("ids", "INT64", [2, 3], 1)}, 400),
        ({"features": {**_tensor("features", "FP32", [2, 2, 2], 1), "parameters": {"shared_memory_region": "r"}}}, 400),
    ],
)
def test_the_openapi_page_takes_and_refuses_what_the_server_does(
    server: Served, changes: dict[str, Any], status: int
) -> None:
    """Clients that are made from the page check their requests with it."""
    inputs = {"ids": _tensor("ids", "INT64", [2, 3], 1), "features": _tensor("features", "FP32", [2, 2, 2], 1)}
    request = {"inputs": list((inputs | changes).values())}
    assert server.infer(MODEL, request).status == status
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    fits = jsonschema.Draft202012Validator(schemas["InferRequest"]).is_valid(request)
    assert fits is (status == 200)
