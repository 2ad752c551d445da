"""``[fuse]``, ``[quantize]``, ``[calibration]``, ``[evaluation]``: how FP32 becomes INT8, and what must hold then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpupack.recipe.tables.base import Finite, Fraction, PositiveFloat, PositiveInt, Seconds, Seed, Table, Text

ObserverName = Literal["minmax", "moving_average", "histogram", "percentile", "mse", "tail_mse", "entropy"]


class Fuse(Table):
    """Which chains of modules are fused into one operator."""

    modules: Literal["auto"] | list[Annotated[list[Text], Field(min_length=2)]] = "auto"
    """``auto``, or the list of chains by module name (``cpupack fusions`` prints it)."""


class Quantize(Table):
    """How FP32 becomes INT8."""

    mode: Literal["auto", "static", "dynamic"] = "auto"
    """``static`` takes activation ranges from the calibration data. ``dynamic`` measures them at run time, for linear
    and recurrent layers; other layers stay FP32. ``auto`` does as ``static``, but the native engine measures both forms
    of the linear layers of transformers on calibration data, and a layer has its ranges measured at run time, for each
    token, where that loses less."""
    static: list[Text] = []
    """Names of modules: their linear layers take ranges from the calibration data, whatever ``mode`` would do. Only the
    native engine can do so."""
    dynamic: list[Text] = []
    """Names of modules: the ranges of their linear layers are measured at run time, for each row of activations. Only
    the native engine can do so."""
    observer: ObserverName = "tail_mse"
    """How an activation's range is chosen from the calibration data. ``tail_mse`` minimizes the squared error that is
    expected on new data: it extrapolates the tails of the calibration data."""
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    """Percentage of values that the ``percentile`` observer keeps inside the range."""
    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    """One scale for the weights of each output channel, or one for the whole layer."""
    smooth: bool = True
    """SmoothQuant, on the native engine: divide each input channel by a number of its own before it becomes codes,
    and multiply the weights with it. Only in linear layers that lose at least 0.5 dB less so on calibration samples;
    the report names them (``smoothed``). ``false`` leaves it out, and so does ``adaround``."""
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
    budget_s: Seconds = 600.0
    """Time limit of that search, in seconds. A trial starts only if it is expected to end within the limit."""


class Calibration(Table):
    """The data that activation ranges are chosen from. Required unless ``mode = "dynamic"``."""

    source: Text
    """``images:DIR``, ``text:FILE`` (one text a line; of a ``.jsonl`` file an object with ``text``, ``text_pair`` and
    ``label``), ``arrays:FILE.npz``, ``python:FILE.py:factory`` or ``synthetic``."""
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
    """Labelled data: ``images:DIR`` with class folders, ``text:FILE.jsonl`` with ``label``, ``arrays:FILE.npz`` with
    ``labels`` or ``targets``, or ``python:FILE.py:factory``. If absent, gates that need no labels are measured on
    other data."""
    samples: PositiveInt | None = None
    """At most this many samples. Absent means all."""
    max_drop: Fraction | None = None
    """Largest absolute drop of top-1 accuracy from FP32 to INT8 (0.01 is one point)."""
    min_top1: Fraction | None = None
    """Smallest top-1 accuracy of the INT8 model."""
    min_agreement: Fraction | Literal["off"] = 0.5
    """Smallest share of samples on which FP32 and INT8 choose the same class; of pixels for a ``segmentation``, of
    boxes for a ``detection``; the mean cosine for an ``embedding``. The default applies to
    trained models that are known to be classifiers (``labels`` or labelled data). ``off`` turns it off."""
    min_decisions: Fraction | Literal["off"] = 0.9
    """Smallest share of yes-or-no decisions that are FP32's: the labels of a ``multilabel`` model, and values of
    ``raw`` outputs that are all from 0 to 1, where half or more is yes. It is the mean of the shares of FP32's yes and
    of its no. The default applies to trained models. ``off`` turns it off."""
    min_sqnr_db: Finite | Literal["off"] = 6.0
    """Smallest signal-to-quantization-noise ratio of the outputs against FP32, in dB. The default applies to
    trained models. ``off`` turns it off."""
    min_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Smallest mean cosine between the FP32 and INT8 embeddings of an input. For ``[task] kind = "embedding"``, as are
    the next three."""
    min_worst_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Smallest cosine of any input's embeddings."""
    min_spearman: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Smallest rank correlation between FP32 and INT8 of the similarities of all pairs of inputs."""
    min_recall: Fraction | None = None
    """Smallest recall@10: of the ten nearest inputs of each input in FP32, the share that INT8 has among its ten."""
    min_speedup: PositiveFloat | None = None
    """Smallest ratio of the INT8 model's throughput to FP32's on this host (only for targets that this host can
    time)."""
    metric: Text | None = None
    """A metric by name: ``map`` or ``map50`` (detection), ``miou`` or ``dice`` (segmentation), ``mae`` and ``rmse``
    (regression), ``distance`` (keypoints), ``f1`` or ``average_precision`` (multilabel), ``recall@5`` or
    ``equal_error`` (embedding), ``psnr`` or ``ssim`` (image). Or ``python:FILE.py:function``: your own,
    ``function(outputs, targets) -> float`` on numpy arrays."""
    targets: Text | None = None
    """What the metric compares with, for a folder of images: ``coco:FILE.json`` (boxes), ``masks:DIR`` (a PNG of
    classes for each image), ``maps:DIR`` (an ``.npy`` file of numbers for each image), ``images:DIR`` (the
    true picture for each image), ``csv:FILE.csv`` or ``jsonl:FILE.jsonl`` (a row for each image)."""
    metric_goal: Literal["max", "min"] = "max"
    """Whether larger (``max``) or smaller (``min``, for errors) values of ``metric`` are better. Metrics by
    name have their own."""
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
