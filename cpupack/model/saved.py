"""Models that were saved as programs: TorchScript files and exported programs. Their weights are in the file."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.arguments import argument_names, with_arguments
from cpupack.model.exported_arguments import arguments_of, take_by_name
from cpupack.model.exported_checks import UnsafeError, check_archive, tensors_only
from cpupack.model.exported_sizes import check_sizes_of_calls
from cpupack.model.leaves import leaves_of
from cpupack.model.one_row import OneRow, blank
from cpupack.model.script_archive import check_sizes, lacks_weights
from cpupack.model.scripted import Scripted, as_module, is_alike
from cpupack.model.user_code import first_line
from cpupack.runtime.files import UNREADABLE
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.tensor_spec import TensorSpec, takes_rows

_BATCH = 2
_UNREADABLE: tuple[type[Exception], ...] = (*UNREADABLE, pickle.UnpicklingError, AttributeError, IndexError)
_PYTHON = "or name the Python module that it was made from: python:FILE.py:factory"
_INSTEAD = _PYTHON.removeprefix("or ")


def load_exported(path: Path, source: str) -> nn.Module:
    """Return the program that ``torch.export.save`` wrote, as a module.

    Raises ModelError for a file that is none, and for a program of one batch size.
    """
    _check_file(path, source)
    try:
        check_archive(path)
        with _quiet(), tensors_only():
            program = torch.export.load(path)
            module = program.module(check_guards=False)
    except UnsafeError as error:
        raise ModelError(
            f"[model] source: {path} is not read, because it would run code: {error}",
            hint=f"get the file from who made it, and export it again if it is yours, {_PYTHON}",
        ) from error
    except Exception as error:  # torch raises errors of many classes for a damaged archive, or one of another version
        if own := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ModelError(
                f"[model] source: {path} cannot be read as an exported program: it holds an object of Python, "
                f"{own[1]}, and to read one would run code",
                hint=f"export it with tensors, tuples and dicts as arguments, and no {own[1]}, {_PYTHON}",
            ) from error
        raise ModelError(
            f"[model] source: {path} cannot be read as an exported program: {first_line(error)}",
            hint=f"write it with torch.export.save of torch {torch.__version__}, {_PYTHON}",
        ) from error
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        fixed = isinstance(value, torch.Tensor) and (not value.ndim or isinstance(value.shape[0], int))
        if node.op == "placeholder" and node.name in names and fixed:
            raise ModelError(
                f"[model] source: {path} was exported for one batch size: the first dimension of its input "
                f"{node.name} is fixed",
                hint="export it again with dynamic_shapes = ({0: torch.export.Dim.AUTO}, ...) and a batch of 2, "
                + _PYTHON,
            )
    # torch refuses to change the mode of such a module, which has none: its graph is of the mode it was saved in.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    arguments = arguments_of(program, module, path)
    take_by_name(module, arguments)
    check_sizes_of_calls(module, program, arguments)
    return module


def load_torchscript(path: Path, source: str, inputs: Sequence[TensorSpec]) -> nn.Module:
    """Return the program of a TorchScript file as a module of Python, which torch.export can follow.

    Raises ModelError for a file that is none, for an operator that is not known, and for a module that does not answer
    as the program does.
    """
    _check_file(path, source)
    try:
        check_sizes(path)
        with _quiet():
            script = torch.jit.load(str(path), map_location="cpu").eval()
    except _UNREADABLE as error:
        if lacks_weights(path):
            raise ModelError(
                f"[model] source: {path} was saved after torch.jit.optimize_for_inference, which leaves the weights "
                "out of the file: torch itself cannot read it",
                hint=f"save the program before that call: torch.jit.freeze(script).save(FILE.pt); {_PYTHON}",
            ) from error
        raise ModelError(
            f"[model] source: {path} cannot be read as TorchScript: {first_line(error)}", hint=_exported_instead(path)
        ) from error
    if "aten::_pack_padded_sequence" in str(script.inlined_graph):
        raise ModelError(
            f"[model] source: the program in {path} packs its sequences (pack_padded_sequence), and TorchScript has "
            "them in a form whose sizes follow from the lengths of a whole batch",
            hint=f"a Python module may pack its sequences: {_INSTEAD}",
        )
    if quantized := re.search(r"\bquantized::\w+", str(script.inlined_graph)):
        raise ModelError(
            f"[model] source: the program in {path} is already quantized ({quantized[0]}); cpupack takes the FP32 "
            "model and quantizes it",
            hint=f"save the program before it is quantized, {_PYTHON}",
        )
    hint = (
        "export the Python module: torch.export.save(torch.export.export(module, ...), FILE.pt2) and source = "
        f'"export:FILE.pt2"; {_PYTHON}'
    )
    try:
        with _quiet(), torch.no_grad():
            module = as_module(script)
            difference = _difference(script, module, source, inputs)
    except Exception as error:  # torch raises errors of many classes for operators
        raise ModelError(
            f"[model] source: the TorchScript in {path} cannot be turned into a graph: {first_line(error)}", hint=hint
        ) from error
    if difference is not None:
        raise ModelError(
            f"[model] source: the graph of the TorchScript in {path} answers otherwise: {difference}", hint=hint
        )
    return module


def _difference(script: Any, module: Scripted, source: str, inputs: Sequence[TensorSpec]) -> str | None:
    """Return how a module differs from the program that it is made of, None where it does not, or the program does not
    run. The names of fields are taken from the program's answer.
    """
    try:
        names = argument_names(module, inputs, source)
        rows = torch.from_numpy(random_rows(inputs, np.random.default_rng(0), _BATCH))
        one_row = OneRow(nn.Identity(), inputs, names)
        ordered, named = with_arguments(names, one_row.tensors(rows if takes_rows(inputs) else blank(inputs, _BATCH)))
        arguments = module.bound(*ordered, **named)
        expected, again = script(*arguments), script(*arguments)
    except Exception:  # noqa: BLE001 - a name that is wrong, or values that it does not take: said where the model runs
        return None
    module.name_fields(expected)
    wanted, repeated = leaves_of(expected).tensors, leaves_of(again).tensors
    found = leaves_of(module.run(arguments)).tensors
    if wanted.keys() != found.keys():
        return f"it gives {', '.join(found)}, and the program {', '.join(wanted)}"
    for name, each in wanted.items():
        if is_alike(each, repeated[name]) and not is_alike(each, found[name]):
            return f"its output {name} differs"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings and logs about a file from the user, who gets the error."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_file(path: Path, source: str) -> None:
    if not path.is_file():
        raise ModelError(f"[model] source: {path} does not exist", hint="paths are relative to the recipe")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ModelError(f"[model] source: {path} cannot be read: {error.strerror or error}") from error
    if not zipfile.is_zipfile(path):
        raise ModelError(f"[model] source: {path} is no archive that torch has saved, as {source} should be")


def _exported_instead(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNREADABLE:
        return "the archive is damaged: copy or save it again"
    exported = any("exported_program" in name or name.endswith("models/model.json") for name in names)
    return f'it is an exported program: source = "export:{path.name}"' if exported else _INSTEAD
