"""Maps class folders to class indices: which output of the model a folder of images belongs to."""

from __future__ import annotations

from collections import Counter

from cpupack.errors import CalibrationError
from cpupack.recipe.labels import LabelsError, read_labels
from cpupack.recipe.names import KNOWN_LABELS
from cpupack.sources.request import Request

_LISTED = 5


def class_indices(folders: list[str], request: Request) -> dict[str, int]:
    """Return the class index of each folder.

    If all folders are named like ``[model] labels``, each gets the index of its label. Otherwise the sorted names are
    numbered from zero, as torchvision's ImageFolder does; there must then be one folder for every label. Raises
    CalibrationError when neither is possible.
    """
    labels = labels_of(request)
    by_order = {name: index for index, name in enumerate(sorted(folders))}
    if labels is None:
        _warn_of_numbers(by_order, request)
        return by_order
    counts = Counter(labels)
    strangers = [name for name in sorted(folders) if name not in counts]
    if not strangers:
        double = [name for name in sorted(folders) if counts[name] > 1]
        if double and len(folders) != len(labels):
            raise CalibrationError(
                f"{request.spec}: {counts[double[0]]} labels are named {double[0]!r} like the class folder"
            )
        return {name: labels.index(name) for name in folders}
    if len(folders) != len(labels):
        listed = ", ".join(strangers[:_LISTED]) + (" ..." if len(strangers) > _LISTED else "")
        raise CalibrationError(
            f"{request.spec}: {len(folders)} class folders for {len(labels)} labels; folders without a label: {listed}",
            hint="give the folders the names in [model] labels, or make one folder for each label, in sorted order",
        )
    _warn_of_numbers(by_order, request)
    return by_order


def labels_of(request: Request) -> list[str] | None:
    """Return the labels of the model or the recipe, None without. Raises CalibrationError for an unreadable file."""
    if request.labels is not None:
        return list(request.labels)
    labels = request.loaded.recipe.model.labels
    if labels is None or isinstance(labels, list):
        return labels
    if labels in KNOWN_LABELS:
        from cpupack.model.sources import known_labels  # imported here, because it imports torchvision

        return list(known_labels(labels))
    path = request.loaded.resolve(labels)
    try:
        return list(read_labels(path))
    except LabelsError as error:
        raise CalibrationError(f"[model] labels: {error}") from error


def _warn_of_numbers(indices: dict[str, int], request: Request) -> None:
    wrong = [name for name, index in indices.items() if name.isdecimal() and int(name) != index]
    if wrong and all(name.isdecimal() for name in indices):
        request.progress.warn(
            f"{request.spec}: class folders are named by numbers but sorted as text, so folder {wrong[0]} is class "
            f"{indices[wrong[0]]}; if the model has another order, list the folder names in [model] labels"
        )
