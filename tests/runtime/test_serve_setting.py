"""Which tuned call times a server goes by, before it refuses a promise or admits a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.errors import HostError
from cpupack.runtime.serve import promise
from cpupack.runtime.serve.options import ServeOptions


def row(size: int, p99_ms: float, *, disturbed: bool = False) -> dict[str, Any]:
    return {
        "threads": 1, "instances": 2, "batch_size": size, "throughput_per_s": 1000.0,
        "latency_ms": {"p99": p99_ms}, "disturbed": disturbed,
    }  # fmt: skip


def setting(
    rows: list[dict[str, Any]], package_dir: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> promise.Setting:
    monkeypatch.setattr(promise, "measured_rows", lambda *_: (rows, "tuned"))
    return promise.choose_setting(package_dir, ServeOptions(**options))


def test_a_table_of_quiet_calls_decides(package_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(1, 4.0), row(8, 20.0)]
    found = setting(rows, package_dir, monkeypatch, max_latency_ms=100.0)
    assert found.source == "tuned"
    assert found.profile is not None
    assert [call.p99_ms for call in found.profile.calls] == [4.0, 20.0]
    with pytest.raises(HostError, match="3 ms cannot be held here"):
        setting(rows, package_dir, monkeypatch, max_latency_ms=3.0)


@pytest.mark.parametrize(
    "rows",
    [
        [row(8, 48.0, disturbed=True)],
        [row(1, 60.0, disturbed=True), row(8, 48.0)],
        [row(8, 48.0)],
    ],
    ids=["disturbed", "one of them disturbed", "no call of one sample"],
)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_times_of_a_busy_host_are_measured_again(
    rows: list[dict[str, Any]], batch_size: int | None, package_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search on a busy host may end with one setting, whose calls say nothing of one request alone."""
    found = setting(rows, package_dir, monkeypatch, max_latency_ms=20.0, batch_size=batch_size)
    assert found.profile is None
    assert found.batch_size == batch_size
    assert "measured at the start" in found.source
