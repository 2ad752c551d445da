"""Lines of keys in awkward TOML; tomli is the oracle for which keys there are."""

import pytest
import tomli

from cpupack.recipe.lines import key_lines, split_key

AWKWARD = '''\
# [not.a.table]
top = 1 # = not a key
"quoted key" = 'a # b'
'lit.eral' = "\\"escaped\\" = 1"
a.b."c.d" = 1
a . e = 2

[table] # [other]
multi = """
[no]
no = 1 \\"""
still""""
after = 2
literal = \'\'\'
no = 'x'
'\'\'\'\'
list = [ # [
  1, "]", # ],
  [2, 3],
  { x = 1, y.z = [4] },
]
date = 1979-05-27 07:32:00
inline = { k = "}", "q" = { deep = [] } }

  [ table . sub ]
  indented = true

[[many]]
n = 1
[[many.inner]]
m = 1
[[many.inner]]
m = 2
[[many]]
n = 2
[many.tail]
t = 1
'''


def walk(value: object, key: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Return the path of everything in a parsed document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {key} if key else set()
    for part, item in inside:
        found |= walk(item, (*key, part))
    return found


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(AWKWARD.splitlines(), 1) if line.strip().startswith(text))


def test_every_key_of_an_awkward_document_is_found() -> None:
    assert set(key_lines(AWKWARD)) == walk(tomli.loads(AWKWARD))


@pytest.mark.parametrize(
    ("key", "begins"),
    [
        (("top",), "top = 1"),
        (("quoted key",), '"quoted key"'),
        (("lit.eral",), "'lit.eral'"),
        (("a",), "a.b"),
        (("a", "b", "c.d"), "a.b"),
        (("a", "e"), "a . e"),
        (("table",), "[table]"),
        (("table", "multi"), "multi ="),
        (("table", "after"), "after ="),
        (("table", "literal"), "literal ="),
        (("table", "list"), "list ="),
        (("table", "list", 1), '1, "]"'),
        (("table", "list", 2, 1), "[2, 3]"),
        (("table", "list", 3, "y", "z", 0), "{ x = 1"),
        (("table", "inline", "q", "deep"), "inline ="),
        (("table", "sub"), "[ table . sub ]"),
        (("table", "sub", "indented"), "indented"),
        (("many", 0, "n"), "n = 1"),
        (("many", 0, "inner", 1, "m"), "m = 2"),
        (("many", 1, "n"), "n = 2"),
        (("many", 1, "tail"), "[many.tail]"),
    ],
)
def test_line(key: tuple[str | int, ...], begins: str) -> None:
    assert key_lines(AWKWARD)[key] == line_of(begins)


def test_windows_line_ends() -> None:
    assert key_lines("a = 1\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 2, ("b", "c"): 3}


def test_a_header_after_its_own_subtable_is_the_tables_line() -> None:
    assert key_lines("[a.b]\nc = 1\n[a]\nd = 1\n")[("a",)] == 3


def test_empty_document() -> None:
    assert key_lines("\n# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "parts", "rest"),
    [
        ("a=1", ("a",), "=1"),
        ("a.b = 1", ("a", "b"), " = 1"),
        ('a . "b=c"=1', ("a", "b=c"), "=1"),
        ("'x.y'", ("x.y",), ""),
    ],
)
def test_split_key(text: str, parts: tuple[str, ...], rest: str) -> None:
    found, end = split_key(text)
    assert (found, text[end:]) == (parts, rest)


@pytest.mark.parametrize("text", ["", "=1", ".a=1", "a.=1", '"open'])
def test_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="not TOML"):
        split_key(text)
