"""``bench --loadgen``: MLPerf Inference's own LoadGen decides when queries come, times them and judges the run.

The distribution ``mlcommons-loadgen`` (module ``mlperf_loadgen``) is an extra of the wheel. Its documentation is
loadgen/README.md and test_settings.h of github.com/mlcommons/inference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import extras
from ..errors import InputError, RunnerError
from ..host.probe import HostProbe
from ..threads import Pending
from . import server, stats
from .feeds import Feed
from .measure import closed_figures, in_all, judged, warm_up
from .results import Figures, LoadgenRun, Measurement
from .scenarios import QUERY_SAMPLES, SCENARIOS, Clock, closed_loop
from .stats import Calls
from .verdict import read_counters, too_short, unsettled, unsteady

DISTRIBUTION = "mlcommons-loadgen"
DEFAULT_OUT = Path("loadgen-logs")

_SCENARIOS = {
    "offline": "Offline",
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    server.NAME: "Server",
}
_DETAIL = "mlperf_log_detail.txt"
_MARK = ":::MLLOG "
_LATENCIES = {
    "mean": "result_mean_latency_ns",
    "p50": "result_50.00_percentile_latency_ns",
    "p90": "result_90.00_percentile_latency_ns",
    "p95": "result_95.00_percentile_latency_ns",
    "p99": "result_99.00_percentile_latency_ns",
    "p99_9": "result_99.90_percentile_latency_ns",
    "min": "result_min_latency_ns",
    "max": "result_max_latency_ns",
}
_QUERY_LATENCIES = {
    "mean": "result_mean_query_latency_ns",
    "p50": "result_50.00_percentile_per_query_latency_ns",
    "p90": "result_90.00_percentile_per_query_latency_ns",
    "p95": "result_95.00_percentile_per_query_latency_ns",
    "p99": "result_99.00_percentile_per_query_latency_ns",
    "p99_9": "result_99.90_percentile_per_query_latency_ns",
    "min": "result_min_query_latency_ns",
    "max": "result_max_query_latency_ns",
}
"""For multi-stream, whose latency is that of a query, up to its last sample. The names above are for one sample."""
_RATES = {"offline": "result_samples_per_second", server.NAME: "result_completed_samples_per_sec"}
_MULTI_STREAM_QUERIES = 662
"""Queries that LoadGen's early stopping needs to estimate a p99. A run goes on until it has them and its duration."""
_NO_BOUND_MS = 3_600_000.0
_MARGIN = 1.2
"""Factor on the expected rate of offline, which fixes the samples of its one query: too few make the run too short."""
_EXPECTED_NS = 100_000
"""Expected latency of a stream. LoadGen makes enough queries for it beforehand; unused ones cost nothing."""


@dataclass(frozen=True)
class Wish:
    """What LoadGen is to do. ``rate_per_s`` and ``max_latency_ms`` are for the server scenario, ``out`` is for logs."""

    scenario: str
    duration_s: float
    seed: int
    rate_per_s: float | None
    max_latency_ms: float | None
    out: Path | None


def check_installed() -> None:
    """Raise HostError when LoadGen is not there, saying how to get it."""
    extras.require("mlperf_loadgen", extras.LOADGEN, "--loadgen")


def measure(feed: Feed, batch_size: int, wish: Wish, warmup_s: float, clock: Clock, probe: HostProbe) -> Measurement:
    """Warm up, let LoadGen run, judge.

    Latencies are LoadGen's. For offline, LoadGen times one query that holds everything, so latencies are those of our
    calls. The histogram and the intervals come from the times from issue to answer that are taken here. Raises
    InputError when the logs cannot be written.
    """
    if wish.scenario == "single-stream" and batch_size != 1:
        raise InputError(f"--batch-size {batch_size}: LoadGen's single-stream has one sample a query; leave it out")
    out = _made(wish.out or DEFAULT_OUT)
    sizes = {"single-stream": (1,), "multi-stream": (batch_size,)}.get(wish.scenario, server.shapes_up_to(batch_size))
    if wish.scenario == "multi-stream" and (tail := QUERY_SAMPLES % batch_size):
        sizes = (tail, batch_size)
    first = [closed_loop(feed.pool, feed.batches_of(size), size, clock, lambda _calls, _now: False) for size in sizes]
    warm = [warm_up(feed.pool, feed.batches_of(size), size, clock, warmup_s / len(sizes)) for size in sizes]
    settings = _settings(wish, feed, warm[-1].calls * sizes[-1] / max(warm[-1].duration_s, 1e-9))
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    system = _System(feed, sizes, clock)
    _start(system, feed, settings, out)
    after = read_counters(probe, cpus)
    if system.error is not None:
        raise system.error

    results = read_detail(out / _DETAIL)
    headline = server.HEADLINE if wish.scenario == server.NAME else SCENARIOS[wish.scenario].headline
    figures = closed_figures(system.calls() if wish.scenario == "offline" else system.queries(), headline)
    figures = dataclasses.replace(_official(wish, results, figures), calls=system.model_calls)
    warmup = in_all(warm)
    enough = server.MIN_REQUESTS if wish.scenario == server.NAME else SCENARIOS[wish.scenario].min_calls
    queries = system.model_calls if wish.scenario == "offline" else len(system.queries())
    weak = too_short(queries, enough, figures.duration_s, "calls" if wish.scenario == "offline" else "queries")
    if wish.scenario != server.NAME:
        weak += unsteady(figures.windows_per_s, "throughput")
    weak += unsettled(warmup.stable, warmup.duration_s)
    if results.get("result_validity") != "VALID":
        why = results.get("result_invalid_reason") or results.get("early_stopping_result") or "its summary says why"
        weak.append(f"LoadGen says {results.get('result_validity')}: {' '.join(str(why).replace('*', ' ').split())}")
    return Measurement(
        scenario=wish.scenario,
        batch_size=batch_size,
        figures=figures,
        warmup=warmup,
        first_call_ms=max(float(calls.latency_ms.max()) for calls in first),
        judgement=judged(before, after, len(cpus), system.model_calls, weak),
        loadgen=LoadgenRun(_version(), str(out), results.get("result_validity"), results),
    )


def _version() -> str:
    # A LoadGen that was built from its sources has the second name.
    for name in (DISTRIBUTION, "mlperf-loadgen"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of unknown version"


def read_detail(path: Path) -> dict[str, Any]:
    """Return the results in LoadGen's detail log, by its names. Raises RunnerError when there are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
    except (OSError, ValueError) as error:
        raise RunnerError(f"LoadGen left no readable log {path}: {error}") from error
    wanted = ("result_", "early_stopping", "effective_", "num_errors")
    found = {entry["key"]: entry["value"] for entry in entries if str(entry["key"]).startswith(wanted)}
    if "result_validity" not in found:
        raise RunnerError(f"LoadGen's log {path} has no result; its run did not end")
    return found


def _official(wish: Wish, results: dict[str, Any], figures: Figures) -> Figures:
    """Return ``figures`` with those that LoadGen measured itself in place of ours."""
    if (rate := _RATES.get(wish.scenario)) is not None and rate in results:
        figures = dataclasses.replace(figures, throughput_per_s=float(results[rate]))
    if wish.scenario != "offline":
        keys = _QUERY_LATENCIES if wish.scenario == "multi-stream" else _LATENCIES
        latency_ms = {name: float(results[key]) / 1e6 for name, key in keys.items()}
        figures = dataclasses.replace(figures, latency_ms=latency_ms)
    if figures.headline != "throughput_per_s":
        return dataclasses.replace(figures, headline_value=figures.latency_ms[figures.headline])
    value = figures.throughput_per_s
    interval = figures.headline_repeat95
    if figures.windows_per_s:
        interval = stats.repeat_interval_95(value, figures.windows_per_s)
    return dataclasses.replace(figures, headline_value=value, headline_repeat95=interval)


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _DETAIL).write_text("", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--loadgen-out {out}: {error.strerror or error}; name a directory to write to") from error
    return out


def _settings(wish: Wish, feed: Feed, rate_per_s: float) -> Any:
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _SCENARIOS[wish.scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(wish.duration_s * 1000)
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = wish.seed
    settings.performance_sample_count_override = feed.samples
    match wish.scenario:
        case "offline":
            settings.min_query_count = 1
            settings.offline_expected_qps = rate_per_s * _MARGIN
        case "single-stream":
            settings.min_query_count = SCENARIOS[wish.scenario].min_calls
            settings.single_stream_expected_latency_ns = _EXPECTED_NS
            settings.single_stream_target_latency_percentile = 0.90
        case "multi-stream":
            settings.min_query_count = _MULTI_STREAM_QUERIES
            settings.multi_stream_samples_per_query = QUERY_SAMPLES
            settings.multi_stream_expected_latency_ns = _EXPECTED_NS
            settings.multi_stream_target_latency_percentile = 0.99
        case _:
            settings.min_query_count = server.MIN_REQUESTS
            settings.server_target_qps = wish.rate_per_s
            settings.server_target_latency_ns = round(1e6 * (wish.max_latency_ms or _NO_BOUND_MS))
            settings.server_target_latency_percentile = server.PERCENTILE / 100.0
    return settings


def _start(system: _System, feed: Feed, settings: Any, out: Path) -> None:
    import mlperf_loadgen as loadgen

    logs = loadgen.LogSettings()
    logs.log_output.outdir = str(out)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    # Samples are in memory already, so there is nothing to load or unload.
    library = loadgen.ConstructQSL(feed.samples, feed.samples, lambda _indices: None, lambda _indices: None)
    under_test = loadgen.ConstructSUT(system.issue, lambda: None)
    try:
        loadgen.StartTestWithLogSettings(under_test, library, settings, logs)
    finally:
        loadgen.DestroySUT(under_test)
        loadgen.DestroyQSL(library)


class _System:
    """The system under test: hands what LoadGen issues to idle instances.

    A call takes the largest of the warmed ``sizes`` that is full.
    """

    def __init__(self, feed: Feed, sizes: Sequence[int], clock: Clock) -> None:
        import mlperf_loadgen as loadgen

        self._loadgen, self._feed, self._clock = loadgen, feed, clock
        self._sizes = sorted(sizes, reverse=True)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, int, int]] = deque()  # LoadGen's id, index of the sample, number of the query
        self._idle = deque(range(feed.pool.instances))
        self._issued, self._answered = array("d"), array("d")
        self._samples_of: list[int] = []
        self._start, self._end, self._instance = array("d"), array("d"), array("q")
        self.model_calls = 0
        self.error: BaseException | None = None

    def issue(self, samples: Sequence[Any]) -> None:
        """Take one query from LoadGen; returns at once."""
        with self._lock:
            number = len(self._issued)
            self._issued.append(self._clock.now())
            self._answered.append(0.0)
            self._samples_of.append(len(samples))
            self._waiting.extend((sample.id, sample.index, number) for sample in samples)
        self._hand_out()

    def _hand_out(self) -> None:
        while True:
            with self._lock:
                if self.error is not None:
                    self._give_up()
                    return
                if not self._idle or not self._waiting:
                    return
                fits = [size for size in self._sizes if size <= len(self._waiting)]
                taken = [self._waiting.popleft() for _ in range(fits[0] if fits else len(self._waiting))]
                instance = self._idle.popleft()
            begin_s = self._clock.now()
            try:
                batch = self._feed.sample_batch([index for _, index, _ in taken])
                future = self._feed.pool.submit(batch, instance)
            except RunnerError as error:
                self._failed(error, taken)
                return
            future.add_done_callback(partial(self._done, taken=taken, begin_s=begin_s, instance=instance))

    def _done(self, future: Pending, taken: list[tuple[int, int, int]], begin_s: float, instance: int) -> None:
        if (error := future.exception()) is not None:
            self._failed(error, taken)
            return
        now = self._clock.now()
        self._complete(taken)
        with self._lock:
            self.model_calls += 1
            for _, _, number in taken:
                self._start.append(begin_s)
                self._end.append(now)
                self._instance.append(instance)
                self._answered[number] = max(self._answered[number], now)
            self._idle.append(instance)
        self._hand_out()

    def _failed(self, error: BaseException, taken: list[tuple[int, int, int]]) -> None:
        """Answer everything, or LoadGen would wait for ever. The error is raised after LoadGen has ended."""
        with self._lock:
            self.error = self.error or error
            self._give_up()
        self._complete(taken)

    def _give_up(self) -> None:
        left = list(self._waiting)
        self._waiting.clear()
        self._complete(left)

    def _complete(self, taken: Sequence[tuple[int, int, int]]) -> None:
        if not taken:
            return
        answer = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([answer(number, 0, 0) for number, _, _ in taken])

    def queries(self) -> Calls:
        """Return every query from its issue to its last answer. All have the same number of samples."""
        return Calls(
            np.array(self._issued),
            np.array(self._answered),
            np.zeros(len(self._issued), np.int64),
            max(self._samples_of, default=1),
        )

    def calls(self) -> Calls:
        """Return every sample with the begin and the end of its call."""
        order = np.argsort(np.array(self._end), kind="stable")
        return Calls(
            np.array(self._start)[order], np.array(self._end)[order], np.array(self._instance, np.int64)[order], 1
        )
