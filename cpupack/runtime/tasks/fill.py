"""Words for the gaps of a text: the best tokens in the place of each mask token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Outputs, Shapes, in_words, only
from .of_text import tokens_of
from .scores import best_first, softmax

if TYPE_CHECKING:
    from PIL import Image

_BEST = 5


@dataclass(frozen=True)
class Guess:
    """One token for a gap. ``score`` is its probability (0..1) among all tokens."""

    token: str
    id: int
    score: float


@dataclass(frozen=True)
class Filled:
    """``gaps`` has for each mask token of a text its best tokens, the most probable first."""

    gaps: tuple[tuple[Guess, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return {"gaps": [[dataclasses.asdict(one) for one in gap] for gap in self.gaps]}

    def text(self) -> str:
        if not self.gaps:
            return "  the text has no mask token"
        return "\n\n".join(
            "\n".join(f"  {rank:>2}  {one.score:7.2%}  {one.token}" for rank, one in enumerate(gap, start=1))
            for gap in self.gaps
        )

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class FillPresenter:
    """Makes a ``Filled`` of a row of scores for each token of the text, one for each token of the vocabulary.

    ``mask`` is the id of the mask token, and ``decode`` makes text of ids.
    """

    mask: int
    decode: Callable[[list[int]], str]
    left: bool = False
    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: object) -> Filled:
        tokens, scores = tokens_of(frame), only(outputs)
        first = len(scores) - len(tokens.ids) if self.left else 0
        gaps = []
        for number, token in enumerate(tokens.ids):
            if token != self.mask:
                continue
            chances = softmax(scores[first + number])
            best = best_first(chances, _BEST).tolist()
            gaps.append(tuple(Guess(self.decode([each]), each, float(chances[each])) for each in best))
        return Filled(tuple(gaps))


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if len(outputs) == 1 and len(only(outputs)) == 2 and only(outputs)[1] > 1:
        return None
    return f"needs one output of shape (tokens, vocabulary); the model has {in_words(outputs)}"
