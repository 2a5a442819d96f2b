"""Paths of all files below a folder of results. No other file spells them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from udpm.config.evaluation import NAMED_EXTRACTORS

CARD = "README.md"
READ = (
    *("caches", "configs", "content", "datasets", "diagnoses", "extractors", "features", "images", "latents"),
    *("references", "runs", "samples", "scores", "selection", "speed"),
)
"""Folders that commands or the workflow read. Tables, figures and pages are only written."""

EXPERIMENT, SEED, DATASET, ITERATION = "{experiment}", "{seed}", "{dataset}", "{iteration}"
"""Wildcards of Snakemake."""
EXTRACTOR = "{extractor}"
"""Wildcard of the suffix of an extractor's files: empty for the first extractor of an experiment, else `suffix_of`."""

FURTHER = "@*"
"""Suffixes of all further extractors, for `Layout.found`."""


def suffix_of(extractor: str) -> str:
    """Return the suffix of the names of files about a further extractor, which neither experiments nor seeds contain.

    Files with one name in several folders, and names that are no names of files, get different suffixes.
    """
    if extractor in NAMED_EXTRACTORS:
        return f"@{extractor}"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", Path(extractor).stem)[:40].strip("-")
    return f"@{readable or 'file'}-{hashlib.sha256(extractor.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Layout:
    """Paths below a folder of results, as text.

    Without arguments, a method returns a pattern with Snakemake's wildcards, such as ``{experiment}``, for rules. With
    "*" as an argument, it returns a pattern for `found`.
    """

    results: str | Path

    def found(self, pattern: str) -> list[Path]:
        """Return the existing paths that a method's pattern matches, sorted."""
        return sorted(Path(self.results).glob(pattern.removeprefix(f"{self.results}/")))

    # Resolved configurations.

    @property
    def configs(self) -> str:
        """Folder of all resolved configurations."""
        return f"{self.results}/configs"

    def run_config(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Configuration of a run."""
        return f"{self.configs}/{experiment}/seed{seed}.json"

    def section(self, section: str = "{section}", experiment: str = EXPERIMENT, extractor: str = "") -> str:
        """One section of an experiment's configuration; of scoring, that of an extractor (by its suffix)."""
        return f"{self.configs}/{experiment}/{section}{extractor}.json"

    def dataset_config(self, dataset: str = DATASET) -> str:
        """Configuration of a data set."""
        return f"{self.configs}/datasets/{dataset}.json"

    # Data, extractors and references.

    @property
    def datasets(self) -> str:
        """Folder of all prepared data sets."""
        return f"{self.results}/datasets"

    def dataset(self, dataset: str = DATASET) -> str:
        """Folder of a prepared data set."""
        return f"{self.datasets}/{dataset}"

    def dataset_record(self, dataset: str = DATASET) -> str:
        """Record of a prepared data set."""
        return f"{self.dataset(dataset)}/dataset.json"

    def cache(self, dataset: str = DATASET) -> str:
        """Folder of a data set's level cache."""
        return f"{self.results}/caches/{dataset}"

    def cache_record(self, dataset: str = DATASET) -> str:
        """Record of a level cache."""
        return f"{self.cache(dataset)}/cache.json"

    def extractor(self, dataset: str = DATASET, suffix: str = ".pt") -> str:
        """Classifier of a data set, or its record (.json)."""
        return f"{self.results}/extractors/{dataset}{suffix}"

    @property
    def references(self) -> str:
        """Folder of all reference statistics."""
        return f"{self.results}/references"

    def reference(self, experiment: str = EXPERIMENT, extractor: str = "") -> str:
        """Reference statistics of an experiment, in the features of an extractor (by its suffix)."""
        return f"{self.references}/{experiment}{extractor}.npz"

    @property
    def features(self) -> str:
        """Folder of cached features."""
        return f"{self.results}/features"

    # Runs.

    @property
    def runs(self) -> str:
        """Folder of all runs."""
        return f"{self.results}/runs"

    def run(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Folder of a run."""
        return f"{self.runs}/{experiment}/seed{seed}"

    def weights(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Final weights of a run."""
        return f"{self.run(experiment, seed)}/weights.safetensors"

    def completion(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Record of a finished run."""
        return f"{self.run(experiment, seed)}/complete.json"

    def metrics(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Metrics of training, a line for each interval."""
        return f"{self.run(experiment, seed)}/metrics.jsonl"

    def card(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Model card of a run."""
        return f"{self.run(experiment, seed)}/{CARD}"

    # Samples and scores.

    @property
    def sample_sets(self) -> str:
        """Folder of all sample sets."""
        return f"{self.results}/samples"

    def samples(self, suffix: str, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """A file of a run's sample set: ``.npz``, ``.json``, a shard ``_1of3.npz``, ``_chain.npz``, ``_best.npz``."""
        return f"{self.sample_sets}/{experiment}/seed{seed}{suffix}"

    def sample_record(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Record of a run's sample set, in one file or in shards."""
        return self.samples(".json", experiment, seed)

    def images(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Folder of a run's samples as image files."""
        return f"{self.results}/images/{experiment}/seed{seed}"

    def latents(self, experiment: str = EXPERIMENT, seed: int | str = SEED, kind: str = "{kind}") -> str:
        """Latent-space experiment of a run."""
        return f"{self.results}/latents/{experiment}/seed{seed}/{kind}.npz"

    def scores(self, subject: str, experiment: str = EXPERIMENT, extractor: str = "") -> str:
        """Scores of ``seedN``, ``seedN_best``, ``heldout`` or ``noise``, by an extractor (by its suffix)."""
        return f"{self.results}/scores/{experiment}/{subject}{extractor}.json"

    def selection(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Folder of the selection of a run's best milestone."""
        return f"{self.results}/selection/{experiment}/seed{seed}"

    def choice(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Record of the selection of a run's best milestone."""
        return f"{self.selection(experiment, seed)}/selection.json"

    def milestone_samples(
        self, suffix: str, experiment: str = EXPERIMENT, seed: int | str = SEED, iteration: int | str = ITERATION
    ) -> str:
        """A file of a milestone's sample set: ``.npz`` or ``.json``."""
        return f"{self.selection(experiment, seed)}/samples/{iteration}{suffix}"

    def milestone_scores(
        self, experiment: str = EXPERIMENT, seed: int | str = SEED, iteration: int | str = ITERATION
    ) -> str:
        """Scores of a milestone."""
        return f"{self.selection(experiment, seed)}/scores/{iteration}.json"

    def diagnosis(self, experiment: str = EXPERIMENT, seed: int | str = SEED) -> str:
        """Diagnosis of a run."""
        return f"{self.results}/diagnoses/{experiment}/seed{seed}.json"

    def speed(self, experiment: str = EXPERIMENT) -> str:
        """Measured speed of an experiment's sampling."""
        return f"{self.results}/speed/{experiment}.json"

    # Reports.

    def table(self, name: str) -> str:
        """A table, without suffix."""
        return f"{self.results}/tables/{name}"

    def figure(self, name: str) -> str:
        """A figure, without suffix."""
        return f"{self.results}/figures/{name}"

    def sweep(self, file: str, sweep: str = "{sweep}") -> str:
        """A file of a sweep's report."""
        return f"{self.results}/sweeps/{sweep}/{file}"

    @property
    def overview(self) -> str:
        """Page about the whole study."""
        return f"{self.results}/overview.html"

    @property
    def summary(self) -> str:
        """The same page as text."""
        return f"{self.results}/summary.md"

    # Records of jobs.

    @property
    def content(self) -> str:
        """Folder of records of what files were made from."""
        return f"{self.results}/content"

    def log(self, job: str) -> str:
        """Output of a job."""
        return f"{self.results}/logs/{job}.log"

    def benchmark(self, job: str) -> str:
        """Resource usage of a job, measured by Snakemake."""
        return f"{self.results}/benchmarks/{job}.tsv"

    def usage(self, job: str) -> str:
        """Resource usage of a job, measured by its command."""
        return f"{self.results}/benchmarks/{job}.jsonl"


def milestone(run: str | Path, iteration: int) -> Path:
    """Weights that training kept at an iteration, in the run's folder."""
    return Path(run) / "milestones" / f"{iteration:09d}.safetensors"


def snapshot(run: str | Path, iteration: int) -> Path:
    """Averages of an iteration for `udpm average`, in the run's folder; their manifest has the suffix .json."""
    return Path(run) / "snapshots" / f"{iteration:09d}.safetensors"


def tracker_folder(run: str | Path, name: str) -> Path:
    """Folder of a tracker's files, in the run's folder."""
    return Path(run) / name


def tracker_record(run: str | Path) -> Path:
    """Record of the name that trackers know a run by, in the run's folder."""
    return Path(run) / "trackers.json"


def results_of(run: Path) -> Path:
    """Folder of results of a run in RESULTS/runs/EXPERIMENT/seedN."""
    return run.resolve().parent.parent.parent
