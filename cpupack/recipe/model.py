"""The recipe: what a user writes, as validated, frozen models (``schema = 1``).

This module defines the keys of a recipe. It reads no files: ``file.py`` parses TOML and reports problems. The
docstring of each field is its reference documentation. The JSON Schema is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cpupack.recipe.names import import_name
from cpupack.targets.engines import ArmEngine, X86Engine

if TYPE_CHECKING:
    # They need numpy, which checking a recipe does not.
    from cpupack.runtime.images.spec import PreprocessSpec
    from cpupack.runtime.signature import TensorSpec

Isa = Literal["avx2", "avx512", "avx512_vnni", "amx"]
ArmIsa = Literal["neon", "dotprod", "i8mm"]
Cpu = Literal["x86_64", "aarch64"]
ObserverName = Literal["minmax", "moving_average", "histogram", "percentile", "mse", "tail_mse", "entropy"]

PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, StringConstraints(min_length=1)]

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors")
"""Endings of the names of weight files."""

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
# The canonical form of PEP 440, appendix B. Build tools would convert any other spelling to this form.
VERSION_PATTERN = (
    r"^([1-9][0-9]*!)?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*"
    r"((a|b|rc)(0|[1-9][0-9]*))?(\.post(0|[1-9][0-9]*))?(\.dev(0|[1-9][0-9]*))?$"
)


@dataclass(frozen=True)
class Expects:
    """Plain words for what a pattern accepts: ``x-expects`` in the JSON Schema, used in error messages."""

    words: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "x-expects": self.words}


def _only_integer(value: object) -> object:
    """Refuse ``true`` and ``1.0``. Both equal 1 in Python, so Literal alone would accept them."""
    if type(value) is not int:
        raise ValueError("not an integer")
    return value


class Table(BaseModel):
    """Base of every recipe table. Unknown keys and implicit conversions are errors. Instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Package(Table):
    """Name, version and description of the wheel."""

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=100),
        Expects("up to 100 letters, digits, dots, dashes and underscores, with a letter or digit at both ends"),
    ]
    """Distribution name. The import name is the same with every run of ``-``, ``.``, ``_`` replaced by one ``_``."""
    version: Annotated[
        str,
        StringConstraints(pattern=VERSION_PATTERN),
        Expects('a PEP 440 version in its normal form without a local part, such as "1.0.0" or "2.1rc1"'),
    ] = "0.1.0"
    """PEP 440 version of the wheel, without a local part."""
    description: Annotated[str, StringConstraints(pattern=r"^[^\r\n]*$"), Expects("a single line of text")] = ""
    """One line of text for the wheel's metadata."""
    license: Text | None = None
    """SPDX expression of the licence of the weights, such as ``Apache-2.0`` or ``CC-BY-NC-4.0``; ``LicenseRef-NAME``
    for one of your own. The wheel's metadata, its bill of materials and its model card say it. The code that cpupack
    puts into the wheel is under Apache-2.0."""
    authors: list[
        Annotated[
            str,
            StringConstraints(
                pattern=r"^[^<>\r\n\t ]([^<>\r\n]*[^<>\r\n\t ])?( <[^<>@\s]+@[^<>@\s]+>)?$", max_length=200
            ),
            Expects('"NAME" or "NAME <EMAIL>"'),
        ]
    ] = []
    """Who answers for the model: ``NAME`` or ``NAME <EMAIL>``, for the wheel's metadata."""
    urls: dict[
        str,
        Annotated[
            str,
            StringConstraints(pattern=r"^https?://[^\s/]+\S*$", max_length=500),
            Expects("an address that begins with https:// or http://"),
        ],
    ] = {}
    """Addresses for the wheel's metadata, by their labels: ``Homepage``, ``Documentation`` and others, each of at most
    32 characters."""

    @property
    def import_name(self) -> str:
        """Name of the package in the wheel, equal to the wheel's normalized distribution name."""
        return import_name(self.name)


class Model(Table):
    """Where the FP32 model and its weights come from."""

    source: Text
    """``torchvision:NAME``, ``timm:NAME``, ``python:FILE.py:factory``, ``python:pkg.mod:factory``,
    ``export:FILE.pt2`` (an exported program) or ``torchscript:FILE.pt``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    weights: Text
    """A torchvision enum name such as ``IMAGENET1K_V2``, ``pretrained`` (timm), ``factory`` (the Python factory
    loads them itself, or the file of ``source`` has them), a ``.pt``, ``.pth``, ``.ckpt``, ``.tar``, ``.bin`` or
    ``.safetensors`` file, or ``random``."""
    state: Literal["plain", "ema"] | None = None
    """Which weights to take from a checkpoint that has plain and averaged weights (EMA, SWA): ``plain`` or ``ema``.
    Absent means the plain ones, with a warning if there are averaged ones too. If the file has only averaged weights,
    those are taken."""
    weights_fallback: Literal["random"] | None = None
    """What to do when the download of the weights fails. Absent means an error."""
    sha256: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Expects("64 lower-case hexadecimal digits")] | None
    ) = None
    """SHA-256 of the weights file, checked before it is read."""
    seed: Seed = 0
    """Seed of random weights."""
    input_shape: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Shape of the only input without the batch dimension, ``[channels, height, width]`` for images. A model with
    several inputs, or one that is not float32, has ``[[input]]`` tables instead."""
    labels: Text | Annotated[list[str], Field(min_length=1)] | None = None
    """``imagenet``, a text file with one label on each line, or a list of labels."""


class Preprocess(Table):
    """What the runner does to an image; calibration and evaluation use the same code.

    Absent for models that take arrays only.
    """

    resize: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """Length of the shorter edge, or ``[height, width]``. Absent keeps the size."""
    crop: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """Centre crop to a square or ``[height, width]``. Absent keeps the resized image."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Interpolation filter of the resize."""
    mode: Literal["RGB", "L"] = "RGB"
    """Colour mode that the image is converted to: three channels or one."""
    mean: Annotated[list[Finite], Field(min_length=1)] = [0.0]
    """Subtracted from pixels, which are first scaled to 0..1. One value, or one for each channel."""
    std: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]
    """The result is divided by this. One value, or one for each channel."""


class Input(Table):
    """One input of the model, by the name of its argument of ``forward``. One table for each, in any order.

    Left out for a model with one float32 input, which ``input_shape`` in ``[model]`` describes.
    """

    name: Text
    """Name of the argument of ``forward``, and of the input for callers of the wheel."""
    shape: list[PositiveInt]
    """Shape of one sample without the batch dimension, ``[channels, height, width]`` for an image. ``[]`` is one
    number for each sample."""
    dtype: Literal["float32", "uint8", "int64", "bool"] = "float32"
    """What the model takes. int64 values are at most 2^24 in magnitude."""
    default: bool | int | Finite | None = None
    """Value of the whole input where a caller leaves it out. Absent means that it must be given."""
    vocabulary: PositiveInt | None = None
    """Ids of an int64 or uint8 input are from 0 to ``vocabulary - 1``; the wheel refuses others. Absent means the size
    of the table that the model looks them up in, if it has one."""
    preprocess: Preprocess | None = None
    """Makes the input from an image."""


class Output(Table):
    """What becomes of one output of the model. Outputs without a table stay as the model gives them.

    Outputs in a dict, a dataclass or a named tuple have their own names (``aux.logits`` inside another), those in a
    tuple or list are ``output_0``, ``output_1``. The only tensor that a model returns is ``output``.
    """

    name: Text
    """Which output."""
    rename: Text | None = None
    """Its name for callers of the wheel."""
    drop: bool = False
    """Leave it out of the wheel."""
    apply: Literal["softmax", "sigmoid", "argmax"] | None = None
    """What the wheel computes from it, in float32. Gates on SQNR compare the values before."""
    dim: PositiveInt | None = None
    """Dimension of softmax and argmax, counted with the batch as 0. Needed for an output with more than one dimension
    for each sample."""


class Task(Table):
    """What the outputs are, and so what ``predict`` returns and draws (docs/how-to/tasks.md)."""

    kind: Literal[
        "classification",
        "multilabel",
        "regression",
        "embedding",
        "segmentation",
        "detection",
        "keypoints",
        "image",
        "raw",
    ]
    """The kind of the outputs. Without this table it is ``classification`` for one row of scores, else ``raw``."""
    threshold: Fraction | None = None
    """Lowest score that counts. Default: 0.5 for ``multilabel`` and for a segmentation of one class, 0.3 for
    ``detection``, 0 for ``keypoints``."""
    scores: Literal["logits", "probabilities"] | None = None
    """What the scores are: ``logits`` (the default), or ``probabilities`` of a model that ends in a sigmoid or softmax.
    For ``multilabel``, ``detection`` and a ``segmentation`` of one class."""
    units: Annotated[list[str], Field(min_length=1)] | None = None
    """``regression``: the unit of each value, such as ``["cm", "kg"]``. The names of the values are [model] labels."""
    scale: Annotated[list[Finite], Field(min_length=1)] | None = None
    """``regression``: each value is output x scale + offset. ``image``: so are the channels, which are then 0..1."""
    offset: Annotated[list[Finite], Field(min_length=1)] | None = None
    """See ``scale``."""
    box_format: Literal["xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized"] | None = (
        None
    )
    """``detection``: what the four numbers of a box are: two corners (``xyxy``, the default), a corner and the size, or
    the centre and the size. In pixels of the model's input, or ``_normalized`` to 0..1 of it."""
    background: bool | None = None
    """``detection``: whether class 0 stands for nothing. Logits then go through a softmax over all classes, else
    through a sigmoid each."""
    nms_iou: Fraction | None = None
    """``detection``: a box that overlaps a better one of its class by more than this is dropped. Default 0.5, or that
    of the torchvision model. 1 keeps all."""
    max_detections: PositiveInt | None = None
    """``detection``: boxes of an image at most. Default 100, or those of the torchvision model."""
    skeleton: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]] | None = None
    """``keypoints``: pairs of points, by their number, that a drawing joins."""


class Fuse(Table):
    """Which chains of modules are fused into one operator."""

    modules: Literal["auto"] | list[Annotated[list[Text], Field(min_length=2)]] = "auto"
    """``auto``, or the list of chains by module name (``cpupack fusions`` prints it)."""


class Quantize(Table):
    """How FP32 becomes INT8."""

    mode: Literal["auto", "static", "dynamic"] = "auto"
    """``static`` takes activation ranges from the calibration data. ``dynamic`` measures them at run time, for linear
    and recurrent layers; other layers stay FP32. ``auto`` does as ``static``, but of linear layers over tokens the
    native engine measures the ranges at run time, for each token."""
    observer: ObserverName = "tail_mse"
    """How an activation's range is chosen from the calibration data. ``tail_mse`` minimizes the squared error that is
    expected on new data: it extrapolates the tails of the calibration data."""
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    """Percentage of values that the ``percentile`` observer keeps inside the range."""
    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    """One scale for the weights of each output channel, or one for the whole layer."""
    equalize: bool = False
    """Cross-layer equalization: rescale the channels between consecutive layers so that their weights have similar
    ranges."""
    bias_correction: bool = False
    """Subtract from each bias the mean error that quantization adds to its channel on the calibration data."""
    rounding: Literal["nearest", "adaround"] = "nearest"
    """``nearest`` rounds each weight by itself. ``adaround`` rounds them so that the layer's output changes least."""
    skip: list[Text] = []
    """Names of modules that stay in FP32, with all modules inside them."""
    recover: bool = False
    """When a gate on accuracy fails, search for settings with which all gates hold (docs/how-to/recover.md)."""
    budget_s: PositiveFloat = 600.0
    """Time limit of that search, in seconds. A trial starts only if it is expected to end within the limit."""


class Calibration(Table):
    """The data that activation ranges are chosen from. Required unless ``mode = "dynamic"``."""

    source: Text
    """``images:DIR``, ``arrays:FILE.npz``, ``python:FILE.py:factory`` or ``synthetic``."""
    samples: PositiveInt = 300
    """At most this many samples, drawn with ``seed``."""
    batch_size: PositiveInt = 16
    """Samples in each forward pass. ``moving_average`` averages the ranges of these batches."""
    seed: Seed = 0
    """Seed of the choice of samples and of synthetic data."""
    skip_corrupt: bool = False
    """Skip images that cannot be decoded (each is named) instead of failing."""


class Evaluation(Table):
    """Gates: bounds on the INT8 model. If one does not hold, the build fails with exit code 6."""

    source: Text | None = None
    """Labelled data: ``images:DIR`` with class folders, ``arrays:FILE.npz`` with ``labels`` or ``targets``, or
    ``python:FILE.py:factory``. If absent, gates that need no labels are measured on other data."""
    samples: PositiveInt | None = None
    """At most this many samples. Absent means all."""
    max_drop: Fraction | None = None
    """Largest absolute drop of top-1 accuracy from FP32 to INT8 (0.01 is one point)."""
    min_top1: Fraction | None = None
    """Smallest top-1 accuracy of the INT8 model."""
    min_agreement: Fraction | Literal["off"] = 0.5
    """Smallest share of samples on which FP32 and INT8 choose the same class. The default applies to trained models
    that are known to be classifiers (``labels`` or labelled data). ``off`` turns it off."""
    min_sqnr_db: Finite | Literal["off"] = 6.0
    """Smallest signal-to-quantization-noise ratio of the outputs against FP32, in dB. The default applies to
    trained models. ``off`` turns it off."""
    min_speedup: PositiveFloat | None = None
    """Smallest ratio of the INT8 model's throughput to FP32's on this host (only for targets that this host can
    time)."""
    metric: Text | None = None
    """``python:FILE.py:function``: your own metric, ``function(outputs, targets) -> float`` on numpy arrays."""
    metric_goal: Literal["max", "min"] = "max"
    """Whether larger (``max``) or smaller (``min``, for errors) values of ``metric`` are better."""
    min_metric: Finite | None = None
    """Smallest ``metric`` of the INT8 model, for ``metric_goal = "max"``."""
    max_metric: Finite | None = None
    """Largest ``metric`` of the INT8 model, for ``metric_goal = "min"``."""
    max_metric_drop: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """How much worse the INT8 model's ``metric`` may be than FP32's, in the unit of the metric."""
    confident: bool = False
    """Judge each gate by the worse end of its 95 % interval instead of the measured value."""
    skip_corrupt: bool = False
    """Skip images that cannot be decoded (each is named) instead of failing."""


class TargetX86(Table):
    """Engine and instruction set on x86-64."""

    engine: Literal["auto", X86Engine] = "auto"
    """``auto`` builds every engine that this CPU can run and keeps the fastest that passes the gates. ``native`` is
    cpupack's own engine; the others are torch's."""
    isa: Literal["auto"] | Isa = "auto"
    """The lowest instruction set on which the wheel must be correct. ``auto`` is ``avx512_vnni`` if this host has VNNI,
    else ``avx2``. A wheel for ``avx2`` is correct on all of them."""


class TargetArm(Table):
    """Engine and instruction set on 64-bit ARM."""

    engine: Literal["auto", ArmEngine] = "auto"
    """``auto`` builds ``native``, cpupack's own engine, which takes the fewest instructions, and ``qnnpack`` where
    ``native`` cannot run the model or fails a gate. An ARM host also times them and keeps the faster. ``qnnpack`` and
    ``onednn`` are torch's."""
    isa: Literal["auto"] | ArmIsa = "auto"
    """The lowest instruction set that the wheel asks for: the runner refuses a CPU without it. ``auto`` is ``neon``,
    which every 64-bit ARM CPU has. Each CPU uses the highest set that it has, and the results are equal on all."""


class Target(Table):
    """The CPUs to build for."""

    cpu: Annotated[list[Cpu], Field(min_length=1)] = ["x86_64"]
    """One wheel is built for each entry."""
    x86_64: TargetX86 = Field(default_factory=TargetX86)
    aarch64: TargetArm = Field(default_factory=TargetArm)


class Tune(Table):
    """The search for threads, instances and batch size."""

    objective: Literal["throughput", "latency"] = "throughput"
    """``throughput`` maximizes samples per second. ``latency`` minimizes the p99 latency of one request."""
    max_latency_ms: PositiveFloat | None = None
    """Settings with a p99 latency above this are not chosen."""
    threads: Literal["auto"] | Annotated[list[PositiveInt], Field(min_length=1)] = "auto"
    """Numbers of threads of one instance to try. ``auto`` tries the divisors of the number of usable cores, and with
    SMT those of twice that number."""
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 4, 8, 16, 32, 64]
    """Batch sizes to try."""
    budget_s: PositiveFloat = 60.0
    """Time limit of the whole search, in seconds."""


class Bench(Table):
    """Defaults of the bench in the wheel."""

    duration_s: PositiveFloat = 5.0
    """Measured time of one run, in seconds, after the warm-up."""


class Recipe(Table):
    """A whole recipe. Relative paths in it start at the directory of its file."""

    schema_: Annotated[Literal[1], BeforeValidator(_only_integer)] = Field(alias="schema")
    """Version of the recipe format."""
    package: Package
    model: Model
    input: list[Input] = []
    """The inputs, if they are not one of float32."""
    output: list[Output] = []
    """What becomes of outputs."""
    preprocess: Preprocess | None = None
    task: Task | None = None
    fuse: Fuse = Field(default_factory=Fuse)
    quantize: Quantize = Field(default_factory=Quantize)
    calibration: Calibration | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    target: Target = Field(default_factory=Target)
    tune: Tune = Field(default_factory=Tune)
    bench: Bench = Field(default_factory=Bench)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as the recipe gives them: a vocabulary that it leaves out is None."""
        from cpupack.runtime.signature import INPUT, TensorSpec

        if self.model.input_shape is not None:
            return (TensorSpec(INPUT, tuple(self.model.input_shape), preprocess=_spec_of(self.preprocess)),)
        return tuple(
            TensorSpec(
                each.name, tuple(each.shape), each.dtype, each.default, _spec_of(each.preprocess), each.vocabulary
            )
            for each in self.input
        )

    @property
    def engine_input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the engine takes it: that of the only float32 input, else of a row of all inputs."""
        from cpupack.runtime.signature import engine_input_shape

        return engine_input_shape(self.input_specs)

    @property
    def engine_preprocess(self) -> PreprocessSpec | None:
        """What makes the engine's input from an image, None where it takes rows or arrays."""
        from cpupack.runtime.signature import takes_rows

        specs = self.input_specs
        return None if takes_rows(specs) else specs[0].preprocess

    @property
    def calibration_batch_size(self) -> int:
        """Samples in one batch of the calibration, 1 without calibration."""
        return self.calibration.batch_size if self.calibration else 1


def _spec_of(table: Preprocess | None) -> PreprocessSpec | None:
    from cpupack.runtime.images.spec import PreprocessSpec

    return None if table is None else PreprocessSpec.from_dict(table.model_dump())


class LoadedRecipe(BaseModel):
    """A recipe together with the file it came from."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    path: Path
    """The recipe file, absolute."""
    text: str
    """The TOML text after ``--set``, as it goes into the wheel."""

    def resolve(self, path: str) -> Path:
        """Return ``path`` made absolute against the recipe's directory."""
        return (self.path.parent / path).resolve()
