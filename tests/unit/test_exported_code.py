"""Exported programs that somebody made to run code: refused before torch reads them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.saved import load_exported


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([x, mask])).floor()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    batch = torch.export.Dim("batch", max=64)
    shapes = {"x": {0: batch}, "mask": {0: batch}}
    kwargs = {"mask": torch.zeros(3, 4)}
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(3, 4),), kwargs, dynamic_shapes=shapes), path)
    return path


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def forged(whole: Path, path: Path, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes]) -> Path:
    """Write the archive with the members that end so changed, and others added below its root."""
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for end, change in changes.items():
                data = change(data) if name.endswith(end) else data
            new.writestr(name, data)
        root = old.namelist()[0].partition("/")[0]
        for name, data in added.items():
            new.writestr(f"{root}/{name}", data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_exported(path, "export:net.pt2")
    return caught.value.message


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


def test_a_whole_one_is_read(whole: Path) -> None:
    module = load_exported(whole, "export:net.pt2")
    assert module(torch.zeros(3, 4), torch.zeros(3, 4)).shape == (6, 3)


def test_pickles_are_not_run(whole: Path, tmp_path: Path) -> None:
    """torch reads example inputs as tensors, and if that fails as any object."""
    marker = tmp_path / "ran"
    torch.save((Touch(marker),), tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()
    for end in ("sample_inputs/model.pt", "weights/weight_0"):
        changes = {end: lambda _: evil, "weights_config.json": lambda data: data.replace(b"false", b"true")}
        assert "cannot be read" in refused(forged(whole, tmp_path / "a.pt2", changes, {}))
        assert not marker.exists()
    added = {"data/constants/opaque_obj_/x": pickle.dumps(Touch(marker))}
    assert "would run code" in refused(forged(whole, tmp_path / "b.pt2", {}, added))
    assert "compiled code" in refused(forged(whole, tmp_path / "c.pt2", {}, {"data/aotinductor/m/m.so": b""}))
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('{marker}')",
        "(lambda: 1)()",
        "Symbol('s77').__class__",
        "exec('x')",
        "chr(1)",
        "[x for x in y]",
        "Integer('open(1)')",
        "Symbol(b's77')",
        "9" * 5000,
        "",
    ],
)
def test_a_size_is_not_evaluated_as_python(whole: Path, tmp_path: Path, text: str) -> None:
    marker = tmp_path / "ran"

    def change(data: bytes) -> bytes:
        def walk(value: Any) -> Any:
            if isinstance(value, list):
                return [walk(each) for each in value]
            if isinstance(value, dict):
                return {
                    key: text.format(marker=marker) if key == "expr_str" else walk(each) for key, each in value.items()
                }
            return value

        return json.dumps(walk(json.loads(data))).encode()

    assert "would run code" in refused(forged(whole, tmp_path / "a.pt2", {"models/model.json": change}, {}))
    assert not marker.exists()


def test_names_do_not_become_source(whole: Path, tmp_path: Path) -> None:
    for old, new in (('"x"', '"x=print()"'), (r"[\\\"mask\\\"]", r"[\\\"mask=print()\\\"]")):
        made = forged(whole, tmp_path / "a.pt2", {"models/model.json": replaced(old, new)}, {})
        assert "has a name that is none" in refused(made)


@pytest.mark.parametrize("target", ["torch.os.getcwd", "torch.hub.load", "torch.ops.load_library", "torch.load"])
def test_a_graph_calls_operators_alone(whole: Path, tmp_path: Path, target: str) -> None:
    """torch checks that itself, before it calls any."""
    change = replaced("torch.ops.aten.floor.default", target)
    assert "is not an allowed operator" in refused(forged(whole, tmp_path / "a.pt2", {"models/model.json": change}, {}))
