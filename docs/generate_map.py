"""Writes the map of packages in docs/explanation/architecture.md from their imports: ``python docs/generate_map.py``.

tests/unit/test_imports.py keeps it current, and lets no import go up in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cpupack

PAGE = Path(__file__).parent / "explanation" / "architecture.md"
ROOT = Path(cpupack.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}
BEGIN, END = "<!-- map: written by docs/generate_map.py -->\n", "<!-- end of the map -->\n"

Groups = Sequence[tuple[str, tuple[str, ...]]]

BUILDER: Groups = (
    ("What a user calls and sees", ("entry", "cli", "api", "commands", "comparison", "doctor", "summary", "console")),
    ("The order of a build", ("pipeline",)),
    ("Verbs", ("stages",)),
    ("Questions about a model, and work on data and wheels",
     ("build_facts", "bundle", "cache", "deploy", "diagnostics", "layers", "lock", "recovery", "sensitivity", "signing",
      "sources", "wheel", "workers", "peers")),
    ("Nouns, graphs and users' code", ("artifacts", "graph", "metric", "model", "quantized_engine", "tasks")),
    ("The recipe and what it is built for", ("recipe", "targets", "templates")),
    ("Ships in every wheel", ("runtime",)),
)  # fmt: skip
"""Packages of the builder from top to bottom: each imports its own group and those below."""

FOUNDATION = (
    *("accuracy", "effort", "errors", "interrupts", "layout", "meaning", "operators", "output", "progress", "scratch"),
    "size_terms",
    "statistics",
    "torch_noise",
)
"""What any package may import. Of cpupack these import nothing but the runtime."""

RUNTIME: Groups = (
    (
        "Commands",
        (
            "cli",
            "on_ray",
            "batch",
            "info",
            "predicting",
            "stream_command",
            "text_command",
            "top_k",
            "tune",
            "capacity",
            "pages",
            "export",
            "serve",
        ),
    ),
    ("Measuring", ("bench",)),
    ("The model as an object", ("verify", "runner", "spread", "feed", "intake")),
    ("What its outputs mean", ("tasks",)),
    ("Deciding how to run", ("plan",)),
    (
        "Running",
        (
            "stream",
            "chunks",
            "decoding",
            "items",
            "text",
            "rows",
            "random_rows",
            "signature",
            "tensor_spec",
            "proposals",
            "images",
            "engine",
            "open_sizes",
            "open_inputs",
        ),
    ),
    ("The machine and the package", ("host", "handlers", "labels", "manifest", "record", "threads")),
    (
        "What all rooms may import",
        (
            "accuracy",
            "arguments",
            "arrays",
            "errors",
            "extras",
            "files",
            "golden",
            "magic",
            "names",
            "output",
            "plain",
            "warn",
            "writing",
        ),
    ),
)
"""Rooms of the runtime from top to bottom: each imports its own group and those below."""


def imports(file: str) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a file imports, wherever in it."""
    package = ["cpupack", *Path(file).parent.parts]
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def arrows(under: str = "") -> dict[str, set[str]]:
    """Return which of the packages and modules right below ``under`` each of them imports.

    ``__init__`` and ``__main__`` are left out: they hand out the names of others.
    """
    depth = len(Path(under).parts)
    inside = {file: Path(file).parts[depth].removesuffix(".py") for file in SOURCES if file.startswith(under)}
    places = set(inside.values()) - {"__init__", "__main__"}
    found: dict[str, set[str]] = {place: set() for place in places}
    for file, place in inside.items():
        for name in imports(file) if place in places else ():
            parts = name.split(".")
            if parts[: depth + 1] == ["cpupack", *Path(under).parts] and len(parts) > depth + 1:
                found[place] |= {parts[depth + 1]} & (places - {place})
    return found


def reached(found: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """Return everything that ``start`` imports, itself or through others."""
    seen: set[str] = set()
    left = [start]
    while left:
        new = set(found.get(left.pop(), ())) - seen
        seen |= new
        left += new
    return seen


def render() -> str:
    """Return the map: a drawing and a table of the builder, and the same of the runtime."""
    return "\n".join([
        "An arrow is an import. An arrow that follows from others is not drawn. "
        "Any package may import these, so they are left out: "
        + ", ".join(f"`{name}`" for name in FOUNDATION) + ".\n",
        _drawing(BUILDER, arrows()),
        _table([*BUILDER, ("What any package may import", FOUNDATION)], ""),
        "The rooms of the runtime, drawn in the same way:\n",
        _drawing(RUNTIME[:-1], arrows("runtime")),
        _table(RUNTIME, "runtime/"),
    ])  # fmt: skip


def _drawing(groups: Groups, found: Mapping[str, set[str]]) -> str:
    drawn = {name for _, names in groups for name in names}
    among = {name: found[name] & drawn for name in drawn}
    lines = ["```mermaid", "flowchart TB"]
    for number, (title, names) in enumerate(groups):
        lines += [f'  subgraph g{number}["{title}"]', *(f"    {name}" for name in names), "  end"]
    for name in (name for _, names in groups for name in names):
        needed = {
            each for each in among[name] if not any(each in reached(among, other) for other in among[name] - {each})
        }
        lines += [f"  {name} --> {each}" for each in sorted(needed)]
    return "\n".join([*lines, "```", ""])


def _table(groups: Groups, under: str) -> str:
    rows = ["| place | holds |", "|---|---|"]
    for _, names in groups:
        for name in names:
            package = f"{under}{name}/__init__.py"
            file = package if package in SOURCES else f"{under}{name}.py"
            first = (ast.get_docstring(SOURCES[file]) or "").partition("\n")[0].replace("``", "`").replace("|", "\\|")
            rows.append(f"| `{under}{name}{'/' if file == package else '.py'}` | {first} |")
    return "\n".join([*rows, ""])


def with_map(page: str) -> str:
    """Return the text of the page with the map of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
