"""Models of an encoder and a decoder that answer in one pass: they classify a text, or find an answer in it.

BART, mBART and T5 with such a head read the whole text in both halves, and make no text token by token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.runtime.text.spec import TextInput
from cpupack.runtime.text.tokenizer import Tokenizer

_HEAD = "classification_head"


def in_one_pass(module: nn.Module) -> nn.Module:
    """Return a classifier with a decoder in a form that can be captured, any other model as it is."""
    config: Any = getattr(module, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return module
    body = next((name for name in ("model", "transformer") if hasattr(module, name)), None)
    if body is not None and hasattr(module, _HEAD) and getattr(config, "eos_token_id", None) is not None:
        return LastEndClassifier(module, body)
    return module


class LastEndClassifier(nn.Module):
    """Classifies a text by what the decoder says at its last token of end, as the library's own ``forward`` does.

    That one selects by a mask and asks whether all texts have as many such tokens, which depends on values: it cannot
    be captured. The layers keep their names. ``check_end`` sees that each text has such a token.
    """

    def __init__(self, user: nn.Module, body: str) -> None:
        super().__init__()
        self.config: Any = user.config
        self.add_module(body, getattr(user, body))
        self.add_module(_HEAD, getattr(user, _HEAD))
        self._body = body
        self._shifted: Any = getattr(type(user), "_shift_right", None)  # T5's body does not make the decoder's ids

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the scores ``(n, classes)``."""
        own = {} if self._shifted is None else {"decoder_input_ids": self._shifted(self, input_ids)}
        hidden = getattr(self, self._body)(input_ids, attention_mask=attention_mask, **own)[0]
        count = torch.arange(1, input_ids.shape[1] + 1)
        place = (input_ids.eq(self.config.eos_token_id) * count).argmax(dim=1)
        scores: torch.Tensor = getattr(self, _HEAD)(hidden[torch.arange(len(input_ids)), place])
        return scores


def check_end(module: nn.Module, text: TextInput | None) -> None:
    """Raise ModelError where such a classifier looks for a token of end that the tokenizer does not put there."""
    if not isinstance(module, LastEndClassifier) or text is None:
        return
    end = module.config.eos_token_id
    if end not in Tokenizer(text.file, text.spec, "tokenizer.json").tokens("a").ids:
        raise ModelError(
            f"[tokenizer] puts no token {end} at the end of a text, and the model reads its answer there "
            "(eos_token_id in config.json)",
            hint="take the tokenizer.json that was saved with this model",
        )
