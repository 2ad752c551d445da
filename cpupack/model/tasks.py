"""What a model's outputs are: the recipe's ``[task]`` checked against their shapes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from cpupack.errors import ModelError
from cpupack.recipe import Task
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks import detection, kinds
from cpupack.runtime.tasks.base import Shapes, are_heads, head_names
from cpupack.runtime.tasks.maps import are_maps
from cpupack.runtime.tasks.segmentation import is_volume
from cpupack.runtime.tasks.spec import CLASSIFICATION, LAST, MASKS, RAW, SETTINGS, TaskSpec, default_kind

_IN_IMAGES = ("detection", "keypoints")
_NUMBERS = ("regression", "keypoints")
"""Kinds of numbers that may be whole."""
_CLASS = ("label", "class", "cls")
"""What is in the name of an output with the class of each box."""
_COUNTED = {"regression": "value", "keypoints": "point", "multilabel": "label", MASKS: "mask"}


def task_of(task: Task | None, signature: Signature) -> TaskSpec:
    """Return the settings of the recipe's task, or of the kind that the outputs' shapes say.

    Raises ModelError where they do not fit the kind, or a setting does not fit them.
    """
    outputs = {each.name: each.result_shape for each in signature.outputs}
    if task is None:
        kind = default_kind(outputs) if all(each.dtype == "float32" for each in signature.outputs) else RAW
        applied = kind == CLASSIFICATION and signature.outputs[0].apply is not None
        return TaskSpec.of(kind, scores="probabilities" if applied else "logits")
    if (problem := kinds.misfit(task.kind, outputs)) is not None:
        raise ModelError(
            f'[task] kind = "{task.kind}" {problem}',
            hint=_remedy(task.kind, signature.outputs)
            or 'set another kind, or "raw" for outputs as they are; docs/how-to/tasks.md says what each kind needs',
        )
    wrong = [each for each in signature.outputs if each.whole is not None and not _holds_classes(task.kind, each)]
    if wrong and task.kind != RAW:
        whole = wrong[0]
        raise ModelError(
            f'[task] kind = "{task.kind}" is of scores or other floats, and the output "{whole.name}" is {whole.dtype}',
            hint=_of_whole(task.kind, whole, alone=len(outputs) == 1),
        )
    for each in signature.outputs:
        if each.apply == "argmax" and task.kind != RAW and not _holds_classes(task.kind, each):
            raise ModelError(
                f'[task] kind = "{task.kind}" is of scores or other floats, and [[output]] makes numbers of classes of '
                f'"{each.name}" (argmax)',
                hint='leave out apply, or set kind = "raw", which gives them as they are',
            )
    if task.kind in _IN_IMAGES and all(len(each.shape) < 3 for each in signature.inputs):
        raise ModelError(
            f'[task] kind = "{task.kind}" has its results in pixels of an image, and the model takes '
            f"{signature.inputs_text()}",
            hint='set "raw" or "regression", which give the numbers as they are',
        )
    given = task.model_dump(exclude={"kind"}, exclude_none=True)
    if "scores" in SETTINGS[task.kind]:
        given |= _scores(task, signature.outputs)
    if task.kind == "detection":
        given["layout"] = _layout(task.layout, outputs)
        if task.angle is not None:
            given.setdefault("box_format", "cxcywh")
        _check_chosen(task, outputs)
    if task.kind == "regression" and are_maps(outputs):
        given["maps"] = True
    if task.kind == "segmentation" and is_volume(signature.outputs[0].result_shape, signature.outputs[0].dtype):
        given["volume"] = True
    if task.kind == MASKS and len(signature.outputs[0].result_shape) == 4:
        given["volume"] = True
    spec = TaskSpec.of(task.kind, **given)
    if (misset := kinds.wrong_setting(spec, outputs)) is not None:
        raise ModelError(f"[task] {misset[0]} {misset[1]}")
    return spec


def with_judged(signature: Signature, task: TaskSpec) -> Signature:
    """Return the signature, of a detector that chooses the class of each box with the note that these are not compared.

    Of a box that is nothing the class is chance. How alike those of objects are is measured of what ``predict`` gives.
    """
    if task.kind != "detection" or task.decoder:
        return signature
    outputs = (dataclasses.replace(each, judged=each.name != detection.LABELS) for each in signature.outputs)
    return dataclasses.replace(signature, outputs=tuple(outputs))


def _holds_classes(kind: str | None, output: OutputSpec) -> bool:
    """Return whether an output of whole numbers is the classes of a segmentation, or the class of each box.

    Truth values ``(n, height, width)`` may be a mask of each class as well as a scan, so they are neither.
    """
    if kind == "detection":
        return output.name == detection.LABELS and output.dtype == "int64"
    return kind == "segmentation" and len(output.result_shape) in ((2,) if output.dtype == "bool" else (2, 3))


def _scores(task: Task, outputs: Sequence[OutputSpec]) -> dict[str, str]:
    """Return the setting ``scores`` where [[output]] makes probabilities of all scores, nothing where of none.

    Boxes beside them may be made shares of the image in the same way, which says nothing of the scores. Raises
    ModelError where the recipe says otherwise, or some scores are made probabilities and others are not.
    """
    beside = task.kind == "detection" and len(outputs) > 1
    scores = [each for each in outputs if not beside or each.name in (detection.SCORES, detection.OBJECTNESS)]
    applied = [each for each in scores if each.apply in ("softmax", "sigmoid")]
    if not applied or task.scores == "probabilities":
        return {}
    if task.scores == "logits":
        raise ModelError(
            f'[task] scores = "logits", but [[output]] applies {applied[0].apply}, which makes probabilities of them',
            hint='leave out apply, or set scores = "probabilities"',
        )
    if plain := [each.name for each in scores if each not in applied]:
        raise ModelError(
            f'[[output]] applies {applied[0].apply} to "{applied[0].name}" and nothing to "{plain[0]}", and [task] '
            "scores is of both",
            hint=f'set apply = "sigmoid" for both; or scores = "probabilities" if those of "{plain[0]}" are so already',
        )
    return {"scores": "probabilities"}


def _of_whole(kind: str, output: OutputSpec, *, alone: bool) -> str:
    """Return what to do with an output of whole numbers, of which a kind knows nothing to make."""
    found = ['set kind = "raw", which gives it as it is']
    if kind in _NUMBERS:
        found.append(f"return it as floats: {output.name}.float()")
    if not alone:
        found.append(f'leave it out: [[output]] name = "{output.name}" with drop = true')
    return "; or ".join(found)


def _remedy(kind: str, specs: Sequence[OutputSpec]) -> str | None:
    """Return which of several outputs to leave out, and which to rename, so that the others fit a kind.

    The class of each box is no output to leave out.
    """
    outputs = {each.name: each.result_shape for each in specs}
    of_maps = kind != "detection"  # its classes are beside boxes and scores, and never in their place
    usable = [each.name for each in specs if each.whole is None or (of_maps and _holds_classes(kind, each))]
    if kind in kinds.ROWS:
        others = [each.name for each in specs if len(each.result_shape) > 1 or each.name not in usable]
        left = [f'name = "{each}" with drop = true' for each in others]
        said = f"leave out what is no row of values, [[output]] tables: {'; '.join(left)}"
        return said if len(left) < len(specs) else None
    wanted = ("boxes", "scores") if kind == "detection" else ("",)
    found = [
        names
        for names in itertools.permutations(usable, len(wanted))
        if kinds.misfit(kind, {new or name: outputs[name] for new, name in zip(wanted, names, strict=True)}) is None
    ]
    if len(outputs) == 1 or not found:
        return None
    names = max(found, key=lambda each: _alike(each, wanted))
    left = [each for each in outputs if each not in names]
    classes = [each for each in left if each not in usable or any(word in each.lower() for word in _CLASS)]
    if kind == "detection" and len(outputs[names[1]]) == 1 and classes:
        if outputs[classes[0]] != outputs[names[1]]:
            return (
                f'"{classes[0]}" may be the class of each box, and is not read: return it with the shape '
                f'{outputs[names[1]]} of "{names[1]}", or the scores of all classes (n, classes) in "scores"'
            )
        names, wanted = (*names, classes[0]), (*wanted, detection.LABELS)
        left.remove(classes[0])
    pairs = zip(names, wanted, strict=True)
    renamed = [f'name = "{old}" with rename = "{new}"' for old, new in pairs if new not in ("", old)]
    dropped = [f'name = "{each}" with drop = true' for each in left]
    several = f" ({len(found)} choices fit; this is one)" if len(found) > 1 else ""
    return f"[[output]] tables: {'; '.join([*renamed, *dropped])}{several}"


def _alike(names: Sequence[str], wanted: Sequence[str]) -> int:
    """Return how well names suit what they would become: logits are no boxes, whatever their shape."""
    words = {"boxes": ("box",), "scores": ("score", "logit", "class", "cls", "conf", "prob")}
    pairs = zip(names, wanted, strict=True)
    return sum(any(word in name.lower() for word in words.get(new, ())) for name, new in pairs)


def _layout(given: str | None, outputs: Shapes) -> str:
    """Return whether each box is a row or a column of a detector's outputs. Raises ModelError where none can tell."""
    found = detection.layout_of(outputs)
    if given is None and found is None:
        (shape,) = outputs.values()
        raise ModelError(
            f"the model's output has shape {shape}: {shape[1]} boxes with {shape[0] - 4} scores each, or {shape[0]} "
            f"boxes with {shape[1] - 4}?",
            hint='set [task] layout = "columns" (a box is a column, as of YOLOv8 and later), or "rows"',
        )
    rows_alone = len(outputs) > 1 or next(iter(outputs.values()))[0] <= 4
    if given is not None and rows_alone and given != found:
        shapes = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
        raise ModelError(f'[task] layout = "{given}", and in {shapes} the boxes are {found}', hint="delete it")
    return given or found or "rows"


def _check_chosen(task: Task, outputs: Shapes) -> None:
    """Raise ModelError for a setting about the scores of all classes where the model gives that of the best alone."""
    given = {"objectness = true": task.objectness, 'background = "last"': task.background == LAST}
    if detection.LABELS in outputs and (wrong := [name for name, is_set in given.items() if is_set]):
        raise ModelError(
            f'[task] {wrong[0]} is about the scores of all classes, and "{detection.LABELS}" has the class that the '
            "model chose",
            hint="delete it: multiply scores in forward, and give a box that is nothing a class below 0",
        )


def names_of_heads(task: TaskSpec, outputs: Shapes) -> tuple[str, ...] | None:
    """Return a name for each value of a model with several heads: those of the outputs. None for other models."""
    several = are_heads(outputs) if task.kind in kinds.ROWS and not task.maps else task.maps and len(outputs) > 1
    return head_names(outputs) if several else None


def check_labels(labels: tuple[str, ...], where: str, task: TaskSpec, outputs: Shapes) -> None:
    """Raise ModelError for labels whose number does not fit the outputs, or that a kind has no use for.

    ``where`` says where the labels are from.
    """
    kind = task.kind
    shapes = ", ".join(str(shape) for shape in outputs.values())
    if kind == "raw":
        raise ModelError(
            f"[model] labels: {where} has {len(labels)} names, but the model's output has shape {shapes}",
            hint='labels name classes or values; set [task] kind, such as "segmentation", to say what the output is'
            + ('; one score is a yes or no: "multilabel" with one label' if list(outputs.values()) == [(1,)] else ""),
        )
    count = kinds.label_count(task, outputs)
    if count is None:
        raise ModelError(f'[model] labels has no use with [task] kind = "{kind}"', hint="delete it")
    if kind in _COUNTED and (twice := [each for each in labels if labels.count(each) > 1]):
        raise ModelError(
            f'[model] labels: {where} has "{twice[0]}" {labels.count(twice[0])} times, and results of kind "{kind}" '
            "are told apart by their names",
            hint="give each a name of its own",
        )
    if count and len(labels) != count:
        raise ModelError(
            f"[model] labels: {where} has {len(labels)} names, but the model's output has shape {shapes}",
            hint=f"give one label for each {_COUNTED.get(kind, 'output class')}, in order: {count}",
        )
