"""Tables of a sweep: its plan, the ranking of its points over seeds, and the best point as an experiment."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from udpm.config.experiment import Experiment, RunConfig
from udpm.config.points import LoadedSweep, Resolved
from udpm.core.errors import UserError
from udpm.core.kinds import mark, seal_text
from udpm.diffusion.schedule import Schedule
from udpm.metrics.protocol import (
    DRAWING,
    MEASURING,
    calls_per_level,
    comparable,
    features_words,
    mark_shared,
    read_score,
    shared_words,
)
from udpm.report.scores import PATTERNS, shared_of
from udpm.report.table import MISSING, Table, cell
from udpm.runs.layout import Layout
from udpm.runs.records import read_complete

GIGA, HOUR = 1e9, 3600
LONGEST = 60
"""Characters of a point's changes that the readable table shows."""
NOTES = [
    "SNR: signal over noise of the state x_l at each level, l = 1 first. KL: upper bound on how far the last state is "
    "from what sampling starts from, in nats per dimension, for any images in [-1, 1].",
    "Image: G (1e9) multiply-adds of the network calls that make one. Iteration: of a discriminator and a generator "
    "step over the batch, forward and backward, in the mean over levels; without LPIPS, Adam and averages.",
]


def plan_table(loaded: LoadedSweep) -> Table:
    """Return the plan: one row per point.

    Raises:
        UserError: squares of a schedule exceed double precision.
    """
    trained = loaded.trained()
    counted: dict[Any, Any] = {}
    rows = []
    for name, resolved in loaded.points.items():
        experiment = resolved.experiment
        run = loaded.runs[name, experiment.seeds[0]]
        own = [seed for seed in experiment.seeds if trained[name, seed] == name]
        rows.append(
            {
                "point": resolved.point.name,
                "changes": resolved.point.changes_text,
                "seeds": " ".join(map(str, experiment.seeds)),
                **_schedule(run, loaded.sweep.base, resolved),
                **_cost(loaded, resolved, run, len(own), counted),
            }
        )
    full = pd.DataFrame(rows)
    return Table(_readable_plan(full), [*NOTES, *_plan_notes(full, loaded)], "Plan", full)


def _schedule(run: RunConfig, base: str, resolved: Resolved) -> dict[str, Any]:
    # Matplotlib takes a second to load, which a ranking does without.
    from udpm.report.figures.schedule import schedule_table, schedule_warning

    try:
        table = schedule_table(Schedule.from_config(run.process), run.dataset.side)
    except UserError as error:
        raise UserError(f"point {resolved.point.name} of base {base}: process.{error}") from None
    last = table.iloc[-1]
    return {
        "levels": run.process.levels,
        "alphas": " ".join(map(str, run.process.alphas)),
        "sigmas": " ".join(map(str, run.process.sigmas)),
        "snr": " ".join(map(str, table["snr"])),
        **{key: last[key] for key in ("prior_std", "divergence", "divergence_standard")},
        "warning": schedule_warning(table) or "",
    }


def _cost(loaded: LoadedSweep, resolved: Resolved, run: RunConfig, trainings: int, counted: dict) -> dict[str, Any]:
    """Return multiply-adds, counted once for points of equal networks, and device-hours."""
    # Torch takes seconds to load, which a ranking does without.
    from udpm.training.estimate import iteration_cost

    experiment, key = resolved.experiment, _arithmetic_of(run)
    iterations = 0 if run.training == "imported" else run.training.iterations
    if key not in counted:
        counted[key] = _image(run), iteration_cost(run, iterations=iterations).multiply_adds if iterations else 0
    call, iteration = counted[key]
    image = call * calls_per_level({"guidance": experiment.sampling.guidance})
    total = trainings * iterations * iteration + len(experiment.seeds) * experiment.sampling.count * image
    return {
        "image_multiply_adds": image,
        "iteration_multiply_adds": iteration,
        "iterations": iterations,
        "trainings": trainings,
        "device_hours": total / loaded.sweep.multiply_adds_per_second / HOUR,
    }


def _arithmetic_of(run: RunConfig) -> str:
    """Return a key of all settings that the number of operations depends on."""
    # Of loss weights, only whether they are zero.
    weights = ("energy_weight", "adversarial_weight", "r1_gamma", "r2_gamma")
    used = [[bool(value) for value in run.per_level(f"losses.{key}")] for key in weights]
    parts = run.model_dump(mode="json", include={"generator", "discriminator", "training"})
    settings = {"upsample_discriminator_input", "r1_every", "adversarial", "adversarial_start", "energy_draws"}
    parts["losses"] = run.losses.model_dump(mode="json", include=settings)
    return json.dumps([parts, used, run.process.levels, run.dataset.side, run.classes])


def _image(run: RunConfig) -> int:
    import torch

    from udpm.networks.inference import multiply_adds
    from udpm.networks.unet import build_generator

    with torch.device("meta"):
        generator = build_generator(run.model)
    return sum(multiply_adds(generator, run.dataset.side >> level) for level in range(1, run.process.levels + 1))


def _readable_plan(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "point": row.point,
            "changes of the base": row.changes if len(row.changes) <= LONGEST else f"{row.changes[: LONGEST - 1]}…",
            "seeds": str(len(row.seeds.split())),
            "SNR by level": " ".join(f"{float(value):.3g}" for value in row.snr.split()),
            "KL at the start": f"{row.divergence:.2g}",
            "image (G)": f"{row.image_multiply_adds / GIGA:.3g}",
            "iteration (G)": f"{row.iteration_multiply_adds / GIGA:.3g}",
            "iterations": str(row.iterations),
            "trainings": str(row.trainings),
            "device-hours": f"{row.device_hours:.3g}",
        }
        for row in table.itertuples()
    )


def _plan_notes(table: pd.DataFrame, loaded: LoadedSweep) -> Iterator[str]:
    speed = loaded.sweep.multiply_adds_per_second
    yield (
        f"{len(table)} points of {loaded.sweep.base}, {table['trainings'].sum()} trainings: "
        f"{table['device_hours'].sum():.3g} device-hours, if a device does {speed:.2g} multiply-adds per second "
        f"({2 * speed:.2g} FLOP/s), which the sweep assumes (multiply_adds_per_second)."
    )
    if (table["trainings"] < table["seeds"].str.split().str.len()).any():
        yield "Points that differ only in what comes after training share one: it is counted for the first of them."
    for row in table.itertuples():
        if row.warning:
            yield f"{row.point}: {row.warning}."


LOSSES = ("reconstruction", "energy", "lpips", "adversarial")
ALWAYS = ("frechet_distance", "precision", "recall", "class_agreement")
"""Metrics of the readable table, in addition to the one ranked by."""
BETWEEN_POINTS = (*MEASURING, "kernel_subsets")
BETWEEN_SEEDS = (*BETWEEN_POINTS, *DRAWING, "iteration")
"""Parts of the protocol that must be equal for points to be ranked (they may sample differently), and for a mean."""


@dataclass
class Result:
    """Scores of a point.

    Attributes:
        resolved: the point.
        scores: by seed.
        cpu_seconds: processor time of the trainings, by seed, where it is known.
        missing: reasons for seeds without a score.
        rank: place in the ranking, from 1, or None.
    """

    resolved: Resolved
    scores: dict[int, dict[str, Any]] = field(default_factory=dict)
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    rank: int | None = None

    @property
    def name(self) -> str:
        """Name of the point."""
        return self.resolved.point.name

    @property
    def differing(self) -> list[str]:
        """Parts of the protocol in which the seeds' scores differ; if any, there is no mean."""
        ways = [comparable(score, BETWEEN_SEEDS) for score in self.scores.values()]
        return [key for number, key in enumerate(BETWEEN_SEEDS) if len({way[number] for way in ways}) > 1]

    @property
    def protocol(self) -> tuple | None:
        """Protocol that other points must share to be compared; None without a mean."""
        first = next(iter(self.scores.values()), None)
        return None if first is None or self.differing else comparable(first, BETWEEN_POINTS)

    def values(self, metric: str) -> dict[int, float]:
        """Return the known values by seed."""
        found = {seed: score["metrics"].get(metric, {}).get("value") for seed, score in self.scores.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def label(self, metric: str) -> str | None:
        """Return the metric's name in scores, or None if no seed has it."""
        seeds = self.values(metric)
        return self.scores[next(iter(seeds))]["metrics"][metric]["label"] if seeds else None

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds with a value, or None if their scores do not compare."""
        values = self.values(metric).values()
        return statistics.fmean(values) if values and not self.differing else None

    def spread(self, metric: str) -> float | None:
        """Return the sample standard deviation over seeds, or None for a single value."""
        values = self.values(metric).values()
        return statistics.stdev(values) if len(values) > 1 and not self.differing else None

    @property
    def shared(self) -> str | None:
        """Labels that the extractor and a loss of a seed's training share."""
        return next(filter(None, map(shared_of, self.scores.values())), None)

    def format(self, metric: str) -> str:
        """Format mean ± spread, or what is known of them; distances in features of `shared` labels are marked."""
        known = [value for value in (self.mean(metric), self.spread(metric)) if value is not None]
        text = " ± ".join(PATTERNS[metric].format(value) for value in known)
        return mark_shared(text, self.shared if "frechet" in metric else None) if known else MISSING


def read_results(loaded: LoadedSweep, results: Path) -> list[Result]:
    """Return the scores of all points, best first; points without a value or with an unusual protocol come last."""
    found = [_read_point(resolved, name, results) for name, resolved in loaded.points.items()]
    ways = Counter(result.protocol for result in found if result.protocol is not None)
    usual = max(ways, key=ways.__getitem__, default=None)
    metric, sign = loaded.sweep.rank_by, -1 if loaded.sweep.falls else 1
    ranked = [result for result in found if result.mean(metric) is not None and result.protocol == usual]
    ranked.sort(key=lambda result: sign * (result.mean(metric) or 0.0))
    for rank, result in enumerate(ranked, start=1):
        result.rank = rank
    return [*ranked, *(result for result in found if result.rank is None)]


def _read_point(resolved: Resolved, name: str, results: Path) -> Result:
    result = Result(resolved)
    for seed in resolved.experiment.seeds:
        try:
            score = result.scores[seed] = read_score(Layout(results).scores(f"seed{seed}", name))
        except UserError as error:
            result.missing[seed] = str(error)
            continue
        seconds = _cpu_seconds(score["subject"], results)
        if seconds is not None:
            result.cpu_seconds[seed] = seconds
    return result


def _cpu_seconds(subject: dict[str, Any], results: Path) -> float | None:
    """Return the processor time of the training that made the scored weights, or None if it is not recorded."""
    try:
        run = read_complete(Path(Layout(results).run(subject["experiment"], subject["run_seed"])))
    except (UserError, KeyError):
        return None
    return run["cpu_seconds"] if run["weights_sha256"] == subject.get("weights_sha256") else None


def label_of(found: list[Result], metric: str) -> str:
    """Return a metric's name in the first score that has it."""
    return next((label for result in found if (label := result.label(metric))), metric)


def ranking_table(loaded: LoadedSweep, found: list[Result]) -> Table:
    """Return the ranking, one row per point, best first: mean, standard deviation and all seeds' values by metric."""
    metrics = dict.fromkeys((loaded.sweep.rank_by, *ALWAYS))
    full, shown = [], []
    for result in found:
        point, seeds = result.resolved.point, result.resolved.experiment.seeds
        row: dict[str, Any] = {"rank": result.rank, "point": result.name, "changes": point.changes_text}
        row |= {"grid": point.grid, "axis_values": " ".join(point.labels)}
        row |= {"seeds": " ".join(map(str, seeds)), "missing_seeds": " ".join(map(str, result.missing))}
        row |= {"cpu_seconds": statistics.fmean(taken) if (taken := result.cpu_seconds.values()) else None}
        row["shared_labels"] = result.shared
        row["cpu_seconds_values"] = " ".join(str(result.cpu_seconds.get(seed, MISSING)) for seed in seeds)
        for metric in PATTERNS:
            values = result.values(metric)
            row |= {metric: result.mean(metric), f"{metric}_std": result.spread(metric)}
            row[f"{metric}_values"] = " ".join(str(values.get(seed, MISSING)) for seed in seeds)
        full.append(row)
        shown.append(
            {
                "rank": cell(result.rank),
                "point": result.name,
                "changes of the base": point.changes_text or MISSING,
                "seeds": f"{len(seeds) - len(result.missing)} of {len(seeds)}",
                **{label_of(found, metric): result.format(metric) for metric in metrics},
                "training (CPU s)": cell(row["cpu_seconds"], "{:.0f}"),
            }
        )
    table = pd.DataFrame(full).astype({"rank": "Int64"})
    return Table(pd.DataFrame(shown), _ranking_notes(loaded, found), "Ranking", table)


def _ranking_notes(loaded: LoadedSweep, found: list[Result]) -> list[str]:
    way = "greatest" if loaded.sweep.falls else "least"
    budget = f"All at the sweep's budget, which is not the length of {loaded.sweep.base}. "
    length = budget if loaded.sweep.budget else ""
    notes = [
        f"Ranked by {loaded.sweep.rank_by}, the {way} first: mean over seeds ± their sample standard deviation. "
        f"{length}CPU s: processor time of a point's trainings, mean over seeds.",
    ]
    ranked = [result for result in found if result.rank is not None]
    if ranked:
        protocol = next(iter(ranked[0].scores.values()))["protocol"]
        notes.append(f"{protocol['n']} images each, in {features_words(protocol)}.")
    notes += [f"{shared_words(result.shared)}." for result in found if result.shared][:1]
    notes += _other_losses(loaded)
    for result in found:
        notes += [f"{result.name}, seed {seed}: no score ({why})." for seed, why in result.missing.items()]
        if result.differing:
            differing = ", ".join(result.differing).replace("_", " ")
            notes.append(f"{result.name}: no mean, since the scores of its seeds differ in {differing}.")
        elif result.scores and result.mean(loaded.sweep.rank_by) is None:
            notes.append(f"{result.name}: its scores have no {loaded.sweep.rank_by}.")
        elif result.scores and result.rank is None:
            notes.append(f"{result.name}: not ranked, since it was not measured as most points were.")
    return notes


def _other_losses(loaded: LoadedSweep) -> list[str]:
    """Return notes on points trained by other kinds of losses than the base, which scores do not record."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for resolved in loaded.points.values():
        groups.setdefault(_kinds(resolved.experiment), []).append(resolved.point.name)
    groups.pop(_kinds(loaded.base), None)
    return [
        f"Trained by {' and '.join(kinds) or 'no'} losses alone, at all levels: {', '.join(names)}. The base's: "
        f"{', '.join(_kinds(loaded.base))}."
        for kinds, names in groups.items()
    ]


def _kinds(experiment: Experiment) -> tuple[str, ...]:
    weights = {kind: getattr(experiment.losses, f"{kind}_weight") for kind in LOSSES}
    return tuple(kind for kind, weight in weights.items() if any(weight if isinstance(weight, list) else [weight]))


def best_experiment(loaded: LoadedSweep, found: list[Result]) -> str:
    """Return the best point as the text of an experiment's file, at the base's length.

    Raises:
        UserError: no point has a rank.
    """
    best = found[0]
    if best.rank is None:
        raise UserError(f"sweep {loaded.name}: no point has a {loaded.sweep.rank_by} yet, so none is the best")
    metric = loaded.sweep.rank_by
    said = f"point {best.name} of sweep {loaded.name}, best of {len(found)} by {metric} at the sweep's budget"
    values = {"extends": loaded.sweep.base, "description": said, **best.resolved.overrides}
    explained = "" if best.shared is None else f"# {shared_words(best.shared)}.\n"
    return seal_text(
        f"# yaml-language-server: $schema=../schema/experiment.schema.json\n# {mark()}\n{explained}"
        f"# {best.label(metric) or metric} {best.format(metric)}. Copy this file to config/experiments/NAME.yaml to "
        f"run it at the length of {loaded.sweep.base}:\n"
        "# snakemake --config experiments=NAME\n"
        + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    )
