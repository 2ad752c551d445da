"""QuantizedModel -> ScriptedModel: traces, freezes and saves it, and counts INT8 operators. Only use of torch.jit."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.artifacts import FloatModel, QuantizedModel, ScriptedModel
from cpupack.errors import QuantizationError
from cpupack.graph.names import is_plain
from cpupack.graph.native_model import CONVERSIONS, FP32_PREFIX, MixedModel, NativeModel
from cpupack.graph.open_sizes import open_sizes
from cpupack.graph.pixel_model import PixelModel
from cpupack.layout import batch_channels_last
from cpupack.model.user_code import describe_failure
from cpupack.operators import OperatorCounter
from cpupack.quantized_engine import engine
from cpupack.runtime.engine.library import OPERATOR
from cpupack.runtime.engine.program import PROGRAM_NOTE, note_text, read_program, stored_program
from cpupack.runtime.errors import IntegrityError
from cpupack.wheel.saved_model import without_debug

_PROGRAM_RECORD = "constants/0"
"""Where ``torch.jit.save`` puts the only constant of a frozen module."""

_NAMES_SHOWN = 5
"""Layers that are named as the reason why a wheel needs torch; the rest is counted."""


def script(
    quantized: QuantizedModel, input_shape: tuple[int, ...], path: Path, sample: torch.Tensor | None = None
) -> ScriptedModel:
    """Trace and freeze the INT8 module and save it at ``path``.

    ``sample``, float32 ``(1, *input_shape)``, is what the trace runs on. Without it that is noise, which a model of
    token ids does not take.

    Raises QuantizationError, with the user's line, when the module does not run or cannot be traced, and when it has no
    INT8 operator.
    """
    example = _example(input_shape) if sample is None else batch_channels_last(sample)
    with engine(quantized.target.engine), _quiet():
        try:
            operators, int8, fp32 = count_operators(quantized.module, example)
            if isinstance(quantized.module, NativeModel | MixedModel):  # torch sees it as one operator
                own = quantized.module.operators
                floats = sum(
                    count for name, count in own.items() if name.startswith(FP32_PREFIX) and name not in CONVERSIONS
                )
                int8 = sum(own.values()) - floats - sum(own.get(name, 0) for name in CONVERSIONS)
                fp32 += floats
                operators.pop(OPERATOR)
                operators = dict(sorted((operators | own).items()))
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise QuantizationError(
                f"the {quantized.target.engine} model does not run: {describe_failure(error)}",
                hint="an operator has no INT8 form: keep its module in FP32 with [quantize] skip, or, if the model has "
                "its own QuantStub and DeQuantStub, move it outside them",
            ) from error
        if int8 == 0:
            raise QuantizationError(
                f"nothing in this model runs in INT8 on {quantized.target.engine}",
                hint="[quantize] skip names too many modules, or no operator of the model has an INT8 form",
            )
        save(quantized.module, example, path)
    return ScriptedModel(
        path,
        quantized.target,
        path.stat().st_size,
        int8,
        fp32,
        operators,
        pixel_input=quantized.pixel_input,
        torch_reason=why_torch(quantized),
    )


def why_torch(quantized: QuantizedModel) -> str | None:
    """Return why a wheel of this model needs torch, None where the native engine runs all of it."""
    module, engine = quantized.module, quantized.target.engine
    if not isinstance(module, NativeModel | MixedModel):
        return f"torch runs the model: {engine} is an engine of torch"
    if isinstance(module, NativeModel) and module.is_program:
        return None
    names = [fact.name for fact in quantized.layers if fact.kernel == "aten"]
    if not names:
        return "torch changes the shape of the model's input or output"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"torch runs the layers that stay FP32: {', '.join(names[:_NAMES_SHOWN])}{more}"


class _Contiguous(nn.Module):
    """A model that takes batches of any layout, for code that runs on contiguous ones alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(x.clone(memory_format=torch.contiguous_format))


def script_float(model: FloatModel, path: Path, sample: torch.Tensor | None = None) -> Path:
    """Trace the loaded FP32 model on ``sample`` and save it without freezing. Speed is compared with this model.

    Returns ``path``.
    """
    example = batch_channels_last(_example(model.input_shape) if sample is None else sample)
    module = model.fast_module()
    save(module if model.channels_last else _Contiguous(module), example, path, freeze=False)
    return path


def save(module: nn.Module, example: torch.Tensor, path: Path, *, freeze: bool = True) -> None:
    """Trace ``module`` and save it at ``path`` as TorchScript.

    A ``NativeModel`` that is a program alone also says where in the file its program is, for the runner without torch.
    Raises QuantizationError when the module cannot be traced.
    """
    program, notes = None, {}
    if freeze and isinstance(module, NativeModel) and module.is_program:
        program = module.get_buffer("program")
        notes[PROGRAM_NOTE] = note_text(_PROGRAM_RECORD, module.lengths, module.layout, module.sizes)
    try:
        with torch.inference_mode(), _quiet():
            traced = _trace(module.eval(), example)
            if freeze:
                traced = torch.jit.freeze(traced.eval())
            # Not to the path: where the disk is full, torch's writer ends the process instead of raising an error.
            saved = traced.save_to_buffer(_extra_files=notes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise QuantizationError(
            f"the model cannot be turned into TorchScript: {describe_failure(error)}",
            hint="its forward must be a fixed sequence of torch operators",
        ) from error
    path.write_bytes(without_debug(saved) if freeze else saved)
    if program is not None:
        _check_program(path, program)


def _check_program(path: Path, program: torch.Tensor) -> None:
    """Read the program back as the runner does. Raises QuantizationError when it is not the one that was saved."""
    try:
        read_program(path)
        found = stored_program(path)
    except IntegrityError as error:
        raise QuantizationError(f"the runner cannot read the saved model: {error}") from error
    if not np.array_equal(found, program.numpy()):
        raise QuantizationError(f"torch {torch.__version__} did not save the program as the record {_PROGRAM_RECORD}")


def count_operators(module: nn.Module, example: torch.Tensor) -> tuple[dict[str, int], int, int]:
    """Run ``module`` once. Return the number of calls of each operator, and how many computed in INT8 and in FP32.

    Conversions and changes of layout are in the table but in neither sum. A call is INT8 when its operator is in
    torch's ``quantized`` namespace or when it works on a quantized tensor.
    """
    with OperatorCounter() as counter, torch.inference_mode():
        module(example)
    return dict(sorted(counter.calls.items())), counter.int8.total(), counter.fp32.total()


def _example(input_shape: tuple[int, ...]) -> torch.Tensor:
    return batch_channels_last(torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)))


def _trace(module: nn.Module, example: torch.Tensor) -> Any:
    """Trace a module. Of a ``PixelModel``, trace the parts and script the code that chooses between them."""
    if not isinstance(module, PixelModel):
        return _traced(module, example)
    pixels = torch.zeros(1, example.shape[1] + 1, *example.shape[2:], dtype=torch.uint8)
    stem = module.float_stem(example)
    parts = (
        _traced(module.pixel_stem, batch_channels_last(pixels)),
        _traced(module.float_stem, example),
        _traced(module.body, stem),
    )
    return torch.jit.script(PixelModel(*parts).eval())


def _traced(module: nn.Module, example: torch.Tensor) -> Any:
    open_sizes(module)
    unplain = _unplain_name(module)
    if unplain is None:
        return torch.jit.trace(module, example, check_trace=False)
    if any(True for each in module.modules() if type(each).__module__.startswith("torch.ao.nn.quantized")):
        raise QuantizationError(
            f"TorchScript, in which a wheel of torch's engines has its model, cannot hold the name {unplain!r}",
            hint="rename it: ASCII, no keyword of Python, no quotes",
        )
    return torch.jit.trace(_Nameless(module).eval(), example, check_trace=False)


def _unplain_name(module: nn.Module) -> str | None:
    """Return a name that TorchScript saves without a word and cannot read again, None where there is none."""
    paths = [name for name, _ in [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]]
    kinds = [f"{type(each).__module__}.{type(each).__qualname__}" for each in module.modules()]
    return next((part for path in [*paths, *kinds] for part in path.split(".") if not is_plain(part)), None)


class _Nameless(nn.Module):
    """Hides a module from the tracer, so that its weights become constants and its names are not saved."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._hidden = (copy.deepcopy(module).requires_grad_(requires_grad=False),)  # a constant has no gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._hidden[0](x)
        return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecation warnings, and the tracer's warnings about values that become constants.

    torch warns about quantized tensors once per process, when the first is created. That may be here. A trace that
    depends on its example is found by verification, which compares other inputs and batch sizes. The tracer reads each
    property of each module: those of transformers warn that they are deprecated, or that a loss is not known.
    """
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
            warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor.*are deprecated")
            warnings.filterwarnings(
                "ignore",
                category=torch.jit.TracerWarning,  # type: ignore[attr-defined]  # public, not in __all__
            )
            yield
    finally:
        library.setLevel(level)
