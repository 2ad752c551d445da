"""How long calls take: the tuned table, corrected by what is measured while serving. Pure; all times in seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul

_WINDOW = 200
"""Calls that the tail's correction looks back on: at a hundred calls a second, two seconds."""
_TAIL = 0.99
_SORT_EVERY = 8
_SMOOTHING = 0.05
"""Weight of one call in the correction of the mean."""
_SLOWER_SMOOTHING = 0.03
"""The same in what is learnt of one size alone."""
_NEARLY = 1.05
"""Time a sample, over the least, of a size that serves nearly as many."""
_DECODING_S_PER_BYTE = 15e-9
"""Of an encoded image before any was decoded: a JPEG of 100 KB takes 1 to 2 ms."""

_MOST_SURPRISE = 4.0
"""Times what was expected that one decoding or call may teach: the first WebP file takes a second, to load its library.
A host may stand still for as long."""
_SURPRISE_FROM_S = 0.001
_FORGETTING = 0.005
"""Of what makes calls too long, for each call that was not short: it is tried again after some hundred."""


@dataclass(frozen=True)
class CallTime:
    """Time of one call of ``size`` samples while all instances are busy."""

    size: int
    mean_s: float
    p99_s: float


class Tail:
    """The value that 99 of the last 200 measurements in a hundred keep; ``first`` until they are known."""

    def __init__(self, first: float) -> None:
        self.value = first
        self._window = deque([first] * _WINDOW, maxlen=_WINDOW)
        self._unsorted = 0

    def observe(self, value: float) -> None:
        """Add one measurement."""
        self._window.append(value)
        self._unsorted += 1
        if self._unsorted >= _SORT_EVERY:
            self._unsorted = 0
            self.value = sorted(self._window)[int(_TAIL * (_WINDOW - 1))]


class CallTimes:
    """Expected and safe times of calls of 1 to ``largest`` samples.

    A call is the decoding of its inputs (``prepare_s``), the model and the formatting of the answers. The expected time
    is the table's mean times ``correction``, the safe time its p99 times ``tail``; both follow what is measured. What a
    size takes beside the others is learnt, too: some other work on the host while its row was measured makes the row
    wrong by half, and a call costs some time whatever its size.
    """

    def __init__(self, table: Sequence[CallTime]) -> None:
        if not table or min(call.mean_s for call in table) <= 0:
            raise ValueError("the table of call times is empty, or holds a time that is not above 0")
        self.table = tuple(sorted(table, key=lambda call: call.size))
        self.largest = self.table[-1].size
        sizes = [call.size for call in self.table]
        self._table_mean_s = _spread(sizes, [call.mean_s for call in self.table])
        self._table_p99_s = _spread(sizes, [max(call.mean_s, call.p99_s) for call in self.table])
        self._factors = [1.0] * (self.largest + 1)
        self._seen: set[int] = set()
        self._unused = 0
        self._use_factors()
        self.correction = 1.0
        self._ratio = Tail(1.0)

    @property
    def tail(self) -> float:
        """What the table's p99 is multiplied by."""
        return self._ratio.value

    def expected_s(self, size: int, prepare_s: float = 0.0) -> float:
        """Return the mean time of a call of ``size`` samples."""
        return (self._mean_s[size] + prepare_s) * self.correction

    def safe_s(self, size: int, prepare_s: float = 0.0) -> float:
        """Return the time that 99 of 100 such calls keep."""
        return (self._p99_s[size] + prepare_s) * self.tail

    def spread_s(self, size: int, prepare_s: float = 0.0) -> float:
        """Return how much longer than expected such a call takes in one of 100 cases."""
        return max(0.0, self.safe_s(size, prepare_s) - self.expected_s(size, prepare_s))

    def finish_s(self, begin_s: float, spread2: float, size: int, prepare_s: float) -> float:
        """Return when such a call ends in 99 of 100 cases if it is expected to begin at ``begin_s``.

        ``spread2`` is the square of the spread of its begin.
        """
        expected_s = (self._mean_s[size] + prepare_s) * self.correction
        spread_s = (self._p99_s[size] + prepare_s) * self._ratio.value - expected_s
        return begin_s + expected_s + (math.sqrt(spread2 + spread_s * spread_s) if spread_s > 0 else math.sqrt(spread2))

    def worthwhile(self, budget_s: float, prepare_s: float = 0.0) -> int:
        """Return the size of the calls that serve most requests, each of which must be answered in ``budget_s``.

        ``prepare_s`` is the time to decode one sample. A call can only be full if its requests have waited for as long
        as the one before it took. So the size is one whose call takes at most half of the budget: the smallest that
        serves nearly as many as the best of them. Larger calls would make requests wait for nothing.
        """
        limit_s, p99_s, each_s = budget_s / 2 / self.tail, self._p99_s, self._each_s
        most, above = 1, self.largest + 1
        while above - most > 1:  # the last size within the limit: times rise with the size
            size = (most + above) // 2
            if p99_s[size] + size * prepare_s <= limit_s:
                most = size
            else:
                above = size
        enough_s = _NEARLY * (self._cheapest_s[most] + prepare_s) - prepare_s
        size = 1
        while each_s[size] > enough_s:
            size += 1
        return size

    def mean_s(self, size: int) -> float:
        """Return the table's own mean, without what was learnt."""
        return self._table_mean_s[size]

    def observe(self, size: int, prepare_s: float, measured_s: float) -> None:
        """Learn from one call of ``size`` samples, predicted to prepare for ``prepare_s``."""
        self._ratio.observe(measured_s / (self._p99_s[size] + prepare_s))
        measured_s = min(measured_s, _MOST_SURPRISE * self.expected_s(size, prepare_s))
        ratio = measured_s / (self._mean_s[size] + prepare_s)
        self.correction += _SMOOTHING * (ratio - self.correction)
        factor = max(1 / _MOST_SURPRISE, (measured_s / self.correction - prepare_s) / self._table_mean_s[size])
        self._factors[size] += _SLOWER_SMOOTHING * (factor - self._factors[size])
        self._seen.add(size)
        self._unused += 1
        if self._unused >= _SORT_EVERY:
            self._unused = 0
            self._use_factors()

    def _use_factors(self) -> None:
        """Take over what was learnt of each size. What all have in common belongs to the correction."""
        if self._seen:
            common = sum(self._factors[size] for size in self._seen) / len(self._seen)
            for size in self._seen:
                self._factors[size] /= common
        self._mean_s: list[float] = list(accumulate(map(mul, self._table_mean_s, self._factors), max))
        self._p99_s: list[float] = list(accumulate(map(mul, self._table_p99_s, self._factors), max))
        self._each_s = [math.inf, *(self._mean_s[size] / size for size in range(1, self.largest + 1))]
        self._cheapest_s = list(accumulate(self._each_s, min))


class ShortCalls:
    """Knows which calls are so short that to hand one over to a thread and back would take longer.

    It learns from such calls alone how much longer than the table's mean they are, with the formatting of their
    answers. What it takes for too long it forgets little by little, and then tries again.
    """

    limit_s = 0.0002
    """What it costs to wake an instance's thread, to let it wait for Python's lock, and to wake the loop."""

    def __init__(self, times: CallTimes) -> None:
        self._times = times
        self._longer_s = 0.0

    def has(self, samples: int) -> bool:
        """Return whether a call of ``samples`` is expected to be short."""
        mean_s = self._times.mean_s(samples)
        if mean_s > self.limit_s:
            return False
        if mean_s + self._longer_s <= self.limit_s:
            return True
        self._longer_s -= _FORGETTING * self._longer_s
        return False

    def observe(self, samples: int, measured_s: float) -> None:
        """Learn from a call that was taken for short. One that was interrupted counts for less."""
        longer_s = min(measured_s, _MOST_SURPRISE * self.limit_s) - self._times.mean_s(samples)
        self._longer_s += _SMOOTHING * (longer_s - self._longer_s)


class PrepareTimes:
    """How long it takes to decode one body: seconds a byte, learnt for each kind of body and each doubling of its size.

    Small files take much longer a byte than large ones. One rate for all let a few of 60 bytes teach that a photo takes
    seconds, and every photo was refused from then on.
    """

    def __init__(self) -> None:
        self._s_per_byte: dict[tuple[str, int], float] = {}

    def estimate_s(self, kind: str, size_bytes: int) -> float:
        """Return the expected time. What is unknown is taken to be an encoded image, or as fast as the nearest size."""
        return self._rate(kind, size_bytes) * size_bytes

    def observe(self, kind: str, size_bytes: int, measured_s: float) -> None:
        """Learn from one body that was decoded. A time that is much longer than expected counts for less."""
        if size_bytes <= 0:
            return
        expected_s = self.estimate_s(kind, size_bytes)
        rate = min(measured_s, _MOST_SURPRISE * max(expected_s, _SURPRISE_FROM_S)) / size_bytes
        key = (kind, size_bytes.bit_length())
        known = self._s_per_byte.get(key)
        self._s_per_byte[key] = rate if known is None else known + _SMOOTHING * (rate - known)

    def _rate(self, kind: str, size_bytes: int) -> float:
        length = size_bytes.bit_length()
        if (known := self._s_per_byte.get((kind, length))) is not None:
            return known
        others = [(abs(other - length), rate) for (one, other), rate in self._s_per_byte.items() if one == kind]
        return min(min(others)[1], _DECODING_S_PER_BYTE) if others else _DECODING_S_PER_BYTE


def _spread(sizes: Sequence[int], times_s: Sequence[float]) -> list[float]:
    """Return a time for each size from 0: interpolated, and never less than that of a smaller size."""
    rising = list(accumulate(times_s, max))
    found = [rising[0]] * (sizes[0] + 1)
    for (low, low_s), (high, high_s) in pairwise(zip(sizes, rising, strict=True)):
        found += [low_s + (high_s - low_s) * (size - low) / (high - low) for size in range(low + 1, high + 1)]
    return found
