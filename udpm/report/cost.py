"""The cost table: what an image costs beside one call of a network at the full side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udpm.core.provenance import versions
from udpm.report.table import MISSING, markdown, write_table

if TYPE_CHECKING:
    from udpm.networks.flops import Cost

GIGA, MEGA = 1e9, 1e6
WORDS = 1
"""Leading columns of the table to read that hold words."""
COLUMNS = ("network", "calls", "level", "input_side", "multiply_adds", "parameters")
"""Of the csv: all but the first are whole numbers."""
FRACTION = "multiply_adds_over_full_side_network"
COUNTING = ("udpm", "torch")
"""Packages that do the counting; their versions are in the csv."""
NOTES = [
    "G: 1e9 multiply-adds for one image, half of PyTorch's FLOPs. Counted: convolutions with their resampling filters, "
    "linear layers, the two products of attention. Not counted: normalisation, activations, softmax, and the average "
    "pooling and nearest-neighbour upsampling of the families with a box filter.",
    "Image: one call of the generator at each level l, with an input of side N/2^l; classifier-free guidance makes it "
    "twice that. Posterior and noise, a few operations for each value, are not counted.",
    "Full-side network: the generator's architecture built for inputs of side N, 3 channels in and out, without "
    "doubling; its attention is at the sides listed for the generator, as far as its own levels have them. One call of "
    "it is one step of a diffusion model that works at full side.",
    "Generator fed side N: one call of the generator itself. M: 1e6 parameters.",
]


def cost_table(costs: dict[str, Cost]) -> pd.DataFrame:
    """One row for each network call and network, in full precision; empty where a row has no such value.

    Args:
        costs: by experiment.
    """
    rows = [{"experiment": name, **row} for name, cost in costs.items() for row in _rows(cost)]
    known = {f"version_{package}": version for package, version in versions().items() if package in COUNTING}
    return pd.DataFrame(rows).astype(dict.fromkeys(COLUMNS[1:], "Int64")).assign(**known)


def readable_costs(costs: dict[str, Cost]) -> pd.DataFrame:
    """The rounded table for people, one row for each experiment."""
    return pd.DataFrame(
        {
            "experiment": name,
            "calls, l = 1..L (G)": " + ".join(_rounded(call / GIGA) for call in cost.calls),
            "image (G)": _rounded(cost.total / GIGA),
            "full-side network (G)": _rounded(cost.full_side / GIGA),
            "image / full-side network": f"{cost.ratio:.3f}",
            "generator fed side N (G)": _rounded(cost.generator_at_full_side / GIGA),
            "image / generator fed side N": f"{cost.own_ratio:.3f}",
            "generator (M)": _rounded(cost.generator_parameters / MEGA),
            "full-side network (M)": _rounded(cost.full_side_parameters / MEGA),
            "discriminator (M)": _parameters(cost.discriminator_parameters),
        }
        for name, cost in costs.items()
    )


def render_costs(costs: dict[str, Cost]) -> str:
    """The table to read, as markdown, and what is counted in it."""
    return markdown(readable_costs(costs), NOTES)


def write_costs(costs: dict[str, Cost], stem: str | Path) -> None:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read)."""
    write_table(stem, cost_table(costs), readable_costs(costs), NOTES, WORDS, "Cost")


def _rows(cost: Cost) -> list[dict[str, Any]]:
    own, side = cost.generator_parameters, cost.side
    rows = [("generator", 1, level, side >> level, count, own) for level, count in enumerate(cost.calls, start=1)]
    rows.append(("generator", len(cost.calls), None, None, cost.total, own))
    rows.append(("generator", 1, None, side, cost.generator_at_full_side, own))
    rows.append(("full-side network", 1, None, side, cost.full_side, cost.full_side_parameters))
    if cost.discriminator_parameters is not None:
        rows.append(("discriminator", None, None, None, None, cost.discriminator_parameters))
    return [dict(zip(COLUMNS, row, strict=True)) | {FRACTION: _fraction(row[4], cost)} for row in rows]


def _fraction(multiply_adds: int | None, cost: Cost) -> float | None:
    return None if multiply_adds is None else multiply_adds / cost.full_side


def _parameters(count: int | None) -> str:
    return MISSING if count is None else _rounded(count / MEGA)


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
