"""Recipe -> FloatModel: builds the module, loads its weights, and runs it once."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.detectors import detector_of, with_rows
from cpupack.model.encoder_decoders import check_end
from cpupack.model.library_images import check_images
from cpupack.model.named_inputs import sizes_of_inputs
from cpupack.model.one_row import OneRow
from cpupack.model.open_sizes import open_sizes
from cpupack.model.padding_side import with_needed_side
from cpupack.model.signature import check_vocabularies, fit_signature, with_vocabularies
from cpupack.model.sources import build_module, known_labels
from cpupack.model.stream_check import check_stream
from cpupack.model.tasks import check_labels, names_of_heads, task_of, with_judged
from cpupack.model.text_input import check_task, check_tokenizer, text_input, with_mask, with_pads
from cpupack.model.trial_run import runs_channels_last, try_forward
from cpupack.model.weights import LoadedWeights, Settling, check_finite, load_weights
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.labels import LabelsError, read_labels
from cpupack.recipe.names import KNOWN_LABELS
from cpupack.recipe.tables.signature import NamedSizes
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.signature import Signature
from cpupack.runtime.tasks.spec import TaskSpec


def load(loaded: LoadedRecipe, progress: Progress) -> FloatModel:
    """Build the FP32 model of a recipe in eval mode, with its weights.

    A model that does not map one float32 tensor to one is wrapped, so that its module does (``model/one_row.py``).
    Raises ModelError when the source, its arguments, the weights or the labels cannot be used, or when an output is not
    float32 with the batch first; RecipeError for an input or output that the model does not have.
    """
    with torch.compiler.set_stance("force_eager"):  # compiling parts of the user's model would only cost time
        return _loaded(loaded, progress)


def _loaded(loaded: LoadedRecipe, progress: Progress) -> FloatModel:
    spec = loaded.recipe.model
    torch.manual_seed(spec.seed)
    check_tokenizer(loaded)
    check_images(loaded, progress)
    module = build_module(loaded, progress)
    module.eval()
    lazy = any(is_lazy(each) for each in module.parameters())
    fitted = fit_signature(module, spec.source, loaded.recipe, progress)
    macs = try_forward(fitted.module, spec.source, fitted.signature.inputs, fitted.one)
    # Before the weights: random ones are settled on inputs that the model takes.
    check_vocabularies(fitted.module, fitted.signature)
    signature = with_rows(module, with_vocabularies(fitted.module, fitted.signature))
    weights = load_weights(module, loaded, progress, Settling(fitted.module, signature, macs))
    check_finite(module, weights.origin)
    if lazy and spec.weights == "factory":
        progress.warn(
            f"RANDOM WEIGHTS in lazy layers: {spec.source} returned layers that get their weights at the first input; "
            "run the model once in the factory, then load its weights"
        )
    module.eval().requires_grad_(requires_grad=False)
    if spec.stream:
        assert isinstance(fitted.module, OneRow)
        check_stream(fitted.module, signature, spec.source, progress)
    detector = detector_of(module, loaded.recipe, signature)
    table = loaded.recipe.sizes
    if isinstance(table, NamedSizes) and table.dimensions:
        sizes: OpenSizes | None = sizes_of_inputs(fitted.module, signature, table)
    else:
        sizes = open_sizes(fitted.module, signature, loaded.recipe)
    task = task_of(loaded.recipe.task, signature) if detector is None else detector.task
    text = with_needed_side(text_input(loaded, signature, progress), fitted.module, signature, loaded, progress)
    check_task(task, signature, text)
    check_end(module, text)
    signature = with_judged(signature, task)
    channels_last = runs_channels_last(fitted.module, signature.inputs)
    signature = with_pads(with_mask(signature, text), text, loaded.recipe.tokenizer)
    return FloatModel(
        module=fitted.module.eval(),
        signature=signature,
        weights_origin=weights.origin,
        random_weights=weights.random,
        weights_sha256=weights.sha256,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        fp32_bytes=_state_bytes(module),
        labels=_labels(loaded, task, signature, weights, progress),
        task=task,
        tokenizer=text,
        channels_last=channels_last,
        anchors=None if detector is None else detector.anchors,
        sizes=sizes,
    )


def _state_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _labels(
    loaded: LoadedRecipe, task: TaskSpec, signature: Signature, weights: LoadedWeights, progress: Progress
) -> tuple[str, ...] | None:
    spec = loaded.recipe.model.labels
    shapes = {each.name: each.result_shape for each in signature.outputs}
    if spec is None:
        return names_of_heads(task, shapes)
    if spec in KNOWN_LABELS:
        labels = known_labels(str(spec))
        where = f'"{spec}"'
    elif isinstance(spec, str):
        path = loaded.resolve(spec)
        try:
            labels = read_labels(path)
        except LabelsError as error:
            raise ModelError(f"[model] labels: {error}") from error
        where = str(path)
    else:
        labels, where = tuple(spec), "the list"
    check_labels(labels, where, task, shapes)
    if weights.random:
        progress.note("the wheel has labels, but with random weights the predictions mean nothing")
    return labels
