"""Texts as inputs of ``NAME batch``: which lines belong to which file of the output, and which columns hold texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec
from helpers.unreadable import make_unreadable

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra dev")

from cpupack.runtime.batch.lines import Fields, items_of, list_lines, text_files  # noqa: E402 - it imports pyarrow
from cpupack.runtime.batch.tables import Columns, choose_columns, parquet_files  # noqa: E402 - it imports pyarrow
from cpupack.runtime.batch.tables import items_of as rows_of  # noqa: E402 - it imports pyarrow

IDS = Signature((TensorSpec("ids", (4,), "int64"), TensorSpec("mask", (4,), "int64")), (OutputSpec("y", (2,)),))


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_each_line_is_in_one_shard_once(tmp_path: Path, rows: int) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  \ntwo\n\nth\u00e9\nfour".encode())
    (tmp_path / "b" / "c.txt").write_text("five\n")
    (tmp_path / ".hidden.txt").write_text("none\n")
    files = text_files(tmp_path)
    listing = list_lines(tmp_path, files, Fields(), rows)
    found = [list(items_of(tmp_path, shard, Fields())) for shard in listing.shards]
    assert [len(each) for each in found] == [shard.rows for shard in listing.shards]
    assert max(shard.rows for shard in listing.shards) <= rows
    items = [item for each in found for item in each]
    assert [item.read() for item in items] == ["one", "two", "th\u00e9", "four", "five"]
    assert [item.id for item in items] == ["a.txt:1", "a.txt:4", "a.txt:6", "a.txt:7", "b/c.txt:1"]
    assert listing.count == 5


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each input is run once, or the command says which are not."""
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/c.txt", "b/d.parquet"):
        (tmp_path / name).write_text("one\n")
    make_unreadable(monkeypatch, tmp_path / "b")
    for files_of in (text_files, parquet_files):
        with pytest.raises(InputError, match="b cannot be read: Permission denied"):
            files_of(tmp_path)


def test_json_lines_say_text_and_id(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "one", "key": "k"}\n"two"\n{"q": "three"}\n{"key": 4}\n')
    listing = list_lines(path, [path], Fields("q", "key"), 10)
    items = list(items_of(path, listing.shards[0], Fields("q", "key")))
    assert [(each.id, each.read()) for each in items[:2]] == [("k", "one"), ("a.jsonl:2", "two")]
    with pytest.raises(InputError, match=r'a\.jsonl:3 has no "key"'):
        items[2].read()
    with pytest.raises(InputError, match=r'a\.jsonl:4 has no "q"'):
        items[3].read()


def test_columns_of_texts(tmp_path: Path) -> None:
    def written(**columns: list[object]) -> list[Path]:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return [tmp_path / "a.parquet"]

    def chosen(files: list[Path], column: str | None = None) -> Columns:
        return choose_columns(files, IDS, column, None, texts=True)

    assert chosen(written(text=["a"], text_pair=["b"], n=[1])).inputs == (("text", "text"), ("text_pair", "text_pair"))
    assert chosen(written(body=["a"], id=["x"])) == Columns((("text", "body"),), "id", texts=True)
    assert chosen(written(a=["a"], b=["b"]), "b").inputs == (("text", "b"),)
    assert not chosen(written(ids=[[1, 2, 3, 4]], mask=[[1, 1, 1, 1]], text=["a"])).texts  # the model's own inputs
    with pytest.raises(InputError, match="which column holds the texts"):
        chosen(written(a=["a"], b=["b"]))
    with pytest.raises(InputError, match="--column n: texts are strings"):
        chosen(written(a=["a"], n=[1]), "n")
    files = written(text=["a", "b", None], text_pair=["c", None, "d"])
    from cpupack.runtime.batch.shards import Shard

    items = list(rows_of(tmp_path, Shard(0, ("a.parquet",), 3, (0,)), chosen(files), IDS))
    assert [item.read() for item in items[:2]] == [{"text": "a", "text_pair": "c"}, {"text": "b"}]
    with pytest.raises(InputError, match="the text is null"):
        items[2].read()
