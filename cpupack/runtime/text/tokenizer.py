"""A package's tokenizer: makes the tokens of a text with the library ``tokenizers`` from the file tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import extras
from ..errors import HostError, InputError, IntegrityError, TruncatedTextWarning
from ..files import TOKENIZER_NAME
from ..host.limits import system_fault
from ..manifest import Manifest
from ..warn import warn
from .sizes import Sizes
from .spec import TokenizerSpec, spec_of
from .texts import Text, text_of

_LIBRARY_ERRORS = (Exception, TypeError, ValueError, OverflowError)
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text as the model reads them: their ids and types, at most ``max_length``.

    ``total`` is the number that the whole text has. ``text`` is what they are of, after ``prefix`` characters that the
    package puts before it, and ``encoding`` is the library's own object, which knows the place of each token.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    total: int
    text: Text | None = field(default=None, compare=False, repr=False)
    prefix: int = 0
    encoding: Any = field(default=None, compare=False, repr=False)

    @property
    def truncated(self) -> bool:
        """Whether the model does not read the whole text."""
        return self.total > len(self.ids)

    def facts(self) -> dict[str, Any]:
        """Return what a result says of it: ``tokens`` of the text, ``truncated``."""
        return {"tokens": self.total, "truncated": self.truncated}


class Tokenizer:
    """Makes tokens of texts. Safe to call from several threads, and without threads of its own.

    ``content`` are the bytes of a tokenizer.json, which errors call ``where``. ``own_padding`` is id, type and side of
    the padding that the file asks for, None where it asks for none; ``own_cut_side`` is where it cuts a long text.

    Raises HostError where the library is not installed, IntegrityError for a file that it cannot read.
    """

    def __init__(self, content: bytes, spec: TokenizerSpec, where: str, sizes: Sizes | None = None) -> None:
        extras.require("tokenizers", extras.TOKENIZERS, "text")
        import tokenizers  # here: packages that take no text do not need it

        self.spec = spec
        self.sizes = sizes or Sizes((spec.max_length,))
        try:
            self._whole = tokenizers.Tokenizer.from_buffer(content)
            self._cut = tokenizers.Tokenizer.from_buffer(content)
            self.own_padding, self.own_cut_side = _padding_of(self._whole), _cut_side_of(self._whole)
            self._whole.no_padding()
            self._whole.no_truncation()
            self._cut.no_padding()
            self._cut.enable_truncation(spec.max_length, strategy="longest_first", direction=spec.cut_side)
        except Exception as error:
            raise IntegrityError(f"{where} is no tokenizer.json that the library tokenizers reads: {error}") from error
        try:
            self._encode(self._whole, Text(""))  # what is put around a text may not be there
        except InputError as error:
            raise IntegrityError(
                f"{where} is damaged: {error}; save it anew with the library that the model was trained with"
            ) from error

    @classmethod
    def of(cls, package_dir: Path, manifest: Manifest) -> Tokenizer | None:
        """Return the tokenizer of a package, None where the model takes no text."""
        spec = spec_of(manifest)
        if spec is None:
            return None
        path = package_dir / TOKENIZER_NAME
        try:
            return cls(path.read_bytes(), spec, str(path))
        except OSError as error:
            if (refused := system_fault(error)) is not None:
                raise HostError(refused) from error
            raise IntegrityError(f"cannot read {path}: {error.strerror}; reinstall the package") from error

    @property
    def vocabulary(self) -> int:
        """One more than the largest id that it gives, with those of added tokens."""
        return max(self._whole.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def special_tokens(self) -> int:
        """How many special tokens it puts around one text."""
        return int(self._whole.num_special_tokens_to_add(False))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, None where there is no such token."""
        found: int | None = self._whole.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text, without the marks of the vocabulary."""
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def tokens(self, item: Any, what: str = "the text") -> Tokens:
        """Return the tokens of one text, a pair, or what else ``text_of`` takes. Raises InputError."""
        given = text_of(item, what)
        text = Text(self.spec.prefix + given.text, given.pair)
        encoded = self._encode(self._whole, text, what)
        total = len(encoded.ids)
        if total > self.spec.max_length:
            encoded = self._truncated(text, total, what)
        if not encoded.ids:
            raise InputError(f"{what} has no tokens, so there is nothing that the model could read")
        types = (0,) * len(encoded.ids) if self.spec.one_type else tuple(encoded.type_ids)
        return Tokens(tuple(encoded.ids), types, total, given, len(self.spec.prefix), encoded)

    def _truncated(self, text: Text, total: int, what: str) -> Any:
        most = self.spec.max_length
        encoded = self._encode(self._cut, text, what)
        if len(encoded.ids) > most:  # the library cuts nothing where the special tokens alone do not fit
            raise InputError(f"{what} has {total} tokens, which cannot be cut to {most}: special tokens take more")
        return encoded

    def _encode(self, tokenizer: Any, text: Text, what: str = "a text") -> Any:
        """Return the library's tokens. Raises InputError where it has none: its errors have no class of their own."""
        try:
            return tokenizer.encode(text.text, text.pair)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            if type(error) not in _LIBRARY_ERRORS and type(error).__name__ != "PanicException":
                raise  # sent to this thread from outside
            raise InputError(f"the library tokenizers makes no tokens of {what}: {error}") from error

    def warn_if_truncated(self, tokens: Sequence[Tokens]) -> None:
        """Warn, once for a call, of texts that the model does not read to their end."""
        cut = [each for each in tokens if each.truncated]
        if cut:
            longest = max(each.total for each in cut)
            end = "first" if self.spec.cut_side == "right" else "last"
            which = "the text has" if len(tokens) == 1 else f"{len(cut)} of {len(tokens)} texts have up to"
            told = f"{which} {longest} tokens, and the model reads the {end} {self.spec.max_length}"
            warn(told, TruncatedTextWarning)

    def arrays(self, tokens: Sequence[Tokens], size: int | None = None) -> dict[str, Ids]:
        """Return the model's inputs by name, int64 ``(n, size)``, padded; ``size`` is by default the largest."""
        size = size or self.sizes.largest
        spec, shape = self.spec, (len(tokens), size)
        ids, types = np.full(shape, spec.pad_id, np.int64), np.full(shape, spec.pad_type_id, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, each in enumerate(tokens):
            count = len(each.ids)
            place = slice(0, count) if spec.side == "right" else slice(size - count, size)
            ids[row, place], types[row, place], mask[row, place] = each.ids, each.types, 1
        made = {spec.ids: ids, spec.mask: mask, spec.types: types}
        return {name: array for name, array in made.items() if name is not None}


def _padding_of(tokenizer: Any) -> tuple[int, int, str] | None:
    """Return id, type and side of the padding that the file itself asks for, None where it asks for none."""
    own = tokenizer.padding
    return None if own is None else (int(own["pad_id"]), int(own["pad_type_id"]), str(own["direction"]))


def _cut_side_of(tokenizer: Any) -> str:
    """Return the end of a long text that the file itself leaves out."""
    own = tokenizer.truncation
    return "left" if own is not None and str(own.get("direction")).lower() == "left" else "right"
