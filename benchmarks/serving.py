"""How much a server carries: cpupack's own, beside FastAPI, LitServe and BentoML with the same runner behind them.

    python benchmarks/serving.py goodput --python ENV/bin/python --package lite0_int8 --images PHOTOS --out ROWS.jsonl
    python benchmarks/serving.py table ROWS.jsonl... > benchmarks/serving.md

ENV has the wheel with its extra ``serve``, simplejpeg, and for the peers litserve, bentoml, fastapi and uvicorn.
Measure on a host that does nothing else, in slices of a few minutes; rows of several slices go into one table. Every
server is started once and stopped (SIGSTOP) while another is measured. Each round asks all of them in turn. The client
is this process, at a higher priority where that is allowed. It is open-loop: requests come at times drawn before, and
latency counts from there.

``goodput``   rates of ``--rates``; how many answers come within ``--within-ms``, for each of ``--servers``
``cpu``       CPU time of the server a request, beside that of the same calls without a server; with the wheels of
              ``tiny/tiny16.toml`` and ``tiny/tiny224.toml``
``jpeg``      JPEG bodies as fast as the server takes them, beside ``bench --from images:DIR``
``quiet``     latency at ``--rates``, beside ``runner(...)`` called at the same times
``overload``  the rates of ``--rates`` one after the other, then a burst: promise, refusals, memory, predicted waits

With ``"cpus": [0]`` in the setting of a server, and ``--client-cpus 1``, the two share no core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from serving_bodies import Bodies, binary_tensor, images, raw_tensor
from serving_servers import KINDS, Server, start_server
from serving_table import table

from cpupack.runtime.bench.server import Load
from cpupack.runtime.host.probe import describe
from cpupack.runtime.serve.load_client import OK, REFUSED, HttpDoor, Outcome, offer

Floats = npt.NDArray[np.float64]
CPU = "{cpu} ({isa})".format(**describe())
WARM_UP_S = 0.5
_SELDOM = 0.02
_WINDOW = 50
"""Requests in a row by which a server is said to have recovered: a fifth of a second at 250 a second."""
_CLIENT_NICE = -10
"""How much the client goes before the servers, where the host allows it: it is what measures."""
_DIRECT = """
import json, sys, time
from importlib import import_module
import numpy as np
package, kind, rate, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
runner = import_module(package).Runner(threads=1, instances=1, batch_size=1)
pixels = np.random.default_rng(0).integers(0, 256, (1, *runner.pixel_shape()), dtype=np.uint8)
ready = runner.ready(pixels)
call = (lambda: runner(pixels)) if kind == "runner" else (lambda: runner.pool.run(ready, 0))
for _ in range(20):
    call()
times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(2, int(rate * seconds)))) if rate else None
begin, cpu, took, slept = time.monotonic(), time.process_time(), [], 0.0
for number in range(len(times) if rate else 10**9):
    if rate:
        since = time.process_time()
        time.sleep(max(0.0, begin + times[number] - time.monotonic()))
        slept += time.process_time() - since
    elif time.monotonic() - begin > seconds:
        break
    since = time.monotonic()
    call()
    took.append(1000 * (time.monotonic() - since))
cpu = time.process_time() - cpu - slept
print(json.dumps({"calls": len(took), "cpu_ms": 1000 * cpu / len(took), "p50_ms": float(np.median(took)),
                  "p99_ms": float(np.percentile(took, 99))}))
"""


def main() -> None:
    """Do what the command line asks for."""
    arguments = parse()
    if arguments.what == "table":
        sys.stdout.write(table([json.loads(line) for path in arguments.files for line in path.open(encoding="utf-8")]))
        return
    measure: Callable[[argparse.Namespace, list[Server]], Iterator[dict[str, Any]]] = {
        "goodput": goodput, "cpu": cpu, "jpeg": jpeg, "quiet": quiet, "overload": overload,
    }[arguments.what]  # fmt: skip
    nice = os.nice(0)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cpupack-serving-")))
        servers = []
        for text in arguments.servers:
            server = start_server(text, arguments.python, arguments.package, scratch, arguments.serve or [])
            stack.callback(server.kill)
            server.wait()
            server.pause()
            servers.append(server)
        if arguments.client_cpus:
            os.sched_setaffinity(0, arguments.client_cpus)
        with suppress(PermissionError):  # else it waits for the servers' threads, and its lateness looks like theirs
            os.setpriority(os.PRIO_PROCESS, 0, nice + _CLIENT_NICE)
        for row in measure(arguments, servers):
            pinned = {"client_cpus": arguments.client_cpus} if arguments.client_cpus else {}
            line = json.dumps({"what": arguments.what, "package": arguments.package, "cpu": CPU, **pinned, **row})
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("goodput", "cpu", "jpeg", "quiet", "overload"):
        one = commands.add_parser(name)
        one.add_argument("--python", type=Path, required=True, help="interpreter of the environment with the wheel")
        one.add_argument("--package", required=True, help="import name of the wheel")
        one.add_argument("--images", type=Path, help="folder of JPEG files")
        one.add_argument(
            "--servers", nargs="+", default=["cpupack"], metavar="KIND[:JSON]",
            help=f"{', '.join(KINDS)}, each with its setting as JSON",
        )  # fmt: skip
        one.add_argument("--serve", nargs=argparse.REMAINDER, help="options of `serve` for cpupack; the last argument")
        one.add_argument("--rates", nargs="+", type=float, default=[100.0], metavar="PER_SECOND")
        one.add_argument("--seconds", type=float, default=4.0, help="of one measurement; default: %(default)s")
        one.add_argument("--rounds", type=int, default=1)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--within-ms", type=float, default=50.0, help="what counts as good; default: %(default)s")
        one.add_argument("--tensors", action="store_true", help="of `overload`: raw tensors in the place of images")
        one.add_argument("--connections", type=int, default=8, help="of `jpeg`; default: %(default)s")
        one.add_argument("--client-cpus", nargs="+", type=int, metavar="CPU", help="cores of the client alone")
        one.add_argument("--out", type=Path, help="JSON lines are added to this file")
    one = commands.add_parser("table")
    one.add_argument("files", nargs="+", type=Path)
    return parser.parse_args()


def goodput(arguments: argparse.Namespace, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Yield a row for each round, rate and server."""
    photos = images(arguments.images)
    for number in range(arguments.rounds):
        for rate in arguments.rates:
            for server in servers:
                with server.turn():
                    row, _ = ask(server, photos, rate, arguments, arguments.seed + number)
                yield {"round": arguments.seed + number, **row}


def cpu(arguments: argparse.Namespace, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Yield rows of the server's CPU time: raw and binary tensors, JPEG; and that of the same calls alone."""
    kinds = (("raw", raw_tensor(servers[0])), ("binary", binary_tensor(servers[0])))
    for number in range(arguments.rounds):
        for rate in arguments.rates:
            yield {"round": number, "server": "kernels", **direct(arguments, "pool", rate)}
            for server in servers:
                for kind, bodies in kinds:
                    with server.turn():
                        row, _ = ask(server, bodies, rate, arguments, arguments.seed + number)
                    yield {"round": number, "body": kind, **row}
        yield {"round": number, "server": "kernels", "closed": True, **direct(arguments, "pool", 0.0)}
        for server in servers:
            for kind, bodies in kinds:
                with server.turn():
                    yield {"round": number, "body": kind, "closed": True, **closed(server, bodies, arguments)}


def quiet(arguments: argparse.Namespace, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Yield rows of latency under little load, beside the runner's own."""
    bodies = raw_tensor(servers[0])
    for number in range(arguments.rounds):
        for rate in arguments.rates:
            yield {"round": number, "server": "runner(...)", **direct(arguments, "runner", rate)}
            for server in servers:
                with server.turn():
                    row, _ = ask(server, bodies, rate, arguments, arguments.seed + number)
                yield {"round": number, "body": "raw", **row}


def jpeg(arguments: argparse.Namespace, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Yield rows of images/s: closed loop over some connections, and ``bench --from images:DIR``."""
    photos = images(arguments.images)
    for number in range(arguments.rounds):
        command = [
            arguments.python, "-m", arguments.package, "bench", "--json", "--from", f"images:{arguments.images}",
            "--duration", f"{arguments.seconds:g}",
        ]  # fmt: skip
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(done.stdout)
        yield {
            "round": number, "server": "bench", "answered_per_s": found["throughput_per_s"],
            "setting": {key: found[key] for key in ("threads", "instances", "batch_size")},
            "cpu_s": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        }  # fmt: skip
        for server in servers:
            with server.turn():
                yield {"round": number, **closed(server, photos, arguments)}


def overload(arguments: argparse.Namespace, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Yield a row for each rate, then one for a burst of ten times the first rate."""
    bodies = raw_tensor(servers[0]) if arguments.tensors else images(arguments.images)
    body = "tensors" if arguments.tensors else "images"
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        for server in servers:
            for rate in arguments.rates:
                with server.turn():
                    row, _ = ask(server, bodies, rate, arguments, seed)
                yield {"round": seed, "body": body, **row}
            with server.turn():
                row = burst(server, bodies, arguments.rates[0], arguments, seed)
            yield {"round": seed, "body": body, **row}


# One measurement.


def ask(
    server: Server, bodies: Bodies, rate: float, arguments: argparse.Namespace, seed: int
) -> tuple[dict[str, Any], Outcome]:
    """Offer a rate for some seconds and return the row. What came in the warm-up is not counted."""
    seconds = arguments.seconds + WARM_UP_S
    due_s = Load(rate, seconds, 1000 + seed).arrivals_s()
    before = server.watch()
    outcome, client_s, took_s = send(bodies.door(server.port), due_s)
    return {
        "server": server.kind, "setting": server.setting, "rate_per_s": rate, "seconds": arguments.seconds,
        "within_ms": arguments.within_ms, **summary(outcome, arguments.within_ms, WARM_UP_S, arguments.seconds),
        "body_kb": sum(map(len, bodies.bodies)) / len(bodies.bodies) / 1000, "client_cores": client_s / took_s,
        **server.used(before, took_s, len(due_s), client_s),
    }, outcome  # fmt: skip


def burst(server: Server, bodies: Bodies, rate: float, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Offer ten times the rate for a second, between seconds of the rate itself; find when latency is normal again.

    ``recovered_ms`` is how long after the end of the burst: of the next 50 requests that arrive, no larger share is
    refused or late than before the burst, or 2 % where that was less. Of all that arrive later it cannot be asked: at
    nine tenths of what a server carries, a second later some are refused by chance, burst or not. In a simulation
    without any other cause that was so in one of six rounds.
    """
    calm_s, burst_s = 2.0, 1.0
    parts = [
        Load(rate, calm_s, 2000 + seed).arrivals_s(),
        calm_s + Load(10 * rate, burst_s, 3000 + seed).arrivals_s(),
        calm_s + burst_s + Load(rate, calm_s, 4000 + seed).arrivals_s(),
    ]
    due_s = np.concatenate(parts)
    before = server.watch()
    outcome, client_s, took_s = send(bodies.door(server.port), due_s)
    latency_ms = 1000.0 * (outcome.end_s - outcome.due_s)
    bad = (outcome.state != OK) | ~(latency_ms <= arguments.within_ms)
    end_s = calm_s + burst_s
    before_share = float(bad[(due_s > WARM_UP_S) & (due_s <= calm_s)].mean())
    recovered_s = _recovered_s(due_s, bad, end_s, max(before_share, _SELDOM))
    in_burst = (due_s > calm_s) & (due_s <= calm_s + burst_s)
    return {
        "server": server.kind, "setting": server.setting, "burst": True, "rate_per_s": rate,
        "recovered_ms": 1000.0 * recovered_s, "bad_before": before_share,
        **summary(outcome, arguments.within_ms, 0.0, 2 * calm_s + burst_s),
        "answered_in_burst": int((in_burst & (outcome.state == OK)).sum()), "client_cores": client_s / took_s,
        **server.used(before, took_s, len(due_s), client_s),
    }  # fmt: skip


def _recovered_s(due_s: Floats, bad: npt.NDArray[np.bool_], end_s: float, usual: float) -> float:
    """Return how long after ``end_s`` the share of ``bad`` requests in a row is the usual one again."""
    for at_s in (end_s, *due_s[bad & (due_s > end_s)]):
        later = bad[due_s > at_s][:_WINDOW]
        if not len(later) or later.mean() <= usual:
            return float(at_s) - end_s
    raise AssertionError("after the last bad one there is none")


def send(door: HttpDoor, due_s: Floats) -> tuple[Outcome, float, float]:
    """Send requests at these times. Returns what became of them, this process's CPU time, and how long it took."""

    async def run() -> Outcome:
        await door.open()
        try:
            return await offer(door, due_s)
        finally:
            await door.close()

    used, begin_s = _cpu_s(), time.monotonic()
    with _at_once():
        outcome = uvloop.run(run())
    return outcome, _cpu_s() - used, time.monotonic() - begin_s


@contextmanager
def _at_once() -> Iterator[None]:
    """Give this process a CPU whenever it wants one, where the host allows it.

    It stands for clients on other machines. At a high niceness alone it waited for up to 4 ms for the end of a slice,
    and that looked like the server's time.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def closed(server: Server, bodies: Bodies, arguments: argparse.Namespace) -> dict[str, Any]:
    """Keep some connections busy, each with one request after the other, and return the row."""
    door, ends_s, states = bodies.door(server.port), [], []

    async def one(number: int, stop_s: float) -> None:
        while time.monotonic() < stop_s:
            states.append((await door.ask(number))[0])
            ends_s.append(time.monotonic())
            number += arguments.connections

    async def run() -> None:
        await door.open()
        stop_s = time.monotonic() + WARM_UP_S + arguments.seconds
        await asyncio.gather(*(one(number, stop_s) for number in range(arguments.connections)))
        await door.close()

    before, used, begin_s = server.watch(), _cpu_s(), time.monotonic()
    uvloop.run(run())
    took_s, client_s = time.monotonic() - begin_s, _cpu_s() - used
    end_s = begin_s + WARM_UP_S + arguments.seconds
    counted = [
        state for state, at_s in zip(states, ends_s, strict=True) if begin_s + WARM_UP_S < at_s <= end_s
    ]  # fmt: skip
    return {
        "server": server.kind, "setting": server.setting, "connections": arguments.connections,
        "body_kb": sum(map(len, bodies.bodies)) / len(bodies.bodies) / 1000,
        "answered_per_s": counted.count(OK) / arguments.seconds, "not_ok": len(counted) - counted.count(OK),
        "client_cores": client_s / took_s, **server.used(before, took_s, len(states), client_s),
    }  # fmt: skip


def summary(outcome: Outcome, within_ms: float, from_s: float, seconds: float) -> dict[str, Any]:
    """Return counts and percentiles of the requests that were due after ``from_s``."""
    counted = outcome.due_s >= from_s
    latency_ms = 1000.0 * (outcome.end_s - outcome.due_s)
    good, refused = counted & (outcome.state == OK), counted & (outcome.state == REFUSED)
    late_ms = 1000.0 * (outcome.sent_s - outcome.due_s)[counted & ~np.isnan(outcome.sent_s)]
    return {
        "requests": int(counted.sum()), "answered": int(good.sum()), "refused": int(refused.sum()),
        "failed": int(counted.sum() - good.sum() - refused.sum()), "errors": outcome.errors,
        "good_per_s": float((good & (latency_ms <= within_ms)).sum()) / seconds,
        "latency_ms": _percentiles(latency_ms[good]), "refusal_ms": _percentiles(latency_ms[refused]),
        "client_late_p99_ms": float(np.percentile(late_ms, 99)) if len(late_ms) else None,
    }  # fmt: skip


def direct(arguments: argparse.Namespace, kind: str, rate: float) -> dict[str, Any]:
    """Call the model in a process of its own, at random times of a rate or one call after the other (0)."""
    command = [arguments.python, "-c", _DIRECT, arguments.package, kind, str(rate), f"{arguments.seconds:g}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"rate_per_s": rate, **json.loads(done.stdout)}


def _percentiles(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.percentile(values, (50, 90, 99, 100))
    return dict(zip(("p50", "p90", "p99", "max"), map(float, found), strict=True))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
