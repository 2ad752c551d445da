"""The engines that ``cpupack compare`` measures: their titles, requirements and modules.

Each module has two functions, which run in a worker process for that engine (``workers/peer.py``). ``build(job)`` makes
the engine's model from the FP32 model and calibration data that all engines share, with the settings that the engine's
own documentation recommends, and returns a description of the settings. ``open_pool(job)`` loads the model and serves
batches. The comparing process imports none of these modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, util

OURS, PEAK = "cpupack", "peak"


@dataclass(frozen=True)
class Peer:
    """One engine: its module in ``cpupack.peers``, and the distributions that must be installed."""

    name: str
    title: str
    module: str
    requires: tuple[str, ...] = ("torch",)
    imports: tuple[str, ...] = ("torch",)

    def missing(self) -> tuple[str, ...]:
        """Return the distributions that are not installed."""
        return tuple(
            name for name, module in zip(self.requires, self.imports, strict=True) if util.find_spec(module) is None
        )

    def versions(self) -> dict[str, str]:
        """Return the version of each distribution that is installed."""
        absent = self.missing()
        return {name: metadata.version(name) for name in self.requires if name not in absent}


_ALL = (
    Peer(OURS, "cpupack", "own"),
    Peer("eager", "PyTorch eager, FP32", "eager"),
    Peer("fbgemm", "PyTorch fbgemm, INT8", "fbgemm"),
    Peer(
        "onnxruntime",
        "ONNX Runtime, INT8",
        "onnxruntime",
        ("onnxruntime", "onnx", "onnxscript"),
        ("onnxruntime", "onnx", "onnxscript"),
    ),
    Peer("openvino", "OpenVINO, INT8", "openvino", ("openvino", "nncf"), ("openvino", "nncf")),
    Peer("inductor", "torch.compile, INT8", "inductor", ("torch", "torchao"), ("torch", "torchao")),
    Peer(PEAK, "INT8 peak of this CPU", "int8_peak"),
)

COMPARED = {engine.name: engine for engine in _ALL}
PEERS = tuple(name for name in COMPARED if name not in {OURS, PEAK})
EXTRA = "cpupack[compare]"
