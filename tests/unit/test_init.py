from pathlib import Path

import pytest
import tomli

from cpupack.errors import UsageError
from cpupack.recipe import init
from cpupack.recipe.file import load_recipe
from cpupack.recipe.init import init_recipe
from cpupack.templates import to_toml


@pytest.mark.parametrize(
    "model",
    ["torchvision:resnet18", "torchvision:convnext_tiny", "timm:resnet18.a1_in1k", "python:pkg.nets:make"],
)
def test_it_writes_a_recipe_that_loads(tmp_path: Path, model: str) -> None:
    path = init_recipe("my-net", model, tmp_path / "new")
    assert path == tmp_path / "new" / "my-net.toml"
    recipe = load_recipe(path).recipe
    assert (recipe.package.name, recipe.model.source) == ("my-net", model)
    assert recipe.model.weights_fallback is None, "random weights are the user's own decision"


def test_commented_keys_are_real_keys(tmp_path: Path) -> None:
    text = init_recipe("my-net", "torchvision:resnet18", tmp_path).read_text()
    # Uncommenting everything must give a recipe that only misses the files it names.
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in text.splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    path = tmp_path / "all.toml"
    path.write_text("\n".join(line for line in lines if "torchvision's name" not in line))
    (tmp_path / "data" / "val" / "cat").mkdir(parents=True)
    assert load_recipe(path).recipe.evaluation.max_drop == 0.01


def test_a_python_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nets\.py does not exist"):
        init_recipe("my-net", "python:nets.py:make", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "nets.py").touch()
    assert load_recipe(init_recipe("my-net", "python:nets.py:make", tmp_path)).recipe.model.weights == "factory"


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("a/b", "torchvision:resnet18", "package.name: must be up to 100 letters"),
        ('q"\n[x]', "torchvision:resnet18", "package.name: must be up to 100 letters"),
        ("net", "resnet18", "model.source: must be torchvision:NAME"),
        ("net", "torchvison:resnet18", 'did you mean "torchvision:resnet18"?'),
        ("torch", "torchvision:resnet18", "would hide the module torch"),
    ],
)
def test_what_no_recipe_can_hold_is_refused(tmp_path: Path, name: str, model: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        init_recipe(name, model, tmp_path)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_existing_recipe_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        init_recipe("net", "torchvision:resnet18", tmp_path)
    assert path.read_text() == "mine"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        init_recipe("net", "torchvision:resnet18", tmp_path / "file" / "below")


@pytest.mark.parametrize("name", sorted(init._KNOWN))
def test_known_preprocessing_is_torchvisions(name: str) -> None:
    pytest.importorskip("torch")
    from cpupack.errors import ModelError
    from cpupack.model.vision import import_torchvision

    try:
        import_torchvision()
    except ModelError:
        pytest.skip("torchvision is not installed")
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    known = init._KNOWN[name]
    assert known.weights == weights.name
    assert ([known.resize], [known.crop]) == (transforms.resize_size, transforms.crop_size)
    assert known.interpolation == transforms.interpolation.value
    assert (transforms.mean, transforms.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'quo"te \\ new\nline \t \x00 \x7f \u00e9 \U0001f600',
        "''' \"\"\"",
        True,
        -3,
        1.5,
        1e-30,
        float("inf"),
        [1, [2, "x"]],
        {"a": 1, "b c": {"d.e": [True]}, "": 0},
    ],
)
def test_toml_filter_round_trips(value: object) -> None:
    assert tomli.loads(f"value = {to_toml(value)}") == {"value": value}


def test_toml_filter_refuses_what_toml_cannot_say() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        to_toml(None)
    with pytest.raises(UnicodeEncodeError):
        to_toml("\ud800")
