"""What all tables of a recipe share: their base class, and the types of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count. Kernels, torch and Pillow take none above 2^31 - 1."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, le=7 * 24 * 3600.0, allow_inf_nan=False)]
"""A time limit: at most a week. Clocks of the system overflow on absurd ones."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class Expects:
    """Plain words for what a pattern accepts: ``x-expects`` in the JSON Schema, used in error messages."""

    words: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "x-expects": self.words}


Edge = Annotated[int, Field(ge=1, le=65_535)]
"""A height or width that an image is made to have, in pixels. 65,535 is the largest of a JPEG."""
ImageLength = Annotated[
    PositiveInt | Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")],
    Expects(
        'an integer of at least 1, or with [sizes] "height" or "width" of an image, or a name of your own, such as '
        '"time" (docs/how-to/sizes.md)'
    ),
]
"""A size of an input, or the name of a dimension that may differ."""


class Table(BaseModel):
    """Base of every recipe table. Unknown keys and implicit conversions are errors. Instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
