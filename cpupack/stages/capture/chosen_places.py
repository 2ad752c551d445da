"""Rows whose places a mask gives, computed for all of them: ``idx, top = torch.where(mask)``.

Mixtral, and whoever writes experts as it does, takes the tokens that chose an expert, ``x[top]``, and the weights of
their choices, ``weights[top, idx]``, and adds the results where they came from, ``out.index_add_(0, top, y)``. How many
rows that are depends on the values. So each place of the mask is a row here: what is computed of ``x[top]`` alone is
computed once for each token, and a choice that the mask has not adds zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from cpupack.graph.needed import needed
from cpupack.stages.capture.chosen_rows import is_by_row, with_rows
from cpupack.stages.capture.export import Exported, is_dynamic

_ATEN = torch.ops.aten
_SAME = frozenset({_ATEN.reshape.default, _ATEN.view.default, _ATEN._unsafe_view.default})
_TAKES = frozenset({_ATEN.index.Tensor, _ATEN.index_select.default})
_PUTS = frozenset({_ATEN.index_add.default, _ATEN.index_put.default, _ATEN.index_copy.default})
_KEPT = frozenset({_ATEN.clone.default, _ATEN.to.dtype, _ATEN.squeeze.dim, _ATEN.squeeze.default, _ATEN.alias.default})
Dims = tuple[int, ...]
"""Dimensions of a mask, in the order in which rows have them."""


def compute_all_places(exported: Exported) -> Exported:
    """Rewrite each update of rows by places that a mask gives, where what is put there is made row by row."""
    result = exported.result
    for found in list(exported.graph.nodes):
        places = _places_of(found)
        if places is None or any(each in needed(found) for each in places.numbers):
            continue
        while (put := next((each for each in exported.graph.nodes if _is_put(each, places)), None)) is not None:
            between = _between(put, places)
            if between is None:
                break
            new = _Rows(places, put).update(between)
            result = new if put is result else result
            put.replace_all_uses_with(new)
            exported.graph.erase_node(put)
    exported.graph.eliminate_dead_code()
    exported.graph.lint()
    return replace(exported, result=result)


@dataclass(frozen=True)
class _Places:
    """The numbers of the places where ``mask`` is true, by the dimension that each is of. ``order`` is that of rows."""

    mask: fx.Node
    numbers: dict[fx.Node, int]
    order: Dims

    def size(self, dim: int) -> Any:
        return self.mask.meta["val"].shape[dim]


def _places_of(node: fx.Node) -> _Places | None:
    """Return what ``torch.where(mask)`` and ``mask.nonzero()`` give, None for another call."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    mask = node.args[0]
    numbers: dict[fx.Node, int] = {}
    if node.target in {_ATEN.where.default, _ATEN.nonzero_numpy.default}:
        numbers = {each: int(each.args[1]) for each in node.users}  # type: ignore[arg-type]  # of a list
    elif node.target is _ATEN.nonzero.default:
        for each in node.users:
            if each.target is _ATEN.select.int and each.args[1] in {1, -1}:
                numbers[each] = int(each.args[2])  # type: ignore[arg-type]  # a number
            elif each.target is _ATEN.unbind.int and each.args[1] in {1, -1}:
                numbers |= {part: int(part.args[1]) for part in each.users}  # type: ignore[arg-type]  # of a list
            elif each.target in {_ATEN.squeeze.dim, _ATEN.squeeze.default, _ATEN.flatten.using_ints, *_SAME}:
                numbers[each] = 0
                if mask.meta["val"].ndim != 1:
                    return None
            elif each.target is not _ATEN.sym_size.int:  # which checks read
                return None
    value = mask.meta.get("val")
    if not numbers or not isinstance(value, torch.Tensor) or (value.dtype != torch.bool and not _is_one_hot(mask)):
        return None
    for each in list(numbers):  # what only copies them
        for user in each.users:
            if user.target in _KEPT and user.meta["val"].ndim == 1:
                numbers[user] = numbers[each]
    moving = [axis for axis, size in enumerate(value.shape) if is_dynamic(size)]
    if len(moving) != 1:
        return None
    return _Places(mask, numbers, (*moving, *(axis for axis in range(value.ndim) if axis not in moving)))


def _is_one_hot(mask: fx.Node) -> bool:
    return any(each.target is _ATEN.one_hot.default for each in needed(mask))


def _is_put(node: fx.Node, places: _Places) -> bool:
    return node.target in _PUTS and any(each in places.numbers for each in _numbers_of(node))


def _numbers_of(node: fx.Node) -> list[Any]:
    """Return the indices of a call that takes rows, or puts them."""
    given: Any = node.args
    if node.target in {_ATEN.index.Tensor, _ATEN.index_put.default}:
        return list(given[1])
    return [given[2]] if given[1] == 0 else [None]


def _between(put: fx.Node, places: _Places) -> list[fx.Node] | None:
    """Return the calls from the rows that are taken to what is put, in order; None where one looks at several rows."""
    into, values = put.args[0], put.args[2 if put.target is _ATEN.index_put.default else 3]
    dims = _dims_of(put, places)
    if not dims or not isinstance(values, fx.Node) or not isinstance(into, fx.Node) or into in places.numbers:
        return None
    adds = _adds(put)
    if adds is None or (not adds and len(dims) < len(places.order) and not _chooses_once(places.mask)):
        return None
    held, new = into.meta["val"], values.meta["val"]
    if new.ndim != held.ndim - len(dims) + 1 or new.dtype != held.dtype or not held.is_floating_point():
        return None
    if list(new.shape[1:]) != list(held.shape[len(dims) :]):
        return None
    before = needed(values)
    inside: set[fx.Node] = set()
    leading: set[fx.Node] = set()
    for node in put.graph.nodes:
        if node not in before or node in places.numbers:
            continue
        if node.target in _TAKES and any(each in places.numbers for each in _numbers_of(node)):
            ones = _ones_before(node)
            if _dims_of(node, places) is None or node.args[0] in inside:
                return None
            (leading if ones else inside).add(node)
        elif any(each in leading for each in node.all_input_nodes):
            if node.target not in _SAME or not _has_rows_first(node):
                return None
            inside.add(node)
        elif any(each in inside for each in node.all_input_nodes):
            if not is_by_row(node, inside):
                return None
            inside.add(node)
        elif any(each in places.numbers for each in node.all_input_nodes):
            return None
    return [each for each in put.graph.nodes if each in inside or each in leading] if values in inside else None


def _adds(put: fx.Node) -> bool | None:
    """Whether rows are added to what is there; None where they are scaled, too."""
    if put.target is _ATEN.index_add.default:
        return None if len(put.args) > 4 or put.kwargs else True
    return bool(put.args[3]) if len(put.args) > 3 and put.target is _ATEN.index_put.default else False


def _chooses_once(mask: fx.Node) -> bool:
    """Whether no two places of a mask have a row in common: the k largest are different ones."""
    before = needed(mask)
    if any(each.target is _ATEN.one_hot.default for each in before):
        before = before | {mask}
    chosen = [each for each in {*before, mask} if each.target in {_ATEN.eq.Scalar, _ATEN.one_hot.default}]
    return len(chosen) == 1 and any(
        each.op == "call_function"
        and each.args[1:] == (1,)
        and getattr(each.args[0], "target", None) is _ATEN.topk.default
        for each in chosen[0].all_input_nodes
    )


def _ones_before(node: fx.Node) -> int:
    """Return how many dimensions of one element a call has before the rows that it takes: ``x[None, top]``."""
    numbers = _numbers_of(node)
    return next(place for place, each in enumerate(numbers) if each is not None) if node.target in _TAKES else 0


def _dims_of(node: fx.Node, places: _Places) -> Dims | None:
    """Return the dimensions of the mask by which rows are taken or put; None where other indices are among them."""
    numbers = _numbers_of(node)
    if numbers == [None]:
        return None
    ones = next(place for place, each in enumerate(numbers) if each is not None)
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # a node
    own = [each for each in numbers[ones:] if each is not None]
    if any(each is None for each in numbers[ones : ones + len(own)]) or any(each not in places.numbers for each in own):
        return None
    dims = tuple(places.numbers[each] for each in own)
    sizes = shape[ones : ones + len(own)]
    alike = all(_is_same(size, places.size(dim)) for size, dim in zip(sizes, dims, strict=True))
    whole = not any(is_dynamic(size) for size in shape[ones + len(own) :])
    if len(set(dims)) < len(dims) or not alike or not whole or any(size != 1 for size in shape[:ones]):
        return None
    if ones and node.target not in _TAKES:
        return None
    return dims


def _has_rows_first(node: fx.Node) -> bool:
    taken = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # a node
    shape = node.meta["val"].shape
    rows = next(size for size in taken if is_dynamic(size))
    return len(shape) > 0 and _is_same(shape[0], rows) and not any(is_dynamic(size) for size in shape[1:])


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt):
        return bool(one.node.expr == other.node.expr)
    return not isinstance(one, torch.SymInt) and not isinstance(other, torch.SymInt) and bool(one == other)


@dataclass
class _Rows:
    """Writes an update out. ``made`` has the new calls, and the dimensions of the mask of which each has all rows."""

    places: _Places
    put: fx.Node
    made: dict[fx.Node, tuple[fx.Node, Dims]] = field(default_factory=dict)

    def update(self, between: Sequence[fx.Node]) -> fx.Node:
        """Return what gives the result of the update."""
        given: Any = self.put.args
        into, values = given[0], given[2 if self.put.target is _ATEN.index_put.default else 3]
        with self.put.graph.inserting_before(self.put):
            for node in between:
                if node.target in _TAKES and node.args[0] not in self.made:
                    self.made[node] = self._taken(node)
                elif _ones_taken(node, self.made):
                    held, dims = self.made[node.args[0]]  # type: ignore[index]  # a node
                    sizes = list(node.meta["val"].shape[1:])
                    self.made[node] = self._call(_ATEN.reshape.default, held, [-1, *sizes]), dims
                else:
                    self.made[node] = self._computed(node)
            return self._put(into, *self.made[values])

    def _put(self, into: fx.Node, values: fx.Node, dims: Dims) -> fx.Node:
        order, sizes = self.places.order, [self.places.size(dim) for dim in self.places.order]
        own = _dims_of(self.put, self.places)
        assert own is not None
        rest = list(values.meta["val"].shape[1:])
        apart = self._call(
            _ATEN.reshape.default, self._widened(values, dims, order), [-1, *sizes[1:], *rest]
        )  # the dimension that changes with the batch comes first
        mask = self._call(_ATEN.permute.default, self.places.mask, list(order))
        if mask.meta["val"].dtype != torch.bool:
            mask = self._call(_ATEN.ne.Scalar, mask, 0)
        wide = self._call(_ATEN.reshape.default, mask, [-1, *sizes[1:], *[1] * len(rest)])
        others = [place for place, dim in enumerate(order) if dim not in own]
        chosen = self._call(_ATEN.where.self, wide, apart, self._call(_ATEN.zeros_like.default, apart))
        for place in reversed(others):
            chosen = self._call(_ATEN.sum.dim_IntList, chosen, [place])
        kept = [dim for dim in order if dim in own]
        turn = [kept.index(dim) for dim in own]
        if turn != sorted(turn):
            chosen = self._call(_ATEN.permute.default, chosen, [*turn, *range(len(own), len(own) + len(rest))])
        if _adds(self.put):
            return self._call(_ATEN.add.Tensor, into, chosen)
        anywhere = wide
        for place in reversed(others):
            anywhere = self._call(_ATEN.any.dim, anywhere, place)
        if turn != sorted(turn):
            anywhere = self._call(_ATEN.permute.default, anywhere, [*turn, *range(len(own), len(own) + len(rest))])
        return self._call(_ATEN.where.self, anywhere, chosen, into)

    def _taken(self, node: fx.Node) -> tuple[fx.Node, Dims]:
        """Return all rows of a tensor of which some are taken."""
        dims = _dims_of(node, self.places)
        source: Any = node.args[0]
        assert dims is not None
        for _ in range(_ones_before(node)):
            source = self._call(_ATEN.squeeze.dim, source, 0)
        kept = tuple(dim for dim in self.places.order if dim in dims)
        if kept != dims:
            order = [dims.index(dim) for dim in kept]
            source = self._call(_ATEN.permute.default, source, [*order, *range(len(dims), source.meta["val"].ndim)])
        if len(dims) > 1:
            source = self._call(_ATEN.flatten.using_ints, source, 0, len(dims) - 1)
        return source, kept

    def _widened(self, node: fx.Node, dims: Dims, wanted: Dims) -> fx.Node:
        """Return rows of some dimensions of the mask as rows of more of them."""
        if dims == wanted:
            return node
        rest = list(node.meta["val"].shape[1:])
        sizes = {dim: -1 if is_dynamic(self.places.size(dim)) else int(self.places.size(dim)) for dim in wanted}
        apart = [sizes[dim] if dim in dims else 1 for dim in wanted]
        node = self._call(_ATEN.reshape.default, node, [*apart, *rest])
        node = self._call(
            _ATEN.expand.default, node, [*(sizes[dim] if dim not in dims else -1 for dim in wanted), *rest]
        )
        return self._call(_ATEN.flatten.using_ints, node, 0, len(wanted) - 1) if len(wanted) > 1 else node

    def _computed(self, node: fx.Node) -> tuple[fx.Node, Dims]:
        """Return a call of all rows in place of some."""
        read = {each: self.made[each] for each in node.all_input_nodes if each in self.made}
        union = {dim for _, dims in read.values() for dim in dims}
        wanted = tuple(dim for dim in self.places.order if dim in union)
        wide = {each: self._widened(*found, wanted) for each, found in read.items()}
        copy = node.graph.node_copy(node, lambda each: wide.get(each, each))
        rows = math.prod(self.places.size(dim) for dim in wanted)
        copy.meta["val"] = with_rows(copy, rows)
        return copy, wanted

    def _call(self, target: Any, *args: Any) -> fx.Node:
        new = self.put.graph.call_function(target, args)
        values = fx.node.map_arg(args, lambda each: each.meta["val"])
        with self.places.mask.meta["val"].fake_mode:
            new.meta = {**self.put.meta, "val": target(*values)}
        return new


def _ones_taken(node: fx.Node, made: dict[fx.Node, tuple[fx.Node, Dims]]) -> bool:
    """Whether a call takes the dimensions of one element away that come before the rows."""
    source = node.args[0]
    return (
        node.target in _SAME
        and isinstance(source, fx.Node)
        and source.target in _TAKES
        and _ones_before(source) > 0
        and source in made
    )
