"""Weight files as people have them: read by what is in them, or refused with what they are and the way out."""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.checkpoint import take
from cpupack.model.weight_files import read_weights
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe.files import named_files
from cpupack.recipe.shards import ShardError, files_of
from helpers.tiny_models import Recorder


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return net().state_dict()


def sharded(directory: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write weights as the libraries of Hugging Face do: two shards and an index."""
    places = {}
    for number, names in enumerate((list(state)[:2], list(state)[2:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in names}, directory / name)
        places |= dict.fromkeys(names, name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin", "w.ckpt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_is_what_it_holds_and_not_what_its_name_says(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str, kind: str
) -> None:
    path = tmp_path / name
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert equal(read_weights(path), state)


def test_weights_of_a_graphics_card(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """The archive says where each tensor was: ``cpu`` becomes ``cuda:0`` in its pickle."""
    torch.save(state, tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as old, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\3\0\0\0cpu" in data
                data = data.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
            new.writestr(name, data)
    assert equal(read_weights(tmp_path / "gpu.pt"), state)


def test_shards_are_read_through_their_index(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    index = sharded(tmp_path, state)
    assert equal(read_weights(index), state)
    assert [each.name for each in files_of(index)] == [
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip


def test_the_lock_and_the_cache_know_every_shard(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "net").mkdir()
    index = sharded(tmp_path / "net", state)
    (tmp_path / "net.py").touch()
    model = {"source": "python:net.py:make", "weights": f"net/{index.name}", "input_shape": [3, 8, 8]}
    recipe = Recipe.model_validate({"schema": 1, "package": {"name": "net"}, "model": model})
    found = {each.name for each in named_files(recipe, tmp_path)}
    assert found >= {f"net/{each.name}" for each in files_of(index)}


def test_the_sha256_of_shards_is_of_all_bytes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    import hashlib

    from cpupack.model.weights import load_weights

    index = sharded(tmp_path, state)
    (tmp_path / "net.py").touch()
    whole = hashlib.sha256(b"".join(each.read_bytes() for each in files_of(index))).hexdigest()

    def load(sha256: str) -> str | None:
        model = {"source": "python:net.py:make", "weights": index.name, "input_shape": [3, 8, 8], "sha256": sha256}
        recipe = Recipe.model_validate({"schema": 1, "package": {"name": "net"}, "model": model})
        module = net()
        found = load_weights(module, LoadedRecipe(recipe=recipe, path=tmp_path / "r.toml", text=""), Recorder())
        assert equal(module.state_dict(), state)
        return found.sha256

    assert load(whole) == whole
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="the recipe says"):
        load(whole)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda places: places.update({"0.weight": "../evil.safetensors"}), "no file beside it"),
        (lambda places: places.update({"0.weight": 7}), "no file beside it"),
        (lambda places: places.update({"0.weight": "gone.safetensors"}), "not beside it: gone.safetensors"),
        (
            lambda places: places.update({"0.weight": "model-00002-of-00002.safetensors"}),
            "has 0.weight, and it has not",
        ),
    ],
)
def test_indexes_that_lie(tmp_path: Path, state: dict[str, torch.Tensor], damage: object, words: str) -> None:
    index = sharded(tmp_path, state)
    content = json.loads(index.read_text())
    damage(content["weight_map"])  # type: ignore[operator]
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        read_weights(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000, "\0"])
def test_what_is_no_index(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.index.json"
    path.write_text(text)
    with pytest.raises(ShardError, match="is no index of weights"):
        files_of(path)


def test_one_shard_alone_says_what_is_missing(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    sharded(tmp_path, state)
    path = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(ModelError, match="does not fit the model") as raised:
        take(read_weights(path), net(), None, path)
    assert raised.value.hint == "it is one file of several: name their index, such as model.safetensors.index.json"


def test_tensors_without_values(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "meta.pt"
    torch.save({name: value.to("meta") for name, value in state.items()}, path)
    with pytest.raises(ModelError, match="have a shape and no values"):
        take(read_weights(path), net(), None, path)


def test_torchs_averaged_model_is_an_average(state: dict[str, torch.Tensor]) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net())
    averaged.module.load_state_dict(state)
    found = take(averaged.state_dict(), net(), "ema", Path("swa.pt"))
    assert equal(found.state, state)
    assert "these are averaged weights" in found.notes[0]


def not_weights(directory: Path, state: dict[str, torch.Tensor]) -> dict[str, tuple[Path, str, str]]:
    """Return files that hold no state dict, each with what must be said of it, and the way out."""
    inner = directory / "inner.pt"
    torch.save(state, inner)
    found: dict[str, tuple[Path, str, str]] = {}

    def keep(name: str, data: bytes, words: str, hint: str) -> None:
        path = directory / name
        path.write_bytes(data)
        found[name] = path, words, hint

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    keep("pointer.pt", pointer, "a pointer of Git LFS", "git lfs pull")
    keep("pointer.safetensors", pointer, "a pointer of Git LFS", "git lfs pull")
    keep("page.pth", b"<!DOCTYPE html>\n<html>404</html>", "an HTML page", "download the file itself")
    keep("packed.pt", gzip.compress(inner.read_bytes()), "compressed by gzip", "gunzip")
    keep("keras.bin", b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "an HDF5 file", "format that is asked for")
    keep("llama.bin", b"GGUF\3\0\0\0" + b"\0" * 90, "a GGUF file", "safetensors")
    keep("empty.safetensors", b"", "not a safetensors file", "fetch it again")
    keep("cut.pt", inner.read_bytes()[:-100], "damaged", "torch.save")
    with tarfile.open(directory / "old.tar", "w") as archive:
        archive.add(inner, "inner.pt")
    found["old.tar"] = directory / "old.tar", "a tar archive", "unpack it"
    with zipfile.ZipFile(directory / "zipped.pt", "w") as packed:
        packed.write(inner, "inner.pt")
    found["zipped.pt"] = directory / "zipped.pt", "a zip archive with inner.pt", "unpack it"
    module, example = net().eval(), (torch.zeros(1, 3, 8, 8),)
    torch.jit.trace(module, example).save(str(directory / "script.pt"))
    found["script.pt"] = directory / "script.pt", "a TorchScript archive", r'source = "torchscript:script.pt"'
    with (directory / "program.pt").open("wb") as file:
        torch.export.save(torch.export.export(module, example), file)
    found["program.pt"] = directory / "program.pt", "an exported program", r'source = "export:FILE.pt2"'
    return found


def test_what_is_no_state_dict_is_named_with_the_way_out(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    for path, words, hint in not_weights(tmp_path, state).values():
        with pytest.raises(ModelError, match=words) as raised:
            read_weights(path)
        assert str(path) in raised.value.message
        assert hint in (raised.value.hint or ""), path.name
