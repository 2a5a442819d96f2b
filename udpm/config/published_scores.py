"""What has been published, to stand beside what is measured: the files of ``config/published/``.

Not to be confused with `udpm.interop.flags`, which knows the command lines of the published code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from udpm.config.load import named_file
from udpm.config.validation import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    check,
    names_in,
    read_yaml,
    validate,
)

FOLDER = "published"
RUNTIME = "runtime"
"""Name of the one file in it that holds costs and speeds; every other holds a table of scores."""

SETUPS = ("training", "generator", "discriminator")
"""Tables that are made of resolved configurations alone."""

Standing = Literal["A", "B", "C"]
STANDINGS = {
    "A": "read in the source itself",
    "B": "read second-hand, in a table or summary of another publication",
    "C": "counted on the published code",
}


class Protocol(Section):
    """How the published scores were measured, as far as their source says; null: it does not say.

    A measured score is compared with a published one only where nothing that both state differs.
    """

    metric: str = "FID"
    """Name of the score, as measured ones carry it."""
    n: PositiveInt | None = None
    """Number of images."""
    extractor: str | None = None
    """Network whose features are used, by its name in scores."""
    preprocessing: str | None = None
    """What is done to images before it, in the words of scores."""
    split: Literal["train", "test"] | None = None
    """Split of the data set that the reference is taken from."""
    checkpoint: Literal["best", "last"] | None = None
    """Checkpoint that was scored."""
    weights: str | None = None
    """Which of its weights, by their name in scores."""


class Row(Section):
    """One published number, or the place of one."""

    method: str
    """Name of the method."""
    dataset: str
    """Data set that it was scored on: the name of a file in ``config/datasets/``, if there is one."""
    nfe: PositiveInt | None = None
    """Network evaluations for an image."""
    conditional: bool | None = None
    """Whether the model is class-conditional."""
    value: PositiveFloat | None = None
    """The published score; null: none has been published."""
    standing: Standing | None = None
    """How sure the number is: A read in its source, B second-hand, C counted on the published code."""
    source: str | None = None
    """Where it was read: a key of `sources`."""
    note: str = ""
    """What has to be known to read it, for a footnote."""
    experiments: list[str] = []
    """Experiments of this project that are this method in this setting: their scores stand beside the number."""
    checkpoint: Literal["best", "last"] | None = None
    """Checkpoint that was scored, where it is known of this row and not of the whole table."""
    weights: str | None = None
    """Which of its weights, likewise."""
    step_network: bool = False
    """Whether each evaluation is one call of a network as large as the full-side one that `runtime.yaml` counts: the
    multiply-adds of an image are then known, and the number has a place in the figure of cost."""

    @check
    def _number_has_an_origin(self) -> Row:
        if self.value is not None and (self.standing is None or self.source is None):
            raise ValueError(f"value: {self.value} needs a standing (A, B or C) and a source")
        return self


class PublishedTable(Section):
    """One file of ``config/published/``: scores that others published."""

    title: str
    """Heading of the table."""
    description: str = ""
    """What has to be known to read it, for a footnote."""
    sources: dict[str, str] = {}
    """Publications, by the key that rows name them with."""
    protocol: Protocol = Protocol()
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of a published score that a measured mean may lie off and still be called reproduced."""
    order: Literal["listed", "nfe"] = "listed"
    """Order of the rows: as listed, or by data set, NFE and score."""
    figure: bool = False
    """Whether the scores have a place in the figure of cost."""
    rows: Annotated[list[Row], Field(min_length=1)]
    """The numbers."""

    @check
    def _sources_are_there(self) -> PublishedTable:
        for index, row in enumerate(self.rows):
            if row.source is not None and row.source not in self.sources:
                known = ", ".join(self.sources) or "none"
                raise ValueError(f"rows[{index}].source: {row.source} is not among the sources ({known})")
        return self

    @property
    def experiments(self) -> list[str]:
        """Experiments whose scores belong here, each once."""
        return list(dict.fromkeys(name for row in self.rows for name in row.experiments))


class Step(Section):
    """Multiply-adds of networks for one data set's side, in 1e9."""

    dataset: str
    """Name of the data set."""
    side: PositiveInt
    """N."""
    step: PositiveFloat
    """One call of a network built for the full side: one step of a diffusion model."""
    image: PositiveFloat
    """All calls of UDPM for one image."""
    standing: Standing
    source: str
    """Where the numbers were read."""


class Speed(Section):
    """Images per second that others measured."""

    dataset: str
    """Name of the data set."""
    device: str
    """What it was measured on."""
    udpm: PositiveFloat
    """Images per second of UDPM, all its calls."""
    step: PositiveFloat
    """Images per second of one step of a network at the full side."""
    standing: Standing
    source: str
    """Where the numbers were read."""


class PublishedRuntime(Section):
    """``config/published/runtime.yaml``: what an image costs, as others published it."""

    title: str
    """Heading of the table."""
    description: str = ""
    """What has to be known to read it, for a footnote."""
    costs: list[Step]
    """Multiply-adds."""
    speeds: list[Speed] = []
    """Measured speeds."""
    parameters: dict[str, NonNegativeInt] = {}
    """Parameters of the published generators, by data set."""

    def step_cost(self, dataset: str) -> float | None:
        """Multiply-adds (1e9) of one full-side step, counted rather than quoted where there are both."""
        known = sorted((cost.standing != "C", cost.step) for cost in self.costs if cost.dataset == dataset)
        return known[0][1] if known else None


def published_names(config: str | Path = "config") -> list[str]:
    """Names of the files of scores in ``config/published/``."""
    return [name for name in names_in(Path(config) / FOLDER) if name != RUNTIME]


def table_names(config: str | Path = "config") -> list[str]:
    """Names of all of the paper's tables: of published scores, of set-ups, and of the run time."""
    return [*published_names(config), *SETUPS, RUNTIME]


def load_published(name: str, config: str | Path = "config") -> PublishedTable:
    """Read a table of published scores.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = named_file(Path(config) / FOLDER, name)
    return validate(PublishedTable, read_yaml(path), str(path))


def load_runtime(config: str | Path = "config") -> PublishedRuntime:
    """Read the published costs and speeds.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = Path(config) / FOLDER / f"{RUNTIME}.yaml"
    return validate(PublishedRuntime, read_yaml(path), str(path))
