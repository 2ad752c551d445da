"""The settings that a search may choose from, and which of them are worth measuring on a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..bench.text import layout_text


@dataclass(frozen=True, order=True)
class Setting:
    """``instances`` copies of the model with ``threads`` each, ``batch_size`` samples a call."""

    threads: int
    instances: int
    batch_size: int

    def __str__(self) -> str:
        return f"{layout_text(self.threads, self.instances)}, batch {self.batch_size}"


Layout = tuple[int, int]
"""(threads, instances)"""


@dataclass(frozen=True)
class Space:
    """Layouts ``(threads, instances)``, best guess first, and ascending batch sizes.

    ``cores`` are the physical cores that layouts without SMT fill; 0 stands for the threads of the largest layout.
    """

    layouts: tuple[Layout, ...]
    batch_sizes: tuple[int, ...]
    cores: int = 0

    def __post_init__(self) -> None:
        if not self.layouts or not self.batch_sizes:
            raise ValueError("a search needs at least one layout and one batch size")

    @property
    def full_threads(self) -> int:
        """The least number of threads with which every core has work."""
        most = max(threads * instances for threads, instances in self.layouts)
        return min(self.cores, most) if self.cores else most

    def kinds(self) -> tuple[list[Layout], list[Layout], list[Layout]]:
        """Return the layouts that fill the cores, those that need SMT, and one instance alone on some cores.

        Each list is sorted by threads. The first is never empty: where no layout fills the cores, another kind takes
        its place.
        """
        cores = self.full_threads
        smt = sorted(one for one in self.layouts if one[0] * one[1] > cores)
        alone = sorted(one for one in self.layouts if one[1] == 1 and one[0] < cores)
        full = sorted(set(self.layouts) - set(smt) - set(alone))
        return (full, smt, alone) if full else (alone, smt, []) if alone else (smt, [], [])

    def __len__(self) -> int:
        return len(self.layouts) * len(self.batch_sizes)

    def __contains__(self, setting: Setting) -> bool:
        return layout_of(setting) in self.layouts and setting.batch_size in self.batch_sizes


def make_space(
    usable: int, objective: str, threads: Sequence[int] | None, batch_sizes: Sequence[int], most: int | None = None
) -> Space:
    """Return the settings worth measuring on ``usable`` cores; ``threads`` None means the divisors of that number.

    ``most`` is the number of threads that run at once with SMT (``CpuBudget.most``): layouts that fill those are tried
    too. For ``latency`` there is one request at a time, so one instance and the smallest batch size.
    """
    levels = sorted({usable, most or usable})
    wanted = [sorted(set(threads)) if threads else _divisors(level) for level in levels]
    if objective == "latency":
        counts = {count for level in wanted for count in level}
        return Space(tuple((n, 1) for n in sorted(counts, reverse=True)), (min(batch_sizes),), usable)
    layouts = [(n, max(1, level // n)) for level, counts in zip(levels, wanted, strict=True) for n in counts]
    # One instance alone wins only under a tight latency bound, so these layouts come last.
    layouts += [(n, 1) for n in reversed(wanted[0])]
    return Space(tuple(dict.fromkeys(layouts)), tuple(sorted(set(batch_sizes))), usable)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def setting_of(layout: Layout, batch_size: int) -> Setting:
    return Setting(layout[0], layout[1], batch_size)


def layout_of(setting: Setting) -> Layout:
    return setting.threads, setting.instances


def weight(setting: Setting) -> tuple[int, int]:
    """Return how heavy a setting is: the samples in flight, then the threads."""
    return setting.batch_size * setting.instances, setting.threads * setting.instances
