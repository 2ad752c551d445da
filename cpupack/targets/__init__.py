"""What an engine may do on a CPU: activation bits, ISA floor, layout, wheel tag. No torch is imported here."""

from cpupack.targets.engines import ENGINES, Engine
from cpupack.targets.target import Target

__all__ = ["ENGINES", "Engine", "Target"]
