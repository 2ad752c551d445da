"""A user's module through torch.export: a graph of ATen calls in which nothing works in place, and its constants.

Only the batch is dynamic. Whatever torch.export says goes to the user with the user's own line.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from cpupack.errors import ModelError
from cpupack.graph.needed import needed
from cpupack.model.user_code import describe_failure, is_library
from cpupack.stages.capture.exportable import GradientError, WithoutData, exportable
from cpupack.stages.capture.inplace import make_functional
from cpupack.stages.capture.made_of_numbers import MadeOfNumbers

HINT = "docs/how-to/capture-refused.md says what to change in a model that cannot be captured"
_LOGGING = Path(logging.__file__)
_LOST = "fake tensor in the exported program constant's list"
"""What torch.export says where it loses sight of values, as it does of those that go through ``x.data``."""
_SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"


@dataclass(frozen=True)
class Exported:
    """What export gives: an ATen ``graph`` with placeholders for constants too.

    ``constants`` maps their placeholders to (the user's name, the tensor). ``source`` is the input, ``result`` the node
    that the model returns. ``batch_lines`` are the user's lines that ask something of the batch size.
    """

    graph: fx.Graph
    constants: dict[fx.Node, tuple[str, torch.Tensor]]
    source: fx.Node
    result: fx.Node
    batch_lines: tuple[str, ...]


def export(module: nn.Module, example: torch.Tensor) -> Exported:
    """Export ``module``, in eval mode, for batches like ``example``, float32 ``(2 or more, *input_shape)``.

    Raises ModelError with the user's line where the model depends on the values of tensors, works for one batch size
    only, or changes its own state and answers by it.
    """
    states: dict[str, torch.Tensor] = {}
    while True:
        lines: list[str] = []
        program = _exported(module, example, list(states.values()), lines)
        source = _input_of(program)
        if not is_dynamic(source.meta["val"].shape[0]):
            raise batch_is_fixed(len(example), tuple(lines))
        with _quiet(lines):
            program = make_functional(program)
        changed = {name: module.get_buffer(name) for name in program.graph_signature.buffers_to_mutate.values()}
        if changed.keys() <= states.keys():
            return _taken_apart(program, tuple(dict.fromkeys(lines)))
        states |= changed  # once more: a number that is read out of these differs from call to call


def is_dynamic(size: object) -> bool:
    """Whether a size of an exported tensor changes with the batch."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def batch_is_fixed(size: int, lines: tuple[str, ...]) -> ModelError:
    """Return the error for a model whose code holds the batch size; ``lines`` are the user's that asked for it."""
    where = f": {lines[0]}" if lines else ""
    return ModelError(
        f"the model works for batches of {size} alone, its code fixes the batch size{where}",
        hint="take the batch from the input (x.shape[0], or -1 in a view) and do not loop over it. " + HINT,
    )


def _exported(
    module: nn.Module, example: torch.Tensor, states: list[torch.Tensor], lines: list[str]
) -> ExportedProgram:
    ways: list[Callable[[], contextlib.AbstractContextManager[object]]] = []
    while True:
        try:
            with torch.no_grad(), _quiet(lines), exportable([example, *states]), contextlib.ExitStack() as stack:
                for way in ways:
                    stack.enter_context(way())
                return torch.export.export(module, (example,), dynamic_shapes=(_sizes_like(module),), strict=False)
        # torch.export raises errors of many classes, its own among them; all are about the user's model.
        except Exception as error:
            other = _other_way(error)
            if other is None or other in ways:
                raise ModelError(_told(error), hint=_advice(error)) from error
            ways.append(other)


def _other_way(error: Exception) -> Callable[[], contextlib.AbstractContextManager[object]] | None:
    """Return what may mend an export that failed, None where nothing may. All exports would be slower with it."""
    if _LOST in str(error):
        return WithoutData
    return MadeOfNumbers if _depends_on_values(error) else None


def _sizes_like(module: nn.Module) -> Any:
    """Return which sizes of the input change, in the form of the argument that takes it: ``*args`` is a tuple."""
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    sizes = {0: Dim.AUTO}
    return (sizes,) if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL else sizes


def depends_on_values(where: str) -> ModelError:
    """Return the error for a line whose outcome no graph has; ``where`` names it, in brackets."""
    return ModelError(
        f"the model cannot be captured: a line depends on the values of a tensor{where}",
        hint="compute both ways and choose with torch.where, or keep that part out of the model that is packaged; or "
        'give the model its own QuantStub and DeQuantStub (eager mode), or use [quantize] mode = "dynamic". ' + HINT,
    )


def _depends_on_values(error: Exception) -> bool:
    return "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__


def _told(error: Exception) -> str:
    if _depends_on_values(error):
        return f"the model cannot be captured: a line depends on the values of a tensor{_line_of(error)}"
    return f"the model cannot be captured: {describe_failure(error)}"


def _advice(error: Exception) -> str:
    if isinstance(error, GradientError):
        return (
            "package what the gradient is of, and compute it outside; or write it out with the layers' own weights. "
            + HINT
        )
    if any(word in _line_of(error) for word in (".tolist()", "pack_padded_sequence")):
        return (
            "pass the tensor itself, not a list of its values: pack_padded_sequence, for example, takes lengths.cpu(). "
            + HINT
        )
    if _depends_on_values(error):
        return (
            "compute both ways and choose with torch.where, or keep that part out of the model that is packaged; or "
            'give the model its own QuantStub and DeQuantStub (eager mode), or use [quantize] mode = "dynamic". ' + HINT
        )
    return (
        "change that line so that it works on tensors of any batch; or give the model its own QuantStub and "
        'DeQuantStub (eager mode), or use [quantize] mode = "dynamic". ' + HINT
    )


def _line_of(error: Exception) -> str:
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f" ({_frame(theirs[-1])})" if theirs else ""


def _frame(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"


class _BatchLines(logging.Handler):
    """Notes the user's line at each place where torch.export learns something of the batch size."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if "guard added" not in record.getMessage():
            return
        theirs = [frame for frame in traceback.extract_stack() if not is_library(frame.filename)]
        inside = [frame for frame in theirs if frame.line and Path(frame.filename) != _LOGGING]
        if inside:
            self._lines.append(_frame(inside[-1]))


@contextlib.contextmanager
def _quiet(lines: list[str]) -> Iterator[None]:
    """Keep torch's logs and warnings of an export from the user, who gets the errors; note the lines about the batch.

    torch tells which line fixes a size in its log alone.
    """
    logger, torch_logger = logging.getLogger(_SHAPES_LOGGER), logging.getLogger("torch")
    handler = _BatchLines(lines)
    before = logger.level, logger.propagate, list(logger.handlers), torch_logger.level
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]
    torch_logger.setLevel(logging.CRITICAL)
    try:
        # torch prints the graph so far to stderr when an export fails
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        level, logger.propagate, logger.handlers, torch_level = before
        logger.setLevel(level)
        torch_logger.setLevel(torch_level)


def _input_of(program: ExportedProgram) -> fx.Node:
    names = program.graph_signature.user_inputs
    inputs: list[fx.Node] = [node for node in program.graph.nodes if node.op == "placeholder"]
    return next(node for node in inputs if node.name == names[0])


def _taken_apart(program: ExportedProgram, lines: tuple[str, ...]) -> Exported:
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    constants: dict[fx.Node, tuple[str, torch.Tensor]] = {}
    for spec in signature.input_specs:
        if spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}:
            assert spec.target is not None
            held: Any = program.state_dict.get(spec.target, program.constants.get(spec.target))
            constants[placeholders[spec.arg.name]] = spec.target, held.detach()
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    results = [
        node for node, spec in zip(outputs, signature.output_specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT
    ]
    _refuse_own_state(program, constants, results[0])
    return Exported(program.graph, constants, _input_of(program), results[0], lines)


_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def _refuse_own_state(
    program: ExportedProgram, constants: dict[fx.Node, tuple[str, torch.Tensor]], result: fx.Node
) -> None:
    """Refuse a model that changes a buffer and answers by it: each answer would depend on those before."""
    changed = set(program.graph_signature.buffers_to_mutate.values())
    if not changed:
        return
    read = needed(result)
    for node, (name, _) in constants.items():
        if name in changed and node in read:
            owner, _, last = name.rpartition(".")
            if last in _RUNNING:  # of TorchScript or an export that was made in training mode: others are in eval mode
                raise ModelError(
                    f"the batch norm {owner or name} is in training mode: it takes the statistics of each batch",
                    hint="call eval() on the module before it is exported, traced or scripted, and leave out "
                    "training=True",
                )
            raise ModelError(
                f"the model changes its own buffer {name} in each call and answers by it, so an answer depends on the "
                "calls before",
                hint="keep the state out of forward, or freeze it in eval mode. " + HINT,
            )
