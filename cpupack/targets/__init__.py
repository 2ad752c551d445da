"""The engines and CPUs that wheels are built for: activation bits, instruction sets. Nothing here imports torch."""

from cpupack.targets.engines import ENGINES, Engine
from cpupack.targets.target import Target

__all__ = ["ENGINES", "Engine", "Target"]
