"""What Prometheus reads at ``/metrics``: counters, gauges and histograms in its text format, version 0.0.4.

Written from the event loop and from instances' threads. ``+=`` on a float is not atomic, so each metric has a lock; it
is held for one addition.
"""

from __future__ import annotations

import bisect
import math
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "cpupack_"
SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.006,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
"""Bounds of the histograms of time."""
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0)


class Counter:
    """A number that only grows, for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = PREFIX + name, text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add ``amount`` for these values of the labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        """Return the number for these values of the labels."""
        return self._values.get(labels, 0.0)

    def total(self) -> float:
        """Return the sum over all labels."""
        return sum(self._values.copy().values())

    def lines(self) -> list[str]:
        """Return the samples in the text format."""
        return [
            f"{self.name}{_labels(self.labels, key)} {_number(value)}" for key, value in sorted(self._values.items())
        ]


class Gauge:
    """A number that is read when it is asked for."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        text: str,
        read: Callable[[], float | Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
    ) -> None:
        self.name, self.text, self.labels, self._read = name, text, tuple(labels), read

    def lines(self) -> list[str]:
        """Return the samples in the text format, none where the system does not tell."""
        try:
            found = self._read()
        except OSError:  # no file is left to open: the page is wanted then above all
            return []
        values = found if isinstance(found, Mapping) else {(): found}
        return [f"{self.name}{_labels(self.labels, key)} {_number(value)}" for key, value in values.items()]


class Histogram:
    """How often a value was at most each of ``bounds``, with the sum and the count."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self.bounds = PREFIX + name, text, tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one value."""
        place = bisect.bisect_left(self.bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def snapshot(self) -> tuple[list[int], float]:
        """Return the count of each interval, and the sum."""
        with self._lock:
            return list(self._counts), self._sum

    def lines(self) -> list[str]:
        """Return the samples in the text format."""
        counts, total = self.snapshot()
        found, below = [], 0
        for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
            below += count
            found.append(f'{self.name}_bucket{{le="{_number(bound)}"}} {below}')
        return [*found, f"{self.name}_sum {_number(total)}", f"{self.name}_count {below}"]


Metric = Counter | Gauge | Histogram


class Metrics:
    """Every metric of the server."""

    def __init__(self) -> None:
        self.started_s = time.time()
        self.requests = Counter("requests_total", "Requests for inference that were answered.", ("route", "code"))
        self.refused = Counter("refused_total", "Requests for inference that were refused.", ("reason",))
        self.samples = Counter("samples_total", "Samples that the model computed.")
        self.kept = Counter("promise_kept_total", "Admitted requests that were answered by their deadline.")
        self.broken = Counter("promise_broken_total", "Admitted requests that were answered after their deadline.")
        self.gone = Counter("clients_gone_total", "Requests whose client was gone before the answer.")
        self.failures = Counter("failures_total", "Requests that failed in the server.")
        self.reloads = Counter("reloads_total", "Reloads of the model.", ("outcome",))
        self.revived = Counter("instances_revived_total", "Instances whose thread had died.")
        self.log_lost = Counter("access_log_lost_total", "Lines of the access log that could not be written.")
        self.duration = Histogram(
            "request_duration_seconds", "From the first byte of a request to its answer.", SECONDS
        )
        self.queue = Histogram("queue_seconds", "From the arrival to the call of the model.", SECONDS)
        self.prepare = Histogram("prepare_seconds", "Decoding of the inputs of one request.", SECONDS)
        self.compute = Histogram("compute_seconds", "One call of the model.", SECONDS)
        self.batch = Histogram("batch_size", "Samples of one call of the model.", BATCHES)
        self.wait_error = Histogram(
            "predicted_wait_error_ratio", "Difference of predicted and real wait, over the real wait.", RATIOS
        )
        self.refusal = Histogram(
            "refusal_duration_seconds", "From the first byte of a refused request to its answer.", SECONDS
        )
        self._extra: list[Metric] = [
            Gauge("process_cpu_seconds_total", "CPU time of the process.", _cpu_s),
            Gauge("process_resident_memory_bytes", "Resident memory.", _resident_bytes),
            Gauge("process_open_fds", "Open file descriptors.", _open_files),
            Gauge("process_start_time_seconds", "When the server started, in Unix time.", lambda: self.started_s),
        ]
        self._extra[0].kind = "counter"

    def gauge(
        self,
        name: str,
        text: str,
        read: Callable[[], float | Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
    ) -> None:
        """Add a gauge that is read at each scrape."""
        self._extra.append(Gauge(PREFIX + name, text, read, labels))

    def observe_call(self, samples: int, prepare_s: float, compute_s: float) -> None:
        """Count one call of the model."""
        self.samples.add(amount=samples)
        self.batch.observe(samples)
        self.compute.observe(compute_s)

    def observe_wait(self, predicted_s: float, waited_s: float) -> None:
        """Compare a predicted wait with the real one. Waits below a millisecond say nothing: there was no queue."""
        if waited_s >= 0.001:
            self.wait_error.observe(abs(predicted_s - waited_s) / waited_s)

    def text(self) -> str:
        """Return the page."""
        lines = []
        for metric in (*(one for one in vars(self).values() if isinstance(one, Counter | Histogram)), *self._extra):
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> float:
    return float(sum(1 for _ in Path("/proc/self/fd").iterdir()))
