"""A made-up manifest and a made-up tuned table, for tests of planning."""

from __future__ import annotations

from typing import Any

from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import FileEntry, Manifest, PlanEntry
from cpupack.runtime.plan import decide
from cpupack.runtime.plan import table as plan_table


def manifest(objective: str = "throughput", **build_plan: Any) -> Manifest:
    entry = {"threads": None, "instances": None, "batch_size": None, **build_plan}
    return Manifest(
        name="tiny-int8",
        import_name="tiny_int8",
        version="1.0.0",
        random_weights=False,
        model={"input_shape": [3, 8, 8]},
        target={},
        preprocess=None,
        labels=None,
        quantize={},
        calibration=None,
        accuracy={},
        plan=PlanEntry(bool(build_plan), objective, max_latency_ms=None, reason="", **entry),
        bench={},
        torch={},
        build={"host": {**host_probe.fingerprint(), "cores_usable": 4}},
        files={"model.pt": FileEntry("a" * 64, 1)},
    )


def table(**changes: Any) -> plan_table.TunedTable:
    fields = {
        "fingerprint": host_probe.fingerprint(),
        "cores_usable": 4,
        "model": plan_table.model_digest(manifest()),
        "objective": "throughput",
        "max_latency_ms": None,
        "threads": 2,
        "instances": 2,
        "batch_size": 32,
        "reason": "measured",
        "searched_s": 1.0,
        "rows": [],
    }
    return plan_table.TunedTable(**{**fields, **changes})


def numbers(decided: decide.Plan) -> tuple[int, int, int]:
    return decided.threads, decided.instances, decided.batch_size
