"""Contradictions and missing files, each found on its own and beside other mistakes."""

from pathlib import Path

import numpy as np
import pytest

from cpupack.errors import RecipeError
from cpupack.recipe.file import load_recipe

BASE: dict[str, dict[str, str]] = {
    "package": {"name": '"net"'},
    "model": {
        "source": '"torchvision:resnet18"',
        "weights": '"IMAGENET1K_V1"',
        "input_shape": "[3, 224, 224]",
    },
    "preprocess": {"crop": "224"},
    "calibration": {"source": '"synthetic"'},
}


def write(directory: Path, changes: dict[str, str | None]) -> Path:
    """Write the base recipe with ``table.key = value`` changes; None removes a key, "
    "a bare table name the table."""
    tables = {table: dict(keys) for table, keys in BASE.items()}
    for name, value in changes.items():
        table, _, key = name.rpartition(".")
        if not table:
            del tables[key]
        elif value is None:
            del tables[table][key]
        else:
            tables.setdefault(table, {})[key] = value
    path = directory / "recipe.toml"
    text = "schema = 1\n"
    for table, keys in tables.items():
        text += f"[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
    path.write_text(text)
    return path


def problems(directory: Path, changes: dict[str, str | None]) -> list[str]:
    path = write(directory, changes)
    try:
        load_recipe(path)
    except RecipeError as error:
        lines = error.message.replace(str(directory.resolve()), "DIR").splitlines()
        return [line.partition(": ")[2] for line in lines]
    return []


def files(directory: Path) -> None:
    """Make what the recipes below name."""
    for name in ("pictures/cat", "loose", "folder.pt"):
        (directory / name).mkdir(parents=True)
    for name in ("labels.txt", "net.pt", "net.py"):
        (directory / name).touch()
    np.savez(directory / "data.npz", data=np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.labels": '"imagenet"'},
        {"model.labels": '"labels.txt"'},
        {"model.labels": '["a", "b"]'},
        {"model.weights": '"net.pt"'},
        {"model.weights": '"net.pt"', "model.sha256": f'"{"0" * 64}"'},
        {"model.weights_fallback": '"random"'},
        {"model.source": '"python:net.py:make"', "model.weights": '"factory"'},
        {"model.source": '"python:pkg.net:make"', "model.weights": '"random"'},
        {"model.source": '"timm:resnet18"', "model.weights": '"pretrained"'},
        {"calibration.source": '"images:pictures"', "calibration.skip_corrupt": "true"},
        {"calibration.source": '"arrays:data.npz"'},
        {"calibration.source": '"python:net.py:data"'},
        {"evaluation.source": '"images:pictures"', "evaluation.max_drop": "0.01"},
        {"evaluation.source": '"images:loose"', "evaluation.min_sqnr_db": "10"},
        {"evaluation.source": '"arrays:data.npz"', "evaluation.min_agreement": "0.9", "evaluation.confident": "true"},
        {
            "evaluation.source": '"images:pictures"',
            "evaluation.metric": '"python:net.py:f"',
            "evaluation.metric_goal": '"min"',
            "evaluation.max_metric": "0.5",
            "evaluation.max_metric_drop": "0.1",
        },
        {"evaluation.min_sqnr_db": "10", "evaluation.min_speedup": "1.5", "evaluation.min_agreement": "0.9"},
        {"preprocess": None, "model.input_shape": "[16]"},
        {"quantize.mode": '"dynamic"', "calibration": None},
        {"quantize.observer": '"percentile"', "quantize.percentile": "99.9"},
        {"quantize.recover": "true", "quantize.budget_s": "60", "evaluation.min_sqnr_db": "10"},
        {"preprocess.crop": None, "preprocess.resize": "[224, 224]"},
        {"preprocess.crop": None},
        {
            "preprocess.crop": None,
            "preprocess.resize": "[224, 224]",
            "preprocess.fit": '"pad"',
            "preprocess.pad_value": "[114]",
            "preprocess.place": '"start"',
            "preprocess.mode": '"BGR"',
        },
        {"preprocess.mode": '"L"', "model.input_shape": "[1, 224, 224]", "preprocess.mean": "[0.5]"},
        {"preprocess.crop": "[224, 160]", "model.input_shape": "[3, 224, 160]"},
        {"target.cpu": '["x86_64", "aarch64"]'},
    ],
)
def test_good(tmp_path: Path, changes: dict[str, str | None]) -> None:
    files(tmp_path)
    assert problems(tmp_path, changes) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"package.name": '"3d-net"'},
            'package.name: gives the import name "3d_net", which Python cannot import',
        ),
        (
            {"package.name": '"Class"'},
            'package.name: gives the import name "class", which Python cannot import',
        ),
        (
            {"package.name": '"numpy"'},
            'package.name: gives the import name "numpy", which would hide the module numpy',
        ),
        (
            {"package.name": '"json"'},
            'package.name: gives the import name "json", which would hide the module json',
        ),
        (
            {"model.source": '"torchvison:resnet18"'},
            "model.source: must be torchvision:NAME, timm:NAME, python:FILE.py:factory, "
            "python:pkg.mod:factory, export:FILE.pt2, torchscript:FILE.pt, transformers:DIR or "
            'sentence-transformers:DIR, not "torchvison:resnet18"; did you mean "torchvision:resnet18"?',
        ),
        (
            {"model.source": '"python:nets.py:make"', "model.weights": '"factory"'},
            'model.source: DIR/nets.py does not exist; did you mean "net.py"?',
        ),
        (
            {"model.source": '"python:net.py"', "model.weights": '"factory"'},
            "model.source: must be python:FILE.py:factory or python:pkg.mod:factory with the "
            "name of a function or "
            'class, not "python:net.py"',
        ),
        (
            {"model.source": '"python:a-b.c:make"', "model.weights": '"factory"'},
            'model.source: "a-b.c" is neither a file ending in .py nor the dotted name of a module',
        ),
        ({"model.weights": '"missing.pth"'}, "model.weights: DIR/missing.pth does not exist"),
        ({"model.weights": '"nett.pt"'}, 'model.weights: DIR/nett.pt does not exist; did you mean "net.pt"?'),
        ({"model.weights": '"folder.pt"'}, "model.weights: DIR/folder.pt is a directory, not a file"),
        (
            {"model.weights": '"randm"'},
            'model.weights: must be a torchvision name such as IMAGENET1K_V1, "random" or a '
            "file ending in .pt, .pth, .ckpt, .tar, .bin, "
            '.safetensors, .index.json, not "randm"; did you mean "random"?',
        ),
        (
            {"model.weights": '"net.onnx"', "model.source": '"timm:x"'},
            'model.weights: must be "pretrained" or "random" or a file ending in .pt, .pth, .ckpt, .tar, .bin, '
            '.safetensors, .index.json, not "net.onnx"',
        ),
        (
            {"model.weights": '"random"', "model.state": '"ema"'},
            'model.state: has no effect: weights = "random" is not a checkpoint file',
        ),
        ({"model.state": '"avg"'}, 'model.state: must be one of "plain", "ema", not "avg"'),
        (
            {"model.weights": '"net.pt"', "model.weights_fallback": '"random"'},
            'model.weights_fallback: has no effect: weights = "net.pt" downloads nothing',
        ),
        (
            {"model.weights": '"random"', "model.sha256": f'"{"0" * 64}"'},
            'model.sha256: has no effect: with weights = "random" cpupack reads no file that it could check',
        ),
        ({"model.labels": '"none.txt"'}, "model.labels: DIR/none.txt does not exist"),
        ({"model.labels": '"Imagenet"'}, 'model.labels: "Imagenet" is not a file; did you mean "imagenet"?'),
        ({"model.labels": '["a", ""]'}, "model.labels[1]: must be one line of text"),
        ({"preprocess.mean": "[1, 2]"}, 'preprocess.mean: has 2 values; mode = "RGB" takes 1 or 3'),
        (
            {"preprocess.mode": '"L"'},
            'preprocess.mode: "L" gives 1 channels, and input_shape = [3, 224, 224] takes 3; did you mean "RGB"?',
        ),
        (
            {"preprocess.crop": "200"},
            "preprocess.crop: gives 200 x 200, and input_shape = [3, 224, 224] takes 224 x 224",
        ),
        ({"preprocess.pad_value": "[114]"}, 'preprocess.pad_value: has no effect without fit = "pad"'),
        ({"preprocess.place": '"start"'}, 'preprocess.place: has no effect without fit = "pad"'),
        (
            {"preprocess.fit": '"pad"', "preprocess.resize": "[224, 224]"},
            'preprocess.crop: has no use with fit = "pad", which keeps the whole image; leave it out',
        ),
        (
            {
                "preprocess.crop": None,
                "preprocess.resize": "[224, 224]",
                "preprocess.fit": '"pad"',
                "preprocess.pad_value": "[1, 2]",
            },
            'preprocess.pad_value: has 2 values; mode = "RGB" takes 1 or 3',
        ),
        (
            {"preprocess.crop": None, "preprocess.resize": "256"},
            "preprocess.resize: sets only the shorter edge, so images would have different sizes; "
            "add crop = [224, 224] or give [height, width]",
        ),
        (
            {"preprocess.crop": None, "preprocess.resize": "[224, 225]"},
            "preprocess.resize: gives 224 x 225, and input_shape = [3, 224, 224] takes 224 x 224",
        ),
        (
            {"model.input_shape": "[16]"},
            "model.input_shape: [16] is not [channels, height, width], which [preprocess] needs; "
            "leave [preprocess] out if the model does not take images",
        ),
        (
            {"calibration": None},
            'calibration: is missing, and mode = "auto" needs its data to choose activation ranges; '
            "add [calibration] with "
            'source = "images:DIR" (or "synthetic", only to measure speed)',
        ),
        (
            {"quantize.mode": '"dynamic"', "quantize.observer": '"mse"'},
            'quantize.observer: has no effect with mode = "dynamic"',
        ),
        (
            {"quantize.mode": '"dynamic"', "fuse.modules": '[["a", "b"]]'},
            'fuse.modules: has no effect with mode = "dynamic"; leave it out',
        ),
        (
            {"quantize.mode": '"dynamic"', "quantize.dynamic": '["head"]'},
            'quantize.dynamic: has no effect with mode = "dynamic", which does so with all layers',
        ),
        (
            {"quantize.mode": '"dynamic"', "quantize.static": '["head"]'},
            'quantize.static: needs ranges from calibration data, which mode = "dynamic" does not read; '
            'set mode = "auto", and name the other layers in dynamic',
        ),
        (
            {"quantize.static": '["a", "b"]', "quantize.dynamic": '["b"]'},
            'quantize.dynamic: has "b", which static has too',
        ),
        (
            {"quantize.static": '["a"]', "target.x86_64.engine": '"fbgemm"'},
            'quantize.static: is for the native engine, and [target.x86_64] engine = "fbgemm"',
        ),
        ({"quantize.budget_s": "60"}, "quantize.budget_s: has no effect without recover = true"),
        (
            {"quantize.recover": "true", "evaluation.min_speedup": "2.0"},
            "quantize.recover: has no effect: [evaluation] sets no gate on accuracy that it could recover; add one of "
            "max_drop, min_top1, min_agreement, min_decisions, min_sqnr_db, min_cosine, min_worst_cosine, "
            "min_spearman, min_recall, min_metric, max_metric, max_metric_drop",
        ),
        ({"quantize.percentile": "99.0"}, 'quantize.percentile: has no effect with observer = "tail_mse"'),
        (
            {"calibration.source": '"image:pictures"'},
            "calibration.source: must be images:DIR, text:FILE, arrays:FILE.npz, python:FILE.py:factory or synthetic, "
            'not "image:pictures"; did you mean "images:pictures"?',
        ),
        (
            {"calibration.source": '"sythetic"'},
            "calibration.source: must be images:DIR, text:FILE, arrays:FILE.npz, python:FILE.py:factory or synthetic, "
            'not "sythetic"; did you mean "synthetic"?',
        ),
        (
            {"calibration.source": '"images:picture"'},
            'calibration.source: DIR/picture does not exist; did you mean "images:pictures"?',
        ),
        (
            {"calibration.source": '"images:net.py"'},
            "calibration.source: DIR/net.py is a file, not a directory of images",
        ),
        (
            {"calibration.source": '"arrays:pictures"'},
            "calibration.source: DIR/pictures is a directory, not a file",
        ),
        (
            {"calibration.source": '"images:pictures"', "preprocess": None},
            "calibration.source: images need [preprocess], which says how an image becomes the model's input",
        ),
        (
            {"calibration.skip_corrupt": "true"},
            'calibration.skip_corrupt: has no effect: source = "synthetic" reads no image files',
        ),
        ({"evaluation.min_top1": "0.7"}, "evaluation.min_top1: needs labelled data; set evaluation.source"),
        ({"evaluation.samples": "7"}, "evaluation.samples: has no effect without evaluation.source"),
        (
            {"evaluation.source": '"synthetic"'},
            "evaluation.source: synthetic data has no labels; leave source out (min_cosine, min_worst_cosine, "
            "min_spearman, min_recall, min_agreement, min_decisions, min_sqnr_db, min_speedup do not need it)",
        ),
        (
            {"evaluation.metric": '"python:net.py:f"'},
            "evaluation.metric: needs data with targets; set evaluation.source",
        ),
        (
            {"evaluation.min_metric": "0.5"},
            "evaluation.min_metric: has no effect without evaluation.metric",
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.metric": '"net.py:f"'},
            "evaluation.metric: must be map, map50, miou, dice, mae, rmse, distance, f1, average_precision, "
            "equal_error, psnr, ssim, recall@K or "
            'python:FILE.py:function, not "net.py:f"',
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.metric": '"miuo"'},
            "evaluation.metric: must be map, map50, miou, dice, mae, rmse, distance, f1, average_precision, "
            "equal_error, psnr, ssim, recall@K or "
            'python:FILE.py:function, not "miuo"; did you mean "miou"?',
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.metric": '"miou"'},
            "evaluation.metric: needs evaluation.targets = masks:... for a folder of images",
        ),
        (
            {
                "evaluation.source": '"images:pictures"',
                "evaluation.metric": '"miou"',
                "evaluation.targets": '"csv:net.py"',
            },
            'evaluation.targets: is csv:, and the metric "miou" compares with masks:...',
        ),
        (
            {
                "evaluation.source": '"images:pictures"',
                "evaluation.metric": '"miou"',
                "evaluation.targets": '"masks:picture"',
            },
            'evaluation.targets: DIR/picture does not exist; did you mean "masks:pictures"?',
        ),
        (
            {
                "evaluation.source": '"images:pictures"',
                "evaluation.metric": '"mae"',
                "evaluation.targets": '"maps:net.py"',
            },
            "evaluation.targets: DIR/net.py is a file, not a directory of maps",
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.targets": '"csv:net.py"'},
            'evaluation.targets: has no effect without evaluation.metric, such as "mae"',
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.metric": '"mae"', "evaluation.targets": '"net.py"'},
            "evaluation.targets: must be coco:FILE.json, masks:DIR, maps:DIR, images:DIR, csv:FILE.csv or "
            'jsonl:FILE.jsonl, not "net.py"',
        ),
        (
            {
                "evaluation.source": '"images:pictures"',
                "evaluation.metric": '"mae"',
                "evaluation.targets": '"csv:net.py"',
                "evaluation.min_metric": "0.5",
            },
            'evaluation.min_metric: is a bound in the wrong direction: with metric_goal = "min" smaller is better; '
            'did you mean "max_metric"?',
        ),
        (
            {"evaluation.source": '"images:pictures"', "evaluation.metric": '"python:nett.py:f"'},
            'evaluation.metric: DIR/nett.py does not exist; did you mean "net.py"?',
        ),
        (
            {
                "evaluation.source": '"images:pictures"',
                "evaluation.metric": '"python:net.py:f"',
                "evaluation.metric_goal": '"min"',
                "evaluation.min_metric": "0.5",
            },
            'evaluation.min_metric: is a bound in the wrong direction: with metric_goal = "min" smaller is better; '
            'did you mean "max_metric"?',
        ),
        (
            {"evaluation.source": '"images:loose"', "evaluation.min_top1": "0.5"},
            "evaluation.min_top1: needs a folder for each class, but DIR/loose has no folders",
        ),
        (
            {"evaluation.source": '"arrays:data.npz"', "evaluation.max_drop": "0.5"},
            'evaluation.max_drop: needs an array "labels", but DIR/data.npz has data',
        ),
        (
            {"evaluation.source": '"arrays:data.npz"', "evaluation.metric": '"python:net.py:f"'},
            'evaluation.metric: needs an array "targets" (or "labels"), but DIR/data.npz has data',
        ),
        (
            {"evaluation.confident": "true"},
            "evaluation.confident: has no effect without a gate; set one of max_drop, min_top1, min_cosine, "
            "min_worst_cosine, min_spearman, min_recall, min_agreement, min_decisions, min_sqnr_db, min_speedup, "
            "min_metric, max_metric, max_metric_drop",
        ),
        (
            {"evaluation.source": '"images:loose"', "evaluation.metric": '"f2"'},
            "evaluation.metric: must be map, map50, miou, dice, mae, rmse, distance, f1, average_precision, "
            'equal_error, psnr, ssim, recall@K or python:FILE.py:function, not "f2"',
        ),
        (
            {"task.kind": '"segmentation"', "task.threshold": "[0.5]"},
            'task.threshold: is one number with kind = "segmentation"; lists belong to "multilabel", "masks", '
            '"detection"',
        ),
        (
            {"task.kind": '"detection"', "task.angle": '"last"', "task.box_format": '"xyxy"'},
            'task.box_format: with an angle it is "cxcywh" or "cxcywh_normalized"',
        ),
        ({"target.cpu": '["x86_64", "x86_64"]'}, 'target.cpu[1]: "x86_64" appears twice'),
        ({"tune.batch_sizes": "[1, 2, 1]"}, "tune.batch_sizes[2]: 1 appears twice"),
        ({"fuse.modules": '[["a", "b"], ["c", "a"]]'}, 'fuse.modules[1][1]: "a" is already in chain 0'),
    ],
)
def test_contradiction(tmp_path: Path, changes: dict[str, str | None], expected: str) -> None:
    files(tmp_path)
    assert problems(tmp_path, changes) == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"package.license": '"Apache 2"'}, 'package.license: must be an SPDX expression'),
        ({"package.license": '"Apache 2"'}, 'did you mean "Apache-2.0"?'),
        ({"package.license": '"MIT AND"'}, 'not "MIT AND"'),
        ({"package.license": '""'}, "a string that is not empty"),
        ({"package.authors": '["<a@b>"]'}, 'package.authors[0]: must be "NAME" or "NAME <EMAIL>"'),
        ({"package.authors": '["A <no mail>"]'}, "package.authors[0]"),
        ({"package.authors": '["two\\nlines"]'}, "package.authors[0]"),
        ({"package.urls": '{ Home = "javascript:x" }'}, "package.urls.Home: must be an address that begins with https"),
        ({"package.urls": '{ Home = "https://a b" }'}, "package.urls.Home"),
        ({"package.urls": '{ "" = "https://a" }'}, "must have 1 to 32 characters"),
        ({"package.urls": '{ "' + 33 * "x" + '" = "https://a" }'}, "must have 1 to 32 characters"),
    ],
)  # fmt: skip
def test_metadata_that_no_index_takes(tmp_path: Path, changes: dict[str, str | None], expected: str) -> None:
    (problem,) = problems(tmp_path, changes)
    assert expected in problem


@pytest.mark.parametrize(
    "text", ["MIT", "Apache-2.0 OR MIT", "LicenseRef-Mine", "gpl-3.0-only WITH Classpath-exception-2.0"]
)
def test_licences(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, {"package.license": f'"{text}"'}) == []


def test_metadata(tmp_path: Path) -> None:
    changes = {
        "package.authors": '["Ann", "B C <b.c@example.org>"]',
        "package.urls": '{ Homepage = "https://example.org", "Model card" = "http://example.org/card#top" }',
    }
    assert problems(tmp_path, dict(changes)) == []


def test_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pt").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe(write(tmp_path, {"model.weights": '"net.pt"'})).resolve("net.pt") == tmp_path / "net.pt"


def test_a_wrong_value_silences_only_the_checks_that_need_it(tmp_path: Path) -> None:
    found = problems(tmp_path, {"preprocess.mode": '"CMYK"', "preprocess.mean": "[1, 2]", "model.weights": '"no.pt"'})
    assert [line.partition(":")[0] for line in found] == ["model.weights", "preprocess.mode"]
