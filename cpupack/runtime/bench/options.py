"""The bench's options: what they are, and which go together."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..errors import InputError
from . import server
from .scenarios import QUERY_SAMPLES, SCENARIOS

DEFAULT_WARMUP_S = 5.0
BUILD = "build"
"""What ``--compare`` alone compares with: the numbers that the build left in the package."""


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


def image_directory(text: str) -> Path:
    """Parse ``images:DIR``, for argparse."""
    kind, colon, directory = text.partition(":")
    if kind != "images" or not colon or not directory:
        raise argparse.ArgumentTypeError(f"{text!r} is not images:DIR")
    return Path(directory)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench's options. What is not given comes from the plan (see ``info``)."""
    named = {name: scenario.summary for name, scenario in SCENARIOS.items()} | {server.NAME: server.SUMMARY}
    parser.add_argument(
        "--scenario", choices=list(named), default="offline",
        help="; ".join(f"{name}: {summary}" for name, summary in named.items()) + " (default: %(default)s)",
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
        "--from", dest="source", type=image_directory, metavar="images:DIR",
        help="measure end to end from the image files below DIR: decode, preprocess, predict",
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
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the result as one self-contained page")
    parser.add_argument(
        "--loadgen", action="store_true", help="have MLPerf's own LoadGen issue the queries (needs mlcommons-loadgen)"
    )
    parser.add_argument(
        "--loadgen-out", type=Path, metavar="DIR", help="where LoadGen's logs go (default: loadgen-logs)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 3 when the result is not valid, 1 when the server FAILs"
    )


def check(args: argparse.Namespace) -> None:
    """Raise InputError for options that contradict each other or the scenario: none is read and then ignored."""
    scenario = args.scenario
    if scenario != server.NAME:
        for option in ("rate", "max_latency_ms", "find_peak"):
            if getattr(args, option):
                raise InputError(f"--{option.replace('_', '-')} belongs to --scenario server, and this is {scenario}")
    elif args.find_peak and args.rate:
        raise InputError("--find-peak searches the rate; leave --rate out")
    elif not args.find_peak and not args.rate:
        raise InputError("--scenario server needs --rate PER_SECOND, or --find-peak with --max-latency-ms")
    if scenario == "single-stream" and (args.instances or 1) > 1:
        raise InputError(
            f"--instances {args.instances}: single-stream has one request at a time, so only one instance "
            "would work; use --threads, or --scenario offline"
        )
    if scenario == "multi-stream":
        for option in ("instances", "batch_size"):
            if (getattr(args, option) or 1) > QUERY_SAMPLES:
                raise InputError(
                    f"--{option.replace('_', '-')} {getattr(args, option)}: a multi-stream query has "
                    f"{QUERY_SAMPLES} samples"
                )
    if args.loadgen_out and not args.loadgen:
        raise InputError(f"--loadgen-out {args.loadgen_out} goes with --loadgen")
    if args.loadgen and args.find_peak:
        raise InputError("--find-peak does its own search; use --loadgen with --rate to confirm what it finds")
