"""Checks that need more than one key or the file system: keys that contradict each other, and missing files.

Every check reads the recipe through a ``View``, which raises for values that are already reported as wrong. So each
mistake is reported once, and the other checks still run. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from cpupack.recipe import WEIGHT_FILES, gates, open_sizes, quantize_checks, signature_checks, tasks, text_checks
from cpupack.recipe.lines import Key
from cpupack.recipe.metrics import METRICS, NAMES, TARGETS, known_metric, nearest_of
from cpupack.recipe.names import KNOWN_LABELS, import_name, why_not_importable
from cpupack.recipe.problems import Problem, nearest
from cpupack.recipe.view import Check, UnusableError, View

MODEL_SOURCES = ("torchvision", "timm", "python", "export", "torchscript", *text_checks.DIRECTORIES)
DATA_SOURCES = ("images", "text", "arrays", "python", "synthetic")

COMMON_LICENSES = (
    *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC0-1.0"),
    *("GPL-2.0-only", "GPL-3.0-only", "GPL-3.0-or-later", "LGPL-3.0-only", "AGPL-3.0-only", "MPL-2.0", "ISC"),
)
"""What a misspelt licence probably means."""
LONGEST_LABEL = 32
"""Of an address, by the specification of core metadata."""

_ENUM_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def cross_problems(data: Mapping[str, Any], found: list[Problem], directory: Path) -> list[Problem]:
    """Return the contradictions in ``data``. ``found`` are the problems that are already known."""
    problems = list(_nul_characters(data, ()))
    view = View(data, {problem.key for problem in (*found, *problems)}, directory)
    for check in CHECKS:
        # One at a time: problems that a check yielded before it met an unusable value are still valid.
        try:
            for problem in check(view):
                problems.append(problem)
        except UnusableError:
            continue
        except OSError as error:  # a name that is too long, links in a circle, a directory that may not be read
            problems.append(
                Problem(_key_of(data, str(error.filename), ()), f"{error.filename}: {error.strerror or error}")
            )
    return problems


def _key_of(value: Any, path: str, key: Key) -> Key:
    """Return the key whose text ends in the file of ``path``, the empty key where there is none."""
    if isinstance(value, str):
        return key if value.endswith(Path(path).name) else ()
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return next((found for name, each in inner if (found := _key_of(each, path, (*key, name)))), ())


def _nul_characters(value: Any, key: Key) -> Iterator[Problem]:
    """Yield a problem for each text with a NUL character: no path can have one."""
    if isinstance(value, str) and "\0" in value:
        yield Problem(key, "has a NUL character")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _nul_characters(inner, (*key, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nul_characters(inner, (*key, index))


def _names(view: View) -> Iterator[Problem]:
    name = import_name(view("package", "name"))
    if (why := why_not_importable(name)) is not None:
        yield Problem(("package", "name"), f'gives the import name "{name}", {why}')


def _one_line(view: View) -> Iterator[Problem]:
    """Check the texts that become lines of the wheel's metadata: one with a line break would forge another line."""
    texts: dict[Key, str] = {("package", "description"): view("package", "description")}
    texts |= {("package", "authors", index): text for index, text in enumerate(view("package", "authors"))}
    for key, text in texts.items():
        if len(text.splitlines()) > 1:
            yield Problem(key, "must be a single line of text; it has a character that begins another")


def _license(view: View) -> Iterator[Problem]:
    text = view("package", "license")
    if text is None:
        return
    try:
        canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        message = "must be an SPDX expression (spdx.org/licenses), or LicenseRef-NAME for a licence of your own, not"
        yield Problem(("package", "license"), f'{message} "{text}"', nearest(text, COMMON_LICENSES))


def _urls(view: View) -> Iterator[Problem]:
    for label in view("package", "urls"):
        if not 1 <= len(label) <= LONGEST_LABEL or not label.strip() or not label.isprintable():
            yield Problem(("package", "urls"), f'the label "{label}" must have 1 to {LONGEST_LABEL} characters')


def _model_source(view: View) -> Iterator[Problem]:
    source = view("model", "source")
    kind, colon, rest = source.partition(":")
    if kind not in MODEL_SOURCES or not rest:
        near = nearest(kind, MODEL_SOURCES)
        message = (
            "must be torchvision:NAME, timm:NAME, python:FILE.py:factory, python:pkg.mod:factory, export:FILE.pt2, "
            "torchscript:FILE.pt, transformers:DIR or sentence-transformers:DIR"
        )
        yield Problem(("model", "source"), f'{message}, not "{source}"', f"{near}:{rest}" if colon and near else None)
    elif kind == "python":
        yield from _factory(view, ("model", "source"), rest)
    elif kind in text_checks.DIRECTORIES:
        yield from text_checks.directory_source(view, kind, rest)
    elif kind in {"export", "torchscript"}:
        yield from _file(view, ("model", "source"), rest)
        if view("model", "kwargs"):
            yield Problem(("model", "kwargs"), "has no effect: a saved program takes no arguments")


def _factory(view: View, key: Key, spec: str) -> Iterator[Problem]:
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        message = "must be python:FILE.py:factory or python:pkg.mod:factory with the name of a function or class"
        yield Problem(key, f'{message}, not "python:{spec}"')
    elif place.endswith(".py"):
        yield from _file(view, key, place)
    elif not _MODULE.fullmatch(place):
        yield Problem(key, f'"{place}" is neither a file ending in .py nor the dotted name of a module')


def _file(view: View, key: Key, name: str) -> Iterator[Problem]:
    path = view.path(name)
    if path.is_file():
        return
    if path.exists():
        what = "a directory" if path.is_dir() else "a pipe or a device"
        yield Problem(key, f"{path} is {what}, not a file")
        return
    yield Problem(key, f"{path} does not exist", _neighbour(path, name, directories=False))


def _neighbour(path: Path, name: str, *, directories: bool) -> str | None:
    if not path.parent.is_dir():
        return None
    others = [other.name for other in path.parent.iterdir() if other.is_dir() == directories]
    near = nearest(path.name, others, cutoff=0.7)
    return (Path(name).parent / near).as_posix() if near else None


def _weights(view: View) -> Iterator[Problem]:
    weights = view("model", "weights")
    kind = nearest(view("model", "source").partition(":")[0], MODEL_SOURCES)
    if kind is None:
        return
    key = ("model", "weights")
    words = {
        "torchvision": ("random",),
        "timm": ("pretrained", "random"),
        "python": ("factory", "random"),
        "transformers": ("pretrained", "random"),
        "sentence-transformers": ("pretrained",),
    }.get(kind, ("factory",))
    if kind in {"export", "torchscript"}:
        if weights != "factory":
            yield Problem(key, f'must be "factory", as {kind}:FILE has its own weights, not "{weights}"', "factory")
    elif weights.endswith(WEIGHT_FILES) and kind not in text_checks.DIRECTORIES:
        yield from _file(view, key, weights)
    elif weights not in words and not (kind == "torchvision" and _ENUM_NAME.fullmatch(weights)):
        enum = "a torchvision name such as IMAGENET1K_V1, " if kind == "torchvision" else ""
        named = " or ".join(f'"{word}"' for word in words)
        expected = f"{enum}{named}"
        if kind not in text_checks.DIRECTORIES:  # whose weights are in the directory
            expected += f" or a file ending in {', '.join(WEIGHT_FILES)}"
        yield Problem(key, f'must be {expected}, not "{weights}"', nearest(weights, words))


def _weights_options(view: View) -> Iterator[Problem]:
    weights, kind = (
        view("model", "weights"),
        nearest(view("model", "source").partition(":")[0], MODEL_SOURCES),
    )
    downloaded = (
        kind in {"torchvision", "timm", "transformers"} and weights != "random" and not weights.endswith(WEIGHT_FILES)
    )
    if view.given("model", "weights_fallback") and not downloaded:
        yield Problem(("model", "weights_fallback"), f'has no effect: weights = "{weights}" downloads nothing')
    if view.given("model", "sha256") and weights in {"random", "factory", "pretrained"}:
        yield Problem(
            ("model", "sha256"), f'has no effect: with weights = "{weights}" cpupack reads no file that it could check'
        )


def _state(view: View) -> Iterator[Problem]:
    state, weights = view("model", "state"), view("model", "weights")
    if state is not None and not weights.endswith(WEIGHT_FILES):
        yield Problem(("model", "state"), f'has no effect: weights = "{weights}" is not a checkpoint file')


def _labels(view: View) -> Iterator[Problem]:
    labels = view("model", "labels")
    if isinstance(labels, list):
        for index, label in enumerate(labels):
            if len(label.splitlines()) != 1 or not label.strip():
                yield Problem(("model", "labels", index), "must be one line of text")
    elif labels is not None and labels not in KNOWN_LABELS:
        near = nearest(labels, KNOWN_LABELS, cutoff=0.75)
        if near is not None and not view.path(labels).is_file():
            yield Problem(("model", "labels"), f'"{labels}" is not a file', near)
        else:
            yield from _file(view, ("model", "labels"), labels)


def _calibration(view: View) -> Iterator[Problem]:
    if view.given("calibration"):
        yield from _data_source(view, "calibration")


def _evaluation(view: View) -> Iterator[Problem]:
    source = view("evaluation", "source")
    if source is not None and source != "synthetic":
        yield from _data_source(view, "evaluation")
    metric = view("evaluation", "metric")
    if metric is not None:
        kind, _, spec = metric.partition(":")
        if kind == "python":
            yield from _factory(view, ("evaluation", "metric"), spec)
        elif known_metric(metric) is None:
            message = f'must be {", ".join(NAMES)}, recall@K or python:FILE.py:function, not "{metric}"'
            yield Problem(("evaluation", "metric"), message, nearest_of(metric))
    yield from _targets(view)


def _targets(view: View) -> Iterator[Problem]:
    targets, key = view("evaluation", "targets"), ("evaluation", "targets")
    if targets is None:
        return
    kind, _, rest = targets.partition(":")
    if kind not in TARGETS or not rest:
        *forms, last = [f"{name}:{what}" for name, what in TARGETS.items()]
        yield Problem(key, f'must be {", ".join(forms)} or {last}, not "{targets}"')
        return
    metric, source = view("evaluation", "metric"), view("evaluation", "source")
    known = known_metric(metric) if metric is not None else None
    if metric is None:
        near = next(name for name, each in METRICS.items() if kind in each.targets)
        yield Problem(key, f'has no effect without evaluation.metric, such as "{near}"')
    elif known is not None and kind not in known.targets:
        needed = known.needed + (", or with class folders" if known.folders else "")
        yield Problem(key, f'is {kind}:, and the metric "{metric}" compares with {needed}')
    if source is not None and not source.startswith("images:"):
        yield Problem(key, f"belongs to a folder of images (images:DIR); {source} has its own targets")
    if TARGETS[kind] == "DIR":
        yield from _directory(view, key, kind, rest)
    else:
        yield from _file(view, key, rest)


def _data_source(view: View, table: str) -> Iterator[Problem]:
    source, key = view(table, "source"), (table, "source")
    kind, colon, rest = source.partition(":")
    if kind not in DATA_SOURCES or bool(rest) != (kind != "synthetic") or (kind == "synthetic" and colon):
        near = nearest(kind, DATA_SOURCES)
        message = "must be images:DIR, text:FILE, arrays:FILE.npz, python:FILE.py:factory or synthetic"
        fixed = near if near == "synthetic" else f"{near}:{rest}"
        yield Problem(key, f'{message}, not "{source}"', fixed if near and (rest or near == "synthetic") else None)
        return
    if kind == "images":
        yield from _directory(view, key, kind, rest)
        if (why := signature_checks.why_no_images(view)) is not None:
            yield Problem(key, why)
    elif kind == "text":
        if (problem := text_checks.place_problem(view, key, rest, directory=False)) is not None:
            yield problem
        if not view.given("tokenizer") and view("model", "source").partition(":")[0] not in text_checks.DIRECTORIES:
            yield Problem(key, "is text, and the recipe has no [tokenizer] that makes inputs of it")
    elif kind == "arrays":
        yield from _file(view, key, rest)
    elif kind == "python":
        yield from _factory(view, key, rest)
    if kind != "images" and view(table, "skip_corrupt"):
        yield Problem((table, "skip_corrupt"), f'has no effect: source = "{source}" reads no image files')


def _directory(view: View, key: Key, kind: str, name: str) -> Iterator[Problem]:
    path = view.path(name)
    if path.is_file():
        yield Problem(key, f"{path} is a file, not a directory of {kind}")
    elif not path.is_dir():
        near = _neighbour(path, name, directories=True)
        yield Problem(key, f"{path} does not exist", f"{kind}:{near}" if near else None)


def _duplicates(view: View) -> Iterator[Problem]:
    for key in (("target", "cpu"), ("tune", "batch_sizes"), ("tune", "threads"), ("quantize", "skip")):
        try:
            values = view(*key)
        except UnusableError:
            continue
        yield from _repeated(key, enumerate(values if isinstance(values, list) else []))


def _repeated(key: Key, items: Any) -> Iterator[Problem]:
    seen = set()
    for index, value in items:
        if value in seen:
            yield Problem((*key, index), f"{value!r} appears twice".replace("'", '"'))
        seen.add(value)


def _fuse(view: View) -> Iterator[Problem]:
    chains = view("fuse", "modules")
    seen: dict[str, int] = {}
    for index, chain in enumerate(chains if isinstance(chains, list) else []):
        for place, module in enumerate(chain):
            if module in seen:
                yield Problem(("fuse", "modules", index, place), f'"{module}" is already in chain {seen[module]}')
            seen.setdefault(module, index)


CHECKS: tuple[Check, ...] = (
    _names,
    _one_line,
    _license,
    _urls,
    _model_source,
    _weights,
    _weights_options,
    _state,
    _labels,
    *signature_checks.CHECKS,
    *open_sizes.CHECKS,
    *text_checks.CHECKS,
    *quantize_checks.CHECKS,
    _calibration,
    _evaluation,
    *gates.CHECKS,
    *tasks.CHECKS,
    _duplicates,
    _fuse,
)
