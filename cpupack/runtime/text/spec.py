"""How a package makes its inputs from text: the settings of its tokenizer, as the manifest has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import IntegrityError
from ..manifest import Manifest
from ..tensor_spec import TensorSpec

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
"""The inputs that are made from text, by the names that the arguments of ``forward`` have."""
TEXT, TEXT_PAIR = "text", "text_pair"
"""The names of a text and of the second text of a pair, wherever they are given by name."""
SIDES = ("right", "left")


@dataclass(frozen=True)
class TokenizerSpec:
    """``max_length`` is in tokens, with the special ones. ``ids``, ``mask`` and ``types`` are names of inputs.

    Padding has the id ``pad_id`` and the type ``pad_type_id`` and goes to the ``side`` of the tokens. ``mask`` (1 for
    a token, 0 for padding) and ``types`` (0 for the first text, 1 for the second) are None for models without them.
    ``prefix`` is put before each text. ``cut_side`` is the end of a long text that is left out. ``mask_id`` is the
    token that stands for a gap, None where none is known. With ``one_type`` the second text is of type 0 too.
    """

    max_length: int
    ids: str
    mask: str | None = None
    types: str | None = None
    pad_id: int = 0
    pad_type_id: int = 0
    side: str = "right"
    prefix: str = ""
    cut_side: str = "right"
    mask_id: int | None = None
    one_type: bool = False

    def __post_init__(self) -> None:
        if (
            not {self.side, self.cut_side} <= set(SIDES)
            or min(self.max_length, self.pad_id + 1, self.pad_type_id + 1) < 1
        ):
            raise ValueError(f"{self} is no setting of a tokenizer")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are made from text."""
        return tuple(each for each in (self.ids, self.mask, self.types) if each is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        return {
            "max_length": self.max_length,
            "ids": self.ids,
            "mask": self.mask,
            "types": self.types,
            "pad_id": self.pad_id,
            "pad_type_id": self.pad_type_id,
            "side": self.side,
            "prefix": self.prefix,
            "cut_side": self.cut_side,
            "mask_id": self.mask_id,
            "one_type": self.one_type,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TokenizerSpec:
        """Read what ``to_dict`` wrote. Raises IntegrityError on damage."""
        try:
            return cls(**raw)
        except (TypeError, ValueError) as error:
            raise IntegrityError(f"the tokenizer in the manifest is damaged: {error}") from error


@dataclass(frozen=True)
class TextInput:
    """How a model takes text: the bytes of its tokenizer.json, and the settings that go with it.

    With ``prefers_left`` the side of the padding is the left one only as far as the model needs it.
    """

    file: bytes
    spec: TokenizerSpec
    prefers_left: bool = False


def spec_of(manifest: Manifest) -> TokenizerSpec | None:
    """Return how a package makes its inputs from text, None where it takes none. Raises IntegrityError."""
    if manifest.tokenizer is None:
        return None
    spec = TokenizerSpec.from_dict(manifest.tokenizer)
    names = [each.get("name") for each in manifest.inputs]
    if missing := [each for each in spec.inputs if each not in names]:
        raise IntegrityError(f"the tokenizer in the manifest makes {missing[0]}, and the model has no such input")
    return spec


def roles_of(inputs: Sequence[TensorSpec]) -> tuple[str | None, str | None, str | None]:
    """Return the names of the inputs that take ids, mask and types; of a single input of integers, it takes the ids."""
    names = [each.name for each in inputs]
    found = [name if name in names else None for name in (IDS, MASK, TYPES)]
    if found[0] is None and len(inputs) == 1 and inputs[0].dtype == "int64":
        found[0] = names[0]
    return found[0], found[1], found[2]
