"""``[tokenizer]``: text as input."""

from __future__ import annotations

from cpupack.recipe.tables.base import PositiveInt, Table, Text


class Tokenizer(Table):
    """How text becomes the model's inputs. The wheel carries the tokenizer and takes text (docs/how-to/text.md).

    The inputs ``input_ids``, ``attention_mask`` and ``token_type_ids`` are made from text, each if the model has it;
    of a model with one input of integers, that one takes the ids.
    """

    source: Text | None = None
    """The file ``tokenizer.json`` of the library tokenizers: a path, or ``package:NAME/FILE`` in an installed package.
    Left out, it is the one in the directory of a ``transformers:`` or ``sentence-transformers:`` source."""
    max_length: PositiveInt | None = None
    """Tokens that the model reads of a text, with the special ones. Longer texts are cut, with a warning. Left out, it
    is what the directory of the source says; with ``[[input]]`` tables, the length of the ids."""
    pad_token: Text | None = None
    """The token that fills up short texts. Left out, it is what ``tokenizer.json`` says, else ``[PAD]`` or
    ``<pad>``."""
    fixed_length: bool = False
    """Fill each text up to ``max_length``, and compute the padding too: for models that were trained so, without a
    mask. Left out, it is true of directories of SigLIP and FNet. Otherwise padding is not computed."""
    mask_token: Text | None = None
    """``[task] kind = "fill"``: the token that stands for a gap in a text. Left out, it is what the directory of the
    source says, else ``[MASK]`` or ``<mask>``."""
    prefix: str = ""
    """Put before each text, such as ``query: `` for models that were trained with it. Left out, it is the default
    prompt of a ``sentence-transformers:`` directory, if it has one."""
