"""A wheel for images of any size, built from a recipe and used as a stranger uses it: predict, serve, export, bench."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.accuracy import sqnr_db
from cpupack.cli import main
from cpupack.runtime import cli
from cpupack.runtime.errors import InputError
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.runner import Runner
from cpupack.runtime.serve.model import ServedModel
from helpers.photos import photo, png
from helpers.served import Served, serving
from helpers.tiny_recipes import Outcome

Cpupack = Callable[..., Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
MODEL = """
import torch
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, classes=3, last=1):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.out, self.last = nn.Conv2d(16, classes * last ** 2, 3, padding=1), last

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        x = self.out(torch.cat([a, self.up(b)], 1))
        return F.pixel_shuffle(x, self.last) if self.last > 1 else x


class Heads(Net):
    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        return {"scores": b.mean((2, 3)), "map": self.out(torch.cat([a, self.up(b)], 1)), "small": b}


class Anchors(nn.Module):
    def __init__(self, last=1):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 15, 1) for _ in range(2))

    def forward(self, x):
        a = F.relu(self.a(x))
        found = []
        for head, level, stride in zip(self.heads, (a, F.relu(self.b(a))), (4, 8)):
            y = head(level)
            rows, columns = y.shape[2:]
            y = y.view(len(x), 3, 5, rows, columns).permute(0, 1, 3, 4, 2).sigmoid()
            down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            at = torch.stack((across, down), 2).expand(1, 3, rows, columns, 2).float()
            found.append(torch.cat([(y[..., :2] + at) * stride, y[..., 2:]], -1).flatten(1, 3))
        return torch.cat(found, 1)
"""
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25]}
RECIPE = """
schema = 1
[package]
name = "open-int8"
[model]
source = "python:nets.py:{net}"
weights = "factory"
kwargs = {{ last = {last} }}
input_shape = [3, "height", "width"]
[sizes]
min = [{least}, {least}]
max = [64, 96]
typical = [32, 48]
[preprocess]
mean = [0.5, 0.4, 0.3]
std = [0.25, 0.25, 0.25]
[task]
kind = "{kind}"
[calibration]
source = "images:photos"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in found:
            root = tmp_path_factory.mktemp(kind)
            (root / "nets.py").write_text(MODEL)
            (root / "photos").mkdir()
            for number in range(8):
                Image.fromarray(photo(40 + number, 60 + 2 * number)).save(root / "photos" / f"{number}.png")
            (root / "recipe.toml").write_text(
                RECIPE.format(
                    kind="raw" if kind == "anchors" else kind,
                    last=2 if kind == "image" else 1,
                    net={"raw": "Heads", "anchors": "Anchors"}.get(kind, "Net"),
                    least=8 if kind == "anchors" else 32,
                )
            )
            with pytest.raises(SystemExit) as left:
                main(["build", str(root / "recipe.toml"), "--no-tune", "--out", str(root)])
            assert left.value.code == 0
            with zipfile.ZipFile(next(root.glob("*.whl"))) as archive:
                archive.extractall(root / "site")
            found[kind] = root / "site" / "open_int8"
        return found[kind]

    return build


@pytest.fixture(scope="module")
def segmenting(built: Callable[[str], Path]) -> Path:
    return built("segmentation")


def reference(package: Path, pixels: np.ndarray) -> np.ndarray:
    """Return what FP32 says to an image that is filled up with the mean colour to even sides of 32 at least."""
    height, width = pixels.shape[:2]
    filled = np.empty((max(32, height + height % 2), max(32, width + width % 2), 3), np.uint8)
    filled[:] = np.array(PREPROCESS["mean"]) * 255 + 0.5
    filled[:height, :width] = pixels
    space: dict[str, object] = {}
    exec((package.parents[1] / "nets.py").read_text(), space)
    net = space["Net"]
    assert callable(net)
    with torch.inference_mode():
        found = net()(torch.from_numpy(normalize(filled[None], PreprocessSpec.from_dict(PREPROCESS)).copy()))
    result: np.ndarray = found[0].numpy()
    return result


SIZES = [(32, 48), (33, 47), (64, 96), (20, 50), (1, 1), (33, 47), (64, 32), (63, 95)]


def test_masks_have_the_sizes_of_their_images(segmenting: Path) -> None:
    images = [photo(*size) for size in SIZES]
    with Runner(segmenting) as runner:
        found = runner.predict(images)
        alone = [runner.predict(each) for each in images]
    for image, one, other in zip(images, found, alone, strict=True):
        height, width = image.shape[:2]
        expected = reference(segmenting, image)[:, :height, :width]
        assert one.mask.shape == (height, width)
        assert np.array_equal(one.mask, other.mask)
        if height * width > 1:  # a few pixels are close between two classes, and all of them in the wrong place
            assert (one.mask == expected.argmax(axis=0)).mean() > 0.9


def test_arrays_of_any_size_and_what_is_refused(segmenting: Path) -> None:
    with Runner(segmenting) as runner:
        for size in ((32, 32), (64, 96), (34, 62)):
            pixels = photo(*size)
            found = runner(pixels[None])
            floats = normalize(pixels[None], PreprocessSpec.from_dict(PREPROCESS))
            assert found.shape == (1, 3, *size)
            assert sqnr_db(reference(segmenting, pixels)[None], found) > 20.0
            assert sqnr_db(found, runner(np.ascontiguousarray(floats))) > 25.0
        for shape in ((1, 33, 48, 3), (1, 32, 98, 3), (1, 32, 48, 4), (1, 3, 32, 48), (32, 48, 3)):
            with pytest.raises(InputError, match=r"height 32 to 64 in steps of 2, width 32 to 96 in steps of 2"):
                runner(np.zeros(shape, np.uint8))
        with pytest.raises(InputError, match="empty batch"):
            runner(np.zeros((0, 32, 48, 3), np.uint8))
        with pytest.raises(InputError, match="input 1: the image has 65 x 10 pixels"):
            runner.predict([photo(32, 48), photo(65, 10)])


def test_an_upscaled_image_is_cut_to_its_own_size(built: Callable[[str], Path]) -> None:
    with Runner(built("image")) as runner:
        for size in ((33, 47), (64, 96), (5, 9)):
            assert runner.predict(photo(*size)).pixels.shape == (2 * size[0], 2 * size[1], 3)


def test_several_outputs(built: Callable[[str], Path], tmp_path: Path) -> None:
    """Two images with as many pixels, and one of another size: outputs lie at other places in each row."""
    package = built("raw")
    images = [photo(*size) for size in ((32, 64), (64, 32), (32, 48), (33, 47))]
    places = [(32, 64), (64, 32), (32, 48), (34, 48)]
    shapes = [{"scores": (8,), "map": (3, *each), "small": (8, each[0] // 2, each[1] // 2)} for each in places]
    with Runner(package) as runner:
        rows = runner.predict(images)
        assert [{name: each.shape for name, each in row.items()} for row in rows] == shapes
        for image, row in zip(images[:3], rows, strict=False):
            assert all(np.array_equal(each[0], row[name]) for name, each in runner(image[None]).items())
            assert sqnr_db(reference(package, image), row["map"]) > 20.0
        model = ServedModel(runner, package)
        assert model.signature_of([png(images[3]), png(images[3])]).outputs[1].shape == (3, 34, 48)
        with pytest.raises(InputError, match="have several sizes"):
            model.signature_of([png(each) for each in images[:2]])
    (tmp_path / "in").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "in" / f"{number}.png").write_bytes(png(image))
    batch = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra dev")
    assert cli.main(package, ["batch", "--from", str(tmp_path / "in"), "--to", str(tmp_path / "out")]) == 0
    for found, row in zip(batch.read_table(tmp_path / "out").to_pylist(), rows, strict=True):
        for name, each in row.items():
            own = found["outputs"][name]
            assert np.array_equal(np.float32(own["data"]).reshape(own["shape"]), each)
    body = json.dumps({"images": [base64.b64encode(png(each)).decode() for each in images]}).encode()
    with serving(package) as served:
        facts = {each["name"]: each["shape"] for each in served.get("/v2/models/open-int8").json()["outputs"]}
        assert facts == {"scores": [-1, 8], "map": [-1, 3, -1, -1], "small": [-1, 8, -1, -1]}
        answer = served.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer.body
        for found, row in zip(answer.json()["outputs"], rows, strict=True):
            assert {name: tuple(each["shape"]) for name, each in found.items()} == {k: v.shape for k, v in row.items()}
        tensor = {"name": "input", "shape": [2, 64, 32, 3], "datatype": "UINT8", "data": [images[1].tolist()] * 2}
        given = served.infer("open-int8", {"inputs": [tensor]})
        assert [each["shape"] for each in given.json()["outputs"]] == [[2, 8], [2, 3, 64, 32], [2, 8, 32, 16]]


def test_commands(segmenting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(segmenting, ["info"]) == 0
    assert "height 32 to 64 in steps of 2, width 32 to 96 in steps of 2" in " ".join(capsys.readouterr().out.split())
    assert cli.main(segmenting, ["verify"]) == 0
    image = tmp_path / "odd.png"
    image.write_bytes(png(photo(33, 47)))
    assert cli.main(segmenting, ["predict", str(image), "--save", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").is_file()
    capsys.readouterr()
    bench = ["bench", "--json", "--duration", "0.2", "--threads", "1", "--instances", "1", "--batch-size", "1"]
    assert cli.main(segmenting, bench) == 0
    assert json.loads(capsys.readouterr().out)["throughput_per_s"] > 0
    assert cli.main(segmenting, ["export", "--c", str(tmp_path / "c"), "--size", "64x96"]) == 0
    assert "64 x 96" in (tmp_path / "c" / "README.md").read_text()
    assert "it takes inputs of one size, 64 x 96; --size chooses another" in capsys.readouterr().out
    assert cli.main(segmenting, ["export", "--c", str(tmp_path / "d"), "--size", "64x97"]) == 2
    assert "the model takes height 32 to 64 in steps of 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(segmenting: Path) -> Iterator[Served]:
    with serving(segmenting) as served:
        yield served


def test_the_server_takes_images_of_several_sizes(segmenting: Path, server: Served) -> None:
    facts = server.get("/v2/models/open-int8").json()
    assert facts["inputs"][0]["shape"] == [-1, -1, -1, 3]
    assert facts["outputs"][0]["shape"] == [-1, 3, -1, -1]
    images = [photo(*size) for size in ((32, 48), (33, 47), (64, 96), (33, 47))]
    body = json.dumps({"images": [base64.b64encode(png(each)).decode() for each in images]}).encode()
    answer = server.ask("POST", "/predict", body, {"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    with Runner(segmenting) as runner:
        for image, found in zip(images, answer.json()["predictions"], strict=True):
            assert (found["height"], found["width"]) == image.shape[:2]
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mask_png"]))))
            assert np.array_equal(mask, runner.predict(image).mask)
        for size in ((32, 48), (64, 96)):
            pixels = np.stack([photo(*size)] * 3)
            tensor = {"name": "input", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.tolist()}
            given = server.infer("open-int8", {"inputs": [tensor]})
            assert given.status == 200, given.body
            output = given.json()["outputs"][0]
            expected = runner(pixels)
            assert output["shape"] == list(expected.shape)
            assert np.array_equal(np.array(output["data"], np.float32).reshape(expected.shape), expected)


def test_what_the_server_refuses(server: Served) -> None:
    zeros = np.zeros((1, 33, 48, 3), np.uint8)
    tensor = {"name": "input", "shape": list(zeros.shape), "datatype": "UINT8", "data": zeros.tolist()}
    answer = server.infer("open-int8", {"inputs": [tensor]})
    assert answer.status == 400
    assert "height 32 to 64 in steps of 2" in answer.json()["error"]
    raw = server.ask("POST", "/v2/models/open-int8/infer", zeros.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert raw.status == 400
    assert "needs its shape" in raw.json()["error"]
    large = server.ask("POST", "/predict", png(photo(65, 10)), {"Content-Type": "image/png"})
    assert large.status == 400
    assert "takes up to 64 x 96" in large.json()["error"]
    assert server.get("/openapi.json").status == 200


SEQUENCES = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.one, self.two = nn.Conv1d(8, 16, 5, 2, 2), nn.Conv1d(16, 6, 3, padding=1)

    def forward(self, x):
        steps = self.two(torch.relu(self.one(x)))
        return {"steps": steps, "whole": steps.mean(2)}
"""


def test_a_wheel_for_sequences_of_any_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of the documentation, with a shorter maximum, from the build to the server."""
    page = (Path(__file__).parents[2] / "docs/how-to/sizes.md").read_text()
    text = next(each for each in page.split("```toml\n")[1:] if "gestures" in each).partition("```")[0]
    assert len(text.splitlines()) < 30
    text = text.replace('"gestures.safetensors"', '"factory"').replace("4096", "512")
    (tmp_path / "recipe.toml").write_text(text)
    (tmp_path / "gestures.py").write_text(SEQUENCES)
    random = np.random.default_rng(0)
    np.savez(tmp_path / "recordings.npz", data=random.standard_normal((16, 8, 300)).astype(np.float32))
    with pytest.raises(SystemExit) as left:
        main(["build", str(tmp_path / "recipe.toml"), "--no-tune", "--out", str(tmp_path)])
    assert left.value.code == 0
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    package = tmp_path / "site" / "gestures_int8"
    space: dict[str, object] = {}
    exec(SEQUENCES, space)
    net = space["Net"]
    assert callable(net)
    samples = [random.standard_normal((8, time)).astype(np.float32) for time in (256, 64, 512, 100, 100)]
    with Runner(package) as runner:
        found = runner.predict(samples)
        for sample, row in zip(samples, found, strict=True):
            expected = net()(torch.from_numpy(sample[None]))
            alone = runner(sample[None])
            for name, each in expected.items():
                assert np.array_equal(alone[name][0], row[name])
                assert sqnr_db(each[0].detach().numpy(), row[name]) > 20.0
        for shape in ((1, 8, 62), (1, 8, 514), (1, 8, 65), (1, 7, 64), (1, 64)):
            with pytest.raises(InputError, match=r"float32 \(n, 8, time\) with time 64 to 512 in steps of 2"):
                runner(np.zeros(shape, np.float32))
        with pytest.raises(InputError, match=r"input 1: .*with time 64 to 512"):
            runner.predict([samples[0], samples[1][:, :63]])
    for command in (["info"], ["verify"], ["export", "--c", str(tmp_path / "c"), "--size", "128"]):
        capsys.readouterr()
        assert cli.main(package, command) == 0
    assert "float32 values, 1024." in (tmp_path / "c" / "README.md").read_text()
    assert cli.main(package, ["export", "--c", str(tmp_path / "d"), "--size", "64x128"]) == 2
    assert "expected TIME, time 64 to 512" in capsys.readouterr().err
    with serving(package) as served:
        facts = served.get("/v2/models/gestures-int8").json()
        assert facts["inputs"][0]["shape"] == [-1, 8, -1]
        assert {each["name"]: each["shape"] for each in facts["outputs"]} == {"steps": [-1, 6, -1], "whole": [-1, 6]}
        body = json.dumps({"inputs": [each.tolist() for each in samples]}).encode()
        answer = served.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer.body
        for row, own in zip(found, answer.json()["outputs"], strict=True):
            steps = np.array(own["steps"]["data"], np.float32).reshape(own["steps"]["shape"])
            assert np.array_equal(steps, row["steps"])
        tensor = {"name": "input", "shape": [1, 8, 64], "datatype": "FP32", "data": [samples[1].tolist()]}
        given = served.infer("gestures-int8", {"inputs": [tensor]})
        assert given.status == 200, given.body
        assert [each["shape"] for each in given.json()["outputs"]] == [[1, 6, 32], [1, 6]]
        tensor |= {"shape": [1, 8, 63], "data": [samples[1][:, :63].tolist()]}
        refused = served.infer("gestures-int8", {"inputs": [tensor]})
        assert refused.status == 400
        assert "time 64 to 512" in refused.json()["error"]
        assert served.get("/").status == 200


@pytest.mark.parametrize("size", [(8, 8), (8, 96), (16, 8), (64, 96)])
def test_a_level_of_one_position_is_computed_as_larger_ones_are(
    built: Callable[[str], Path], size: tuple[int, int]
) -> None:
    """A program for images of 8 x 8 alone has fewer dimensions and other lists than those of all larger ones."""
    package = built("anchors")
    batch = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    space: dict[str, object] = {}
    exec((package.parents[1] / "nets.py").read_text(), space)
    net = space["Anchors"]
    assert callable(net)
    with torch.inference_mode():
        expected = net()(torch.from_numpy(batch)).numpy()
    with Runner(package) as runner:
        found = runner(batch)
    assert found.shape == expected.shape
    assert sqnr_db(expected, found) > 30


LARGE_ONES = """
import torch
from torch import nn


class Net(nn.Conv2d):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__(3, 4, 3, padding=1)

    def forward(self, x):
        y = super().forward(x)
        return y * 4 if x.shape[-1] > 250 else y
"""


@pytest.mark.parametrize(("gate", "code"), [("3.0", 6), ('"off"', 0)])
def test_what_a_model_does_at_its_largest_size_alone_is_seen(
    gate: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All sizes that are lowered say nothing of it. Four times the answer leaves 10 * log10(16 / 9) = 2.5 dB."""
    (tmp_path / "nets.py").write_text(LARGE_ONES)
    recipe = (
        RECIPE.format(kind="raw", net="Net", last=1, least=8)
        .replace("64, 96", "64, 256")
        .replace("kwargs = { last = 1 }\n", "")
    )
    recipe = recipe.replace('source = "images:photos"', 'source = "synthetic"\nsamples = 8')
    (tmp_path / "recipe.toml").write_text(f"{recipe}[evaluation]\nmin_sqnr_db = {gate}\n")
    with pytest.raises(SystemExit) as left:
        main(["build", str(tmp_path / "recipe.toml"), "--no-tune", "--out", str(tmp_path / "dist")])
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == code, said
    assert "inputs of 64 x 256 have 2.5 dB, those of " in said
    assert (
        list((tmp_path / "dist").glob("*.whl")) == [] if code else "set min and max to sizes that it was made" in said
    )
