"""Fits a recipe's inputs and outputs to a user's model: what goes in under which name, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError, RecipeError
from cpupack.model.arguments import Argument, argument_names
from cpupack.model.carried import carried_states
from cpupack.model.leaves import leaves_of
from cpupack.model.one_row import OneRow, Taken, blank
from cpupack.model.packed import EmptySequenceError, padded_sequences, refusing_empty
from cpupack.model.states import batch_axes, check_states, runs_blank, with_state_outputs
from cpupack.model.trial_run import check_output, dtype_hint, dtype_of, run_zeros
from cpupack.model.user_code import describe_failure
from cpupack.progress import Progress
from cpupack.recipe import Output, Recipe
from cpupack.runtime.signature import OUTPUT, OutputSpec, Signature
from cpupack.runtime.tensor_spec import LARGEST_EXACT, TensorSpec

_BATCH = 2
_WHOLE = {
    torch.bool: "bool", torch.uint8: "uint8",
    **dict.fromkeys((torch.int8, torch.int16, torch.int32, torch.int64), "int64"),
}  # fmt: skip
"""What a caller gets for outputs that are no floats."""
_TRIED_COLUMNS = 32
"""Of so many columns it is tried whether they have the same vocabulary: long ones are of words, which do."""


@dataclass(frozen=True)
class Fitted:
    """A model that takes and gives one tensor. ``module`` is the user's where it does so by itself.

    ``one`` is what the user's model gave for one sample of zeros, where the module is the user's.
    """

    module: nn.Module
    signature: Signature
    one: Any = None


def fit_signature(module: nn.Module, source: str, recipe: Recipe, progress: Progress) -> Fitted:
    """Run a user's model on zeros and return it with its inputs and outputs by name.

    Raises RecipeError for a name in [[input]] or [[output]] that the model does not have, ModelError when it does not
    run on zeros, or for an output that a wheel cannot have: without the batch, of whole numbers.
    """
    inputs = recipe.input_specs
    names: list[Argument] = [None] if recipe.model.input_shape is not None else argument_names(module, inputs, source)
    given = [each.batch_dim for each in recipe.input] or [0]
    if recipe.model.stream:
        inputs = _lengths_from_one(OneRow(module, inputs, names, axes=given), inputs)
        alone = OneRow(module, inputs, names, axes=given)
        with padded_sequences() as use:
            run_zeros(alone, source, inputs, 1)  # says why, where it does not run
        if use.packs:
            raise ModelError(
                f"[model] stream: {source} packs its sequences by their lengths; the chunks of a stream have none",
                hint="call the recurrent layers with tensors",
            )
        some = alone.tensors(blank(inputs, _BATCH))
        layers, states, places = carried_states(module, source, alone.call_user, some, given)
        taken_names = {each.name for each in inputs}
        if clash := next((each.name for each in states if each.name in taken_names), None):
            raise RecipeError(f'[[input]] name = "{clash}" is also that of a state that stream = true adds')
        axes = (*given, *places)
        inputs = (*inputs, *states)
        whole = OneRow(module, inputs, names, axes=axes, carried=layers)
    else:
        axes = batch_axes(module, inputs, names, given)
        whole = OneRow(module, inputs, names, axes=axes)
        inputs = _lengths_from_one(whole, inputs)
        whole = whole.with_inputs(inputs)
    as_it_is = not Signature(inputs, (OutputSpec(OUTPUT, ()),)).takes_rows and names == [None] and not any(axes)
    with padded_sequences() as use:
        one = run_zeros(module if as_it_is else whole, source, inputs, 1)
    if use.packs:
        whole, as_it_is = whole.packing(), False
    if isinstance(one, torch.Tensor) and (one.dtype in _WHOLE or (one.ndim > 1 and one.shape[0] != 1)):
        as_it_is = False
    user = module if as_it_is else whole
    if isinstance(one, torch.Tensor) and as_it_is and one.ndim != 1:
        check_output(one, source, 1, None)
        _dropped(recipe.output, [OUTPUT])
        specs = _kept([Taken(OUTPUT, tuple(one.shape[1:]))], recipe.output)
        return Fitted(module, Signature(inputs, tuple(spec for _, spec in specs)), one)
    two = run_zeros(user, source, inputs, _BATCH, fixed=True)
    state_axes = {each.state: axis for each, axis in zip(inputs, axes, strict=True) if each.state is not None}
    check_states(inputs, leaves_of(one).tensors, {each.name for each in recipe.output if each.drop})
    taken = _outputs(one, two, recipe.output, source, progress, state_axes)
    kept = _kept(taken, recipe.output)
    signature = Signature(with_state_outputs(inputs, kept), tuple(spec for _, spec in kept))
    return Fitted(whole.taking([each for each, _ in kept]), signature)


def _lengths_from_one(module: OneRow, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the inputs with the note that lengths begin at 1, where the model runs with them and not with zeros.

    ``gather(1, lengths - 1)`` is one way in which models read the last step of each sequence.
    """
    known = {each.name: dataclasses.replace(each, blank=0.0) for each in inputs if _may_be_length(each)}

    def runs(some: Collection[str]) -> bool:
        tried = tuple(known[each.name] if each.name in some else each for each in inputs)
        with padded_sequences():
            return runs_blank(module.with_inputs(tried), tried)

    if not known or runs(()) or not runs(known):
        return inputs
    needed = set(known)
    for name in known:
        if runs(needed - {name}):
            needed.remove(name)
    return tuple(known[each.name] if each.name in needed else each for each in inputs)


def _may_be_length(spec: TensorSpec) -> bool:
    return spec.dtype == "int64" and spec.size == 1 and spec.default is None and spec.state is None and not spec.names


def _outputs(
    one: Any, two: Any, tables: Sequence[Output], source: str, progress: Progress, axes: Mapping[str, int]
) -> list[Taken]:
    """Return the outputs that the recipe does not drop, from those of one sample and of two.

    ``axes`` has the dimension of the batch of the outputs that are states.
    """
    ones, twos = leaves_of(one), leaves_of(two)
    dropped = _dropped(tables, [*ones.tensors, *ones.others])
    if ones.tensors.keys() != twos.tensors.keys():
        raise ModelError(
            f"[model] {source} returns {', '.join(ones.tensors) or 'nothing'} for one sample and "
            f"{', '.join(twos.tensors) or 'nothing'} for two",
            hint="forward must return the same outputs for every input",
        )
    for name, kind in ones.others.items():
        if name not in dropped:
            progress.note(f"the output {name} is {kind}, no tensor: it is left out")
    if not ones.tensors:
        check_output(one, source, 1, None)  # says what it is
    found = []
    for name, tensor in ones.tensors.items():
        if name in dropped:
            continue
        axis = axes.get(name, 0) if tensor.ndim > 1 else 0
        if name not in axes and (axis := _batch_dim(tensor, twos.tensors[name])):
            progress.note(f"the output {name} has the batch in dimension {axis}: the wheel gives it first")
        first, second = (
            (each.movedim(axis, 0) for each in (tensor, twos.tensors[name]))
            if axis
            else (
                tensor,
                twos.tensors[name],
            )
        )
        _check(name, first, second, source)
        found.append(Taken(name, tuple(first.shape[1:]), axis, _WHOLE.get(tensor.dtype)))
    return found


def _batch_dim(one: torch.Tensor, two: torch.Tensor) -> int:
    """Return which dimension of an output is the batch, from those of one sample and of two; 0 where none is."""
    if one.ndim != two.ndim or one.ndim == 0 or (one.shape[0], two.shape[0]) == (1, _BATCH):
        return 0
    other = [axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]]
    return other[0] if len(other) == 1 and (one.shape[other[0]], two.shape[other[0]]) == (1, _BATCH) else 0


def _dropped(tables: Sequence[Output], names: Sequence[str]) -> set[str]:
    for table in tables:
        if table.name not in names:
            near = get_close_matches(table.name, names, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else ""
            raise RecipeError(
                f'[[output]] name = "{table.name}": the model returns {", ".join(names) or "nothing"}{meant}',
                hint="entries of a tuple are output_0, output_1; those of a dict have their keys",
            )
    return {table.name for table in tables if table.drop}


def _check(name: str, one: torch.Tensor, two: torch.Tensor, source: str) -> None:
    """Raise ModelError for an output that is no float tensor with the batch first."""
    drop = f'[[output]] name = "{name}" with drop = true leaves it out'
    what = f'[model] {source}: the output "{name}"'
    if not one.is_floating_point() and one.dtype not in _WHOLE:
        raise ModelError(
            f"{what} is {dtype_of(one)}; a wheel's outputs are float32", hint=f"{drop}; or {dtype_hint(one)}"
        )
    if one.ndim and two.ndim and one.shape[0] == 1 and two.shape[0] == _BATCH and one.shape[1:] == two.shape[1:]:
        if 0 in one.shape:
            raise ModelError(f"{what} has no values: its shape is {tuple(one.shape)}", hint=drop)
        return
    if one.shape == two.shape:
        raise ModelError(
            f"{what} has the shape {tuple(one.shape)} for one sample and for two: the batch is not its first dimension",
            hint=f"{drop}; a wheel's output has a value for each sample, which a loss or a constant has not: "
            "mean(dim=...) keeps the batch, mean() does not. Models that are not batch_first: batch_dim = 1 in the "
            "[[input]]",
        )
    raise ModelError(
        f"{what} has the shape {tuple(one.shape)} for one sample and {tuple(two.shape)} for two; one dimension must be "
        "the batch, and the others fixed",
        hint=f"{drop}; models that are not batch_first: batch_dim = 1 in the [[input]]",
    )


def _kept(taken: Sequence[Taken], tables: Sequence[Output]) -> list[tuple[Taken, OutputSpec]]:
    """Return the outputs of a wheel, each with what is made of it."""
    by_name = {table.name: table for table in tables}
    found: list[tuple[Taken, OutputSpec]] = []
    for each in taken:
        table = by_name.get(each.name)
        if table is not None and table.drop:
            continue
        name = each.name if table is None or table.rename is None else table.rename
        if name in [spec.name for _, spec in found]:
            raise RecipeError(f'[[output]] rename: two outputs would have the name "{name}"')
        found.append((each, _spec(name, each, table)))
    if not found:
        raise RecipeError("[[output]] drops every output of the model", hint="keep one")
    return found


def _spec(name: str, taken: Taken, table: Output | None) -> OutputSpec:
    if table is None or table.apply is None:
        return OutputSpec(name, taken.shape, whole=taken.whole)
    if taken.whole is not None:
        raise RecipeError(
            f'[[output]] "{taken.name}": {table.apply} is for scores, and the model gives {taken.whole}',
            hint="leave apply out, or return the scores themselves",
        )
    if table.apply == "sigmoid":
        return OutputSpec(name, taken.shape, "sigmoid")
    ranks = len(taken.shape)
    if ranks == 0 or (table.dim is None and ranks != 1):
        why = "one number a sample" if ranks == 0 else f"the shape {taken.shape} for a sample"
        raise RecipeError(
            f'[[output]] "{taken.name}": {table.apply} goes over one dimension, and this output has {why}',
            hint='apply = "sigmoid" has no dimension' if ranks == 0 else f"set dim, from 1 to {ranks}; the batch is 0",
        )
    dim = table.dim or 1
    if dim > ranks:
        raise RecipeError(
            f'[[output]] "{taken.name}": it has no dimension {dim}; its shape is {taken.shape} for a sample',
            hint=f"set dim from 1 to {ranks}; the batch is 0",
        )
    if taken.shape[dim - 1] == 1:
        raise RecipeError(
            f'[[output]] "{taken.name}": {table.apply} over dimension {dim} has one value to choose from, so it is '
            f"{'1' if table.apply == 'softmax' else '0'} whatever the model says; the shape is {taken.shape} for a "
            "sample",
            hint='one score of yes or no takes apply = "sigmoid"',
        )
    return OutputSpec(name, taken.shape, table.apply, dim)


def with_vocabularies(module: nn.Module, signature: Signature) -> Signature:
    """Return the signature with the vocabulary of each input of ids, from the largest id with which the model runs.

    ``module`` is that of ``Fitted``. An input that the recipe gives a vocabulary keeps it.
    """
    found = []
    for place, spec in zip(signature.input_places(), signature.inputs, strict=True):
        if spec.dtype in {"int64", "uint8"} and spec.vocabulary is None:
            most = 256 if spec.dtype == "uint8" else LARGEST_EXACT
            limit = _first_failing(module, signature, place, most)
            columns = () if limit is None else _columns(module, signature, spec, place, limit, most)
            largest = limit if not columns else None if None in columns else max(each or 0 for each in columns)
            found.append(dataclasses.replace(spec, vocabulary=largest, vocabularies=columns))
        else:
            found.append(spec)
    return _with_blanks(module, Signature(tuple(found), signature.outputs))


def _with_blanks(module: nn.Module, signature: Signature) -> Signature:
    """Return the signature with the value of each input that, alone in a sample, makes a packed sequence of length 0.

    Raises RecipeError where that is the input's default.
    """
    if not isinstance(module, OneRow) or not module.packs:
        return signature
    usual = next((each for each in (1, 2, 3) if not _packs_nothing(module, signature, each)), None)
    if usual is None:  # the lengths come from something else than single values
        return signature
    found = []
    for place, spec in zip(signature.input_places(), signature.inputs, strict=True):
        tried = (0.0, 1.0) if spec.state is None else ()
        refused = next((each for each in tried if _packs_nothing(module, signature, usual, place, each)), None)
        if refused is not None and spec.default == refused:
            raise RecipeError(
                f'[[input]] "{spec.name}": default = {refused:g}, and the model packs its sequences by it; each must '
                "have a length of at least 1",
                hint="set a default that leaves a step, or leave it out",
            )
        found.append(spec if refused is None else dataclasses.replace(spec, blank=refused))
    return Signature(tuple(found), signature.outputs)


def _packs_nothing(
    module: nn.Module, signature: Signature, usual: float, place: slice | None = None, value: float = 0.0
) -> bool:
    """Whether a sample of ``usual``, but for one input, which is ``value``, packs a sequence of length 0."""
    row = torch.full_like(blank(signature.inputs, 1), usual)
    if place is not None:
        row[:, place] = value
    try:
        with torch.no_grad(), refusing_empty():
            module(row)
    except EmptySequenceError:
        return True
    except Exception:  # noqa: BLE001 - an id beyond a table, a length beyond the steps: nothing is known of this value
        return place is None
    return False


def _columns(
    module: nn.Module, signature: Signature, spec: TensorSpec, place: slice, limit: int, most: int
) -> tuple[int | None, ...]:
    """Return the vocabulary of each value along the last dimension, () where all are ``limit``, as for words.

    ``limit`` is the first id that fails at all places together. A table of categories has one for each column.
    """
    count = spec.shape[-1] if spec.shape else 1
    columns = [slice(place.start + column, place.stop, count) for column in range(count)]
    some = columns[:: -(-count // _TRIED_COLUMNS)]
    if all(_failure(module, signature, each, limit) is not None for each in some):
        return ()
    return tuple(_first_failing(module, signature, each, most) for each in columns)


def check_vocabularies(module: nn.Module, signature: Signature) -> None:
    """Raise RecipeError for a vocabulary of the recipe that is larger than the model's table."""
    for place, spec in zip(signature.input_places(), signature.inputs, strict=True):
        if spec.vocabulary is None:
            continue
        failure = _failure(module, signature, place, spec.vocabulary - 1)
        if failure is not None:
            limit = _first_failing(module, signature, place, spec.vocabulary)
            raise RecipeError(
                f'[[input]] "{spec.name}": vocabulary = {spec.vocabulary}, and the model fails for ids from {limit} on'
                f": {describe_failure(failure)}",
                hint=f"set vocabulary to {limit}, or leave it out",
            ) from failure


def _first_failing(module: nn.Module, signature: Signature, place: slice, most: int) -> int | None:
    """Return the first id below ``most`` with which the model fails, None where it runs with all of them."""

    def runs(value: int) -> bool:
        return _failure(module, signature, place, value) is None

    if runs(most - 1):
        return None
    tables = {each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)}
    for size in sorted(each for each in tables if each < most):
        if runs(size - 1) and not runs(size):
            return size
    low, high = 0, most - 1  # runs, fails
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return high


def _failure(module: nn.Module, signature: Signature, place: slice, value: int) -> Exception | None:
    """Run one sample of zeros but for one input, whose values all are ``value``; return what the model raises."""
    row = blank(signature.inputs, 1)
    row[:, place] = value
    try:
        with torch.no_grad():
            module(row)
    except Exception as error:  # noqa: BLE001 - torch has several classes for an id beyond a table, users may have more
        return error
    return None
