"""Wheels of each kind of task, built from a recipe and run as a stranger runs them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.host.cpu import machine
from helpers.browser import BROWSER, browsing
from helpers.served import serving
from helpers.tiny_recipes import SIZE, Outcome, Project
from helpers.waiting import PATIENCE_S

Cpupack = Callable[..., Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

MODELS = """
import torch
from torch import nn


def maps(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.body(x)
        boxes = self.boxes(y).flatten(2).transpose(1, 2).sigmoid()
        return {"boxes": boxes, "scores": self.scores(y).flatten(2).transpose(1, 2)}
"""
DOUBLING = """
import torch
from torch import nn


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1, bias=False)
        self.shuffle = nn.PixelShuffle(2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3).repeat_interleave(4, 0).reshape(12, 3, 1, 1))

    def forward(self, x):
        return self.shuffle(self.conv(x))


def doubled():
    return Doubled()
"""
RECIPE = """\
schema = 1
[package]
name = "tiny-task"
[model]
source = "python:nets.py:{source}"
kwargs = {kwargs}
weights = "random"
input_shape = [3, {size}, {size}]
labels = ["one", "two"]
[preprocess]
resize = [{size}, {size}]
[task]
kind = "{kind}"
{settings}
[calibration]
source = "images:photos"
"""
ONE = ("--no-tune", "--set", "target.x86_64.engine=native")


def write(
    project: Project, kind: str, source: str = "maps", kwargs: str = "{ classes = 2 }", settings: str = ""
) -> None:
    project.write("nets.py", MODELS)
    text = RECIPE.format(kind=kind, source=source, kwargs=kwargs, settings=settings, size=SIZE)
    project.write("task.toml", text)


def write_true_pictures(project: Project) -> None:
    """Write what ``Doubled`` makes of the photos at the model's size; the photos get that size, too."""
    for path in sorted((project.root / "photos").rglob("*")):
        if not path.is_file():
            continue
        with Image.open(path) as image:
            small = image.convert("RGB").resize((SIZE, SIZE))
        path.unlink()
        small.save(path.with_suffix(".png"))
        true = (project.root / "true" / path.relative_to(project.root / "photos")).with_suffix(".png")
        true.parent.mkdir(parents=True, exist_ok=True)
        small.resize((2 * SIZE, 2 * SIZE), Image.Resampling.NEAREST).save(true)


def predicted(project: Project, wheel: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    with zipfile.ZipFile(project.root / wheel) as archive:
        archive.extractall(project.root / "site")
    return subprocess.run(
        [sys.executable, "-m", "tiny_task", *arguments],
        cwd=project.root / "site", capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip


def test_a_segmentation_has_the_size_of_the_photo_and_is_drawn_over_it(cpupack: Cpupack, project: Project) -> None:
    write(project, "segmentation")
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 0, done.err
    photo = project.root / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(photo)
    wheel, drawn = done.out.splitlines()[-1], project.root / "drawn.png"
    found = predicted(project, wheel, "predict", str(photo), "--save", str(drawn), "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["task"] == "segmentation"
    (result,) = answer["predictions"]
    assert (result["width"], result["height"]) == (50, 30)
    assert sum(one["share"] for one in result["classes"]) == pytest.approx(1.0)
    assert {one["label"] for one in result["classes"]} <= {"one", "two"}
    with Image.open(drawn) as image:
        assert image.width >= 50
        assert image.height >= 30
    refused = predicted(project, wheel, "predict", str(photo), "--top-k", "1")
    assert refused.returncode == 2
    assert '--top-k is for classifications; this model\'s task is "segmentation"' in refused.stderr
    refused = predicted(project, wheel, "predict", str(photo), str(photo), "--save", str(project.root / "none"))
    assert refused.returncode == 2
    assert "is no directory; 2 inputs need one" in refused.stderr
    assert predicted(project, wheel, "verify").returncode == 0


def test_a_detector_of_boxes_and_scores_gives_boxes_inside_the_photo(cpupack: Cpupack, project: Project) -> None:
    write(project, "detection", "Detector", "{}", 'box_format = "cxcywh_normalized"\nthreshold = 0.01')
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 0, done.err
    photo = project.root / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(photo)
    found = predicted(project, done.out.splitlines()[-1], "predict", str(photo), "--json")
    assert found.returncode == 0, found.stderr
    (result,) = json.loads(found.stdout)["predictions"]
    assert result["detections"]
    for one in result["detections"]:
        left, top, right, bottom = one["box"]
        assert 0 <= left < right <= 50
        assert 0 <= top < bottom <= 30
    scores = [one["score"] for one in result["detections"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        ("multilabel", "", 'kind = "multilabel" needs one output of shape (labels,)'),
        ("detection", "", 'kind = "detection" needs two outputs'),
        ("embedding", "", 'kind = "embedding" needs one output of shape (dimensions,)'),
    ],
)
def test_a_kind_that_does_not_fit_the_output_fails_the_build_with_the_shape_that_it_needs(
    cpupack: Cpupack, project: Project, kind: str, settings: str, problem: str
) -> None:
    write(project, kind, settings=settings)
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 3
    assert problem in done.err
    assert f"(2, {SIZE}, {SIZE})" in done.err
    assert not list((project.root / "dist").glob("*.whl")) if (project.root / "dist").exists() else True


def test_settings_of_another_kind_and_wrong_counts_of_labels_are_errors(cpupack: Cpupack, project: Project) -> None:
    write(project, "segmentation", settings="nms_iou = 0.5")
    done = cpupack("check", "task.toml")
    assert done.code == 2
    assert 'has no effect with kind = "segmentation"; it belongs to "detection"' in done.err + done.out
    write(project, "segmentation", kwargs="{ classes = 3 }")
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 3
    assert "the list has 2 names" in done.err


DETECTOR = """\
schema = 1
[package]
name = "tiny-task"
[model]
source = "torchvision:ssdlite320_mobilenet_v3_large"
kwargs = { num_classes = 3 }
weights = "random"
input_shape = [3, 320, 320]
labels = ["nothing", "cat", "dog"]
[preprocess]
resize = [320, 320]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[task]
kind = "detection"
threshold = 0.2
max_detections = 7
[calibration]
source = "images:photos"
samples = 8
[evaluation]
source = "images:photos"
samples = 4
targets = "coco:boxes.json"
metric = "map50"
min_metric = 0.0
min_agreement = 0.1
"""


def test_a_detector_of_torchvision_is_built_judged_by_its_boxes_and_shown_in_the_report(
    cpupack: Cpupack, project: Project
) -> None:
    pytest.importorskip("pycocotools")
    project.write("task.toml", DETECTOR)
    photos = project.root / "photos"
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "category_id": 1, "bbox": [2, 2, 9, 9]} for number in range(len(names))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    project.write("boxes.json", json.dumps(content))
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 0, done.err
    assert "same boxes (class, IoU of 0.5)" in " ".join(done.err.split())
    wheel = done.out.splitlines()[-1]
    photo = project.root / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(photo)
    found = predicted(project, wheel, "predict", str(photo), "--json", "--save", str(project.root / "drawn.png"))
    assert found.returncode == 0, found.stderr
    (result,) = json.loads(found.stdout)["predictions"]
    assert 0 < len(result["detections"]) <= 7
    for one in result["detections"]:
        left, top, right, bottom = one["box"]
        assert 0 <= left < right <= 50
        assert 0 <= top < bottom <= 30
        assert one["label"] in {"cat", "dog"}
    assert predicted(project, wheel, "verify").returncode == 0
    with zipfile.ZipFile(project.root / wheel) as archive:
        facts = json.loads(archive.read("tiny_task/build.json"))
    assert facts["report"]["metric"] == "map50"
    assert [gate["name"] for gate in facts["report"]["gates"]] == ["min_agreement", "min_metric"]
    assert len(facts["pictures"]) == 3
    assert facts["pictures"][0]["fp32"] != facts["pictures"][0]["int8"]
    done = cpupack("report", wheel, "--html", "page.html")
    assert done.code == 0, done.err
    assert (project.root / "page.html").read_text(encoding="utf-8").count("data:image/jpeg;base64") == 6


def test_pictures_are_judged_by_true_ones_and_saved(cpupack: Cpupack, project: Project) -> None:
    """A network that doubles each pixel: its true pictures are the photos, twice as large."""
    project.write("nets.py", DOUBLING)
    write_true_pictures(project)
    text = RECIPE.format(kind="image", source="doubled", kwargs="{}", settings="", size=SIZE)
    text = text.replace('labels = ["one", "two"]\n', "").replace('weights = "random"', 'weights = "factory"')
    gates = 'source = "images:photos"\ntargets = "images:true"\nmetric = "psnr"\nmin_metric = 40.0\n'
    project.write("task.toml", f"{text}[evaluation]\n{gates}")
    done = cpupack("build", "task.toml", *ONE)
    assert done.code == 0, done.err
    wheel = done.out.splitlines()[-1]
    with zipfile.ZipFile(project.root / wheel) as archive:
        judged = json.loads(archive.read("tiny_task/build.json"))["report"]
    assert judged["metric_fp32"] == 100.0  # equal, byte for byte
    assert 40.0 < judged["metric_int8"] <= 100.0
    photo = next(project.root.glob("photos/**/*.png"), None) or next(project.root.glob("photos/**/*.jpg"))
    saved = project.root / "larger.png"
    found = predicted(project, wheel, "predict", str(photo), "--save", str(saved))
    assert found.returncode == 0, found.stderr
    assert f"an image of {2 * SIZE} x {2 * SIZE} pixels" in found.stdout
    with Image.open(saved) as image:
        assert image.size == (2 * SIZE, 2 * SIZE)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_draws_what_was_found_over_the_photo(cpupack: Cpupack, project: Project) -> None:
    photo = project.root / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(photo)
    for kind, source, settings in (
        ("detection", "Detector", 'box_format = "cxcywh_normalized"\nthreshold = 0.01'),
        ("segmentation", "maps", ""),
        ("masks", "maps", ""),
    ):
        write(project, kind, source, "{}" if settings else "{ classes = 2 }", settings)
        done = cpupack("build", "task.toml", *ONE)
        assert done.code == 0, done.err
        site = project.root / kind
        with zipfile.ZipFile(project.root / done.out.splitlines()[-1]) as archive:
            archive.extractall(site)
        with serving(site / "tiny_task") as served, browsing() as tab:
            (result,) = served.ask("POST", "/predict", photo.read_bytes()).json()["predictions"]
            refused = served.ask("POST", "/predict?top_k=1", photo.read_bytes())
            assert refused.status == 400
            assert f"top_k is for classifications; this model's task is '{kind}'" in refused.json()["error"]
            tab.open(f"http://127.0.0.1:{served.port}/")
            tab.wait("document.querySelectorAll('#card tr').length > 5")
            tab.choose_file("#file", photo)
            tab.wait("!document.querySelector('#answer').hidden && document.querySelector('#preview').complete")
            if kind == "detection":
                tab.wait("document.querySelectorAll('#marks .outline').length > 0")
                boxes = tab.run(
                    "[...document.querySelectorAll('#marks .outline')].reverse().map((e) =>"
                    " ['x', 'y', 'width', 'height'].map((name) => Number(e.getAttribute(name))))"
                )
                expected = [[x, y, right - x, low - y] for x, y, right, low in (e["box"] for e in result["detections"])]
                np.testing.assert_allclose(boxes, expected, atol=1e-3)
                assert tab.run("document.querySelector('#marks').getAttribute('viewBox')") == "0 0 50 30"
            else:
                tab.wait("!document.querySelector('#mask').hidden")
                clear = tab.run("""(() => {
                  const mask = document.querySelector("#mask");
                  const data = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data;
                  return data.filter((_, at) => at % 4 === 3 && !data[at]).length / (data.length / 4);
                })()""")
                if kind == "masks":
                    files = [base64.b64decode(one["mask_png"]) for one in result["masks"]]
                    assert files, "random weights have a mask"
                    covered = np.any([np.asarray(Image.open(io.BytesIO(each))) > 0 for each in files], axis=0).mean()
                else:
                    covered = sum(one["share"] for one in result["classes"] if one["index"] > 0)
                assert clear == pytest.approx(1 - covered)
