"""The noise schedule at every level, as a table and a figure, and bounds on the error of sampling's start."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.core.errors import UserError
from udpm.diffusion.schedule import Schedule, coefficients, divergence_bound, prior_variance
from udpm.report.figures.style import COLOURS, LEVEL, MARKERS, save
from udpm.report.table import MISSING, Table

LARGEST_DIVERGENCE = 1e-3
"""Nats per dimension between the last state and the start of sampling above which `schedule_warning` warns."""
SMALLEST_SIGMA, LARGEST_SIGMA = 1e-150, 1e150
"""Bounds between which squares have full double precision."""
TITLE = 90
"""Characters per line of the figure's title."""

HEADINGS = {
    "level": "l",
    "side": "side",
    "alpha": "α",
    "sigma": "σ",
    "alpha_bar": "ᾱ",
    "signal": "ᾱ sˡ",
    "sigma_tilde": "σ̃",
    "snr": "SNR",
    "time": "t",
    "output_weight": "weight of f",
    "state_weight": "weight of Hᵀx",
    "std": "Σ^½",
    "std_blocks": "Σ^½ blocks",
    "std_rest": "Σ^½ rest",
}
"""Columns of the readable table, by those of the full one."""

NOTES = (
    "The state x_l has side N/2ˡ, signal ᾱ sˡ and noise σ̃; SNR is their ratio, t the network's time.",
    "Posterior of x_{l-1} given x_l and the network's f, scalar form: weights of f and Hᵀx_l in its mean, its standard "
    "deviation Σ^½. Exact form: standard deviations on the means of 2×2 blocks, and on the rest. At l = 1 there is "
    "none: the image is f itself.",
)


def schedule_table(schedule: Schedule, side: int, mean_square: float = 1.0) -> pd.DataFrame:
    """Return one row per level in full precision, with NaN where a level has no such value.

    Columns are those of `HEADINGS` and, in the last level's row, `prior_std` (τ), `mean_square` (m₂), and bounds on
    KL(q(x_L) ‖ ·) in nats per dimension: `divergence` (from N(0, τ² I)) and `divergence_standard` (from N(0, I)).

    Raises:
        UserError: sigmas whose squares leave double precision.
    """
    if not all(SMALLEST_SIGMA < sigma < LARGEST_SIGMA for sigma in schedule.sigmas):
        raise UserError(
            f"sigmas: must be between {SMALLEST_SIGMA:g} and {LARGEST_SIGMA:g} to be squared, "
            f"got {list(schedule.sigmas)}"
        )
    return pd.DataFrame([_row(schedule, side, level, mean_square) for level in range(1, schedule.levels + 1)])


def readable_schedule(table: pd.DataFrame, source: str) -> str:
    """Return the rounded table as markdown, with notes on its columns, the source of m₂ and the start of sampling."""
    shown = table[list(HEADINGS)].rename(columns=HEADINGS)
    shown = shown.map(lambda value: MISSING if pd.isna(value) else f"{value:.4g}")
    last = table.iloc[-1]
    notes = [
        *NOTES,
        f"Sampling starts from N(0, τ² I) with τ = {last['prior_std']:.4g}: KL(q(x_L) ‖ N(0, τ² I)) is at most "
        f"{last['divergence']:.3g} nats per dimension.",
        f"Against N(0, I), as the paper states its prior: at most {last['divergence_standard']:.3g} nats per "
        "dimension.",
        "Both are upper bounds (KL is convex): means of KL(q(x_L | x_0) ‖ ·) over images x_0, whose blocks of "
        f"2ᴸ×2ᴸ pixels have means of mean square m₂ = {last['mean_square']:.4g} ({source}).",
    ]
    return Table(shown, notes, "Schedule").markdown()


def schedule_warning(table: pd.DataFrame) -> str | None:
    """Warn of a schedule whose last state differs from what sampling starts from; None if it does not."""
    bound = table["divergence"].iloc[-1]
    if bound <= LARGEST_DIVERGENCE:
        return None
    return (
        f"the last state x_L and what sampling starts from may differ by {bound:.3g} nats per dimension (upper bound; "
        f"wanted: at most {LARGEST_DIVERGENCE:g}): make the last alphas smaller or the last sigma larger"
    )


def plot_schedule(table: pd.DataFrame, name: str, stem: str | Path) -> None:
    """Plot signal, noise and their ratio at every level; the data is the full table."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained")
    # The two lines cross; numbers are placed on their outer sides.
    upper = table["snr"] >= 1
    _annotated(left, table, "signal", r"signal $\bar\alpha_\ell s^\ell$", 0, upper, falls=True)
    _annotated(left, table, "sigma_tilde", r"noise $\tilde\sigma_\ell$", 1, ~upper, falls=False)
    left.set_ylabel("amplitude")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    _annotated(right, table, "snr", "signal / noise", 2, upper | True, falls=True)
    right.set_ylabel("signal / noise")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.margins(0.2, 0.2)
        axes.set_xticks(table["level"], [f"{LEVEL} = {row.level}\n{row.side}×{row.side}" for row in table.itertuples()])
    figure.suptitle("\n".join(textwrap.wrap(f"{name}: the state $x_\\ell$ at each level", TITLE)), fontsize="large")
    save(figure, stem, table)


def plot_run_schedule(path: str | Path, stem: str | Path) -> None:
    """Plot the schedule in a run's resolved configuration.

    Raises:
        UserError: no readable configuration.
    """
    config = read_resolved(RunConfig, path)
    table = schedule_table(Schedule.from_config(config.process), config.dataset.side)
    plot_schedule(table, config.experiment, stem)


def _row(schedule: Schedule, side: int, level: int, mean_square: float) -> dict[str, float]:
    row = {
        "level": level,
        "side": side >> level,
        "alpha": schedule.alpha(level),
        "sigma": schedule.sigma(level),
        "alpha_bar": schedule.alpha_bar(level),
        "signal": schedule.signal(level),
        "sigma_tilde": schedule.sigma_tilde(level),
        "snr": schedule.snr(level),
        "time": schedule.time(level),
        **dict.fromkeys(("output_weight", "state_weight", "std", "std_blocks", "std_rest"), math.nan),
        **dict.fromkeys(("prior_std", "mean_square", "divergence", "divergence_standard"), math.nan),
    }
    if level > 1:
        scalar, exact = coefficients(schedule, level, "scalar"), coefficients(schedule, level, "exact")
        row |= {
            "output_weight": scalar.variance_blocks * scalar.output,
            "state_weight": scalar.variance_blocks * scalar.state,
            "std": math.sqrt(scalar.variance_blocks),
            "std_blocks": math.sqrt(exact.variance_blocks),
            "std_rest": math.sqrt(exact.variance_rest),
        }
    if level == schedule.levels:
        variance = prior_variance(schedule)
        row |= {
            "prior_std": math.sqrt(variance),
            "mean_square": mean_square,
            "divergence": divergence_bound(schedule, variance, mean_square),
            "divergence_standard": divergence_bound(schedule, 1.0, mean_square),
        }
    return row


def _annotated(
    axes: Axes, table: pd.DataFrame, column: str, label: str, style: int, above: pd.Series, *, falls: bool
) -> None:
    axes.plot(table["level"], table[column], color=COLOURS[style], marker=MARKERS[style], label=label)
    for level, value, over in zip(table["level"], table[column], above, strict=True):
        # A steeply falling line leaves room at the upper right and the lower left of a point.
        aside = (1 if over else -1) if falls else 0
        axes.annotate(
            f"{value:.3g}",
            (level, value),
            textcoords="offset points",
            xytext=(4 * aside, 4 if over else -4),
            ha=("center", "left", "right")[aside],
            va="bottom" if over else "top",
            color=COLOURS[style],
        )
