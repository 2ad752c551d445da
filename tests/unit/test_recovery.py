"""The search of a recovery on a made-up model, with a clock of its own: no model is built here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch

from cpupack.artifacts import Contender, Gate, QuantizedModel, Recovery, ScriptedModel, Trial, VerifyReport
from cpupack.build_facts import recovery_facts
from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within
from cpupack.recipe import Quantize
from cpupack.recovery.closeness import helped, pareto_front, shortfall_db
from cpupack.recovery.search import Found, Scope, Workbench, as_trial, fastest_passing, search
from cpupack.recovery.settings import KNOBS, changed, differences, render_toml, whole_blocks
from cpupack.recovery.table import closest_table, recovery_table
from cpupack.targets import Target
from helpers.tiny_models import Recorder

TRIAL_S = 10.0


@dataclass
class World:
    """A model whose noise is a sum over its INT8 ``layers`` (by noise power) and a factor for some settings.

    Its signal has power 1. Each layer in FP32 costs ``slower`` of a speed of 3; a build takes ten seconds.
    """

    layers: Mapping[str, float]
    bound_db: float
    gains: Mapping[tuple[str, Any], float] = field(default_factory=dict)
    broken: Callable[[Quantize], bool] = lambda _: False
    min_speedup: float = 0.0
    slower: float = 0.2
    now: float = 0.0
    built: list[Quantize] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    ranked: int = 0

    def build(self, setting: Quantize, engine: str) -> Contender:
        if engine == "whole" and setting.skip:
            raise AssertionError("an engine of whole models is asked for a part")
        self.built.append(setting)
        self.engines.append(engine)
        self.now += TRIAL_S
        if self.broken(setting):
            raise QuantizationError("no kernel for that\nand more words")
        target = Target("x86_64", engine, "avx2", 8, False, "any")
        quantized = QuantizedModel(torch.nn.Identity(), target)
        return Contender(quantized, ScriptedModel(Path("m.pt"), target, 1, 1, 0), self.report(setting), {})

    def report(self, setting: Quantize) -> VerifyReport:
        int8 = [name for name in self.layers if not is_within(name, setting.skip)]
        noise = sum(self.layers[name] for name in int8)
        for (key, value), factor in self.gains.items():
            if getattr(setting, key) == value:
                noise *= factor
        sqnr_db = -10.0 * math.log10(noise) if noise else math.inf
        speedup = 3.0 - self.slower * (len(self.layers) - len(int8))
        gates = (
            Gate("min_sqnr_db", self.bound_db, sqnr_db, sqnr_db >= self.bound_db),
            Gate("min_speedup", self.min_speedup, speedup, speedup >= self.min_speedup),
        )
        return VerifyReport("data", 10, True, sqnr_db, 1.0, 0.9, speedup=speedup, gates=gates)

    def rank(self, setting: Quantize, engine: str) -> Sequence[str]:
        self.ranked += 1
        return sorted(self.layers, key=lambda name: -self.layers[name])

    def search(
        self,
        budget_s: float = 1e6,
        start: Quantize | None = None,
        knobs: Any = KNOBS,
        engines: tuple[str, str | None] = ("onednn", "onednn"),
    ) -> Found:
        start = start or Quantize()
        first = as_trial("as in the recipe", engines[0], {}, TRIAL_S, self.report(start))
        assert not first.passed
        layers, engine = list(self.layers), engines[1] or engines[0]
        workbench = Workbench(
            self.build, self.rank, lambda each: each == engine, "fx", layers, Recorder(), clock=lambda: self.now
        )
        found = search(start, first, Scope(*engines, knobs, budget_s), workbench)
        assert set(found.passing) == {number for number, trial in enumerate(found.trials) if trial.passed}
        return found


def winner(found: Found) -> tuple[Trial, Quantize]:
    assert found.winner is not None
    return found.trials[found.winner], found.settings[found.winner]


def labels(found: Found) -> list[str]:
    return [trial.label for trial in found.trials]


EIGHT = dict.fromkeys("abcdefgh", 1e-4)


def test_the_order_is_the_stated_one_and_what_helps_is_kept() -> None:
    gains = {("observer", "mse"): 0.5, ("equalize", True): 0.5, ("rounding", "adaround"): 0.5}
    world = World(EIGHT, bound_db=38.0, gains=gains)
    found = world.search()
    assert labels(found) == [
        "as in the recipe",
        'observer = "mse"',
        'observer = "percentile"',
        'observer = "entropy"',
        'observer = "histogram"',
        'weights = "per_tensor"',
        "bias_correction = true",
        "equalize = true",
        'rounding = "adaround"',
        # the first that passes ends it: all three that helped are in it, what did not help is not
    ]
    trial, setting = winner(found)
    assert trial.settings == {"observer": "mse", "equalize": True, "rounding": "adaround"}
    assert setting == changed(Quantize(), trial.settings)
    assert (trial.passed, trial.seconds, found.stopped, found.seconds) == (True, TRIAL_S, None, 8 * TRIAL_S)
    assert world.ranked == 0  # ranking costs time, and no layer had to go


def test_the_best_value_of_a_knob_is_kept_not_the_last_that_helped() -> None:
    world = World(EIGHT, bound_db=60.0, gains={("observer", "mse"): 0.5, ("observer", "entropy"): 0.8})
    found = world.search()
    assert all(trial.settings["observer"] == "mse" for trial in found.trials[5:])


def test_values_of_the_recipe_are_not_tried_again() -> None:
    start = Quantize(observer="mse", equalize=True)
    found = World(EIGHT, bound_db=60.0).search(start=start)
    assert 'observer = "mse"' not in labels(found)
    assert {'observer = "histogram"', "equalize = false"} <= set(labels(found))
    assert len({setting.model_dump_json() for setting in found.settings}) == len(found.settings)


@pytest.mark.parametrize("needed", range(1, 8))
def test_the_fewest_layers_are_found(needed: int) -> None:
    """Every layer is half as noisy as the one before, so keeping the first n in FP32 is the least that does."""
    layers = {name: 2.0**-number for number, name in enumerate("habcdefgi")}
    rest = sum(list(layers.values())[needed:])
    world = World(layers, bound_db=-10.0 * math.log10(rest) - 0.01)
    trial, setting = winner(world.search(knobs=()))
    assert setting.skip == list(layers)[:needed]
    assert trial.passed
    assert world.ranked == (needed > 1)  # h alone is what is left of first and last
    assert len(world.built) <= 4 + 2 * math.ceil(math.log2(needed + 1)) + 2 * needed


def test_layers_that_need_not_be_fp32_are_given_back() -> None:
    """The ranking is wrong about b and c, which come before d on its list."""
    world = World({"a": 1e-6, "b": 1e-6, "c": 1e-6, "d": 1.0, "e": 1e-6, "f": 1e-6}, bound_db=40.0)
    world.rank = lambda *_: ["b", "c", "d", "a", "e", "f"]  # type: ignore[method-assign]
    found = world.search(knobs=())
    assert winner(found)[1].skip == ["d"]
    assert any(trial.passed and len(trial.settings["skip"]) > 1 for trial in found.trials)


def test_first_and_last_layer_come_before_the_ranking_and_only_the_needed_one_stays() -> None:
    found = World({"a": 1.0, "b": 1e-6, "c": 1e-6, "d": 1e-6}, bound_db=40.0).search(knobs=())
    assert labels(found)[1] == "first and last layer in FP32"
    assert winner(found)[1].skip == ["a"]


def test_a_single_layer_between_beats_both_ends() -> None:
    """Both ends are needed where they are tried, but b alone would do, and is faster."""
    world = World({"a": 1e-4, "b": 2e-4, "c": 0.0, "d": 1e-4}, bound_db=10.0 * math.log10(1 / 2.05e-4))
    assert winner(world.search(knobs=()))[1].skip == ["b"]


def test_the_recipes_own_skip_stays() -> None:
    world = World({"a": 1e-6, "b": 1.0, "c": 1e-6, "d": 1e-6}, bound_db=40.0)
    trial, setting = winner(world.search(knobs=(), start=Quantize(skip=["a"])))
    assert setting.skip == ["a", "b"]
    assert trial.settings == {"skip": ["a", "b"]}


def test_not_every_layer_goes_to_fp32() -> None:
    found = World({"a": 1.0, "b": 1.0, "c": 1.0}, bound_db=40.0).search(knobs=())
    assert found.winner is None
    assert found.stopped is None
    assert max(len(trial.settings.get("skip", [])) for trial in found.trials) == 2


def test_layers_go_to_fp32_on_another_engine_where_the_first_runs_whole_models() -> None:
    world = World({"a": 1e-6, "b": 1.0, "c": 1e-6, "d": 1e-6}, bound_db=40.0, gains={("equalize", True): 0.9})
    found = world.search(engines=("whole", "onednn"))
    trial, setting = winner(found)
    assert (trial.engine, setting.skip, setting.equalize) == ("onednn", ["b"], True)
    changed_at = world.engines.index("onednn")
    assert world.engines == ["whole"] * changed_at + ["onednn"] * (len(world.engines) - changed_at)
    same = found.trials[changed_at + 1]
    assert (same.label, same.settings) == ("the same on onednn", {"equalize": True})  # perhaps that is enough


def test_where_no_engine_can_have_fp32_layers_the_knobs_are_all() -> None:
    found = World({"a": 1e-6, "b": 1.0, "c": 1e-6}, bound_db=40.0).search(engines=("whole", None))
    assert found.winner is None
    assert not any("skip" in trial.settings for trial in found.trials)


def test_a_setting_that_cannot_be_built_is_a_row_and_no_end() -> None:
    world = World(EIGHT, 36.0, {("observer", "entropy"): 0.1}, broken=lambda each: each.observer == "mse")
    found = world.search()
    assert found.trials[1].error == "no kernel for that\nand more words"
    assert found.trials[1].sqnr_db is None
    assert winner(found)[0].settings == {"observer": "entropy"}


def test_a_gate_on_speed_counts() -> None:
    """All three layers must go for the accuracy, and that is too slow."""
    world = World({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1e-6}, bound_db=40.0, min_speedup=2.5)
    found = world.search(knobs=())
    assert found.winner is None
    accurate = [trial for trial in found.trials if trial.gates[0].passed]
    assert accurate
    assert not any(trial.gates[1].passed for trial in accurate)


@pytest.mark.parametrize(("budget_s", "trials"), [(5.0, 0), (25.0, 2), (30.0, 3), (39.0, 3)])
def test_the_budget_is_kept(budget_s: float, trials: int) -> None:
    world = World(EIGHT, bound_db=60.0)
    found = world.search(budget_s=budget_s)
    assert (len(world.built), found.seconds, found.winner) == (trials, trials * TRIAL_S, None)
    assert found.seconds <= budget_s
    assert found.stopped == ('observer = "mse"', "", 'observer = "entropy"', 'observer = "histogram"')[trials]


def test_what_passed_before_the_budget_ended_wins() -> None:
    world = World({"a": 1.0, "b": 1e-6, "c": 1e-6, "d": 1e-6}, bound_db=40.0)
    found = world.search(knobs=(), budget_s=TRIAL_S)
    assert winner(found)[1].skip == ["a", "d"]
    assert found.stopped == "a back in INT8"


def _trial(sqnr_db: float | None, speedup: float | None, *, passed: bool = True, skip: Sequence[str] = ()) -> Trial:
    settings = {"skip": list(skip)} if skip else {}
    return Trial("t", "onednn", settings, 1.0, sqnr_db, 0.9, None, speedup, passed=passed)


def test_the_fastest_wins_then_the_fewest_layers_then_the_sqnr() -> None:
    def fastest(trials: Sequence[Trial]) -> int | None:
        return fastest_passing(trials, ["a", "b", "c.x", "c.y", "c.z"])

    assert fastest([_trial(50, 4.0, passed=False), _trial(20, 2.0), _trial(30, 1.5)]) == 1
    # 2 % apart is the noise of a timing
    assert fastest([_trial(30, 2.02, skip="ab"), _trial(20, 1.99, skip="a"), _trial(25, 1.99, skip="b")]) == 2
    assert fastest([_trial(30, None, skip="c"), _trial(20, None, skip="ab")]) == 1  # c is three layers
    assert fastest([_trial(30, 1.0, passed=False)]) is None
    # or intervals that overlap: nobody knows which of the two is faster
    wide, narrow = ((1.5, 2.5), (1.7, 1.9)), ((2.0, 2.5), (1.7, 1.9))
    for (faster, slower), expected in ((wide, 1), (narrow, 0)):
        pair = (
            dataclasses.replace(_trial(30, 2.2, skip="ab"), speedup_ci95=faster),
            dataclasses.replace(_trial(30, 1.8, skip="a"), speedup_ci95=slower),
        )
        assert fastest(pair) == expected


def test_a_block_whose_layers_are_all_in_fp32_is_named_as_one() -> None:
    layers = ["stem.0", "block.0.conv1", "block.0.conv2", "block.1.conv1", "block.1.conv2", "fc"]
    assert whole_blocks(["block.0.conv2", "fc", "block.0.conv1"], layers) == ["block.0", "fc"]
    assert whole_blocks(layers[1:5], layers) == ["block"]
    assert whole_blocks(["stem.0", "block.0.conv1", "fc"], layers) == ["stem.0", "block.0.conv1", "fc"]
    assert whole_blocks([], layers) == []
    # block.10 is not in block.1
    assert whole_blocks(["b.1.x", "b.1.y"], ["b.1.x", "b.1.y", "b.10.x"]) == ["b.1"]


def test_the_search_names_whole_blocks() -> None:
    world = World({"a": 1e-6, "b.x": 1.0, "b.y": 1.0, "c": 1e-6, "d": 1e-6}, bound_db=40.0)
    assert winner(world.search(knobs=()))[1].skip == ["b"]


def test_the_front_is_what_no_trial_beats_in_both() -> None:
    trials = [_trial(20, 3.0), _trial(25, 2.0), _trial(24, 1.9), _trial(30, 1.0), _trial(20, 2.9)]
    failed = Trial("t", "onednn", {}, 1.0, error="no")
    assert pareto_front([*trials, failed]) == (0, 1, 3)
    assert pareto_front([_trial(20, None), _trial(30, None)]) == (1,)
    assert pareto_front([_trial(math.nan, 1.0), _trial(1.0, 1.0)]) == (1,)


@pytest.mark.parametrize(
    ("gate", "expected_db"),
    [
        (Gate("min_sqnr_db", 20.0, 14.0, False), 6.0),
        (Gate("max_drop", 0.01, 0.1, False), 10.0),  # ten times the points that may be lost
        (Gate("min_agreement", 0.99, 0.90, False), 10.0),  # ten times the answers that may differ
        (Gate("min_top1", 0.9, 0.8, False), 10 * math.log10(2)),
        (Gate("min_metric", -10.0, -19.0, False), 10 * math.log10(1.9)),
        (Gate("min_sqnr_db", 20.0, math.nan, False), math.inf),
        (Gate("min_sqnr_db", 20.0, 21.0, True), 0.0),
        (Gate("min_sqnr_db", 20.0, 21.0, False, ci95=(17.0, 25.0), confident=True), 3.0),
        (Gate("max_drop", 0.01, 0.0, False, ci95=(-0.02, 0.02), confident=True), 10 * math.log10(2)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_how_short_a_gate_is(gate: Gate, expected_db: float) -> None:
    assert shortfall_db([gate]) == pytest.approx(expected_db)


def test_a_step_helps_by_its_gates_then_by_its_sqnr() -> None:
    def trial(sqnr_db: float, drop: float) -> Trial:
        gate = Gate("max_drop", 0.01, drop, drop <= 0.01)
        return Trial("t", "onednn", {}, 1.0, sqnr_db, 0.9, drop, 1.0, gates=(gate,), passed=gate.passed)

    assert helped(trial(10.0, 0.05), trial(20.0, 0.10))
    assert helped(trial(20.2, 0.05), trial(20.0, 0.05))
    assert not helped(trial(20.05, 0.05), trial(20.0, 0.05))
    assert not helped(Trial("t", "onednn", {}, 1.0, error="no"), trial(1.0, 0.5))


def test_the_toml_takes_the_place_of_the_recipes_table() -> None:
    recipe = Quantize.model_validate({"observer": "percentile", "percentile": 99.9, "recover": True, "budget_s": 5.0})
    found = changed(recipe, {"observer": "mse", "skip": ['a "b"', "c"], "bias_correction": True})
    text = render_toml(found, recipe, ["why"])
    assert text.startswith("# why\n[quantize]\n")
    assert tomli.loads(text) == {"quantize": {"observer": "mse", "bias_correction": True, "skip": ['a "b"', "c"]}}
    assert differences(found, recipe) == {"observer": "mse", "skip": ['a "b"', "c"], "bias_correction": True}
    # and one that keeps the observer keeps its percentile
    kept = render_toml(changed(recipe, {"equalize": True}), recipe, [])
    assert tomli.loads(kept)["quantize"] == {"observer": "percentile", "percentile": 99.9, "equalize": True}


def _recovery() -> Recovery:
    found = World(EIGHT, 34.0, {("observer", "entropy"): 0.1}, lambda each: each.observer == "mse").search()
    assert found.winner is not None
    front = pareto_front(found.trials)
    return Recovery(found.trials, found.winner, front, "[quantize]\n", "onednn", "the one engine", 600.0, 30.0)


def test_the_table_marks_the_winner_and_fits_a_terminal() -> None:
    heading, *rows = recovery_table(_recovery())
    assert [row[0] for row in rows] == [" ", " ", " ", ">"]
    assert "gates" in heading
    assert rows[0].endswith("min_sqnr_db")
    assert "no kernel for that" in rows[1]
    assert "and more words" not in rows[1]
    assert rows[-1].endswith("hold")
    assert all(len(row) <= 67 for row in (heading, *rows))


def test_the_closest_come_first_and_what_was_not_built_last() -> None:
    rows = closest_table(_recovery().trials)[1:]
    assert 'observer = "entropy"' in rows[0]
    assert "no kernel" in rows[-1]


def test_json_has_the_shape_that_reports_read() -> None:
    recovery = _recovery()
    found = recovery_facts(recovery)
    assert found["winner"] == 3
    keys = {"label", "settings", "sqnr_db", "agreement", "drop", "speedup", "passed", "pareto", "seconds", "error"}
    assert all(keys <= set(trial) for trial in found["trials"])
    assert [trial["pareto"] for trial in found["trials"]] == [False, False, False, True]
    assert found["trials"][0]["gates"][0]["name"] == "min_sqnr_db"
