"""What runs on Ray, without a cluster: the class for Ray Data, the pool, the arguments of the application."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.batch.shards import Shard
from cpupack.runtime.errors import HostError, InputError
from cpupack.runtime.on_ray import versions
from cpupack.runtime.on_ray.app_options import AppOptions, read_arguments
from cpupack.runtime.on_ray.pool import NodeFacts, Pool, Setting, make_pool
from cpupack.runtime.runner import Runner

pytest.importorskip("ray", reason="needs Ray, of the extra dev")


def node(name: str, cpus: int, threads: int = 1, instances: int | None = None) -> NodeFacts:
    return NodeFacts(name, name, cpus, threads, cpus // threads if instances is None else instances, 8)


@pytest.mark.parametrize(
    ("nodes", "given", "expected"),
    [
        ([node("a", 4), node("b", 4)], {}, Pool(2, 4, {"a": Setting(1, 4, 8), "b": Setting(1, 4, 8)})),
        ([node("a", 4), node("b", 16)], {}, Pool(5, 4, {"a": Setting(1, 4, 8), "b": Setting(1, 4, 8)})),
        ([node("a", 4), node("b", 6)], {}, Pool(5, 2, {"a": Setting(1, 2, 8), "b": Setting(1, 2, 8)})),
        # Eight cores with SMT: sixteen CPUs for Ray, and eight instances.
        ([node("a", 16, 1, 8)], {}, Pool(1, 16, {"a": Setting(1, 8, 8)})),
        # Four threads do not fit into a share of two CPUs.
        ([node("a", 8, 4), node("b", 2, 1)], {}, Pool(5, 2, {"a": Setting(2, 1, 8), "b": Setting(1, 2, 8)})),
        ([node("a", 8)], {"threads": 2, "instances": 2, "batch_size": 1}, Pool(2, 4, {"a": Setting(2, 2, 1)})),
        ([node("a", 8)], {"instances": 3}, Pool(2, 3, {"a": Setting(1, 3, 8)})),
    ],
)
def test_actors_have_one_size_and_leave_no_cpu_idle(
    nodes: list[NodeFacts], given: dict[str, int], expected: Pool
) -> None:
    assert make_pool(nodes, **given) == expected


def test_an_actor_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(HostError, match="an actor of 16 CPUs fits on no node; the largest one has 8"):
        make_pool([node("a", 8), node("b", 4)], threads=4, instances=4)


def test_arguments_of_the_application() -> None:
    assert read_arguments({"max_latency_ms": "50", "replicas": "2", "cpus": 4.0}) == AppOptions(50.0, 4, replicas=2)
    for arguments, why in [
        ({"max_latency": 5}, "unknown argument max_latency; there are max_latency_ms, cpus"),
        ({"cpus": "1.5"}, "cpus is '1.5'; expected a whole number"),
        ({"cpus": 1.5}, "cpus is 1.5; expected a whole number"),
        ({"cpus": True}, "cpus is True; expected a whole number"),
        ({"max_latency_ms": "fast"}, "max_latency_ms is 'fast'; expected a number"),
        ({"max_latency_ms": "nan"}, "max_latency_ms nan"),
        ({"replicas": 0}, "replicas 0"),
        ({"max_replicas": 0}, "max_replicas 0"),
        ({"min_replicas": -1}, "min_replicas -1: not a number from 0"),
        ({"replicas": 2, "max_replicas": 3}, "leave out min_replicas and max_replicas"),
        ({"min_replicas": 20}, "min_replicas is 20, above max_replicas, 10"),
        ({"cpus": 2, "threads": 4}, "4 threads x 1 instances need more than the 2 cpus"),
    ]:
        with pytest.raises(InputError) as error:
            read_arguments(arguments)
        assert why in str(error.value)


def test_a_promise_shorter_than_the_way_through_ray_is_refused() -> None:
    from cpupack.runtime.on_ray.serving import RAY_MS, own_promise_ms

    assert own_promise_ms(None) is None
    assert own_promise_ms(RAY_MS + 75.0) == 75.0
    with pytest.raises(HostError, match="5 ms cannot be held: Ray's proxy and fronts alone take"):
        own_promise_ms(5.0)


def test_the_numbers_of_a_replica_follow_from_its_plan(native_package_dir: Path) -> None:
    from cpupack.runtime.on_ray.serving import plan_replica

    held = plan_replica(native_package_dir, AppOptions(20_000.0, cpus=1, batch_size=4))
    assert (held.options.threads, held.options.instances, held.options.batch_size) == (1, 1, 4)
    assert held.max_ongoing == 2 * 4
    assert 1.0 <= held.target_ongoing <= held.max_ongoing
    assert held.carries_per_s is not None
    assert held.carries_per_s > 0
    free = plan_replica(native_package_dir, AppOptions(cpus=2, threads=2, batch_size=4))
    assert (free.options.threads, free.options.instances, free.max_ongoing, free.target_ongoing) == (2, 1, 8, 4.0)
    with pytest.raises(HostError, match="cannot be held here"):
        plan_replica(native_package_dir, AppOptions(25.001, cpus=1))


@pytest.mark.parametrize("scaling", [{"replicas": "2"}, {"min_replicas": 0, "max_replicas": 3}])
def test_the_application_can_be_built_without_a_cluster(native_package_dir: Path, scaling: dict[str, Any]) -> None:
    from ray.serve import Application

    from cpupack.runtime.on_ray.serving import build

    assert isinstance(build(native_package_dir, {"cpus": 1, "max_latency_ms": 20_000, **scaling}), Application)


class Handle:
    """A deployment's handle whose calls end as ``outcomes`` say, one after the other."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.bodies = list(outcomes), list[bytes]()
        self.answer = self

    async def remote(self, call: Any, *parts: bytes) -> Any:
        self.bodies.append(b"".join(parts))
        assert max(map(len, parts), default=0) < 100 * 1024  # what Ray sends along with a call
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def ask(monkeypatch: pytest.MonkeyPatch, handle: Handle, body: bytes) -> Any:
    from starlette.requests import Request

    from cpupack.runtime.on_ray import front

    monkeypatch.setattr(front, "node_id", lambda: "here")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/m/predict", "root_path": "/m", "headers": [(b"A", b"b")]}
    return asyncio.run(front.Front(handle, 1_000_000)(Request(scope, receive)))


def test_a_front_gives_a_request_to_another_replica_and_then_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    from cpupack.runtime.serve.messages import HttpAnswer

    body, done = bytes(300_000), HttpAnswer(200, b"{}", headers=((b"server-timing", b"x"),))
    handle = Handle(ActorDiedError(), done)
    found = ask(monkeypatch, handle, body)
    assert (found.status_code, found.body, found.headers["server-timing"]) == (200, b"{}", "x")
    assert handle.bodies == [body, body]
    gone = ask(monkeypatch, Handle(*[ActorDiedError()] * 9), body)
    assert (gone.status_code, gone.headers["retry-after"], gone.headers["x-refused"]) == (503, "1", "not_ready")
    full = ask(monkeypatch, Handle(BackPressureError(1, 1)), body)
    assert (full.status_code, full.headers["retry-after"], full.headers["x-refused"]) == (429, "1", "queue")
    assert ask(monkeypatch, Handle(), bytes(1_000_001)).status_code == 413


def test_ray_must_be_there_and_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.require_ray("tiny")
    for found, why in (("2.9.3", "ray 2.9.3 is too old: tiny needs 2.60 or newer"), ("1.13", "ray 1.13 is too old")):
        monkeypatch.setattr(metadata, "version", lambda _, found=found: found)
        with pytest.raises(HostError, match=why):
            versions.require_ray("tiny")
    monkeypatch.setattr(metadata, "version", lambda _: "3.0.0")
    versions.require_ray("tiny")
    monkeypatch.setattr(versions, "_MODULES", {"no_such_module": "ray[data]"})
    with pytest.raises(HostError, match=r"Ray is here without ray\[data\].*pip install 'tiny\[ray\]'"):
        versions.require_ray("tiny")

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(HostError, match=r"Ray, which is not installed; run: pip install 'tiny\[ray\]'"):
        versions.require_ray("tiny")


def test_batch_says_that_ray_is_too_old_before_it_imports_any_of_it(native_package_dir: Path, tmp_path: Path) -> None:
    """Ray 2.9 with a pyarrow of today cannot be imported: PyExtensionType is gone."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise AttributeError('PyExtensionType')\n")
    (tmp_path / "ray-2.9.3.dist-info").mkdir()
    (tmp_path / "ray-2.9.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.9.3\n")
    (tmp_path / "images").mkdir()
    run = "import pathlib, sys; from cpupack.runtime import cli; sys.exit(cli.main(pathlib.Path(sys.argv.pop(1))))"
    command = [sys.executable, "-c", run, str(native_package_dir), "batch", "--from", str(tmp_path / "images")]
    done = subprocess.run(
        [*command, "--to", str(tmp_path / "out"), "--address", "local"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "ray 2.9.3 is too old: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_metrics_of_serve_are_read_with_their_labels() -> None:
    from cpupack.runtime.on_ray.ray_metrics import samples
    from cpupack.runtime.serve.metrics import Metrics

    metrics = Metrics()
    metrics.requests.add("predict", "200")
    metrics.queue.observe(0.003)
    found = {(name, *labels.items()): value for name, labels, value in samples(metrics.text())}
    assert found["cpupack_requests_total", ("route", "predict"), ("code", "200")] == 1.0
    assert found["cpupack_queue_seconds_bucket", ("le", "0.004")] == 1.0
    assert found["cpupack_queue_seconds_bucket", ("le", "+Inf")] == 1.0
    assert found["cpupack_queue_seconds_sum",] == 0.003
    assert not any(name.startswith("process_") for name, *_ in found)


def test_a_shard_survives_its_way_through_ray() -> None:
    from cpupack.runtime.on_ray.batch import shard_of

    for shard in (Shard(3, ("a/\udcff.jpg", "\N{SNOWMAN}"), 2), Shard(0, ("a.parquet",), 9, (1, 2), 7)):
        assert shard_of(json.dumps(dataclasses.asdict(shard))) == shard


def read_only(values: Any) -> np.ndarray:
    """Return an array as Ray hands it to an actor: a view of shared memory."""
    array = np.asarray(values)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("engine", ["package_dir", "native_package_dir"])
def test_batches_that_are_read_only(engine: str, request: pytest.FixtureRequest) -> None:
    from cpupack.runtime.on_ray.predictor import Predictor

    package_dir: Path = request.getfixturevalue(engine)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    floats = generator.standard_normal((5, 3, 16, 16), np.float32)
    photos = []
    for large in generator.integers(0, 256, (5, 24, 30, 3), dtype=np.uint8):
        out = io.BytesIO()
        Image.fromarray(large).save(out, "PNG")
        photos.append(out.getvalue())
    photos[2] = b"no image"

    class Bound(Predictor):
        pass

    Bound.package_dir = package_dir
    with Runner(package_dir, batch_size=2) as runner:
        for batch in (pixels, floats):
            assert np.array_equal(runner(read_only(batch)), runner(batch.copy()))
            assert np.array_equal(runner(read_only(batch)[::-1]), runner(batch[::-1].copy()))

        def top(row: Any) -> Any:
            return runner.answers.facts(runner.present(row, None, 5))["top"]

        expected = {"pixels": [top(row) for row in runner(pixels)], "floats": [top(row) for row in runner(floats)]}
        expected["photos"] = [
            None if photo == b"no image" else runner.answers.facts(runner.predict(photo))["top"] for photo in photos
        ]
    columns = {"pixels": pixels, "floats": floats, "photos": np.array(photos, object)}
    for column, values in columns.items():
        predictor = Bound(column=column)
        names, other = read_only(["a", "b", "c", "d", "e"]), read_only(np.arange(20).reshape(5, 2, 2))
        table = predictor({"name": names, column: read_only(values), "other": other})
        assert table.column_names == ["name", "other", "error", "top"]
        assert table.column("other").to_pylist() == other.tolist()
        assert table.column("top").to_pylist() == expected[column]
        assert [each is None for each in table.column("error").to_pylist()] == [
            n != 2 or column != "photos" for n in range(5)
        ]
        with pytest.raises(InputError, match="has no column"):
            predictor({"other": values})
        with pytest.raises(InputError, match="columns of the names of results: error"):
            predictor({"error": values, column: values})


def test_a_replica_answers_proves_itself_and_drains(native_package_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpupack.runtime.on_ray import replica
    from cpupack.runtime.on_ray.replica import Call, Replica
    from cpupack.runtime.serve.options import ServeOptions

    monkeypatch.setattr(replica, "node_id", lambda: "here")
    monkeypatch.setattr(replica, "package_of", lambda _: native_package_dir)
    out = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(out, "PNG")
    photo = out.getvalue()

    async def live() -> None:
        served = object.__new__(Replica)
        await Replica.__init__(served, "tiny_int8", ServeOptions(max_latency_ms=20_000.0, instances=1, batch_size=2))

        async def ask(method: bytes, path: str, *parts: bytes, at_s: float | None = None) -> Any:
            arrived_s = time.monotonic() if at_s is None else at_s
            headers = {b"content-type": b"image/png", b"content-length": b"%d" % sum(map(len, parts))}
            return await served.answer(Call(method, path, b"", headers, arrived_s, "here"), *parts)

        found = await ask(b"POST", "/predict", photo[:40], photo[40:])
        assert (found.status, json.loads(found.body)["model"]) == (200, "tiny-int8")
        assert (await ask(b"GET", "/nothing")).status == 404
        assert (await ask(b"GET", "/v2/health/ready")).status == 200
        # It waited for longer than the promise before it came here.
        assert (await ask(b"POST", "/predict", photo, at_s=time.monotonic() - 60.0)).status == 429
        page = (await ask(b"GET", "/metrics")).body.decode()
        assert 'cpupack_requests_total{route="predict",code="200"} 1' in page
        assert "cpupack_promise_seconds 20" in page
        await served.check_health()
        served._expected = served._expected + 1.0  # as memory that was damaged would make it
        with pytest.raises(HostError, match="a golden input gives another output than at the start"):
            await served.check_health()
        await served.__del__()
        assert (await ask(b"POST", "/predict", photo)).status == 503

    asyncio.run(live())
