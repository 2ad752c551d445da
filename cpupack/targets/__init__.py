"""What an engine may do on a CPU: activation bits, ISA floor, layout, wheel tag. No torch is imported here."""

from cpupack.targets.target import Target, candidates

__all__ = ["Target", "candidates"]
