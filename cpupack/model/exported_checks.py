"""What a file of ``torch.export.save`` must not hold: torch would run it as code while it reads the file.

torch unpickles constants and example inputs, evaluates the text of sizes as Python, and writes names into the source of
a function. A file from somebody else is data, so all of that is looked at before. That a graph calls nothing but
operators is checked by torch itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOST_JSON_BYTES = 256 * 2**20
_REFUSED = {
    "opaque_obj": "a pickle of any object",
    "aotinductor/": "compiled code",
    "executorch/": "a compiled program",
}
"""Parts of names in an archive that torch unpickles or loads as a library."""
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_NAME = re.compile(r"([A-Za-z_]\w*)?")
_TEXT = re.compile(r"[\w.+-]{0,64}")
_FUNCTIONS = {"floor", "ceiling", "sqrt", "log", "exp", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh"}
_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Tuple),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)


class UnsafeError(Exception):
    """The file would run code."""


def check_archive(path: Path) -> None:
    """Raise UnsafeError for an archive that would run code while torch reads it. Errors of zipfile and JSON pass."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            for part, what in _REFUSED.items():
                if part in info.filename:
                    raise UnsafeError(f"{info.filename} is {what}")
            if info.filename.endswith(".json"):
                if info.file_size > _MOST_JSON_BYTES:
                    raise UnsafeError(f"{info.filename} has {info.file_size} bytes")
                _check(json.loads(archive.read(info)), info.filename)


def _check(value: Any, where: str) -> None:
    if isinstance(value, list):
        for each in value:
            _check(each, where)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key == "metadata":
                continue
            if key == "expr_str":
                _check_expression(each, where)
            elif key == "name":
                _check_name(each, where)
            elif key == "forward_arg_names":
                for name in each or ():
                    _check_name(name, where)
            elif key == "in_spec":
                for name in _keywords(each):
                    _check_name(name, where)
            _check(each, where)


def _check_name(name: Any, where: str) -> None:
    if isinstance(name, str) and not _NAME.fullmatch(name):
        raise UnsafeError(f"{where} has a name that is none: {name[:60]!r}")


def _keywords(spec: Any) -> Iterator[Any]:
    """Yield the names of a call's keyword arguments from the text of its tree."""
    if isinstance(spec, str) and spec:
        for child in json.loads(spec)[1]["children_spec"][1:]:
            context = child["context"]
            yield from (json.loads(context) if isinstance(context, str) else context) or ()


def _check_expression(text: Any, where: str) -> None:
    """Take calls of sympy's classes with numbers, and with names of symbols. sympy evaluates the text as Python."""
    wrong = UnsafeError(f"{where} has a size that is no expression of numbers and symbols: {str(text)[:60]!r}")
    try:
        tree = ast.parse(str(text).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise wrong from error
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or (isinstance(node, ast.Name) and "__" in node.id):
            raise wrong
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and not _is_word(node.value):
            raise wrong
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if not called[:1].isupper() and called not in _FUNCTIONS:
                raise wrong


def _is_word(text: str | bytes) -> bool:
    return isinstance(text, str) and "__" not in text and bool(_TEXT.fullmatch(text))


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let torch.load read tensors alone, also where torch itself asks for more."""
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before
