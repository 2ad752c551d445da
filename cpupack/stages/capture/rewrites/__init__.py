"""Rewrites of a canonical graph, each one function with a name. The order is that of this list.

A rewrite takes the graph, changes it in place, and says whether it did. What nothing reads any more is swept up after
each.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

Rewrite = Callable[[fx.GraphModule], bool]

REWRITES: tuple[Rewrite, ...] = ()
