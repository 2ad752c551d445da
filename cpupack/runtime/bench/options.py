"""The bench's options: what they are, and which go together."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import server
from .scenarios import QUERY_SAMPLES, SCENARIOS

DEFAULT_WARMUP_S = 5.0
SUMMARIES = {name: scenario.summary for name, scenario in SCENARIOS.items()} | {server.NAME: server.SUMMARY}
"""What each scenario does, by its name."""
BUILD = "build"
"""The value of ``--compare`` without a file: compare with the numbers that the build left in the package."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how. None leaves a number to the plan, to the package or to the scenario.

    ``threads`` are those of one instance. ``batch_size`` is the samples a call, for the server scenario at most.
    ``image_dir`` holds image files to measure end to end, ``text_file`` texts.
    ``compare`` is ``BUILD`` or the file of an earlier result.
    ``start`` also measures the start of fresh processes, for models that need no torch. Raises InputError for a value
    that is impossible, and for options that contradict each other or the scenario, so that no option is given and then
    ignored.
    """

    scenario: str = "offline"
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    duration_s: float | None = None
    warmup_s: float = DEFAULT_WARMUP_S
    seed: int = 0
    image_dir: Path | None = None
    text_file: Path | None = None
    rate_per_s: float | None = None
    max_latency_ms: float | None = None
    find_peak: bool = False
    compare: str | None = None
    loadgen: bool = False
    loadgen_out: Path | None = None
    start: bool = True

    def __post_init__(self) -> None:
        if self.scenario not in SUMMARIES:
            raise InputError(f"--scenario {self.scenario}: not one of {', '.join(SUMMARIES)}")
        require_positive("--threads", self.threads)
        require_positive("--instances", self.instances)
        require_positive("--batch-size", self.batch_size)
        require_positive("--duration", self.duration_s)
        require_positive("--rate", self.rate_per_s)
        require_positive("--max-latency-ms", self.max_latency_ms)
        if not (math.isfinite(self.warmup_s) and self.warmup_s >= 0):
            raise InputError(f"--warmup {self.warmup_s}: not a number from 0")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: not a whole number from 0")
        self._check_server()
        self._check_streams()
        self._check_loadgen()

    def _check_server(self) -> None:
        if self.scenario != server.NAME:
            given = {
                "--rate": self.rate_per_s, "--max-latency-ms": self.max_latency_ms, "--find-peak": self.find_peak,
            }  # fmt: skip
            for option, value in given.items():
                if value:
                    raise InputError(f"{option} belongs to --scenario server, and this is {self.scenario}")
        elif self.find_peak and self.rate_per_s:
            raise InputError("--find-peak searches the rate; leave --rate out")
        elif not self.find_peak and not self.rate_per_s:
            raise InputError("--scenario server needs --rate PER_SECOND, or --find-peak with --max-latency-ms")

    def _check_streams(self) -> None:
        if self.scenario == "single-stream" and (self.instances or 1) > 1:
            raise InputError(
                f"--instances {self.instances}: single-stream has one request at a time, so only one instance "
                "would work; use --threads, or --scenario offline"
            )
        if self.scenario == "multi-stream":
            for option, value in (("--instances", self.instances), ("--batch-size", self.batch_size)):
                if (value or 1) > QUERY_SAMPLES:
                    raise InputError(f"{option} {value}: a multi-stream query has {QUERY_SAMPLES} samples")

    def _check_loadgen(self) -> None:
        if self.loadgen_out and not self.loadgen:
            raise InputError(f"--loadgen-out {self.loadgen_out} needs --loadgen")
        if self.loadgen and self.find_peak:
            raise InputError("--find-peak does its own search; use --loadgen with --rate to confirm what it finds")


def from_arguments(args: argparse.Namespace) -> BenchOptions:
    """Return the options that ``args`` hold (of a parser with ``add_arguments``). Raises InputError."""
    return BenchOptions(
        scenario=args.scenario if args.server is None else server.NAME,
        threads=args.threads,
        instances=args.instances,
        batch_size=args.batch_size,
        duration_s=args.duration,
        warmup_s=args.warmup,
        seed=args.seed,
        image_dir=_named(args.source, "images"),
        text_file=_named(args.source, "text"),
        rate_per_s=args.rate,
        max_latency_ms=args.max_latency_ms,
        find_peak=args.find_peak,
        compare=args.compare,
        loadgen=args.loadgen,
        loadgen_out=args.loadgen_out,
        start=not args.no_start,
    )


def require_positive(option: str, value: float | None) -> None:
    """Raise InputError when a value is given that is not finite and above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{option} {value}: not a number above 0")


def positive_int(text: str) -> int:
    """Parse a whole number from 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def natural(text: str) -> int:
    """Parse a whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive_seconds(text: str) -> float:
    """Parse a finite number above 0, for argparse."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seconds(text: str) -> float:
    """Parse a finite number from 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def data_source(text: str) -> tuple[str, Path]:
    """Parse ``images:DIR`` or ``text:FILE``, for argparse."""
    kind, colon, place = text.partition(":")
    if kind not in {"images", "text"} or not colon or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is not images:DIR or text:FILE")
    return kind, Path(place)


def _named(source: tuple[str, Path] | None, kind: str) -> Path | None:
    return source[1] if source is not None and source[0] == kind else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench's options. Numbers that are not given come from the plan (see ``info``)."""
    parser.add_argument(
        "--scenario", choices=list(SUMMARIES), default="offline",
        help="; ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items()) + " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of one instance")
    parser.add_argument("--instances", type=positive_int, metavar="N", help="copies of the model run in parallel")
    parser.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="samples a call; for server the most that one call takes"
    )
    parser.add_argument("--duration", type=positive_seconds, metavar="SECONDS", help="measured time, after warm-up")
    parser.add_argument(
        "--warmup", type=seconds, default=DEFAULT_WARMUP_S, metavar="SECONDS",
        help="longest time to wait for call times to settle (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N",
        help="seed of the inputs and of the requests' times (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source", type=data_source, metavar="images:DIR|text:FILE",
        help="measure end to end from the image files below DIR, or the texts of FILE, one a line: prepare and predict",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=positive_seconds, metavar="PER_SECOND", help="server: requests a second, on average"
    )
    parser.add_argument(
        "--max-latency-ms", type=positive_seconds, metavar="MS",
        help="server: PASS if the p99 latency is at most this (default: the bound that the plan was tuned for)",
    )  # fmt: skip
    parser.add_argument(
        "--find-peak", action="store_true", help="server: search the highest rate that passes, in place of --rate"
    )
    parser.add_argument(
        "--compare", nargs="?", const=BUILD, metavar="FILE",
        help="compare with the build's numbers, or with an earlier result of bench --json, and explain the difference",
    )  # fmt: skip
    parser.add_argument(
        "--server", metavar="URL",
        help="offer the requests to a running `serve`, from this process: http://HOST:PORT or grpc://HOST:PORT, with "
        "TLS https and grpcs",
    )  # fmt: skip
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="with --server: file with the token that it asks for"
    )
    parser.add_argument(
        "--ca", type=Path, metavar="FILE",
        help="with --server and TLS: certificates in PEM that vouch for the server's (default: the system's)",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the result as one self-contained page")
    parser.add_argument(
        "--loadgen", action="store_true", help="have MLPerf's own LoadGen issue the queries (needs mlcommons-loadgen)"
    )
    parser.add_argument(
        "--loadgen-out", type=Path, metavar="DIR", help="where LoadGen's logs go (default: loadgen-logs)"
    )
    parser.add_argument(
        "--no-start", action="store_true", help="do not start fresh processes to measure import, load and memory"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 3 when the result is not valid, 1 when the server FAILs"
    )
