"""English sentences that scikit-learn ships: the summaries in its documentation, and descriptions of its data sets.

The package of the model brings scikit-learn, so nothing is downloaded. Calibration and evaluation share no sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MARKUP = re.compile(r":[\w:-]+:`~?([^`]*)`|[`*|_]+")
_FEWEST_LETTERS, _MOST_LETTERS = 20, 2000
_MOST = 640
"""Sentences, spread over all that there are."""


def calibration() -> Iterator[str]:
    """Yield every second sentence."""
    yield from _sentences()[0::2]


def evaluation() -> Iterator[str]:
    """Yield the other sentences."""
    yield from _sentences()[1::2]


def _sentences() -> list[str]:
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    found: dict[str, None] = {}
    for path in sorted((root / "datasets" / "descr").glob("*.rst")):
        found |= dict.fromkeys(_cut(path.read_text(encoding="utf-8")))
    for path in sorted(root.glob("*/*.py")):
        if not path.name.startswith("test_"):
            for text in _summaries(path):
                found |= dict.fromkeys(_cut(text))
    texts = list(found)
    step = max(1, len(texts) // _MOST)
    return texts[::step][:_MOST]


def _summaries(path: Path) -> Iterator[str]:
    """Yield the first paragraph of the documentation of each class and function in a file, which is not run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text.split("\n\n")[0]


def _cut(text: str) -> Iterator[str]:
    """Yield the sentences of a text in reStructuredText, without its markup."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE.split(" ".join(_MARKUP.sub(r"\1", paragraph).split())):
            letters = sum(each.isalpha() for each in sentence)
            if _FEWEST_LETTERS <= letters <= _MOST_LETTERS and letters > 0.6 * len(sentence):
                yield sentence
