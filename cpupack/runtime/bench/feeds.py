"""Feeds the model in a bench: made-up batches, or files through the whole runner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..engine.contract import model_path
from ..engine.crew import Crew
from ..engine.pool import InstancePool
from ..errors import InputError
from ..manifest import Manifest
from ..names import files_below
from ..plan.decide import Plan
from ..random_rows import random_engine_input
from ..signature import signature_of
from ..text.made_up import FEWEST, text_batch
from ..text.spec import spec_of
from ..text.texts import read_lines, text_of, without_answers
from ..threads import Answer
from .scenarios import Pool

if TYPE_CHECKING:
    from ..random_rows import random_engine_input
from ..runner import Runner

_BUFFER_BYTES = 128 * 2**20
_NAMED = 5


@dataclass(frozen=True)
class Feed:
    """A pool that is ready, and its inputs. ``batches_of(size)`` are distinct batches, to be used in turn.

    ``samples`` is the number of distinct samples, and ``sample_batch(indices)`` makes a batch of any of them. ``kind``
    and ``text`` describe the input in a result. ``instances`` are the model's own instances, which the pool uses.
    """

    pool: Pool
    batches_of: Callable[[int], Sequence[Any]]
    samples: int
    sample_batch: Callable[[Sequence[int]], Any]
    kind: str
    text: str
    instances: InstancePool


@contextmanager
def open_made_up(package_dir: Path, manifest: Manifest, plan: Plan, seed: int) -> Iterator[Feed]:
    """Load the model and make inputs of ``plan.batch_size``, equal for equal seeds."""
    batches = make_batches(manifest, plan.batch_size, seed)

    def batches_of(size: int) -> list[npt.NDArray[Any]]:
        # Views: other parts of the same batches.
        return [batch[start : start + size] for batch in batches for start in range(0, len(batch) - size + 1, size)]

    def sample_batch(indices: Sequence[int]) -> npt.NDArray[Any]:
        # Slices and concatenate keep channels_last; stack would not.
        ones = [(batches[n // plan.batch_size], n % plan.batch_size) for n in indices]
        return np.concatenate([batch[at : at + 1] for batch, at in ones])

    with InstancePool(
        model_path(package_dir, manifest), manifest.target["engine"], plan.threads, plan.instances, plan.cpus
    ) as pool:
        yield Feed(
            pool=pool,
            batches_of=batches_of,
            samples=len(batches) * plan.batch_size,
            sample_batch=sample_batch,
            kind="uint8" if manifest.pixel_input else "float32",
            text=f"{len(batches)} distinct batches of {_made_of(manifest)}",
            instances=pool,
        )


@contextmanager
def open_files(package_dir: Path, plan: Plan, directory: Path, files: Sequence[Path], seed: int) -> Iterator[Feed]:
    """Open the package's Runner and feed it files in a random order drawn with ``seed``."""

    order = [str(files[index]) for index in np.random.default_rng(seed).permutation(len(files))]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    text = f"{len(order)} image files of {directory}, {size_mb:.1f} MB, decoded and preprocessed by the runner"
    with _open_items(package_dir, plan, order, "files", text) as feed:
        yield feed


@contextmanager
def open_texts(package_dir: Path, plan: Plan, path: Path, texts: Sequence[Any], seed: int) -> Iterator[Feed]:
    """Open the package's Runner and feed it texts in a random order drawn with ``seed``."""
    order = [texts[index] for index in np.random.default_rng(seed).permutation(len(texts))]
    size_kb = sum(text_of(each).size_bytes for each in texts) / 1e3
    text = f"{len(order)} texts of {path}, {size_kb:.1f} kB, made tokens of by the runner"
    with _open_items(package_dir, plan, order, "text", text) as feed:
        yield feed


@contextmanager
def _open_items(package_dir: Path, plan: Plan, order: Sequence[Any], kind: str, text: str) -> Iterator[Feed]:
    """Open the package's Runner and feed it items of ``predict`` in this order."""
    from ..runner import Runner

    def batches_of(size: int) -> list[list[Any]]:
        return [
            [order[(start + offset) % len(order)] for offset in range(size)] for start in range(0, len(order), size)
        ]

    runner = Runner(
        package_dir, threads=plan.threads, instances=plan.instances, batch_size=plan.batch_size, check=False
    )
    with runner, FilePool(runner, plan.instances) as pool:
        yield Feed(
            pool=pool,
            batches_of=batches_of,
            samples=len(order),
            sample_batch=lambda indices: [order[index] for index in indices],
            kind=kind,
            text=text,
            instances=runner.pool,
        )


def read_texts(path: Path, manifest: Manifest) -> list[Any]:
    """Return the texts of a file, one a line, or in JSON lines. Raises InputError."""
    if manifest.tokenizer is None:
        raise InputError(f"--from text:{path}: {manifest.name} takes no text")
    found = [text_of(without_answers(item), where) for where, item in read_lines(path)]
    if not found:
        raise InputError(f"--from text:{path}: the file holds no text")
    return found


class FilePool:
    """``Runner.predict`` as a pool: one client thread for each instance, and each waits for its own answers.

    One client decodes while the batch of another is computed. A batch is a list of paths; the answer has the
    predictions, or raises what ``predict`` raises.
    """

    def __init__(self, runner: Runner, clients: int) -> None:
        self.instances = clients
        self._runner = runner
        self._clients = [Crew() for _ in range(clients)]

    def submit(self, batch: list[str], instance: int | None = None) -> Answer[Any]:
        """Queue the files of one batch on a client."""
        return self._clients[instance or 0].submit(self._predict, batch)

    def _predict(self, batch: list[str]) -> Any:
        return self._runner.predict(batch, batch_size=len(batch))

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()


def list_images(directory: Path, manifest: Manifest) -> list[Path]:
    """Return every file below ``directory`` with an extension that Pillow opens, sorted.

    Raises InputError when it is no directory or cannot be read, holds no image, or the model takes no images.
    """
    if manifest.preprocess is None:
        raise InputError(f"--from images:{directory}: {manifest.name} takes arrays, not images")
    if not directory.is_dir():
        raise InputError(f"--from images:{directory}: no such directory")
    Image.init()
    extensions = {extension for extension, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    found = sorted(
        path for path in files_below(directory) if not path.name.startswith(".") and path.suffix.lower() in extensions
    )
    if not found:
        others = sorted(path.name for path in directory.iterdir())
        listed = ", ".join(others[:_NAMED]) + (" ..." if len(others) > _NAMED else "")
        raise InputError(
            f"--from images:{directory}: no file in it has an extension that Pillow opens; "
            + (f"it holds {listed}" if others else "it is empty")
        )
    return found


def make_batches(manifest: Manifest, batch_size: int, seed: int) -> list[npt.NDArray[Any]]:
    """Return distinct batches of what the model takes, equal for equal seeds.

    They are random pixels where there is preprocessing (uint8 for a model with ``pixel_input``, else normalized to
    float32), else standard normal values; of several inputs, rows of these, of ids of the vocabulary, and of masks of
    mostly ones. Several batches are used in turn, because a single one would stay in the
    cache, which real input does not.
    """
    bytes_each = (1 if manifest.pixel_input else 4) * math.prod((batch_size, *manifest.input_shape))
    count = max(3, min(16, _BUFFER_BYTES // bytes_each))
    generator, inputs = np.random.default_rng(seed), signature_of(manifest).inputs
    spec = spec_of(manifest)
    if spec is not None:
        return [text_batch(spec, inputs, generator, batch_size) for _ in range(count)]
    return [random_engine_input(inputs, generator, batch_size, pixel_input=manifest.pixel_input) for _ in range(count)]


def _made_of(manifest: Manifest) -> str:
    signature = signature_of(manifest)
    if (spec := spec_of(manifest)) is not None:
        return f"random tokens, {min(FEWEST, spec.max_length)} to {spec.max_length} in a text, each number as likely"
    if signature.takes_rows:
        return f"random values of {signature.inputs_text()}"
    if manifest.preprocess is None:
        return "standard normal values"
    return "random pixels" if manifest.pixel_input else "random uint8 pixels, normalized beforehand"
