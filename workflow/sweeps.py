"""A sweep's part of the plan: its points, what they share, and what stands in the way of running them."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from udpm.config import Experiment, load_sweep
from udpm.core.errors import UserError
from udpm.report.sweep.status import point_standings, summary, trained_points


class SweepPlan:
    """The points of one sweep as experiments.

    Args:
        name: of the sweep.
        config: folder of the configuration.
        results: folder of everything that is made.

    Attributes:
        loaded: the sweep.
        experiments: the points, and the base, by their names as experiments.
        runs: configurations by (experiment, seed).
        trained: by (experiment, seed), the point whose run is used.
        scored: by point, the experiment whose scoring and reference are used.

    Raises:
        UserError: the sweep or a point is invalid.
    """

    def __init__(self, name: str, config: str, results: str) -> None:
        self.name, self.results, self._told = name, results, False
        self.loaded = load_sweep(name, config)
        self.runs, self.scored = self.loaded.runs, self.loaded.scored
        self.trained = trained_points(self.loaded, Path(results))
        self.experiments: dict[str, Experiment] = {self.loaded.sweep.base: self.loaded.base}
        self.experiments |= {point: resolved.experiment for point, resolved in self.loaded.points.items()}

    def check(self, check_run: Callable[[str, int], None]) -> None:
        """Find all that stands in the way of the runs.

        Args:
            check_run: raises UserError if a run is impossible.

        Raises:
            UserError: a run is; says how many more there are.
        """
        mistakes = []
        for name, seed in self.runs:
            try:
                check_run(name, seed)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            more = f" (and {len(mistakes) - 1} more: udpm sweep status {self.name})" if len(mistakes) > 1 else ""
            raise UserError(f"{mistakes[0]}{more}")

    @property
    def any_point(self) -> str:
        """A pattern for the points' names as experiments."""
        return rf"{re.escape(self.name)}\.[^/]+"

    def scores(self) -> list[str]:
        """Score files of all points and seeds."""
        return [f"{self.results}/scores/{name}/seed{seed}.json" for name, seed in self.runs]

    def shown_samples(self) -> list[str]:
        """Records of the sample sets whose images are shown side by side: of each point's first seed."""
        first = {name: resolved.experiment.seeds[0] for name, resolved in self.loaded.points.items()}
        return [f"{self.results}/samples/{name}/seed{seed}.json" for name, seed in first.items()]

    def grid_scores(self, grid: str) -> list[str]:
        """Those of a grid's points."""
        inside = {name for name, resolved in self.loaded.points.items() if resolved.point.grid == grid}
        return [f"{self.results}/scores/{name}/seed{seed}.json" for name, seed in self.runs if name in inside]

    def targets(self) -> list[str]:
        """What `sweep` asks for."""
        folder = f"{self.results}/sweeps/{self.name}"
        heat_maps = [f"{folder}/heat_{grid}.png" for grid in self.loaded.sweep.heat_maps]
        return [*self.plan_targets(), f"{folder}/ranking.html", f"{folder}/strip.png", *heat_maps]

    def plan_targets(self) -> list[str]:
        """What `sweep_plan` asks for."""
        return [f"{self.results}/sweeps/{self.name}/plan.html"]

    def plan_digest(self) -> str:
        """Identity of all that the plan tells."""
        # Of a data set only the side counts, not its words.
        runs = [run.model_dump_json(exclude={"dataset"}) + str(run.dataset.side) for run in self.runs.values()]
        counts = [str(experiment.sampling.count) for experiment in self.experiments.values()]
        return _digest([*runs, *counts, str(self.loaded.sweep.multiply_adds_per_second)])

    def ranking_digest(self) -> str:
        """Identity of all that the ranking and the best point's file hold beside scores."""
        return _digest([self.loaded.sweep.model_dump_json(), *(str(p.overrides) for p in self.loaded.points.values())])

    def grid_digest(self, grid: str) -> str:
        """Identity of what a heat map holds beside scores."""
        sweep = self.loaded.sweep
        axes = [f"{name} {axis.model_dump_json()}" for name, axis in sweep.grids[grid].items()]
        return _digest([sweep.rank_by, *axes])

    def tell(self) -> None:
        """Print once what there is of the sweep, and what is new, in a line."""
        if not self._told:
            print(summary(self.name, point_standings(self.loaded, Path(self.results))), file=sys.stderr)
        self._told = True


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
