"""A wheel on a local Ray cluster of two nodes: nothing is lost, twice or different when a node or a replica dies."""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.stages.package import build_wheel, stage_project
from helpers.fresh_venv import Environment, make_environment
from helpers.lowered import needs_kernels
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.ray_cluster import RayCluster, ray_cluster, replicas
from helpers.tiny_wheel import TinyWheel
from helpers.waiting import PATIENCE_S, wait_until

pytest.importorskip("ray", reason="needs Ray, of the extra dev")

pytestmark = [pytest.mark.slow, needs_kernels]

APPLICATION = f"tested{os.getpid()}"
"""Its replicas are found among all processes of the host by this name."""
IMAGES, BROKEN = 2000, 2
"""One broken image in a thousand."""


@pytest.fixture(scope="module")
def environment(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    def make(root: Path) -> None:
        scratch = tmp_path_factory.mktemp("on-ray")
        staged = stage_project(native_contents(tiny, scratch), scratch / "project")
        make_environment(root, build_wheel(staged, scratch / "dist").path)

    return Environment(once(tmp_path_factory, "on-ray-venv", make))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that take a few milliseconds each to decode, so that there is a middle to kill a node in."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(20):
        small = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(small).resize((900, 600)).save(root / f"{number:04}.jpg", quality=90)
    for number in range(20, IMAGES):
        os.link(root / f"{number % 20:04}.jpg", root / f"{number:04}.jpg")
    for number in range(BROKEN):
        path = root / f"{700 * number + 33:04}.jpg"
        path.unlink()
        path.write_bytes(b"no image")
    return root


@pytest.fixture
def cluster(environment: Environment) -> Iterator[RayCluster]:
    with ray_cluster(environment) as started:
        yield started


def run_of(environment: Environment, *arguments: str) -> dict[str, Any]:
    return environment.json("tiny-int8", "batch", *arguments)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.night
def test_a_node_that_dies_costs_no_image_and_changes_no_byte(
    environment: Environment, images: Path, cluster: RayCluster, tmp_path: Path
) -> None:
    arguments = ("--from", str(images), "--rows-per-file", "50", "--to")
    alone = run_of(environment, *arguments, str(tmp_path / "alone"))
    assert (alone["inputs"], alone["unreadable"], alone["files"]) == (IMAGES, BROKEN, IMAGES // 50)

    out = tmp_path / "ray"
    command = [str(environment.root / "bin" / "tiny-int8"), "batch", *arguments, str(out), "--json"]
    running = subprocess.Popen(
        [*command, "--address", cluster.address],
        env=environment.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: len(list(out.glob("part-*"))) >= 2 or running.poll() is not None)
    assert cluster.tell("kill") == "killed"
    before = len(list(out.glob("part-*")))
    stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    found = json.loads(stdout)
    assert before < IMAGES // 50, "the node died too late to prove anything"
    assert (found["inputs"], found["computed"], found["processes"]) == (IMAGES, IMAGES, 2)
    assert found["alone_per_s_per_core"] > 0
    assert contents(out) == contents(tmp_path / "alone")

    # The same run again has nothing to do, and another one is not begun there.
    assert run_of(environment, *arguments, str(out), "--address", cluster.address)["computed"] == 0
    refused = environment.run("tiny-int8", "batch", *arguments, str(out), "--top-k", "1", "--address", cluster.address)
    assert refused.returncode == 2
    assert "holds the output of another run, which differs in the --top-k" in refused.stderr
    assert contents(out) == contents(tmp_path / "alone")


def test_a_cluster_that_cannot_be_used_is_said_and_nothing_is_written(
    environment: Environment, images: Path, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        port = taken.getsockname()[1]
        for address, code, why in [
            (f"127.0.0.1:{port}", 3, "no Ray cluster at --address"),
            ("nowhere", 2, "expected auto, local, or HOST:PORT"),
            ("ray://127.0.0.1:10001", 2, "ray job submit"),
        ]:
            out = tmp_path / "out"
            done = environment.run("tiny-int8", "batch", "--from", str(images), "--to", str(out), "--address", address)
            assert done.returncode == code, done.stderr
            assert why in done.stderr
            assert "Traceback" not in done.stderr
            assert not out.exists()


@pytest.mark.night
def test_a_dataset_of_ray_and_a_runner_that_sees_its_share(
    environment: Environment, images: Path, cluster: RayCluster, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in (0, 1, 33, 4):
        shutil.copy(images / f"{number:04}.jpg", few / f"{number:04}.jpg")
    labels, plans = ast.literal_eval(cluster.tell(f"dataset tiny_int8 {few}"))
    names = [str(path) for path in sorted(few.iterdir()) if path.name != "0033.jpg"]
    predicted = environment.json("tiny-int8", "predict", "--top-k", "1", *names)["predictions"]
    expected = [one["top"][0]["label"] for one in predicted]
    assert [labels[0], labels[1], labels[2]] == expected
    assert "not an image" in labels[3]
    assert plans == [(1, 1, "1"), (1, 1, "1")]  # one CPU each, however many the host has


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def client(environment: Environment, port: int, *options: str) -> subprocess.Popen[str]:
    """Start `bench --server` against the application."""
    command = [str(environment.root / "bin" / "tiny-int8"), "bench", "--server", f"http://127.0.0.1:{port}", "--json"]
    return subprocess.Popen(
        [*command, *options], env=environment.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answers_of(running: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a client found: every request has got an answer of 200, 429 or 503."""
    stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    assert found["failed"] == 0, found["errors"]
    assert found["answered"] + found["refused"] == found["requests"]
    return found


@pytest.mark.night
def test_a_replica_that_dies_loses_no_request(environment: Environment, cluster: RayCluster) -> None:
    port = free_port()
    two = json.dumps({"replicas": 2, "max_latency_ms": 20_000}, separators=(",", ":"))
    assert cluster.tell(f"serve tiny_int8 {port} {APPLICATION} {two}") == "ready"
    running = client(environment, port, "--rate", "8", "--duration", "12", "--max-latency-ms", "20000")
    wait_until(lambda: running.poll() is not None or len(replicas(APPLICATION)) == 2)
    try:
        running.wait(4.0)
    except subprocess.TimeoutExpired:  # it is in the middle
        os.kill(replicas(APPLICATION)[0], signal.SIGKILL)
    found = answers_of(running)
    assert found["answered"] > found["requests"] / 2
    wait_until(lambda: cluster.tell(f"health {APPLICATION}") == "tiny-int8-front=2 tiny-int8=2")


@pytest.mark.night
def test_a_load_brings_replicas(environment: Environment, images: Path, cluster: RayCluster) -> None:
    """None without a load, one for the first requests, two for more than one carries."""
    port, name = free_port(), f"{APPLICATION}scaled"
    of_one_sample = {"min_replicas": 0, "max_replicas": 2, "cpus": 1, "threads": 1, "instances": 1, "batch_size": 1}
    assert cluster.tell(f"serve tiny_int8 {port} {name} " + json.dumps(of_one_sample).replace(" ", "")) == "ready"
    assert (replicas(name), cluster.tell(f"health {name}")) == ([], "tiny-int8-front=2 tiny-int8=0")
    rate, counts = 4, set[int]()
    answered = {"answered": 0}
    while 2 not in counts and rate < 1000:  # twice the rate until one replica has too much; Ray looks at the last 30 s
        running = client(
            environment, port, "--rate", str(rate), "--duration", "10", "--from", f"images:{images}",
            "--max-latency-ms", "20000",
        )  # fmt: skip
        stdout = None
        while stdout is None:
            counts.add(len(replicas(name)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                stdout, _ = running.communicate(timeout=0.2)  # reads all the time: a full pipe would stop the client
        # It fails where all of its requests waited for the first replica.
        answered = json.loads(stdout) if stdout else answered
        rate *= 2
    assert 2 in counts
    assert answered["answered"] > 0
    wait_until(lambda: cluster.tell(f"health {name}") == "tiny-int8-front=2 tiny-int8=2")


@pytest.mark.night
def test_more_than_a_replica_and_its_queue_hold_is_answered_429(
    environment: Environment, images: Path, cluster: RayCluster
) -> None:
    """One runs, one is ready, two wait at each of the two fronts: of 40 at once most are refused, and each is told."""
    port, name = free_port(), f"{APPLICATION}full"
    small = {"replicas": 1, "cpus": 1, "threads": 1, "instances": 1, "batch_size": 1}
    assert cluster.tell(f"serve tiny_int8 {port} {name} " + json.dumps(small).replace(" ", "")) == "ready"
    photo = base64.b64encode((images / "0000.jpg").read_bytes()).decode()
    body = json.dumps({"images": [photo] * 20}).encode()  # some tenths of a second for one CPU

    def ask(_: int) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            found = connection.getresponse()
            return found.status, {key.lower(): value for key, value in found.getheaders()}, found.read()
        finally:
            connection.close()

    with ThreadPoolExecutor(40) as clients:
        found = list(clients.map(ask, range(40)))
    refused = [(headers, text) for status, headers, text in found if status == 429]
    assert {status for status, _, _ in found} == {200, 429}
    assert len(refused) > 20
    for headers, text in refused:
        assert headers["x-refused"] == "queue"
        assert int(headers["retry-after"]) >= 1
        assert "refused (queue)" in json.loads(text)["error"]
    assert all(len(json.loads(text)["predictions"]) == 20 for status, _, text in found if status == 200)
    assert ask(0)[0] == 200  # and afterwards there is room again
