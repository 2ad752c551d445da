"""What a worker process is told: the model, the data, the setting. Read from the file that the parent wrote."""

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
"""FP32 outputs of one model in two processes agree at least this well: other threads add in another order."""
_CHECKED_SAMPLES = 4
_BUFFER_BYTES = 128 * 2**20


class PeerError(Exception):
    """An engine cannot take part; the text says why. The comparison goes on without it."""


class Pool(Protocol):
    """What serves an engine: ``runtime.bench.scenarios.Pool``, and how to turn a batch into what it takes."""

    @property
    def instances(self) -> int: ...

    def submit(self, batch: Any, instance: int | None = None) -> Any:
        """Queue one batch; the future's result is the output, a tensor or an array ``(n, *output_shape)``."""

    def adapt(self, batch: Array) -> Any:
        """Turn a batch as the job has it into the container and memory layout that the engine likes best."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Data:
    """Samples in a file: ``.npy``, uint8 ``(n, height, width, channels)`` with ``preprocess``, else float32."""

    path: str
    count: int
    preprocess: dict[str, Any] | None

    def load(self, rows: slice) -> Array:
        """Return the samples as they are stored, copied from the file."""
        return np.array(np.load(self.path, mmap_mode="r")[rows])

    def floats(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return model inputs, float32 ``(n, *input_shape)``, normalized."""
        return self.normalized(self.load(rows))

    def normalized(self, stored: Array) -> npt.NDArray[np.float32]:
        """Return stored samples as model inputs; pixels come out with the strides of channels_last."""
        return normalize(stored, PreprocessSpec.from_dict(self.preprocess)) if self.preprocess else stored


@dataclass(frozen=True)
class Job:
    """One engine's work in one process. ``directory`` keeps what ``build`` makes for ``open_pool``.

    ``weights`` is the state dict of the FP32 model, ``reference`` its outputs on the evaluation samples (``.npy``).
    ``input_kind`` is ``float32`` (batches are normalized beforehand) or ``uint8`` (the engine is given pixels, and
    normalizing is part of its time). ``package`` is ``{source, import_name}`` of the wheel under comparison.
    ``cores`` are those it may use; ``activation_bits`` is 7 where 8 would saturate on this CPU.
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
        """Return the job with a setting; ``single`` for one request at a time."""
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

        Raises PeerError when it does not answer as the build's did.
        """
        import torch

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
        rows = slice(0, _CHECKED_SAMPLES)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(self.evaluation.floats(rows)))).numpy()
        if sqnr_db(np.load(self.reference)[rows], outputs) < _SAME_MODEL_DB:
            raise PeerError("the recipe gives another model each time it is made; make its factory deterministic")
        return module

    def calibration_batches(self, batch_size: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the calibration data, float32 ``(<=n, *input_shape)``, contiguous. Raises PeerError without any."""
        if self.calibration is None:
            raise PeerError("it needs calibration data, and the recipe has none")
        size = batch_size or self.calibration_batch
        for start in range(0, self.calibration.count, size):
            yield np.ascontiguousarray(self.calibration.floats(slice(start, start + size)))

    def stored_batches(self) -> list[Array]:
        """Return distinct batches of evaluation samples to serve in rotation, the same for every engine.

        Several are used in turn, since one buffer again and again would sit in the cache as no real input does.
        """
        bytes_each = 4 * self.batch_size * int(np.prod(self.input_shape))
        count = max(3, min(16, _BUFFER_BYTES // bytes_each))
        data = np.load(self.evaluation.path, mmap_mode="r")
        rows = np.arange(count * self.batch_size).reshape(count, -1) % self.evaluation.count
        return [self.ready(np.array(data[each])) for each in rows]

    def ready(self, stored: Array) -> Array:
        """Return stored samples as they are handed to the engine: normalized, or as pixels for ``uint8``."""
        return stored if self.input_kind == "uint8" else self.evaluation.normalized(stored)

    def floats(self, batch: Array) -> npt.NDArray[np.float32]:
        """Normalize what ``ready`` left for the engine to do; what is float32 already comes back as it is."""
        return self.evaluation.normalized(batch) if batch.dtype == np.uint8 else batch
