"""torchvision's models by name, and its import where its compiled part does not load beside this torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.sources import build_module
from cpupack.model.vision import import_torchvision, modern_names, optional_parts
from cpupack.model.weights import load_weights
from cpupack.stages.load import load
from helpers.tiny_models import Recorder, loaded


def build(directory: Path, name: str, shape: tuple[int, ...], **model: Any) -> FloatModel:
    spec = {"source": f"torchvision:{name}", "input_shape": list(shape), "weights": "random", **model}
    return load(loaded(directory, model=spec), Recorder())


@pytest.mark.parametrize(
    ("name", "shape", "kwargs", "output"),
    [
        ("lraspp_mobilenet_v3_large", (3, 64, 64), {}, (21, 64, 64)),
        ("deeplabv3_mobilenet_v3_large", (3, 64, 64), {"num_classes": 3, "aux_loss": True}, (3, 64, 64)),
        ("r3d_18", (3, 4, 32, 32), {"num_classes": 7}, (7,)),
        ("quantized_mobilenet_v2", (3, 64, 64), {}, (1000,)),
    ],
)
def test_models_that_answer_one_tensor_load_by_name(
    tmp_path: Path, name: str, shape: tuple[int, ...], kwargs: dict[str, Any], output: tuple[int, ...]
) -> None:
    model = build(tmp_path, name, shape, kwargs=kwargs)
    assert model.output_shape == output


def test_segmentation_keeps_the_names_of_its_modules_and_returns_out(tmp_path: Path) -> None:
    import_torchvision()
    from torchvision import models

    plain = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    module = build(tmp_path, "lraspp_mobilenet_v3_large", (3, 64, 64)).module
    assert module.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(x), plain(x)["out"])


def test_weights_with_a_head_for_training_fit_a_segmentation_model_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_torchvision()
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trained = models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)
    url = models.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.url
    cached = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(trained.state_dict(), cached)
    spec = {
        "source": "torchvision:deeplabv3_mobilenet_v3_large",
        "weights": "COCO_WITH_VOC_LABELS_V1",
        "input_shape": [3, 64, 64],
    }
    progress = Recorder()
    recipe = loaded(tmp_path, model=spec)
    module = build_module(recipe, progress)
    assert optional_parts(module) == ("aux_classifier.",)
    load_weights(module, recipe, progress)
    assert torch.equal(module.classifier[4].weight, trained.classifier[4].weight)
    assert "left out aux_classifier.0.weight" in " ".join(progress.notes)


def test_inputs_are_transformed_as_the_weights_want(tmp_path: Path) -> None:
    spec = {"source": "torchvision:googlenet", "input_shape": [3, 64, 64]}
    for weights, transforms in (("IMAGENET1K_V1", True), ("random", False)):
        module = build_module(loaded(tmp_path, model={**spec, "weights": weights}), Recorder())
        assert module.transform_input == transforms


def test_the_size_of_a_vision_transformer_is_that_of_its_weights(tmp_path: Path) -> None:
    spec = {"source": "torchvision:vit_b_16", "input_shape": [3, 64, 64], "weights": "IMAGENET1K_SWAG_E2E_V1"}
    assert build_module(loaded(tmp_path, model=spec), Recorder()).image_size == 384


def test_names_of_densenets_weights_are_todays() -> None:
    old = {"features.denseblock1.denselayer2.norm.1.weight": 1, "features.conv0.weight": 2, "epoch": 3, 7: 8}
    assert modern_names(old) == {
        "features.denseblock1.denselayer2.norm1.weight": 1,
        "features.conv0.weight": 2,
        "epoch": 3,
        7: 8,
    }
    assert modern_names([1]) == [1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keypointrcnn_resnet50_fpn", "also finds keypoints"),
        ("raft_small", "is an optical flow model, not a classifier: it takes two images"),
        ("resnet81", "torchvision has no model 'resnet81'"),
    ],
)
def test_models_that_cannot_be_packaged_say_what_they_are(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build(tmp_path, name, (3, 64, 64))
    assert caught.value.hint


USERS = """
from torchvision.ops import FrozenBatchNorm2d
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
"""


def test_users_code_may_import_torchvision_first(tmp_path: Path) -> None:
    """In a process of its own: here torchvision is imported already."""
    (tmp_path / "model.py").write_text(USERS)
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.tiny_models import Recorder, loaded
from cpupack.stages.load import load
assert "torchvision" not in sys.modules
spec = {{"source": "python:model.py:make", "weights": "factory"}}
print(load(loaded(Path({str(tmp_path)!r}), model=spec), Recorder()).output_shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(5,)\n"), done.stderr


WHOLE = """
print("whole torchvision is imported", __spec__.loader.__class__.__mro__[1].__name__)
"""
BROKEN = """
import torch
torch.library.register_fake("torchvision::nms")(lambda *x: x[0])
VALUE = 7
"""
FAILING = """
raise RuntimeError("something else is broken")
"""


@pytest.mark.parametrize(
    ("package", "code", "words"),
    [
        (WHOLE, "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'nms'))", "SourceFileLoader\nFalse\n"),
        (BROKEN, "import torchvision; print(torchvision.VALUE)", "7\n"),
        (BROKEN, "import torchvision, importlib; print(importlib.reload(torchvision).VALUE)", "7\n"),
        (FAILING, "import torchvision", "RuntimeError: something else is broken"),
    ],
    ids=["whole", "broken", "again", "failing"],
)
def test_only_an_import_that_lacks_the_operators_is_repaired(
    tmp_path: Path, package: str, code: str, words: str
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(package)
    text = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from cpupack.model.vision import repair_torchvision_imports\n"
        f"repair_torchvision_imports()\n{code}\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert words in done.stdout + done.stderr
