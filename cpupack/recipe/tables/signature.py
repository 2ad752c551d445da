"""``[preprocess]``, ``[[input]]``, ``[[output]]``, ``[task]``: what goes into the model, and what its outputs are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cpupack.recipe.tables.base import Edge, Finite, Fraction, ImageLength, PositiveFloat, PositiveInt, Table, Text


class Preprocess(Table):
    """What the runner does to an image; calibration and evaluation use the same code.

    Absent for models that take arrays only.
    """

    resize: Edge | Annotated[list[Edge], Field(min_length=2, max_length=2)] | None = None
    """Length of the shorter edge, or ``[height, width]``. Absent keeps the size."""
    crop: Edge | Annotated[list[Edge], Field(min_length=2, max_length=2)] | None = None
    """Centre crop to a square or ``[height, width]``. Absent keeps the resized image."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Interpolation filter of the resize."""
    fit: Literal["stretch", "pad"] = "stretch"
    """What ``resize = [height, width]`` does to an image of another shape: ``stretch`` it, or keep its shape and
    ``pad`` what is left (a letterbox, as YOLO and EfficientDet have it)."""
    pad_value: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    """Colour of the padding before mean and std, in the order of ``mode``. One value, or one for each channel. YOLO has
    114."""
    place: Literal["center", "start"] = "center"
    """Where the padded image is: in the middle, or at the top left (``start``, as torchvision's detectors and
    EfficientDet have it)."""
    mode: Literal["RGB", "BGR", "L"] = "RGB"
    """Colours that the model takes: three channels, also in OpenCV's order, or one. What goes into ``predict`` is RGB
    or grey in any case."""
    mean: Annotated[list[Finite], Field(min_length=1)] = [0.0]
    """Subtracted from pixels, which are first scaled to 0..1. One value, or one for each channel."""
    std: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]
    """The result is divided by this. One value, or one for each channel."""


class Input(Table):
    """One input of the model, by the name of its argument of ``forward``. One table for each, in any order.

    Left out for a model with one float32 input, which ``input_shape`` in ``[model]`` describes.
    """

    name: Text
    """Name of the argument of ``forward``, and of the input for callers of the wheel. Entries of an argument that is a
    tuple are ``states_0``, ``states_1``, those of a dict ``batch.image``."""
    shape: list[ImageLength]
    """Shape of one sample without the batch dimension, ``[channels, height, width]`` for an image. ``[]`` is one
    number for each sample."""
    dtype: Literal["float32", "uint8", "int64", "bool"] = "float32"
    """What the model takes. int64 values are at most 2^24 in magnitude."""
    default: bool | int | Finite | None = None
    """Value of the whole input where a caller leaves it out. Absent means that it must be given."""
    batch_dim: Annotated[int, Field(ge=0, le=7)] = 0
    """Where ``forward`` has the batch of this input: 1 for ``nn.LSTM``, ``nn.Transformer`` and others that are not
    ``batch_first``. ``shape`` is without it. Callers of the wheel have the batch first."""
    vocabulary: PositiveInt | None = None
    """Ids of an int64 or uint8 input are from 0 to ``vocabulary - 1``; the wheel refuses others. Absent means the size
    of the table that the model looks them up in, if it has one."""
    pad: bool | int | Finite | None = None
    """Value of the positions that a sample does not have, at the end of the first dimension of ``shape``: 0 for a mask,
    the id of the padding for ids. With it ``shape`` has the greatest length, and the wheel does not compute what is
    padding in all inputs that have a ``pad``: see ``[lengths]``."""
    state: Text | None = None
    """The output that is the next value of this input, by the model's name of it (``output_1``). ``runner.stream()``
    carries it from call to call. It begins with ``default``, or zeros. The batch may be its first dimension in
    ``forward``, or its second as in torch's recurrent layers; ``shape`` is without it."""
    preprocess: Preprocess | None = None
    """Makes the input from an image."""


class Lengths(Table):
    """Lengths of samples for which the wheel has programs; a sample takes the least that holds it.

    For models with inputs that have a ``pad``, on the native engine. Other engines compute the padding.
    """

    values: Literal["auto"] | Annotated[list[PositiveInt], Field(min_length=1)] = "auto"
    """The lengths, or ``auto``: every length. A model for which that cannot be proved has steps of 8 up to 64, of 16 up
    to 128, of 32 up to 256, and so on, and the build says so. The greatest length is always among them. All share their
    weights."""


Pair = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
BySide = Pair | Annotated[dict[str, PositiveInt], Field(min_length=1, max_length=4)]


def sides_in_order(given: Any) -> Any:
    """Return ``[height, width]`` of an image whose sides have their names, and anything else as it is."""
    is_image = isinstance(given, dict) and set(given) == {"height", "width"}
    return [given["height"], given["width"]] if is_image else given


class Sizes(Table):
    """Sizes of inputs that the wheel takes: ``[height, width]`` of images, or a number for each name, as
    ``{ time = 16000 }``. For a model of which the native engine runs every layer.

    ``input_shape`` (or the ``shape`` of an ``[[input]]``) then has ``"height"`` and ``"width"``, or names of your own
    (``[80, "time"]``), in place of the numbers. Inputs that share a name have the same size in a sample. One input has
    two names at most, and a recipe four. The build finds which multiples of a number the model takes. ``predict`` fills
    up other images at the bottom and the right, with the mean color; sequences, and images beside other inputs, are
    taken as they are.
    """

    max: BySide
    """The largest inputs. Memory is planned for them."""
    typical: BySide | None = None
    """The size at which the model is calibrated, tuned and measured. Calibration data have it; of larger images the
    centre is taken. Absent means ``max``."""
    min: BySide | None = None
    """The smallest inputs. Absent means about 32 x 32 for images; smaller ones are filled up. Names of your own need
    it."""

    @field_validator("max", "typical", "min", mode="before")
    @classmethod
    def _image_by_name(cls, value: Any) -> Any:
        return sides_in_order(value)


class NamedSizes(Sizes):
    """``[sizes]`` of what is no image alone, as the build works on them: a number for each name, after a 1 if there is
    one name. ``axes`` say where the names are in the shape of a sample of the only float32 input. Of a model that takes
    rows of its inputs, ``dimensions`` have the name of each dimension of each input, "" for a number.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] = ()
    dimensions: tuple[tuple[str, ...], ...] = ()
    max: list[int]
    typical: list[int]
    min: list[int]


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
        "masks",
        "detection",
        "keypoints",
        "image",
        "tokens",
        "answer",
        "fill",
        "raw",
    ]
    """The kind of the outputs. Without this table it is ``classification`` for one row of two or more scores, else
    ``raw``."""
    threshold: Fraction | Annotated[list[Fraction], Field(min_length=1)] | None = None
    """Lowest score that counts; for ``multilabel``, ``masks`` and ``detection`` a number, or a list with one for each
    label. Default: 0.5 for ``multilabel``, ``masks`` and a segmentation of one class, 0.3 for
    ``detection``, 0 for ``keypoints``."""
    scores: Literal["logits", "probabilities"] | None = None
    """What the scores are: ``logits`` (the default), or ``probabilities`` of a model that ends in a sigmoid or softmax.
    For ``multilabel``, ``masks``, ``detection`` and a ``segmentation`` of one class."""
    units: Annotated[list[str], Field(min_length=1)] | None = None
    """``regression``: the unit of each value or map, such as ``["cm", "kg"]``. Their names are [model] labels."""
    scale: Annotated[list[Finite], Field(min_length=1)] | None = None
    """``regression``: each value is output x scale + offset. ``image``: so are the channels, which are then 0..1."""
    offset: Annotated[list[Finite], Field(min_length=1)] | None = None
    """See ``scale``."""
    box_format: Literal["xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized"] | None = (
        None
    )
    """``detection``: what the four numbers of a box are: two corners (``xyxy``, the default), a corner and the size, or
    the centre and the size. In pixels of the model's input, or ``_normalized`` to 0..1 of it."""
    angle: Literal["fifth", "last"] | None = None
    """``detection``: where the angle of a turned box is, in radians, clockwise: the ``fifth`` number of a box, or the
    ``last`` one of its row, behind the scores, as of YOLO's OBB. ``box_format`` is then ``cxcywh`` (the default)."""
    layout: Literal["rows", "columns"] | None = None
    """``detection``: whether each box is a row of the outputs, ``(n, 4 + classes)``, or a column, ``(4 + classes, n)``
    as of YOLOv8. Absent means what the shapes say; one output with fewer rows than columns may be either, and needs
    it."""
    objectness: bool | None = None
    """``detection``: whether the first score of a box is that of any object at all, as of YOLOv3, v5, v7 and X. The
    score of a class is then multiplied by it. An output with the name ``objectness`` needs no setting."""
    background: bool | Literal["last"] | None = None
    """``detection``: whether class 0 stands for nothing, or the ``last`` one, as of DETR. Logits then go through a
    softmax over all classes, else through a sigmoid each."""
    nms_iou: Fraction | None = None
    """``detection``: a box that overlaps a better one of its class by more than this is dropped. Default 0.5, or that
    of the torchvision model. 1 keeps all, which models without suppression want (DETR)."""
    class_agnostic: bool | None = None
    """``detection``: whether a box is also dropped for a better one of another class."""
    max_detections: PositiveInt | None = None
    """``detection``: boxes of an image at most. Default 100, or those of the torchvision model."""
    aggregation: Literal["first", "simple"] | None = None
    """``tokens``: whether a word has the label of its ``first`` token (the default), or each token one of its own
    (``simple``)."""
    coordinates: Literal["pixels", "normalized"] | None = None
    """``keypoints``: whether x and y are in pixels of the model's input (the default), or 0..1 of it. Heat maps have
    none."""
    skeleton: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]] | None = None
    """``keypoints``: pairs of points, by their number, that a drawing joins."""
