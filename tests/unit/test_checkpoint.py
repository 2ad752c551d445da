"""Checkpoints as training tools write them: what is taken, what is said, and what is refused."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.weights import load_weights
from helpers.tiny_models import Recorder, loaded

State = dict[str, Any]


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2.0)
    return net


def load(
    directory: Path, raw: Any, module: nn.Module | None = None, name: str = "w.pt", **model: Any
) -> tuple[nn.Module, Recorder]:
    torch.save(raw, directory / name)
    return load_file(directory, name, module, **model)


def load_file(directory: Path, name: str, module: nn.Module | None = None, **model: Any) -> tuple[nn.Module, Recorder]:
    module, progress = module or make(seed=99), Recorder()
    load_weights(module, loaded(directory, model={"weights": name, **model}), progress)
    return module, progress


def same(module: nn.Module, state: State) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def inside(part: str, state: State) -> State:
    """Put a wrapper's attribute before the last part of each name, as wrapping every layer does."""
    return {f"{name.rpartition('.')[0]}.{part}.{name.rpartition('.')[2]}": value for name, value in state.items()}


LIGHTNING = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": 0.1}}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}

WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "torch.compile": (lambda s: under("_orig_mod.", s), "torch.compile's '_orig_mod'"),
    "torch.compile of each layer": (lambda s: inside("_orig_mod", s), "torch.compile's '_orig_mod'"),
    "DataParallel": (lambda s: under("module.", s), "removed the prefix 'module.'"),
    "DataParallel of each layer": (lambda s: inside("module", s), "DistributedDataParallel's 'module'"),
    "FSDP": (lambda s: under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s)), "FSDP's"),
    "Fabric": (lambda s: under("_forward_module.", s), "Lightning Fabric's"),
    "DDP of compile, in a dict": (
        lambda s: {"model": under("module._orig_mod.", s), "optimizer": OPTIMIZER},
        "took 'model' of the checkpoint; removed the prefix 'module.'; removed torch.compile's '_orig_mod'",
    ),
    "SWA": (lambda s: {"n_averaged": torch.tensor(7), **under("module.", s)}, "left out n_averaged"),
    "thop": (
        lambda s: {**s, "total_ops": torch.zeros(1), "3.total_params": torch.zeros(1)},
        "left out total_ops, 3.total_params",
    ),
    "Lightning": (
        lambda s: {**LIGHTNING, "state_dict": under("model.", s)},
        "took 'state_dict' of a Lightning checkpoint; removed the prefix 'model.'",
    ),
    "Lightning, another attribute and a loss": (
        lambda s: {**LIGHTNING, "state_dict": {**under("classifier.", s), "loss.weight": torch.ones(5)}},
        "removed the prefix 'classifier.'; left out loss.weight",
    ),
    "Lightning of compile": (
        lambda s: {**LIGHTNING, "state_dict": under("net._orig_mod.", s)},
        "removed the prefix 'net.'",
    ),
    "a usual key": (lambda s: {"net": s, "acc": 0.9, "epoch": 3}, "took 'net' of the checkpoint"),
    "a key in a key": (lambda s: {"checkpoint": {"params": s}}, "took 'checkpoint.params'"),
    "a key of one's own": (lambda s: {"my_net": s, "optimizer": OPTIMIZER}, "took 'my_net'"),
    "a state dict for each part": (
        lambda s: {f"{n}": {k[2:]: v for k, v in s.items() if k[0] == n} for n in "013"},
        "",
    ),
    "numbers beside the weights": (lambda s: {**s, "epoch": 3, "best": 0.9}, ""),
    "Python objects beside the weights": (
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, path=Path("/data"))},
        "took 'state_dict'",
    ),
    "FP16": (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, "float16 to float32"),
    "BF16": (lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()}, "bfloat16 to float32"),
    "FP64": (lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()}, "float64 to float32"),
    "parameters, not tensors": (lambda s: {k: nn.Parameter(v, requires_grad=False) for k, v in s.items()}, ""),
    "no batch counters": (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, ""),
    "an average alone": (lambda s: {"model_ema": s}, "these are averaged weights"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_tools_put_around_weights_is_taken_off_and_said(tmp_path: Path, name: str) -> None:
    wrap, words = WRAPPED[name]
    state = {
        # Few digits, so that half precision holds them exactly.
        key: (value * 8).round() / 8 if value.is_floating_point() else value
        for key, value in make().state_dict().items()
    }
    module, progress = load(tmp_path, wrap(state), make(seed=99))
    found = module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items() if "num_batches" not in key)
    assert words in " ".join(progress.notes)
    assert progress.warnings == []


def test_a_plain_state_dict_needs_no_words(tmp_path: Path) -> None:
    module, progress = load(tmp_path, make().state_dict())
    assert same(module, make().state_dict())
    assert (progress.notes, progress.warnings) == ([], [])


# --- plain and averaged weights in one file

PLAIN, EMA = make(1).state_dict(), make(2).state_dict()
PARAMETERS = [name for name, _ in make().named_parameters()]
BOTH = {
    "timm": {"state_dict": PLAIN, "state_dict_ema": EMA, "arch": "x", "args": argparse.Namespace(lr=1)},
    "two keys": {"model": PLAIN, "ema": EMA},
    "a key in a key": {"model": PLAIN, "ema": {"module": EMA, "updates": 7}},
    "DDP and averages": {"model": under("module.", PLAIN), "model_ema": under("module.", EMA)},
    "BasicSR": {"params": PLAIN, "params_ema": EMA},
    "SWA beside": {"model": PLAIN, "swa_model": {"n_averaged": torch.tensor(3), **under("module.", EMA)}},
    "prefixes in one dict": {**LIGHTNING, "state_dict": {**under("model.", PLAIN), **under("ema_model.", EMA)}},
    "ema_pytorch": {
        "initted": torch.tensor(data=True),
        "step": torch.tensor(3),
        **under("online_model.", PLAIN),
        **under("ema_model.", EMA),
    },
    "Lightning's WeightAveraging": {
        **LIGHTNING,
        "state_dict": under("model.", EMA),
        "current_model_state": under("model.", PLAIN),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
}


@pytest.mark.parametrize("name", BOTH)
def test_state_chooses_between_plain_and_averaged_weights(tmp_path: Path, name: str) -> None:
    module, progress = load(tmp_path, BOTH[name])
    assert same(module, PLAIN)
    assert ['[model] state = "ema" uses them' in text for text in progress.warnings] == [True]
    module, progress = load(tmp_path, BOTH[name], state="plain")
    assert same(module, PLAIN)
    assert progress.warnings == []
    module, progress = load(tmp_path, BOTH[name], state="ema")
    assert same(module, EMA)
    assert "these are averaged weights" in " ".join(progress.notes)
    assert progress.warnings == []


@pytest.mark.parametrize(
    "shadow",
    [
        {"shadow": {name: EMA[name] for name in PARAMETERS}, "decay": 0.9},
        {"decay": 0.9, "num_updates": 3, "shadow_params": [EMA[name] for name in PARAMETERS], "collected_params": None},
    ],
    ids=["by name", "torch_ema's list"],
)
def test_averages_of_parameters_take_the_buffers_of_the_plain_weights(tmp_path: Path, shadow: State) -> None:
    module, progress = load(tmp_path, {"model": PLAIN, "ema": shadow}, state="ema")
    want = {**PLAIN, **{name: EMA[name] for name in PARAMETERS}}
    assert same(module, want)
    assert "took 1.running_mean, 1.running_var" in " ".join(progress.notes)


def test_a_list_of_averages_in_another_order_is_not_taken(tmp_path: Path) -> None:
    shadow = {"shadow_params": [EMA[name] for name in reversed(PARAMETERS)]}
    with pytest.raises(ModelError, match=r'state = "ema": .* has no averaged weights that fit'):
        load(tmp_path, {"model": PLAIN, "ema": shadow}, state="ema")


def test_a_state_that_the_file_has_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'state = "ema": .* has no averaged weights') as caught:
        load(tmp_path, {"model": PLAIN}, state="ema")
    assert caught.value.exit_code == 3
    with pytest.raises(ModelError, match=r'state = "plain": .* has averaged weights only'):
        load(tmp_path, {"model_ema": EMA}, state="plain")


# --- tied weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 4, bias=False)
        self.out = nn.Linear(6, 4, bias=False)
        self.out.weight = self.embed.weight


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.out.weight = nn.Parameter(self.embed.weight.detach() + 1.0)


def test_safetensors_holds_a_tied_tensor_once(tmp_path: Path) -> None:
    trained = Tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    module, _ = load_file(tmp_path, "w.safetensors", Tied())
    assert same(module, trained.state_dict())
    # The file says that both are one tensor, so a model that does not tie them gets it twice.
    module, _ = load_file(tmp_path, "w.safetensors", Untied())
    assert same(module, trained.state_dict())


def test_a_missing_name_of_a_tied_tensor_is_said(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    module, progress = load(tmp_path, {"embed.weight": weight}, Tied())
    assert torch.equal(module.out.weight, weight)
    assert "tied: out.weight is embed.weight" in " ".join(progress.notes)
    with pytest.raises(ModelError, match=r"missing \(1\): out.weight"):
        load(tmp_path, {"embed.weight": weight}, Untied())


def test_two_values_for_one_tensor_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"embed.weight, out.weight have different values in the file"):
        load(tmp_path, Untied().state_dict(), Tied())


# --- what fits only by a stretch is refused


def test_a_part_of_a_larger_model_is_not_taken_for_the_model(tmp_path: Path) -> None:
    state = {**under("head.", nn.Linear(4, 2).state_dict()), **under("body.", nn.Linear(4, 4).state_dict())}
    with pytest.raises(ModelError, match=r"unexpected \(2\): body.weight, body.bias"):
        load(tmp_path, state, nn.Linear(4, 2))


def test_two_sets_that_fit_are_an_error_unless_they_are_equal(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"several sets of weights that fit the model.*'student' and 'teacher'"):
        load(tmp_path, {"student": PLAIN, "teacher": EMA})
    assert same(load(tmp_path, {"student": PLAIN, "teacher": copy.deepcopy(PLAIN)})[0], PLAIN)
    # A usual key is meant before others.
    assert same(load(tmp_path, {"best": EMA, "model": PLAIN})[0], PLAIN)


def test_gradients_and_optimizers_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a state dict: it holds a dict with keys optimizer, grads"):
        load(tmp_path, {"optimizer": {"exp_avg": PLAIN}, "grads": PLAIN})


def test_renamed_layers_are_shown_beside_each_other(tmp_path: Path) -> None:
    state = {name.replace("3.", "fc."): value for name, value in PLAIN.items()}
    with pytest.raises(ModelError) as caught:
        load(tmp_path, {"model": state})
    text = caught.value.message
    assert "('model') does not fit the model" in text
    assert "missing (2): 3.weight, 3.bias" in text
    assert "unexpected (2): fc.weight, fc.bias" in text
    assert "3.weight may be the file's fc.weight" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"3.weight": torch.zeros(5, 144, dtype=torch.int8)}, "3.weight is int8 in the file, float32 in the model"),
        ({"3.weight": torch.zeros(5, 144, dtype=torch.complex64)}, "3.weight is complex64 in the file"),
        ({"3.weight": torch.zeros(144, 5)}, r"3.weight is \(144, 5\) in the file, \(5, 144\) in the model"),
        ({"3.weight": torch.zeros(5, 144).to_sparse()}, "layout torch.sparse_coo in the file"),
    ],
)
def test_another_kind_of_tensor_is_an_error(tmp_path: Path, change: State, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(tmp_path, {**PLAIN, **change})


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*TypedStorage")
def test_int8_weights_are_an_error(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.zeros(5, 144), 0.1, 0, torch.qint8)
    with pytest.raises(ModelError, match=r"3.weight is INT8 in the file"):
        load(tmp_path, {**PLAIN, "3.weight": weight})


def test_flattened_parameters_of_fsdp_say_what_to_save(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="FSDP's flattened parameters") as caught:
        load(tmp_path, {"_fsdp_wrapped_module._flat_param": torch.zeros(100)})
    assert "FULL_STATE_DICT" in (caught.value.hint or "")


def test_a_pickled_module_in_a_dict_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model \(a pickled torch.nn.modules.container.Sequential\)") as caught:
        load(tmp_path, {"epoch": 3, "model": make()})
    assert "model.state_dict()" in (caught.value.hint or "")


# --- the module's side


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = make(99)


def test_a_wrapper_around_the_trained_model_adds_its_prefix(tmp_path: Path) -> None:
    module, progress = load(tmp_path, PLAIN, Wrapper())
    assert same(module, under("backbone.", PLAIN))
    assert "added the prefix 'backbone.'" in " ".join(progress.notes)


class Keeps(nn.Module):
    """A model with an attribute that is called as wrappers call theirs, and a buffer that it does not save."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_names_of_the_model_itself_are_no_wrappers(tmp_path: Path) -> None:
    trained = Keeps().state_dict()
    assert same(load(tmp_path, trained, Keeps())[0], trained)
    assert same(load(tmp_path, under("module.", trained), Keeps())[0], trained)


def test_a_buffer_that_is_saved_no_longer_is_left_out_where_it_is_equal(tmp_path: Path) -> None:
    trained = Keeps().state_dict()
    assert "left out table" in " ".join(load(tmp_path, {**trained, "table": torch.arange(3.0)}, Keeps())[1].notes)
    with pytest.raises(ModelError, match=r"unexpected \(1\): table"):
        load(tmp_path, {**trained, "table": torch.ones(3)}, Keeps())


class Renames(nn.Module):
    """A model that knows the name which an older version gave to its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(3, 2)
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(_module: nn.Module, state: State, *_: Any) -> None:
        for name in [name for name in state if name.startswith("old.")]:
            state[name.replace("old.", "new.")] = state.pop(name)


def test_the_models_own_hooks_rename_what_they_know(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    module, _ = load(tmp_path, {"model": under("old.", state)}, Renames())
    assert torch.equal(module.new.weight, state["weight"])
    with pytest.raises(ModelError, match="missing"):
        load(tmp_path, under("older.", state), Renames())


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_old_weight_norm_fits_the_new_one(tmp_path: Path) -> None:
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    load(tmp_path, old.state_dict(), new)
    x = torch.randn(4, 3)
    assert torch.allclose(old(x), new(x))


class Extra(nn.Linear):
    """A module that saves more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_state_that_is_no_tensor_is_the_factorys_to_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"values that are not tensors \(_extra_state\)") as caught:
        load(tmp_path, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, Extra(3, 2))
    assert 'weights = "factory"' in (caught.value.hint or "")
