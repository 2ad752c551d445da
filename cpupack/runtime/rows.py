"""Makes rows of a model's inputs: checks what a caller hands in, by name, and lays it side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

import numpy as np

from .arrays import MOST_FLOAT, in_own_order, is_finite, is_masked, of_tensor
from .errors import InputError
from .images.spec import normalize
from .open_inputs import names_of, typical_size
from .open_sizes import OpenSizes, Size
from .signature import Array, Floats, Signature
from .tensor_spec import (
    DTYPES,
    LARGEST_EXACT,
    TensorSpec,
    batch_text,
    engine_input_shape,
    input_places,
    open_shape,
)

_DTYPES = {name: np.dtype(name) for name in DTYPES}
_MOST_NESTED = 64
"""No array of numpy has more dimensions."""
SKIPS_CHECK = " (Runner(check_finite=False) skips this check)"
"""Ends what is said of a value that is not finite."""


def by_name(signature: Signature, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names of the inputs.

    ``given`` are those by position, or one dict of all. Raises InputError for an unknown name, an input that is given
    twice, and too many.
    """
    names = signature.input_names
    if len(given) == 1 and isinstance(given[0], Mapping):
        if twice := [name for name in named if name in given[0]]:
            raise _twice(twice[0])
        named, given = {**given[0], **named}, ()
    if len(given) > len(names):
        raise InputError(f"got {len(given)} inputs; {_takes(signature)}")
    found = dict(zip(names, given, strict=False))
    for name, value in named.items():
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            meant = f'did you mean "{near[0]}"? ' if near else ""
            raise InputError(f'the model has no input "{name}"; {meant}it takes {signature.inputs_text()}')
        if name in found:
            raise _twice(name)
        found[name] = value
    if not found:
        raise InputError(f"no input is given; {_takes(signature)}")
    return found


def _twice(name: Any) -> InputError:
    return InputError(f'the input "{name}" is given twice')


def pack(signature: Signature, given: Mapping[str, Any], *, check_finite: bool = True, of_one: bool = False) -> Floats:
    """Return the rows ``(n, values)`` of a batch, from what a caller hands in for each input. Samples have one size.

    ``of_one`` says that the caller gave one sample, without the batch, so messages speak of its shape.
    Raises InputError, which names the input, for one that is missing, of another dtype or shape, of another number of
    samples, or with values that the model does not take.
    """
    if (ready := _as_they_are(signature, given)) is not None and (not check_finite or is_finite(ready)):
        return ready
    inputs, shape, where = signature.inputs, signature.engine_input_shape, signature.input_places()
    # First of all: a caller may hand in a tuple of all inputs, which is no array of the first one.
    missing = [each for each in inputs if each.name not in given and each.default is None]
    if missing or not given:
        names = ", ".join(f'"{each.name}"' for each in missing) or "every one"
        plural = "s" if len(missing) > 1 else ""
        raise InputError(f"the input{plural} {names} {'are' if plural else 'is'} missing; {_takes(signature)}")
    if signature.sizes is not None and signature.sizes.inputs:
        given = {each.name: array_of(each, given[each.name]) for each in signature.inputs if each.name in given}
        size = size_of_arrays(signature.inputs, signature.sizes, given)
        inputs = signature.inputs_of_size(size)
        shape, where = engine_input_shape(inputs), tuple(input_places(inputs))
    arrays = {
        each.name: batch_of(each, given[each.name], check_finite=False, of_one=of_one)
        for each in inputs
        if each.name in given
    }
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the inputs have different numbers of samples: {told}")
    (count,) = set(counts.values())
    rows = np.empty((count, *shape), np.float32)
    for spec, place in zip(inputs, where, strict=True):
        rows[:, place] = spec.default if spec.name not in arrays else flat(spec, arrays[spec.name])
    add_sizes(inputs, rows)
    if check_finite and not is_finite(rows):  # all inputs at once; then which of them it is
        for spec in inputs:
            if spec.name in arrays:
                batch_of(spec, arrays[spec.name], of_one=of_one)
    return rows


def _as_they_are(signature: Signature, given: Mapping[str, Any]) -> Floats | None:
    """Return rows of arrays and tensors that have the dtypes and shapes of all inputs, as most calls give them.

    Returns None where there is more to do, or to say, than to lay them side by side. Raises InputError for ids, and for
    samples without a step.
    """
    if len(given) != len(signature.inputs) or not signature.takes_arrays:
        return None
    arrays: list[Array] = []
    for spec in signature.inputs:
        value = given.get(spec.name)
        array = value if type(value) is np.ndarray else of_tensor(value, f'input "{spec.name}": ')
        if array is None or not array.ndim or array.dtype != _DTYPES[spec.dtype]:
            return None
        if array.shape != (len(arrays[0]) if arrays else len(array), *spec.shape):
            return None
        arrays.append(array)
    if not (count := len(arrays[0])):
        return None
    rows = np.empty((count, *signature.engine_input_shape), np.float32)
    for spec, array, place in zip(signature.inputs, arrays, signature.input_places(), strict=True):
        if spec.dtype != "float32":
            _check_values(spec, array, check_finite=False)
        if spec.blank is not None:
            check_blank(spec, array)
        rows[:, place] = array if array.ndim == 2 else array.reshape(count, -1)
    return rows


def add_sizes(inputs: Sequence[TensorSpec], rows: Floats) -> None:
    """Write the size of each name of inputs to the ends of rows, in place."""
    if count := len(names_of(inputs)):
        rows[:, -count:] = typical_size(inputs)[-count:]


def size_of_arrays(inputs: Sequence[TensorSpec], sizes: OpenSizes, given: Mapping[str, Array]) -> Size:
    """Return the size that batches of inputs have. A name of no input that is given has its least size.

    Raises InputError where two inputs disagree, naming both, and for a size that the model does not take.
    """
    found: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name not in given or not spec.names:
            continue
        array = given[spec.name]
        names = spec.names
        if spec.pixel_shape is not None and array.dtype == np.uint8:
            names = (*names[1:], names[0])
        if array.ndim != 1 + len(names):
            known = zip(names, open_shape(spec), array.shape, strict=False)
            alone = array.ndim == len(names) and all(name or size == side for name, size, side in known)
            missing = f"; add the batch dimension: {spec.name}[None]" if alone else ""
            raise InputError(
                f'input "{spec.name}": got {array.dtype} {array.shape}; expected {spec.dtype} '
                f"{batch_text(open_shape(spec))} with {sizes.text()}{missing}"
            )
        for name, side in zip(names, array.shape[1:], strict=True):
            if not name:
                continue
            other, owner = found.setdefault(name, (side, spec.name))
            if other != side:
                twice = f'input "{spec.name}": got {array.dtype} {array.shape}, which has'
                where = f'is {other} in the input "{owner}" and {side} in "{spec.name}"'
                raise InputError(
                    f"{twice} {name} {other} and {side}; both are one size"
                    if owner == spec.name
                    else f"{name} {where}; inputs that share a name have the same size in a sample"
                )
    ranges = sizes.ranges
    wrong = [
        f'{name} of "{owner}" is {side}'
        for name, (side, owner) in found.items()
        if (side % ranges[name][2] or not ranges[name][0] <= side <= ranges[name][1])
    ]
    if wrong:
        raise InputError(f"{', '.join(wrong)}; the model takes {sizes.text()}")
    size = tuple(found[name][0] if name in found else low for name, (low, _, _) in ranges.items())
    return size if len(size) > 1 else (1, *size)


def flat(spec: TensorSpec, batch: Array) -> Array:
    """Return a batch of one input as it lies in rows, ``(n, size)``: an image by positions, its channels last."""
    if spec.preprocess is not None:
        if batch.dtype == np.uint8:
            batch = normalize(batch, spec.preprocess)
        batch = batch.transpose(0, 2, 3, 1)
    return batch.reshape(len(batch), spec.size)


def batch_of(spec: TensorSpec, value: Any, *, check_finite: bool = True, of_one: bool = False) -> Array:
    """Return a batch ``(n, *shape)`` of one input from an array, a tensor or lists of numbers; of an image also uint8
    pixels ``(n, height, width, channels)``. Raises InputError that names the input, as ``pack`` does.
    """
    array = array_of(spec, value)
    # A message has the name of the dtype, for which numpy takes longer than a small layer.
    if not len(array.shape) or not len(array) or array.shape[1:] != _shape_of(spec, array.dtype):
        raise _unfit(spec, array, of_one=of_one)
    _check_values(spec, array, check_finite=check_finite)
    check_blank(spec, array)
    return array


def _shape_of(spec: TensorSpec, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Return the shape of a sample of this dtype, None where the input takes no such values."""
    if spec.pixel_shape is not None and dtype == np.uint8:
        return spec.pixel_shape
    fits = dtype == _DTYPES[spec.dtype] or (spec.dtype == "int64" and dtype.kind in "iub")
    return spec.shape if fits else None


def _unfit(spec: TensorSpec, array: Array, *, of_one: bool) -> InputError:
    """Return what is said of a batch that has another dtype or shape than the input, or no sample."""
    wanted = {_dtype_of(spec, array): spec.shape}
    if spec.pixel_shape is not None:
        wanted["uint8"] = spec.pixel_shape
    expected = " or ".join(f"{dtype} {shape if of_one else batch_text(shape)}" for dtype, shape in wanted.items())
    given = array.shape[1:] if of_one else array.shape
    got = f'input "{spec.name}": got {array.dtype} {given}'
    shape = wanted.get(str(array.dtype))
    if shape is None:
        return InputError(f"{got}; expected {expected}")
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        missing = "; a batch is a list of samples here" if of_one and given[1:] == shape else ""
        if array.shape == shape:
            missing = f"; add the batch dimension: {spec.name}[None]"
        return InputError(f"{got}; expected {expected}{missing}")
    return InputError(f"{got}, an empty batch; expected {expected} with n >= 1")


def array_of(spec: TensorSpec, value: Any) -> Array:
    """Return an array, a tensor, a column of pandas, a number or lists of numbers as an array.

    Raises InputError that names the input.
    """
    name = f'input "{spec.name}": '
    if (tensor := of_tensor(value, name)) is not None:
        return _as_truth(spec, tensor)
    if is_masked(value):
        raise InputError(f"{name}got a masked array; expected a plain one")
    if isinstance(value, np.ndarray | np.generic):
        return _as_truth(spec, in_own_order(np.asarray(value)))
    if not isinstance(value, list | tuple | int | float) and not hasattr(value, "__array__"):
        raise InputError(f"{name}got {type(value).__name__}; expected an array, a tensor or lists")
    if isinstance(value, list | tuple) and spec.dtype != "bool" and mixes_truth(value):
        raise InputError(f"{name}has true or false among its numbers")
    try:
        array = np.asarray(_without_tensors(value, name))
        if array.dtype == object and all(isinstance(each, int | float) for each in array.flat):
            array = np.array(array.tolist())  # a row of pandas with columns of several kinds
    except RecursionError:
        raise InputError(f"{name}is nested too deeply; expected {batch_text(spec.shape)}") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name}{_ragged(value, error)} {batch_text(spec.shape)}") from None
    # Python has one kind of float and one of whole number, so lists become the input's own dtype. So do columns of
    # pandas, whose floats have 64 bits.
    if spec.dtype == "float32" and array.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # what becomes infinite is refused later
            return array.astype(np.float32)
    if spec.dtype == "uint8" and array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    if spec.dtype == "uint8" and array.dtype.kind in "iu" and array.size:
        raise _beyond(spec, array, 255)
    array = _as_truth(spec, array)
    if array.dtype == object:
        others = [each for each in array.flat if not isinstance(each, int | float)]
        if array.size and not others:  # Python's numbers have no limit
            raise InputError(f"{name}has {max(array.flat, key=abs)}, which no {spec.dtype} holds")
        bad = others[0] if others else None
        what = "null or None" if bad is None else type(bad).__name__
        raise InputError(f"{name}has {what} where a number is expected")
    return array


def _as_truth(spec: TensorSpec, array: Array) -> Array:
    """Return truth values where the input takes them and the array has ones and zeros, as masks of tokenizers do.

    Raises InputError for other whole numbers.
    """
    if spec.dtype != "bool" or array.dtype.kind not in "iu" or not array.size:
        return array
    if (array & ~array.dtype.type(1)).any():
        raise _beyond(spec, array, 1)
    return array.astype(bool)


def _beyond(spec: TensorSpec, array: Array, most: int) -> InputError:
    """Return what is said of the first number that an input of few values does not hold."""
    found = next(int(each) for each in array.flat if not 0 <= each <= most)
    return InputError(f'input "{spec.name}": has {found}; {spec.dtype} holds {"0 to 255" if most > 1 else "0 and 1"}')


def mixes_truth(value: Any) -> bool:
    """Return whether lists have truth values beside numbers. numpy takes them for 0 and 1."""
    kinds, level = set[type](), [value]
    for _ in range(_MOST_NESTED):
        inside = list(chain.from_iterable(level))
        here = set(map(type, inside))  # of each element, in C: a server asks this of each request
        kinds |= here
        if here.isdisjoint((list, tuple)):
            break
        level = [each for each in inside if isinstance(each, list | tuple)]
    return bool in kinds and any(issubclass(each, int | float) for each in kinds - {bool})


def _without_tensors(value: Any, name: str) -> Any:
    """Return lists with arrays in place of tensors, which numpy does not take in every state."""
    if isinstance(value, list | tuple):
        first = value[0] if value else None
        if isinstance(first, list | tuple) or of_tensor(first, name) is not None:
            return [_without_tensors(each, name) for each in value]
        return value
    tensor = of_tensor(value, name)
    return value if tensor is None else tensor


def _ragged(value: Any, error: Exception) -> str:
    """Return why lists are no array, and what to do up to the shape that is expected."""
    lengths = _lengths(value)
    if len(lengths) > 1:
        return f"rows of different lengths ({', '.join(map(str, lengths))}); pad them to"
    if "inhomogeneous" in str(error):  # numpy tells of its own insides
        return "lists beside numbers; expected numbers of the shape"
    return f"{error}; pad them to"


def _lengths(value: Any) -> list[int]:
    """Return the different lengths of rows at the first depth where they differ."""
    level = [value]
    while level and all(isinstance(each, list | tuple | np.ndarray) for each in level):
        lengths = sorted({len(each) for each in level})
        if len(lengths) > 1:
            return lengths
        level = [inner for each in level for inner in each]
    return []


def _dtype_of(spec: TensorSpec, array: Array) -> str:
    """Return the dtype that is expected. An id may have any integer type, and be a truth value."""
    return str(array.dtype) if spec.dtype == "int64" and array.dtype.kind in "iub" else spec.dtype


def _check_values(spec: TensorSpec, array: Array, *, check_finite: bool) -> None:
    if spec.dtype == "float32":
        if check_finite and array.dtype == np.float32 and not is_finite(array):
            sample = next(number for number, one in enumerate(array) if not is_finite(one))
            bad = array[sample][~(np.abs(array[sample]) <= MOST_FLOAT)].flat[0]
            raise InputError(
                f'input "{spec.name}": sample {sample} has {bad:g}; it must be finite and at most {MOST_FLOAT:g}'
                + SKIPS_CHECK
            )
        return
    if spec.dtype == "bool":
        return
    for column, vocabulary in enumerate(spec.vocabularies):
        _check_ids(spec, array[..., column], vocabulary, f" at place {column} of the last dimension")
    if not spec.vocabularies:
        _check_ids(spec, array, spec.vocabulary, "")


def check_blank(spec: TensorSpec, array: Array) -> None:
    """Raise InputError for a sample that leaves a sequence no step, as torch itself does."""
    if spec.blank is None:
        return
    blank = (array == spec.blank).reshape(len(array), -1).all(axis=1)
    if blank.any():
        what = f"{spec.blank:g}" if spec.size == 1 else f"{spec.blank:g} in every place"
        raise InputError(
            f'input "{spec.name}": sample {int(blank.argmax())} has {what}, which makes a sequence without a step; '
            "the model packs its sequences, or reads the last step of each, and each has a length of at least 1"
        )


def _check_ids(spec: TensorSpec, array: Array, vocabulary: int | None, where: str) -> None:
    low, high = (0, vocabulary - 1) if vocabulary is not None else (-LARGEST_EXACT, LARGEST_EXACT)
    if int(array.min()) >= low and int(array.max()) <= high:
        return
    sample = next(number for number, one in enumerate(array) if int(one.min()) < low or int(one.max()) > high)
    bad = next(int(each) for each in array[sample].flat if not low <= int(each) <= high)
    there = " there" if where else ""
    why = "" if vocabulary is not None else ", which a runner can pass exactly"
    raise InputError(
        f'input "{spec.name}": sample {sample} has {bad}{where}; the model takes {low} to {high}{there}{why}'
    )


def _takes(signature: Signature) -> str:
    return f"the model takes {signature.inputs_text()}"
