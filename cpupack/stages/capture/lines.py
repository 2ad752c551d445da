"""Where in the user's code an exported call was made."""

from __future__ import annotations

import re

from torch import fx

from cpupack.model.user_code import is_library


def line_of(node: fx.Node) -> str:
    """Return the user's line that made a call, in brackets, "" where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', node.meta.get("stack_trace") or "")
    theirs = [frame for frame in frames if not is_library(frame[0])]
    return f" ({theirs[-1][0]}:{theirs[-1][1]}: {theirs[-1][2]})" if theirs else ""


def scope_of(node: fx.Node) -> str:
    """Return the name of the user's module that made a call."""
    scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return (scopes[-1] if scopes else "") or "the model"
