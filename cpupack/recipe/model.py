"""The recipe: what a user writes, as validated, frozen models (``schema = 1``).

This module knows the shape of a recipe and nothing of files: ``file.py`` parses TOML and reports
problems. Each field's ``description`` is the reference documentation; the JSON Schema is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cpupack.recipe.names import import_name
from cpupack.targets.engines import ArmEngine, X86Engine

Isa = Literal["avx2", "avx512", "avx512_vnni", "amx"]
Cpu = Literal["x86_64", "aarch64"]
ObserverName = Literal["minmax", "moving_average", "histogram", "percentile", "mse", "tail_mse", "entropy"]

PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, StringConstraints(min_length=1)]

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors")
"""How the name of a file of weights ends."""

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
# The canonical form of PEP 440, appendix B: what build tools would turn any other spelling into.
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
    """Keep ``true`` and ``1.0`` out: Python says both equal 1, which is all that Literal asks."""
    if type(value) is not int:
        raise ValueError("not an integer")
    return value


class Table(BaseModel):
    """Base of every recipe table: unknown keys and implicit conversions are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Package(Table):
    """What the wheel is called."""

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=100),
        Expects("up to 100 letters, digits, dots, dashes and underscores, with a letter or digit at both ends"),
    ]
    """Distribution name; in the import name every run of ``-``, ``.``, ``_`` is one ``_``."""
    version: Annotated[
        str,
        StringConstraints(pattern=VERSION_PATTERN),
        Expects('a PEP 440 version in its normal form without a local part, such as "1.0.0" or "2.1rc1"'),
    ] = "0.1.0"
    """PEP 440 version of the wheel, without a local part."""
    description: Annotated[str, StringConstraints(pattern=r"^[^\r\n]*$"), Expects("a single line of text")] = ""
    """One line for the wheel's metadata."""

    @property
    def import_name(self) -> str:
        """Name of the package in the wheel, equal to the wheel's normalized distribution name."""
        return import_name(self.name)


class Model(Table):
    """Where the FP32 model and its weights come from."""

    source: Text
    """``torchvision:NAME``, ``timm:NAME``, ``python:FILE.py:factory`` or ``python:pkg.mod:factory``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    weights: Text
    """A torchvision enum name such as ``IMAGENET1K_V2``, ``pretrained`` (timm), ``factory`` (a Python factory
    that loads them itself), a ``.pt``, ``.pth``, ``.ckpt``, ``.tar``, ``.bin`` or ``.safetensors`` file, or
    ``random``."""
    state: Literal["plain", "ema"] | None = None
    """Which weights of a checkpoint that also holds averaged ones (EMA, SWA): ``plain`` or ``ema``. Absent, the plain
    ones, with a warning where there are others too; averaged ones where a file has no others."""
    weights_fallback: Literal["random"] | None = None
    """What to do when weights must be downloaded and cannot be; absent means an error."""
    sha256: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Expects("64 lower-case hexadecimal digits")] | None
    ) = None
    """SHA-256 of the weights file, checked before it is read."""
    seed: Seed = 0
    """Seed of random weights."""
    input_shape: Annotated[list[PositiveInt], Field(min_length=1)]
    """Shape of one input without the batch dimension, ``[channels, height, width]`` for images."""
    labels: Text | Annotated[list[str], Field(min_length=1)] | None = None
    """``imagenet``, a text file with one label a line, or the list itself."""


class Preprocess(Table):
    """What the runner does to an image; calibration and evaluation use the same code.

    Absent for models that take arrays only.
    """

    resize: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """Length of the shorter edge, or ``[height, width]``; absent keeps the size."""
    crop: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """Centre crop to a square or ``[height, width]``; absent keeps the resized image."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Filter of the resize."""
    mode: Literal["RGB", "L"] = "RGB"
    """Colour mode the image is converted to: three channels or one."""
    mean: Annotated[list[Finite], Field(min_length=1)] = [0.0]
    """Subtracted from the pixel scaled to 0..1, one value or one a channel."""
    std: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]
    """Divides the result, one value or one a channel."""


class Fuse(Table):
    """Which module chains become one operator."""

    modules: Literal["auto"] | list[Annotated[list[Text], Field(min_length=2)]] = "auto"
    """``auto``, or the list of chains by module name (``cpupack fusions`` prints it)."""


class Quantize(Table):
    """How FP32 becomes INT8."""

    mode: Literal["static", "dynamic"] = "static"
    """``static`` calibrates activations; ``dynamic`` measures them at run time (linear and LSTM models)."""
    observer: ObserverName = "tail_mse"
    """How an activation's range is chosen from the calibration data. ``tail_mse`` has the least squared error expected
    on other data: it extrapolates the tails of what calibration saw."""
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    """Share of values the ``percentile`` observer keeps."""
    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    """One weight scale for each output channel, or one for the whole layer."""
    equalize: bool = False
    """Cross-layer equalization: even out the channels of consecutive layers before they are quantized."""
    bias_correction: bool = False
    """Take the mean error that quantization adds to each channel, measured on the calibration data, off the bias."""
    rounding: Literal["nearest", "adaround"] = "nearest"
    """``nearest`` rounds each weight alone; ``adaround`` rounds them so that the layer's output changes least."""
    skip: list[Text] = []
    """Module names (with everything below them) kept in FP32."""
    recover: bool = False
    """When a gate on accuracy fails, search for settings with which all gates hold (docs/how-to/recover.md)."""
    budget_s: PositiveFloat = 600.0
    """Time for that search, in seconds; no trial starts that would not end within it."""


class Calibration(Table):
    """The data that activation ranges are taken from; required by ``mode = "static"``."""

    source: Text
    """``images:DIR``, ``arrays:FILE.npz``, ``python:FILE.py:factory`` or ``synthetic``."""
    samples: PositiveInt = 300
    """At most this many samples, drawn with ``seed``."""
    batch_size: PositiveInt = 16
    """Samples a forward pass; it decides what ``moving_average`` averages over."""
    seed: Seed = 0
    """Seed of the choice of samples and of synthetic data."""
    skip_corrupt: bool = False
    """Skip images that cannot be decoded (each is named) instead of failing."""


class Evaluation(Table):
    """Gates that must hold or the build fails with exit code 6."""

    source: Text | None = None
    """Labelled data: ``images:DIR`` with class folders, ``arrays:FILE.npz`` with ``labels`` or ``targets``, or
    ``python:FILE.py:factory``. Absent, gates that need no labels are measured on other data."""
    samples: PositiveInt | None = None
    """At most this many samples; absent means all."""
    max_drop: Fraction | None = None
    """Largest absolute drop of top-1 accuracy from FP32 to INT8 (0.01 is one point)."""
    min_top1: Fraction | None = None
    """Smallest top-1 accuracy of the INT8 model."""
    min_agreement: Fraction | Literal["off"] = 0.5
    """Smallest share of samples on which FP32 and INT8 choose the same class. The default is for trained models that
    are known to choose classes (``labels`` or labelled data); ``off`` switches it off."""
    min_sqnr_db: Finite | Literal["off"] = 6.0
    """Smallest signal-to-quantization-noise ratio of the outputs against FP32, in dB. The default is for trained
    models; ``off`` switches it off."""
    min_speedup: PositiveFloat | None = None
    """Smallest throughput ratio over the FP32 model on this host (only for targets this host can time)."""
    metric: Text | None = None
    """``python:FILE.py:function``: your own measure, ``function(outputs, targets) -> float`` on numpy arrays."""
    metric_goal: Literal["max", "min"] = "max"
    """Whether larger (``max``) or smaller (``min``, for errors) values of ``metric`` are better."""
    min_metric: Finite | None = None
    """Smallest ``metric`` of the INT8 model, for ``metric_goal = "max"``."""
    max_metric: Finite | None = None
    """Largest ``metric`` of the INT8 model, for ``metric_goal = "min"``."""
    max_metric_drop: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """How much worse than FP32's the INT8 model's ``metric`` may be, in the metric's own unit."""
    confident: bool = False
    """Judge each gate by the worse end of its 95 % interval, not by the measured value."""
    skip_corrupt: bool = False
    """Skip images that cannot be decoded (each is named) instead of failing."""


class TargetX86(Table):
    """Engine and instruction set on x86-64."""

    engine: Literal["auto", X86Engine] = "auto"
    """``auto`` builds every engine this CPU can run and keeps the fastest that passes the gates. ``native`` is
    cpupack's own; the others are torch's."""
    isa: Literal["auto"] | Isa = "auto"
    """The least instruction set the wheel must be correct on; ``auto`` is what this host's arithmetic needs
    (``avx512_vnni``, or ``avx2`` without VNNI). A wheel for ``avx2`` is correct on all of them."""


class TargetArm(Table):
    """Engine on 64-bit ARM."""

    engine: ArmEngine = "qnnpack"
    """qnnpack is the one quantized engine of torch's ARM builds that cpupack supports."""


class Target(Table):
    """The CPUs to build for, one wheel each."""

    cpu: Annotated[list[Cpu], Field(min_length=1)] = ["x86_64"]
    """One wheel is built for each entry."""
    x86_64: TargetX86 = Field(default_factory=TargetX86)
    aarch64: TargetArm = Field(default_factory=TargetArm)


class Tune(Table):
    """The search for threads, instances and batch size."""

    objective: Literal["throughput", "latency"] = "throughput"
    """``throughput`` maximises samples a second, ``latency`` minimises p99 of one request."""
    max_latency_ms: PositiveFloat | None = None
    """Settings with a p99 above this are not chosen."""
    threads: Literal["auto"] | Annotated[list[PositiveInt], Field(min_length=1)] = "auto"
    """Threads of one instance to try; ``auto`` tries the divisors of the usable cores, and of twice that with SMT."""
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 4, 8, 16, 32, 64]
    """Batch sizes to try."""
    budget_s: PositiveFloat = 60.0
    """Time for the whole search, in seconds."""


class Bench(Table):
    """Defaults of the packaged bench."""

    duration_s: PositiveFloat = 5.0
    """Measured time of one run, in seconds, after the warm-up."""


class Recipe(Table):
    """A whole recipe. Relative paths in it start at the directory of its file."""

    schema_: Annotated[Literal[1], BeforeValidator(_only_integer)] = Field(alias="schema")
    """Version of the recipe format."""
    package: Package
    model: Model
    preprocess: Preprocess | None = None
    fuse: Fuse = Field(default_factory=Fuse)
    quantize: Quantize = Field(default_factory=Quantize)
    calibration: Calibration | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    target: Target = Field(default_factory=Target)
    tune: Tune = Field(default_factory=Tune)
    bench: Bench = Field(default_factory=Bench)

    @property
    def calibration_batch_size(self) -> int:
        """Samples in one batch of the calibration; 1 where nothing is calibrated."""
        return self.calibration.batch_size if self.calibration else 1


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
