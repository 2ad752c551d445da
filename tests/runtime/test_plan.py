"""Which setting a runner starts with, and the reason it gives, on made-up hosts."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime import cli
from cpupack.runtime.errors import InputError
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.granted import Grant
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.plan import decide
from cpupack.runtime.plan import table as plan_table
from helpers.plan_fixtures import manifest, numbers, table


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def four(tmp_path: Path) -> HostProbe:
    return HostProbe(_same_host(tmp_path / "host"), affinity=frozenset(range(4)))


def _same_host(root: Path) -> Path:
    """A root without limits whose fingerprint is this host's."""
    online = root / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text(f"0-{host_probe.fingerprint()['cores_physical'] - 1}")
    return root


@pytest.fixture
def keep(cache: dict[str, str]) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = plan_table.table_path(manifest(), cache)
        plan_table.write_table(path, table(**changes))
        return path

    return write


def test_throughput_fills_the_usable_cores_with_single_threads(four: HostProbe, cache: dict[str, str]) -> None:
    decided = decide.decide(manifest(), environ=cache, probe=four)
    assert numbers(decided) == (1, 4, decide.DEFAULT_BATCH_SIZE)
    assert "4 usable cores" in decided.reasons["instances"]


def test_latency_gives_all_usable_cores_to_one_request(four: HostProbe, cache: dict[str, str]) -> None:
    assert numbers(decide.decide(manifest("latency"), environ=cache, probe=four)) == (4, 1, 1)
    assert numbers(decide.decide(manifest(), objective="latency", environ=cache, probe=four)) == (4, 1, 1)


def test_the_build_plan_holds_on_an_equal_cpu_only(four: HostProbe, cache: dict[str, str]) -> None:
    built = manifest(threads=2, instances=2, batch_size=16)
    decided = decide.decide(built, environ=cache, probe=four)
    assert (numbers(decided), decided.source) == ((2, 2, 16), "build-tuned")

    elsewhere = dataclasses.replace(built, build={"host": {**host_probe.fingerprint(), "cpu": "another"}})
    decided = decide.decide(elsewhere, environ=cache, probe=four)
    # The batch size depends on the model more than on the core count, so it stays.
    assert (numbers(decided), decided.source) == ((1, 4, 16), "host")
    assert "'another'" in decided.reasons["threads"]


def test_fewer_usable_cores_than_at_the_build_refuse_its_plan(four: HostProbe, cache: dict[str, str]) -> None:
    one = dataclasses.replace(four, affinity=frozenset({0}))
    decided = decide.decide(manifest(threads=2, instances=2, batch_size=16), environ=cache, probe=one)
    assert numbers(decided) == (1, 1, 16)
    assert "4 usable cores, and here there is 1" in decided.reasons["threads"]


def test_the_host_tuned_table_goes_before_the_build_plan(
    four: HostProbe, cache: dict[str, str], keep: Callable[..., Path]
) -> None:
    path = keep()
    decided = decide.decide(manifest(threads=1, instances=4, batch_size=16), environ=cache, probe=four)
    assert (numbers(decided), decided.source) == ((2, 2, 32), "host-tuned")
    assert str(path) in decided.reasons["threads"]


def test_tuning_for_another_objective_than_the_build_is_obeyed_unless_one_is_asked_for(
    four: HostProbe, cache: dict[str, str], keep: Callable[..., Path]
) -> None:
    keep(objective="latency", threads=4, instances=1, batch_size=2)
    assert numbers(decide.decide(manifest(), environ=cache, probe=four)) == (4, 1, 2)
    asked = decide.decide(manifest(), objective="throughput", environ=cache, probe=four)
    assert numbers(asked) == (1, 4, decide.DEFAULT_BATCH_SIZE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": {**host_probe.fingerprint(), "cpu": "another"}}, "cpu = 'another'"),
        ({"fingerprint": {**host_probe.fingerprint(), "isa": "other"}}, "isa = 'other'"),
        ({"cores_usable": 2}, "made with 2 usable cores"),
        ({"model": "0" * 64}, "another build"),
    ],
)
def test_a_table_that_does_not_hold_here_is_refused_with_the_reason(
    four: HostProbe, cache: dict[str, str], keep: Callable[..., Path], changes: dict[str, Any], why: str
) -> None:
    keep(**changes)
    decided = decide.decide(manifest(), environ=cache, probe=four)
    assert decided.source == "host"
    assert why in decided.reasons["threads"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '"text"',
        "{}",
        b"\xff\xfe".decode("latin-1"),
        json.dumps({**dataclasses.asdict(table()), "threads": 0}),
        json.dumps({**dataclasses.asdict(table()), "batch_size": "8"}),
        json.dumps({**dataclasses.asdict(table()), "schema": 99}),
        json.dumps({**dataclasses.asdict(table()), "surprise": 1}),
    ],
)
def test_a_damaged_table_is_ignored_with_a_warning_that_says_to_tune_again(
    four: HostProbe, cache: dict[str, str], text: str
) -> None:
    path = plan_table.table_path(manifest(), cache)
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match="run `tiny-int8 tune` again"):
        decided = decide.decide(manifest(), environ=cache, probe=four)
    assert decided.source == "host"


def test_the_users_thread_variable_goes_before_the_tables(
    four: HostProbe, cache: dict[str, str], keep: Callable[..., Path]
) -> None:
    keep()
    environ = {**cache, "OMP_NUM_THREADS": "1,2"}
    before = dict(environ)
    decided = decide.decide(manifest(), environ=environ, probe=four)
    assert numbers(decided) == (1, 4, 32)
    assert decided.reasons["threads"] == "OMP_NUM_THREADS is set to 1,2."
    assert environ == before
    explicit = decide.decide(manifest(), threads=4, environ=environ, probe=four)
    assert numbers(explicit) == (4, 1, 32)


def test_a_thread_variable_that_is_no_number_is_ignored_and_said(four: HostProbe, cache: dict[str, str]) -> None:
    decided = decide.decide(manifest(), environ={**cache, "OMP_NUM_THREADS": "many"}, probe=four)
    assert decided.threads == 1
    assert "OMP_NUM_THREADS='many'" in decided.reasons["threads"]


def test_one_explicit_number_leaves_the_other_to_fill_the_cores(four: HostProbe, cache: dict[str, str]) -> None:
    assert numbers(decide.decide(manifest(), threads=2, environ=cache, probe=four))[:2] == (2, 2)
    assert numbers(decide.decide(manifest(), instances=1, environ=cache, probe=four))[:2] == (4, 1)
    assert numbers(decide.decide(manifest("latency"), threads=2, environ=cache, probe=four))[:2] == (2, 1)


def test_more_than_the_usable_cores_is_allowed_and_said(four: HostProbe, cache: dict[str, str]) -> None:
    decided = decide.decide(manifest(), threads=4, instances=3, batch_size=5, environ=cache, probe=four)
    assert numbers(decided) == (4, 3, 5)
    assert "4 x 3 threads are more than 4 usable cores" in decided.reasons["threads"]


@pytest.mark.parametrize("name", ["threads", "instances", "batch_size"])
def test_numbers_below_one_are_refused(four: HostProbe, cache: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        decide.decide(manifest(), environ=cache, probe=four, **{name: 0})


def test_the_table_is_written_whole_or_not_at_all(cache: dict[str, str], keep: Callable[..., Path]) -> None:
    path = keep(batch_size=4)
    keep(batch_size=8)
    assert plan_table.read_table(path, "x").batch_size == 8
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = plan_table.table_path(manifest(), {"XDG_CACHE_HOME": str(tmp_path / "file")})
    with pytest.raises(InputError, match="XDG_CACHE_HOME") as caught:
        plan_table.check_writable(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is not in the list of users and has no HOME, as in many containers."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unknown_user")
@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"HOME": "~"}, {"XDG_CACHE_HOME": "x"}])
def test_without_a_home_there_is_no_table_and_a_plan_all_the_same(environ: dict[str, str], tmp_path: Path) -> None:
    probe = HostProbe(tmp_path, affinity=frozenset({0}))
    assert plan_table.find_table(manifest(), environ, probe) == plan_table.Found(None, None)
    assert decide.decide(manifest(), environ=environ, probe=probe).threads == 1
    with pytest.raises(InputError, match=r"no place to keep the tuned table: .*set XDG_CACHE_HOME"):
        plan_table.writable_path(manifest(), environ)


@pytest.mark.usefixtures("unknown_user")
def test_without_a_home_every_command_answers(package_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(package_dir, ["info"]) == 0
    assert cli.main(package_dir, ["verify"]) == 0
    capsys.readouterr()
    assert cli.main(package_dir, ["tune", "--budget-s", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(package_dir, ["plan", "--rate", "1", "--max-latency-ms", "50"]) == 2
    assert "there is no host-tuned table" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "loop", "too long", "directory"])
def test_a_cache_of_another_kind_never_fails_a_plan(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    if kind == "file":
        place.write_text("")
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "too long":
        place = tmp_path / ("x" * 300)
    environ = {"XDG_CACHE_HOME": str(place)}
    if kind == "directory":
        path = plan_table.table_path(manifest(), environ)
        assert path is not None
        path.mkdir(parents=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe = HostProbe(tmp_path, affinity=frozenset({0}))
        assert decide.decide(manifest(), environ=environ, probe=probe).threads == 1
    assert len(caught) == (kind != "file")  # there may be a table, but it cannot be read


def test_the_cache_follows_the_xdg_specification() -> None:
    end = "cpupack/tiny-int8/1.0.0.json"
    assert plan_table.table_path(manifest(), {"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x") / end
    assert plan_table.table_path(manifest(), {"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache") / end
    assert plan_table.table_path(manifest(), {"HOME": "/h"}) == Path("/h/.cache") / end


@pytest.mark.parametrize(
    ("omp", "expected", "why"),
    [
        ("2", (1, 2, 8), "Ray gives this process 2"),  # Ray's own number
        ("1", (1, 2, 8), "OMP_NUM_THREADS is set to 1"),  # a user's, in the runtime environment of the actor
        (None, (1, 2, 8), "Ray gives this process 2"),
        ("4", (4, 1, 8), "OMP_NUM_THREADS is set to 4"),
    ],
)
def test_a_worker_of_a_cluster_uses_the_cpus_that_it_was_given(
    four: HostProbe, cache: dict[str, str], omp: str | None, expected: tuple[int, int, int], why: str
) -> None:
    probe = dataclasses.replace(four, grant=Grant(2, "Ray"))
    environ = cache | ({} if omp is None else {"OMP_NUM_THREADS": omp})
    decided = decide.decide(manifest(), environ=environ, probe=probe)
    assert numbers(decided) == expected
    assert why in decided.reasons["threads"] + decided.reasons["instances"]


def test_a_latency_plan_in_a_worker_keeps_to_its_share(four: HostProbe, cache: dict[str, str]) -> None:
    probe = dataclasses.replace(four, grant=Grant(3, "Ray"))
    environ = cache | {"OMP_NUM_THREADS": "3"}
    assert numbers(decide.decide(manifest("latency"), environ=environ, probe=probe)) == (3, 1, 1)


def test_a_table_of_the_whole_host_does_not_hold_in_a_part_of_it(
    four: HostProbe, cache: dict[str, str], keep: Callable[..., Path]
) -> None:
    keep()
    assert decide.decide(manifest(), environ=cache, probe=four).source == "host-tuned"
    part = dataclasses.replace(four, grant=Grant(2, "Ray"))
    assert decide.decide(manifest(), environ=cache, probe=part).source == "host"
