"""The servers that ``serving.py`` measures: how each is started, paused, and what it uses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent / "serving_peers"
KINDS = ("cpupack", "uvicorn", "echo", "fastapi", "litserve", "bentoml")
_PATIENCE_S = 120.0
_READY = {"cpupack": "/v2/health/ready", "uvicorn": "/v2/health/ready", "fastapi": "/ready", "litserve": "/health"}


class Server:
    """A running server: all processes of its session."""

    def __init__(
        self, kind: str, setting: dict[str, Any], port: int, process: subprocess.Popen[bytes], said: Path
    ) -> None:
        self.kind, self.setting, self.port, self._process, self._said = kind, setting, port, process, said

    def wait(self) -> None:
        """Wait until it answers. Exits when it has died or does not start."""
        end_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", _READY.get(self.kind, "/readyz"))
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        self.kill()
        sys.exit(f"{self.kind} {self.setting} did not start:\n{self._said.read_text(errors='replace')[-3000:]}")

    def pause(self) -> None:
        """Stop its processes until its turn."""
        self._signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run meanwhile."""
        self._signal(signal.SIGCONT)
        time.sleep(0.3)
        try:
            yield
        finally:
            time.sleep(0.1)
            self.pause()

    def kill(self) -> None:
        """End all its processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def watch(self) -> dict[str, Any]:
        """Return what ``used`` needs from before a measurement."""
        return {"cpu_s": self._cpu_s(), "metrics": self._metrics(), "faults": self._faults(), "busy_s": _busy_s()}

    def used(self, before: dict[str, Any], took_s: float, requests: int, client_s: float) -> dict[str, Any]:
        """Return the server's CPU time since ``before``, its memory, and what its own metrics say.

        ``client_s`` is the client's CPU time. ``other_cores`` is what the rest of the host took, and the kernel's
        interrupts.
        """
        busy_s = _busy_s() - before["busy_s"]
        user_s, system_s = (now - then for now, then in zip(self._cpu_s(), before["cpu_s"], strict=True))
        cpu_s = user_s + system_s
        found: dict[str, Any] = {
            "server_cpu_ms_a_request": 1000.0 * cpu_s / requests, "server_cores": cpu_s / took_s,
            "system_ms_a_request": 1000.0 * system_s / requests,
            "other_cores": max(0.0, busy_s - cpu_s - client_s) / took_s,
            "page_faults_a_request": (self._faults() - before["faults"]) / requests,
            "server_mb": sum(_proportional_mb(one) for one in self._processes()),
        }  # fmt: skip
        after, metrics = self._metrics(), before["metrics"]
        if after:
            found["wait_error_p90"] = _histogram_percentile(metrics, after, "predicted_wait_error_ratio", 0.9)
            found["refusal_in_server_p99_s"] = _histogram_percentile(metrics, after, "refusal_duration_seconds", 0.99)
            found["refused_because"] = {
                reason: _since(metrics, after, f'cpupack_refused_total{{reason="{reason}"}}')
                for reason in ("deadline", "expired", "queue", "bytes")
            }
            calls = _since(metrics, after, "cpupack_batch_size_count")
            found["batch"] = _since(metrics, after, "cpupack_batch_size_sum") / calls if calls else None
            found["compute_ms"] = (
                1000 * _since(metrics, after, "cpupack_compute_seconds_sum") / calls if calls else None
            )
            found["drift"], found["tail"] = (after.get(f"cpupack_table_{name}_ratio") for name in ("drift", "tail"))
        return found

    def metadata(self) -> dict[str, Any]:
        """Return what cpupack's server says of its model, named as its wheel."""
        name = self.get("/openapi.json")["info"]["title"]
        return {"name": name, **self.get(f"/v2/models/{name}")}

    def get(self, path: str) -> Any:
        """Return the JSON at an address."""
        return json.loads(self._text(path))

    def _text(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def _metrics(self) -> dict[str, float]:
        if self.kind not in ("cpupack", "uvicorn"):
            return {}
        text = self._text("/metrics")
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def _processes(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu_s(self) -> tuple[float, float]:
        """Return the CPU time of the processes in user and in kernel mode."""
        user_s = system_s = 0.0
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                used = one.cpu_times()
                user_s, system_s = user_s + used.user, system_s + used.system
        return user_s, system_s

    def _faults(self) -> int:
        """Return how many pages the processes have got from the kernel."""
        total = 0
        for one in self._processes():
            with suppress(FileNotFoundError):
                total += int(Path(f"/proc/{one.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[7])
        return total

    def _signal(self, number: int) -> None:
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def start_server(text: str, python: Path, package: str, directory: Path, options: list[str]) -> Server:
    """Start the server ``KIND[:JSON]`` on a free port, in a session of its own."""
    kind, _, setting_text = text.partition(":")
    if kind not in KINDS:
        sys.exit(f"--servers {text}: expected one of {', '.join(KINDS)}")
    setting = json.loads(setting_text) if setting_text else {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **setting.get("env", {}),
        "SETTING": json.dumps(setting),
        "PACKAGE": package,
        "BENTOML_DO_NOT_TRACK": "True",
    }
    if kind == "cpupack":
        command = ["-m", package, "serve", "--port", str(port), *setting.get("options", []), *options]
    elif kind == "bentoml":
        target = f"bentoml_app:{'Front' if setting.get('batch') else 'Classify'}"
        command = ["-m", "bentoml", "serve", target, "--host", "127.0.0.1", "-p", str(port), "--working-dir", str(HERE)]
    else:
        command = [str(HERE / f"{kind}_app.py"), str(port), package, json.dumps(setting)]
    said = directory / f"{kind}-{port}.log"
    pinned = ["taskset", "--cpu-list", ",".join(map(str, setting["cpus"]))] if "cpus" in setting else []
    with said.open("wb") as stream:
        process = subprocess.Popen(
            [*pinned, str(python), *command], cwd=directory, env=environment, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    return Server(kind, setting | ({"options": options} if options and kind == "cpupack" else {}), port, process, said)


def _busy_s() -> float:
    """Return the CPU time of the whole host since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _proportional_mb(process: psutil.Process) -> float:
    """Return the memory of a process, of shared pages its share."""
    try:
        return float(process.memory_full_info().pss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def _since(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def _histogram_percentile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float | None:
    """Return the bound below which ``share`` of the values since ``before`` are, interpolated in its interval."""
    rows = []
    for key in after:
        if match := re.fullmatch(rf'cpupack_{name}_bucket{{le="(.+)"}}', key):
            rows.append((float(match[1].replace("+Inf", "inf")), _since(before, after, key)))
    rows.sort()
    if not rows or not rows[-1][1]:
        return None
    wanted, low, below = share * rows[-1][1], 0.0, 0.0
    for bound, count in rows:
        if count >= wanted:
            return (
                bound
                if bound == float("inf") or count == below
                else low + (bound - low) * (wanted - below) / (count - below)
            )
        low, below = bound, count
    return None
