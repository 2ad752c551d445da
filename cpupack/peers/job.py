"""The job of a worker process: the model, the data, the setting. The parent writes it to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from cpupack.runtime.accuracy import sqnr_db
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.tune.space import Setting

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

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
        """Queue one batch. The result of the future is the output, a tensor or an array ``(n, *output_shape)``."""

    def adapt(self, batch: Array) -> Any:
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
    cores that the engine may use. ``activation_bits`` is 7 if 8 would saturate on this CPU.
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

    def model(self) -> torch.nn.Module:
        """Return the FP32 model of the recipe with the weights that the build loaded.

        Raises PeerError when its outputs differ from those of the build.
        """
        import torch

        from cpupack.model.signature import fit_signature
        from cpupack.model.sources import build_module
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
        # Where the one output is in a dict or a tuple, this takes it out.
        module = fit_signature(module, recipe.model.source, recipe, SilentProgress()).module
        rows = slice(0, _CHECKED_SAMPLES)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(self.evaluation.floats(rows)))).numpy()
        if sqnr_db(np.load(self.reference)[rows], outputs) < _SAME_MODEL_DB:
            raise PeerError("the recipe's factory returns a different model each time; make it deterministic")
        return module

    def calibration_batches(self, batch_size: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the calibration data, float32 ``(<=n, *input_shape)``, contiguous. Raises PeerError without any."""
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
