"""The lock of a recipe, ``NAME.lock.toml``: what a build read, decided and measured, so that it can be built again."""

from cpupack.lock.drift import check_build, check_early, differences
from cpupack.lock.facts import inputs_of
from cpupack.lock.measured import measured_of, recovery_of, replayed
from cpupack.lock.model import Lock, WheelLock, lock_path, read_lock, write_lock
from cpupack.lock.wheel import check_wheel, lock_wheel

__all__ = [
    "Lock",
    "WheelLock",
    "check_build",
    "check_early",
    "check_wheel",
    "differences",
    "inputs_of",
    "lock_path",
    "lock_wheel",
    "measured_of",
    "read_lock",
    "recovery_of",
    "replayed",
    "write_lock",
]
