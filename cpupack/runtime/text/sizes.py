"""The lengths, in tokens, that a package has programs for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The lengths of the dynamic dimension, ascending. A text goes to the least that holds it, whatever is beside it in
    a batch: so its result depends on nothing else."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)) or self.values[0] < 1:
            raise ValueError(f"the lengths {self.values} are none, or not ascending")

    @property
    def largest(self) -> int:
        return self.values[-1]

    def fitting(self, count: int) -> int:
        """Return the least length that holds ``count`` tokens. Raises ValueError for more than the largest."""
        if count > self.largest:
            raise ValueError(f"no program is for {count} tokens; the largest takes {self.largest}")
        return next(each for each in self.values if each >= count)
