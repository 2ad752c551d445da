"""The errors that the shipped runner raises on purpose, and its warnings. Its command line prints each as one line."""

from __future__ import annotations


class RandomWeightsWarning(UserWarning):
    """The package was built with random weights: its speed is real, its predictions are not."""


class TruncatedTextWarning(UserWarning):
    """A text has more tokens than the model reads."""


class RunnerError(Exception):
    """Root of the runner's errors."""


class InputError(RunnerError):
    """The caller's input cannot be used: file, image, shape, dtype or option."""


class IntegrityError(RunnerError):
    """A file of the package is missing or is not the one that was built."""


class HostError(RunnerError):
    """This CPU, torch build or operating system cannot run the package correctly."""
