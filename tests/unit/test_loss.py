"""Builds that would be useless fail by default, and doubtful ones are loud: default gates, and the warning."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from cpupack.artifacts import Contender, QuantizedModel, ScriptedModel, VerifyReport
from cpupack.errors import VerificationError
from cpupack.pipeline import BuildOptions, build
from cpupack.progress import SilentProgress
from cpupack.recipe import Evaluation
from cpupack.stages.verify import LayerLoss, choose, is_lossy, judge, loss_of
from cpupack.summary import summary_dict
from helpers.tiny_models import EIGHT_BITS, HOST_ISA, Recorder, loaded, target

ENGINE = EIGHT_BITS if EIGHT_BITS != "qnnpack" else "fbgemm"


def made_up(**facts: Any) -> Contender:
    measured: dict[str, Any] = {
        "data": "noise",
        "samples": 100,
        "equal_to_quantized": True,
        "sqnr_db": 30.0,
        "cosine": 0.99,
        "agreement": 0.95,
        **facts,
    }
    scripted = ScriptedModel(Path("model.pt"), target("fbgemm"), 1, 1, 0)
    return Contender(QuantizedModel(nn.Identity(), target("fbgemm")), scripted, VerifyReport(**measured), {})


@pytest.mark.parametrize(
    ("facts", "evaluation", "how", "failed"),
    [
        ({"sqnr_db": 6.0}, {}, {}, []),
        ({"sqnr_db": 5.9}, {}, {}, ["min_sqnr_db"]),
        ({"sqnr_db": math.nan}, {}, {}, ["min_sqnr_db"]),
        ({"sqnr_db": math.inf}, {}, {}, []),
        ({"sqnr_db": 5.9}, {"min_sqnr_db": 3.0}, {}, []),
        ({"sqnr_db": 2.9}, {"min_sqnr_db": 3.0}, {}, ["min_sqnr_db"]),
        ({"sqnr_db": -9.0}, {"min_sqnr_db": "off"}, {}, []),
        ({"sqnr_db": 5.9}, {}, {"trained": False}, []),
        ({"sqnr_db": 5.9}, {"min_sqnr_db": 6.0}, {"trained": False}, ["min_sqnr_db"]),
        # The largest of an embedding's numbers is no class.
        ({"agreement": 0.4}, {}, {}, []),
        ({"agreement": 0.4}, {}, {"classifies": True}, ["min_agreement"]),
        ({"agreement": 0.4, "labelled_samples": 100}, {}, {}, ["min_agreement"]),
        ({"agreement": 0.5, "labelled_samples": 100}, {}, {}, []),
        ({"agreement": 0.4}, {}, {"classifies": True, "trained": False}, []),
        ({"agreement": 0.4}, {"min_agreement": 0.3}, {"classifies": True}, []),
        ({"agreement": 0.4}, {"min_agreement": "off"}, {"classifies": True}, []),
        ({"agreement": None}, {}, {"classifies": True}, []),
        ({"decisions": 0.89}, {}, {}, ["min_decisions"]),
        ({"decisions": 0.9}, {}, {}, []),
        ({"decisions": 0.79}, {"min_decisions": "off"}, {}, []),
        ({"decisions": 0.79}, {}, {"trained": False}, []),
        ({"decisions": 0.97}, {"min_decisions": 0.98}, {}, ["min_decisions"]),
        # A default is judged by what was measured, also where the recipe's own gates are not.
        ({"sqnr_db": 7.0, "sqnr_db_ci95": (5.0, 9.0)}, {"confident": True}, {}, []),
    ],
)
def test_gates_have_defaults_that_the_recipe_may_lower_or_drop(
    facts: dict[str, Any], evaluation: dict[str, Any], how: dict[str, bool], failed: list[str]
) -> None:
    report = judge(made_up(**facts), Evaluation(**evaluation), **how).report
    assert [gate.name for gate in report.gates if not gate.passed] == failed
    assert report.passed == (not failed)


def test_a_default_that_holds_is_not_listed_and_one_that_fails_says_what_it_is() -> None:
    assert judge(made_up(), Evaluation()).report.gates == ()
    ruined = judge(made_up(sqnr_db=3.1), Evaluation())
    assert ruined.report.gates[0].default
    with pytest.raises(VerificationError) as caught:
        choose([ruined])
    assert "fbgemm: min_sqnr_db = 6 (the default), measured 3.1  FAILED" in caught.value.message
    assert '"off" turns it off' in (caught.value.hint or "")
    with pytest.raises(VerificationError) as caught:
        choose([judge(made_up(sqnr_db=3.1), Evaluation(min_sqnr_db=6.0))])
    assert "default" not in str(caught.value)


@pytest.mark.parametrize(
    ("sqnr_db", "agreement", "lossy"),
    [
        (20.0, 0.9, False),
        (19.9, 1.0, True),
        (30.0, 0.89, True),
        (19.9, None, True),
        (20.0, None, False),
        (math.nan, None, True),
        (math.inf, 1.0, False),
    ],
)
def test_below_20_db_or_90_percent_is_lossy(sqnr_db: float, agreement: float | None, lossy: bool) -> None:
    assert is_lossy(made_up(sqnr_db=sqnr_db, agreement=agreement).report) == lossy


FACTS = {"synthetic": False, "calibration_samples": 300, "dynamic": False}
LAYERS = [LayerLoss(f"body.{number}", 5.0 + number, f"body.{number}" if number else None) for number in range(5)]


def test_the_warning_names_three_layers_and_what_to_try() -> None:
    text = loss_of(made_up(sqnr_db=12.34, agreement=0.8).report, LAYERS, **FACTS).text
    assert "SQNR 12.3 dB, below 20 and the same class as FP32 on 80% of the samples, below 90%" in text
    assert "body.0 5.0 dB, body.1 6.0 dB, body.2 7.0 dB." in text
    assert "body.3" not in text
    assert 'skip = ["body.1", "body.2"]' in text  # body.0 is a function call, which skip cannot name
    assert "recover = true" in text
    maps = dataclasses.replace(made_up(agreement=0.8).report, likeness=0.7, likeness_name="mean IoU of the classes")
    assert "the same class as FP32 on 80% of the pixels" in loss_of(maps, LAYERS, **FACTS).finding
    assert "SQNR" not in loss_of(made_up(agreement=0.8).report, LAYERS, **FACTS).finding


def test_the_warning_says_where_results_are_alike_all_the_same() -> None:
    report = dataclasses.replace(made_up(sqnr_db=12.0).report, likeness=0.98765, likeness_name="same boxes")
    assert "below 20. What predict gives is alike all the same: same boxes 0.9877. Worst layers" in (
        loss_of(report, LAYERS, **FACTS).text
    )
    for unlike in (dataclasses.replace(report, likeness=0.8), made_up(sqnr_db=12.0).report):
        assert "alike" not in loss_of(unlike, LAYERS, **FACTS).text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"synthetic": True}, "calibration on real instead of synthetic data"),
        ({"calibration_samples": 16}, "more calibration samples than 16"),
    ],
)
def test_advice_is_for_the_build_at_hand(facts: dict[str, Any], words: str) -> None:
    report = made_up(sqnr_db=10.0).report
    assert words in loss_of(report, LAYERS, **{**FACTS, **facts}).text
    assert words not in loss_of(report, LAYERS, **FACTS).text
    assert "calibration" not in loss_of(report, LAYERS, **{**FACTS, **facts, "dynamic": True}).text


def test_with_random_weights_only_better_weights_and_data_are_advised() -> None:
    text = loss_of(made_up(sqnr_db=10.0).report, None, **{**FACTS, "synthetic": True}).text
    assert "Try: trained weights (the loss of random ones says little); calibration on real instead of" in text
    assert "orst layers" not in text
    assert "skip" not in text


def test_many_small_losses_are_told_apart_from_few_large_ones() -> None:
    report = made_up(sqnr_db=19.0).report
    small = [LayerLoss("a", 31.0, "a"), LayerLoss("b", 32.0, "b")]
    assert "sum of many layers" in loss_of(report, small, **FACTS).text
    assert "sum of many layers" not in loss_of(report, LAYERS, **FACTS).text
    assert "no layer whose loss can be measured alone" in loss_of(report, [], **FACTS).text


# The middle layer's first channel is SPREAD times as large as the rest and the next layer reads it so much the less:
# one step of its INT8 range is then larger than what the other channels say.
MODEL = """
import torch
from torch import nn

def make(spread):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.stem, net.wide, net.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
    with torch.no_grad():
        net.wide.weight[0] *= spread
        net.wide.bias[0] *= spread
        net.head.weight[:, 0] = 0.0
    return net
"""


def recipe(directory: Path, spread: float, **evaluation: Any) -> Any:
    (directory / "m.py").write_text(MODEL)
    data = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    np.savez(directory / "data.npz", data=data)
    return loaded(
        directory,
        model={
            "source": "python:m.py:make",
            "kwargs": {"spread": spread},
            "weights": "factory",
            "input_shape": [8],
            "labels": ["a", "b", "c", "d"],
        },
        calibration={"source": "arrays:data.npz", "samples": 200},
        evaluation=evaluation,
        target={"cpu": ["x86_64"], "x86_64": {"engine": ENGINE, "isa": HOST_ISA}},
    )


class Keeper(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.times_s: dict[str, float] = {}


@pytest.mark.slow
def test_a_doubtful_build_is_loud_in_the_log_in_json_and_in_the_wheel(tmp_path: Path) -> None:
    progress = Keeper()
    (result,) = build(recipe(tmp_path, 30.0), tmp_path / "dist", BuildOptions(tune=False), progress)
    assert 6.0 < result.contender.report.sqnr_db < 20.0
    (text,) = [text for text in progress.warnings if text.startswith("INT8 IS FAR FROM FP32")]
    assert "Worst layers (SQNR when only that layer is INT8): " in text
    found = summary_dict(result)
    worst = [layer["name"] for layer in found["loss"]["worst_layers"]]
    assert set(worst[:2]) == {"wide", "head"}  # one writes the tensor that is too coarse, the other reads it
    assert all(f"{name} " in text for name in worst)
    assert found["loss"]["sqnr_db"] == result.contender.report.sqnr_db
    with zipfile.ZipFile(result.wheel.path) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("build.json")]
        inside = json.loads(wheel.read(name))
    assert inside["loss"] == found["loss"]
    assert text in inside["warnings"]


@pytest.mark.slow
def test_a_ruined_build_fails_by_default_and_names_the_layers(tmp_path: Path) -> None:
    options = BuildOptions(tune=False)
    with pytest.raises(VerificationError) as caught:
        build(recipe(tmp_path, 1000.0), tmp_path / "dist", options, SilentProgress())
    assert "min_sqnr_db = 6 (the default)" in caught.value.message
    assert "Worst layers (SQNR when only that layer is INT8): " in caught.value.message
    assert "wide 1." in caught.value.message
    assert caught.value.exit_code == 6
    assert not list((tmp_path / "dist").glob("*.whl"))
    progress = Keeper()
    off = recipe(tmp_path, 1000.0, min_sqnr_db="off", min_agreement="off")
    assert len(build(off, tmp_path / "dist", options, progress)) == 1
    assert any(text.startswith("INT8 IS FAR FROM FP32") for text in progress.warnings)


@pytest.mark.slow
def test_a_good_build_has_no_such_warning(tmp_path: Path) -> None:
    progress = Keeper()
    (result,) = build(recipe(tmp_path, 1.0), tmp_path / "dist", BuildOptions(tune=False), progress)
    assert result.contender.report.sqnr_db > 20.0
    assert not any("FAR FROM" in text for text in progress.warnings)
    assert "loss" not in result.facts
