"""What every configuration section shares."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Count = Annotated[int, Field(gt=0, le=10_000_000)]
Classes = Annotated[int, Field(ge=0, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
SplitRanges = dict[str, Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]]
"""First image, and the one after the last, of each split."""
Alpha = Annotated[float, Field(gt=0, le=1)]

_NOT_IN_A_PATH = re.compile(r"[\n\0]")
# Snakemake's wildcards.
_BRACES = re.compile(r"[{}]")


def _a_path(path: str) -> str:
    if not path.strip():
        raise PydanticCustomError("path", "must name a path")
    if found := _NOT_IN_A_PATH.search(path):
        raise PydanticCustomError("path", "a path must not contain {found}", {"found": repr(found[0])})
    return path


def _a_workflow_path(path: str) -> str:
    if found := _BRACES.search(path):
        raise PydanticCustomError(
            "path", "a path must not contain {found}, which is part of a wildcard to Snakemake", {"found": found[0]}
        )
    return path


AnyPath = Annotated[str, AfterValidator(_a_path)]
"""A path."""
WorkflowPath = Annotated[AnyPath, AfterValidator(_a_workflow_path)]
"""A path that may be an input or output of a rule."""


Check = TypeVar("Check", bound=Callable[[Any], Any])


def check(function: Check) -> Check:
    """Mark a method of a section as a check of keys that have to agree; it raises ValueError, "key: what is wrong"."""
    function.is_check = True  # type: ignore[attr-defined]
    return function


class Section(BaseModel):
    """A strict, frozen section: unknown keys and wrong types are refused; field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _keys_agree(self) -> Section:
        # All checks, not pydantic's first: a file's mistakes are told together.
        problems = []
        for name, method in vars(type(self)).items():
            if getattr(method, "is_check", False):
                try:
                    getattr(self, name)()
                except ValueError as problem:
                    problems.append(str(problem))
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self


class Record(BaseModel):
    """What a record that this program wrote must say to be used: strict types, finite numbers, other keys ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)
