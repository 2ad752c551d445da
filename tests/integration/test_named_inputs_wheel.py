"""A wheel of two images, each of any size, from the recipe of the documentation: runner, command line and server."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.accuracy import sqnr_db
from cpupack.cli import main
from cpupack.runtime import cli
from cpupack.runtime.errors import InputError
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.runner import Runner
from helpers.photos import photo, png
from helpers.served import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
MODEL = """
import torch
from torch import nn


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.one, self.two, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, left, right):
        a, b = (torch.relu(self.two(torch.relu(self.one(each)))) for each in (left, right))
        return {"map": self.last(a), "difference": a.mean((2, 3)) - b.mean((2, 3))}
"""


def sample(left: tuple[int, int], right: tuple[int, int]) -> dict[str, np.ndarray]:
    return {"left": photo(*left), "right": photo(*right)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    page = (Path(__file__).parents[2] / "docs/how-to/sizes.md").read_text()
    text = next(each for each in page.split("```toml\n")[1:] if "pairs-int8" in each).partition("```")[0]
    for old, new in (('"pairs.safetensors"', '"factory"'), ("64", "32"), ("256", "64"), ("1024", "128")):
        text = text.replace(f" {old}", f" {new}")
    (root / "recipe.toml").write_text(text)
    (root / "pairs.py").write_text(MODEL)
    pairs = [sample((72, 80), (64, 72)) for _ in range(8)]
    np.savez(root / "pairs.npz", **{name: np.stack([each[name] for each in pairs]) for name in ("left", "right")})
    with pytest.raises(SystemExit) as left:
        main(["build", str(root / "recipe.toml"), "--no-tune", "--out", str(root)])
    assert left.value.code == 0
    with zipfile.ZipFile(next(root.glob("*.whl"))) as archive:
        archive.extractall(root / "site")
    return root / "site" / "pairs_int8"


@pytest.fixture(scope="module")
def runner(package: Path) -> Iterator[Runner]:
    with Runner(package) as found:
        yield found


def in_float(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what FP32 says to a pair of images."""
    space: dict[str, Any] = {}
    exec(MODEL, space)
    spec = PreprocessSpec(mean=(0.5,), std=(0.25,))
    tensors = {name: torch.from_numpy(normalize(each[None], spec).copy()) for name, each in given.items()}
    with torch.inference_mode():
        return {name: each.numpy() for name, each in space["Pairs"]()(**tensors).items()}


MIXED = [
    sample((32, 64), (64, 64)),
    sample((64, 32), (64, 64)),
    sample((128, 96), (32, 36)),
    sample((32, 64), (64, 64)),
]


def test_samples_of_several_sizes_are_grouped_and_near_to_fp32(runner: Runner) -> None:
    """The first two have rows of one length, and maps of one size in memory."""
    found = runner.predict(MIXED)
    for given, row in zip(MIXED, found, strict=True):
        alone = runner(**{name: each[None] for name, each in given.items()})
        for name, expected in in_float(given).items():
            assert alone[name].shape == expected.shape
            assert np.array_equal(alone[name][0], row[name])
        assert sqnr_db(in_float(given)["map"], alone["map"]) > 20


def test_what_the_runner_refuses(runner: Runner) -> None:
    with pytest.raises(InputError, match=r'left_height of "left" is 33; the model takes left_height 32 to 128 in'):
        runner.predict(sample((33, 64), (64, 64)))
    with pytest.raises(InputError, match=r'the input "right" is missing; the model takes left .*left_height'):
        runner(left=photo(32, 32)[None])


def test_the_command_line(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(package, ["verify"]) == 0
    (tmp_path / "data").mkdir()
    for number, each in enumerate(MIXED):
        np.savez(tmp_path / "data" / f"{number}.npz", **each)
    (tmp_path / "l.png").write_bytes(png(MIXED[0]["left"]))
    (tmp_path / "r.png").write_bytes(png(MIXED[0]["right"]))
    files = [str(tmp_path / "data" / f"{number}.npz") for number in range(2)]
    capsys.readouterr()
    assert cli.main(package, ["predict", "--json", *files]) == 0
    by_file = json.loads(capsys.readouterr().out)["predictions"]
    pictures = [f"--input={side}={tmp_path / f'{side[0]}.png'}" for side in ("left", "right")]
    assert cli.main(package, ["predict", "--json", *pictures]) == 0
    (one,) = json.loads(capsys.readouterr().out)["predictions"]
    assert one["outputs"] == by_file[0]["outputs"]
    assert np.shape(by_file[1]["outputs"]["map"]) == (4, 16, 8)
    bench = ["bench", "--json", "--duration", "0.2", "--threads", "1", "--instances", "1", "--batch-size", "1"]
    assert cli.main(package, bench) == 0
    assert cli.main(package, ["batch", "--from", str(tmp_path / "data"), "--to", str(tmp_path / "out")]) == 0
    assert cli.main(package, ["export", "--c", str(tmp_path / "c"), "--size", "32x64x64x32"]) == 0
    text = (tmp_path / "c" / "README.md").read_text()
    assert "| 12291 | 32, which is `right_width` |" in text  # 3 * (32 * 64 + 64 * 32) values, then four sizes
    capsys.readouterr()
    assert cli.main(package, ["export", "--c", str(tmp_path / "d"), "--size", "64x64"]) == 2
    assert "expected LEFT_HEIGHTxLEFT_WIDTHxRIGHT_HEIGHTxRIGHT_WIDTH" in capsys.readouterr().err


def test_the_server(package: Path, runner: Runner) -> None:
    with serving(package) as server:
        facts = server.get("/v2/models/pairs-int8").json()
        assert [each["shape"] for each in facts["inputs"]] == [[-1, -1, -1, 3]] * 2
        assert [each["shape"] for each in facts["outputs"]] == [[-1, 4, -1, -1], [-1, 8]]
        encoded = [{k: base64.b64encode(png(v)).decode() for k, v in each.items()} for each in MIXED]
        body = json.dumps({"inputs": encoded}).encode()
        answer = server.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer.body
        tensors = [
            {"name": k, "shape": [1, *v.shape], "datatype": "UINT8", "data": [v.tolist()]} for k, v in MIXED[1].items()
        ]
        given = server.infer("pairs-int8", {"inputs": tensors})
        assert given.status == 200, given.body
        expected = runner.predict(MIXED)
        for found, wanted in zip(answer.json()["outputs"], expected, strict=True):
            for name, each in wanted.items():
                assert found[name]["shape"] == list(each.shape)
                assert np.array_equal(np.array(found[name]["data"], np.float32).reshape(each.shape), each)
        (output,) = (each for each in given.json()["outputs"] if each["name"] == "map")
        assert output["shape"] == [1, 4, 16, 8]
        assert np.array_equal(np.array(output["data"], np.float32).reshape(4, 16, 8), expected[1]["map"])
