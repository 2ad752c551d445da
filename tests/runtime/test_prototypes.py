"""The types of the kernels' functions are those of the C headers."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from cpupack.runtime.engine import library
from cpupack.runtime.engine.prototypes import PROTOTYPES, declare

KERNELS = Path(__file__).parents[2] / "kernels"
OF_C = {"void": None, "int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}


def of_c(declared: str) -> object:
    """Return the ctypes type of a C result or parameter, such as ``const void *input`` or ``int64_t batch``."""
    if "*" in declared:
        return ctypes.c_void_p
    return OF_C[declared.removeprefix("const ").split()[0]]


def test_every_exported_function_has_the_types_of_its_header() -> None:
    found = {}
    for header in KERNELS.rglob("*.h"):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.S)
        for result, name, given in re.findall(r"^([a-z][\w ]*[ *])(cpupack_\w+)\(([^)]*)\);", text, flags=re.M):
            text_result = result.split() == ["const", "char", "*"]
            arguments = () if given == "void" else tuple(of_c(each) for each in given.split(","))
            found[name] = (ctypes.c_char_p if text_result else of_c(result), arguments)
    assert found == PROTOTYPES


def test_a_library_of_another_version_is_told_from_one_that_fits(tmp_path: Path) -> None:
    if library.describe()["problem"] is not None:
        pytest.skip("needs the native kernels")
    declare(library.open_library())
    with pytest.raises(AttributeError, match="cpupack_isa"):
        declare(ctypes.CDLL(None))
