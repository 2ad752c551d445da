"""The whole recipe: what a user writes, as validated, frozen models (``schema = 1``).

It reads no files: ``file.py`` parses TOML and reports problems. The JSON Schema is generated from this module and
from the tables in ``tables/``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cpupack.recipe.tables.base import Table
from cpupack.recipe.tables.model import Model
from cpupack.recipe.tables.package import Package
from cpupack.recipe.tables.quantize import Calibration, Evaluation, Fuse, Quantize
from cpupack.recipe.tables.signature import Input, Lengths, NamedSizes, Output, Preprocess, Sizes, Task
from cpupack.recipe.tables.target import Bench, Target, Tune
from cpupack.recipe.tables.text import Tokenizer

if TYPE_CHECKING:
    # They need numpy, which checking a recipe does not.
    from cpupack.runtime.images.spec import PreprocessSpec
    from cpupack.runtime.tensor_spec import TensorSpec


def _only_integer(value: object) -> object:
    """Refuse ``true`` and ``1.0``. Both equal 1 in Python, so Literal alone would accept them."""
    if type(value) is not int:
        raise ValueError("not an integer")
    return value


class Recipe(Table):
    """A whole recipe. Relative paths in it start at the directory of its file."""

    schema_: Annotated[Literal[1], BeforeValidator(_only_integer)] = Field(alias="schema")
    """Version of the recipe format."""
    package: Package
    model: Model
    input: list[Input] = []
    """The inputs, if they are not one of float32."""
    lengths: Lengths | None = None
    sizes: Sizes | None = None
    output: list[Output] = []
    """What becomes of outputs."""
    preprocess: Preprocess | None = None
    tokenizer: Tokenizer | None = None
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
        """The inputs as the recipe gives them: a vocabulary that it leaves out is None. States begin with zeros."""
        from cpupack.runtime.signature import INPUT
        from cpupack.runtime.tensor_spec import TensorSpec

        if self.model.input_shape is not None:
            return (TensorSpec(INPUT, _numbers(self.model.input_shape), preprocess=_spec_of(self.preprocess)),)
        named = self.sizes.dimensions if isinstance(self.sizes, NamedSizes) else ()
        return tuple(
            TensorSpec(
                each.name,
                _numbers(each.shape),
                each.dtype,
                0.0 if each.state is not None and each.default is None else each.default,
                _spec_of(each.preprocess),
                each.vocabulary,
                each.pad,
                state=each.state,
                names=named[number] if named and any(named[number]) else (),
            )
            for number, each in enumerate(self.input)
        )

    @property
    def engine_input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the engine takes it: that of the only float32 input, else of a row of all inputs."""
        from cpupack.runtime.tensor_spec import engine_input_shape

        return engine_input_shape(self.input_specs)

    def at_length(self, names: Collection[str], length: int) -> Recipe:
        """Return the recipe of a model whose inputs ``names`` have another length."""
        tables = [
            each.model_copy(update={"shape": [length, *each.shape[1:]]}) if each.name in names else each
            for each in self.input
        ]
        return self.model_copy(update={"input": tables})

    def at_size(self, *size: int) -> Recipe:
        """Return the recipe of a model that takes images, or sequences, of one size."""
        if isinstance(self.sizes, NamedSizes) and self.sizes.dimensions:
            return self._inputs_at(dict(zip(self.sizes.names, size[-len(self.sizes.names) :], strict=True)))
        height, width = size
        found = self
        axes = self.sizes.axes if isinstance(self.sizes, NamedSizes) else (-2, -1)

        def sized(shape: Sequence[int | str]) -> list[int | str]:
            numbers = list(shape)
            for axis, side in zip(axes, (height, width)[-len(axes) :], strict=True):
                numbers[axis] = side
            return numbers

        if self.input:
            (table,) = self.input
            changes: dict[str, Any] = {"shape": sized(table.shape)}
            if table.preprocess is not None:
                changes["preprocess"] = table.preprocess.model_copy(update={"crop": [height, width]})
            found = found.model_copy(update={"input": [table.model_copy(update=changes)]})
        else:
            shape = sized(self.model.input_shape or ())
            found = found.model_copy(update={"model": self.model.model_copy(update={"input_shape": shape})})
        if self.preprocess is not None:
            cropped = self.preprocess.model_copy(update={"crop": [height, width]})
            found = found.model_copy(update={"preprocess": cropped})
        return found

    def _inputs_at(self, sides: Mapping[str, int]) -> Recipe:
        """Return the recipe whose inputs have these sizes of their names."""
        assert isinstance(self.sizes, NamedSizes)
        tables = []
        for table, names in zip(self.input, self.sizes.dimensions, strict=True):
            shape = [sides.get(name, size) for name, size in zip(names, table.shape, strict=True)]
            changes: dict[str, Any] = {"shape": shape}
            if table.preprocess is not None and any(names):
                changes["preprocess"] = table.preprocess.model_copy(update={"crop": shape[1:]})
            tables.append(table.model_copy(update=changes))
        return self.model_copy(update={"input": tables})

    @property
    def engine_preprocess(self) -> PreprocessSpec | None:
        """What makes the engine's input from an image, None where it takes rows or arrays."""
        from cpupack.runtime.tensor_spec import takes_rows

        specs = self.input_specs
        return None if takes_rows(specs) else specs[0].preprocess

    @property
    def calibration_batch_size(self) -> int:
        """Samples in one batch of the calibration, 1 without calibration."""
        return self.calibration.batch_size if self.calibration else 1


def _numbers(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Return a shape whose names ``recipe/open_sizes.py`` has replaced."""
    assert all(isinstance(each, int) for each in shape)
    return tuple(int(each) for each in shape)


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
