"""A model's inputs and outputs by name, and where they are in the rows of float32 values that the engine works on.

One sample is one row in and one row out. A model with one float input takes that input as it is; any other takes a row
with all inputs of the sample side by side. A model with several outputs answers with a row in the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .accuracy import parts, sqnr_db
from .errors import IntegrityError, RunnerError
from .images.spec import PreprocessSpec
from .manifest import Manifest
from .open_inputs import inputs_with_names, names_of
from .open_sizes import OpenSizes, Size, open_sizes_of
from .proposals import in_order, nearest_rows, of_boxes
from .tensor_spec import (
    LARGEST_EXACT,
    TensorSpec,
    batch_text,
    engine_input_shape,
    input_places,
    input_text,
    places,
    shape_of,
    takes_rows,
)

APPLY = ("softmax", "sigmoid", "argmax")
WHOLE = ("int64", "uint8", "bool")
"""The dtypes of outputs that are no floats."""
INPUT, OUTPUT = "input", "output"
"""Names of the only input and the only output where nobody named them."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OutputSpec:
    """One output of a sample as the model gives it, float32, and what the runner makes of it.

    ``apply`` is None, ``softmax``, ``sigmoid`` or ``argmax``; softmax and argmax go over dimension ``dim`` of the
    output, in which the batch is dimension 0. ``rows_of`` is the output with the boxes to which rows belong, None where
    every row has its place: engines may give the rows of proposals in different orders. ``whole`` is the dtype of an
    output of whole numbers or truth values, which the engine gives as float32: indices of a class, a mask. Without
    ``judged`` it is not compared: most of its values are of things that the task leaves out.
    """

    name: str
    shape: tuple[int, ...]
    apply: str | None = None
    dim: int = 1
    rows_of: str | None = None
    whole: str | None = None
    judged: bool = True

    def __post_init__(self) -> None:
        if self.whole is not None and (self.whole not in WHOLE or self.apply is not None):
            raise ValueError(f"{self.name} is {self.whole!r}, and asks for {self.apply!r}")
        if self.apply is not None and self.apply not in APPLY:
            raise ValueError(f"{self.name} asks for {self.apply!r}, not one of {', '.join(APPLY)}")
        if self.apply in {"softmax", "argmax"} and not 1 <= self.dim <= len(self.shape):
            raise ValueError(f"{self.name} has no dimension {self.dim}")

    @property
    def size(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """What the caller gets: indices of an argmax are int64."""
        return "int64" if self.apply == "argmax" else self.whole or "float32"

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape that the caller gets for one sample."""
        return self.result_of(self.shape)

    def result_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that the caller gets for a sample of which the model gives ``shape``."""
        if self.apply != "argmax":
            return shape
        return (*shape[: self.dim - 1], *shape[self.dim :])

    def finish(self, values: Floats) -> Array:
        """Return what the caller gets for ``values`` ``(n, *shape)``.

        Raises RunnerError for an int64 output with a number that float32 may have rounded: the engine has no other.
        """
        match self.apply:
            case "softmax":
                return softmax(values, self.dim)
            case "sigmoid":
                return sigmoid(values)
            case "argmax":
                return np.asarray(values.argmax(axis=self.dim), np.int64)
        if self.whole == "int64" and not (largest := np.abs(values).max(initial=0.0)) < LARGEST_EXACT:
            raise RunnerError(
                f'the output "{self.name}" has a whole number of {largest:.0f}, and they are exact below '
                f"{LARGEST_EXACT} here; let the model return smaller ones, or floats where rounding does no harm"
            )
        return values if self.whole is None else np.rint(values).astype(self.whole)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        found = {"name": self.name, "shape": list(self.shape), "apply": self.apply, "dim": self.dim}
        found |= {} if self.whole is None else {"whole": self.whole}
        found |= {} if self.judged else {"judged": False}
        return found | ({} if self.rows_of is None else {"rows_of": self.rows_of})

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OutputSpec:
        """Read what ``to_dict`` wrote."""
        dim = raw.get("dim", 1)
        named = str(raw["name"]), shape_of(raw), raw.get("apply"), dim
        return cls(*named, raw.get("rows_of"), raw.get("whole"), raw.get("judged", True))


@dataclass(frozen=True)
class Signature:
    """The inputs of a model in the order of its arguments, and its outputs in the order in which it gives them.

    Of a package for images of any size, ``sizes`` are these, and the shapes those of the typical size.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    sizes: OpenSizes | None = None

    def __post_init__(self) -> None:
        for what, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [each.name for each in specs]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"the {what} {', '.join(names) or '()'} are none, or have a name twice")
        for each in self.outputs:
            boxes = next((other for other in self.outputs if other.name == each.rows_of), None)
            if each.rows_of is not None and (boxes is None or boxes.shape != (each.shape[0], 4)):
                raise ValueError(f"the rows of {each.name} are those of {each.rows_of}, which has no box for each")

    @cached_property
    def states(self) -> tuple[tuple[TensorSpec, OutputSpec], ...]:
        """Each input that is a state, with the output that has its next value. Raises IntegrityError on damage."""
        outputs = {each.name: each for each in self.outputs}
        found = []
        for each in self.inputs:
            if each.state is None:
                continue
            output = outputs.get(each.state)
            if output is None or output.shape != each.shape or output.apply is not None or each.dtype != "float32":
                raise IntegrityError(f'the state "{each.name}" in the manifest is damaged: it has no next value')
            found.append((each, output))
        return tuple(found)

    @classmethod
    def plain(
        cls, input_shape: Sequence[int], output_shape: Sequence[int], preprocess: PreprocessSpec | None = None
    ) -> Signature:
        """Return the signature of a model with one float input and one output."""
        return cls(
            (TensorSpec(INPUT, tuple(input_shape), preprocess=preprocess),), (OutputSpec(OUTPUT, tuple(output_shape)),)
        )

    @classmethod
    def from_dicts(cls, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> Signature:
        """Read the lists of a manifest. Raises IntegrityError on damage."""
        try:
            return cls(
                tuple(TensorSpec.from_dict(each) for each in inputs),
                tuple(OutputSpec.from_dict(each) for each in outputs),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"the inputs or outputs in the manifest are damaged: {error}") from error

    def to_dicts(self) -> dict[str, list[dict[str, Any]]]:
        """Return the lists ``inputs`` and ``outputs`` that ``from_dicts`` reads."""
        return {
            "inputs": [each.to_dict() for each in self.inputs],
            "outputs": [each.to_dict() for each in self.outputs],
        }

    def of_size(self, size: Size | None) -> Signature:
        """Return the signature whose outputs have the shapes for a size; or itself where none is needed."""
        if size is None or self.sizes is None or not self.sizes.outputs:
            return self
        shapes = zip(self.outputs, self.sizes.shapes(size), strict=True)
        return Signature(self.inputs, tuple(dataclasses.replace(each, shape=shape) for each, shape in shapes))

    def inputs_of_size(self, size: Size | None) -> tuple[TensorSpec, ...]:
        """Return the inputs with the shapes for a size; as they are without one, and where no input is named."""
        if size is None or self.sizes is None or not self.sizes.inputs:
            return self.inputs
        return tuple(
            dataclasses.replace(each, shape=self.sizes.input_at(number, size)) if each.names else each
            for number, each in enumerate(self.inputs)
        )

    @cached_property
    def takes_rows(self) -> bool:
        """Whether the engine takes rows. One float input goes in as it is, ``(n, *shape)``."""
        return takes_rows(self.inputs)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in their order."""
        return tuple(each.name for each in self.inputs)

    @cached_property
    def takes_arrays(self) -> bool:
        """Whether each input is an array of one size: no images, and no named dimensions."""
        return not any(each.preprocess is not None or each.names for each in self.inputs)

    @cached_property
    def gives_rows(self) -> bool:
        """Whether the engine answers with rows. One output comes out as it is, ``(n, *shape)``, but for a number."""
        return len(self.outputs) > 1 or not self.outputs[0].shape

    @cached_property
    def is_plain(self) -> bool:
        """Whether one float array goes in and one comes out, with nothing to do to either."""
        return (
            not self.takes_rows
            and not self.gives_rows
            and self.outputs[0].dtype == "float32"
            and (self.outputs[0].apply is None)
        )

    @cached_property
    def engine_input_shape(self) -> tuple[int, ...]:
        """The shape of one sample as the engine takes it."""
        return engine_input_shape(self.inputs)

    @property
    def engine_output_shape(self) -> tuple[int, ...]:
        """The shape of one sample as the engine gives it."""
        return (sum(each.size for each in self.outputs),) if self.gives_rows else self.outputs[0].shape

    @property
    def engine_preprocess(self) -> PreprocessSpec | None:
        """What makes the engine's input from an image, None where it takes rows or arrays."""
        return None if self.takes_rows else self.inputs[0].preprocess

    @cached_property
    def class_scores(self) -> OutputSpec | None:
        """The only output that has one dimension for a sample, which may be scores of classes; None without, or with
        several."""
        found = [each for each in self.outputs if len(each.shape) == 1 and each.whole is None]
        return found[0] if len(found) == 1 else None

    def input_places(self) -> tuple[slice, ...]:
        """Return where each input is in a row."""
        return self._input_places

    def output_places(self) -> tuple[slice, ...]:
        """Return where each output is in a row."""
        return self._output_places

    @cached_property
    def _input_places(self) -> tuple[slice, ...]:  # each call of a small model would notice
        return tuple(input_places(self.inputs))

    @cached_property
    def _output_places(self) -> tuple[slice, ...]:
        return tuple(places([each.size for each in self.outputs]))

    def split(self, values: Floats) -> dict[str, Floats]:
        """Return the outputs as the model gives them, ``(n, *shape)`` each, from what the engine gives."""
        if not self.gives_rows:
            return {self.outputs[0].name: values}
        return {
            each.name: np.ascontiguousarray(values[:, place]).reshape(-1, *each.shape)
            for each, place in zip(self.outputs, self.output_places(), strict=True)
        }

    def compared(self, reference: Floats, actual: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return the outputs of two engines as ``split`` does, with the rows of proposals in the reference's order.

        Outputs that are not ``judged`` are left out.

        Whole numbers may be classes, which have no distance, or counts, which have. Where the share of others gives the
        better SQNR, ones are compared with ones where the values are equal and zeros elsewhere.
        """
        expected, found = self.split(reference), self.split(actual)
        rows: dict[str, list[npt.NDArray[np.int64]]] = {}
        boxes = {each.rows_of: expected[each.rows_of] for each in self.outputs if each.rows_of is not None}
        for name, own in boxes.items():
            rows[name] = [nearest_rows(one, other) for one, other in zip(own, found[name], strict=True)]
        for each in self.outputs:
            if not each.judged:
                del expected[each.name], found[each.name]
                continue
            if each.rows_of is not None and len(reference):
                values, places = zip(expected[each.name], boxes[each.rows_of], strict=True), rows[each.rows_of]
                expected[each.name] = np.stack([of_boxes(*pair) for pair in values])
                others = zip(found[each.name], places, strict=True)
                found[each.name] = np.stack([in_order(*pair) for pair in others])
            if each.whole is not None:
                same = np.asarray(expected[each.name] == found[each.name], np.float32)
                if sqnr_db(ones := np.ones_like(same), same) >= sqnr_db(expected[each.name], found[each.name]):
                    expected[each.name], found[each.name] = ones, same
        return expected, found

    def unpack(self, values: Floats) -> dict[str, Array]:
        """Return what a caller gets, by name, from what the engine gives."""
        split = self.split(values)
        return {each.name: each.finish(split[each.name]) for each in self.outputs}

    def result(self, values: Floats) -> Any:
        """Return what a call of the runner gives: an array for one output, else a dict of arrays by name."""
        if len(self.outputs) > 1:
            return self.unpack(values)
        (only,) = self.outputs
        return only.finish(self.split(values)[only.name] if self.gives_rows else values)

    def inputs_text(self) -> str:
        """Return the inputs in words: ``image float32 (n, 3, 32, 32), age float32 (n, 1)``."""
        if self.sizes is not None and self.sizes.inputs:
            return f"{', '.join(input_text(each) for each in self.inputs)}; {self.sizes.text()}"
        if self.sizes is not None:  # one input alone
            (spec,) = self.inputs
            images = " or images" if spec.preprocess is not None else ""
            shape = self.sizes.shape_text(spec.shape)
            return f"{spec.name} {spec.dtype} {shape}{images}, {self.sizes.text()}"
        return ", ".join(input_text(each) for each in self.inputs)

    def outputs_text(self) -> str:
        """Return the outputs in words: ``logits float32 (n, 10)``."""
        found = ", ".join(f"{each.name} {each.dtype} {batch_text(each.result_shape)}" for each in self.outputs)
        if self.sizes is None:
            return found
        what = "images of " if self.sizes.is_image else ""
        return f"{found}, for {what}{self.sizes.size_text(self.sizes.typical(self.inputs[0].shape))}"


def signature_of(manifest: Manifest) -> Signature:
    """Return the inputs and outputs of a package by name. Raises IntegrityError when they are damaged."""
    if manifest.inputs and manifest.outputs:
        found = Signature.from_dicts(manifest.inputs, manifest.outputs)
        found = dataclasses.replace(found, sizes=open_sizes_of(manifest))
        opened = () if found.sizes is None else found.sizes.inputs
        if opened != (inputs_with_names(found.inputs) if names_of(found.inputs) else ()):
            raise IntegrityError("the inputs in the manifest have other names than its sizes")
    else:  # a wheel of an earlier version
        preprocess = None if manifest.preprocess is None else PreprocessSpec.from_dict(manifest.preprocess)
        found = Signature.plain(manifest.input_shape, manifest.model["output_shape"], preprocess)
    given = manifest.input_shape, tuple(manifest.model["output_shape"])
    if (found.engine_input_shape, found.engine_output_shape) != given:
        raise IntegrityError(f"the inputs and outputs in the manifest do not make the shapes {given[0]} and {given[1]}")
    return found


def worst_sqnr_db(signature: Signature, reference: Floats, actual: Floats) -> float:
    """Return the least SQNR of the outputs that lie in what the engine gives."""
    expected, found = signature.compared(reference, actual)
    return min(sqnr_db(expected[name], found[name]) for name in expected)


def softmax(values: Floats, dim: int) -> Floats:
    """Return the softmax over a dimension."""
    found = np.empty(values.shape, np.float32)
    for some in parts(values):
        part = values[some]
        exponents = np.exp(part.astype(np.float64) - part.max(axis=dim, keepdims=True))
        found[some] = exponents / exponents.sum(axis=dim, keepdims=True)
    return found


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without an overflow for large magnitudes."""
    found = np.empty(values.shape, np.float32)
    for some in parts(values):
        small = np.exp(-np.abs(values[some].astype(np.float64)))
        found[some] = np.where(values[some] >= 0, 1.0, small) / (1.0 + small)
    return found
