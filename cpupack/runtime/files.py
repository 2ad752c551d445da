"""The names of the files of a package: the build writes them, the runner and ``cpupack inspect`` read them.

``_runtime/`` beside them is this package.
"""

from __future__ import annotations

MANIFEST_NAME = "manifest.json"
"""What the wheel says about itself; the hash of every other file is in it."""
MODEL_NAME = "model.pt"
GOLDEN_NAME = "golden.npz"
"""Inputs, and what the saved and the FP32 model answered to them at the build."""
LABELS_NAME = "labels.txt"
RECIPE_NAME = "recipe.toml"
RECOVERED_NAME = "recovered.toml"
"""The ``[quantize]`` table that recovery found; only where it had to."""
VERIFY_NAME = "verify.json"
"""The comparison with FP32, with every raw measurement."""
TUNE_NAME = "tune.json"
"""The tuned setting, and the rows that the build measured."""
BUILD_NAME = "build.json"
"""What the build found out; ``cpupack report`` shows it."""
