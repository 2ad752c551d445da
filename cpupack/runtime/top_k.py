"""How many classes the command line shows."""

from __future__ import annotations

from .errors import InputError
from .tasks.spec import CLASSIFICATION

DEFAULT_TOP_K = 5


def shown_classes(asked: int | None, kind: str) -> int:
    """Return how many classes ``--top-k`` asks for, of a task. Raises InputError for a task that has none."""
    if asked is None:
        return DEFAULT_TOP_K
    if kind != CLASSIFICATION:
        raise InputError(f'--top-k is for classifications; this model\'s task is "{kind}"')
    return asked
