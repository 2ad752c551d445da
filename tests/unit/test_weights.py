"""Weights: files of every kind, good and bad; downloads; and random weights that still compute something."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.vision import import_torchvision
from cpupack.model.weights import LoadedWeights, load_weights
from cpupack.sources.synthetic import natural_image
from helpers.tiny_models import Recorder, loaded


def net(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Flatten(), nn.LazyLinear(5)).eval()


def make(channels: int = 4) -> nn.Sequential:
    module = net(channels)
    with torch.no_grad():
        module(torch.zeros(1, 3, 8, 8))
    return module


def load(
    directory: Path, weights: str, module: nn.Module | None = None, **model: Any
) -> tuple[nn.Module, LoadedWeights]:
    module = module or make()
    return module, load_weights(module, loaded(directory, model={"weights": weights, **model}), Recorder())


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("suffix", "wrapper"),
    [("safetensors", ""), ("pth", ""), ("pt", ""), ("pt", "state_dict"), ("pt", "model_state_dict"), ("pt", "model")],
)
def test_a_state_dict_is_loaded_from_any_usual_file(tmp_path: Path, suffix: str, prefix: str, wrapper: str) -> None:
    trained = make()
    state: dict[str, Any] = {prefix + name: value for name, value in trained.state_dict().items()}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    module, found = load(tmp_path, path.name)
    assert same(trained, module)
    assert found == LoadedWeights(path.name, random=False, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_hash_of_the_recipe_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(make().state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(tmp_path, "w.pt", sha256=digest)[1].sha256 == digest
    with pytest.raises(ModelError, match=f"has SHA-256 {digest}, but the recipe says {'0' * 64}") as caught:
        load(tmp_path, "w.pt", sha256="0" * 64)
    assert caught.value.exit_code == 3


def test_a_missing_file_is_named_with_its_whole_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}/gone.pt does not exist"):
        load(tmp_path, "gone.pt")


def test_a_checkpoint_of_another_architecture_lists_the_names(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 5), nn.Linear(5, 2))
    state = {name: value for name, value in other.state_dict().items() if name != "1.bias"}
    torch.save(state, tmp_path / "w.pt")
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load(tmp_path, "w.pt", module)
    text = str(caught.value)
    assert "missing (1): 1.bias" in text
    assert "unexpected (2): 4.weight, 4.bias" in text
    assert "0.weight is (8, 3, 3, 3) in the file, (4, 3, 3, 3) in the model" in text
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    torch.save({f"extra.{number}": torch.zeros(1) for number in range(50)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"unexpected \(50\): .* and 42 more"):
        load(tmp_path, "w.pt")


def test_old_checkpoints_without_batch_counters_are_fine(tmp_path: Path) -> None:
    trained = make()
    state = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pt")
    assert same(trained, load(tmp_path, "w.pt")[0])


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


def bad_files(directory: Path) -> dict[str, Path]:
    torch.save({"epoch": 3, "best": 0.9}, directory / "numbers.pt")
    torch.save([1, 2, 3], directory / "list.pt")
    torch.save({}, directory / "empty.pt")
    torch.save(make(), directory / "module.pt")
    torch.jit.trace(make(), torch.zeros(1, 3, 8, 8)).save(str(directory / "script.pt"))
    (directory / "plain.pt").write_text("these are not the weights you are looking for\n" * 9)
    (directory / "nothing.pt").write_bytes(b"")
    (directory / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(make().state_dict(), directory / "cut.pt")
    (directory / "cut.pt").write_bytes((directory / "cut.pt").read_bytes()[:700])
    (directory / "plain.safetensors").write_text("no tensors here either")
    return {path.name: path for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("numbers.pt", "it holds a dict with keys epoch, best"),
        ("list.pt", "it holds list"),
        ("empty.pt", "it holds an empty dict"),
        ("module.pt", r"holds a whole pickled object \(torch.nn.modules.container.Sequential\)"),
        ("script.pt", "it is a TorchScript archive"),
        ("plain.pt", "is not a state dict: "),
        ("nothing.pt", "is not a state dict: "),
        ("evil.pt", "is not a state dict: "),
        ("cut.pt", "is not a state dict: "),
        ("plain.safetensors", "is not a safetensors file"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore:.*looks like a TorchScript archive")
def test_a_file_that_is_no_state_dict_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path, name)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "never be printed" not in capsys.readouterr().out


def test_random_weights_give_every_batch_norm_the_statistics_of_its_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, found = load(tmp_path, "random", seed=7)
    assert (found.random, found.sha256, found.origin) == (True, None, "random (seed 7)")
    norm = module[1]
    assert not norm.training
    assert norm.momentum == 0.1
    images = torch.from_numpy(
        np.stack([natural_image(np.random.default_rng(index), 8, 8, 3) for index in range(64)])
    ).permute(0, 3, 1, 2)
    images = (images - images.float().mean()) / images.float().std()
    with torch.no_grad():
        output = module[1](module[0](images))
    # As after training: about zero mean and unit variance. The statistics are of eight other made-up images, which are
    # smoother or rougher than these by a factor of up to two.
    assert output.mean(dim=[0, 2, 3]).abs().max() < 1.0
    variance = output.var(dim=[0, 2, 3])
    assert 0.25 < float(variance.min()) <= float(variance.max()) < 4.0


def test_random_weights_do_not_make_smooth_images_larger_from_layer_to_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Averages of neighbours: white noise loses most of its variance in each, a photograph hardly any.
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]
    module, _ = load(tmp_path, "random", nn.Sequential(*layers), input_shape=[3, 64, 64])
    image = torch.from_numpy(natural_image(np.random.default_rng(5), 64, 64, 3)).permute(2, 0, 1)[None]
    image = (image - 115) / 58  # ImageNet's mean and deviation, of 255
    with torch.no_grad():
        # A tenth of the variance left by one average would be made 3 times as large by each norm: 3^6 = 729.
        assert module(image).std() < 10


def test_settled_statistics_forget_what_was_there_before(tmp_path: Path) -> None:
    fresh, used = make(), make()
    used.load_state_dict(fresh.state_dict())
    used[1].running_mean.fill_(100.0)
    used[1].num_batches_tracked.fill_(1000)
    load(tmp_path, "random", fresh)
    load(tmp_path, "random", used)
    assert torch.equal(fresh[1].running_mean, used[1].running_mean)


def test_a_factory_may_bring_its_own_weights(tmp_path: Path) -> None:
    trained = make()
    module, found = load(tmp_path, "factory", trained)
    assert module is trained
    assert not found.random
    with pytest.raises(ModelError, match="is for python: sources"):
        load(tmp_path, "factory", source="torchvision:resnet18")


def test_a_word_that_is_no_weights_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'"random" or "factory"'):
        load(tmp_path, "IMAGENET1K_V1")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def squeezenet() -> nn.Module:
    import_torchvision()
    from torchvision import models

    return models.squeezenet1_1(weights=None)


def vision(weights: str, **model: Any) -> dict[str, Any]:
    return {"source": "torchvision:squeezenet1_1", "weights": weights, "input_shape": [3, 64, 64], **model}


def test_offline_without_a_fallback_says_where_to_put_the_file(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be downloaded: Name or service not known") as caught:
        load_weights(squeezenet(), loaded(tmp_path, model=vision("IMAGENET1K_V1")), Recorder())
    hint = caught.value.hint or ""
    assert f"{offline}/squeezenet1_1-" in hint
    assert "weights_fallback" in hint


def test_offline_with_a_fallback_is_random_and_loud(offline: Path, tmp_path: Path) -> None:
    progress = Recorder()
    spec = vision("IMAGENET1K_V1", weights_fallback="random")
    found = load_weights(squeezenet(), loaded(tmp_path, model=spec), progress)
    assert found.random
    assert "in place of squeezenet1_1 IMAGENET1K_V1" in found.origin
    assert ["RANDOM WEIGHTS" in text for text in progress.warnings] == [True]


def test_a_file_in_torchs_cache_needs_no_network(offline: Path, tmp_path: Path) -> None:
    from torchvision import models

    trained = squeezenet()
    offline.mkdir(parents=True)
    name = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(trained.state_dict(), offline / name)
    module = squeezenet()
    found = load_weights(module, loaded(tmp_path, model=vision("IMAGENET1K_V1")), Recorder())
    assert same(trained, module)
    assert not found.random


def test_an_unknown_enum_member_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights 'IMAGENET1K_V9'") as caught:
        load_weights(squeezenet(), loaded(tmp_path, model=vision("IMAGENET1K_V9")), Recorder())
    assert "IMAGENET1K_V1" in (caught.value.hint or "")
