"""What rules read and what their commands get, as Snakemake's functions of a job's wildcards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from experiments import Experiments

from udpm.config import to_json


class Arguments(list):
    """Words of a command; `{params.NAME:q}` in a shell line quotes each of them.

    Args:
        words: the words; their texts are what the command gets.
    """

    def __init__(self, *words: object) -> None:
        super().__init__(str(word) for word in words)

    def __repr__(self) -> str:
        # What Snakemake records of params. Earlier versions recorded one text, and what they made must not be redone.
        return repr(" ".join(self))


class Inputs:
    """Files and options that depend on more than the names in a job's wildcards.

    Args:
        plan: the experiments.
    """

    def __init__(self, plan: Experiments) -> None:
        self._plan, self._layout = plan, plan.layout

    # Data.

    def dataset(self, wildcards) -> str:
        """Return the folder of the prepared data set that a job reads."""
        return self._layout.dataset(self._plan.experiment(wildcards).dataset)

    def dataset_record(self, wildcards) -> str:
        """Return the record of the prepared data set that a job reads."""
        return self._layout.dataset_record(self._plan.experiment(wildcards).dataset)

    def cache(self, wildcards) -> str:
        """Return the folder of the level cache that a job reads."""
        return self._layout.cache(self._plan.experiment(wildcards).dataset)

    # Weights.

    def training_inputs(self, wildcards, forced: bool) -> dict[str, str | list[str]]:
        """Return what a training reads; nothing for a finished one, so that only force starts it again."""
        if not forced and (wildcards.experiment, int(wildcards.seed)) in self._plan.finished:
            return {}
        return {
            "config": self._layout.run_config(wildcards.experiment, wildcards.seed),
            "dataset": self.dataset_record(wildcards),
            "cache": self._layout.cache_record(self._plan.experiment(wildcards).dataset),
            "start": self.given_weights(wildcards),
        }

    def given_weights(self, wildcards) -> list[str]:
        """Return the weights that a run starts from or consists of."""
        weights = self._plan.experiment(wildcards).weights
        return [] if weights is None else [weights]

    def weights(self, wildcards) -> str:
        """Return the weights that a job samples."""
        name = self._plan.trained_as(wildcards.experiment, int(wildcards.seed))
        return self._layout.weights(name, wildcards.seed)

    def first_run_config(self, wildcards) -> str:
        """Return the configuration of an experiment's first run, for what is the same for all its seeds."""
        return self._layout.run_config(wildcards.experiment, self._plan.experiment(wildcards).seeds[0])

    # Samples.

    def noise(self, wildcards) -> list[str]:
        """Return the file of the noise that a run's samples start from, if there is one."""
        noise = self._plan.experiment(wildcards).sampling.noise
        return [] if noise is None else [noise]

    def samples(self, wildcards) -> list[str]:
        """Return the files of a run's sample set; the first is what commands are given: the images, or the record
        of shards."""
        images, record = (self._layout.samples(end, wildcards.experiment, wildcards.seed) for end in (".npz", ".json"))
        shards = self.shards(wildcards)
        return [record, *shards] if shards else [images, record]

    def sample_set(self, wildcards) -> str:
        """Return what commands are given of a run's sample set."""
        return self.samples(wildcards)[0]

    def shards(self, wildcards) -> list[str]:
        """Return the shards of a run's sample set; empty if one job draws all of it."""
        count = self._plan.experiment(wildcards).sampling.shards
        ends = [f"_{index}of{count}.npz" for index in range(1, count + 1)] if count > 1 else []
        return [self._layout.samples(end, wildcards.experiment, wildcards.seed) for end in ends]

    def latent_options(self, wildcards) -> Arguments:
        """Return how `udpm latents` decodes the latents of a run: as its samples are drawn."""
        sampling = self._plan.experiment(wildcards).sampling
        keys = ("weights", "iteration", "posterior", "guidance", "batch", "device", "precision", "threads")
        given = {key: getattr(sampling, key) for key in keys if getattr(sampling, key) is not None}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        return Arguments(*words, *["--tf32"] * sampling.tf32)

    # Scores.

    def reference(self, wildcards) -> str:
        """Return what a job's images are scored against."""
        return self._layout.reference(self._plan.scored_as(wildcards.experiment))

    def scoring(self, wildcards) -> str:
        """Return the resolved configuration of how a job's images are scored."""
        return self._layout.section("scoring", self._plan.scored_as(wildcards.experiment))

    def extractor(self, wildcards) -> str:
        """Return the TorchScript file of the feature extractor that a job's images are scored with."""
        return self._plan.extractor(wildcards.experiment)

    def made_extractor(self, wildcards) -> list[str]:
        """Return the extractor as an input, if the workflow makes or downloads it, or it exists."""
        made = self._plan.scoring(wildcards.experiment, "extractor") in ("digits", "inception")
        return [self.extractor(wildcards)] if made or Path(self.extractor(wildcards)).exists() else []

    def inception_folders(self) -> dict[str, Arguments]:
        """Return how `udpm fetch` downloads the Inception weights, or only checks them, by their folder."""
        folders: dict[str, Arguments] = {}
        for experiment in self._plan.known.values():
            scoring = experiment.scoring
            if scoring is not None and scoring.extractor == "inception":
                offline = [] if scoring.download else ["--offline"]
                folders.setdefault(scoring.inception_folder, Arguments("--sha256", scoring.inception_sha256, *offline))
        return folders

    def yardstick(self, wildcards) -> Arguments:
        """Return which yardstick `udpm score` measures."""
        if wildcards.yardstick == "heldout":
            return Arguments("--heldout")
        return Arguments("--noise", self._plan.experiment(wildcards).sampling.count)

    def milestone_scores(self, wildcards) -> list[str]:
        """Return the scores of the milestones that a run's best is chosen from."""
        candidates = self._plan.experiment(wildcards).candidates
        return [self._layout.milestone_scores(wildcards.experiment, wildcards.seed, number) for number in candidates]

    # Costs.

    def model_digests(self, _wildcards) -> list[str]:
        """Return identities of what the experiments' networks are built from: their cost changes with these."""
        runs = [self._plan.run(name, experiment.seeds[0]) for name, experiment in self._plan.experiments.items()]
        parts = [part for run in runs for part in (run.model, run.discriminator if run.adversarial else None)]
        return [digest([to_json(part)]) for part in parts if part is not None]


def digest(texts: Iterable[str]) -> str:
    """Return a short identity of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
