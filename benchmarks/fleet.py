"""Does one replica carry what ``plan --fleet`` says? ``python benchmarks/fleet.py efficientnet_lite0_int8``.

The installed wheel (its import name) is tuned on one CPU, and its server runs there, without a promise: nothing is
refused, so the queue shows. The client of ``bench --server`` runs on another CPU and offers tensors at shares of the
rate that the plan says one replica carries within the bound. Each line is one share: the p99 that the model of queues
expects, and the p99 measured. ``tuned_per_s`` and ``kernels_per_s`` are the rate of the kernels alone when they were
tuned, and just before that share. Run it on an idle host; ``--out FILE`` adds the rows to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cpupack.runtime.capacity.fleet import FleetOptions, plan_fleet, served
from cpupack.runtime.capacity.planning import HTTP_MS, load_of
from cpupack.runtime.capacity.profiles import complete, profiles

SHARES = (0.25, 0.5, 0.75, 1.0)
_READY_S = 60.0


def main() -> None:
    """Tune, plan, serve and measure; print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="the wheel's import name")
    parser.add_argument("--max-latency-ms", type=float, default=50.0, help="default: %(default)s")
    parser.add_argument("--cpus", default="0,1", help="CPU of the server, CPU of the client (default: %(default)s)")
    parser.add_argument("--budget-s", type=float, default=20.0, help="time to tune (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds for each share (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    asked = parser.parse_args()
    server_cpu, client_cpu = asked.cpus.split(",")
    with tempfile.TemporaryDirectory() as cache:
        environ = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", asked.module]
        pinned = ["taskset", "-c", server_cpu, *command]
        sizes = ["--batch-sizes", "1,2,4,8"]
        tuned = run([*pinned, "tune", "--budget-s", str(asked.budget_s), *sizes], environ)
        measured = profiles(complete(tuned["rows"]))
        options = FleetOptions(spare=0)
        (fleet, *_) = plan_fleet(measured, 1.0, asked.max_latency_ms, options)
        call_ms = next(one.call_ms(fleet.each.batch_size) for one in measured if one.threads == fleet.each.threads)
        profile = next(served(one, options) for one in measured if one.threads == fleet.each.threads)
        with (Path(cache) / "said").open("w+") as said:
            server = subprocess.Popen(
                [*pinned, "serve", "--port", "0", "--threads", "1", "--instances", "1",
                 "--batch-size", str(fleet.each.batch_size)],
                env=environ, stderr=said, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                address = ready(Path(said.name), server)
                for share in SHARES:
                    rate = share * fleet.peak_per_s
                    # What the kernels do now: a shared host is not always as fast as it was when it was tuned.
                    layout = ["--threads", "1", "--instances", "1", "--batch-size", str(fleet.each.batch_size)]
                    kernels = run([*pinned, "bench", *layout, "--duration", "2"], environ)
                    expected = load_of(profile, 1, fleet.each.batch_size, rate)
                    found = run(
                        ["taskset", "-c", client_cpu, *command, "bench", "--server", address, "--rate", f"{rate:.3f}",
                         "--duration", str(asked.duration), "--max-latency-ms", str(asked.max_latency_ms)],
                        environ,
                    )  # fmt: skip
                    row = {
                        "module": asked.module,
                        "share": share,
                        "rate_per_s": rate,
                        "batch_size": fleet.each.batch_size,
                        "expected_p99_ms": expected.p99_ms + HTTP_MS,
                        "tuned_per_s": 1000.0 * fleet.each.batch_size / call_ms,
                        "kernels_per_s": kernels["throughput_per_s"],
                        "measured_p99_ms": found["latency_ms"]["p99"],
                        "measured_p50_ms": found["latency_ms"]["p50"],
                        "valid": found["valid"],
                        "invalid_reasons": found["invalid_reasons"],
                    }
                    sys.stdout.write(json.dumps(row) + "\n")
                    sys.stdout.flush()
                    if asked.out is not None:
                        with asked.out.open("a", encoding="utf-8") as rows:
                            rows.write(json.dumps(row) + "\n")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()


def run(command: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Return what a command of the wheel prints with ``--json``. A verdict FAIL is an answer, too."""
    done = subprocess.run([*command, "--json"], env=environ, stdout=subprocess.PIPE, check=False)
    if not done.stdout:
        raise SystemExit(f"{' '.join(command)} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ready(said: Path, server: subprocess.Popen[bytes]) -> str:
    """Return the address of the server as soon as it is ready."""
    until_s = time.monotonic() + _READY_S
    while time.monotonic() < until_s and server.poll() is None:
        if found := re.search(r"ready on (http://\S+)", said.read_text("utf-8")):
            return found[1]
        time.sleep(0.05)
    raise SystemExit(f"the server did not start: {said.read_text('utf-8')}")


if __name__ == "__main__":
    main()
