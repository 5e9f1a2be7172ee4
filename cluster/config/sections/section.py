"""What every section of the config is made of: strict, frozen models without unknown keys, and the kinds of numbers.

In: nothing. Out: `Section` and annotated types. Left out: the sections (cluster/config/schema.py, algorithm.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema
from pydantic_core.core_schema import literal_schema

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0.0)]


def one_of(names: Iterable[str]) -> GetPydanticSchema:
    """A Literal of names that a table holds, as Annotated[str, one_of(names)]: a type checker cannot read the table."""
    return GetPydanticSchema(lambda source, handler: literal_schema(list(names)))


def name_only(value: Any) -> Any:
    """`algorithm: grpo` is short for `algorithm: {name: grpo}`."""
    return {"name": value} if isinstance(value, str) else value


class Section(BaseModel):
    # Strict: `steps: "40"` and `steps: true` are mistakes, not numbers.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
