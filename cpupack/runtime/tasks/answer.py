"""The part of a text that answers a question: where it begins and ends."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Outputs, Shapes, in_words
from .of_text import places, text_at, tokens_of
from .scores import softmax

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 15
"""Tokens of an answer at most, as transformers had it."""


@dataclass(frozen=True)
class Answer:
    """``answer`` is the characters from ``start`` to ``end`` of the text that was asked, empty where it has no token.

    ``score`` is the probability of its start times that of its end, among the tokens of that text. ``none`` is that of
    the first token among all tokens: models that were trained on questions without an answer (SQuAD 2) point there.
    """

    answer: str
    score: float
    start: int
    end: int
    none: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        return f"  {self.score:7.2%}  {self.start}-{self.end}  {self.answer}"

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class AnswerPresenter:
    """Makes an ``Answer`` of the scores of each token to be the first, and to be the last of the answer.

    It lies in the second text of a pair, or in the only text.
    """

    left: bool = False
    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: object) -> Answer:
        tokens = tokens_of(frame)
        begins, ends = (
            outputs[name].reshape(-1) for name in _names({key: value.shape for key, value in outputs.items()})
        )
        asked = tokens.text is not None and tokens.text.pair is not None
        found = [one for one in places(tokens, len(begins), left=self.left) if one.second == asked]
        first = len(begins) - len(tokens.ids) if self.left else 0
        real = slice(first, first + len(tokens.ids))
        none = float(softmax(begins[real])[0] * softmax(ends[real])[0])
        if not found:
            return Answer("", 0.0, 0, 0, none)
        rows = [one.row for one in found]
        both = np.triu(np.outer(softmax(begins[rows]), softmax(ends[rows])))
        both -= np.triu(both, LONGEST)
        one, other = np.unravel_index(int(both.argmax()), both.shape)
        start, end = found[int(one)].start, found[int(other)].end
        return Answer(text_at(tokens, start, end, second=asked), float(both[one, other]), start, end, none)


def _names(outputs: Shapes) -> tuple[str, str]:
    """Return the names of the outputs with the scores of the start and of the end."""
    start = next(name for name in outputs if "start" in name)
    return start, next(name for name in outputs if name != start)


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    shapes = [tuple(size for size in shape if size != 1) for shape in outputs.values()]
    if len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 1:
        names = list(outputs)
        if sum("start" in name for name in names) == 1 and sum("end" in name for name in names) == 1:
            return None
    return (
        "needs two outputs of shape (tokens,), with start and end in their names ([[output]] rename); the model has "
        f"{in_words(outputs)}"
    )
