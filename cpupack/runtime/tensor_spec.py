"""A model's inputs by name: the shape and dtype of each, what it takes, and where it is in a row of them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .images.spec import PreprocessSpec
from .open_inputs import names_of

DTYPES = ("float32", "uint8", "int64", "bool")
LARGEST_EXACT = 2**24
"""Whole numbers up to this are exact in float32, in which rows are."""


@dataclass(frozen=True)
class TensorSpec:
    """One input of a sample. ``shape`` has no batch dimension.

    ``default`` fills an input that a caller leaves out; None means that it must be given. ``preprocess`` is set for an
    input that is an image, ``(channels, height, width)``. Ids of an int64 or uint8 input are below ``vocabulary``, None
    where any whole number is fine. ``vocabularies`` are those along the last dimension where they differ, as columns of
    a table do; ``vocabulary`` is then the largest. ``pad`` is the value of positions that a sample does not have, at
    the end of the first dimension; None where every sample has all. ``state`` is the output that has the next value of
    this input, None for an input that is no state. A sample whose values all are ``blank`` leaves a packed sequence no
    step, which torch refuses: a length of 0, a mask of zeros, ids of padding alone. None where nothing is packed.
    ``names`` has the name of each dimension whose size may differ, "" for others; ``shape`` is then of the typical
    size. It is empty where none has a name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    default: float | None = None
    preprocess: PreprocessSpec | None = None
    vocabulary: int | None = None
    pad: float | None = None
    vocabularies: tuple[int | None, ...] = ()
    state: str | None = None
    blank: float | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"the dtype of {self.name} is {self.dtype!r}, not one of {', '.join(DTYPES)}")
        if self.preprocess is not None and (len(self.shape) != 3 or self.dtype != "float32"):
            raise ValueError(f"{self.name} is an image, and not float32 (channels, height, width)")
        if self.vocabularies and len(self.vocabularies) != self.shape[-1]:
            raise ValueError(f"{self.name} has {self.shape[-1]} values, and {len(self.vocabularies)} vocabularies")
        if self.names and (len(self.names) != len(self.shape) or not any(self.names)):
            raise ValueError(f"{self.name} has the shape {self.shape}, and the names {self.names}")

    @property
    def size(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    @property
    def least(self) -> int:
        """The least id: a length, one number for each sample, begins at 1."""
        return int(self.blank == 0 and self.size == 1)

    @property
    def pixel_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the pixels of an image, None for any other input."""
        if self.preprocess is None:
            return None
        channels, height, width = self.shape
        return height, width, channels

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        names = {"names": list(self.names)} if self.names else {}
        blank = {} if self.blank is None else {"blank": self.blank}
        return (
            names
            | blank
            | {
                "name": self.name,
                "shape": list(self.shape),
                "dtype": self.dtype,
                "default": self.default,
                "preprocess": None if self.preprocess is None else self.preprocess.to_dict(),
                "vocabulary": self.vocabulary,
                "pad": self.pad,
                "vocabularies": list(self.vocabularies),
                "state": self.state,
            }
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TensorSpec:
        """Read what ``to_dict`` wrote. Raises IntegrityError on damage."""
        section = raw.get("preprocess")
        preprocess = None if section is None else PreprocessSpec.from_dict(section)
        return cls(
            str(raw["name"]),
            shape_of(raw),
            str(raw["dtype"]),
            raw.get("default"),
            preprocess,
            raw.get("vocabulary"),
            raw.get("pad"),
            tuple(raw.get("vocabularies", ())),
            raw.get("state"),
            raw.get("blank"),
            tuple(map(str, raw.get("names", ()))),
        )


def takes_rows(inputs: Sequence[TensorSpec]) -> bool:
    """Return whether the engine of a model with these inputs takes rows. Samples of several lengths are rows too.

    A row has all inputs side by side, and after them the size of each of their names (``open_inputs.py``).
    """
    return len(inputs) > 1 or inputs[0].dtype != "float32" or inputs[0].pad is not None


def engine_input_shape(inputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Return the shape of one sample as the engine of a model with these inputs takes it."""
    if not takes_rows(inputs):
        return inputs[0].shape
    return (sum(each.size for each in inputs) + len(names_of(inputs)),)


def input_places(inputs: Sequence[TensorSpec]) -> list[slice]:
    """Return where each input is in a row of them all."""
    return places([each.size for each in inputs])


def input_text(spec: TensorSpec) -> str:
    """Return an input in words, with what is special about it."""
    words = [f"{spec.name} {spec.dtype} {batch_text(open_shape(spec))}"]
    if spec.preprocess is not None:
        words.append("or images")
    if (ids := ids_text(spec)) is not None:
        words.append(ids)
    if spec.default is not None:
        words.append(f"else {default_text(spec)}")
    if spec.state is not None:
        words.append(f"(a state; next: {spec.state})")
    return " ".join(words)


def ids_text(spec: TensorSpec) -> str | None:
    """Return which ids an input takes, in words: ``from 0 to 9``; None where any whole number is fine."""
    if spec.vocabularies:
        largest = ", ".join("any number" if each is None else str(each - 1) for each in spec.vocabularies)
        return f"from 0 to at most [{largest}]"
    return None if spec.vocabulary is None else f"from {spec.least} to {spec.vocabulary - 1}"


def default_text(spec: TensorSpec) -> str:
    """Return a default as text: ``True`` for a truth value, ``7`` for a whole number."""
    assert spec.default is not None
    value: Any = spec.default if spec.dtype == "float32" else int(spec.default)
    return str(bool(value)) if spec.dtype == "bool" else f"{value:g}" if spec.dtype == "float32" else str(value)


def open_shape(spec: TensorSpec) -> tuple[int | str, ...]:
    """Return the shape of a sample with its names."""
    return tuple(name or size for name, size in zip(spec.names or ("",) * len(spec.shape), spec.shape, strict=True))


def batch_text(shape: Sequence[int | str]) -> str:
    """Return the shape of a batch as text: ``(n, 3, 32, 32)``."""
    return f"({', '.join(['n', *map(str, shape)])}{'' if shape else ','})"


def places(sizes: Iterable[int]) -> list[slice]:
    """Return where parts of these sizes are, side by side."""
    places, first = [], 0
    for size in sizes:
        places.append(slice(first, first + size))
        first += size
    return places


def shape_of(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the shape of a sample. Raises ValueError on damage."""
    shape = raw["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"the shape of {raw['name']} is {shape!r}")
    return tuple(shape)
