"""Recipe -> FloatModel: build the module, load its weights, and run it once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpupack.artifacts import FloatModel
from cpupack.errors import CpupackError, ModelError
from cpupack.model.sources import build_module, imagenet_labels
from cpupack.model.user_code import describe_failure
from cpupack.model.weights import LoadedWeights, load_weights
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe


def load(loaded: LoadedRecipe, progress: Progress) -> FloatModel:
    """Build the FP32 model of a recipe in eval mode, with its weights.

    Raises ModelError when the source, its arguments, the weights or the labels cannot be used, or when the model does
    not map ``(batch, *input_shape)`` float32 to one float32 tensor whose first dimension is the batch.
    """
    spec = loaded.recipe.model
    torch.manual_seed(spec.seed)
    module = build_module(loaded)
    module.eval()
    output_shape, macs = _try_forward(module, spec.source, tuple(spec.input_shape))
    weights = load_weights(module, loaded, progress)
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


def _try_forward(module: torch.nn.Module, source: str, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Run batches of one and two; return the output shape without the batch, and the MACs of one sample."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.inference_mode(), counter:
            one = module(torch.zeros(1, *input_shape))
        with torch.inference_mode():
            two = module(torch.zeros(2, *input_shape))
    except CpupackError:
        raise
    except Exception as error:
        raise ModelError(
            f"[model] {source} does not run on an input of shape (1, {', '.join(map(str, input_shape))}): "
            f"{describe_failure(error)}",
            hint="check [model] input_shape (without the batch dimension) and kwargs",
        ) from error
    for output, batch in ((one, 1), (two, 2)):
        if not isinstance(output, torch.Tensor):
            raise ModelError(
                f"[model] {source} returns {_describe(output)}; a packaged model returns one tensor",
                hint="wrap it in a factory whose forward returns the tensor to serve",
            )
        if output.ndim < 1 or output.shape[0] != batch or not output.is_floating_point():
            raise ModelError(
                f"[model] {source} returns {output.dtype} of shape {tuple(output.shape)} for a batch of {batch}; "
                "the first dimension of a float output must be the batch",
                hint="recurrent models: use batch_first=True",
            )
    return tuple(one.shape[1:]), counter.get_total_flops() // 2


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


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
            f"[model] labels: {where} has {len(labels)} names, the model's output has shape {output_shape}",
            hint="give one label for each output class, in order",
        )
    if weights.random:
        progress.note("labels are shipped, but with random weights the predictions mean nothing")
    return labels
