"""Results that lie in a text: labels of words and entities, answers to questions, words for gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks import answer, fill, kinds, tokens
from cpupack.runtime.tasks.answer import AnswerPresenter
from cpupack.runtime.tasks.fill import FillPresenter
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tasks.tokens import TokensPresenter
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.runtime.text.spec import TokenizerSpec
from cpupack.runtime.text.tokenizer import Tokenizer, Tokens

tokenizers = pytest.importorskip("tokenizers")

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PIECES = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "an", "##na", "lee", "and", "##y", "in", "rio", "?", "q:")
LENGTH = 12


def tokenizer(**settings: Any) -> Tokenizer:
    """Return a tokenizer of pieces: "Anna Lee" is an, ##na, lee."""
    words = {piece: number for number, piece in enumerate(PIECES)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[PAD]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(PIECES[:4]))
    made.decoder = tokenizers.decoders.WordPiece()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    spec = TokenizerSpec(**{"max_length": LENGTH, "ids": "ids", "mask": "mask", **settings})
    return Tokenizer(made.to_str().encode(), spec, "tokenizer.json")


def scores(*labels: str) -> npt.NDArray[np.float32]:
    """Return a row for each token that is 4 for its label and 0 else, and zeros for the padding."""
    found = np.zeros((LENGTH, len(LABELS)), np.float32)
    for row, label in enumerate(labels):
        found[row, LABELS.index(label)] = 4.0
    return found


TOP = float(np.exp(4.0) / (np.exp(4.0) + 4))
"""The probability of a label with the score 4 beside four of 0."""


def labelled(text: Any, rows: npt.NDArray[np.float32], how: str = "first", **settings: Any) -> tokens.Labelled:
    opened = tokenizer(**settings)
    presenter = TokensPresenter(
        TaskSpec.of("tokens", aggregation=how), LABELS, left=settings.get("side", "right") == "left"
    )
    return presenter.present({"logits": rows}, opened.tokens(text))


def test_words_with_one_label_are_an_entity_with_its_place_in_the_text() -> None:
    # [CLS] an ##na lee and ##y in rio [SEP]; the second half of a word counts for nothing
    rows = scores("O", "B-PER", "O", "I-PER", "B-PER", "I-LOC", "O", "B-LOC", "B-LOC")
    found = labelled("Anna  Lee andy in Rio", rows)
    assert [(one.label, one.text, one.start, one.end) for one in found.entities] == [
        ("PER", "Anna  Lee", 0, 9),
        ("PER", "andy", 10, 14),
        ("LOC", "Rio", 18, 21),
    ]
    assert [(one.label, one.text) for one in found.words] == [
        ("B-PER", "Anna"), ("I-PER", "Lee"), ("B-PER", "andy"), ("O", "in"), ("B-LOC", "Rio"),
    ]  # fmt: skip
    assert found.entities[0].score == pytest.approx(TOP)
    assert found.text().splitlines()[2].split() == [f"{TOP:.2%}", "LOC", "18-21", "Rio"]
    assert found.to_dict()["entities"][2] == {
        "label": "LOC", "score": pytest.approx(TOP), "start": 18, "end": 21, "text": "Rio", "second": False,
    }  # fmt: skip


def test_each_token_may_have_a_label_of_its_own() -> None:
    rows = scores("O", "B-PER", "O", "I-PER")
    found = labelled("Anna Lee", rows, "simple")
    assert [(one.label, one.text) for one in found.entities] == [("PER", "An"), ("PER", "Lee")]
    assert labelled("in", scores("O", "O", "O")).text() == "  no entity"


def test_padding_before_the_tokens_and_a_prefix_shift_nothing() -> None:
    rows = np.roll(scores("O", "O", "B-LOC", "O"), LENGTH - 4, axis=0)  # [CLS] q: rio [SEP] at the end
    found = labelled("Rio", rows, side="left", prefix="q: ")
    assert [(one.text, one.start, one.end) for one in found.words] == [("Rio", 0, 3)]
    assert [one.label for one in found.entities] == ["LOC"]


def test_entities_do_not_reach_from_one_text_of_a_pair_into_the_other() -> None:
    rows = scores("O", "B-LOC", "O", "I-LOC")
    found = labelled(("Rio", "Rio"), rows)
    assert [(one.text, one.start, one.second) for one in found.entities] == [("Rio", 0, False), ("Rio", 0, True)]


def test_a_text_that_is_cut_has_labels_for_what_was_read() -> None:
    found = labelled("rio " * 30, scores())
    assert len(found.words) == LENGTH - 2


def test_an_answer_lies_in_the_second_text_and_begins_before_it_ends() -> None:
    opened = tokenizer()
    # [CLS] q: ? [SEP] anna(4,5) lee(6) in(7) rio(8) [SEP]
    given = opened.tokens(("q: ?", "Anna Lee in Rio"))
    begins, ends = np.zeros(LENGTH, np.float32), np.zeros(LENGTH, np.float32)
    begins[[1, 4, 8]] = [9.0, 3.0, 4.0]  # the question is no answer; rio is the best start alone
    ends[[2, 6, 8]] = [9.0, 5.0, 0.0]
    found = AnswerPresenter().present({"start_logits": begins, "end_logits": ends}, given)
    first, last = np.exp(begins[4:9]), np.exp(ends[4:9])
    assert (found.answer, found.start, found.end) == ("Anna Lee", 0, 8)
    assert found.score == pytest.approx(first[0] / first.sum() * last[2] / last.sum())
    real_begins, real_ends = np.exp(begins[:10]), np.exp(ends[:10])  # padding is no token
    assert found.none == pytest.approx(1 / real_begins.sum() / real_ends.sum(), rel=1e-5)
    assert (
        AnswerPresenter().present({"start_logits": begins, "end_logits": ends}, opened.tokens(("q:", ""))).answer == ""
    )


def test_a_gap_has_its_best_words() -> None:
    opened = tokenizer(mask_id=3)
    rows = np.zeros((LENGTH, len(PIECES)), np.float32)
    rows[2, PIECES.index("rio")] = 5.0
    rows[2, PIECES.index("lee")] = 4.0
    presenter = FillPresenter(3, opened.decode)
    found = presenter.present({"logits": rows}, opened.tokens("in [MASK] ?"))
    assert [(one.token, one.id) for one in found.gaps[0][:2]] == [("rio", 10), ("lee", 6)]
    assert found.gaps[0][0].score == pytest.approx(np.exp(5) / (np.exp(5) + np.exp(4) + len(PIECES) - 2))
    assert presenter.present({"logits": rows}, opened.tokens("in rio")).text() == "  the text has no mask token"


def test_a_result_in_a_text_needs_the_text() -> None:
    with pytest.raises(InputError, match="the model was given its own inputs"):
        AnswerPresenter().present({"start": np.zeros(3, np.float32), "end": np.zeros(3, np.float32)}, None)
    with pytest.raises(InputError, match="hand in a text"):
        FillPresenter(3, str).present({"logits": np.zeros((3, 4), np.float32)}, Tokens((1,), (0,), 1))


@pytest.mark.parametrize(
    ("misfit", "outputs", "fits"),
    [
        (tokens.misfit, {"logits": (8, 3)}, True),
        (tokens.misfit, {"logits": (3,)}, False),
        (fill.misfit, {"logits": (8, 30)}, True),
        (fill.misfit, {"logits": (8, 30), "hidden": (8, 4)}, False),
        (answer.misfit, {"start_logits": (8,), "end_logits": (8,)}, True),
        (answer.misfit, {"a": (8,), "b": (8,)}, False),
        (answer.misfit, {"start_logits": (8,), "end_logits": (9,)}, False),
    ],
)
def test_which_outputs_a_kind_needs(misfit: Any, outputs: Any, fits: bool) -> None:
    assert (misfit(outputs) is None) == fits


def test_labels_are_of_the_classes_of_each_token() -> None:
    assert kinds.label_count(TaskSpec.of("tokens"), {"logits": (8, 3)}) == 3
    assert kinds.label_count(TaskSpec.of("fill"), {"logits": (8, 30)}) is None


def test_batch_writes_the_columns_that_predict_prints() -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
    from cpupack.runtime.batch.results import Outcome, schema_of, table_of

    opened = tokenizer(mask_id=3)
    zeros = {"start": np.zeros(LENGTH, np.float32), "end": np.zeros(LENGTH, np.float32)}
    results = {
        "tokens": labelled("Anna in Rio", scores("O", "B-PER", "O", "O", "B-LOC")),
        "answer": AnswerPresenter().present(zeros, opened.tokens(("q:", "Anna"))),
        "fill": FillPresenter(3, opened.decode).present(
            {"logits": np.zeros((LENGTH, len(PIECES)), np.float32)}, opened.tokens("in [MASK]")
        ),
    }
    of = Signature((TensorSpec("ids", (LENGTH,), "int64"),), (OutputSpec("logits", (LENGTH, 5)),))
    for kind, result in results.items():
        schema = schema_of(TaskSpec.of(kind), of, pa.string(), {})
        (row,) = table_of(TaskSpec.of(kind), of, [Outcome("a", result)], schema).to_pylist()
        assert row == {"id": "a", "error": None, **result.to_dict()}
