"""The data and the model, from the recipe's FP32 module to the saved INT8 file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.fx

from cpupack.accuracy import FloatArray
from cpupack.artifacts.reports import LayerFact, LayerSaturation
from cpupack.layout import batch_channels_last, strictly_contiguous, weights_channels_last
from cpupack.metric import Metric
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.signature import Signature
from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.decode import Anchors
from cpupack.runtime.tasks.spec import TaskSpec, default_kind
from cpupack.runtime.text.spec import TextInput
from cpupack.statistics import ActivationStats
from cpupack.targets import Target


@dataclass(frozen=True)
class Samples:
    """Inputs in memory: pixels as uint8 (each batch is normalized when it is used), anything else as float32.

    ``data`` is uint8 ``(n, height, width, channels)`` when ``preprocess`` is set, else float32 ``(n, *input_shape)``.
    ``labels`` is int64 ``(n,)`` or None. ``targets`` ``(n, ...)`` has any dtype; a user's metric compares the outputs
    with it. It is None without a metric. ``names`` says where each sample came from. ``origin`` is the source as the
    recipe names it.
    """

    data: npt.NDArray[Any]
    origin: str
    names: tuple[str, ...]
    preprocess: PreprocessSpec | None = None
    labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    synthetic: bool = False
    targets: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        wanted = np.uint8 if self.preprocess else np.float32
        if self.data.dtype != wanted:
            raise TypeError(f"samples are {self.data.dtype}, not {np.dtype(wanted)}")
        parts = (self.names, self.labels, self.targets)
        if any(part is not None and len(part) != len(self.data) for part in parts):
            raise ValueError("data, names, labels and targets have different lengths")

    def __len__(self) -> int:
        return len(self.data)

    def spread(self, count: int) -> Samples:
        """Return ``count`` samples spread evenly over all of them, or all. Image folders are sorted by class."""
        return self if count >= len(self) else self.take(self.spread_rows(count))

    def spread_rows(self, count: int) -> npt.NDArray[np.int64]:
        """Return the indices of the samples that ``spread`` returns."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)

    def take(self, rows: npt.NDArray[np.int64]) -> Samples:
        """Return the samples with these indices."""
        return replace(
            self,
            data=self.data[rows],
            names=tuple(self.names[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
            targets=None if self.targets is None else self.targets[rows],
        )

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield float32 model inputs ``(<=batch_size, *input_shape)``, normalized, in order."""
        for start in range(0, len(self.data), batch_size):
            yield self.tensor(slice(start, start + batch_size))

    def tensor(self, rows: slice) -> torch.Tensor:
        """Return the model input for ``rows`` as float32."""
        chunk = self.data[rows]
        # A copy: a model may work in place on its input.
        return torch.from_numpy(normalize(chunk, self.preprocess) if self.preprocess else chunk.copy(order="C"))


@dataclass(frozen=True)
class FloatModel:
    """The FP32 model in eval mode, and what is known about its weights.

    ``module`` maps one float32 tensor to one; ``signature`` says which inputs and outputs these hold. Shapes have no
    batch dimension. ``weights_origin`` says which weights were loaded; ``random_weights`` is
    true when they were not trained. ``labels`` are names of classes or values, or None. ``task`` says what the outputs
    are, None for what their shapes say. ``anchors`` are those of a detector. ``tokenizer`` is
    that of a model that takes text. ``channels_last`` says that the user's code runs in that layout, too. ``sizes`` are
    the images that it takes, None for those of its shape alone.
    """

    module: torch.nn.Module
    signature: Signature
    weights_origin: str
    random_weights: bool
    weights_sha256: str | None
    parameters: int
    macs: int
    fp32_bytes: int
    labels: tuple[str, ...] | None = None
    task: TaskSpec | None = None
    anchors: Anchors | None = None
    tokenizer: TextInput | None = None
    channels_last: bool = True
    sizes: OpenSizes | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample that ``module`` takes."""
        return self.signature.engine_input_shape

    @property
    def kind(self) -> str:
        """The kind of the task."""
        if self.task is not None:
            return self.task.kind
        return default_kind({each.name: each.result_shape for each in self.signature.outputs})

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one sample that ``module`` gives."""
        return self.signature.engine_output_shape

    def fast_module(self) -> torch.nn.Module:
        """Return ``module`` with its weights in the layout that is fastest, changed in place."""
        return weights_channels_last(self.module) if self.channels_last else self.module

    def fast_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch in the layout in which ``fast_module`` takes it."""
        return batch_channels_last(batch) if self.channels_last else strictly_contiguous(batch)


@dataclass(frozen=True)
class Reference:
    """The FP32 model's outputs ``(n, *output_shape)`` on the samples for comparing INT8 with FP32.

    ``signature`` says which outputs these hold. ``metric`` is that of the recipe, None if it names none. ``kind`` is
    that of the task; ``presenter`` makes its results, None for a classification. ``confident`` says that gates are
    judged by intervals. ``macs`` are the multiply-adds of a sample.
    """

    samples: Samples
    outputs: FloatArray
    signature: Signature
    metric: Metric | None = None
    kind: str = "classification"
    presenter: Presenter | None = None
    confident: bool = False
    macs: int = 0


@dataclass(frozen=True)
class CapturedModel:
    """The FP32 model as a canonical graph (``docs/explanation/capture.md``).

    ``style`` is ``fx`` (``module`` is a torch.fx GraphModule), or ``eager`` for a model with its own quant stubs, or
    ``dynamic``; of these two ``module`` is the user's. ``example`` is float32 ``(3, *input_shape)``, of the calibration
    samples. ``output_places`` says where each of several outputs is in a row of them; empty for one output. ``graph``
    is the canonical graph beside a ``dynamic`` module, for the native engine; None where that engine is not wanted or
    the model cannot be captured.
    """

    module: torch.nn.Module
    style: str
    example: torch.Tensor
    output_places: tuple[slice, ...] = ()
    graph: torch.fx.GraphModule | None = None


@dataclass(frozen=True)
class FusedModel:
    """The FP32 model with its chains fused.

    ``style`` is that of ``CapturedModel``; a ``dynamic`` module is untouched. ``chains`` holds the fused names.
    ``max_abs_diff`` is the largest difference of FP32 outputs before and after. ``graph`` is that of ``CapturedModel``,
    with all its chains fused.
    """

    module: torch.nn.Module
    style: str
    chains: tuple[tuple[str, ...], ...]
    max_abs_diff: float
    max_abs_output: float
    graph: torch.fx.GraphModule | None = None

    @property
    def canonical(self) -> torch.fx.GraphModule | None:
        """The captured graph; None for a model that has none."""
        return self.module if isinstance(self.module, torch.fx.GraphModule) else self.graph

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample as the captured graph takes it; None for a model that has no graph."""
        graph = self.canonical
        source = None if graph is None else next(node for node in graph.graph.nodes if node.op == "placeholder")
        shape = None if source is None else source.meta.get("shape")
        return None if shape is None else tuple(shape[1:])


@dataclass(frozen=True)
class RecurrentSqnr:
    """What is left of a recurrent layer's outputs, in dB: with codes of 8 bits, and with inputs of 16 bits."""

    codes_db: float
    wide_inputs_db: float


@dataclass(frozen=True)
class CalibratedModel:
    """The fused FP32 model with the statistics of its activations. Every engine uses the same.

    ``stats`` is keyed by the captured graph's node names (style ``fx``) or by module names (style ``eager``); empty for
    ``dynamic``. ``origin`` names the data, ``samples`` is their number. ``recurrent_sqnr_db`` has for each recurrent
    layer of the graph, by its node's name, what fewer bits leave of its outputs. ``divisors`` has for a linear layer
    over tokens what each input channel is divided by before it becomes codes, float32 ``(in,)``: its weights are
    multiplied with it. ``rows`` has for a linear layer some rows of what it reads, float32 ``(n, in)``, the
    same tensor for all layers that read the same. ``grid`` is the length of a sample, and how many values a stored row
    of a constant has that is for pairs of positions, so that the programs of all lengths can share it; None for rows
    side by side. ``choices`` are those of the ``NativeModel`` of another size, whose program is to differ in numbers
    alone, and ``tables`` constants of the largest size, by layer, which the programs of all sizes can share.
    """

    fused: FusedModel
    stats: dict[str, ActivationStats]
    samples: int
    origin: str
    recurrent_sqnr_db: dict[str, RecurrentSqnr] = field(default_factory=dict)
    divisors: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    choices: Mapping[Any, float] | None = None
    tables: Mapping[int, npt.NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class QuantizedModel:
    """An INT8 module for one target. ``notes`` and ``float_reasons`` (by module name) say what stayed FP32 and why.

    ``module`` takes float32 inputs. A ``PixelModel`` (``pixel_input``) also takes uint8 pixels with a mask channel.
    ``layers`` is filled by an engine that runs the whole network as one operator, because its module shows no layers.
    ``sums`` describes the 16-bit sums of layers whose weights were chosen so that no input can overflow them.
    """

    module: torch.nn.Module
    target: Target
    notes: tuple[str, ...] = ()
    pixel_input: bool = False
    float_reasons: dict[str, str] = field(default_factory=dict)
    layers: tuple[LayerFact, ...] = ()
    sums: tuple[LayerSaturation, ...] = ()


@dataclass(frozen=True)
class ScriptedModel:
    """A saved, frozen TorchScript file for one target, with the counts of its operators.

    ``torch_reason`` says why running it takes torch, None where it does not.
    """

    path: Path
    target: Target
    size_bytes: int
    int8_operators: int
    fp32_operators: int
    operators: dict[str, int] = field(default_factory=dict)
    pixel_input: bool = False
    torch_reason: str | None = "its engine is torch's"
