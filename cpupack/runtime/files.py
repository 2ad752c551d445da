"""The names of the files in a package. The build writes them; the runner and ``cpupack inspect`` read them.

``_runtime/``, next to these files, is a copy of ``cpupack/runtime/``.
"""

from __future__ import annotations

MANIFEST_NAME = "manifest.json"
"""The facts of the wheel, and the hash of every other file."""
MODEL_NAME = "model.pt"
GOLDEN_NAME = "golden.npz"
"""Inputs, and the outputs of the saved model and of the FP32 model at the build."""
LABELS_NAME = "labels.txt"
RECIPE_NAME = "recipe.toml"
RECOVERED_NAME = "recovered.toml"
"""The ``[quantize]`` table that recovery found, in builds where it ran."""
VERIFY_NAME = "verify.json"
"""The comparison with FP32, with every raw measurement."""
TUNE_NAME = "tune.json"
"""The tuned setting, and the rows that the build measured."""
BUILD_NAME = "build.json"
"""The facts of the build, which ``cpupack report`` shows."""
