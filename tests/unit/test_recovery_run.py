"""A recovery from end to end with made-up builds: which engine, which end, which words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack import recovery
from cpupack.artifacts import Contender, Gate, QuantizedModel, ScriptedModel, VerifyReport
from cpupack.errors import QuantizationError, VerificationError
from cpupack.recipe import Quantize
from cpupack.recovery.run import knobs_of
from cpupack.recovery.settings import KNOBS
from helpers.tiny_models import Recorder, target

TRIAL_S = 10.0
RECIPE = Quantize(recover=True, budget_s=1000.0)

Sqnr = Callable[[Quantize, str], float]


def contender(engine: str, sqnr_db: float, speedup: float | None = 2.0, *, min_speedup: float = 1.0) -> Contender:
    gates = [Gate("min_sqnr_db", 30.0, sqnr_db, sqnr_db >= 30.0)]
    if speedup is not None:
        gates.append(Gate("min_speedup", min_speedup, speedup, speedup >= min_speedup))
    report = VerifyReport("photos", 10, True, sqnr_db, 1.0, 0.9, speedup=speedup, gates=tuple(gates))
    scripted = ScriptedModel(Path("m.pt"), target(engine), 1, 1, 0)
    return Contender(QuantizedModel(torch.nn.Identity(), target(engine)), scripted, report, {"input": np.zeros(1)})


@dataclass
class Shop:
    """Builds contenders whose SQNR is a function of setting and engine; a build takes ten seconds."""

    sqnr_db: Sqnr
    speeds: dict[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    style: str = "fx"
    now: float = 0.0
    built: list[tuple[str, Quantize]] = field(default_factory=list)
    progress: Recorder = field(default_factory=Recorder)

    def build(self, setting: Quantize, engine: str) -> Contender:
        self.now += TRIAL_S
        self.built.append((engine, setting))
        if engine in self.broken:
            raise QuantizationError("no such operator")
        return contender(engine, self.sqnr_db(setting, engine), self.speeds.get(engine, 2.0))

    def recover(self, contenders: Sequence[Contender], quantize: Quantize = RECIPE) -> recovery.Recovered:
        layers = ["a", "b", "c", "d"]
        shop = recovery.Workbench(
            self.build,
            lambda *_: layers,
            lambda engine: engine != "x86",
            self.style,
            layers,
            self.progress,
            clock=lambda: self.now,
        )
        return recovery.recover(quantize, contenders, TRIAL_S, shop)


def with_mse(setting: Quantize, engine: str) -> float:
    return 40.0 if setting.observer == "mse" else 20.0


def test_it_searches_on_the_engine_closest_to_its_gates_and_checks_the_others() -> None:
    shop = Shop(with_mse, speeds={"fbgemm": 2.0, "onednn": 3.0})
    found = shop.recover([contender("fbgemm", 10.0, 4.0), contender("x86", 12.0), contender("onednn", 11.0)])
    assert [engine for engine, _ in shop.built] == ["x86", "fbgemm", "onednn"]
    assert found.quantize.observer == "mse"
    assert found.recovery.engine == "x86"
    assert found.recovery.why == "closest to its gates, 18.0 dB short (fbgemm 20.0 dB, onednn 19.0 dB)"
    # onednn is faster with the same settings, so it is packaged
    assert found.contenders[0].scripted.target.engine == "onednn"
    assert {each.scripted.target.engine for each in found.contenders[1:]} == {"fbgemm", "x86"}
    winner = found.recovery.trials[found.recovery.winner]
    assert (winner.engine, winner.label, winner.settings) == ("onednn", "the same on onednn", {"observer": "mse"})
    assert "Found by recovery on onednn" in found.recovery.toml
    assert found.recovery.seconds == 3 * TRIAL_S


def test_the_engine_searched_on_stays_where_the_others_fail() -> None:
    shop = Shop(lambda setting, engine: with_mse(setting, engine) - 15.0 * (engine == "fbgemm"), {"fbgemm": 9.0})
    shop.broken = ("x86",)
    found = shop.recover([contender("onednn", 20.0), contender("fbgemm", 5.0), contender("x86", 15.0)])
    assert found.contenders[0].scripted.target.engine == "onednn"
    assert found.contenders[0].report.passed
    assert [trial.error for trial in found.recovery.trials] == [None, None, None, "no such operator"]
    assert found.recovery.trials[found.recovery.winner].engine == "onednn"


def test_the_other_engines_are_left_alone_where_the_budget_ends() -> None:
    shop = Shop(with_mse)
    quantize = Quantize(recover=True, budget_s=1.5 * TRIAL_S)
    found = shop.recover([contender("onednn", 20.0), contender("fbgemm", 5.0)], quantize)
    assert len(found.contenders) == 1
    assert "fbgemm is not tried with these settings: the budget is spent" in shop.progress.notes


def test_where_the_budget_ends_a_search_that_has_found_something_it_warns() -> None:
    shop = Shop(lambda setting, _: 40.0 if {"a", "d"} <= set(setting.skip) else 20.0, style="dynamic")
    found = shop.recover([contender("onednn", 20.0)], Quantize(mode="dynamic", recover=True, budget_s=1.5 * TRIAL_S))
    assert found.quantize.skip == ["a", "d"]
    (warning,) = shop.progress.warnings
    assert "recovery spent [quantize] budget_s = 15 before it tried a back in INT8" in warning
    assert found.recovery.stopped == "a back in INT8"


def test_an_engine_of_whole_models_gives_way_to_one_that_mixes() -> None:
    """x86 is closest; here it cannot keep layers in FP32."""
    shop = Shop(lambda setting, _: 40.0 if "b" in setting.skip else 20.0)
    found = shop.recover([contender("x86", 20.0), contender("fbgemm", 12.0), contender("onednn", 15.0)])
    assert found.quantize.skip == ["b"]
    assert found.contenders[0].scripted.target.engine in {"onednn", "fbgemm"}
    assert not [engine for engine, setting in shop.built if engine == "x86" and setting.skip]
    assert {engine for engine, setting in shop.built if setting.skip} == {"onednn", "fbgemm"}
    assert found.recovery.engine == "x86"


def test_where_nothing_mixes_that_is_told() -> None:
    with pytest.raises(VerificationError) as error:
        Shop(lambda *_: 20.0).recover([contender("x86", 20.0)])
    assert "x86 cannot keep layers of this model in FP32" in (error.value.hint or "")
    with pytest.raises(VerificationError) as error:
        Shop(lambda *_: 20.0, style="eager").recover([contender("fbgemm", 20.0)])
    assert "fbgemm cannot keep layers of this model in FP32" in (error.value.hint or "")


def test_dynamic_quantization_has_layers_alone() -> None:
    assert knobs_of("dynamic") == ()
    assert knobs_of("fx") == KNOBS
    assert [key for key, _ in knobs_of("eager")] == ["observer", "weights"]
    shop = Shop(lambda setting, _: 40.0 if "b" in setting.skip else 20.0, style="dynamic")
    found = shop.recover([contender("fbgemm", 20.0)], Quantize(mode="dynamic", recover=True))
    assert found.quantize.skip == ["b"]
    assert all(setting.observer == "tail_mse" for _, setting in shop.built)


def test_no_way_found_tells_the_closest_and_all_that_was_tried() -> None:
    with pytest.raises(VerificationError) as error:
        Shop(lambda setting, _: 20.0 + len(setting.skip)).recover([contender("fbgemm", 20.0)])
    message = error.value.message
    assert "the gates do not hold (on photos), and recovery on fbgemm failed; " in message
    first = message.splitlines()[2]
    assert first.split()[:4] == ["3", "most", "sensitive", "in"]  # 23 dB is the closest there was
    assert 'tried: observer = "mse"; observer = "percentile"' in message
    assert "budget_s" not in message


def test_no_way_found_within_the_budget_tells_what_was_left() -> None:
    with pytest.raises(
        VerificationError, match=r"not tried, because budget_s = 25 was spent: observer = .entropy"
    ) as error:
        Shop(lambda *_: 20.0).recover([contender("fbgemm", 20.0)], Quantize(recover=True, budget_s=25.0))
    assert error.value.hint is not None
    assert "raise [quantize] budget_s" in error.value.hint


def test_a_budget_that_ends_before_the_first_trial_is_an_error_of_its_own() -> None:
    shop = Shop(with_mse)
    with pytest.raises(VerificationError, match="budget_s = 5 is too short for one trial, which takes about 10 s"):
        shop.recover([contender("fbgemm", 20.0)], Quantize(recover=True, budget_s=5.0))
    assert shop.built == []


@pytest.mark.parametrize(
    ("recover", "contenders", "expected"),
    [
        (True, [contender("fbgemm", 20.0)], True),
        (False, [contender("fbgemm", 20.0)], False),
        (True, [contender("fbgemm", 20.0), contender("x86", 40.0)], False),  # one passes
        (True, [contender("fbgemm", 40.0, 0.5)], False),  # too slow: nothing here makes it faster
        (True, [contender("fbgemm", 20.0, 0.5)], False),
        (True, [contender("fbgemm", 40.0, 0.5), contender("x86", 20.0)], True),
        (True, [contender("qnnpack", 20.0, None)], True),  # for a CPU that this host is not
    ],
)
def test_when_it_is_wanted(recover: bool, contenders: list[Contender], expected: bool) -> None:
    assert recovery.wanted(Quantize(recover=recover), contenders) is expected
