"""``NAME stream``: raw values, sound and arrays, chunk by chunk, to one line of JSON each."""

from __future__ import annotations

import io
import json
import sys
import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpupack.runtime.chunks import Chunks
from cpupack.runtime.cli import main
from cpupack.runtime.errors import InputError
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec
from helpers.named_package import write_rows_package
from helpers.once import once

SIGNATURE = Signature(
    (
        TensorSpec("total", (1, 1), default=0.0, state="next"),
        TensorSpec("sound", (1, 4)),
        TensorSpec("gain", (1,), default=1.0),
    ),
    (OutputSpec("sum", (1, 1)), OutputSpec("next", (1, 1))),
)
Call = Callable[..., tuple[int, list[Any], str]]


class Sums(torch.nn.Module):
    """Rows of a total, four values and a gain, to the sum of all values so far, twice."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        total = rows[:, :1] + rows[:, 1:5].sum(1, keepdim=True) * rows[:, 5:]
        return torch.cat([total, total], 1)


def write(root: Path) -> None:
    write_rows_package(root / "sums_int8", Sums(), np.array([[0, 1, 2, 3, 4, 1]], np.float32), SIGNATURE)


@pytest.fixture
def call(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    package = once(tmp_path_factory, "stream-command", write) / "sums_int8"

    def run(*argv: object, stdin: bytes = b"") -> tuple[int, list[Any], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(package, ["stream", *map(str, argv)])
        out, err = capfd.readouterr()
        return code, [json.loads(line) for line in out.splitlines()] if "--json" not in argv else [json.loads(out)], err

    return run


def sums(lines: list[Any]) -> list[float]:
    assert [each["step"] for each in lines] == list(range(len(lines)))
    return [each["sum"][0][0] for each in lines]


VALUES = np.arange(10, dtype=np.float32)
SUMS = [6.0, 28.0]
"""Of the first four values, and of eight. Two are left."""


def test_raw_floats_of_stdin_are_cut_into_chunks(call: Call) -> None:
    code, lines, err = call(stdin=VALUES.tobytes())
    assert (code, sums(lines)) == (0, SUMS)
    assert "the last 2 values fill no chunk and are left out; --pad" in err
    code, lines, err = call("--pad", stdin=VALUES.tobytes() + b"\0\0")  # half a value is none
    assert (code, sums(lines)) == (0, [*SUMS, 45.0])
    assert "left out" not in err


def test_raw_numbers_of_16_bits_are_sound(call: Call) -> None:
    code, lines, _ = call("-", "--raw", "int16", stdin=np.array([16384, -32768, 0, 0], "<i2").tobytes())
    assert (code, sums(lines)) == (0, [-0.5])


def test_files_are_what_their_ending_says(call: Call, tmp_path: Path) -> None:
    paths = {each: tmp_path / f"a.{each}" for each in ("f32", "npy", "chunks.npy", "npz", "wav")}
    paths["f32"].write_bytes(VALUES.tobytes())
    np.save(paths["npy"], VALUES)
    np.save(paths["chunks.npy"], VALUES[:8].reshape(2, 1, 4))
    np.savez(paths["npz"], sound=VALUES[:8].reshape(2, 1, 4), gain=np.array([[1.0], [0.5]], np.float32))
    with wave.open(str(paths["wav"]), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((VALUES[:8] * 1024).astype("<i2").tobytes())
    wanted = dict.fromkeys(paths, SUMS) | {"npz": [6.0, 17.0], "wav": [each / 32 for each in SUMS]}
    for name, path in paths.items():
        code, lines, err = call(path)
        assert (code, sums(lines)) == (0, wanted[name]), (name, err)


def test_a_state_goes_from_one_command_to_the_next(call: Call, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    assert call("--save-state", state, stdin=VALUES[:3].tobytes())[0] == 2  # no whole chunk, so no state
    assert not state.exists()
    assert call("--save-state", state, stdin=VALUES[:4].tobytes())[0] == 0
    with np.load(state) as saved:
        assert saved.files == ["total"]
    assert list(state.parent.iterdir()) == [state]
    code, lines, _ = call("--state", state, stdin=VALUES[4:8].tobytes())
    assert (code, sums(lines)) == (0, SUMS[1:])
    np.savez(state, other=np.zeros((1, 1, 1), np.float32))
    code, _, err = call("--state", state, stdin=VALUES.tobytes())
    assert code == 2
    assert 'no state "other"; it has total float32 (n, 1, 1)' in err


def test_json_is_one_object_of_all_chunks(call: Call) -> None:
    code, (found,), err = call("--json", stdin=VALUES.tobytes())
    assert (code, err) == (0, "") or "warning" in err
    assert (found["count"], found["left_out"], sums(found["steps"])) == (2, 2, SUMS)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nothing.npy"], "nothing.npy: no such file"),
        (["nothing.f32"], "cannot read nothing.f32: No such file"),
        (["--raw", "int64"], '--raw int64: the input "sound" is float32; it takes float32 or int16'),
        (["x.npy", "--raw", "int16"], "x.npy says itself what its values are"),
        (["--state", "x.npy"], "--state: x.npy must end in .npz"),
        (["--save-state", "nowhere/x.npz"], "the directory nowhere does not exist"),
        ([], "stdin holds no whole chunk"),
        (["bad.npy"], 'bad.npy: got float32 (2, 3) for "sound"; expected (chunks, 1, 4)'),
        (["one.npy"], "expected (chunks, 1, 4); add a first dimension for its only chunk"),
        (["other.npz"], 'no input "x"; it has sound, gain'),
        (["two.npz"], "different numbers of chunks"),
        (["noise.wav"], "noise.wav is no .wav file of whole numbers: it ends too early; give"),
        (["stereo.wav"], "stereo.wav has 2 channels of 16 bits; a .wav file must have one"),
        (["nan.npy"], "sample 0 has nan"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("bad.npy", np.zeros((2, 3), np.float32))
    np.save("one.npy", np.zeros((1, 4), np.float32))
    np.save("nan.npy", np.full(4, np.nan, np.float32))
    np.savez("other.npz", x=np.zeros((2, 1, 4), np.float32))
    np.savez("two.npz", sound=np.zeros((2, 1, 4), np.float32), gain=np.zeros((3, 1), np.float32))
    Path("noise.wav").write_bytes(b"RIFF")
    with wave.open("stereo.wav", "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(16))
    code, lines, err = call(*arguments)
    assert code == 2
    assert lines == []
    assert match in err
    assert "Traceback" not in err


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 100), changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=4))
def test_damaged_sound_is_read_or_said(tmp_path: Path, cut: int, changes: list[tuple[int, int]]) -> None:
    """Cut anywhere, also within a value, and changed where the file says what it holds."""
    file, path = io.BytesIO(), tmp_path / "a.wav"
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(range(56)))
    data = bytearray(file.getvalue())
    for place, value in changes:
        data[place] = value
    path.write_bytes(data[: len(data) - cut])
    spec = TensorSpec("sound", (1, 4))
    with suppress(InputError):
        for chunk in Chunks([spec], str(path), None, pad=cut % 2 == 0):
            assert chunk["sound"].shape == (1, 1, 4)


def test_a_model_without_states_says_how_to_get_one(package_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(package_dir, ["stream"]) == 2
    assert "keeps no state, so it has no streams; [model] stream = true" in capfd.readouterr().err


def test_an_array_holds_chunks_of_any_length_where_the_dimension_has_a_name(tmp_path: Path) -> None:
    spec, path = TensorSpec("x", (2, 64), names=("", "time")), tmp_path / "x.npy"
    np.save(path, np.zeros((3, 2, 7), np.float32))
    assert [each["x"].shape for each in Chunks([spec], str(path), None, pad=False)] == [(1, 2, 7)] * 3
    np.save(path, np.zeros((3, 1, 64), np.float32))
    with pytest.raises(InputError, match=r"got float32 \(3, 1, 64\) for \"x\"; expected \(chunks, 2, 64\)"):
        list(Chunks([spec], str(path), None, pad=False))
