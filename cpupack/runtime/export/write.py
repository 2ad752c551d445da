"""Writes a directory with the model, the kernels' library, their header, an example and a README."""

from __future__ import annotations

import fcntl
import os
import shutil
import string
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..engine import library as native_library
from ..engine.contract import model_path
from ..engine.program import Program, is_program, read_program
from ..errors import InputError
from ..images.inputs import mask_value
from ..images.preprocess import PreprocessSpec
from ..manifest import Manifest, check_files, read_manifest
from ..open_inputs import names_of
from ..open_sizes import Size, open_sizes_of
from ..signature import Signature, signature_of
from ..tasks.answers import task_of
from ..tensor_spec import TensorSpec, engine_input_shape, ids_text, input_places, takes_rows
from ..text.spec import spec_of
from . import model_file
from .limits import limits_of
from .meaning import meaning_of

MODEL, LIBRARY, README, LABELS = "model.cpk", "libcpupack.so", "README.md", "labels.txt"
SOURCES = ("cpupack.h", "example.c")
_BESIDE = ".export-"
_HERE = Path(__file__).parent
_TEMPLATES = _HERE / "c"


@dataclass(frozen=True)
class Exported:
    """The directory and the names of the files that were written, with their sizes in bytes.

    ``size`` is the one size of inputs that they take, in words, of a package that takes several.
    """

    directory: str
    files: dict[str, int]
    size: str | None = None


def export_c(
    package_dir: Path, directory: Path, *, force: bool = False, size: tuple[int, ...] | None = None
) -> Exported:
    """Write what a program in C needs into ``directory``, which is made if it is missing.

    ``size`` is the height and width of images, or the sizes of the named dimensions, for a model that takes any; None
    for the typical one. Raises InputError where the model needs torch or does not take that size, where a file of that
    name is there already (without ``force``), and where one cannot be written; IntegrityError where the package is not
    the one that was built.
    """
    manifest = read_manifest(package_dir)
    check_files(package_dir, manifest)
    model = model_path(package_dir, manifest)
    if not is_program(model, manifest.target["engine"]):
        reason = manifest.torch.get("reason") or "torch runs some of its layers"
        raise InputError(f"{manifest.name} {manifest.version} cannot be exported to C, because {reason}")
    asked = _asked_size(manifest, size)
    program = _of_size(read_program(model), manifest, asked)
    specs = signature_of(manifest).inputs_of_size(asked)
    spec = None if manifest.preprocess is None else PreprocessSpec.from_dict(manifest.preprocess)
    mask = mask_value(spec) if spec is not None and program.pixel_shape is not None else None
    contents: dict[str, Sequence[bytes | memoryview]] = {
        MODEL: (model_file.beginning(program.memory, mask, limits_of(specs)), program.memory.data),
        LIBRARY: (native_library.path_for(manifest.target["cpu"]).read_bytes(),),
        README: (_readme(manifest, spec, program, asked).encode(),),
        **{name: ((_TEMPLATES / name).read_bytes(),) for name in SOURCES},
    }
    if manifest.labels is not None:
        contents[LABELS] = ((package_dir / manifest.labels).read_bytes(),)
    _write(directory, contents, force=force)
    sizes = open_sizes_of(manifest)
    return Exported(
        str(directory),
        {name: (directory / name).stat().st_size for name in sorted(contents)},
        None if sizes is None or asked is None else sizes.size_text(asked),
    )


def _of_size(program: Program, manifest: Manifest, size: Size | None) -> Program:
    """Return the program of one size. Raises InputError for a size that the model does not take."""
    sizes = open_sizes_of(manifest)
    if sizes is None or size is None:
        return program
    if not sizes.takes(*size):
        raise InputError(f"--size {'x'.join(map(str, size[-len(sizes.names) :]))}: the model takes {sizes.text()}")
    return program.fixed(*size)


def _asked_size(manifest: Manifest, given: tuple[int, ...] | None) -> Size | None:
    """Return the size that is written, the typical one if none is given; None for a model of one size."""
    sizes = open_sizes_of(manifest)
    if sizes is None:
        if given is not None:
            raise InputError("--size is for models that take inputs of any size, and this one takes one size")
        return None
    if given is None:
        return sizes.typical(manifest.input_shape)
    if len(given) != len(sizes.names):
        form = "x".join(each.upper() for each in sizes.names)
        raise InputError(f"--size {'x'.join(map(str, given))}: expected {form}, {sizes.text()}")
    return given if len(given) > 1 else (1, *given)


def _write(directory: Path, contents: dict[str, Sequence[bytes | memoryview]], *, force: bool) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = [name for name in sorted(contents) if os.path.lexists(directory / name)]
        if there and not force:
            raise InputError(f"{directory / there[0]} is there already; name another directory, or add --force")
        # Written beside and renamed, all or none: a program may have an older export open.
        _sweep(directory)
        with tempfile.TemporaryDirectory(prefix=_BESIDE, dir=directory) as name, _held(name):
            for file, parts in contents.items():
                with (Path(name) / file).open("wb") as stream:
                    stream.writelines(parts)
            for file in contents:
                (Path(name) / file).replace(directory / file)
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}; name another directory") from error


@contextmanager
def _held(directory: str | Path) -> Iterator[bool]:
    """Try to hold a lock on a directory, and yield whether it is held. The kernel ends it with this process."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another export has it, or this file system has no locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what an export left that was killed."""
    for left in directory.glob(f"{_BESIDE}*"):
        with suppress(OSError), _held(left) as alone:
            if alone:
                shutil.rmtree(left)


def _readme(manifest: Manifest, spec: PreprocessSpec | None, program: Program, size: Size | None) -> str:
    signature, output_shape = signature_of(manifest), ""
    applied = next((each.apply for each in signature.outputs if each.apply is not None), None)
    if program.layout is not None:
        order = " of height, width and channels" if program.layout.image else ""
        output_shape = f", in the order of an array {program.layout.shape}{order}"
    return string.Template((_TEMPLATES / README).read_text(encoding="utf-8")).substitute(
        name=manifest.name,
        version=manifest.version,
        labels_row="| `labels.txt` | the names of the classes or values, in their order |\n" if manifest.labels else "",
        input="\n".join(
            [*_input(spec, program), *_places(signature.inputs_of_size(size), size), *_text(manifest, program)]
        ),
        outputs=program.outputs,
        output_shape=output_shape,
        equal="\n".join(_equal(program)),
        output_places="".join(
            f"\n{line}" for line in [*_outputs(signature.of_size(size)), *meaning_of(task_of(manifest), applied)]
        ),
    )


def _text(manifest: Manifest, program: Program) -> list[str]:
    """Return what C does not do with texts, and how a sample is filled up."""
    lines = []
    if (spec := spec_of(manifest)) is not None:
        lines += ["", f"C reads no text: make `{spec.ids}` with the tokenizer.json that the model was trained with."]
    if program.lengths is not None:
        pads = ", ".join(
            f"`{each['name']}` with {each['pad']:g}" for each in manifest.inputs if each.get("pad") is not None
        )
        lines += ["", f"A sample has {program.lengths.values[-1]} positions. Fill up a shorter one: {pads}."]
    return lines


def _equal(program: Program) -> list[str]:
    """Return how the results compare with the Python runner's."""
    if program.lengths is None:
        turned = program.layout is not None and program.layout.image
        return [
            "They are what the Python runner's `runner(batch)` returns, byte",
            "for byte, on every CPU, for every batch and number of threads"
            + ("; it returns channels, height and width." if turned else "."),
        ]
    own = (
        ["runs each sample at its own length:"]
        if program.lengths.form is not None
        else [
            f"has programs for the lengths {', '.join(map(str, program.lengths.values))}, and takes the least that",
            "holds a sample:",
        ]
    )
    return [
        "They are the same bytes on every CPU, for every batch and number of threads.",
        "",
        f"C computes all {program.lengths.values[-1]} positions of every sample. The Python runner",
        *own,
        "it is faster on short ones, its results differ by rounding, and what it gives for padding is 0.",
    ]


def _places(specs: Sequence[TensorSpec], size: Size | None) -> list[str]:
    """Return where each of several inputs is among the values."""
    if not takes_rows(specs):
        return []
    rows = ["", "| values | input |", "|---|---|"]
    for spec, place in zip(specs, input_places(specs), strict=True):
        order = f"`{spec.name}`, an array {spec.shape}" if spec.shape else f"`{spec.name}`, one number"
        if spec.preprocess is not None:
            channels, height, width = spec.shape
            order = (
                f"`{spec.name}`, an image {(height, width, channels)}, each value (pixel / 255 - mean) / std with mean "
                f"{spec.preprocess.mean} and std {spec.preprocess.std}"
            )
        elif spec.dtype != "float32":
            ids = ids_text(spec)
            order += " of zeros and ones" if spec.dtype == "bool" else " of whole numbers" + (f" {ids}" if ids else "")
        if spec.state is not None:
            order += f"; {spec.default or 0:g} at the beginning, then what `{spec.state}` was in the call before"
        rows.append(f"| {place.start} to {place.stop - 1} | {order} |")
    if names := names_of(specs):
        assert size is not None
        (values,) = engine_input_shape(specs)
        for number, name in enumerate(names, values - len(names)):
            rows.append(f"| {number} | {size[number - values]}, which is `{name}` |")
    return rows


def _outputs(signature: Signature) -> list[str]:
    """Return where each of several outputs is, and what the Python runner makes of it and C does not."""
    rows = []
    if signature.gives_rows:
        rows += ["", "| values | output |", "|---|---|"]
        for spec, place in zip(signature.outputs, signature.output_places(), strict=True):
            order = f"`{spec.name}`, an array {spec.shape}" if spec.shape else f"`{spec.name}`, one number"
            rows.append(f"| {place.start} to {place.stop - 1} | {order} |")
    for spec in signature.outputs:
        if spec.apply is not None:
            over = "" if spec.apply == "sigmoid" else f" over dimension {spec.dim}"
            rows += ["", f"The Python runner applies {spec.apply}{over} to `{spec.name}`; these are the values before."]
    return rows


def _input(spec: PreprocessSpec | None, program: Program) -> list[str]:
    lines = []
    if program.pixel_shape is not None:
        channels, height, width = program.pixel_shape
        colours = (
            {"RGB": "red, green, blue", "BGR": "blue, green, red", "L": "grey"}[spec.mode]
            if spec is not None
            else f"{channels - 1} channels"
        )
        lines += [
            f"uint8 pixels, {height} x {width}, {colours}, 0 to 255, as in an image: the model normalizes them.",
            *_preparation(spec),
        ]
    if program.float_shape is not None:
        channels, height, width = program.float_shape
        order = f"{height} x {width} x {channels}, the channels of a pixel together (height, width, channels)"
        lines.append(f"{'Or float32' if lines else 'float32'} values, {order if height * width > 1 else channels}.")
        if spec is not None:
            lines.append(f"Each is (pixel / 255 - mean) / std with mean {spec.mean} and std {spec.std}.")
    return lines


def _preparation(spec: PreprocessSpec | None) -> list[str]:
    """Return how an image comes to the model's size."""
    if spec is None:
        return []
    steps = []
    if spec.resize is not None:
        size = f"the shorter edge to {spec.resize}" if isinstance(spec.resize, int) else f"to {spec.resize}"
        if spec.fit == "pad":
            size = f"to fit into {spec.resize}"
        steps.append(f"resized, {size} pixels, {spec.interpolation} with antialiasing")
        if spec.fit == "pad":
            where = "with the image in the middle" if spec.place == "center" else "at the right and the bottom"
            steps.append(f"then padded with {spec.pad_value} {where}")
    if spec.crop is not None:
        steps.append("then the centre is cut out" if steps else "the centre is cut out")
    return [f"In training an image was {', '.join(steps)}."] if steps else []
