"""A label for each word of a text, and the entities that words with one label make together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .of_text import places, text_at, tokens_of
from .scores import softmax
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image

OUTSIDE = "O"
"""The label of words that belong to no entity."""


@dataclass(frozen=True)
class Span:
    """A part of a text with a label. ``start`` and ``end`` count characters, ``score`` is a probability (0..1).

    ``second`` says that it is in the second text of a pair.
    """

    label: str
    score: float
    start: int
    end: int
    text: str
    second: bool = False


@dataclass(frozen=True)
class Labelled:
    """``words`` are all words of a text with their labels, ``entities`` those that have a label other than ``O``.

    Words that follow each other with ``B-X``, ``I-X``, ``I-X`` are one entity ``X``, and so are words with the same
    label without such a letter.
    """

    entities: tuple[Span, ...]
    words: tuple[Span, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: [dataclasses.asdict(one) for one in getattr(self, name)] for name in ("entities", "words")}

    def text(self) -> str:
        if not self.entities:
            return "  no entity"
        width = max(len(one.label) for one in self.entities)
        return "\n".join(
            f"  {one.score:7.2%}  {one.label:<{width}}  {one.start}-{one.end}  {one.text}" for one in self.entities
        )

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class TokensPresenter:
    """Makes a ``Labelled`` of one row of scores for each token.

    With ``aggregation = "first"`` a word has the label of its first token, as models are trained whose other tokens
    have none. With ``"simple"`` each token is a word.
    """

    spec: TaskSpec
    labels: Labels
    left: bool = False
    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: object) -> Labelled:
        tokens, scores = tokens_of(frame), only(outputs)
        found = places(tokens, len(scores), left=self.left)
        if self.spec.aggregation == "first":
            words = [list(group) for _, group in groupby(found, key=lambda one: (one.second, one.word))]
        else:
            words = [[one] for one in found]
        spans = []
        for parts in words:
            chances = softmax(scores[parts[0].row])
            best = int(np.argmax(chances))
            start, end, second = parts[0].start, parts[-1].end, parts[0].second
            text = text_at(tokens, start, end, second=second)
            spans.append(Span(label_of(self.labels, best), float(chances[best]), start, end, text, second))
        entities = tuple(
            _joined(group, text_at(tokens, group[0].start, group[-1].end, second=group[0].second))
            for group in _groups(spans)
        )
        return Labelled(entities, tuple(spans))


def _groups(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield the spans of each entity. A ``B-`` begins a new one."""
    group: list[Span] = []
    for one in spans:
        begins, name = _tag(one.label)
        if group and (begins or name != _tag(group[-1].label)[1] or one.second != group[-1].second):
            yield group
            group = []
        if one.label != OUTSIDE:
            group.append(one)
    if group:
        yield group


def _tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and the entity's label."""
    return label.startswith("B-"), label[2:] if label[:2] in {"B-", "I-"} else label


def _joined(group: list[Span], text: str) -> Span:
    first = group[0]
    score = float(np.mean([one.score for one in group]))
    return Span(_tag(first.label)[1], score, first.start, group[-1].end, text, first.second)


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if len(outputs) == 1 and len(only(outputs)) == 2 and only(outputs)[1] > 1:
        return None
    return f"needs one output of shape (tokens, labels); the model has {in_words(outputs)}"
