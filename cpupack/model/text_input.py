"""Fits ``[tokenizer]`` to a loaded model: which inputs its tokens become, and whether the model has all their ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cpupack.errors import ModelError, RecipeError
from cpupack.model.library_tokenizer import library_form
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.places import located
from cpupack.recipe.tables.text import Tokenizer as Table
from cpupack.runtime.errors import HostError, IntegrityError
from cpupack.runtime.signature import Signature
from cpupack.runtime.tasks.spec import FILL, OF_TEXT, TaskSpec
from cpupack.runtime.text.spec import IDS, TextInput, TokenizerSpec, roles_of
from cpupack.runtime.text.tokenizer import Tokenizer

_MASKS = ("[MASK]", "<mask>")
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


def check_tokenizer(loaded: LoadedRecipe) -> None:
    """Raise ModelError where the tokenizer's file is damaged, before a library says so in other words."""
    table = loaded.recipe.tokenizer
    if table is not None and table.source is not None:
        path = located(table.source, loaded.path.parent)
        _opened(_read(path), path, TokenizerSpec(1, IDS))


def text_input(loaded: LoadedRecipe, signature: Signature, progress: Progress) -> TextInput | None:
    """Return how the model takes text, None without ``[tokenizer]``.

    Raises ModelError for a file that is no tokenizer, for one with more ids than the model has, and where the library
    is missing; RecipeError for a length that the inputs do not have.
    """
    table = loaded.recipe.tokenizer
    if table is None:
        return None
    assert table.source is not None  # checks.py: only directories leave it out, and derived.py fills it in
    path = located(table.source, loaded.path.parent)
    ids, mask, types = roles_of(signature.inputs)
    specs = {each.name: each for each in signature.inputs}
    if ids is None:
        raise RecipeError('[tokenizer] makes inputs from text, and the model has no input "input_ids"')
    length = specs[ids].shape[0]
    if table.max_length not in {None, length}:
        raise RecipeError(f'[tokenizer] max_length: {table.max_length} tokens, and the input "{ids}" takes {length}')
    content = _read(path)
    plain = _opened(content, path, TokenizerSpec(length, ids, mask, types, prefix=table.prefix))
    most = specs[ids].vocabulary
    form = library_form(loaded, path, content, most, specs, progress)
    (pad, pad_type, side), cut = _padding(plain, table.pad_token, path), form.cut_side or plain.own_cut_side
    prefers_left = form.pads_left and plain.own_padding is None
    if form.content is not None:
        content = form.content
        plain = _opened(content, path, TokenizerSpec(length, ids, mask, types, prefix=table.prefix))
    gap = _mask(plain, table.mask_token, path)
    spec = TokenizerSpec(
        length, ids, mask, types, pad, pad_type, "left" if prefers_left else side,
        prefix=table.prefix, cut_side=cut, mask_id=gap, one_type=not form.typed,
    )  # fmt: skip
    if most is not None and plain.vocabulary > most:
        raise ModelError(
            f"[tokenizer] source: {path} gives ids up to {plain.vocabulary - 1}, and the model has {most}",
            hint="take the tokenizer.json that was saved with this model. If tokens were added to it, the model needs "
            "a row for each: model.resize_token_embeddings(len(tokenizer)), and train those",
        )
    if length <= plain.special_tokens:
        raise RecipeError(
            f"[tokenizer] max_length: of {length} tokens {plain.special_tokens} are special ones, which leaves none "
            "for the text"
        )
    return TextInput(content, spec, prefers_left)


def check_task(task: TaskSpec, signature: Signature, text: TextInput | None) -> None:
    """Raise RecipeError or ModelError where a task's results lie in a text that the model does not read so."""
    if task.kind not in OF_TEXT:
        return
    if text is None:
        raise RecipeError(f'[task] kind = "{task.kind}" has its results in a text, and the recipe has no [tokenizer]')
    if task.kind == FILL and text.spec.mask_id is None:
        raise RecipeError(
            '[tokenizer] mask_token: [task] kind = "fill" fills the gaps of a text, and tokenizer.json has none of '
            f"{', '.join(_MASKS)}",
            hint="set mask_token to the token that stands for a gap",
        )
    for each in signature.outputs:
        if each.shape[0] != text.spec.max_length:
            raise ModelError(
                f'[task] kind = "{task.kind}" needs a row for each of the {text.spec.max_length} tokens, and the '
                f'output "{each.name}" has the shape {each.shape}',
                hint='set [task] kind = "raw" for outputs as they are',
            )


def with_mask(signature: Signature, text: TextInput | None) -> Signature:
    """Return the signature with a mask of zeros and ones: a model may count with it, and then no sum is too large."""
    if text is None or text.spec.mask is None:
        return signature
    inputs = tuple(
        dataclasses.replace(each, vocabulary=2)
        if each.name == text.spec.mask and each.vocabulary is None and each.dtype != "bool"
        else each
        for each in signature.inputs
    )
    return Signature(inputs, signature.outputs)


def with_pads(signature: Signature, text: TextInput | None, table: Table | None) -> Signature:
    """Return the signature with the values that the tokenizer pads its inputs with, where it does so at the end.

    Padding that the recipe's ``table`` has computed is none.
    """
    if text is None or text.spec.side != "right" or (table is not None and table.fixed_length):
        return signature
    return padded(signature, text.spec)


def padded(signature: Signature, spec: TokenizerSpec) -> Signature:
    """Return the signature with the values that a tokenizer pads its inputs with, on whichever side."""
    pads = {spec.ids: float(spec.pad_id), spec.mask: 0.0, spec.types: float(spec.pad_type_id)}
    inputs = tuple(
        dataclasses.replace(each, pad=pads[each.name]) if each.name in pads and each.pad is None else each
        for each in signature.inputs
    )
    return Signature(inputs, signature.outputs)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"[tokenizer] source: cannot read {path}: {error.strerror}") from error


def _opened(content: bytes, path: Path, spec: TokenizerSpec) -> Tokenizer:
    try:
        return Tokenizer(content, spec, str(path))
    except IntegrityError as error:
        raise ModelError(f"[tokenizer] source: {error}") from error
    except HostError as error:
        raise ModelError(
            "tokenizers is not installed, and the recipe has text as input", hint='pip install "cpupack[text]"'
        ) from error


def _mask(tokenizer: Tokenizer, token: str | None, path: Path) -> int | None:
    """Return the id of the token that stands for a gap, None where there is none."""
    if token is None:
        return next((found for each in _MASKS if (found := tokenizer.id_of(each)) is not None), None)
    if (found := tokenizer.id_of(token)) is None:
        raise RecipeError(f'[tokenizer] mask_token: {path} has no token "{token}"')
    return found


def _padding(tokenizer: Tokenizer, token: str | None, path: Path) -> tuple[int, int, str]:
    """Return id, type and side of the padding."""
    own = tokenizer.own_padding
    if token is None and own is not None:
        return own
    kind, side = (own[1], own[2]) if own is not None else (0, "right")
    if token is not None:
        number = tokenizer.id_of(token)
        if number is None:
            raise RecipeError(f'[tokenizer] pad_token: {path} has no token "{token}"')
        return number, kind, side
    for each in _PADDING:
        if (number := tokenizer.id_of(each)) is not None:
            return number, kind, side
    raise RecipeError(f"[tokenizer] pad_token: {path} does not say which token fills up short texts; set pad_token")
