"""What metrics of tasks compare with: boxes, masks and values for the images of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.sources import open_source
from helpers.tiny_models import Recorder

WIDE = (20, 10)
"""Width and height of the images. The model sees the middle 8 x 8 of them, resized to 16 x 8."""


def read(
    root: Path,
    targets: str,
    metric: str,
    labels: list[str] | None = None,
    preprocess: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
) -> Samples:
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "package": {"name": "tiny"},
            "model": {
                "source": "python:m.py:f", "weights": "random", "input_shape": [3, 8, 8],
                **({"labels": labels} if labels else {}),
            },
            **({"task": task} if task else {}),
            "preprocess": preprocess or {"resize": 8, "crop": 8},
            "evaluation": {"source": "images:photos", "targets": targets, "metric": metric},
        }
    )  # fmt: skip
    loaded = LoadedRecipe(recipe=recipe, path=root / "recipe.toml", text="")
    return open_source(
        "images:photos", loaded, samples=None, seed=0, skip_corrupt=False, labelled=False, progress=Recorder(),
        targets=True,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", WIDE, (9, 9, 9)).save(tmp_path / "photos" / name)
    return tmp_path


def coco(root: Path, *annotations: dict[str, Any], category: str = "cat") -> None:
    images = [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": category}]}
    (root / "boxes.json").write_text(json.dumps(content))


def test_boxes_are_moved_with_the_image(project: Path) -> None:
    coco(
        project,
        {"image_id": 6, "category_id": 3, "bbox": [5, 0, 10, 5]},
        {"image_id": 6, "category_id": 3, "bbox": [0, 0, 4, 4], "iscrowd": 1},  # the crop leaves nothing of it
    )
    found = read(project, "coco:boxes.json", "map").targets
    assert found is not None
    assert found[0].tolist() == [[-1] * 6]
    # 20 x 10 becomes 16 x 8, and the crop begins at 4: x * 0.8 - 4, y * 0.8.
    assert found[1].tolist() == [[0, 0, 8, 4, 3, 0]]
    assert read(project, "coco:boxes.json", "map", ["dog", "cat"]).targets[1, 0, 4] == 1  # type: ignore[index]
    with pytest.raises(CalibrationError, match='category "cat" is the name of 2 labels'):
        read(project, "coco:boxes.json", "map", ["cat", "dog", "cat"])


def test_masks_are_resized_and_cropped_without_mixing_classes(project: Path) -> None:
    (project / "masks").mkdir()
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 7
    mask[:5] = 255
    for name in ("a.png", "b.png"):
        Image.fromarray(mask).save(project / "masks" / name)
    found = read(project, "masks:masks", "miou").targets
    assert found is not None
    assert found.shape == (2, 8, 8)
    assert found[0, -1].tolist() == [0, 0, 0, 0, 7, 7, 7, 7]
    assert set(found[0, 0].tolist()) == {255}


def test_what_pads_an_image_has_no_class(project: Path) -> None:
    (project / "masks").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((10, 20), 7, np.uint8)).save(project / "masks" / name)
    padded = {"resize": [8, 8], "fit": "pad", "pad_value": [114]}
    found = read(project, "masks:masks", "miou", preprocess=padded).targets
    assert found is not None
    assert found[0, :, 0].tolist() == [255, 255, 7, 7, 7, 7, 255, 255]  # 20 x 10 becomes 8 x 4
    coco(project, {"image_id": 5, "category_id": 3, "bbox": [5, 0, 10, 5]})
    boxes = read(project, "coco:boxes.json", "map", preprocess=padded).targets
    assert boxes is not None
    assert boxes[0].tolist() == [[2, 2, 6, 4, 3, 0]]  # x * 0.4, y * 0.4 + 2


def test_masks_of_0_and_255_are_not_taken_for_unknown_pixels(project: Path) -> None:
    """All that counted was the rest: the class was unknown everywhere."""
    (project / "masks").mkdir()
    mask = np.zeros((10, 20), np.uint8)
    Image.fromarray(mask).save(project / "masks" / "b.png")
    mask[:, 10:] = 255
    Image.fromarray(mask).save(project / "masks" / "a.png")
    with pytest.raises(CalibrationError, match="have 0 and 255 alone, and 255 stands for unknown") as caught:
        read(project, "masks:masks", "miou")
    assert "save the class as 1" in (caught.value.hint or "")


def test_a_row_of_values_for_each_image(project: Path) -> None:
    (project / "v.csv").write_text("file,height,age\nb.png,1,2\na.png,3,4.5\n")
    found = read(project, "csv:v.csv", "mae").targets
    assert found is not None
    assert found.tolist() == [[3, 4.5], [1, 2]]
    ordered = read(project, "csv:v.csv", "mae", ["age", "height"]).targets
    assert ordered is not None
    assert ordered.tolist() == [[4.5, 3], [2, 1]]
    # A metric of one's own may compare points with their x and y, and the labels name the points.
    own = read(project, "csv:v.csv", "python:m.py:f", ["nose"]).targets
    assert own is not None
    assert own.tolist() == found.tolist()
    with pytest.raises(CalibrationError, match=r"columns height, age, and the labels are age, hight"):
        read(project, "csv:v.csv", "python:m.py:f", ["age", "hight"])


def test_json_lines_are_such_a_table(project: Path) -> None:
    lines = '{"file": "b.png", "height": 1, "angles": [2, 3]}', '{"angles": [5, 6], "file": "a.png", "height": 4.5}'
    (project / "v.jsonl").write_text("\n".join(lines) + "\n\n")
    found = read(project, "jsonl:v.jsonl", "mae").targets
    assert found is not None
    assert found.tolist() == [[4.5, 5, 6], [1, 2, 3]]
    ordered = read(project, "jsonl:v.jsonl", "mae", ["angles 0", "angles 1", "height"]).targets
    assert ordered is not None
    assert ordered.tolist() == [[5, 6, 4.5], [2, 3, 1]]
    for text, words in (
        ('{"file": "a.png", "x": "tall"}', 'line 1: "tall" in the column x is no finite number'),
        ('{"file": "a.png", "x": NaN}', "line 1: .* in the column x is no finite number"),
        ('{"file": "a.png", "x": 1}\n{"file": "b.png", "y": 1}', "line 2 has y, and the first line x"),
        ('{"file": "a.png"}', 'line 1 is no object with "file" and values'),
        ('{"image": "a.png", "x": 1}', 'line 1 is no object with "file" and values'),
        ("a.png, 1", "line 1: no JSON"),
        ("", "has no line"),
        ('{"file": "a.png", "x": 1}', "has no row for b.png"),
    ):
        (project / "v.jsonl").write_text(text)
        with pytest.raises(CalibrationError, match=words):
            read(project, "jsonl:v.jsonl", "mae")


def test_the_classes_of_embeddings_may_be_in_a_table(project: Path) -> None:
    """Photos in one folder had no classes but those of folders."""
    (project / "v.csv").write_text("file,who\nb.png,Ann\na.png, 7 \n")
    (project / "v.jsonl").write_text('{"file": "b.png", "who": "Ann"}\n{"file": "a.png", "who": 7}\n')
    for targets in ("csv:v.csv", "jsonl:v.jsonl"):
        found = read(project, targets, "recall@1").targets
        assert found is not None
        assert found.tolist() == ["7", "Ann"]
    (project / "v.csv").write_text("file,who,where\nb.png,Ann,x\na.png,Bob,y\n")
    with pytest.raises(CalibrationError, match="has the columns who, where; recall@1 compares with one"):
        read(project, "csv:v.csv", "recall@1")
    (project / "v.csv").write_text("file,who\nb.png,Ann\na.png,\n")
    with pytest.raises(CalibrationError, match='row 3: "" is no class'):
        read(project, "csv:v.csv", "recall@1")


def test_points_are_moved_with_the_image(project: Path) -> None:
    (project / "v.csv").write_text("file,nose x,nose y,ear x,ear y\nb.png,10,5,,\na.png,7.5,10,1,1\n")
    for labels in (["nose", "ear"], None):
        found = read(project, "csv:v.csv", "distance", labels).targets
        assert found is not None
        # 20 x 10 becomes 16 x 8, and the crop begins at 4: x * 0.8 - 4, y * 0.8. The other ear is cut off.
        np.testing.assert_allclose(found, [[[2, 8], [np.nan] * 2], [[4, 4], [np.nan] * 2]])
    turned = read(project, "csv:v.csv", "distance", ["ear", "nose"]).targets
    np.testing.assert_allclose(turned, found[:, ::-1])
    (project / "v.jsonl").write_text('{"file": "a.png", "p": [6, 0]}\n{"file": "b.png", "p": [null, null]}')
    lines = read(project, "jsonl:v.jsonl", "distance").targets
    np.testing.assert_allclose(lines, [[[0.8, 0]], [[np.nan] * 2]])
    with pytest.raises(CalibrationError, match=r"the points need chin x, chin y"):
        read(project, "csv:v.csv", "distance", ["chin"])
    (project / "v.csv").write_text("file,x,y,z\nb.png,1,2,3\na.png,1,2,3\n")
    with pytest.raises(CalibrationError, match=r"has the columns x, y, z"):
        read(project, "csv:v.csv", "distance")
    (project / "v.csv").write_text("file,x,y\nb.png,1,2\na.png,1,here\n")
    with pytest.raises(CalibrationError, match=r'"here" in the column y is no finite number'):
        read(project, "csv:v.csv", "distance")


def test_maps_of_numbers_are_moved_with_the_image(project: Path) -> None:
    (project / "depth").mkdir()
    across = np.tile(np.arange(20, dtype=np.float64), (10, 1))
    across[:5] = np.nan
    np.save(project / "depth" / "a.npy", across)
    np.save(project / "depth" / "b.npy", np.ones((1, 10, 20), np.int16))
    found = read(project, "maps:depth", "mae").targets
    assert found is not None
    assert (found.shape, found.dtype) == ((2, 1, 8, 8), np.float32)
    # 20 x 10 becomes 16 x 8, and the crop begins at 4: the middle of column i is at (i + 4.5) * 1.25 of the image.
    assert found[0, 0, -1].tolist() == [5, 6, 8, 9, 10, 11, 13, 14]
    assert np.isnan(found[0, 0, :4]).all()
    assert (found[1] == 1).all()
    padded = read(project, "maps:depth", "mae", preprocess={"resize": [8, 8], "fit": "pad"}).targets
    assert padded is not None
    assert np.isnan(padded[1, 0, :, 0]).tolist() == [True] * 2 + [False] * 4 + [True] * 2
    for wrong, words in (
        (np.ones((20, 10)), "has maps of 10 x 20 numbers, and b.png has 20 x 10 pixels"),
        (np.full((10, 20), np.inf), "has infinite numbers"),
        (np.ones((2, 10, 20)), "has 2 maps, and that of a.png 1"),
        (np.ones(3), "a map has numbers"),
        (np.array([["a"]]), "a map has numbers"),
    ):
        np.save(project / "depth" / "b.npy", wrong)
        with pytest.raises(CalibrationError, match=words):
            read(project, "maps:depth", "mae")
    (project / "depth" / "b.npy").write_bytes(b"no")
    with pytest.raises(CalibrationError, match=r"b.npy cannot be read"):
        read(project, "maps:depth", "mae")
    (project / "depth" / "b.npy").unlink()
    with pytest.raises(CalibrationError, match=r"b.npy does not exist"):
        read(project, "maps:depth", "mae")


def test_pictures_are_moved_with_the_image_so_many_times_as_large(project: Path) -> None:
    (project / "sharp").mkdir()
    for name, extra in (("a.jpg", 0), ("b.png", 1)):  # twice the image of 20 x 10, one of them with a pixel too many
        across = np.tile(np.arange(40 + extra, dtype=np.uint8), (20 + extra, 1))
        Image.fromarray(np.stack([across] * 3, axis=2)).save(project / "sharp" / name, quality=100)
    found = read(project, "images:sharp", "psnr", preprocess={"crop": 8}).targets
    assert found is not None
    assert (found.shape, found.dtype) == ((2, 3, 16, 16), np.float32)
    # The crop of 8 x 8 begins at column 6 of 20, so at 12 of 40.
    np.testing.assert_allclose(found[1, 0, 0] * 255, np.arange(12, 28), atol=1e-4)
    padded = read(project, "images:sharp", "psnr", preprocess={"resize": [8, 8], "fit": "pad"}).targets
    assert padded is not None
    assert padded.shape == (2, 3, 16, 16)
    assert np.isnan(padded[1, 0, :, 0]).tolist() == [True] * 4 + [False] * 8 + [True] * 4
    for size, words in (
        ((60, 30), "b.png is 3 times as large as its image, and that of a.png 2 times"),
        ((30, 15), "b.png has 30 x 15 pixels, and b.png has 20 x 10"),
        ((19, 9), "a picture is as large as its image, or a whole number of times"),
        ((40, 60), "b.png has 40 x 60 pixels"),
    ):
        Image.new("RGB", size).save(project / "sharp" / "b.png")
        with pytest.raises(CalibrationError) as raised:
            read(project, "images:sharp", "psnr", preprocess={"crop": 8})
        assert words in f"{raised.value} {raised.value.hint}"
    (project / "sharp" / "b.png").write_bytes(b"no")
    with pytest.raises(CalibrationError, match=r"targets of images:photos: .*b.png"):
        read(project, "images:sharp", "psnr", preprocess={"crop": 8})
    (project / "sharp" / "b.png").unlink()
    with pytest.raises(CalibrationError, match=r"b.png does not exist"):
        read(project, "images:sharp", "psnr", preprocess={"crop": 8})


def test_a_mask_of_each_class_is_in_a_folder_of_its_label(project: Path) -> None:
    task = {"kind": "masks"}
    for label, mode in (("cloud", "L"), ("snow", "1")):
        (project / "masks" / label).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            mask = np.zeros((10, 20), np.uint8)
            mask[:5] = 255
            Image.fromarray(mask).convert(mode).save(project / "masks" / label / name)
    found = read(project, "masks:masks", "miou", ["cloud", "snow"], task=task).targets
    assert found is not None
    assert (found.shape, found.dtype) == ((2, 2, 8, 8), np.int8)
    assert found[0, 1].tolist() == [[1] * 8] * 4 + [[0] * 8] * 4
    padded = read(
        project, "masks:masks", "miou", ["cloud", "snow"], {"resize": [8, 8], "fit": "pad"}, task=task
    ).targets
    assert padded is not None
    assert padded[0, 0, :, 0].tolist() == [-1, -1, 1, 1, 0, 0, -1, -1]
    with pytest.raises(CalibrationError, match="nothing says which classes there are"):
        read(project, "masks:masks", "miou", task=task)
    with pytest.raises(CalibrationError, match="has no folder sun"):
        read(project, "masks:masks", "miou", ["cloud", "sun"], task=task)
    (project / "masks" / "snow" / "b.png").unlink()
    with pytest.raises(CalibrationError, match=r"snow/b.png does not exist"):
        read(project, "masks:masks", "miou", ["cloud", "snow"], task=task)


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ([15, 0, 10, 5], r"the box \[15.0, 0.0, 25.0, 5.0\] lies outside b.png, which has 20 x 10 pixels"),
        (["x", 0, 1, 1], r"is no COCO file of boxes: ValueError"),
        ([0, 0, 1], r"is no COCO file of boxes"),
        ([], r"annotation 0 \(counted from 0\) has no bbox"),
        (None, r"annotation 0 \(counted from 0\) has no bbox"),
        ([9, 2, -4, 3], r"the box \[9, 2, -4, 3\] of the image 6 has no width and height"),
        ([9, 2, float("nan"), 3], r"of the image 6 has no width and height"),
    ],
)
def test_wrong_boxes_are_errors(project: Path, bbox: list[Any], words: str) -> None:
    coco(project, {"image_id": 6, "category_id": 3, "bbox": bbox})
    with pytest.raises(CalibrationError, match=words):
        read(project, "coco:boxes.json", "map")


def test_files_of_boxes_as_tools_write_them(project: Path) -> None:
    box = {"image_id": 6, "category_id": 3, "bbox": [5, 0, 10, 5]}
    coco(project, box)
    content = json.loads((project / "boxes.json").read_text())

    def read_with(changed: Any) -> Any:
        (project / "boxes.json").write_text(json.dumps(changed))
        return read(project, "coco:boxes.json", "map").targets

    def failing(changed: Any) -> str:
        with pytest.raises(CalibrationError) as caught:
            read_with(changed)
        return str(caught.value)

    def images(**facts: Any) -> dict[str, Any]:
        return {**content, "images": [{**each, **facts} for each in content["images"]]}

    expected = read_with(content)
    np.testing.assert_array_equal(read_with({**content, "annotations": [{**box, "iscrowd": None}]}), expected)
    np.testing.assert_array_equal(read_with(images(width=20, height=10)), expected)
    np.testing.assert_array_equal(read_with(images(width=10, height=20)), expected)  # as it lies in the file
    np.testing.assert_array_equal(read_with(images(width=0, height=0)), expected)
    np.testing.assert_array_equal(read_with(images(width="20", height=None)), expected)
    assert "says that a.png has 40 x 20 pixels, and it has 20 x 10" in failing(images(width=40, height=20))
    folders = [{**each, "file_name": f"train/{each['file_name']}"} for each in content["images"]]
    told = failing({**content, "images": folders})
    assert "has no image a.png, but train/a.png" in told
    assert "set the source to a folder above" in told
    told = failing({**content, "annotations": [{**box, "image_id": "6"}]})
    assert "has a box of the image '6', and no image with this id" in told
    assert "there is 6: write ids as numbers in both places" in told
    assert "but a list" in failing([{**box, "score": 0.5}])
    assert "but without categories" in failing({"images": [], "annotations": []})


def test_what_the_files_do_not_have_is_named(project: Path) -> None:
    coco(project, category="catt")
    with pytest.raises(CalibrationError, match='the category "catt" is none of the labels; did you mean "cat"'):
        read(project, "coco:boxes.json", "map", ["dog", "cat"])
    (project / "masks").mkdir()
    with pytest.raises(CalibrationError, match=r"a.png does not exist"):
        read(project, "masks:masks", "miou")
    Image.new("RGB", WIDE).save(project / "masks" / "a.png")
    with pytest.raises(CalibrationError, match="has the mode RGB"):
        read(project, "masks:masks", "miou")
    Image.new("L", (3, 3)).save(project / "masks" / "a.png")
    with pytest.raises(CalibrationError, match=r"has 3 x 3 pixels, and a\.png has 20 x 10"):
        read(project, "masks:masks", "miou")
    (project / "v.csv").write_text("file,age\na.png,3\n")
    with pytest.raises(CalibrationError, match=r"has no row for b.png"):
        read(project, "csv:v.csv", "mae")
    (project / "v.csv").write_text("file,age\na.png,old\n")
    with pytest.raises(CalibrationError, match=r"row 2: \"[^\"]*\" in the column \w+ is no finite number"):
        read(project, "csv:v.csv", "mae")
    with pytest.raises(CalibrationError, match=r"columns age, and the labels are height"):
        read(project, "csv:v.csv", "mae", ["height"])


@pytest.mark.parametrize("text", ["\ufefffile,v\r\n\r\na.png,1\r\nb.png,2\r\n", 'file,v\n"a.png",1\n,\nb.png,2\n'])
def test_tables_of_any_editor(project: Path, text: str) -> None:
    (project / "values.csv").write_bytes(text.encode())
    assert read(project, "csv:values.csv", "mae").targets.tolist() == [[1], [2]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"file;v\na.png;1\nb.png;2\n", "with commas between the columns"),
        (b"file\tv\na.png\t1\n", "with commas between the columns"),
        ("file,v\na.png,1\n".encode("utf-16"), "cannot be read"),
        (b"a.png,1\nb.png,2\n", "has no row for a.png"),  # without a header the first row is taken for one
        (b"file,v\na.png,1\nb.png,2\na.png,3\n", "row 4: a.png has a row before"),
        (b"file,v\na.png,1\n\n\nb.png,x\n", 'row 5: "x" in the column v is no finite number'),
        (b"file,v\na.png,nan\nb.png,2\n", 'row 2: "nan" in the column v is no finite number'),
    ],
)
def test_tables_that_cannot_be_right(project: Path, data: bytes, words: str) -> None:
    (project / "values.csv").write_bytes(data)
    with pytest.raises(CalibrationError, match=words):
        read(project, "csv:values.csv", "mae")


def test_one_name_for_images_of_two_folders_is_refused(project: Path) -> None:
    """Both would get the same row, without a word."""
    for folder in ("one", "two"):
        (project / "photos" / folder).mkdir()
        Image.new("RGB", WIDE).save(project / "photos" / folder / "c.png")
    (project / "values.csv").write_text("file,v\na.png,1\nb.png,2\nc.png,3\n")
    with pytest.raises(CalibrationError, match=r"has c.png, which may be one/c.png or two/c.png"):
        read(project, "csv:values.csv", "mae")
    (project / "values.csv").write_text("file,v\na.png,1\nb.png,2\none/c.png,3\ntwo/c.png,4\n")
    assert read(project, "csv:values.csv", "mae").targets.tolist() == [[1], [2], [3], [4]]  # type: ignore[union-attr]


def test_an_image_that_is_twice_in_a_file_of_boxes(project: Path) -> None:
    images = [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}, {"id": 7, "file_name": "a.png"}]
    content = {"images": images, "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
    (project / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=r"has the image a\.png twice"):
        read(project, "coco:boxes.json", "map")


def test_images_with_one_id_do_not_share_their_boxes(project: Path) -> None:
    """So it is in files that were joined: each image would get the boxes of both."""
    images = [{"id": 5, "file_name": "a.png"}, {"id": 5, "file_name": "b.png"}]
    content = {"images": images, "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
    (project / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=r"two images with the id 5, a\.png and b\.png"):
        read(project, "coco:boxes.json", "map")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"image_id": 9}, "a box of the image 9, and no image"), ({"category_id": 0}, "a box of the category 0, and no")],
)
def test_boxes_of_nothing_that_is_listed(project: Path, changed: dict[str, int], words: str) -> None:
    coco(project, {"image_id": 6, "category_id": 3, "bbox": [0, 0, 1, 1], **changed})
    with pytest.raises(CalibrationError, match=words):
        read(project, "coco:boxes.json", "map")
