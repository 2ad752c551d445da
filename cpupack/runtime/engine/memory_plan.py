"""Where the buffers of a program are in memory, and which layers run sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Weighed:
    """What decides about the place of a layer: bytes of its weights and of the activations that it reads and writes.

    ``weight_bytes`` is None for what is no convolution. ``one_position`` says that its result is a single pixel.
    """

    weight_bytes: int | None = None
    through_bytes: int = 0
    one_position: bool = False
    recurrent: bool = False


def layers_alone(layers: Sequence[Weighed]) -> int:
    """Return how many of the first layers to run sample by sample: those with fewer weights than activations.

    A sample's activations then stay in the second-level cache from layer to layer. After that point the weights are
    larger, and it is faster to read them once for the whole batch.
    """
    for position, layer in enumerate(layers):
        if layer.recurrent:
            return position  # it runs samples side by side
        if layer.weight_bytes is None or layer.one_position:
            continue  # one position: squeeze-and-excitation, between two layers of full size
        if layer.weight_bytes > layer.through_bytes:
            return position
    return len(layers)


def plan_memory(sizes: Sequence[int], touched: Sequence[Sequence[int]], alone: int) -> tuple[list[int], int]:
    """Return each buffer's offset in the arena and the arena's size, in bytes for one sample.

    ``sizes`` are the bytes of each buffer, ``touched`` the buffers that each layer reads or writes. The first ``alone``
    layers run again for every sample while what they leave to later layers waits: that is alive from the start.

    Buffers that are never alive together share memory: the largest is placed first, each at the lowest offset where it
    meets no other that is alive with it (Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net
    Inference", greedy by size).
    """
    first = dict.fromkeys(range(len(sizes)), len(touched))
    last = dict.fromkeys(range(len(sizes)), -1)
    for position, numbers in enumerate(touched):
        for number in numbers:
            first[number] = min(first[number], position)
            last[number] = max(last[number], position)
    for number in last:
        if first[number] < alone <= last[number]:
            first[number] = 0
    aligned = [each + -each % ALIGNMENT for each in sizes]
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda each: -aligned[each]):
        together = [other for other in placed if first[other] <= last[number] and first[number] <= last[other]]
        offset = 0
        for other in sorted(together, key=lambda each: offsets[each]):
            if offset + aligned[number] <= offsets[other]:
                break
            offset = max(offset, offsets[other] + aligned[other])
        offsets[number] = offset
        placed.append(number)
    return offsets, max((offset + size for offset, size in zip(offsets, aligned, strict=True)), default=0)
