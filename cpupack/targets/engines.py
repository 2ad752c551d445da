"""One record for each engine: its CPUs, its abilities, and which quantizer and loader it uses.

To add an engine, add a record here and its name to a Literal, a quantizer in ``stages/quantize/`` and a loader in the
runtime, or reuse existing ones. No other code tests for an engine's name. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cpupack.runtime.engine.library import LIBRARIES

X86Engine = Literal["native", "fbgemm", "x86", "onednn"]
"""The engines that ``[target.x86_64] engine`` may name."""
ArmEngine = Literal["native", "qnnpack", "onednn"]
"""The engines that ``[target.aarch64] engine`` may name."""


@dataclass(frozen=True)
class Engine:
    """Facts about an engine that the build needs before it uses the engine.

    ``places`` maps the lowest instruction set that a wheel is built for (``x86.floor``, ``arm.floor``) to the engine's
    position among the engines to try; the engine that is probably fastest has the first. Without a position the engine
    is not worth building, but a recipe may still name it. ``quantizer`` is the code that makes its models. ``loader``
    is the preparation before a model loads or runs: ``torch`` sets ``torch.backends.quantized.engine``, ``native``
    defines cpupack's operator. ``libraries`` maps a CPU family to the file that its wheels need, relative to the
    runtime.

    ``mixes`` says that FP32 layers may lie between INT8 layers. ``runs_any_model`` is false for an engine that refuses
    some models; then a refusal is not worth a warning. ``fits_sums`` says that its weights are chosen so that no 16-bit
    sum overflows, so it keeps 8-bit activations on every CPU. ``fuses_conv_add`` are the CPU families on which it runs
    convolution, addition and ReLU as one operator.
    """

    name: X86Engine | ArmEngine
    cpus: tuple[str, ...]
    places: Mapping[str, int]
    quantizer: Literal["torch", "native"] = "torch"
    loader: Literal["torch", "native"] = "torch"
    libraries: Mapping[str, Path] = field(default_factory=dict)
    mixes: bool = True
    runs_any_model: bool = True
    fits_sums: bool = False
    fuses_conv_add: tuple[str, ...] = ()


_RECORDS = (
    Engine(
        "native",
        ("x86_64", "aarch64"),
        # First on aarch64 by executed instructions (docs/explanation/arm.md): no ARM CPU has timed it.
        {"avx2": 0, "avx512_vnni": 0, "neon": 0},
        quantizer="native",
        loader="native",
        libraries=LIBRARIES,
        runs_any_model=False,
        fits_sums=True,
    ),
    # Only onednn's backend has quantized::conv2d_add_relu (torch/ao/quantization/backend_config/onednn.py).
    # A recipe may name it on aarch64, where nobody has measured it.
    Engine("onednn", ("x86_64", "aarch64"), {"avx2": 2, "avx512_vnni": 1}, fuses_conv_add=("x86_64",)),
    # Without VNNI, torch's engine x86 runs the same kernels as fbgemm.
    Engine("x86", ("x86_64",), {"avx512_vnni": 2}),
    Engine("fbgemm", ("x86_64",), {"avx2": 1, "avx512_vnni": 3}),
    Engine("qnnpack", ("aarch64",), {"neon": 1}),
)

ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in _RECORDS}


def raced(built_for: str) -> list[Engine]:
    """Return the engines worth building, the one that is probably fastest first.

    ``built_for`` is the lowest instruction set of a wheel that counts for its sums (``x86.floor``, ``arm.floor``).
    """
    found = [engine for engine in ENGINES.values() if built_for in engine.places]
    return sorted(found, key=lambda engine: engine.places[built_for])
