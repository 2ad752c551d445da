"""Every way a cpupack command can fail, each with its exit code and a next step.

``cli.py`` turns a ``CpupackError`` into one message on stderr and the exit code of its class. Anything that is not
a ``CpupackError`` is a bug in cpupack and exits 1 with a traceback.
"""

from __future__ import annotations


class CpupackError(Exception):
    """Base of all errors that a user can cause and fix.

    ``message`` says what is wrong and where (key or file); ``hint`` says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(CpupackError):
    """The command line asks for something that cannot be done (exit code 2)."""

    exit_code = 2


class RecipeError(CpupackError):
    """The recipe is not valid (exit code 2)."""

    exit_code = 2


class LockError(CpupackError):
    """The recipe's lock is missing or damaged, or what it names has changed (exit code 2)."""

    exit_code = 2


class ModelError(CpupackError):
    """The model or its weights cannot be loaded, captured or fused (exit code 3)."""

    exit_code = 3


class CalibrationError(CpupackError):
    """The calibration or evaluation data is missing or unusable (exit code 4)."""

    exit_code = 4


class QuantizationError(CpupackError):
    """The model cannot be quantized for the target (exit code 5)."""

    exit_code = 5


class VerificationError(CpupackError):
    """A gate of the recipe does not hold, or the saved model answers differently (exit code 6)."""

    exit_code = 6


class TuningError(CpupackError):
    """No setting could be measured, or no setting meets the recipe's bound (exit code 7)."""

    exit_code = 7


class PackagingError(CpupackError):
    """The wheel cannot be rendered, built or written (exit code 8)."""

    exit_code = 8
