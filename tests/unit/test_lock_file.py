"""``NAME.lock.toml`` as a file: what is written is read again, and what somebody changed is refused in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from cpupack.artifacts import TunePlan
from cpupack.errors import LockError
from cpupack.lock import Lock, WheelLock, differences, lock_path, measured_of, read_lock, replayed, write_lock
from cpupack.lock.model import Inputs
from cpupack.pipeline.locked import check_parts, plan_again

HEX = "0123456789abcdef" * 4
BUILD: dict[str, Any] = {
    "weights": "w.pt",
    "engines": {"native": {"speedup": 2.0}},
    "report": {"sqnr_db": 30.0, "speedup": 2.0, "speedup_ci95": [1.5, 2.5], "speed_rows": [{"round": 0}], "gates": []},
    "plan": dataclasses.asdict(TunePlan(True, "throughput", 1, 2, 8, None, "fastest", ({"threads": 1},), 1.5)),
    "layers": [{"name": "a", "time_share": 0.25}, {"name": "b", "time_share": None}],
    "stages_s": {"load": 1.25},
    "warnings": ['a "quoted" \\ warning', "größe\n'''\"\"\""],
    "measured": {"host": {"cpu": "X"}, "plan": {}},
}


def a_lock(**changes: Any) -> Lock:
    inputs = Inputs(
        recipe={"text": HEX}, versions={"torch": "2.13.0"}, host={"threads": 2, "machine": "x86_64"},
        files={"a.jpg": HEX}, model={"state": HEX}, data={"evaluation": HEX}, fused=[["conv", "bn"]],
    )  # fmt: skip
    part = WheelLock(
        file="a.whl", sha256=HEX, engine="native", isa="avx2", quantize={"mode": "static"}, plan={"threads": 1},
        contents={"a/b.py": HEX}, measured={name: json.dumps(value) for name, value in measured_of(BUILD).items()},
    )  # fmt: skip
    return Lock(**{"inputs": inputs, "wheels": {"x86_64": part}, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = lock_path(tmp_path / "net.toml")
    write_lock(found, a_lock(source_date_epoch=1_700_000_000))
    return found


def test_what_is_written_is_read_again(path: Path) -> None:
    assert path.name == "net.lock.toml"
    assert read_lock(path) == a_lock(source_date_epoch=1_700_000_000)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    before = path.read_bytes()
    write_lock(path, read_lock(path))
    assert path.read_bytes() == before


def test_a_build_with_other_times_gets_those_of_the_lock() -> None:
    measured = read_back()
    other = json.loads(json.dumps(BUILD))
    other["stages_s"] = {"load": 9.0}
    other["report"] |= {"speedup": 7.0, "speed_rows": []}
    other["layers"][0]["time_share"] = 0.9
    other["engines"] = {}
    facts = {name: value for name, value in other.items() if name != "measured"}
    again = replayed(facts, measured)
    assert json.dumps(again) == json.dumps({name: value for name, value in BUILD.items() if name != "measured"})


def read_back() -> dict[str, Any]:
    return a_lock().wheels["x86_64"].measured


def test_the_plan_is_that_of_the_lock() -> None:
    plan = plan_again(a_lock().wheels["x86_64"])
    assert (plan.threads, plan.instances, plan.batch_size, plan.rows) == (1, 2, 8, ({"threads": 1},))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), 2),
        (("schema",), True),
        (("inputs",), {}),
        (("inputs", "files", "a.jpg"), "abc"),
        (("inputs", "host", "threads"), 0),
        (("inputs", "host", "threads"), "two"),
        (("inputs", "host", "threads"), 10**9),
        (("wheels", "x86_64", "engine"), "magic"),
        (("wheels", "x86_64", "isa"), "mmx"),
        (("wheels", "x86_64", "quantize"), {"mode": "other"}),
        (("wheels", "x86_64", "sha256"), "abc"),
        (("wheels", "x86_64", "measured", "plan"), "{}"),
        (("wheels", "x86_64", "measured", "plan"), "{"),
        (("wheels", "x86_64", "measured", "report"), "[]"),
        (("wheels", "x86_64", "measured", "time_shares"), "3"),
        (("wheels", "x86_64", "measured"), {}),
        (("extra",), 1),
    ],
)
def test_a_lock_that_somebody_changed(path: Path, place: tuple[str, ...], value: object) -> None:
    raw = tomli.loads(path.read_text())
    table = raw
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    path.write_text(tomli_w.dumps(raw))
    with pytest.raises(LockError, match=r"net\.lock\.toml is damaged"):
        check_parts(read_lock(path), path)


@pytest.mark.parametrize("text", ["", "x", "a = [", "\0", "a = " + "[" * 5000])
def test_what_is_no_lock(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(LockError, match="hint: run `cpupack lock`"):
        read_lock(path)


def test_all_that_differs_is_named() -> None:
    one = a_lock().inputs
    two = one.model_copy(
        update={
            "recipe": {"text": "0" * 64}, "versions": {"torch": "2.12.0"}, "files": {"b.jpg": HEX},
            "model": {"state": "0" * 64}, "data": {"evaluation": "0" * 64}, "fused": [["conv", "relu"]],
            "host": {"threads": 1, "machine": "aarch64"},
        }
    )  # fmt: skip
    assert differences(one, one) == []
    assert differences(one, two) == [
        "the recipe's text changed (comments or layout): the wheel holds it",
        "version of torch: 2.13.0 in the lock, now 2.12.0",
        "this CPU's machine: x86_64 in the lock, now aarch64",
        "a.jpg: in the lock, but this build did not read it",
        "b.jpg: not in the lock",
        "the loaded weights changed",
        "the samples of the evaluation changed",
        "no longer fused: conv + bn",
        "newly fused: conv + relu",
    ]
