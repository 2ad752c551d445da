"""Static quantization in FX graph mode and, for models with their own stubs, in eager mode."""

from __future__ import annotations

import copy
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch.ao.quantization import QConfig, QConfigMapping, convert, prepare
from torch.ao.quantization.backend_config import BackendConfig
from torch.ao.quantization.backend_config.fbgemm import get_fbgemm_backend_config
from torch.ao.quantization.backend_config.onednn import get_onednn_backend_config
from torch.ao.quantization.backend_config.qnnpack import get_qnnpack_backend_config
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from cpupack.artifacts import CalibratedModel
from cpupack.errors import QuantizationError
from cpupack.graph.divisors import divisors
from cpupack.graph.fused import CONVS, TRANSPOSED_CONVS
from cpupack.graph.names import core, is_named, is_within, scoped_name
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.trace import record_shapes
from cpupack.graph.weight_grid import weight_scales
from cpupack.recipe import Quantize
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize import reasons
from cpupack.stages.quantize.classifier import FloatOutput, find_classifiers, quantize_classifier
from cpupack.stages.quantize.in_float import InFloat, keep_float, reasons_in_float
from cpupack.stages.quantize.lowering import call_as_methods, fuse_conv_add, lower_relu6, own_constants
from cpupack.stages.quantize.observers import STATS_NAME, read_through_observers, set_range, set_ranges
from cpupack.stages.quantize.pixels import take_pixels
from cpupack.stages.quantize.qconfig import (
    StatsObserver,
    coarser_weights,
    limited_weights,
    qconfig_mapping,
    static_qconfig,
    transposed_qconfig,
    wrong_types,
)
from cpupack.stages.quantize.ranges import choose_range
from cpupack.targets import Target

_BACKENDS = {
    "fbgemm": get_fbgemm_backend_config,
    "x86": get_x86_backend_config,
    "onednn": get_onednn_backend_config,
    "qnnpack": get_qnnpack_backend_config,
}
_LARGEST_BIAS = 2.0**30
_AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
)


def quantize_fx(
    calibrated: CalibratedModel,
    recipe: Quantize,
    target: Target,
    example: torch.Tensor,
    preprocess: PreprocessSpec | None,
    limited: Collection[str] = (),
) -> tuple[nn.Module, dict[str, str]]:
    """Quantize a fused graph module with the ranges that the observer chooses from its statistics.

    Also returns, by call name, why calls stay FP32 that torch would have run in INT8.

    ``example`` is one float32 input batch. With ``preprocess`` the result is a ``PixelModel`` where the graph allows
    it. ``limited`` names modules whose weights get 7 bits. The calibrated model is not changed. Raises
    QuantizationError for a name in ``skip`` that the model does not have.
    """
    graph = _copy_with_stats(calibrated, example)
    lower_relu6(graph, target.activation_bits)
    keep_float(graph, reasons_in_float(graph, calibrated, target.engine))
    call_as_methods(graph)
    if target.conv_add:
        fuse_conv_add(graph)
    own_constants(graph)
    graph.delete_all_unused_submodules()
    classifiers = _with_float_output(graph, calibrated, recipe, target)
    mapping = qconfig_mapping(target, recipe.weights)
    for_readers = _apply_skip(mapping, graph, [*recipe.skip, *classifiers])
    least_scales = _least_weight_scales(graph, calibrated, recipe, target)
    for name, child in graph.named_modules():
        if transposes_wrongly(target.engine, child):
            mapping.set_module_name(name, None)
        elif name in limited or _adds_in_16_bits(target, child):
            mapping.set_module_name(name, limited_weights(_qconfig_of(child, target, recipe.weights)))
        elif (least := least_scales.get(name)) is not None:
            mapping.set_module_name(name, coarser_weights(_qconfig_of(child, target, recipe.weights), least))
    backend = _without_fusers(_BACKENDS[target.engine]())
    opaque = PrepareCustomConfig().set_non_traceable_module_classes([InFloat, FloatOutput, Recurrent])
    prepared = prepare_fx(graph, mapping, (example,), prepare_custom_config=opaque, backend_config=backend)
    read_through_observers(prepared)
    set_ranges(prepared, graph, calibrated, recipe, 2**target.activation_bits)
    converted: fx.GraphModule = convert_fx(prepared, backend_config=backend)
    if preprocess is None:
        return converted, for_readers
    observer = static_qconfig(target, recipe.weights).weight()
    return take_pixels(converted, graph, preprocess, target, observer) or converted, for_readers


def quantize_eager(
    calibrated: CalibratedModel, recipe: Quantize, target: Target, limited: Collection[str] = ()
) -> nn.Module:
    """Quantize a model with its own QuantStub and DeQuantStub; ``skip`` and ``limited`` work by module name."""
    module = copy.deepcopy(calibrated.fused.module)
    module.qconfig = static_qconfig(target, recipe.weights)  # type: ignore[assignment]  # torch's eager mode reads it here
    for name, child in module.named_modules():
        skipped = is_within(name, recipe.skip)
        wrong = type(child) in wrong_types(target.engine) or transposes_wrongly(target.engine, child)
        if skipped or wrong:
            child.qconfig = None  # for torch this means FP32
        elif name in limited:
            child.qconfig = limited_weights(_qconfig_of(child, target, recipe.weights))
        elif isinstance(child, TRANSPOSED_CONVS):
            child.qconfig = transposed_qconfig(target)  # type: ignore[assignment]  # as above
    prepare(module, inplace=True)
    for name, observer in module.named_modules():
        if isinstance(observer, StatsObserver):
            set_range(observer, [name.rpartition(".activation_post_process")[0]], calibrated, recipe)
    converted: nn.Module = convert(module, inplace=True)
    return converted


def _qconfig_of(module: nn.Module, target: Target, weights: str) -> QConfig:
    return transposed_qconfig(target) if isinstance(module, TRANSPOSED_CONVS) else static_qconfig(target, weights)


def check_names(
    original: nn.Module, captured: nn.Module, recipe: Quantize, chains: Collection[Collection[str]] = ()
) -> None:
    """Raise QuantizationError for the first name in ``skip``, ``static`` or ``dynamic`` that the model does not have.

    A name is that of a module of the FP32 model as loaded, or of a call of its captured graph, or of one in ``chains``.
    """
    names: dict[str, object] = dict(original.named_modules())
    if isinstance(captured, fx.GraphModule):
        names |= {scoped_name(node): node for node in captured.graph.nodes}
    names |= {name: chain for chain in chains for name in chain}
    for key in ("skip", "static", "dynamic"):
        for name in getattr(recipe, key):
            if name not in names:
                raise _unknown(key, name, names)


def transposes_wrongly(engine: str, module: nn.Module) -> bool:
    """Whether an engine computes a transposed convolution wrongly in INT8. It then stays FP32.

    oneDNN (which ``x86`` also uses) refuses output padding. With unequal channels it returns noise, because torch 2.13
    swaps the two channel dimensions of the packed weights. fbgemm returns noise on its direct path, for kernels of
    height 2 and width up to 6 if both channels are multiples of 8. tests/unit/test_quantize.py shows all three.
    """
    if not isinstance(module, TRANSPOSED_CONVS):
        return False
    channels, kernel = (module.in_channels, module.out_channels), module.kernel_size
    direct = len(kernel) == 2 and kernel[0] == 2 and kernel[1] <= 6 and not any(size % 8 for size in channels)
    if engine in {"fbgemm", "x86"} and direct and module.groups == 1:
        return True
    return engine in {"onednn", "x86"} and (channels[0] != channels[1] or any(module.output_padding))


def _adds_in_16_bits(target: Target, module: nn.Module) -> bool:
    """Whether a depthwise convolution adds products in 16 bits even on a CPU with VNNI, as fbgemm's own kernels do.

    With 8 bits of activations two products with weights of 7 bits fit.
    """
    conv = core(module)
    depthwise = isinstance(conv, CONVS) and conv.groups > 1 and conv.groups == conv.in_channels
    return target.engine in {"fbgemm", "x86"} and target.activation_bits == 8 and depthwise


def _unknown(key: str, name: str, names: dict[str, object]) -> QuantizationError:
    near = get_close_matches(name, names, n=1)
    return QuantizationError(
        f"[quantize] {key}: the model has no module {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else None,
    )


def _copy_with_stats(calibrated: CalibratedModel, example: torch.Tensor) -> fx.GraphModule:
    """Copy the graph; each node is marked with its statistics' name and the shape of its output on ``example``."""
    original = calibrated.fused.module
    assert isinstance(original, fx.GraphModule)
    graph = copy.deepcopy(original)
    for old, new in zip(original.graph.nodes, graph.graph.nodes, strict=True):
        new.meta = {**old.meta, STATS_NAME: old.name}
    _read_constants_where_they_are_used(graph)
    # Retracing leaves out what nothing reads (a ViT's look at a shape), and nodes are matched by their order.
    graph.graph.eliminate_dead_code()
    graph.recompile()
    record_shapes(graph, example)
    return graph


def _read_constants_where_they_are_used(graph: fx.GraphModule) -> None:
    """Read each constant again right before each use, in place, as retracing does."""
    for node in list(graph.graph.nodes):

        def own(each: fx.Node, node: fx.Node = node) -> fx.Node:
            if each.op != "get_attr":
                return each
            with graph.graph.inserting_before(node):
                read = graph.graph.get_attr(str(each.target))
            read.meta = dict(each.meta)
            return read

        if any(each.op == "get_attr" for each in node.all_input_nodes):
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), own)


def _apply_skip(mapping: QConfigMapping, graph: fx.GraphModule, skip: list[str]) -> dict[str, str]:
    """Remove the qconfig of every call inside the skipped modules, and of calls that torch would quantize wrongly.

    Returns, by call name, why calls outside the skipped modules stay FP32. Module calls are identified by name. A
    function call loses its scope when FX retraces the graph, so its order among the calls of that function identifies
    it.
    """
    for_float = _for_float_readers(graph, skip) | divisors(graph)
    seen: dict[Any, int] = {}
    for node in graph.graph.nodes:
        order = seen.get(node.target, 0)
        seen[node.target] = order + 1
        # quantized::add has no alpha, and torch silently drops it.
        if not is_named(node, skip) and node not in for_float and "alpha" not in node.kwargs:
            continue
        if node.op == "call_module":
            mapping.set_module_name(str(node.target), None)
        elif node.op == "call_function":
            mapping.set_module_name_object_type_order("", node.target, order, None)
    return {scoped_name(node): reasons.FINER_READER for node in for_float}


def _for_float_readers(graph: fx.GraphModule, skip: list[str]) -> set[fx.Node]:
    """Return the calls without weights that stay FP32 because only FP32 layers read them.

    These are calls between FP32 layers, where rounding to INT8 would have no use, and averages of INT8 values, such as
    the pooling before a classifier in FP32, because their steps are finer than INT8's. Calls that are exact in INT8
    stay INT8.
    """
    read_in_float: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        in_float = all(is_named(each, skip) or each in read_in_float for each in node.users)
        if node.users and in_float and _weightless(graph, node):
            read_in_float.add(node)
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node in read_in_float:
            target = type(graph.get_submodule(str(node.target))) if node.op == "call_module" else node.target
            if target in _AVERAGES or all(is_named(each, skip) or each in found for each in node.all_input_nodes):
                found.add(node)
    return found


def _weightless(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return not any(True for _ in graph.get_submodule(str(node.target)).parameters())
    return node.op in {"call_function", "call_method"} and not any(
        each.op == "get_attr" for each in node.all_input_nodes
    )


def _without_fusers(backend: BackendConfig) -> BackendConfig:
    """Return the backend without its own fusions, because the fuse stage has already done those of the recipe.

    ``convert_fx`` learns from the fusions which classes are fused modules. So the rules for these classes now say so.
    """
    fused = {config.fused_module for config in backend.configs if config.fused_module is not None}
    kept = [config for config in backend.configs if config.fuser_method is None]
    for config in kept:
        if config.pattern in fused:
            config.set_fused_module(config.pattern)
    return BackendConfig(backend.name).set_backend_pattern_configs(kept)


def _with_float_output(
    graph: fx.GraphModule, calibrated: CalibratedModel, recipe: Quantize, target: Target
) -> list[str]:
    """Give the last linear layers FP32 results, in place, and return their names.

    Not if 16-bit sums could saturate, because the check of a layer's sums only covers torch's static operators.
    """
    if target.saturates:
        return []
    found = []
    for node in find_classifiers(graph, recipe.skip):
        source = node.args[0]
        stats = calibrated.stats.get(source.meta[STATS_NAME]) if isinstance(source, fx.Node) else None
        if stats is None:
            continue
        qconfig = static_qconfig(target, recipe.weights)
        observer = qconfig.activation()
        observer.range = choose_range(stats, recipe.observer, observer.levels, recipe.percentile)
        scale, zero_point = (each.item() for each in observer.calculate_qparams())
        linear = graph.get_submodule(str(node.target))
        assert isinstance(linear, nn.Linear)
        quantized = quantize_classifier(linear, qconfig.weight(), scale, zero_point, observer.levels)
        graph.add_submodule(str(node.target), quantized)
        found.append(str(node.target))
    return found


def _least_weight_scales(
    graph: fx.GraphModule, calibrated: CalibratedModel, recipe: Quantize, target: Target
) -> dict[str, torch.Tensor]:
    """Return the least weight scales of layers whose bias would not fit into 32 bits at their own, by the call's name.

    A bias is stored in steps of input scale times weight scale. Weights that are so much smaller than the bias change
    the result by less than one of its steps.
    """
    found = {}
    for node in graph.graph.nodes:
        module = core(graph.get_submodule(str(node.target))) if node.op == "call_module" else None
        source = node.args[0] if node.args else None
        if not isinstance(module, (nn.Linear, *CONVS)) or not isinstance(source, fx.Node) or module.bias is None:
            continue
        stats = calibrated.stats.get(source.meta[STATS_NAME])
        if stats is None:
            continue
        low, high = choose_range(stats, recipe.observer, 2**target.activation_bits, recipe.percentile)
        step = (high - low) / (2**target.activation_bits - 1)
        if step <= 0.0:
            continue
        least = (module.bias.detach().abs().double() / (step * _LARGEST_BIAS)).float()
        scales = weight_scales(module.weight.detach(), None if recipe.weights == "per_tensor" else 0).flatten()
        if bool((scales < least).any()):
            found[str(node.target)] = least
    return found
