"""What a result of a graph is computed from."""

from __future__ import annotations

from torch import fx


def needed(result: fx.Node) -> set[fx.Node]:
    """Return the calls and inputs that a result depends on, itself among them."""
    found, pending = {result}, [result]
    while pending:
        for each in pending.pop().all_input_nodes:
            if each not in found:
                found.add(each)
                pending.append(each)
    return found
