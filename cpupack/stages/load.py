"""Recipe -> FloatModel: builds the module, loads its weights, and runs it once."""

from __future__ import annotations

import math

import torch
from torch.nn.parameter import is_lazy

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.sources import build_module, imagenet_labels
from cpupack.model.trial_run import try_forward
from cpupack.model.weights import LoadedWeights, check_finite, load_weights
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe


def load(loaded: LoadedRecipe, progress: Progress) -> FloatModel:
    """Build the FP32 model of a recipe in eval mode, with its weights.

    Raises ModelError when the source, its arguments, the weights or the labels cannot be used, or when the model does
    not map ``(batch, *input_shape)`` float32 to one float32 tensor whose first dimension is the batch.
    """
    with torch.compiler.set_stance("force_eager"):  # compiling parts of the user's model would only cost time
        return _loaded(loaded, progress)


def _loaded(loaded: LoadedRecipe, progress: Progress) -> FloatModel:
    spec = loaded.recipe.model
    torch.manual_seed(spec.seed)
    module = build_module(loaded, progress)
    module.eval()
    lazy = any(is_lazy(each) for each in module.parameters())
    output_shape, macs = try_forward(module, spec.source, tuple(spec.input_shape))
    weights = load_weights(module, loaded, progress)
    check_finite(module, weights.origin)
    if lazy and spec.weights == "factory":
        progress.warn(
            f"RANDOM WEIGHTS in lazy layers: {spec.source} returned layers that get their weights at the first input; "
            "run the model once in the factory, then load its weights"
        )
    module.eval().requires_grad_(requires_grad=False)
    return FloatModel(
        module=module,
        input_shape=tuple(spec.input_shape),
        output_shape=output_shape,
        weights_origin=weights.origin,
        random_weights=weights.random,
        weights_sha256=weights.sha256,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        fp32_bytes=_state_bytes(module),
        labels=_labels(loaded, output_shape, weights, progress),
    )


def _state_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _labels(
    loaded: LoadedRecipe, output_shape: tuple[int, ...], weights: LoadedWeights, progress: Progress
) -> tuple[str, ...] | None:
    spec = loaded.recipe.model.labels
    if spec is None:
        return None
    if spec == "imagenet":
        labels = imagenet_labels()
        where = '"imagenet"'
    elif isinstance(spec, str):
        path = loaded.resolve(spec)
        try:
            labels = tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"[model] labels: cannot read {path}: {error}") from error
        where = str(path)
    else:
        labels, where = tuple(spec), "the list"
    classes = math.prod(output_shape[:1])
    if len(output_shape) != 1 or len(labels) != classes:
        raise ModelError(
            f"[model] labels: {where} has {len(labels)} names, but the model's output has shape {output_shape}",
            hint="give one label for each output class, in order",
        )
    if weights.random:
        progress.note("the wheel has labels, but with random weights the predictions mean nothing")
    return labels
