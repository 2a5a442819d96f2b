"""Published scores and costs to compare measured ones with: the files of ``config/published/``.

The command lines of the published code are in `udpm.interop.flags`.
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
    list_configs,
    read_yaml,
    validate,
)

FOLDER = "published"
OURS = "UDPM"
"""Name of this project's method in tables."""
RUNTIME = "runtime"
"""Name of the file with costs and speeds; every other file is a table of scores."""

SETUPS = ("training", "generator", "discriminator")
"""Tables made only from resolved configurations."""

Family = Literal["gan", "scratch", "distilled", "sampler"]
FAMILIES: dict[Family, str] = {
    "gan": "GAN",
    "scratch": "few calls, trained from scratch",
    "distilled": "from a trained diffusion model",
    "sampler": "sampler of a trained diffusion model",
}
"""Kinds of methods, in words."""

Grade = Literal["A", "B", "C"]
GRADES = {
    "A": "read in the source itself",
    "B": "read second-hand, in a table or summary of another publication",
    "C": "counted on the published code",
}


class Protocol(Section):
    """Protocol of the published scores; null where their source does not state it.

    A measured score is compared with a published one only if they agree on everything that both state.
    """

    metric: str = "FID"
    """Name of the score, as in measured scores."""
    n: PositiveInt | None = None
    """Number of images."""
    extractor: str | None = None
    """Network whose features are used, by its name in measured scores."""
    preprocessing: str | None = None
    """Preprocessing of the images, by its name in measured scores."""
    split: Literal["train", "test"] | None = None
    """Split of the data set that the reference is computed from."""
    checkpoint: Literal["best", "last"] | None = None
    """Checkpoint that was scored."""
    weights: str | None = None
    """Weights of the checkpoint that were scored, by their name in measured scores."""


class Row(Section):
    """One published number, or a row without one."""

    method: str
    """Name of the method."""
    dataset: str
    """Data set that it was scored on: the name of a file in ``config/datasets/``, if it exists there."""
    nfe: PositiveInt | None = None
    """Network evaluations per image."""
    conditional: bool | None = None
    """true if the model is class-conditional."""
    value: PositiveFloat | None = None
    """Published score; null: none has been published."""
    standing: Grade | None = None
    """Grade of evidence: A read in its source, B second-hand, C counted on the published code."""
    source: str | None = None
    """Publication that it was read in: a key of `sources`."""
    note: str = ""
    """Footnote needed to interpret the number."""
    experiments: list[str] = []
    """Experiments of this project with this method and setting; their scores are shown next to the number."""
    checkpoint: Literal["best", "last"] | None = None
    """Checkpoint that was scored, if known for this row but not for the whole table."""
    weights: str | None = None
    """Weights that were scored, if known for this row but not for the whole table."""
    step_network: bool = False
    """true if each evaluation is one call of a network as large as the full-side one counted in `runtime.yaml`. The
    multiply-adds of an image are then known, and the number appears in the figure of cost."""
    giga_multiply_adds: PositiveFloat | None = None
    """Multiply-adds (1e9) of one evaluation of another network, counted on the method's code; null: unknown."""
    family: Family | None = None
    """Kind of method: gan; scratch, few calls trained from scratch; distilled, from a trained
    diffusion model; sampler, a trained diffusion model itself. The figure of cost needs it."""

    @check
    def _number_has_an_origin(self) -> None:
        if self.value is not None and (self.standing is None or self.source is None):
            raise ValueError(f"value: {self.value} needs a standing (A, B or C) and a source")

    @check
    def _cost_is_one_number(self) -> None:
        if self.step_network and self.giga_multiply_adds is not None:
            raise ValueError("giga_multiply_adds: step_network states the cost; leave one of them out")


class PublishedTable(Section):
    """One file of ``config/published/``: scores that others published."""

    title: str
    """Heading of the table."""
    description: str = ""
    """Footnote needed to interpret the table."""
    sources: dict[str, str] = {}
    """Publications by the key that rows use."""
    protocol: Protocol = Protocol()
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Largest relative difference between a measured mean and the published score to count as reproduced."""
    order: Literal["listed", "nfe"] = "listed"
    """Order of the rows: as listed, or by data set, NFE and score."""
    figure: bool = False
    """Show the scores in the figure of cost."""
    rows: Annotated[list[Row], Field(min_length=1)]
    """The numbers."""

    @check
    def _sources_are_there(self) -> None:
        for index, row in enumerate(self.rows):
            if row.source is not None and row.source not in self.sources:
                known = ", ".join(self.sources) or "none"
                raise ValueError(f"rows[{index}].source: {row.source} is not among the sources ({known})")

    @check
    def _figure_knows_the_families(self) -> None:
        for index, row in enumerate(self.rows):
            costs = row.step_network or row.giga_multiply_adds is not None
            if self.figure and costs and row.family is None:
                raise ValueError(f"rows[{index}].family: is missing; must be one of {', '.join(FAMILIES)}")

    @property
    def experiments(self) -> list[str]:
        """Experiments whose scores appear in this table, without duplicates."""
        return list(dict.fromkeys(name for row in self.rows for name in row.experiments))


class Step(Section):
    """Multiply-adds of networks for one data set's side, in units of 1e9."""

    dataset: str
    """Name of the data set."""
    side: PositiveInt
    """N."""
    step: PositiveFloat
    """One call of a network built for the full side: one step of a diffusion model."""
    image: PositiveFloat
    """All calls of UDPM for one image."""
    standing: Grade
    source: str
    """Publication that the numbers were read in."""


class Speed(Section):
    """Images per second that others measured."""

    dataset: str
    """Name of the data set."""
    device: str
    """Device that it was measured on."""
    udpm: PositiveFloat
    """Images per second of UDPM, with all its calls."""
    step: PositiveFloat
    """Images per second of one step of a network at the full side."""
    standing: Grade
    source: str
    """Publication that the numbers were read in."""


class PublishedRuntime(Section):
    """``config/published/runtime.yaml``: published costs of an image."""

    title: str
    """Heading of the table."""
    description: str = ""
    """Footnote needed to interpret the table."""
    costs: list[Step]
    """Multiply-adds."""
    speeds: list[Speed] = []
    """Measured speeds."""
    parameters: dict[str, NonNegativeInt] = {}
    """Parameters of the published generators, by data set."""

    def image_cost(self, row: Row) -> float | None:
        """Multiply-adds (1e9) of one image of a row's method; None if unknown."""
        if row.method == OURS:
            known = sorted((cost.standing != "C", cost.image) for cost in self.costs if cost.dataset == row.dataset)
            return known[0][1] if known else None
        call = self.step_cost(row.dataset) if row.step_network else row.giga_multiply_adds
        return None if row.nfe is None or call is None else row.nfe * call

    def step_cost(self, dataset: str) -> float | None:
        """Multiply-adds (1e9) of one full-side step; a counted number takes precedence over a quoted one."""
        known = sorted((cost.standing != "C", cost.step) for cost in self.costs if cost.dataset == dataset)
        return known[0][1] if known else None


def published_names(config: str | Path = "config") -> list[str]:
    """List the tables of scores in ``config/published/``."""
    return [name for name in list_configs(Path(config) / FOLDER) if name != RUNTIME]


def table_names(config: str | Path = "config") -> list[str]:
    """List all of the paper's tables: published scores, set-ups and run time."""
    return [*published_names(config), *SETUPS, RUNTIME]


def published_file(name: str, config: str | Path = "config") -> Path:
    """Return the path of a table in ``config/published/``, or of the shipped one; the file need not exist."""
    return named_file(Path(config) / FOLDER, name)


def load_published(name: str, config: str | Path = "config") -> PublishedTable:
    """Read a table of published scores.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = published_file(name, config)
    return validate(PublishedTable, read_yaml(path), str(path))


def load_runtime(config: str | Path = "config") -> PublishedRuntime:
    """Read the published costs and speeds.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = published_file(RUNTIME, config)
    return validate(PublishedRuntime, read_yaml(path), str(path))
