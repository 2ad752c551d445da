"""The names of the files in a package. The build writes them; the runner and ``cpupack inspect`` read them.

``_runtime/``, next to these files, is a copy of ``cpupack/runtime/``.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

MANIFEST_NAME = "manifest.json"
"""The facts of the wheel, and the hash of every other file."""
ROOT_NAME = "manifest.sha256"
"""The hash of the manifest, as ``sha256sum -c`` reads it: with it the hash of the whole package."""
MODEL_NAME = "model.pt"
GOLDEN_NAME = "golden.npz"
"""Inputs, and the outputs of the saved model and of the FP32 model at the build."""
LABELS_NAME = "labels.txt"
TASK_NAME = "task.npz"
"""The constants of a detector: its anchors. Other models have no such file."""
TOKENIZER_NAME = "tokenizer.json"
"""What makes tokens of text, as the library tokenizers reads it. Only models that take text have it."""
RECIPE_NAME = "recipe.toml"
RECOVERED_NAME = "recovered.toml"
"""The ``[quantize]`` table that recovery found, in builds where it ran."""
BUILD_NAME = "build.json"
"""The facts of the build with all that was measured in it: tuned setting, speeds, times. Two builds of a recipe differ
in this file alone, so the manifest does not hash it; the wheel's RECORD does."""

UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, EOFError, OverflowError, RuntimeError),  # RuntimeError: encrypted, or of a newer zip version
    *(KeyError, TypeError, MemoryError),  # of numpy for arrays: absent, of no type, of sizes that cannot be
    *(struct.error, zipfile.BadZipFile, zlib.error),
    *(SyntaxError, tokenize.TokenError),  # of numpy, which reads the head of an array as an expression
)
"""What Python's own modules and numpy raise for an archive that is damaged, however."""
