"""Writes docs/reference/api.md from the docstrings of what ``cpupack`` exports: ``python docs/generate_api.py``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpupack
from cpupack import errors

_WIDTH = 120
PAGE = Path(__file__).parent / "reference" / "api.md"
_INTRO = """\
# Python API

<!-- Generated from docstrings by `python docs/generate_api.py`; a test keeps it current and runs the examples. -->

`import cpupack` does not load torch. The first `cpupack.build` does.

```python
import cpupack

recipe = cpupack.load_recipe("colors.toml", ["calibration.samples=12"])
for result in cpupack.build(recipe, out="dist", options=cpupack.BuildOptions(tune=False)):
    print(result.wheel.path, result.facts["report"]["sqnr_db"], result.warnings)
    assert not cpupack.inspect(result.wheel.path).problems
```

Without `progress`, a build reports only warnings. To get more, pass a `progress`:

```python
import cpupack


class Log(cpupack.SilentProgress):
    def note(self, text: str) -> None:
        print(text)


progress = Log()
cpupack.build("colors.toml", out="dist", options=cpupack.BuildOptions(tune=False), progress=progress)
print(progress.times_s, progress.warnings)
```
"""


def render() -> str:
    """Return the page: examples, then every public name, functions first."""
    names = sorted(cpupack.__all__, key=lambda name: (inspect.isclass(getattr(cpupack, name)), name.lower()))
    return "\n".join([_INTRO, *(_section(name, getattr(cpupack, name)) for name in names), _errors()])


def _section(name: str, what: Any) -> str:
    parts = [f"## cpupack.{name}", _text(what)]
    if inspect.isfunction(what):
        parts.insert(1, f"```python\n{_signature(name, what)}\n```")
    else:
        fields = [f"- `{field}: {kind}{_default(what, field)}`" for field, kind in _fields(what)]
        methods = [f"- `{_signature(method, member)}`: {_text(member)}" for method, member in _methods(what)]
        parts += [
            "\n".join([title, "", *items]) for title, items in (("Fields:", fields), ("Methods:", methods)) if items
        ]
    return "\n\n".join(parts) + "\n"


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parameters = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        kind = "" if each.annotation is each.empty else f": {each.annotation}"
        parameters.append(f"{each.name}{kind}" + ("" if each.default is each.empty else f" = {each.default!r}"))
    flat = f"{name}({', '.join(parameters)}) -> {signature.return_annotation}"
    if len(flat) <= _WIDTH:
        return flat
    return "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f") -> {signature.return_annotation}"])


def _text(what: Any) -> str:
    return inspect.cleandoc(what.__doc__ or "").replace("``", "`")


def _fields(what: type) -> Iterator[tuple[str, str]]:
    for name, kind in inspect.get_annotations(what).items():
        if not name.startswith(("_", "model_config")):
            yield name, str(kind)


def _default(what: type, field: str) -> str:
    if not dataclasses.is_dataclass(what):
        return ""
    default = next(each.default for each in dataclasses.fields(what) if each.name == field)
    return "" if default is dataclasses.MISSING else f" = {default!r}"


def _methods(what: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(what).items():
        if inspect.isfunction(member) and not name.startswith("_") and member.__doc__:
            yield name, member


def _errors() -> str:
    rows = [
        f"| `cpupack.errors.{each.__name__}` | {each.exit_code} | {_text(each).split(' (exit code')[0]} |"
        for each in vars(errors).values()
        if inspect.isclass(each) and each is not errors.CpupackError
    ]
    return "## Errors\n\n| class | exit code of the command | when |\n|---|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
