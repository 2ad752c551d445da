"""The tokenizer of a model's directory as transformers makes it, which may be another than tokenizer.json alone says.

tokenizer_config.json can change letters to lower case, put a space before each text, add a token at its end, or say
which end of a long text is cut off. The library does all that when it reads a directory; a file alone does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpupack.errors import RecipeError
from cpupack.model.directories import library_of, quiet
from cpupack.model.user_code import describe_failure
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.derived import text_directory

_PROBES = (
    "Hello World, a Caf\u00e9 na\u00efve!",
    "a",
    "",
    " two  spaces ",
    "\u00dcmlaut \u0130 \u00df \u4e2d\u6587 \u0440\u0443\u0441 \u0e44\u0e17\u0e22",
    "don't e.g. 3.14 #tag @me",
    "line\none\ttab \U0001f600 \u00a0\u200b\ufb01",
)
"""Texts that come out otherwise with another case, accents, scripts, spaces, marks or special tokens."""


@dataclass(frozen=True)
class LibraryForm:
    """What the library reads a directory as: ``content`` is a tokenizer.json, None where the file's own is the same;
    ``cut_side`` is the end of a long text that is left out. ``typed`` says whether it makes types of tokens, and
    ``pads_left`` whether it puts padding in front of a text."""

    content: bytes | None
    cut_side: str | None
    typed: bool = True
    pads_left: bool = False


def library_form(
    loaded: LoadedRecipe, path: Path, content: bytes, most: int | None, given: Collection[str], progress: Progress
) -> LibraryForm:
    """Return how transformers reads the directory whose tokenizer.json is ``path`` with ``content``.

    ``given`` are the inputs of the model.

    Says so where it gives other tokens than the file. A file that the recipe took from elsewhere stays as it is, and
    so does one to which the library adds tokens beyond the ``most`` that the model has.
    """
    try:
        directory = text_directory(loaded.recipe, loaded.path.parent)
    except RecipeError:
        directory = None
    if directory is None or path.resolve() != (directory / "tokenizer.json").resolve():
        return LibraryForm(None, None)
    library = library_of("transformers")
    tokenizers = library_of("tokenizers", "text")
    try:
        with quiet():
            found = library.AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        backend = found.backend_tokenizer
        made = tokenizers.Tokenizer.from_str(backend.to_str())
    except Exception as error:  # noqa: BLE001 - the library raises any class; the file is read without it
        progress.warn(
            f"[tokenizer] transformers cannot read the tokenizer of {directory} ({describe_failure(error)}); "
            "tokenizer.json is taken as it is"
        )
        return LibraryForm(None, None)
    own = tokenizers.Tokenizer.from_buffer(content)
    for each in (made, own):
        each.no_padding()
        each.no_truncation()
    typed = "token_type_ids" in found.model_input_names
    if not typed and "token_type_ids" in given:
        progress.warn(
            f"[tokenizer] transformers {library.__version__} makes no token_type_ids with the {type(found).__name__} "
            f"of {directory}, so both texts of a pair are of type 0. If the model was trained with them, name them in "
            'tokenizer_config.json: "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]'
        )
    other = next((text for text in _probes(own) if _tokens(made, text) != _tokens(own, text)), None)
    side = found.truncation_side if found.truncation_side in {"left", "right"} else None
    plain = LibraryForm(None, side, typed, pads_left=found.padding_side == "left")
    if other is None:
        return plain
    if most is not None and max(made.get_vocab(with_added_tokens=True).values(), default=-1) >= most:
        progress.warn(
            f"[tokenizer] transformers reads {path} as a {type(found).__name__} with ids that the model does not have; "
            "tokenizer.json is taken as it is. tokenizer_class in tokenizer_config.json says which class it is of"
        )
        return plain
    text = other if isinstance(other, str) else " | ".join(other)
    progress.warn(
        f"[tokenizer] {path.name} alone makes other tokens of {text!r} than transformers does with "
        "tokenizer_config.json; the wheel gets those of transformers. To keep the file's, name a copy of it in "
        "[tokenizer] source"
    )
    return dataclasses.replace(plain, content=made.to_str().encode())


def _probes(tokenizer: Any) -> list[str | tuple[str, str]]:
    added = tokenizer.get_added_tokens_decoder()
    marks = " ".join(str(each.content) for _, each in sorted(added.items())[:8])
    return [*_PROBES, f"x {marks} y", ("one two", "three")]


def _tokens(tokenizer: Any, text: str | tuple[str, str]) -> tuple[list[int], list[int]]:
    parts = (text,) if isinstance(text, str) else text
    found = tokenizer.encode(*parts)
    return found.ids, found.type_ids
