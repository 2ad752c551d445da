"""What the values of a sample may be in C: what the Python runner checks by the dtype of each input.

Programs in C give all inputs as float32, so an id of 1.5 or a truth value of 5 would be computed without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..open_inputs import names_of, typical_size
from ..tensor_spec import LARGEST_EXACT, TensorSpec, input_places, takes_rows

WHOLE, STEPS = 0, 1
"""``enum limit_kind`` of kernels/api/limits.h."""


@dataclass(frozen=True)
class Limit:
    """Of the values ``first``, ``first + step`` and so on, ``count`` of them.

    ``WHOLE``: each is a whole number from ``low`` to ``high``. ``STEPS``: not all of them are ``low``.
    """

    kind: int
    first: int
    count: int
    step: int
    low: float
    high: float


def limits_of(specs: Sequence[TensorSpec]) -> list[Limit]:
    """Return the limits of a sample of these inputs. Named dimensions have the sizes of the specs."""
    found: list[Limit] = []
    for spec, place in zip(specs, input_places(specs), strict=True):
        found += _whole(spec, place.start)
        if spec.blank is not None and not spec.least:
            found.append(Limit(STEPS, place.start, spec.size, 1, spec.blank, spec.blank))
    if takes_rows(specs) and (names := names_of(specs)):
        first = sum(each.size for each in specs)
        sides = typical_size(specs)[-len(names) :]
        found += [Limit(WHOLE, first + number, 1, 1, side, side) for number, side in enumerate(sides)]
    return found


def _whole(spec: TensorSpec, first: int) -> Iterator[Limit]:
    if spec.dtype == "float32":
        return
    if spec.dtype == "bool":
        yield Limit(WHOLE, first, spec.size, 1, 0, 1)
    elif spec.vocabularies:
        columns = len(spec.vocabularies)
        for column, vocabulary in enumerate(spec.vocabularies):
            yield Limit(WHOLE, first + column, spec.size // columns, columns, *_range(spec, vocabulary))
    else:
        yield Limit(WHOLE, first, spec.size, 1, *_range(spec, spec.vocabulary))


def _range(spec: TensorSpec, vocabulary: int | None) -> tuple[int, int]:
    if vocabulary is None:
        return (0, 255) if spec.dtype == "uint8" else (-LARGEST_EXACT, LARGEST_EXACT)
    return spec.least, vocabulary - 1
