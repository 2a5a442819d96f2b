"""What the paper's tables and figures are made from, worked out before any job starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arguments import Arguments

from udpm.config.published_scores import RUNTIME, SETUPS, load_published, published_names, table_names
from udpm.core.errors import UserError

if TYPE_CHECKING:
    from plan import Plan

CONFIG = "config"
TABLES = "tables/paper"


class PaperPlan:
    """Of the experiments that the study lists it asks for all that is needed, of all others it takes what is there.

    Args:
        plan: the study's.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.results = plan, plan.results
        self.names = table_names(CONFIG)

    def targets(self) -> list[str]:
        """All tables, and the figures of the same numbers."""
        return [f"{self.results}/{TABLES}/{name}.html" for name in self.names] + self.figures()

    def figures(self) -> list[str]:
        """The figure of the same numbers."""
        return [f"{self.results}/figures/paper/tradeoff.png"]

    def published_files(self, _wildcards=None) -> list[str]:
        """All files of published numbers."""
        return [f"{CONFIG}/published/{name}.yaml" for name in [*published_names(CONFIG), RUNTIME]]

    def tradeoff_scores(self, _wildcards=None) -> list[str]:
        """Scores of the experiments that have a place in the figure of cost."""
        return self.scores(self._named(published_names(CONFIG), figure=True))

    def published(self, wildcards) -> list[str]:
        """The file of published numbers behind a table."""
        return [] if wildcards.table in SETUPS else [f"{CONFIG}/published/{wildcards.table}.yaml"]

    def material(self, wildcards) -> list[str]:
        """What was measured, or is to be, for a table."""
        if wildcards.table in SETUPS:
            return self._files("runs/{}/seed*/complete.json", self.runs())
        if wildcards.table == RUNTIME:
            return self._files("speed/{}.json", [f"{self.results}/speed/{name}.json" for name in self.plan.experiments])
        return self.scores(self._named([wildcards.table]))

    def all_scores(self, _wildcards=None) -> list[str]:
        """The scores of all tables, and of the study."""
        return sorted({*self.plan.scores(), *self.scores(self._named(published_names(CONFIG)))})

    def scores(self, names: list[str]) -> list[str]:
        """Scores of experiments: the study's are made, others' are taken where they are there."""
        study = [path for path in self.plan.scores() if Path(path).parent.name in names]
        others = [name for name in names if name not in self.plan.experiments]
        return sorted({*study, *self._there("scores/{}/*.json", others)})

    def overview(self) -> list[str]:
        """The page on the whole study, and a card beside the weights of every run."""
        cards = [f"{self.results}/runs/{name}/seed{seed}/README.md" for name, seed in self.plan.runs()]
        return [f"{self.results}/overview.html", *cards]

    def run_scores(self, wildcards) -> list[str]:
        """Scores of one run: of its last checkpoint, and of its best where one is selected."""
        stem = f"{self.results}/scores/{wildcards.experiment}/seed{wildcards.seed}"
        known = self.plan.scores()
        return [path for path in (f"{stem}.json", f"{stem}_best.json") if path in known]

    def experiments(self, _wildcards=None) -> Arguments:
        """The study's experiments, as `udpm summary` takes them."""
        return Arguments(*self.plan.experiments)

    def options(self, _wildcards=None) -> Arguments:
        """The study's experiments, as `udpm paper` takes them."""
        return Arguments(*(word for name in self.plan.experiments for word in ("--experiment", name)))

    def runs(self, _wildcards=None) -> list[str]:
        """What says that the study's runs are whole."""
        return [f"{self.results}/runs/{name}/seed{seed}/complete.json" for name, seed in self.plan.runs()]

    def _files(self, pattern: str, study: list[str]) -> list[str]:
        others = [name for name in self._named(published_names(CONFIG)) if name not in self.plan.experiments]
        return sorted({*study, *self._there(pattern, others)})

    def _there(self, pattern: str, names: list[str]) -> list[str]:
        return [str(path) for name in names for path in sorted(Path(self.results).glob(pattern.format(name)))]

    def _named(self, tables: list[str], figure: bool = False) -> list[str]:
        """Experiments that tables of published scores name; a broken file's own job says what is wrong with it."""
        named: list[str] = []
        for table in tables:
            try:
                found = load_published(table, CONFIG)
            except UserError:
                continue
            named += found.experiments if found.figure or not figure else []
        return list(dict.fromkeys(named))
