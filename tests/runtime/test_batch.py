"""``NAME batch`` in one process: what it takes, what it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime import cli
from cpupack.runtime.runner import Runner

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra dev")

Run = Callable[..., dict[str, Any]]


def picture(seed: int, size: tuple[int, int] = (24, 20), form: str = "PNG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images in two directories, and files that are none."""
    root = tmp_path / "images"
    for number in range(7):
        path = root / ("b" if number % 2 else "a") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (root / "labels.txt").write_text("a\n")
    (root / ".hidden.png").write_bytes(picture(0))
    return root


@pytest.fixture
def batch(package_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path, code: int = 0, package: Path = package_dir) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(package, ["batch", *map(str, arguments), "--json"]) == code
        said = capsys.readouterr()
        return {"said": said.err, **(json.loads(said.out) if code == 0 else {})}

    return run


def rows(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        row for path in sorted(directory.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_image_is_a_row_with_what_predict_says(
    batch: Run, images: Path, package_dir: Path, tmp_path: Path
) -> None:
    found = batch("--from", images, "--to", tmp_path / "out", "--rows-per-file", "3", "--top-k", "2")
    assert (found["inputs"], found["computed"], found["unreadable"], found["files"]) == (7, 7, 0, 3)
    assert "left out: 1 .txt" in found["said"]
    ids = ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
    written = rows(tmp_path / "out")
    assert [row["id"] for row in written] == ids
    with Runner(package_dir) as runner:
        expected = runner.predict([images / name for name in ids], top_k=2)
        assert [row["top"] for row in written] == [runner.answers.facts(each)["top"] for each in expected]
    assert [len(pq.read_table(path)) for path in sorted((tmp_path / "out").glob("*.parquet"))] == [3, 3, 1]
    assert pq.ParquetDataset(tmp_path / "out").read().num_rows == 7  # no file of ours is in a reader's way


def test_what_cannot_be_read_is_a_row_with_the_reason(batch: Run, images: Path, tmp_path: Path) -> None:
    (images / "a" / "2.png").write_bytes(b"no image")
    (images / "b" / "9.png").symlink_to(images / "gone")
    found = batch("--from", images, "--to", tmp_path / "out")
    assert (found["inputs"], found["unreadable"]) == (8, 2)
    assert found["examples"][0].startswith("a/2.png: ")
    bad = {row["id"]: row for row in rows(tmp_path / "out") if row["error"] is not None}
    assert set(bad) == {"a/2.png", "b/9.png"}
    assert bad["a/2.png"]["top"] is None
    assert "not an image" in bad["a/2.png"]["error"]
    assert "no such file" in bad["b/9.png"]["error"]


def test_nothing_readable_is_an_error(batch: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(b"text")
    assert (
        "none of the 1 inputs could be read"
        in batch("--from", tmp_path / "in", "--to", tmp_path / "out", code=2)["said"]
    )


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(batch: Run, images: Path, tmp_path: Path) -> None:
    arguments = ("--from", images, "--rows-per-file", "2", "--to")
    batch(*arguments, tmp_path / "whole")
    out = Path(shutil.copytree(tmp_path / "whole", tmp_path / "stopped"))
    (out / "_SUCCESS").unlink()
    (out / "part-00001-of-00004.parquet").unlink()
    damaged = out / "part-00002-of-00004.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (out / ".part-half").write_bytes(b"half")
    kept = (out / "part-00000-of-00004.parquet").stat().st_mtime_ns
    found = batch(*arguments, out)
    assert (found["done_before"], found["computed"]) == (3, 4)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "part-00000-of-00004.parquet").stat().st_mtime_ns == kept
    assert batch(*arguments, out)["computed"] == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("another option", "--top-k"),
        ("another input", "number of inputs"),
        ("another size", "inputs' names or sizes"),
        ("another package", "build of the package"),
        ("no run", "holds files of something else (notes.txt)"),
        ("a damaged run", "cannot be read"),
    ],
)
def test_the_output_of_another_run_is_not_touched(
    batch: Run, edited: Callable[..., Path], images: Path, tmp_path: Path, package_dir: Path, change: str, why: str
) -> None:
    out, arguments, package = tmp_path / "out", ["--from", images], package_dir
    if change == "no run":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        batch(*arguments, "--to", out)
    if change == "another option":
        arguments += ["--top-k", "1"]
    elif change == "another input":
        (images / "more.png").write_bytes(picture(9))
    elif change == "another size":
        (images / "a" / "0.png").write_bytes(picture(0, (30, 30)))
    elif change == "another package":
        package = edited(quantize={"skip": ["head"]})
    elif change == "a damaged run":
        (out / "_run.json").write_text("{")
    before = contents(out)
    assert why in batch(*arguments, "--to", out, code=2, package=package)["said"]
    assert contents(out) == before


def test_wrong_paths_and_options_are_said_before_anything_is_written(batch: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "file").write_text("")
    mixed = Path(shutil.copytree(images, tmp_path / "mixed"))
    pq.write_table(pa.table({"image": [picture(0)]}), mixed / "a.parquet")
    out = tmp_path / "out"
    for arguments, why in [
        (("--from", tmp_path / "none", "--to", out), "no such file or directory"),
        (("--from", "s3://bucket/images", "--to", out), "mount the bucket"),
        (("--from", tmp_path / "empty", "--to", out), "it is empty"),
        (("--from", tmp_path / "texts", "--to", out), "it holds 1 .txt"),
        (("--from", mixed, "--to", out), "both Parquet files and others"),
        (("--from", images, "--to", images / "out"), "lies in --from"),
        (("--from", images, "--to", tmp_path / "file"), "is a file"),
        (("--from", images, "--to", out, "--column", "x"), "--column and --id are for Parquet"),
        (("--from", images, "--to", out, "--no-baseline"), "--no-baseline is for --address"),
        (("--from", images, "--to", out, "--address", "ray://h:1"), "ray job submit"),
    ]:
        assert why in batch(*arguments, code=2)["said"], why
    assert not out.exists()


def test_columns_of_parquet(batch: Run, package_dir: Path, tmp_path: Path) -> None:
    photos = [picture(number) for number in range(5)]
    pixels = [np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8) for n in range(5)]
    table = pa.table({
        "key": pa.array([10, 11, 12, 13, 14], pa.int32()),
        "file": pa.array([*photos[:3], None, b"no image"], pa.binary()),
        "hub": pa.array([{"bytes": photo, "path": "x"} for photo in photos]),
        "flat": pa.array([each.reshape(-1).tolist() for each in pixels], pa.list_(pa.uint8(), 16 * 16 * 3)),
        "nested": pa.array([each.tolist() for each in pixels]),
        "text": ["a"] * 5,
    })  # fmt: skip
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    pq.write_table(table.slice(0, 3), source / "a.parquet", row_group_size=2)
    pq.write_table(table.slice(3), source / "deep" / "b.parquet")
    assert "which column holds the inputs?" in batch("--from", source, "--to", tmp_path / "x", code=2)["said"]
    for column, wrong in (("text", "inputs are binary"), ("none", "no such column")):
        assert wrong in batch("--from", source, "--to", tmp_path / "x", "--column", column, code=2)["said"]
    assert not (tmp_path / "x").exists()

    with Runner(package_dir) as runner:
        predicted = [runner.answers.facts(each)["top"] for each in runner.predict(photos)]
        of_pixels = [runner.answers.facts(runner.present(row, None, 5))["top"] for row in runner(np.stack(pixels))]
    for column, expected in (("file", predicted), ("hub", predicted), ("flat", of_pixels), ("nested", of_pixels)):
        out = tmp_path / column
        found = batch("--from", source, "--to", out, "--column", column, "--id", "key", "--rows-per-file", "2")
        assert found["files"] == 3  # whole row groups of one file
        written = rows(out)
        assert [row["id"] for row in written] == [10, 11, 12, 13, 14]
        kept = 3 if column == "file" else 5
        assert [row["top"] for row in written][:kept] == expected[:kept], column
    assert [row["error"] for row in rows(tmp_path / "file")][3] == "the value is null"
    batch("--from", source, "--to", tmp_path / "ids", "--column", "hub")
    names = ["a.parquet#0", "a.parquet#1", "a.parquet#2", "deep/b.parquet#0", "deep/b.parquet#1"]
    assert [row["id"] for row in rows(tmp_path / "ids")] == names


def test_arrays(batch: Run, array_package_dir: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    source = tmp_path / "arrays"
    source.mkdir()
    for number, value in enumerate(values):
        np.save(source / f"{number}.npy", value)
    np.save(source / "9.npy", values[0, 0])
    found = batch("--from", source, "--to", tmp_path / "out", package=array_package_dir)
    assert (found["inputs"], found["unreadable"]) == (4, 1)
    out = io.BytesIO()
    np.save(out, values[1])
    table = pa.table({
        "id": ["flat", "npy", "nan"],
        "x": pa.array([out.getvalue(), out.getvalue(), b"x"], pa.binary()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    batch("--from", tmp_path / "t.parquet", "--to", tmp_path / "out2", package=array_package_dir)
    written = {row["id"]: row for row in (*rows(tmp_path / "out"), *rows(tmp_path / "out2"))}
    assert written["flat"]["top"] == written["1.npy"]["top"]
    assert "no .npy file" in written["nan"]["error"]


def test_a_native_model_needs_no_torch(native_package_dir: Path, images: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tiny_int8._entry import main\n"
        f"sys.argv = ['tiny-int8', 'batch', '--from', {str(images)!r}, '--to', {str(tmp_path / 'out')!r}]\n"
        "print(main(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=native_package_dir.parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
