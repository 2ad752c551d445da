"""Writes the files of a wheel. Equal contents give equal bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import PackagingError
from cpupack.templates import render


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write an ``.npz`` file like ``numpy.savez``, but with a fixed order and fixed dates, and without pickles."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sorted(arrays.items()):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def write_labels(path: Path, labels: tuple[str, ...]) -> None:
    """Write one label on each line. Raises PackagingError for a label that is not one line of text."""
    for index, label in enumerate(labels):
        if len(label.splitlines()) != 1:
            raise PackagingError(f"label {index} is {label!r}: not one line of text", hint="fix [model] labels")
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def write_python(path: Path, template: str, context: dict[str, Any]) -> None:
    """Write a rendered module. Raises PackagingError if it is not valid Python."""
    text = render(template, **context)
    try:
        compile(text, path.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PackagingError(f"rendered {path.name} is not Python: {error}", hint="this is a bug in cpupack") from error
    path.write_text(text, encoding="utf-8")
