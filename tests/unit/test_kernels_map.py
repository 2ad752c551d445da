"""The C sources keep to the rules of kernels/README.md, and its drawing of the includes is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
README = (KERNELS / "README.md").read_text()
SETS = ("avx2/avx2.c", "vnni/vnni.c", "amx/amx.c", "neon/neon.c", "neon/dotprod.c", "neon/i8mm.c")
RAISING = {
    "amx/amx.c": ("TARGET_AVX512_BEGIN", "TARGET_AVX512_END"),
    "neon/dotprod.c": ("TARGET_DOTPROD_BEGIN", "TARGET_END"),
    "neon/i8mm.c": ("TARGET_I8MM_BEGIN", "TARGET_END"),
    "vnni/vnni.c": ("TARGET_AVX512_BEGIN", "TARGET_AVX512_END"),
}
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
    places = {name: head.index(f" {Path(name).name}") + 1 for name in SETS}
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
    assert not re.search(r"TARGET_\w*(BEGIN|END)", code)
    assert not re.search(r"\b_?Pragma|#pragma (?!GCC unroll)", code)
    assert any(name in includes(each) for each in SETS)


def test_only_these_files_raise_the_instruction_set_and_to_their_end() -> None:
    raising = [name for name in SOURCES if re.search(r"^TARGET_\w*(BEGIN|END)$", text(name), re.MULTILINE)]
    assert raising == list(RAISING)
    for name, (begin, end) in RAISING.items():
        assert len(re.findall(rf"^{begin}$", text(name), re.MULTILINE)) == 1
        assert text(name).endswith(f"\n{end}\n")


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_short_and_say_what_they_are(name: str) -> None:
    code = text(name)
    assert code.count("\n") <= 400
    assert code.startswith(("/* ", "#define _GNU_SOURCE\n"))  # the sources of a header that says it


@pytest.mark.parametrize("width", ["avx2", "avx512", "neon"])
def test_all_vectors_define_what_operators_use(width: str) -> None:
    shared = [name for name in SOURCES if name.startswith(("operators/", "image/")) and name.endswith(".inc")]
    used = {each for name in shared for each in re.findall(r"\b[vf]_[a-z]\w*(?=\()", text(name))}
    assert len(used) > 40
    defined = re.findall(
        r"(?:#define |INLINE \w+ |^(?:F_)?(?:ONE|TWO)\()([vf]_\w+)", text(f"{width}/vectors.h"), re.MULTILINE
    )
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
