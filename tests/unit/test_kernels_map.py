"""The C sources keep to the rules of kernels/README.md, and its drawing of the includes is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
README = (KERNELS / "README.md").read_text()
SETS = ("avx2/avx2.c", "vnni/vnni.c", "amx/amx.c")
SOURCES = sorted(str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*.*") if path.suffix in {".c", ".h", ".inc"})


def text(name: str) -> str:
    return (KERNELS / name).read_text()


def includes(name: str) -> list[str]:
    """Return what a file includes of this directory, in order."""
    return re.findall(r'^#include "([^"]+)"', text(name), re.MULTILINE)


def drawn() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return what the README says: of the instruction sets, and of the other files."""
    (block,) = re.findall(r"## What includes what.*?```text\n(.*?)```", README, re.DOTALL)
    table, rest = block.split("\n\n")
    head, *rows = table.splitlines()
    places = {name: head.index(Path(name).name) for name in SETS}
    sets = {name: [row.split()[0] for row in rows if row[at : at + 1] == "x"] for name, at in places.items()}
    others = dict(line.split(None, 1) for line in rest.splitlines())
    return sets, {name: names.split(", ") for name, names in others.items()}


def test_the_drawing_of_the_includes_is_true() -> None:
    sets, others = drawn()
    assert sets == {name: includes(name) for name in SETS}
    assert others == {name: includes(name) for name in SOURCES if name not in SETS and includes(name)}


@pytest.mark.parametrize("name", [each for each in SOURCES if each.endswith(".inc")])
def test_code_that_is_included_includes_nothing_and_raises_nothing(name: str) -> None:
    code = text(name)
    assert "#include" not in code
    assert "TARGET_AVX512" not in code
    assert not re.search(r"\b_?Pragma|#pragma (?!GCC unroll)", code)
    assert any(name in includes(each) for each in SETS)


def test_only_two_files_raise_the_instruction_set() -> None:
    raising = [name for name in SOURCES if re.search(r"^TARGET_AVX512_(BEGIN|END)$", text(name), re.MULTILINE)]
    assert raising == ["amx/amx.c", "vnni/vnni.c"]
    for name in raising:
        assert len(re.findall(r"^TARGET_AVX512_BEGIN$", text(name), re.MULTILINE)) == 1
        assert text(name).endswith("\nTARGET_AVX512_END\n")


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_short_and_say_what_they_are(name: str) -> None:
    code = text(name)
    assert code.count("\n") <= 400
    assert code.startswith(("/* ", "#define _GNU_SOURCE\n"))  # the sources of a header that says it


@pytest.mark.parametrize("width", ["avx2", "avx512"])
def test_both_vectors_define_what_operators_use(width: str) -> None:
    shared = [name for name in SOURCES if name.startswith(("operators/", "image/")) and name.endswith(".inc")]
    used = {each for name in shared for each in re.findall(r"\b[vf]_[a-z]\w*(?=\()", text(name))}
    assert len(used) > 40
    defined = re.findall(r"(?:#define |INLINE \w+ )([vf]_\w+)", text(f"{width}/vectors.h"))
    assert used <= set(defined)


def test_every_directory_and_symbol_of_the_map_exists() -> None:
    (table,) = re.findall(r"## Where things are\n\n(.*?)\n\n", README, re.DOTALL)
    directories = re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)
    assert sorted(directories) == sorted({name.split("/")[0] for name in SOURCES})
    for row in table.splitlines()[2:]:
        (directory,) = re.findall(r"^\| `(\w+)/`", row)
        for name in re.findall(r"`(\w+\.\w+)`", row):
            assert (KERNELS / directory / name).is_file(), row
    everything = "\n".join(map(text, SOURCES))
    (symbols,) = re.findall(r"## What an instruction set defines.*?\n\n(\|.*?)\n\n", README, re.DOTALL)
    for row in symbols.splitlines()[2:]:
        for symbol in re.findall(r"`(?:struct )?(\w+)`", row.split("|")[1]):
            assert re.search(rf"\b{symbol}\b", everything), symbol
