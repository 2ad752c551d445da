"""Tokens of texts: padding, cutting, pairs, and what a caller may hand in by mistake."""

from __future__ import annotations

import json
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime import text_command
from cpupack.runtime.errors import InputError, IntegrityError, TruncatedTextWarning
from cpupack.runtime.handlers import keeps_theirs
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.runtime.text.made_up import text_batch
from cpupack.runtime.text.sizes import Sizes
from cpupack.runtime.text.spec import TokenizerSpec
from cpupack.runtime.text.texts import MOST_CHARACTERS, read_lines, text_of
from cpupack.runtime.text.tokenizer import Tokenizer
from helpers.tiny_text import id_of, write_tokenizer

CLS, SEP, UNK = (id_of(each) for each in ("[CLS]", "[SEP]", "[UNK]"))


def opened(tmp_path: Path, **settings: Any) -> Tokenizer:
    spec = TokenizerSpec(**{"max_length": 6, "ids": "ids", "mask": "mask", "types": "types", **settings})
    path = write_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer(path.read_bytes(), spec, str(path))


def test_a_stdin_that_is_closed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after ``<&-``
    with pytest.raises(InputError, match="stdin is closed"):
        text_command.run(tmp_path, Namespace(inputs=[], file="-", named=[]))


def test_a_text_is_padded_to_the_models_length_whatever_the_file_says(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path)
    made = tokenizer.arrays([tokenizer.tokens("The CAT"), tokenizer.tokens("")])
    assert made["ids"].tolist() == [[CLS, id_of("the"), id_of("cat"), SEP, 0, 0], [CLS, SEP, 0, 0, 0, 0]]
    assert made["mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_padding_may_be_on_the_left_with_an_id_of_its_own(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, side="left", pad_id=1, types=None)
    made = tokenizer.arrays([tokenizer.tokens("cat")])
    assert made["ids"].tolist() == [[1, 1, 1, CLS, id_of("cat"), SEP]]
    assert made["mask"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert set(made) == {"ids", "mask"}


def test_a_long_text_is_cut_with_its_last_special_token_and_says_so(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path)
    tokens = tokenizer.tokens("cat " * 20)
    assert tokens.ids == (CLS, *[id_of("cat")] * 4, SEP)
    assert tokens.facts() == {"tokens": 22, "truncated": True}
    with pytest.warns(
        TruncatedTextWarning, match=r"1 of 2 texts have up to 22 tokens, and the model reads the first 6"
    ) as caught:
        keeps_theirs(tokenizer.warn_if_truncated)([tokens, tokenizer.tokens("cat")])  # as the runner's methods call it
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.warn_if_truncated([tokenizer.tokens("cat cat cat cat")])  # 6 tokens fit exactly


def test_a_long_text_may_be_cut_at_its_beginning(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, cut_side="left")
    tokens = tokenizer.tokens("the big red cat sleeps and runs a lot")
    assert tokens.ids == (CLS, UNK, id_of("runs"), id_of("a"), UNK, SEP)
    with pytest.warns(TruncatedTextWarning, match="reads the last 6"):
        tokenizer.warn_if_truncated([tokens])


def test_the_warning_of_a_cut_text_names_the_line_of_the_caller(tmp_path: Path) -> None:
    """It named a line of the runner, at which nobody can do anything."""
    tokenizer = opened(tmp_path)
    with pytest.warns(TruncatedTextWarning) as caught:
        tokenizer.warn_if_truncated([tokenizer.tokens("cat " * 20)])
    assert caught[0].filename == __file__


def test_a_pair_that_cannot_be_cut_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="5 tokens, which cannot be cut to 2: special tokens take more"):
        opened(tmp_path, max_length=2).tokens(("cat", "dog"))


@pytest.mark.parametrize("pair", [("cat", "dog"), {"text": "cat", "text_pair": "dog"}, (b"cat", "dog")])
def test_a_pair_has_the_second_type(tmp_path: Path, pair: Any) -> None:
    tokens = opened(tmp_path).tokens(pair)
    assert tokens.ids == (CLS, id_of("cat"), SEP, id_of("dog"), SEP)
    assert tokens.types == (0, 0, 0, 1, 1)


def test_unknown_scripts_become_the_unknown_token(tmp_path: Path) -> None:
    assert opened(tmp_path).tokens("猫 кошка 🐈").ids == (CLS, UNK, UNK, UNK, SEP)


def test_a_prefix_comes_before_each_text(tmp_path: Path) -> None:
    assert opened(tmp_path, prefix="the ").tokens("cat").ids == opened(tmp_path).tokens("the cat").ids


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (5, "is int; expected a string"),
        (None, "is NoneType; expected a string"),
        (("cat", 5), "the second text of text 3 is int"),
        (("a", "b", "c"), "is tuple; expected a string"),
        ({"text_pair": "cat"}, 'has "text_pair" and no "text"'),
        ({"text": "cat", "label": 1}, 'has "label"; a text has'),
        (b"caf\xe9", "is not UTF-8: byte 3 is 0xe9"),
        ("a\ud83db", r"half of a character \(the surrogate U\+D83D\) at position 1"),
        ("x" * (MOST_CHARACTERS + 1), "cut it into passages"),
        ("x" * 10_000_000, "has 10,000,000 characters"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, item: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        opened(tmp_path).tokens(item, "text 3")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": {}}', b"\xff\xfe", b"null"])
def test_a_damaged_file_is_named(damage: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^t\.json is no tokenizer\.json"):
        Tokenizer(damage, TokenizerSpec(6, "ids"), "t.json")


def test_a_file_without_its_special_tokens_is_named(tmp_path: Path) -> None:
    """The library panics, which is no Exception."""
    found = json.loads(write_tokenizer(tmp_path / "t.json").read_text())
    found["post_processor"]["single"].append({"SpecialToken": {"id": "[XX]", "type_id": 0}})
    with pytest.raises(IntegrityError, match=r"^t\.json is damaged: the library tokenizers makes no tokens"):
        Tokenizer(json.dumps(found).encode(), TokenizerSpec(6, "ids"), "t.json")


def test_a_text_that_the_library_does_not_take_is_named(tmp_path: Path) -> None:
    found = json.loads(write_tokenizer(tmp_path / "t.json").read_text())
    found["model"]["unk_token"] = "[NONE]"
    tokenizer = Tokenizer(json.dumps(found).encode(), TokenizerSpec(6, "ids"), "t.json")
    assert tokenizer.tokens("cat").ids == (CLS, id_of("cat"), SEP)
    with pytest.raises(InputError, match="no tokens of text 3: WordLevel error"):
        tokenizer.tokens("zebra", "text 3")


def test_lines_of_files_are_texts_and_wrong_ones_are_named(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffone\r\n\n two \nthree".encode())
    assert [item for _, item in read_lines(plain)] == ["one", " two ", "three"]
    assert [item for _, item in read_lines(plain, blank=True)] == ["one", "", " two ", "three"]
    lines = tmp_path / "a.jsonl"
    lines.write_text('"one"\n{"text": "two", "label": 1}\n{"text": \n')
    with pytest.raises(InputError, match=r"a\.jsonl:3 is not JSON"):
        read_lines(lines)
    plain.write_bytes(b"good\nb\xffd\n")
    with pytest.raises(InputError, match=r"a\.txt:2 is not UTF-8: byte 1 is 0xff"):
        read_lines(plain)
    with pytest.raises(InputError, match="No such file"):
        read_lines(tmp_path / "absent.txt")


def test_a_text_goes_to_the_least_length_that_holds_it() -> None:
    sizes = Sizes((16, 64, 128))
    assert [sizes.fitting(count) for count in (1, 16, 17, 128)] == [16, 16, 64, 128]
    with pytest.raises(ValueError, match="129"):
        sizes.fitting(129)
    with pytest.raises(ValueError, match="ascending"):
        Sizes((64, 16))


def test_made_up_texts_have_padding_behind_them() -> None:
    inputs = (TensorSpec("ids", (32,), "int64", vocabulary=50), TensorSpec("mask", (32,), "int64", vocabulary=2))
    rows = text_batch(TokenizerSpec(32, "ids", "mask", pad_id=3), inputs, np.random.default_rng(0), 20)
    ids, mask = rows[:, :32], rows[:, 32:]
    lengths = mask.sum(axis=1)
    assert np.array_equal(mask, np.arange(32) < lengths[:, None])
    assert lengths.min() >= 8
    assert len(set(lengths.tolist())) > 5
    assert set(ids[mask == 0].tolist()) == {3.0}


def test_text_of_takes_what_it_gave() -> None:
    once = text_of(("a", "b"))
    assert text_of(once) is once
