"""kernels/engine/program.h, boxes.h and recurrent.h as Python sees them: constants, enums, structs and layouts."""

from __future__ import annotations

import re
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "kernels" / "engine" / "program.h"
_TYPES = {"int32_t": "i4", "int64_t": "i8", "float": "f4"}


def _text() -> str:
    texts = [path.read_text() for path in (PATH, *map(PATH.with_name, ("boxes.h", "recurrent.h")))]
    return re.sub(r"/\*.*?\*/", "", "\n".join(texts), flags=re.DOTALL)


def constant(name: str) -> int:
    """Return the number that ``#define name`` gives."""
    (found,) = re.findall(rf"^#define {name} (\w+)\s*$", _text(), flags=re.MULTILINE)
    return int(found, 0)


def enum(name: str) -> dict[str, int]:
    """Return the members of ``enum cpupack_name`` without the prefix that ends at the first underscore."""
    (body,) = re.findall(rf"enum cpupack_{name} {{(.*?)}};", _text(), flags=re.DOTALL)
    return {member: int(value) for member, value in re.findall(r"\b[A-Z]+_(\w+) = (\d+)", body)}


def fields(name: str) -> list[tuple[str, str, int]]:
    """Return the members of ``struct cpupack_name`` in order: name, numpy's type, and how many.

    Members of a member that is a struct have its name in front.
    """
    (body,) = re.findall(rf"struct cpupack_{name} {{(.*?)}};", _text(), flags=re.DOTALL)
    found = []
    for declaration in filter(None, (each.strip() for each in body.split(";"))):
        kind, names = declaration.split(None, 1)
        if kind == "struct":
            inner, names = names.split(None, 1)
            own = fields(inner.removeprefix("cpupack_"))
            found += [
                (f"{each.strip()}_{word}", type_, count) for each in names.split(",") for word, type_, count in own
            ]
            continue
        for member in names.split(","):
            word, size = re.fullmatch(r"\s*(\w+)(?:\[(\w+)\])?\s*", member).groups()  # type: ignore[union-attr]
            found.append((word, _TYPES[kind], _number(size or "1")))
    return found


def _number(text: str) -> int:
    return int(text) if text.isdigit() else constant(text)


def struct_format(name: str) -> str:
    """Return ``struct cpupack_name`` for Python's module ``struct``: little-endian, without padding."""
    letters = {"i4": "i", "i8": "q", "f4": "f"}
    return "<" + "".join(letters[kind] * count for _, kind, count in fields(name))


def depthwise_layouts() -> dict[tuple[int, int], tuple[int, int]]:
    """Return outputs and groups of each kernel and stride (``CPUPACK_DEPTHWISE_LAYOUTS``)."""
    (line,) = re.findall(r"^#define CPUPACK_DEPTHWISE_LAYOUTS\(F\) (.*)$", _text(), flags=re.MULTILINE)
    numbers = [tuple(map(int, each.split(","))) for each in re.findall(r"F\(([\d, ]+)\)", line)]
    return {(kernel, stride): (outputs, groups) for kernel, stride, outputs, groups in numbers}
