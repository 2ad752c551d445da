"""Everything that can be wrong with what a user gives: a clear error, the right exit code, nothing left behind."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, PHOTOS_EACH, Outcome, Project

Cpupack = Callable[..., Outcome]

pytestmark = pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64")


@pytest.fixture
def refused(cpupack: Cpupack, project: Project) -> Callable[..., str]:
    """Build with these options; check that it failed with ``code`` and left nothing; return the error."""

    def run(code: int, *settings: str, recipe: str = "colors.toml", options: tuple[str, ...] = FAST) -> str:
        arguments = [part for setting in settings for part in ("--set", setting)]
        done = cpupack("build", recipe, "--quiet", *options, *arguments)
        assert done.code == code, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert done.err.count("error: ") == 1
        assert project.left_behind() == []
        return done.err

    return run


def test_several_problems_at_once(refused: Callable[..., str], project: Project) -> None:
    project.write(
        "bad.toml",
        'schema = 1\n[package]\nname = 3\n[modle]\nsource = "x"\n[quantize]\nobserver = "histgram"\nskip = "head"\n'
        '[calibration]\nsource = "synthetic"\nsampels = 3\n',
    )
    error = refused(2, recipe="bad.toml", options=())
    assert error.startswith("error: 5 problems\n")
    assert "  bad.toml:3: package.name: " in error
    assert '  bad.toml:4: modle: unknown key; did you mean "model"?\n' in error
    assert '"histgram"; did you mean "histogram"?\n' in error
    assert "  bad.toml:8: quantize.skip: must be a list of strings, not the string" in error
    assert '  bad.toml:11: calibration.sampels: unknown key; did you mean "samples"?\n' in error
    assert "hint: fix the 5 problems and run `cpupack check bad.toml`" in error


def test_problems_of_all_recipes_come_together(cpupack: Cpupack, project: Project) -> None:
    project.write("one.toml", "schema = 1\n[package\n")
    project.write("two.toml", project.recipe.read_text().replace("samples", "sampels"))
    done = cpupack("build", "one.toml", "colors.toml", "two.toml", *FAST)
    assert done.code == 2
    assert done.err.startswith("error: 2 problems\n  one.toml:2: not TOML: ")
    assert '\n  two.toml:18: calibration.sampels: unknown key; did you mean "samples"?\n' in done.err
    assert project.left_behind() == []


def test_unknown_key_in_set(refused: Callable[..., str]) -> None:
    error = refused(2, "calibration.sampels=3")
    assert error.startswith('error: --set: calibration.sampels: unknown key; did you mean "samples"?\n')
    assert "cpupack check" not in error  # the file is right


def test_toml_syntax(refused: Callable[..., str], project: Project) -> None:
    project.write("bad.toml", 'schema = 1\n[package]\nname = "tiny\n')
    assert "bad.toml:3: not TOML: the string has no closing quote on its line" in refused(2, recipe="bad.toml")


def test_missing_recipe(refused: Callable[..., str]) -> None:
    assert refused(2, recipe="gone.toml").startswith("error: gone.toml: no such file\n")


def test_two_recipes_of_one_wheel(cpupack: Cpupack) -> None:
    done = cpupack("build", "colors.toml", "./colors.toml", *FAST)
    assert done.code == 2
    assert "both build tiny_colors 0.1.0" in done.err


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.source=python:modles.py:residual", 'modles.py does not exist; did you mean "models.py"?'),
        ("model.weights=colours.pt", 'colours.pt does not exist; did you mean "colors.pt"?'),
        ("calibration.source=images:photo", 'photo does not exist; did you mean "images:photos"?'),
        ("calibration.source=arrays:photos.npz", "photos.npz does not exist"),
        ("model.labels=labels.txt", "labels.txt does not exist"),
    ],
)
def test_missing_files(refused: Callable[..., str], setting: str, named: str) -> None:
    assert named in refused(2, setting)


def test_wrong_type_and_impossible_value(refused: Callable[..., str]) -> None:
    error = refused(2, "calibration.samples=many", "calibration.batch_size=0", "target.x86_64.engine=qnnpack")
    assert error.startswith("error: 3 problems\n")
    assert '"auto", "native", "fbgemm", "x86", "onednn", not "qnnpack"' in error


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("residul", "has no function or class 'residul'\n  hint: did you mean residual?"),
        ("failing", "failed: ValueError: no such backbone ("),
        ("leaving", "failed: SystemExit: 0 ("),
        ("number", "returned int, not a torch.nn.Module"),
        ("pair", "labels: the list has 3 names, but the model's output"),
    ],
)
def test_factories(refused: Callable[..., str], factory: str, message: str) -> None:
    assert message in refused(3, f"model.source=python:models.py:{factory}", "model.weights=factory")


def test_a_model_file_that_cannot_be_imported(refused: Callable[..., str], project: Project) -> None:
    path = project.write("broken.py", "import torch\nfrom torch import nnn\n")
    error = refused(3, "model.source=python:broken.py:residual")
    assert f"({path}:2: from torch import nnn)" in error


def test_a_model_that_cannot_be_captured(refused: Callable[..., str], project: Project) -> None:
    error = refused(3, "model.source=python:models.py:branching", "model.weights=factory")
    lines = (project.root / "models.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, start=1) if "if x.sum() > 0" in text)
    assert f"{project.root / 'models.py'}:{line}: if x.sum() > 0:" in error


def test_wrong_input_shape(refused: Callable[..., str], project: Project) -> None:
    error = refused(3, "model.kwargs.channels=1", "model.weights=factory")
    assert "does not run on an input of shape (1, 3, 16, 16): in stem.0 (Conv2d): RuntimeError: " in error
    assert f"({project.root / 'models.py'}:" in error


def test_wrong_sha256(refused: Callable[..., str], project: Project) -> None:
    found = hashlib.sha256((project.root / "colors.pt").read_bytes()).hexdigest()
    error = refused(3, f"model.sha256={'ab' * 32}")
    assert found in error
    assert "ab" * 32 in error


def test_checkpoint_of_another_architecture(refused: Callable[..., str]) -> None:
    error = refused(3, "model.kwargs.classes=4", 'model.labels=["a", "b", "c", "d"]')
    assert "other shape or type (2): head.weight is (3, 8) in the file, (4, 8) in the model" in error


def _whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def _plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def _list(path: Path) -> None:
    torch.save([1, 2], path)


def _text(path: Path) -> None:
    path.write_text("weights: 1, 2, 3\n")


def _empty(path: Path) -> None:
    path.touch()


def _cut_off(path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 8)}, path)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("make", [_whole_module, _plain_pickle, _list, _text, _empty, _cut_off])
def test_files_that_are_no_state_dict(refused: Callable[..., str], project: Project, make: Callable) -> None:
    make(project.root / "other.pt")
    error = refused(3, "model.weights=other.pt")
    assert "other.pt is not a state dict: " in error
    assert "hint: save only the tensors" in error


def test_nan_in_the_checkpoint(refused: Callable[..., str], project: Project) -> None:
    state = torch.load(project.root / "colors.pt")
    state["head.bias"][0] = torch.nan
    torch.save(state, project.root / "colors.pt")
    assert "NaN or infinity in head.bias" in refused(3)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ('["stem.0", "stem.7"]', "the captured model has no call of 'stem.7'"),
        ('["stem.0", "stem.2"]', "the output of 'stem.0' is read by 'stem.1', so 'stem.2' is not its only reader"),
        ('["conv", "bn", "relu"]', "the output of 'bn' is read by 'add'"),
        ('["pool", "flatten"]', "AdaptiveAvgPool2d"),
    ],
)
def test_fusions(refused: Callable[..., str], chain: str, message: str) -> None:
    error = refused(3, f"fuse.modules=[{chain}]")
    assert "[fuse] modules: [" in error
    assert message in error


def test_skip_of_a_module_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "[quantize] skip: the model has no module 'haed'\n  hint: did you mean 'head'?" in refused(
        5, 'quantize.skip=["haed"]'
    )


def test_empty_calibration_folder(refused: Callable[..., str], project: Project) -> None:
    (project.root / "empty").mkdir()
    assert "empty holds no images\n  hint: the directory is empty" in refused(4, "calibration.source=images:empty")


def test_no_images_in_the_folder(refused: Callable[..., str], project: Project) -> None:
    (project.root / "notes").mkdir()
    project.write("notes/a.txt", "hello")
    assert "it holds a.txt" in refused(4, "calibration.source=images:notes")


def _damage(project: Project) -> None:
    photo = project.root / "photos" / "red" / "1.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    project.write("photos/red/2.jpg", "not an image")


def test_corrupt_photos_are_named(refused: Callable[..., str], project: Project) -> None:
    _damage(project)
    error = refused(4)
    assert f"2 of {3 * PHOTOS_EACH} images cannot be used" in error
    assert f"{project.root}/photos/red/1.jpg is a truncated or damaged image" in error
    assert f"{project.root}/photos/red/2.jpg is not an image that Pillow can read" in error
    assert "skip_corrupt = true" in error


def test_photos_for_a_model_of_one_channel(refused: Callable[..., str]) -> None:
    """The checkpoint does not matter: what the recipe says about channels contradicts itself."""
    assert '"RGB" gives 3 channels, and input_shape = [1, 16, 16] takes 1; did you mean "L"?' in refused(
        2, "model.input_shape=[1, 16, 16]"
    )


def test_pixels_of_another_channel_count(refused: Callable[..., str], project: Project) -> None:
    np.savez(project.root / "gray.npz", images=np.zeros((4, 16, 16, 1), np.uint8))
    assert "row 0 has 1 channels (shape (16, 16, 1)), the model takes 3" in refused(
        4, "calibration.source=arrays:gray.npz"
    )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite values")])
def test_calibration_data_that_is_not_finite(
    refused: Callable[..., str], project: Project, value: float, word: str
) -> None:
    data = np.zeros((4, 3, 16, 16), np.float32)
    data[2, 1, 0, 0] = value
    np.savez(project.root / "data.npz", data=data)
    assert f"row 2 contains {word}" in refused(4, "calibration.source=arrays:data.npz")


def test_activations_that_overflow(refused: Callable[..., str], project: Project) -> None:
    np.savez(project.root / "data.npz", data=np.full((2, 3, 16, 16), 3e38, np.float32))
    error = refused(4, "calibration.source=arrays:data.npz")
    assert "the output of pool is not finite on calibration samples" in error


def test_a_factory_of_data_that_fails(refused: Callable[..., str], project: Project) -> None:
    path = project.write("data.py", "def load():\n    yield [[0.0]]\n    return 1 / 0\n")
    error = refused(4, "calibration.source=python:data.py:load")
    assert f"failed: ZeroDivisionError: division by zero ({path}:3: return 1 / 0)" in error


def test_loose_photos_have_no_class(refused: Callable[..., str], project: Project) -> None:
    Image.new("RGB", (20, 20)).save(project.root / "photos" / "loose.jpg")
    assert "loose.jpg" in refused(4, "evaluation.source=images:photos", "evaluation.max_drop=0.1")


def test_more_classes_than_the_model_has(refused: Callable[..., str], project: Project) -> None:
    shutil.copytree(project.root / "photos" / "red", project.root / "photos" / "violet")
    project.drop("labels")
    error = refused(4, "evaluation.source=images:photos", "evaluation.max_drop=0.1")
    assert "has class 3, but the model's output has shape (3,)" in error


def test_an_instruction_set_above_this_cpu(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.pipeline.candidates.detect_isa", lambda: "avx2")
    error = refused(5, "target.x86_64.isa=avx512_vnni", "calibration.source=images:photos")
    assert 'isa = "avx512_vnni": this CPU has avx2, so the wheel could not be verified' in error


def test_a_cpu_without_avx2(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.pipeline.candidates.detect_isa", lambda: None)
    assert "this host has no AVX2" in refused(5)


def test_an_engine_this_torch_does_not_have(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.pipeline.run.supported_engines", lambda: ["qnnpack"])
    error = refused(5)
    assert 'engine = "fbgemm" is not in this torch build (it has qnnpack)' in error
    error = refused(5, options=("--no-tune",))
    assert "this torch build has no quantized engine for x86-64 (it has qnnpack)" in error


def test_an_engine_that_is_not_there_is_said_before_the_work(cpupack: Cpupack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.pipeline.run.supported_engines", lambda: ["fbgemm"])
    done = cpupack("build", "colors.toml", *FAST, "--target", "aarch64", "--set", "target.aarch64.engine=qnnpack")
    assert done.code == 5
    assert done.err.startswith('error: [target.aarch64] engine = "qnnpack" is not in this torch build')
    done = cpupack("build", "colors.toml", *FAST, "--target", "aarch64")
    assert done.code == 5
    assert done.err.startswith("error: this torch build has no quantized engine for 64-bit ARM (it has fbgemm)")


@pytest.mark.parametrize("out", ["colors.toml", "colors.toml/below", "/proc/wheels"])
def test_unwritable_out(refused: Callable[..., str], out: str) -> None:
    error = refused(8, options=(*FAST, "--out", out))
    assert "hint: choose another --out" in error


def test_nothing_can_be_quantized(refused: Callable[..., str]) -> None:
    error = refused(5, 'quantize.skip=["stem", "conv", "bn", "relu", "pool", "head"]', "fuse.modules=[]")
    assert "hint: " in error


def test_dynamic_without_linear_layers(refused: Callable[..., str], project: Project) -> None:
    project.drop("labels")
    project.write("own.py", "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.ReLU())\n")
    error = refused(5, "model.source=python:own.py:make", "model.weights=factory", "quantize.mode=dynamic")
    assert "the model has none to quantize" in error


def test_json_prints_nothing_on_stdout_when_it_fails(cpupack: Cpupack) -> None:
    done = cpupack("build", "colors.toml", "--json", *FAST, "--set", "model.kwargs.classes=4")
    assert (done.code, done.out) == (3, "")


def test_check_reports_as_json(cpupack: Cpupack, project: Project) -> None:
    project.write("bad.toml", "schema = 1\n[package\n")
    done = cpupack("check", "colors.toml", "bad.toml", "--json")
    assert (done.code, done.err) == (2, "")
    good, bad = json.loads(done.out)["recipes"]
    assert (good["ok"], bad["ok"]) == (True, False)
    assert bad["problems"][0].startswith("bad.toml:2: not TOML: ")


def test_check_deep_finds_what_the_model_contradicts(cpupack: Cpupack) -> None:
    for setting, code in (('fuse.modules=[["conv", "relu"]]', 3), ('quantize.skip=["haed"]', 5)):
        done = cpupack("check", "--deep", "colors.toml", "--set", setting)
        assert done.code == code
        assert done.err.count("error: ") == 1


@pytest.mark.slow
def test_a_gate_that_does_not_hold(refused: Callable[..., str]) -> None:
    """Wrong labels: the classes are numbered the other way round, so that no photo of blue or red is right."""
    error = refused(
        6, 'model.labels=["red", "green", "blue"]', "evaluation.source=images:photos", "evaluation.min_top1=0.9"
    )
    assert "the gates do not hold (on images:photos)" in error
    assert "fbgemm: min_top1 = 0.9, measured 0.3333  FAILED" in error
