"""How good the search is, on made-up machines: against measuring everything, with noise, disturbances and SMT."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from cpupack.runtime.tune.choice import Outcome
from cpupack.runtime.tune.noise import fit
from cpupack.runtime.tune.search import search
from cpupack.runtime.tune.space import Setting, Space, make_space

BATCHES = [1, 2, 4, 8, 16, 32, 64]
PROCESS_S = 2.5
RUN_S = 1.0
ROUNDS = 3
"""Runs that a setting needs to be distinguished from its neighbours. Measuring everything takes this many of each."""
Rate = Callable[[Setting], float]


class Machine:
    """Measures in simulated time. ``noise`` from run to run; ``disturbed`` is the share of runs that lose 30 %."""

    def __init__(self, rate: Rate, seed: int, noise: float, disturbed: float = 0.0) -> None:
        self.time_s = 0.0
        self._rate, self._noise, self._disturbed = rate, noise, disturbed
        self._random = random.Random(seed)

    def clock(self) -> float:
        return self.time_s

    def cost_s(self, setting: Setting) -> float:
        call_s = setting.batch_size * setting.instances / self._rate(setting)
        return PROCESS_S + 3 * call_s + max(RUN_S, call_s)

    def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
        self.time_s += self.cost_s(setting)
        hit = self._random.random() < self._disturbed
        rate = self._rate(setting) * math.exp(self._random.gauss(0.0, self._noise)) * (0.7 if hit else 1.0)
        call_ms = 1000 * setting.batch_size * setting.instances / rate
        return {
            "throughput_per_s": rate,
            "latency_ms": {"p50": call_ms, "p99": 1.1 * call_ms},
            "duration_s": duration_s,
            "disturbed": hit,
        }


def surface(seed: int, cores: int) -> Rate:
    """Return a random machine and model: scaling of threads and instances, gain of batching, caches, use of SMT."""
    drawn = random.Random(seed)
    scale, per_thread, per_instance = drawn.uniform(200, 2000), drawn.uniform(0.4, 1.0), drawn.uniform(0.5, 1.0)
    overhead, full_at, width = drawn.uniform(0.1, 4), drawn.uniform(0, 6.5), drawn.uniform(1.5, 8)
    smt = drawn.uniform(0.8, 1.3)

    def rate(setting: Setting) -> float:
        found = scale * setting.instances**per_instance * setting.threads**per_thread
        found *= setting.batch_size / (setting.batch_size + overhead)
        found /= 1 + (max(0.0, math.log2(setting.batch_size) - full_at) / width) ** 2
        if setting.threads * setting.instances > cores:
            found *= smt / 2 ** ((per_instance + per_thread) / 2)
        return found

    return rate


def everything(space: Space) -> list[Setting]:
    return [Setting(*layout, size) for layout in space.layouts for size in space.batch_sizes]


def run(machine: Machine, space: Space, budget_s: float, incumbent: Setting | None = None) -> Outcome:
    return search(machine, space, "throughput", None, budget_s, machine.clock, lambda _: None, incumbent)


@pytest.mark.parametrize(
    ("cores", "most", "noise", "disturbed", "good"),
    [
        (2, 2, 0.01, 0.0, 0.99),
        (2, 2, 0.02, 0.0, 0.98),
        (4, 4, 0.02, 0.0, 0.99),
        (8, 16, 0.02, 0.0, 0.98),
        (32, 64, 0.02, 0.0, 0.98),
        (8, 8, 0.02, 0.1, 0.92),
    ],
)
def test_a_fifth_of_the_time_finds_095_of_the_best(
    cores: int, most: int, noise: float, disturbed: float, good: float
) -> None:
    """On 100 random machines: the budget is a fifth of what three runs of every setting would take."""
    space = make_space(cores, "throughput", None, BATCHES, most)
    shares = []
    for seed in range(100):
        rate = surface(seed, cores)
        machine = Machine(rate, seed, noise, disturbed)
        exhaustive_s = ROUNDS * sum(machine.cost_s(setting) for setting in everything(space))
        outcome = run(machine, space, exhaustive_s / 5)
        assert machine.time_s <= exhaustive_s / 5
        shares.append(rate(outcome.setting) / max(map(rate, everything(space))))
    assert sum(share >= 0.95 for share in shares) >= good * len(shares)
    assert sum(shares) / len(shares) >= 0.98


def test_twice_the_physical_cores_are_tried_where_there_is_smt() -> None:
    space = make_space(4, "throughput", None, BATCHES, 8)
    assert {(1, 4), (4, 1), (1, 8), (8, 1), (2, 4)} <= set(space.layouts)
    assert len(set(space.layouts)) == len(space.layouts)

    def rate(setting: Setting) -> float:
        return 100.0 * setting.instances**0.9 * setting.threads**0.5 * setting.batch_size**0.05

    assert run(Machine(rate, 0, 0.01), space, 200.0).setting.instances == 8
    without = run(Machine(rate, 0, 0.01), make_space(4, "throughput", None, BATCHES), 200.0)
    assert without.setting.instances == 4
    assert make_space(4, "latency", None, BATCHES, 8).layouts == ((8, 1), (4, 1), (2, 1), (1, 1))


def flat(best: Setting, gain: float) -> Rate:
    return lambda setting: 500.0 * (1 + gain if setting == best else 1.0)


SPACE = make_space(2, "throughput", [1], [4, 8, 16])
LIGHT, IN_USE, HEAVY = Setting(1, 2, 4), Setting(1, 2, 8), Setting(1, 2, 16)


def test_the_setting_in_use_is_kept_unless_another_is_better_by_more_than_the_noise() -> None:
    kept = run(Machine(flat(HEAVY, 0.01), 1, 0.01), SPACE, 120.0, IN_USE)
    assert kept.setting == IN_USE
    assert "the setting in use" in kept.reason
    assert "noise" in kept.reason
    better = run(Machine(flat(HEAVY, 0.20), 1, 0.01), SPACE, 120.0, IN_USE)
    assert better.setting == HEAVY
    assert "more than the noise" in better.reason
    assert better.noise == pytest.approx(0.01, rel=0.9)


def test_without_one_in_use_the_lighter_of_equals_wins_and_it_says_so() -> None:
    outcome = run(Machine(flat(HEAVY, 0.01), 1, 0.01), SPACE, 120.0)
    assert outcome.setting == LIGHT
    assert "lighter than" in outcome.reason or "against" in outcome.reason


def test_an_incumbent_that_may_not_be_chosen_is_not_measured() -> None:
    elsewhere = Setting(2, 1, 8)
    outcome = run(Machine(flat(HEAVY, 0.2), 0, 0.01), SPACE, 120.0, elsewhere)
    assert outcome.setting == HEAVY
    assert all(row.setting.threads == 1 for row in outcome.rows)


def test_the_finals_run_forward_and_backward_in_turn() -> None:
    outcome = run(Machine(flat(HEAVY, 0.05), 3, 1e-6), SPACE, 200.0)
    orders: dict[int, list[int]] = {}
    for row in outcome.rows:
        if row.round:
            orders.setdefault(row.round, []).append(row.setting.batch_size)
    # The third size comes later, in time that the finals of the first two left.
    assert orders[1] == [16, 8, 4]
    assert orders[2] == [8, 16, 4]


# Noise ------------------------------------------------------------------------------------------------------


def test_the_fit_removes_what_slows_a_whole_round() -> None:
    drift = {1: 1.0, 2: 0.6, 3: 0.9}
    values = {"a": 110.0, "b": 100.0}
    found = fit([(key, number, value * drift[number]) for key, value in values.items() for number in drift])
    assert found is not None
    assert found.gain("a", "b") == pytest.approx(0.10)
    assert found.noise == pytest.approx(0.0, abs=1e-9)
    assert found.beats("a", "b")
    assert not found.beats("b", "a")


def test_the_fit_bridges_a_missing_measurement() -> None:
    """b was not measured in the slow round; the average of what was measured would favour it."""
    rows = [
        ("a", 1, 110.0),
        ("b", 1, 100.0),
        ("a", 2, 55.0),
        ("c", 1, 90.0),
        ("c", 2, 45.0),
        ("a", 3, 110.0),
        ("b", 3, 100.0),
    ]
    found = fit(rows)
    assert found is not None
    assert found.gain("a", "b") == pytest.approx(0.10)


@pytest.mark.parametrize("rows", [[], [("a", 1, 1.0)], [("a", 1, 1.0), ("a", 2, 1.0)], [("a", 1, 1.0), ("b", 1, 2.0)]])
def test_without_repetition_there_is_no_noise_to_tell(rows: list[tuple[str, int, float]]) -> None:
    assert fit(rows) is None


def test_equal_settings_are_rarely_told_apart() -> None:
    """The level is 5 %, one-sided: of 400 pairs of equals about 20 may pass for better, and not twice as many."""
    drawn = random.Random(0)
    wrong = 0
    for _ in range(400):
        found = fit([(key, number, math.exp(drawn.gauss(0, 0.02))) for key in "ab" for number in range(4)])
        assert found is not None
        wrong += found.beats("a", "b")
    assert 5 <= wrong <= 40


def test_time_left_over_goes_to_the_smallest_call_of_the_winner() -> None:
    """Planning for a latency bound needs the time of that call."""
    machine = Machine(lambda setting: 500.0 * setting.batch_size**0.2, 0, 0.0)
    outcome = run(machine, make_space(2, "throughput", [1], BATCHES), 300.0)
    assert outcome.setting.batch_size == 64
    assert any((row.setting.batch_size, row.setting.instances) == (1, 2) for row in outcome.rows)


def test_the_first_probe_is_repeated_when_it_was_disturbed() -> None:
    """The best layout is measured first. If its disturbed run counted, another layout would win."""

    class Stumbling(Machine):
        def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
            first = self.time_s == 0.0
            row = super().__call__(setting, duration_s)
            return {**row, "throughput_per_s": row["throughput_per_s"] * 0.2, "disturbed": True} if first else row

    machine = Stumbling(lambda setting: 500.0 * setting.instances, 0, 0.0)
    assert run(machine, make_space(2, "throughput", None, BATCHES), 45.0).setting.instances == 2
