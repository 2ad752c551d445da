"""English sentences that scikit-learn ships: the descriptions of its data sets, cut into sentences.

The package of the model brings scikit-learn, so nothing is downloaded. Calibration and evaluation share no sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MARKUP = re.compile(r":[\w:-]+:`~?([^`]*)`|[`*|_]+")
_FEWEST_LETTERS, _MOST_LETTERS = 20, 2000


def calibration() -> Iterator[str]:
    """Yield every second sentence."""
    yield from _sentences()[0::2]


def evaluation() -> Iterator[str]:
    """Yield the other sentences."""
    yield from _sentences()[1::2]


def _sentences() -> list[str]:
    found: dict[str, None] = {}
    for entry in sorted(files("sklearn.datasets.descr").iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".rst"):
            for paragraph in re.split(r"\n\s*\n", entry.read_text(encoding="utf-8")):
                plain = " ".join(_MARKUP.sub(r"\1", paragraph).split())
                for sentence in _SENTENCE.split(plain):
                    letters = sum(each.isalpha() for each in sentence)
                    if _FEWEST_LETTERS <= letters <= _MOST_LETTERS and letters > 0.6 * len(sentence):
                        found[sentence] = None
    return list(found)
