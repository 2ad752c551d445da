"""Checks of ``[task]``: each setting belongs to a kind, and a kind of labels and images needs them."""

from __future__ import annotations

from collections.abc import Iterator

from cpupack.recipe.gates import MEANING_GATES
from cpupack.recipe.problems import Problem
from cpupack.recipe.view import Check, View
from cpupack.runtime.tasks.spec import MASKS, OF_EACH_LABEL, SETTINGS

_TABLE = "task"
_GATES = ("max_drop", "min_top1", "min_agreement")
"""Gates that compare classes of whole inputs."""
_ALIKE = ("segmentation", MASKS, "detection", "embedding")
"""Kinds whose results are alike without classes of whole inputs: pixels, boxes and directions."""


def _settings(view: View) -> Iterator[Problem]:
    if not view.given(_TABLE):
        return
    kind = view(_TABLE, "kind")
    for key in sorted({key for keys in SETTINGS.values() for key in keys}):
        if view.given(_TABLE, key) and key not in SETTINGS[kind]:
            having = ", ".join(f'"{each}"' for each, keys in SETTINGS.items() if key in keys)
            yield Problem((_TABLE, key), f'has no effect with kind = "{kind}"; it belongs to {having}')
    if view.given(_TABLE, "angle") and not (view(_TABLE, "box_format") or "cxcywh").startswith("cxcywh"):
        yield Problem((_TABLE, "box_format"), 'with an angle it is "cxcywh" or "cxcywh_normalized"')
    if isinstance(view(_TABLE, "threshold"), list) and kind in SETTINGS and kind not in OF_EACH_LABEL:
        having = ", ".join(f'"{each}"' for each in OF_EACH_LABEL)
        yield Problem((_TABLE, "threshold"), f'is one number with kind = "{kind}"; lists belong to {having}')


def _classes(view: View) -> Iterator[Problem]:
    if not view.given(_TABLE):
        return
    kind = view(_TABLE, "kind")
    if kind == "classification":
        return
    for key in _GATES[:2] if kind in _ALIKE else _GATES:
        if view.given("evaluation", key) and view("evaluation", key) != "off":
            yield Problem(
                ("evaluation", key), f'compares classes of a classification, and [task] kind is "{kind}"; set metric'
            )


def _embeddings(view: View) -> Iterator[Problem]:
    """Check that gates on embeddings are set for a model that gives them."""
    kind = view(_TABLE, "kind") if view.given(_TABLE) else None
    derived = view("model", "source").startswith("sentence-transformers:")
    if kind == "embedding" or (kind is None and derived):
        return
    for key in MEANING_GATES:
        if view.given("evaluation", key):
            yield Problem(("evaluation", key), 'compares embeddings; set [task] kind = "embedding"')


CHECKS: tuple[Check, ...] = (_settings, _classes, _embeddings)
