"""Runs a user's model on zeros to check that it maps a batch to one FP32 tensor, and explains why if it does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cpupack.errors import CpupackError, ModelError
from cpupack.layout import strictly_channels_last, weights_channels_last
from cpupack.model.cost import flop_counter
from cpupack.model.layers import Whereabouts, watched
from cpupack.model.one_row import blank
from cpupack.model.user_code import describe_failure, hint_of_nothing
from cpupack.runtime.signature import INPUT
from cpupack.runtime.tensor_spec import TensorSpec, engine_input_shape, takes_rows

_BATCH = 2
_LISTED = 6
_WRAP = "return tensors, alone or in a tuple, a list, a dict or a dataclass"


def try_forward(module: nn.Module, source: str, inputs: tuple[TensorSpec, ...], one: Any = None) -> int:
    """Run batches of one and of two samples of zeros. Return one sample's MACs, 0 if torch cannot count them.

    ``one`` is the answer to one sample, if it is known. Raises ModelError, which names the layer and the user's line,
    when the model does not run, runs with only one batch size, or returns anything but one float32 tensor with the
    batch first.
    """
    if one is None:
        one = run_zeros(module, source, inputs, 1)
    check_output(one, source, 1, None)
    counter = flop_counter()
    try:
        # Not in inference mode: there, parametrizations (weight_norm, spectral_norm) fail under the counter, and lazy
        # modules would create parameters that cannot be changed later.
        with torch.no_grad(), counter:
            two = module(blank(inputs, _BATCH))
        macs = counter.get_total_flops() // 2 // _BATCH
    except Exception:  # noqa: BLE001 - the model or the counter failed: run without the counter to find out
        two, macs = run_zeros(module, source, inputs, _BATCH, fixed=True), 0
    check_output(two, source, _BATCH, one)
    return macs


def runs_channels_last(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether a model that runs also runs with its images and weights in channels_last. Weights keep their layout.

    A convolution gives its result in that layout, and then ``x.view(len(x), -1)`` fails.
    """
    tensors = (*module.parameters(), *module.buffers())
    before = [each.data for each in tensors]
    weights_channels_last(module)
    try:
        with torch.no_grad():
            module(strictly_channels_last(blank(inputs, _BATCH)))
    except RuntimeError:  # nothing but the layout differs from the run before
        return False
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
    return True


def run_zeros(
    module: nn.Module, source: str, inputs: tuple[TensorSpec, ...], batch: int, *, fixed: bool = False
) -> Any:
    """Return what a model gives for a batch of zeros. ``fixed`` says that it has run on one sample.

    Raises ModelError, which names the layer and the user's line, when it does not run.
    """
    shape = engine_input_shape(inputs)
    try:
        x = blank(inputs, batch)
    except RuntimeError as error:  # torch's words for what Python calls a MemoryError
        raise ModelError(
            f"[model] input_shape: an input of {list(shape)} needs {4 * math.prod(shape):,} bytes, "
            "more than this host has",
            hint="input_shape is that of one input, [channels, height, width] for images",
        ) from error
    with watched(module) as at:
        try:
            with torch.no_grad():
                return module(x)
        except CpupackError:
            raise
        except (Exception, SystemExit) as error:
            failure = describe_failure(error, at.layer)
            if fixed:
                numbers = [each.name for each in inputs if not each.shape]
                told = f"; {numbers[0]} is (n,), a number for each sample: {numbers[0]}[:, None]" if numbers else ""
                raise ModelError(
                    f"[model] {source} runs on one sample but fails on a batch of {batch}, so its code fixes the batch "
                    f"size: {failure}",
                    hint=f"take the batch from the input: x.shape[0], x.flatten(1), or -1 in view and reshape{told}",
                ) from error
            raise ModelError(
                f"[model] {source} does not run on {_input_text(inputs)}: {failure}", hint=_hint(error, at, inputs)
            ) from error


def _input_text(inputs: tuple[TensorSpec, ...]) -> str:
    if not takes_rows(inputs):
        return f"an input of shape ({', '.join(map(str, (1, *inputs[0].shape)))})"
    return "inputs " + ", ".join(f"{each.name} {each.dtype} {(1, *each.shape)}" for each in inputs)


def _hint(error: BaseException, at: Whereabouts, inputs: tuple[TensorSpec, ...]) -> str:
    """Return what to do about a failure of forward, judged by its message and its place."""
    text = str(error)
    if (nothing := hint_of_nothing(error)) is not None:
        return f"the first run is on zeros; {nothing}"
    if (
        isinstance(at.module, nn.Embedding | nn.EmbeddingBag)
        or "to have one of the following scalar types: Long" in text
    ):
        return 'token ids are an input of integers: describe it by an [[input]] table with dtype = "int64"'
    if isinstance(error, TypeError) and "required positional argument" in text:
        return "describe each argument of forward by an [[input]] table (name, shape, dtype)"
    if isinstance(error, NotImplementedError) and "forward" in text:
        return "give the module a forward method that takes the batch"
    if "CUDA" in text or "NVIDIA" in text or "cuda" in text:
        return "a build runs on the CPU: leave out .cuda() in forward, or take x.device"
    if "should be the same" in text or "same dtype" in text or "expected scalar type" in text:
        return "weights and input are float32; leave out .half(), .double() and autocast in forward"
    if "pack empty tensors" in text:
        return "pack with pack_padded_sequence, which takes the padded tensor and its lengths as a tensor"
    if "torchvision::" in text:
        return "this operator needs torchvision's compiled part; install the build of torchvision that matches torch"
    if isinstance(error, AttributeError) and text.startswith("'dict' object"):
        return "annotate the argument of forward with its class: a dataclass, or a named tuple; else it is a dict"
    if isinstance(error, AttributeError | TypeError) and "tuple" in text and ("list" in text or "no attribute" in text):
        return "annotate the argument of forward with list[torch.Tensor], or a named tuple; else it is a tuple"
    if isinstance(error, KeyError):
        return "an entry of a dict is NAME.KEY, and one of a tuple in a dict NAME.KEY.0"
    if "to unpack" in text:
        return (
            "an argument that is a tuple has an [[input]] for each entry: NAME_0, NAME_1, and NAME_0_0 inside another"
        )
    numbers = [each.name for each in inputs if each.dtype == "int64" and each.default is None]
    if "out of bounds" in text and takes_rows(inputs) and numbers:
        return f"the first run is on zeros: where {' or '.join(numbers)} cannot be 0 (a length), give it default = 1"
    if takes_rows(inputs) or inputs[0].name != INPUT:
        return "check the shapes (without the batch dimension) and dtypes in the [[input]] tables, and [model] kwargs"
    return "check [model] input_shape (without the batch dimension) and kwargs"


def check_output(output: Any, source: str, batch: int, one: Any) -> None:
    """Raise ModelError unless an output is one float32 tensor with the batch first, and like ``one`` if given."""
    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"[model] {source} returns {describe_output(output)}; a packaged model returns tensors",
            hint=_output_hint(output),
        )
    shape = tuple(output.shape)
    if 0 in shape[1:]:
        raise ModelError(
            f"[model] {source} returns a tensor without values: its shape is {shape}",
            hint="return what the model is for; a slice like y[:, :0] is empty",
        )
    if output.ndim >= 1 and shape[0] == batch and output.dtype == torch.float32:
        if one is None or shape[1:] == tuple(one.shape[1:]):
            return
        raise ModelError(
            f"[model] {source} returns {tuple(one.shape)} for one sample and {shape} for a batch of {batch}: "
            "the shape of a sample's output depends on the batch",
            hint="forward must treat every sample of the batch in the same way",
        )
    what = f"[model] {source} returns {dtype_of(output)} of shape {shape} for a batch of {batch}"
    if output.dtype != torch.float32:
        raise ModelError(f"{what}; the output must be float32", hint=dtype_hint(output))
    if one is not None:
        raise ModelError(
            f"{what}, and {tuple(one.shape)} for one sample: its code fixes the batch size",
            hint="take the batch from the input: x.shape[0], x.flatten(1), or -1 in view and reshape",
        )
    raise ModelError(
        f"{what}; the first dimension of a float output must be the batch",
        hint="models that are not batch_first: an [[input]] with batch_dim = 1; keep the batch: mean(dim=...), not "
        "mean()",
    )


def dtype_hint(output: torch.Tensor) -> str:
    """Return what to do about an output that is not float32."""
    if output.is_complex():
        return "return real numbers: torch.view_as_real(y), or y.abs()"
    if output.is_floating_point():
        return "end forward with .float()"
    return "return the scores, not their argmax: INT8 is judged by how far they are from FP32's"


def dtype_of(tensor: torch.Tensor) -> str:
    """Return the dtype as torch writes it."""
    return str(tensor.dtype)


def describe_output(value: Any) -> str:
    """Describe what a model returned. For a container, list its entries with names, types and shapes."""
    if isinstance(value, torch.Tensor):
        return f"{dtype_of(value).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return _of(value, f"a {type(value).__name__}", [(repr(key), each) for key, each in value.items()])
    if dataclasses.is_dataclass(value):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return _of(value, f"a {type(value).__name__}", fields)
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or [f"[{index}]" for index in range(len(value))]
        return _of(value, f"a {type(value).__name__} of {len(value)}", list(zip(names, value, strict=True)))
    if type(value).__module__ == "numpy":
        return f"a numpy {type(value).__name__} of shape {getattr(value, 'shape', ())}"
    return "None" if value is None else f"a {type(value).__name__}"


def _of(value: Any, kind: str, entries: list[tuple[str, Any]]) -> str:
    listed = ", ".join(f"{name} {describe_output(each)}" for name, each in entries[:_LISTED])
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return f"{kind} ({listed}{more})" if entries else f"an empty {type(value).__name__}"


def _output_hint(value: Any) -> str:
    """Return what to change in forward."""
    if value is None:
        return "forward must end with return y"
    if type(value).__module__ == "numpy":
        return "stay in torch: leave out .numpy()"
    return _WRAP
