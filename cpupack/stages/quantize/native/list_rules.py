"""Constants that are lists: moves, places of values, the order of rows, masks of windows, and numbers that repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.program_format import Op
from cpupack.runtime.engine.sizes import Moves
from cpupack.size_terms import Fit, Ints
from cpupack.stages.quantize.native.cuts import Words, sides_of
from cpupack.stages.quantize.native.heads import ATTENTION
from cpupack.stages.quantize.native.lowered import Bytes
from cpupack.stages.quantize.native.move_lists import MOVE, parts_of_lists
from cpupack.stages.quantize.native.program import Flag
from cpupack.stages.quantize.native.row_codes import LINEAR
from cpupack.stages.quantize.native.walks import INSTRUCTION

Contents = Callable[[str], list[Bytes]]


def is_list(layer: Any, name: str) -> bool:
    """Whether the constant ``name`` of a layer is a list."""
    op = Op(int(layer["op"]))
    if op is Op.MOVE or (op is Op.FLOAT_GATHER and name == "scales"):
        return True
    return name == "table" and bool(int(layer["flags"]) & Flag.PLACES)


def list_rule(
    place: tuple[int, str], layers: Sequence[Any], buffers: Sequence[Any], all_contents: Contents, fit: Fit, what: str
) -> Moves:  # fmt: skip
    """Return how a list changes, a constant that ``place`` has the layer's number of, and its name.

    ``all_contents`` gives a layer's constant of a name at each size. Raises QuantizationError where the list does not
    repeat.
    """
    lists, heads = list[Ints](), list[Ints]()
    number, name = place
    contents, records = all_contents(name), all_contents("weights")
    for layer, own, content, record in zip(layers, buffers, contents, records, strict=True):
        op, words = Op(int(layer["op"])), content.view("<i4").astype(np.int64)
        begin, width = 0, 1
        if op is Op.MOVE:
            width, count = MOVE, int(layer["runs"])
        elif op is Op.FLOAT_GATHER:
            count = int(own[int(layer["output"])]["sample_bytes"]) // 4
        elif op is Op.FLOAT_ATTENTION:
            count = int(record[: ATTENTION.itemsize].view(ATTENTION)[0]["outer"].prod())
        else:
            count = int(own[int(layer["output"])]["width"])
            if op is Op.CONV:  # functions of its results come first
                instructions = int(content[: LINEAR.itemsize].view(LINEAR)[0][0])
                begin = (LINEAR.itemsize + instructions * INSTRUCTION.itemsize) // 4
        heads.append(words[:begin, None])
        lists.append(words[begin : begin + width * count].reshape(-1, width))
    return Moves(number, name, parts_of_lists(lists, fit, f"a list of {what}", heads))


def words_rule(
    number: int, name: str, words: Sequence[Words], lengths: Sequence[Sequence[int]], fit: Fit
) -> Moves | None:  # fmt: skip
    """Return how a constant changes whose numbers repeat; None where they do not.

    ``lengths`` are those that its dimensions may have, at each size.
    """
    tried = set()
    for sides in sides_of(words, lengths):
        ends = tuple(int(np.prod(each)) for each in sides)
        if ends in tried:
            continue
        tried.add(ends)
        lists = [one[:end].view("<i4").astype(np.int64)[:, None] for one, end in zip(words, ends, strict=True)]
        try:
            return Moves(number, name, parts_of_lists(lists, fit, "a constant"))
        except QuantizationError:
            continue
    return None
