"""Checks that ``[evaluation]`` has what its gates need: labels, targets or a metric."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from cpupack.recipe.metrics import known_metric
from cpupack.recipe.problems import Problem
from cpupack.recipe.view import Check, View
from cpupack.runtime.files import UNREADABLE

LABEL_GATES = ("max_drop", "min_top1")
METRIC_GATES = ("min_metric", "max_metric", "max_metric_drop")
MEANING_GATES = ("min_cosine", "min_worst_cosine", "min_spearman", "min_recall")
"""Gates that compare embeddings."""
OTHER_GATES = (*MEANING_GATES, "min_agreement", "min_decisions", "min_sqnr_db", "min_speedup")
"""Gates that work with any data."""

WITHOUT_INTERVAL = ("min_worst_cosine", "min_spearman")
"""Gates on what is no mean over samples: the worst of them, and an order of pairs."""

_TABLE = "evaluation"


def _data(view: View) -> Iterator[Problem]:
    source = view(_TABLE, "source")
    if source is None:
        for key in LABEL_GATES:
            if view.given(_TABLE, key):
                yield Problem((_TABLE, key), "needs labelled data; set evaluation.source")
        if view.given(_TABLE, "metric"):
            yield Problem((_TABLE, "metric"), "needs data with targets; set evaluation.source")
        for key in ("samples", "skip_corrupt"):
            if view.given(_TABLE, key):
                yield Problem((_TABLE, key), "has no effect without evaluation.source")
        return
    kind, _, place = source.partition(":")
    if kind == "synthetic":
        yield Problem(
            (_TABLE, "source"),
            "synthetic data has no labels; leave source out (" + ", ".join(OTHER_GATES) + " do not need it)",
        )
    elif kind == "arrays":
        yield from _arrays(view, view.path(place))
    elif kind == "images":
        yield from _images(view, view.path(place))


def _arrays(view: View, path: Path) -> Iterator[Problem]:
    names = _array_names(path)
    if names is None:
        return  # another check reports a missing file, and reading the data reports a damaged one
    has = f"{path} has {', '.join(names) or 'none'}"
    for key in LABEL_GATES:
        if view.given(_TABLE, key) and "labels" not in names:
            yield Problem((_TABLE, key), f'needs an array "labels", but {has}')
    if view.given(_TABLE, "metric") and not {"labels", "targets"} & set(names):
        yield Problem((_TABLE, "metric"), f'needs an array "targets" (or "labels"), but {has}')


def _array_names(path: Path) -> list[str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except UNREADABLE:
        return None


def _images(view: View, directory: Path) -> Iterator[Problem]:
    metric = str(view(_TABLE, "metric"))
    known = known_metric(metric)
    if known is not None and not known.folders and not view.given(_TABLE, "targets"):
        yield Problem((_TABLE, "metric"), f"needs evaluation.targets = {known.needed} for a folder of images")
    if not directory.is_dir() or any(each.is_dir() for each in directory.iterdir()):
        return
    of_folders = known.folders if known is not None else metric.startswith("python:")  # others are no metrics
    keys = LABEL_GATES if view.given(_TABLE, "targets") or not of_folders else (*LABEL_GATES, "metric")
    for key in keys:
        if view.given(_TABLE, key):
            yield Problem((_TABLE, key), f"needs a folder for each class, but {directory} has no folders")


def _metric(view: View) -> Iterator[Problem]:
    if not view.given(_TABLE, "metric"):
        for key in (*METRIC_GATES, "metric_goal"):
            if view.given(_TABLE, key):
                yield Problem((_TABLE, key), "has no effect without evaluation.metric")
        return
    known = known_metric(str(view(_TABLE, "metric")))
    if known is not None and view.given(_TABLE, "metric_goal"):
        yield Problem((_TABLE, "metric_goal"), f'has no effect: "{known.goal}" is that of {view(_TABLE, "metric")}')
    goal = view(_TABLE, "metric_goal") if known is None else known.goal
    wrong, right = ("max_metric", "min_metric") if goal == "max" else ("min_metric", "max_metric")
    if view.given(_TABLE, wrong):
        better = "larger" if goal == "max" else "smaller"
        yield Problem(
            (_TABLE, wrong), f'is a bound in the wrong direction: with metric_goal = "{goal}" {better} is better', right
        )


def _confident(view: View) -> Iterator[Problem]:
    gates = (*LABEL_GATES, *OTHER_GATES, *METRIC_GATES)
    if view.given(_TABLE, "confident") and not any(view.given(_TABLE, key) for key in gates):
        yield Problem((_TABLE, "confident"), "has no effect without a gate; set one of " + ", ".join(gates))
    if view.given(_TABLE, "confident") and view(_TABLE, "confident"):
        for key in WITHOUT_INTERVAL:
            if view.given(_TABLE, key):
                yield Problem((_TABLE, key), "has no interval, by which confident = true judges; leave one of them out")


CHECKS: tuple[Check, ...] = (_data, _metric, _confident)
