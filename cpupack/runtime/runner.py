"""The packaged model as an object: it checks the package and the host, loads, warms up and predicts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import rows
from .arguments import MOST_SAMPLES, MOST_THREADS, whole_number
from .arrays import like_inputs
from .decoding import Decoders, together
from .engine.batches import FILE_TURNS
from .engine.contract import check_cpu, model_path, require_torch
from .engine.pool import InstancePool
from .engine.program import is_program
from .errors import InputError, RandomWeightsWarning, RunnerError
from .feed import Feed
from .handlers import keeps_theirs
from .images.inputs import mask_value
from .images.spec import PreprocessSpec
from .intake import Intake
from .labels import read_labels
from .manifest import Manifest, check_files, check_left_out, read_manifest
from .open_sizes import OpenSizes, Size, open_sizes_of
from .plan import decide as planning
from .plan.table import model_digest
from .signature import Signature, signature_of
from .spread import Spread
from .stream import Stream
from .tasks.answers import Answers
from .tasks.classification import Prediction as Prediction
from .tasks.embedding import Embedding
from .tasks.frame import Frame
from .text.inputs import text_rows, texts_of
from .text.texts import is_text
from .text.tokenizer import Tokenizer, Tokens
from .warn import warn


class Runner:
    """A packaged INT8 model, ready to predict.

    ``threads`` (of one instance), ``instances`` and ``batch_size`` override the plan; ``check=False`` skips
    hashing the files, never the checks of the host. ``check_finite=False`` skips looking for NaN, infinity and values
    above ``MOST_FLOAT`` in float input: INT8 has no code for them, so the model would answer as if they were ordinary
    numbers. Safe to call from several threads. Raises IntegrityError when a file is not the one built, HostError when
    this CPU or torch cannot run it correctly.
    """

    @keeps_theirs
    def __init__(
        self,
        package_dir: Path,
        *,
        threads: int | None = None,
        instances: int | None = None,
        batch_size: int | None = None,
        check: bool = True,
        check_finite: bool = True,
    ) -> None:
        self.manifest: Manifest = read_manifest(package_dir)
        check_cpu(self.manifest)
        threads, instances = (
            whole_number(name, value, MOST_THREADS) for name, value in (("threads", threads), ("instances", instances))
        )
        batch_size = whole_number("batch_size", batch_size, MOST_SAMPLES)
        self._package_dir, self._check_finite = package_dir, check_finite
        self._options: dict[str, Any] = {
            "threads": threads,
            "instances": instances,
            "batch_size": batch_size,
            "check": check,
            "check_finite": check_finite,
        }
        model = model_path(package_dir, self.manifest)
        engine = self.manifest.target["engine"]
        # Nothing in the file of a native program is code. So it may be read while it is hashed, half of a start.
        aside = (model,) if is_program(model, engine) else ()
        if check:
            check_files(package_dir, self.manifest, aside)
        self.sizes: OpenSizes | None = open_sizes_of(self.manifest)
        self.labels: tuple[str, ...] | None = read_labels(package_dir, self.manifest)
        preprocess = self.manifest.preprocess
        self._spec = None if preprocess is None else PreprocessSpec.from_dict(preprocess)
        self.signature: Signature = signature_of(self.manifest)
        self.tokenizer: Tokenizer | None = Tokenizer.of(package_dir, self.manifest)
        self.answers = Answers(package_dir, self.manifest, self.labels, self.signature, self.tokenizer)
        self._intake = Intake(
            self.manifest, self.signature, self._spec, self.sizes, self.tokenizer, check_finite=check_finite
        )
        self.plan = planning.decide(self.manifest, threads=threads, instances=instances, batch_size=batch_size)
        if self.manifest.random_weights:
            warn(
                f"{self.manifest.name} {self.manifest.version} has random weights: its predictions mean nothing",
                RandomWeightsWarning,
            )
        require_torch(self.manifest, model)
        mask = mask_value(self._spec) if self._spec is not None and self.manifest.pixel_input else None
        self._decoders = Decoders(self.plan.threads * self.plan.instances)
        with ExitStack() as opened:
            self.pool = self._pool(model, engine, mask, aside if check else ())
            opened.callback(self.pool.close)
            self._feed = Feed(
                self.signature, self._spec, self.tokenizer, self.manifest.pixel_input, self.pool.takes_rgb
            )
            self._spread = Spread(self.pool, self.plan, self._feed)
            if not self.pool.is_program:  # a program's first call is as fast as any other
                # torch prepares for each shape. Callers use two: full batches, and one input alone.
                for size in sorted({1, self.plan.batch_size}):
                    self.pool.warm(self.example(size))
            opened.pop_all()

    def _pool(self, model: Path, engine: str, mask: int | None, unchecked: Sequence[Path]) -> InstancePool:
        """Return the pool. The ``unchecked`` files are hashed while its threads load, by this one, which only waits."""

        def compare() -> None:
            check_left_out(self._package_dir, self.manifest, unchecked)

        plan = self.plan
        try:
            return InstancePool(model, engine, plan.threads, plan.instances, plan.cpus, mask, compare)
        except RunnerError:
            compare()  # a file that is not the one built fails in many ways: say that
            raise

    @keeps_theirs
    def predict(self, inputs: Any, top_k: int = 5, batch_size: int | None = None) -> Any:
        """Return the result for one input, or a list of results for a list of inputs.

        An input is an image (path, bytes, PIL image, uint8 array ``(height, width, channels)``), or for a
        model without preprocessing a float32 array of the input shape or the path of an ``.npy`` file. For a model
        with several inputs it is a dict of these by name, in which numbers and lists may be too, or the path of an
        ``.npz`` file. For a model with a tokenizer it is a text, or a pair of texts: a tuple of two, or a dict with
        ``text`` and ``text_pair``; where one is cut off, there is a TruncatedTextWarning. The result of a
        classification is a list of the ``top_k`` most probable classes (``Prediction``). Each other kind of task has a
        dataclass of its own, in pixels of the original image where it is about pixels; ``raw`` outputs are a mapping of
        arrays by name. Raises InputError.
        """
        if top_k is None:
            raise InputError("top_k is None; it must be a whole number from 1")
        top_k = whole_number("top_k", top_k)
        batch_size = whole_number("batch_size", batch_size, MOST_SAMPLES)
        many = isinstance(inputs, list | tuple) and not (self.tokenizer is not None and is_text(inputs))
        if many and not inputs:
            raise InputError("the list of inputs is empty; expected at least one")
        items = list(inputs) if many else [inputs]
        if self.tokenizer is not None:
            items = self._tokens(items, named=many)
        self.pool.check_usable()  # before threads for decoding, which a forked child could not start
        if self.answers.needs_frames:
            items = [_readable_twice(item, self.answers.image_name) for item in items]
        sizes = deque[Size | None]()
        if len(items) == 1:
            loaded = self.load(items[0])[None]
            sizes.append(self._feed.size_of(loaded))
            batches = iter([self._spread.alone(loaded)])
        else:
            size = batch_size or self._spread.share(len(items), FILE_TURNS)
            ahead = size * (self.plan.instances + 1)  # enough for every instance to find its next batch ready
            decoded = self._sized(self._decoders.each(items, self.load, ahead=ahead), sizes)
            batches = self._spread.run(
                together(decoded, lambda one: self._spread.most(one[None], size), self._feed.kind), size
            )
        # Each batch becomes results when it is there: maps of many images would not fit into memory together.
        each = (row for batch in batches for row in batch)
        found = [
            self.present(row, self.answers.frame(item), top_k, sizes.popleft())
            for item, row in zip(items, each, strict=True)
        ]
        return found if many else found[0]

    def _sized(self, samples: Iterator[npt.NDArray[Any]], sizes: deque[Size | None]) -> Iterator[npt.NDArray[Any]]:
        """Yield samples, and append the size of each to ``sizes``."""
        for each in samples:
            sizes.append(self._feed.size_of(each[None]))
            yield each

    @keeps_theirs
    def embed(self, inputs: Any, batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1, float32 ``(n, dimensions)``, or ``(dimensions,)`` for one input.

        Inputs are those of ``predict``. Raises InputError, also for a model whose task is not ``embedding``.
        """
        if self.answers.spec.kind != "embedding":
            raise InputError(f'embed is for models of kind "embedding"; this one is of kind "{self.answers.spec.kind}"')
        found = self.predict(inputs, batch_size=batch_size)
        return found.vector if isinstance(found, Embedding) else np.stack([each.vector for each in found])

    @keeps_theirs
    def tokenize(self, inputs: Any) -> Any:
        """Return the ``Tokens`` of a text or a pair, or a list of them for a list. ``predict`` takes them in its place.

        Raises InputError for what is no text, and for a model that takes none.
        """
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: it takes no text")
        if isinstance(inputs, list):
            return [self.tokenizer.tokens(item, f"text {number}") for number, item in enumerate(inputs)]
        return self.tokenizer.tokens(inputs)

    def _tokens(self, items: list[Any], *, named: bool) -> list[Any]:
        """Return the items of ``predict`` with tokens in place of texts. Warns of those that are cut off."""
        assert self.tokenizer is not None
        found = texts_of(self.tokenizer, items, named=named)
        self.tokenizer.warn_if_truncated([new for old, new in zip(items, found, strict=True) if new is not old])
        return found

    def size_of(self, sample: npt.NDArray[Any]) -> Size | None:
        """Return the size of a sample as ``load`` gives it; None for a package of one size."""
        return self._feed.size_of(sample[None])

    def kind_of(self, sample: npt.NDArray[Any]) -> Any:
        """Return what samples as ``load`` gives them must have in common to be in one batch."""
        return self._feed.kind(sample)

    def present(
        self, row: npt.NDArray[np.float32], frame: Frame | Tokens | None, top_k: int, size: Size | None = None
    ) -> Any:
        """Return what ``predict`` gives for one row of the engine's output. ``frame`` is that of ``answers.frame``, and
        ``size`` that of the sample.
        """
        outputs = {name: each[0] for name, each in self.signature.of_size(size).unpack(row[None]).items()}
        return self.answers.result(outputs, frame, top_k)

    @keeps_theirs
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the model's output for a batch, ``(n, ...)``; of a model with several a dict of them by name.

        A model with a tokenizer takes a text, or a list of texts and pairs, by itself; its output has a batch of one
        for one text.

        The only input is float32 ``(n, *input_shape)``, or uint8 pixels ``(n, height, width, channels)`` at the
        model's size. Several are given by position, by name, or as a dict. Outputs are tensors if an input is one, else
        arrays. Raises InputError saying what was expected.
        """
        if self.tokenizer is not None and len(inputs) == 1 and not named and text_rows(inputs[0]):
            texts = inputs[0] if isinstance(inputs[0], list) else [inputs[0]]
            tokens = self._tokens(texts, named=isinstance(inputs[0], list))
            return self.signature.result(self._spread.outputs(np.stack([self.load(each) for each in tokens])))
        if len(inputs) == 1 and not named and not isinstance(inputs[0], Mapping):
            given = {self.signature.inputs[0].name: inputs[0]}
        elif named.keys() == {"batch"} and not inputs and len(self.signature.inputs) == 1:
            given = {self.signature.inputs[0].name: named["batch"]}
        else:
            given = rows.by_name(self.signature, inputs, named)
        if self.signature.takes_rows:
            batch = rows.pack(self.signature, given, check_finite=self._check_finite)
        else:
            batch = self._intake.only(*given.values())
        result = self.signature.of_size(self._feed.size_of(batch)).result(self._spread.outputs(batch))
        return like_inputs(result, given)

    def stream(self, state: Mapping[str, Any] | None = None) -> Stream:
        """Return a new stream: sequences that are fed chunk by chunk, with the model's states carried along.

        ``state`` is that of another stream (``stream.state``), to go on from there. Raises InputError for a model that
        keeps no state, and for a state that does not fit.
        """
        return Stream(self.signature, self._spread.outputs, state, check_finite=self._check_finite)

    def replay(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what the engine gives for a batch as it takes it: pixels or floats of the only input, or rows."""
        if self.signature.takes_rows:
            expected = self.signature.engine_input_shape
            if batch.dtype != np.float32 or batch.shape[1:] != expected or batch.ndim != 2:
                raise InputError(f"got {batch.dtype} {batch.shape}; expected rows, float32 (n, {expected[0]})")
            return self._spread.outputs(self._intake.finite(batch))
        return self._spread.outputs(self._intake.only(batch))

    @keeps_theirs
    def load(self, item: Any) -> npt.NDArray[Any]:
        """Return one input of ``predict``, decoded: uint8 pixels, a float32 array, or a row of several inputs.

        Raises InputError.
        """
        return self._intake.load(item)

    def check_batch(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Raise InputError for a batch that the model does not take, saying what was expected."""
        self._intake.check_batch(dtype, shape)

    def finite(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the batch. Raises InputError that says which sample has a value that INT8 cannot hold, or no step."""
        return self._intake.finite(batch)

    def pixel_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one input of uint8 pixels, None for a model that takes no images."""
        return self._intake.pixel_shape()

    def most_samples(self, batch: npt.NDArray[Any], size: int) -> int:
        """Return how many samples like those of a batch go into one call, at most ``size``."""
        return self._spread.most(batch, size)

    def result_shape(self) -> tuple[int, ...]:
        """Return the shape of the engine's result for a sample, -1 where it changes with the size of the image."""
        return self.pool.result_shape() or self.signature.engine_output_shape

    def ready(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the pool takes for a batch as ``check_batch`` accepts it."""
        return self._feed.ready(batch)

    def example(self, batch_size: int) -> npt.NDArray[Any]:
        """Return a batch for the pool: random, and always the same."""
        return self._feed.example(batch_size)

    @property
    def checks_finite(self) -> bool:
        """Whether float input is searched for values that INT8 cannot hold."""
        return self._check_finite

    def close(self) -> None:
        """Stop the instances and free the model. The runner cannot be used afterwards."""
        self.pool.close()
        self._decoders.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as a runner that opens the package again, with the same arguments, where it is unpickled."""
        identity = (self.manifest.name, self.manifest.version, model_digest(self.manifest))
        return _reopen, (type(self), self._place(), self._options, identity)

    def _place(self) -> tuple[Any, ...]:
        """Return the arguments of the class that name the package. A package's own Runner takes none."""
        return (self._package_dir,)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<Runner {self.manifest.name} {self.manifest.version}: "
            f"{plan.instances} x {plan.threads} threads, batch {plan.batch_size}>"
        )


def _reopen(
    kind: type[Runner], place: tuple[Any, ...], options: dict[str, Any], identity: tuple[str, str, str]
) -> Runner:
    """Open the package of a pickled runner in this process. Raises RunnerError when it is another build of it."""
    runner = kind(*place, **options)
    manifest = runner.manifest
    found = (manifest.name, manifest.version, model_digest(manifest))
    if found != identity:
        runner.close()
        what = f"{found[0]} {found[1]}" if found[:2] != identity[:2] else "another build of that version"
        raise RunnerError(f"the runner was pickled for {identity[0]} {identity[1]}, and this process has {what}")
    return runner


def _readable_twice(item: Any, name: str) -> Any:
    """Return an input that can be read for its size and again for its pixels: a file object becomes its bytes.

    ``name`` is the image of several inputs.
    """
    if isinstance(item, Mapping):
        return {**item, name: _readable_twice(item[name], name)} if name in item else item
    if isinstance(item, str | os.PathLike) or not hasattr(item, "read"):
        return item
    from .images.preprocess import read_image

    return read_image(item)[0]
