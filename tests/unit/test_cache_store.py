"""The cache as files: several builds at once, the limit, damage, and directories that cannot be written."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cpupack.cache.store import Entry, Store
from helpers.waiting import PATIENCE_S

STAGE = "outputs"
MEGABYTE = 2**20


def entry(value: float = 1.0, floats: int = 64, label: str = "net") -> Entry:
    return Entry({"outputs": torch.full((floats,), value)}, {"made": [value]}, label)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    assert made.problem() is None
    return made


def keys(store: Store) -> set[str]:
    return {each.key for each in store.entries()}


def parts(store: Store) -> list[Path]:
    return list(store.directory.rglob("*.part"))


def value_of(found: Entry | None) -> float:
    """Return the one value that an entry of these tests holds everywhere: a mixture of two is none."""
    assert found is not None
    (value,) = set(found.tensors["outputs"].tolist())
    assert found.facts == {"made": [value]}
    return value


def test_what_is_kept_comes_back(store: Store, said: list[str]) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "one": shared, "same": shared, "part": shared[2:], "across": shared.reshape(2, 3).T,
        "none": torch.ones(0, 3), "number": torch.tensor(7), "bits": torch.tensor([True, False]),
    }  # fmt: skip
    store.put(STAGE, "a", Entry(tensors, {"text": "ä\n", "list": [1, 2.5, None]}, "net"), said.append)
    found = store.get(STAGE, "a", said.append)
    assert found is not None
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert found.facts == {"text": "ä\n", "list": [1, 2.5, None]}
    assert found.label == "net"
    assert store.get(STAGE, "b", said.append) is None
    assert store.get("race", "a", said.append) is None
    assert said == []


def test_threads_that_write_and_read_one_entry(store: Store) -> None:
    """Every reader sees all of one writer's entry."""
    said: list[str] = []
    failed: list[BaseException] = []
    store.put(STAGE, "a", entry(0.0, MEGABYTE), said.append)

    def write(value: float) -> None:
        mine = Store(store.directory)
        for _ in range(8):
            mine.put(STAGE, "a", entry(value, MEGABYTE), said.append)

    def read() -> None:
        mine = Store(store.directory)
        for _ in range(16):
            assert value_of(mine.get(STAGE, "a", said.append)) in {0.0, 1.0, 2.0}

    def run(work: Callable[..., None], *arguments: float) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=run, args=each) for each in ((write, 1.0), (write, 2.0), (read,), (read,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failed == []
    assert said == []
    assert parts(store) == []


_WRITER = """
import sys
from pathlib import Path
import torch
from cpupack.cache.store import Entry, Store
directory, value = Path(sys.argv[1]), float(sys.argv[2])
store = Store(directory)
assert store.problem() is None
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    store.put("outputs", "a", Entry({"outputs": torch.full((100_000,), value)}, {"made": [value]}), print)
    found = store.get("outputs", "a", print)
    assert found is not None
    (seen,) = set(found.tensors["outputs"].tolist())
    assert found.facts == {"made": [seen]}
"""


def test_processes_that_write_and_read_one_entry(store: Store) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(store.directory), str(value)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for value in (1.0, 2.0)
    ]  # fmt: skip
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in started:
        out, err = each.communicate(timeout=PATIENCE_S)
        assert (each.returncode, out, err) == (0, "", "")
    assert value_of(store.get(STAGE, "a", pytest.fail)) in {1.0, 2.0}
    assert parts(store) == []


def test_what_a_killed_build_left_is_removed_and_what_is_written_now_is_not(store: Store, said: list[str]) -> None:
    """The number of a process says nothing: a build in a container has one of its own."""

    store.put(STAGE, "a", entry(), said.append)
    (kept,) = store.entries()
    left = kept.path.with_name(f".b.entry.{os.getpid()}.part")
    left.write_bytes(b"half of it")
    written = kept.path.with_name(".c.entry.0123456789abcdef.part")
    with written.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.put(STAGE, "d", entry(), said.append)
        assert not left.exists()
        assert written.exists()
    store.clear()
    assert parts(store) == []
    assert said == []


@pytest.fixture
def entry_bytes(store: Store) -> int:
    """How large an entry of these tests is."""
    store.put(STAGE, "a", entry(), pytest.fail)
    (size_bytes,) = {each.size_bytes for each in store.entries()}
    store.clear()
    return size_bytes


def test_the_limit_removes_what_was_not_used_for_longest(store: Store, entry_bytes: int, said: list[str]) -> None:
    for age, key in enumerate("dcba"):
        Store(store.directory).put(STAGE, key, entry(), said.append)
        os.utime(store.directory / STAGE / f"{key}.entry", (1000 - age, 1000 - age))
    # The oldest is a. Another build reads it, so that b is.
    assert Store(store.directory).get(STAGE, "a", said.append) is not None
    later = Store(store.directory, 3 * entry_bytes)
    later.put(STAGE, "e", entry(), said.append)
    assert keys(later) == {"a", "d", "e"}
    later.put(STAGE, "f", entry(), said.append)
    assert keys(later) == {"a", "e", "f"}
    assert said == []


def test_the_limit_holds_for_one_build_too(store: Store, entry_bytes: int, said: list[str]) -> None:
    """What the build has used is not thrown away for what comes later: the next build would find neither."""
    small = Store(store.directory, 2 * entry_bytes)
    small.put(STAGE, "a", entry(), said.append)
    small.put(STAGE, "b", entry(), said.append)
    small.put(STAGE, "b", entry(), said.append)  # in its own place
    assert said == []
    small.put(STAGE, "c", entry(), said.append)
    assert keys(small) == {"a", "b"}
    assert len(said) == 1
    assert said[0].startswith("not kept in the cache: outputs takes 0.0 MB, and 0.0 MB are this build's already")
    small.drop(STAGE, "a")
    small.put(STAGE, "c", entry(), said.append)
    assert keys(small) == {"b", "c"}
    assert len(said) == 1


def test_an_entry_above_the_limit_is_not_kept(store: Store, said: list[str]) -> None:
    Store(store.directory, 1000).put(STAGE, "a", entry(floats=MEGABYTE), said.append)
    assert said == ["not kept in the cache: outputs takes 4.2 MB; the limit is 0.0 MB (--cache-gib)"]
    assert store.entries() == []
    assert parts(store) == []


@pytest.mark.parametrize("bit", [0, 7])
def test_a_bit_flipped_anywhere_is_found(store: Store, said: list[str], bit: int) -> None:
    store.put(STAGE, "a", entry(floats=2), said.append)
    path = store.directory / STAGE / "a.entry"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        store.entries()  # reads the head of what is damaged
        said.clear()
        assert store.get(STAGE, "a", said.append) is None, place
        assert len(said) == 1
        assert f"is damaged, so it is made again: {path}: " in said[0]
        assert not path.exists()


def test_an_entry_cut_anywhere_is_found(store: Store, said: list[str]) -> None:
    store.put(STAGE, "a", entry(floats=2), said.append)
    path = store.directory / STAGE / "a.entry"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        store.entries()
        assert store.get(STAGE, "a", said.append) is None, length
    assert len(said) == len(whole)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [_pipe, _link, Path.mkdir], ids=["pipe", "link", "directory"])
def test_what_is_no_file_is_not_read(store: Store, said: list[str], make: Callable[[Path], None]) -> None:
    """And nothing waits for a pipe."""
    (store.directory / STAGE).mkdir()
    make(store.directory / STAGE / "a.entry")
    assert store.entries() == []
    assert store.get(STAGE, "a", said.append) is None
    assert len(said) == 1
    assert "made again" in said[0]


def test_an_entry_that_another_build_removes_while_it_is_read_is_whole(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only disk, where its time of use cannot be noted: what was read is no damage."""
    store.put(STAGE, "a", entry(3.0), said.append)

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "utime", refuse)
    assert value_of(store.get(STAGE, "a", said.append)) == 3.0
    assert said == []
    assert keys(store) == {"a"}


def test_a_file_where_the_cache_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    for directory in (tmp_path / "cache", tmp_path / "cache" / "below"):
        problem = Store(directory).problem()
        assert problem is not None
        assert str(directory) in problem
    assert (tmp_path / "cache").read_text() == "a file"


def test_a_file_where_a_stage_should_be_is_said(store: Store, said: list[str]) -> None:
    (store.directory / STAGE).write_text("a file")
    store.put(STAGE, "a", entry(), said.append)
    assert len(said) == 1
    assert said[0].startswith(f"not kept in the cache: {store.directory / STAGE / 'a.entry'}: ")
    assert store.get(STAGE, "a", said.append) is None
    assert store.entries() == []
    store.put("race", "a", entry(), said.append)  # the others are as they were
    assert store.get("race", "a", pytest.fail) is not None


def test_clear_of_one_package_leaves_the_others(store: Store, said: list[str]) -> None:
    store.put(STAGE, "a", entry(label="one"), said.append)
    store.put(STAGE, "b", entry(label="two"), said.append)
    assert [each.key for each in store.clear("one")] == ["a"]
    assert keys(store) == {"b"}
    assert said == []
