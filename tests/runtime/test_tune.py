"""The search for the best setting, on made-up machines."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from cpupack.runtime.tune.choice import Outcome, TuningFailedError
from cpupack.runtime.tune.search import MeasurementFailedError, search
from cpupack.runtime.tune.space import Setting, Space, make_space

BATCHES = [1, 2, 4, 8, 16, 32, 64]
PROCESS_S = 2.5


class Machine:
    """Measures in simulated time: ``rate(setting)`` samples a second, with ``noise`` from run to run."""

    def __init__(self, rate: Callable[[Setting], float], noise: float = 0.0, seed: int = 0) -> None:
        self.time_s = 0.0
        self.order: list[Setting] = []
        self._rate, self._noise, self._random = rate, noise, random.Random(seed)

    def clock(self) -> float:
        return self.time_s

    def p50_ms(self, setting: Setting) -> float:
        return 1000.0 * setting.batch_size * setting.instances / self._rate(setting)

    def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
        self.order.append(setting)
        call_s = self.p50_ms(setting) / 1000
        self.time_s += PROCESS_S + 3 * call_s + max(duration_s, call_s)
        factor = self._random.gauss(1.0, self._noise)
        return {
            "throughput_per_s": self._rate(setting) * factor,
            "latency_ms": {"p50": 1000 * call_s / factor, "p99": 1100 * call_s / factor},
            "duration_s": duration_s,
        }

    def search(self, space: Space, objective: str = "throughput", **changes: Any) -> Outcome:
        options = {"max_latency_ms": None, "budget_s": 60.0, **changes}
        return search(
            self,
            space,
            objective,
            options["max_latency_ms"],
            options["budget_s"],
            self.clock,
            lambda _: None,
            sample_s=options.get("sample_s", 0.0),
        )


def rising(setting: Setting) -> float:
    """Instances scale better than threads; bigger batches help, each doubling less."""
    scale = setting.instances * setting.threads**0.6
    return 60.0 * scale * setting.batch_size / (setting.batch_size + 1.5)


def falling(setting: Setting) -> float:
    """Past batch 2 the caches overflow."""
    return 60.0 * setting.instances * setting.threads**0.6 / (1 + abs(setting.batch_size - 2) / 8)


def threads_win(setting: Setting) -> float:
    """Memory bandwidth: instances hinder each other."""
    return 40.0 * setting.threads**0.9 * setting.instances**0.3 * setting.batch_size**0.2


def test_the_first_batch_is_small_where_a_sample_takes_seconds() -> None:
    """The middle of 1 to 64 samples of 4 seconds took two minutes of a budget of one."""
    machine = Machine(lambda setting: 0.25 * setting.instances)
    outcome = machine.search(make_space(1, "throughput", None, BATCHES), sample_s=4.0)
    assert machine.order[0].batch_size == outcome.setting.batch_size == 1
    assert machine.time_s <= 60.0
    quick = Machine(rising)
    quick.search(make_space(1, "throughput", None, BATCHES), sample_s=0.01)
    assert quick.order[0].batch_size == 8


def test_two_cores_have_three_layouts_the_full_ones_first() -> None:
    assert make_space(2, "throughput", None, BATCHES).layouts == ((1, 2), (2, 1), (1, 1))
    assert make_space(1, "throughput", None, BATCHES).layouts == ((1, 1),)


def test_auto_threads_are_the_divisors_of_the_usable_cores() -> None:
    assert {threads for threads, _ in make_space(12, "throughput", None, [1]).layouts} == {1, 2, 3, 4, 6, 12}
    assert make_space(6, "throughput", [4], [8, 1, 8]) == Space(((4, 1),), (1, 8), cores=6)


def test_latency_is_one_request_at_the_smallest_batch() -> None:
    assert make_space(4, "latency", None, [8, 2]) == Space(((4, 1), (2, 1), (1, 1)), (2,), cores=4)


@pytest.mark.parametrize("rate", [rising, falling, threads_win])
@pytest.mark.parametrize("cores", [1, 2, 4])
def test_what_it_finds_is_nearly_what_exhaustive_search_finds(rate: Callable[[Setting], float], cores: int) -> None:
    space = make_space(cores, "throughput", None, BATCHES)
    for seed in range(10):
        machine = Machine(rate, noise=0.02, seed=seed)
        outcome = machine.search(space)
        best = max(rate(Setting(*layout, size)) for layout in space.layouts for size in BATCHES)
        assert rate(outcome.setting) >= 0.95 * best
        assert machine.time_s <= 60.0
        assert outcome.measured == len(set(machine.order))
        assert outcome.total == len(space)


def test_the_rows_hold_every_measurement_in_order() -> None:
    machine = Machine(rising)
    outcome = machine.search(make_space(2, "throughput", None, BATCHES))
    assert [row.setting for row in outcome.rows] == machine.order
    assert all(row.cost_s > 0 and row.duration_s is not None and row.duration_s > 0 for row in outcome.rows)
    first = [row for row in outcome.rows if row.round == 0]
    assert len(first) == outcome.measured
    json.dumps([row.to_dict() for row in outcome.rows])


def test_leaders_are_repeated_in_turn_and_a_lucky_run_does_not_win() -> None:
    lucky = Setting(1, 2, 8)

    class Lucky(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            row = super().__call__(setting, duration_s)
            if setting == lucky and self.order.count(lucky) == 1:
                row["throughput_per_s"] *= 1.1
            return row

    def rate(setting: Setting) -> float:
        return {8: 95.0, 16: 100.0}.get(setting.batch_size, 80.0) * setting.instances

    machine = Lucky(rate)
    outcome = machine.search(make_space(2, "throughput", [1], BATCHES))
    assert outcome.setting == Setting(1, 2, 16)
    repeats = [(row.round, row.setting.batch_size) for row in outcome.rows if row.round]
    assert [number for number, _ in repeats] == sorted(number for number, _ in repeats)
    assert {size for number, size in repeats if number == 1} >= {8, 16}


def test_among_equals_the_one_with_less_in_flight_wins() -> None:
    outcome = Machine(lambda setting: 50.0 * setting.instances).search(make_space(2, "throughput", None, [1, 2, 4]))
    assert outcome.setting == min(
        (row.setting for row in outcome.rows if row.round),
        key=lambda s: (s.batch_size, s.threads),
    )


@pytest.mark.parametrize("budget_s", [0.001, 6.0, 13.0, 30.0, 200.0])
def test_the_budget_holds_but_for_the_first_measurement(budget_s: float) -> None:
    machine = Machine(rising)
    outcome = machine.search(make_space(2, "throughput", None, BATCHES), budget_s=budget_s)
    assert machine.time_s <= budget_s or len(machine.order) == 1
    assert f"{outcome.measured} of 21 settings measured" in outcome.reason


def test_the_bound_on_p99_decides_what_may_be_chosen() -> None:
    machine = Machine(rising)
    space = make_space(2, "throughput", None, BATCHES)
    outcome = machine.search(space, max_latency_ms=75.0)
    allowed = [
        Setting(*layout, size)
        for layout in space.layouts
        for size in BATCHES
        if 1.1 * machine.p50_ms(Setting(*layout, size)) <= 75.0
    ]
    assert outcome.setting in allowed
    assert rising(outcome.setting) >= 0.95 * max(map(rising, allowed))
    assert "within 75 ms" in outcome.reason


def test_a_bound_that_nothing_meets_names_the_best_p99() -> None:
    machine = Machine(rising)
    space = make_space(2, "throughput", None, BATCHES)
    best_ms = min(1.1 * machine.p50_ms(Setting(*layout, 1)) for layout in space.layouts)
    with pytest.raises(TuningFailedError, match=rf"the lowest p99 is {best_ms:.1f} ms \(.*batch 1\)"):
        machine.search(space, max_latency_ms=1.0)


def test_latency_takes_the_layout_with_the_lowest_p99() -> None:
    outcome = Machine(rising).search(make_space(4, "latency", None, BATCHES), "latency")
    assert outcome.setting == Setting(4, 1, 1)
    assert "p99" in outcome.reason


def test_a_setting_that_fails_is_a_row_and_not_the_end() -> None:
    class Fragile(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            row = super().__call__(setting, duration_s)
            if setting.batch_size > 8:
                raise MeasurementFailedError(f"{setting}: killed")
            return row

    outcome = Fragile(rising).search(make_space(2, "throughput", None, BATCHES))
    assert outcome.setting.batch_size == 8
    failed = [row for row in outcome.rows if row.error is not None]
    assert str(failed[0].error).endswith("batch 16: killed")
    assert {row.setting.batch_size for row in failed} == {16}


def test_a_disturbed_first_run_gets_a_second_chance() -> None:
    """Another process ran while the best setting was measured. Its neighbours must still be found."""

    class Disturbed(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            row = super().__call__(setting, duration_s)
            if setting.batch_size == 16 and self.order.count(setting) == 1:
                row["throughput_per_s"] *= 0.7
            return row

    # Twice the usual budget: the walk stops at the disturbed setting, and goes on after that is measured again.
    outcome = Disturbed(rising).search(make_space(2, "throughput", [1], BATCHES), budget_s=120.0)
    assert rising(outcome.setting) >= 0.95 * rising(Setting(1, 2, 64))


def test_on_a_busy_host_a_layout_that_leaves_cores_idle_is_not_chosen() -> None:
    """Another process has one of two cores, so one instance alone looks best. On an idle host it would not."""

    def one_core_left(setting: Setting) -> float:
        return 100.0 if setting.threads * setting.instances == 1 else 90.0

    class Busy(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            return {**super().__call__(setting, duration_s), "disturbed": True}

    space = make_space(2, "throughput", None, BATCHES)
    assert Machine(one_core_left).search(space).setting.instances == 1
    outcome = Busy(one_core_left).search(space)
    assert outcome.setting.threads * outcome.setting.instances == 2
    assert outcome.disturbed == len(outcome.rows)


def test_a_setting_that_fails_when_repeated_is_not_chosen_and_does_not_loop() -> None:
    class Flaky(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            row = super().__call__(setting, 0.0)
            self.time_s = 0.0  # an endless search would never run out of budget
            if self.order.count(setting) > 1 and (setting.batch_size == 64 or everything):
                raise MeasurementFailedError("gone")
            return row

    everything = False
    outcome = Flaky(rising).search(make_space(2, "throughput", None, BATCHES))
    failed = {row.setting for row in outcome.rows if row.error is not None}
    assert failed
    assert outcome.setting not in failed
    everything = True
    with pytest.raises(TuningFailedError, match="the first failure: gone"):
        Flaky(rising).search(make_space(2, "throughput", None, BATCHES))


def test_when_everything_fails_the_first_failure_is_told() -> None:
    def broken(setting: Setting, _: float) -> dict[str, Any]:
        raise MeasurementFailedError(f"{setting}: no module")

    with pytest.raises(TuningFailedError, match="2 instances x 1 thread, batch 8: no module"):
        search(broken, make_space(2, "throughput", None, BATCHES), "throughput", None, 60.0, lambda: 0.0)
