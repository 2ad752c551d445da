"""The results of a bench as frozen dataclasses, and the JSON object that they make together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..accuracy import Interval
from ..plain import to_data


@dataclass(frozen=True)
class Warmup:
    """The calls before the measured time, and whether call times had settled at its end."""

    calls: int
    duration_s: float
    stable: bool


@dataclass(frozen=True)
class Histogram:
    """``counts`` of latencies between ``edges_ms``, of which there is one more."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """The figures of one measured time.

    ``headline`` names the figure that the scenario is about ("throughput_per_s" or a percentile). ``*_ci95*`` are 95 %
    confidence intervals of these figures; ``headline_repeat95`` is where a second run's headline falls 19 times in 20.
    ``windows_per_s`` are the rates in equal parts of the time. ``latency_ms`` has mean, p50, p90, p95, p99, p99_9, min
    and max; ``percentiles`` has (percentile, ms) pairs.
    """

    duration_s: float
    samples: int
    calls: int
    headline: str
    headline_value: float
    headline_repeat95: Interval
    throughput_per_s: float
    throughput_ci95_per_s: Interval
    windows_per_s: tuple[float, ...]
    latency_ms: dict[str, float]
    latency_ci95_ms: dict[str, Interval]
    percentiles: tuple[tuple[float, float], ...]
    latency_histogram: Histogram


@dataclass(frozen=True)
class ServerFigures:
    """The figures that only a server run has.

    ``rate_per_s`` was asked for, ``offered_per_s`` was drawn, ``served_per_s`` was answered. ``over_bound`` is the
    share of the requests above ``max_latency_ms``; it and ``passed`` are None without a bound. ``late_ms`` is None when
    no request found an idle instance.
    """

    rate_per_s: float
    offered_per_s: float
    served_per_s: float
    requests: int
    unserved: int
    arrivals: str
    percentile: float
    max_latency_ms: float | None
    over_bound: float | None
    passed: bool | None
    waiting_ms: dict[str, float]
    waiting_ci95_ms: dict[str, Interval]
    service_ms: dict[str, float]
    late_ms: dict[str, float] | None
    calls_by_size: dict[str, int]


@dataclass(frozen=True)
class PageFaults:
    """Page faults of this process in the measured time: without I/O (minor) and with (major)."""

    minor: int
    major: int
    minor_per_call: float
    major_per_call: float


@dataclass(frozen=True)
class ClockMhz:
    """Mean frequency of the allowed CPUs before and after the measured time, None where it is unknown."""

    begin: float | None
    end: float | None


@dataclass(frozen=True)
class Judgement:
    """What the kernel's counters say about the measured time, and every reason not to believe the figures.

    ``disturbed`` means that something outside the process spoilt the measurement.
    """

    page_faults: PageFaults
    cpu_mhz: ClockMhz
    invalid_reasons: tuple[str, ...]
    disturbed: bool


@dataclass(frozen=True)
class LoadgenRun:
    """One run of MLPerf's LoadGen. ``out`` is the directory of its logs; ``results`` have LoadGen's own names."""

    version: str
    out: str
    validity: str | None
    results: dict[str, Any]


@dataclass(frozen=True)
class PeakRun:
    """One run of the search for the highest rate."""

    rate_per_s: float
    p99_ms: float
    over_bound: float | None
    requests: int
    passed: bool
    valid: bool

    def __str__(self) -> str:
        late = "" if self.over_bound is None else f"{self.over_bound:.2%} late, "
        verdict = "PASS" if self.passed else "FAIL"
        return f"{self.rate_per_s:,.1f} requests/s: p99 {self.p99_ms:.1f} ms, {late}{verdict}"


@dataclass(frozen=True)
class Peak:
    """The highest rate that passed, 0 if none did, and the lowest that failed, None if none did."""

    rate_per_s: float
    fails_at_per_s: float | None
    tolerance: float
    max_latency_ms: float | None
    runs: tuple[PeakRun, ...]


@dataclass(frozen=True)
class Measurement:
    """What was measured with a pool: the part of a result that does not depend on the package or the host.

    ``server`` is there for the server scenario, ``loadgen`` where LoadGen drove the run, ``peak`` where the rate was
    searched. ``first_call_ms`` is the slowest first call of an instance.
    """

    scenario: str
    batch_size: int
    figures: Figures
    warmup: Warmup
    first_call_ms: float
    judgement: Judgement
    server: ServerFigures | None = None
    loadgen: LoadgenRun | None = None
    peak: Peak | None = None

    @property
    def valid(self) -> bool:
        return not self.judgement.invalid_reasons

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of ``bench --json`` that come from the measurement."""
        judgement = to_data(self.judgement)
        found = {
            "scenario": self.scenario,
            "batch_size": self.batch_size,
            **to_data(self.figures),
            "server": to_data(self.server),
            "warmup": to_data(self.warmup),
            "loadgen": to_data(self.loadgen),
            "page_faults": judgement["page_faults"],
            "cpu_mhz": judgement["cpu_mhz"],
            "valid": self.valid,
            "invalid_reasons": judgement["invalid_reasons"],
            "disturbed": judgement["disturbed"],
            "peak": to_data(self.peak),
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Difference:
    """One thing that differs from the reference.

    ``factor`` is the ratio of throughput that it explains, None where that is not known.
    """

    what: str
    here: Any
    there: Any
    text: str
    factor: float | None


@dataclass(frozen=True)
class Comparison:
    """A result compared with a ``reference`` (its scenario, setting and figures). Ratios divide this result by it.

    ``throughput_ratio`` and ``latency_ratio`` {p50, p90, p99} are None where the units differ. ``expected_ratio`` is
    what clock and cores at work explain of the throughput. ``agrees`` says whether the reference lies where a second
    run would; None when that cannot be said.
    """

    against: str
    reference: dict[str, Any]
    throughput_ratio: float | None
    latency_ratio: dict[str, float | None] | None
    expected_ratio: float
    agrees: bool | None
    differences: tuple[Difference, ...]
    conclusion: str

    def to_dict(self) -> dict[str, Any]:
        """Return the object ``comparison`` of ``bench --json``."""
        return dict(to_data(self))


@dataclass(frozen=True)
class ColdStart:
    """Milliseconds from the start of the process: to the bench (imports), for loading, for the first call."""

    import_ms: float
    load_ms: float
    first_call_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return the object ``cold_start_ms`` of ``bench --json``."""
        total_ms = self.import_ms + self.load_ms + self.first_call_ms
        return {"import": self.import_ms, "load": self.load_ms, "first_call": self.first_call_ms, "total": total_ms}


@dataclass(frozen=True)
class Start:
    """The start of a fresh process that makes one prediction, in milliseconds: until Python runs, then each step.

    ``resident_bytes`` is the memory of that process after its first prediction.
    """

    interpreter_ms: float
    import_ms: float
    load_ms: float
    first_call_ms: float
    resident_bytes: float

    @property
    def total_ms(self) -> float:
        """From the import to the first prediction."""
        return self.import_ms + self.load_ms + self.first_call_ms


@dataclass(frozen=True)
class PackageFacts:
    """The package that was measured."""

    name: str
    version: str
    engine: str
    isa: str | None
    random_weights: bool
    torch: str | None


@dataclass(frozen=True)
class BenchResult:
    """A measurement with the package, the plan and the host that it belongs to.

    ``plan`` has the reason for each number of the setting. ``memory_shared_bytes`` is one set of weights.
    ``host`` are the facts of ``host.describe``. ``start`` is None where it was not measured.
    """

    measurement: Measurement
    threads: int
    instances: int
    plan: dict[str, str]
    cold_start: ColdStart
    peak_memory_bytes: int | None
    memory_per_instance_bytes: int
    memory_shared_bytes: int
    input: str
    input_data: str
    seed: int
    host: dict[str, Any]
    package: PackageFacts
    start: Start | None = None
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``bench --json`` prints."""
        found = {
            **self.measurement.to_dict(),
            "threads": self.threads,
            "instances": self.instances,
            "plan": dict(self.plan),
            "cold_start_ms": self.cold_start.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "memory_per_instance_bytes": self.memory_per_instance_bytes,
            "memory_shared_bytes": self.memory_shared_bytes,
            "input": self.input,
            "input_data": self.input_data,
            "seed": self.seed,
            "host": to_data(self.host),
            "manifest": to_data(self.package),
        }
        if self.start is not None:
            found["start"] = {**to_data(self.start), "total_ms": self.start.total_ms}
        return found if self.comparison is None else {**found, "comparison": self.comparison.to_dict()}
