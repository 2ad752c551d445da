"""The model as the server sees it: which tensors it takes, how a body becomes a batch, and what an output says."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import why_unread
from ..bench.server import shapes_up_to
from ..errors import InputError, RunnerError
from ..files import GOLDEN_NAME, UNREADABLE
from ..open_sizes import Size
from ..runner import Runner
from ..signature import OutputSpec, Signature
from ..tasks.scores import best_first
from ..tensor_spec import TensorSpec
from ..text.spec import TEXT, TEXT_PAIR
from .named import DATATYPES, Sample, image_file, rows_of, with_images
from .protocol import InferRequest, InputTensor, OutputTensor, WantedOutput
from .tensors import BYTES, DTYPES, Buffer
from .texts import TextSample, texts_of_tensors

IMAGE, TENSOR, ARRAY_FILE, NAMED, TEXTS = "image", "tensor", "npy", "named", "text"
"""Kinds of data: encoded images, samples that are ready, ``.npy`` files, samples of several inputs, texts."""


@dataclass(frozen=True)
class Data:
    """The samples of one request: an array of them, or encoded ones to be decoded in an instance's thread."""

    kind: str
    items: npt.NDArray[Any] | Sequence[Buffer | Sample | TextSample]

    @property
    def samples(self) -> int:
        return len(self.items)

    @property
    def size_bytes(self) -> int:
        if isinstance(self.items, np.ndarray):
            return self.items.nbytes
        return sum(each.size_bytes if isinstance(each, Sample | TextSample) else len(each) for each in self.items)

    def part(self, start: int, stop: int) -> Data:
        """Return some of the samples, without a copy."""
        return Data(self.kind, self.items[start:stop])


@dataclass(frozen=True)
class TensorFacts:
    """What the metadata says of an input or output. -1 in the shape is the batch, or a side of any size.

    ``sides`` are those of a sample of an input, each a number, or all the numbers that it may be.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    sides: tuple[int | range, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class ServedModel:
    """A runner with the names and shapes that clients see. ``batch_size`` is the most samples of a call."""

    def __init__(self, runner: Runner, package_dir: Path) -> None:
        self.runner, self.package_dir = runner, package_dir
        manifest = runner.manifest
        self.name, self.version = manifest.name, manifest.version
        self.batch_size = runner.plan.batch_size
        self.signature = signature = runner.signature
        self.takes_images = runner.pixel_shape() is not None
        self.kind = runner.answers.spec.kind
        self.named = signature.takes_rows
        self.takes_text = runner.tokenizer is not None
        self._states = [spec.name for spec, _ in signature.states]
        self.classifies = signature.is_plain and len(signature.outputs[0].shape) == 1 and signature.outputs[0].size > 1
        self.inputs = tuple(
            _input_facts(each, each.shape if runner.sizes is None else runner.sizes.sides(number, each.shape))
            for number, each in enumerate(signature.inputs)
        )
        self.outputs_facts = tuple(
            TensorFacts(each.name, DATATYPES[each.dtype], (-1, *self._result(each))) for each in signature.outputs
        )
        self.input = self.inputs[0]
        names = _listed(each.name for each in self.inputs)
        self.inputs_text = f"{TEXT!r} (BYTES, also {TEXT_PAIR!r}), or its tokens: {names}" if self.takes_text else names
        first = signature.inputs[0]
        self.sample_bytes = math.prod(first.pixel_shape or first.shape) * DTYPES[self.input.datatype].itemsize
        self._sizes = shapes_up_to(self.batch_size)
        # After a reload the runner comes from another copy of the runtime, which has errors of its own.
        self._errors = sys.modules[type(runner).__module__.rpartition(".")[0] + ".errors"]

    def _result(self, spec: OutputSpec) -> tuple[int, ...]:
        """Return the shape of an output for one sample, -1 where it changes with the size of the image."""
        sizes = self.runner.sizes
        if sizes is None:
            return spec.result_shape
        if not sizes.outputs:
            return spec.result_of(self.runner.result_shape())
        terms = sizes.outputs[self.signature.outputs.index(spec)]
        return spec.result_of(tuple(-1 if any(each[1:]) else each[0] for each in terms))

    def signature_of(self, items: npt.NDArray[Any] | Sequence[Any]) -> Signature:
        """Return the signature with the shapes of outputs for these samples. Raises InputError for several sizes."""
        if self.runner.sizes is None or not self.runner.sizes.outputs:
            return self.signature
        sizes = {self._size_of(item) for item in items}
        if len(sizes) > 1:
            raise InputError(_SEVERAL_SIZES)
        return self.signature.of_size(next(iter(sizes), None))

    def _size_of(self, item: Any) -> Size | None:
        """Return the size of a sample as it came: an array of a request, or what has been decoded."""
        if self.runner.sizes is None:
            return None
        if isinstance(item, Sample):
            return item.size
        if isinstance(item, np.ndarray):
            return self.runner.size_of(item)
        frame: Any = self.runner.answers.frame(_alone(item))  # of a text it is its tokens
        return (frame.input_height, frame.input_width) if hasattr(frame, "input_height") else None

    def most_samples(self, array: npt.NDArray[Any]) -> int:
        """Return how many samples like those of an array one call computes: for the sake of memory."""
        return self.batch_size if self.runner.sizes is None else self.runner.most_samples(array, self.batch_size)

    def most_together(self, data: Data) -> int:
        """Return how many samples of a request are one job. Images of any size are decoded one by one."""
        if self.runner.sizes is None:
            return self.batch_size
        return self.most_samples(data.items) if isinstance(data.items, np.ndarray) else 1

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata as the protocol has it."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "cpupack",
            "inputs": [each.to_dict() for each in ((_TEXT_FACTS,) if self.takes_text else self.inputs)],
            "outputs": [each.to_dict() for each in self.outputs_facts],
        }

    def read(self, request: InferRequest) -> Data:
        """Return the samples of a request. Raises InputError for inputs that the model does not take."""
        if self._states and request.parameters.get("sequence_id") not in (None, 0, ""):
            raise InputError(
                "sequence_id is given, and this server keeps no states between requests; send each state of "
                f"the answer before ({', '.join(map(repr, self._states))}) with the next request"
            )
        known = {each.name: each for each in self.outputs_facts}
        for wanted in request.outputs:
            if wanted.name not in known:
                raise InputError(f"output {wanted.name[:40]!r} is asked for; this model has {_listed(known)}")
            found = known[wanted.name]
            if wanted.classes and (len(found.shape) != 2 or found.datatype != "FP32"):
                raise InputError(
                    f"classification needs class scores; the output has shape {list(found.shape[1:])}"
                    + ("" if found.datatype == "FP32" else f" of {found.datatype}")
                )
        names = {each.name for each in request.inputs}
        if self.takes_text and (names & {TEXT, TEXT_PAIR} or not names & {each.name for each in self.inputs}):
            return Data(TEXTS, self._checked(lambda: texts_of_tensors(request.inputs, self.inputs_text)))
        if self.named:
            return self._named(request.inputs)
        if len(request.inputs) != 1 or request.inputs[0].name != self.input.name:
            got = ", ".join(repr(one.name[:40]) for one in request.inputs[:5])
            raise InputError(f"got inputs {got}; this model has one, {self.input.name!r}")
        return self.read_tensor(request.inputs[0])

    def _named(self, tensors: Sequence[InputTensor]) -> Data:
        try:
            found = rows_of(self.signature, tensors, check_finite=self.runner.checks_finite)
        except self._errors.InputError as error:
            raise InputError(str(error)) from None
        return Data(TENSOR if isinstance(found, np.ndarray) else NAMED, found)

    def _checked(self, read: Callable[[], list[TextSample]]) -> list[TextSample]:
        try:
            return read()
        except self._errors.InputError as error:
            raise InputError(str(error)) from None

    def read_tensor(self, tensor: InputTensor) -> Data:
        """Return the samples of one tensor. Raises InputError."""
        if isinstance(tensor.data, list):
            if not self.takes_images:
                raise InputError(f"input {tensor.name!r}: BYTES are encoded images, and this model takes arrays, FP32")
            if tensor.shape != (tensor.shape[0],) + (1,) * (len(tensor.shape) - 1) if tensor.shape else True:
                raise InputError(
                    f"input {tensor.name!r}: BYTES of shape {list(tensor.shape)}; expected [n] or [n, 1], an image each"
                )
            if not tensor.data:
                raise InputError(f"input {tensor.name!r}: the batch is empty; expected at least one image")
            return Data(IMAGE, tensor.data)
        if tensor.datatype not in ("FP32", "UINT8"):
            takes = "UINT8, FP32 or BYTES (encoded images)" if self.takes_images else "FP32"
            raise InputError(f"input {tensor.name!r}: datatype is {tensor.datatype}; this model takes {takes}")
        try:
            self.runner.check_batch(_NAMES[tensor.datatype], tensor.shape)
            self.runner.finite(tensor.data)
        except self._errors.InputError as error:
            raise InputError(f"input {tensor.name!r}: {error}") from None
        return Data(TENSOR, tensor.data)

    def read_raw(self, body: Buffer, content_type: str) -> Data:
        """Return the samples of a body that is only raw data: tensors of the metadata's type, or one encoded image.

        Raises InputError, also where the body could be both and ``content_type`` does not tell.
        """
        if len(self.inputs) > 1 or self.takes_text:
            raise InputError(f"raw data alone is for one input, no text; this model has {self.inputs_text}")
        if not len(body):
            raise InputError("the body is empty")
        whole = len(body) % self.sample_bytes == 0 and self.runner.sizes is None
        if self.takes_images:
            encoded = looks_encoded(body)
            if content_type.startswith("image/") or (encoded and not whole):
                return Data(IMAGE, [body])
            if encoded:
                raise InputError(
                    "the body could be an encoded image or pixels; say Content-Type: image/* or send the shape"
                )
        if self.runner.sizes is not None:
            what = "the body is no encoded image; " if self.takes_images else ""
            raise InputError(
                f"{what}raw data of a model that takes {self.runner.sizes.text()} needs its shape: send an inference "
                "request" + ("" if self.takes_images else ", or JSON or an .npy file to /predict")
            )
        if not whole:
            raise InputError(
                f"the body has {len(body)} bytes; raw data of {self.input.datatype} {list(self.input.shape)} has a "
                f"multiple of {self.sample_bytes}" + (", and it is no image either" if self.takes_images else "")
            )
        shape = (len(body) // self.sample_bytes, *self.input.shape[1:])
        array = np.frombuffer(body, DTYPES[self.input.datatype]).reshape(shape)
        tensor = InputTensor(self.input.name, self.input.datatype, shape, array)
        return self._named([tensor]) if self.named else self.read_tensor(tensor)

    def prepare(self, data: Data) -> npt.NDArray[Any]:
        """Return the samples as one array, decoded. Slow: for instances' threads. Raises InputError."""
        if isinstance(data.items, np.ndarray):
            return data.items
        if data.kind == TEXTS:
            return np.stack([self._text_row(item) for item in data.items if isinstance(item, TextSample)])
        load: Any = {ARRAY_FILE: _read_npy, NAMED: with_images, IMAGE: _image}[data.kind]
        try:
            loaded = [self.runner.load(load(item)) for item in data.items]
            for item, one in zip(data.items, loaded, strict=True):
                if isinstance(item, Sample):
                    item.size = self.runner.size_of(one)
            return np.stack(loaded)
        except self._errors.InputError as error:
            raise InputError(str(error)) from error

    def _text_row(self, item: TextSample) -> npt.NDArray[Any]:
        try:
            item.tokens = self.runner.tokenize(
                (item.text.text, item.text.pair) if item.text.pair is not None else item.text.text
            )
            return self.runner.load(item.tokens)
        except self._errors.InputError as error:
            raise InputError(str(error)) from error

    def run(self, batch: npt.NDArray[Any], instance: int) -> npt.NDArray[np.float32]:
        """Return the logits of a batch of at most ``batch_size`` samples."""
        runner, count = self.runner, len(batch)
        if (
            not runner.pool.is_program
        ):  # a model of torch prepares anew for each size, so it gets those it was warmed with
            size = next(size for size in self._sizes if size >= count)
            if size > count:
                batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), batch.dtype)])
        try:
            return np.asarray(runner.pool.run(runner.ready(batch), instance)[:count], np.float32)
        except self._errors.RunnerError as error:
            raise RunnerError(str(error)) from error

    def warm(self) -> None:
        """Run every size that calls may have."""
        sizes = (1, self.batch_size) if self.runner.pool.is_program else self._sizes
        for size in sorted(set(sizes)):
            self.runner.pool.warm(self.runner.example(size))

    def outputs(
        self, logits: npt.NDArray[np.float32], wanted: Sequence[WantedOutput], data: Data, *, binary: bool = False
    ) -> list[OutputTensor]:
        """Return the outputs that a request for ``data`` asks for; all of them where it asks for none."""
        if logits.dtype == object:
            raise InputError(_SEVERAL_SIZES)
        values = self.signature_of(data.items).unpack(logits)
        known = {each.name: each for each in self.outputs_facts}
        return [
            self._classes(values[one.name], one)
            if one.classes
            else OutputTensor(one.name, known[one.name].datatype, values[one.name].shape, values[one.name], one.binary)
            for one in wanted or [WantedOutput(name, binary) for name in known]
        ]

    def results(
        self, logits: npt.NDArray[np.float32], items: npt.NDArray[Any] | Sequence[Any], top_k: int
    ) -> list[dict[str, Any]]:
        """Return the result for each sample as JSON-ready values. ``items`` are the samples as they came.

        Raises RunnerError.
        """
        runner = self.runner
        try:
            return [
                _said_of(item)
                | runner.answers.facts(
                    runner.present(row, runner.answers.frame(_alone(item)), top_k, self._size_of(item))
                )
                for row, item in zip(logits, items, strict=True)
            ]
        except self._errors.InputError as error:
            raise InputError(str(error)) from error
        except self._errors.RunnerError as error:
            raise RunnerError(str(error)) from error

    def _classes(self, logits: npt.NDArray[np.float32], wanted: WantedOutput) -> OutputTensor:
        """Return value:index:label of the best classes, as the extension ``classification`` has them."""
        labels, count = self.runner.labels, min(wanted.classes, logits.shape[1])
        scores = self.signature.class_scores  # of several heads nobody knows whose the labels are
        if labels and (scores is None or scores.name != wanted.name or len(labels) != logits.shape[1]):
            labels = None
        found = []
        for row in logits:
            for index in best_first(row, count).tolist():
                label = f":{labels[index]}" if labels else ""
                found.append(f"{row[index]:f}:{index}{label}".encode())
        return OutputTensor(wanted.name, BYTES, (len(logits), count), found, wanted.binary)

    def golden_inputs(self) -> npt.NDArray[Any]:
        """Return the inputs that the build has stored, for a first call."""
        golden = self.package_dir / GOLDEN_NAME
        with golden.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["input"])


_SEVERAL_SIZES = "the samples of this request have several sizes, and a tensor has one: send one by one"
_NAMES = {"FP32": "float32", "UINT8": "uint8"}
"""numpy's names of what models take: it would make them anew each time, which takes longer than a small call."""
_TEXT_FACTS = TensorFacts(TEXT, BYTES, (-1,))
"""How the metadata describes text; ``text_pair`` beside it is for pairs alone, and the model's own inputs for ids."""


def _input_facts(spec: TensorSpec, shape: tuple[int | range, ...]) -> TensorFacts:
    """Return the facts of an input as clients send it: pixels of an image."""
    sides = (*shape[1:], shape[0]) if spec.pixel_shape else shape
    datatype = "UINT8" if spec.pixel_shape else DATATYPES[spec.dtype]
    return TensorFacts(spec.name, datatype, (-1, *(-1 if isinstance(each, range) else each for each in sides)), sides)


def _said_of(item: Any) -> dict[str, Any]:
    """Return what an answer says of an input beside its result."""
    return item.facts() if isinstance(item, TextSample) else {}


def _listed(names: Iterable[str]) -> str:
    found = [repr(name) for name in names]
    return f"one, {found[0]}" if len(found) == 1 else ", ".join(found)


def looks_encoded(body: Buffer) -> bool:
    """Return whether the first bytes are those of a JPEG, PNG, GIF, BMP, WebP or TIFF file."""
    start = bytes(body[:12])
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")) or (
        start[:4] == b"RIFF" and start[8:] == b"WEBP"
    )


def _alone(item: Any) -> Any:
    """Return one sample as the runner takes it: bytes may be a view of a request's body, and a text has its tokens."""
    if isinstance(item, TextSample):
        return item.tokens
    return bytes(item) if isinstance(item, memoryview) else item


def _image(item: Buffer) -> bytes:
    return image_file(item, "the image")


def _read_npy(item: Buffer) -> npt.NDArray[Any]:
    import io

    try:
        array = np.load(io.BytesIO(item), allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"the body is not an .npy file of numbers: {why_unread(error)}") from None
    if not isinstance(array, np.ndarray):
        raise InputError("the body is an archive of arrays; send one .npy file")
    return array
