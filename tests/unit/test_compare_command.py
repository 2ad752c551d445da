"""What ``cpupack compare`` refuses before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpupack.cli import main
from cpupack.comparison.options import CompareOptions, settle
from cpupack.errors import UsageError
from cpupack.peers import COMPARED, PEERS
from helpers.tiny_models import recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.toml"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    return int(stopped.value.code or 0)


def test_an_unknown_engine_is_a_usage_error_that_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(RECIPE), "--against", "eager,tflite") == 2
    said = capsys.readouterr().err
    assert "tflite" in said
    assert all(name in said for name in PEERS)


def test_a_named_engine_that_is_not_installed_is_a_usage_error_that_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(COMPARED["openvino"]), "missing", lambda engine: engine.requires)
    assert run(str(RECIPE), "--against", "openvino") == 2
    said = capsys.readouterr().err
    assert "openvino needs openvino, nncf" in said
    assert "cpupack[compare]" in said


def test_a_recipe_option_without_a_wheel_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(RECIPE), "--against", "eager", "--recipe", str(RECIPE)) == 2
    assert "is not a wheel" in capsys.readouterr().err


def test_the_page_needs_a_directory_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(RECIPE), "--html", str(tmp_path / "no" / "page.html")) == 2
    assert "--html" in capsys.readouterr().err


def test_a_directory_without_jpegs_is_a_usage_error_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(RECIPE), "--against", "eager", "--end-to-end", str(tmp_path)) == 2
    assert "no .jpg" in capsys.readouterr().err


def test_a_model_of_images_is_given_pixels_and_others_floats() -> None:
    images, arrays = (recipe(**tables) for tables in ({"preprocess": {"resize": 8, "crop": 8}}, {}))
    assert settle(CompareOptions(), images).input_kind == "uint8"
    assert settle(CompareOptions(), arrays).input_kind == "float32"
    assert settle(CompareOptions(input_kind="float32"), images).input_kind == "float32"
    for options in (
        CompareOptions(input_kind="uint8"),
        CompareOptions(input_kind="uint8-vs-float32"),
        CompareOptions(files=RECIPE.parent),
    ):
        with pytest.raises(UsageError, match="only input is an image"):
            settle(options, arrays)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [("uint8", "uint8", "uint8"), ("float32", "float32", "float32"), ("uint8-vs-float32", "uint8", "float32")],
)
def test_only_in_the_mixed_comparison_the_others_get_something_else(kind: str, ours: str, theirs: str) -> None:
    options = CompareOptions(input_kind=kind)
    assert options.input_of("cpupack") == ours
    assert {options.input_of(name) for name in PEERS} == {theirs}


def test_a_file_that_is_no_wheel_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.whl").write_text("no zip")
    assert run(str(tmp_path / "some.whl"), "--against", "eager") == 2
    assert "not a wheel" in capsys.readouterr().err


def test_help_and_usage_errors_import_no_torch() -> None:
    script = (
        "import sys\nfrom cpupack.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    for arguments in (["--help"], ["x.toml", "--html", "/no/such/dir/x.html"]):
        done = subprocess.run([sys.executable, "-c", script, "compare", *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
