"""The job of a worker process: the model, the data, the setting. The parent writes it to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from cpupack.runtime.accuracy import sqnr_db
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.signature import INPUT, Signature
from cpupack.runtime.tune.space import Setting

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Batch = Array | tuple[Array, ...]
"""Samples as the job has them, or the model's arguments of a batch."""

_SAME_MODEL_DB = 60.0
"""FP32 outputs of one model in two processes agree at least this well. Threads may add in another order."""
_CHECKED_SAMPLES = 4
_BUFFER_BYTES = 128 * 2**20


class PeerError(Exception):
    """An engine cannot take part for the reason in the text. The comparison continues without it."""


class Pool(Protocol):
    """Serves an engine: ``runtime.bench.scenarios.Pool`` with a method that converts batches for the engine."""

    @property
    def instances(self) -> int: ...

    def submit(self, batch: Any, instance: int | None = None) -> Any:
        """Queue one batch. The result of the future is the output, a tensor or an array ``(n, *output_shape)``; of
        several outputs a list in their order, or a dict by name."""

    def adapt(self, batch: Batch) -> Any:
        """Convert a batch of the job to the type and memory layout that is fastest for the engine."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Data:
    """Samples in a file: ``.npy``, uint8 ``(n, height, width, channels)`` with ``preprocess``, else float32."""

    path: str
    count: int
    preprocess: dict[str, Any] | None

    def load(self, rows: slice) -> Array:
        """Return a copy of the stored samples."""
        return np.array(np.load(self.path, mmap_mode="r")[rows])

    def floats(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return model inputs, float32 ``(n, *input_shape)``, normalized."""
        return self.normalized(self.load(rows))

    def normalized(self, stored: Array) -> npt.NDArray[np.float32]:
        """Return stored samples as model inputs; pixels come out with the strides of channels_last."""
        return normalize(stored, PreprocessSpec.from_dict(self.preprocess)) if self.preprocess else stored


@dataclass(frozen=True)
class Job:
    """One engine's work in one process. ``build`` writes its model into ``directory`` for ``open_pool``.

    ``weights`` is the state dict of the FP32 model, ``reference`` its outputs on the evaluation samples (``.npy``).
    ``input_kind`` is ``float32`` (batches are already normalized) or ``uint8`` (the engine gets pixels, and normalizing
    is part of its time). ``package`` is ``{source, import_name}`` of the compared wheel. ``cores`` is the number of
    cores that the engine may use. ``activation_bits`` is 7 if 8 would saturate on this CPU. ``signature`` has the lists
    ``inputs`` and ``outputs`` of a manifest, None for one float input and one output. With several inputs the samples
    are rows of them, and ``arguments`` takes these apart.
    """

    engine: str
    directory: str
    recipe_path: str
    recipe_text: str
    weights: str
    input_shape: tuple[int, ...]
    calibration: Data | None
    calibration_batch: int
    evaluation: Data
    reference: str
    package: dict[str, str]
    dynamic: bool
    cores: int
    activation_bits: int
    input_kind: str = "float32"
    threads: int = 1
    instances: int = 1
    batch_size: int = 1
    single: bool = False
    signature: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what ``write`` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("calibration", "evaluation"):
            fields[name] = Data(**fields[name]) if fields[name] else None
        fields["input_shape"] = tuple(fields["input_shape"])
        return cls(**fields)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def at(self, setting: Setting, *, single: bool = False) -> Job:
        """Return the job with a setting. ``single`` means one request at a time."""
        return replace(
            self,
            threads=setting.threads,
            instances=setting.instances,
            batch_size=setting.batch_size,
            single=single,
        )

    @property
    def work(self) -> Path:
        return Path(self.directory)

    @cached_property
    def named(self) -> Signature | None:
        """The inputs and outputs by name, None for one float input and one output."""
        return None if self.signature is None else Signature.from_dicts(**self.signature)

    @property
    def takes_rows(self) -> bool:
        """Whether the samples are rows of several inputs, or of one that is not float32."""
        return self.named is not None and self.named.takes_rows

    @property
    def open_inputs(self) -> tuple[int, ...]:
        """Which inputs have a length of their own for each sample: their first dimension, after the batch."""
        return (
            () if self.named is None else tuple(n for n, each in enumerate(self.named.inputs) if each.pad is not None)
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the model's arguments, in their order."""
        if self.named is None:
            return (INPUT,)
        specs = enumerate(self.named.inputs)
        return tuple(each.name if each.name.isidentifier() else f"input_{number}" for number, each in specs)

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """The shape of a sample of each argument."""
        return [self.input_shape] if self.named is None else [each.shape for each in self.named.inputs]

    @property
    def output_count(self) -> int:
        return 1 if self.named is None else len(self.named.outputs)

    def arguments(self, batch: Batch) -> tuple[Array, ...]:
        """Return the model's arguments of a batch, each ``(n, *shape)`` and contiguous. Pixels are normalized.

        Arguments are returned as they are.
        """
        if isinstance(batch, tuple):
            return batch
        if not self.takes_rows:
            return (np.ascontiguousarray(self.floats(batch)),)
        from cpupack.peers.named import arrays_of

        assert self.named is not None
        return tuple(arrays_of(self.named, batch))

    def prepared(self, batch: Batch) -> Any:
        """Return a batch as ``Pool.adapt`` gives it: rows are taken apart to arguments before the clock starts."""
        if isinstance(batch, tuple) or self.takes_rows:
            return self.arguments(batch)
        return np.ascontiguousarray(batch)

    def outputs(self, result: Any) -> list[Array]:
        """Return the outputs in their order, float32 ``(n, *shape)`` each, of what an engine gave for a batch."""
        if isinstance(result, Mapping):
            assert self.named is not None
            result = [result[each.name] for each in self.named.outputs]
        several = result if isinstance(result, list | tuple) else [result]
        if len(several) != self.output_count:
            raise PeerError(f"it gives {len(several)} outputs where the model has {self.output_count}")
        return [np.array(each, np.float32) for each in several]

    def model(self) -> torch.nn.Module:
        """Return the FP32 model of the recipe with the weights that the build loaded.

        It takes ``arguments``, and gives one tensor or a tuple of all outputs. Raises PeerError when its outputs differ
        from those of the build.
        """
        import torch

        from cpupack.model.signature import fit_signature
        from cpupack.model.sources import build_module
        from cpupack.peers.named import with_named_inputs
        from cpupack.progress import SilentProgress
        from cpupack.recipe import LoadedRecipe
        from cpupack.recipe.file import parse_recipe

        path = Path(self.recipe_path)
        recipe, problems, text = parse_recipe(self.recipe_text, str(path), path.parent)
        if recipe is None:
            raise PeerError("; ".join(text for _, text in problems))
        torch.manual_seed(recipe.model.seed)
        module = build_module(LoadedRecipe(recipe=recipe, path=path, text=text), SilentProgress())
        module.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))
        module.eval().requires_grad_(requires_grad=False)
        fitted = fit_signature(module, recipe.model.source, recipe, SilentProgress())
        module = fitted.module
        rows = slice(0, _CHECKED_SAMPLES)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(self.evaluation.floats(rows)))).numpy()
        if sqnr_db(np.load(self.reference)[rows], outputs) < _SAME_MODEL_DB:
            raise PeerError("the recipe's factory returns a different model each time; make it deterministic")
        return with_named_inputs(module, fitted.signature, self.input_names)

    def examples(self, count: int) -> tuple[torch.Tensor, ...]:
        """Return the arguments of the first calibration samples as tensors. Raises PeerError without any."""
        import torch

        return tuple(torch.from_numpy(each) for each in self.arguments(next(self.calibration_batches(count))))

    def calibration_batches(self, batch_size: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the calibration data, float32 ``(<=n, *input_shape)``, contiguous. Raises PeerError without any.

        ``arguments`` makes the model's arguments of a batch.
        """
        if self.calibration is None:
            raise PeerError("it needs calibration data, but the recipe has none")
        size = batch_size or self.calibration_batch
        for start in range(0, self.calibration.count, size):
            yield np.ascontiguousarray(self.calibration.floats(slice(start, start + size)))

    def stored_batches(self) -> list[Array]:
        """Return distinct batches of evaluation samples to serve in rotation, the same for every engine.

        Several batches are used, because a single buffer would stay in the cache, unlike real input.
        """
        bytes_each = 4 * self.batch_size * int(np.prod(self.input_shape))
        count = max(3, min(16, _BUFFER_BYTES // bytes_each))
        data = np.load(self.evaluation.path, mmap_mode="r")
        rows = np.arange(count * self.batch_size).reshape(count, -1) % self.evaluation.count
        return [self.ready(np.array(data[each])) for each in rows]

    def ready(self, stored: Array) -> Array:
        """Return stored samples as input of the engine: normalized, or as pixels for ``uint8``."""
        return stored if self.input_kind == "uint8" else self.evaluation.normalized(stored)

    def floats(self, batch: Array) -> npt.NDArray[np.float32]:
        """Normalize a batch if it has pixels. A float32 batch is already normalized and returned unchanged."""
        return self.evaluation.normalized(batch) if batch.dtype == np.uint8 else batch
