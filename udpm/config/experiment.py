"""An experiment: process, networks, losses, training, sampling and scoring of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any

from pydantic import Field, model_validator

from udpm.config.dataset import DatasetConfig
from udpm.config.evaluation import Diagnosis, Latents, Sampling, Scoring, Selection
from udpm.config.model import Discriminator, Generator, ModelConfig, Process, check_fit
from udpm.config.study import Resources
from udpm.config.training import Losses, Training, TrainingOrImported
from udpm.config.validation import Section, Seed, WorkflowPath, check
from udpm.core.hub import copy_name, is_address


class Experiment(Section):
    """One file of ``config/experiments/``."""

    extends: str | None = None
    """Experiment to inherit from; this file's values override its values. Lists are replaced as a whole."""
    description: str = ""
    """One line for reports."""
    dataset: str
    """Name of a file in ``config/datasets/``."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Training seeds; each is a separate run."""
    process: Process
    generator: Generator
    discriminator: Discriminator | None = None
    """Needed where a loss weight is adversarial."""
    losses: Losses
    training: TrainingOrImported
    weights: WorkflowPath | None = None
    """Weights to start training from, or to use unchanged with ``training: imported``: a file of this project (of the
    Hugging Face Hub: `udpm fetch hf://OWNER/NAME`) or a published checkpoint (.pt)."""
    sampling: Sampling = Sampling()
    scoring: Scoring | None
    """null: score nothing, and make no reference, nearest training images or selection."""
    selection: Selection | None = None
    """Also report the best milestone; default: only the end of training."""
    diagnosis: Diagnosis | None = None
    """Also show by level where each run loses quality and variety, on held-out images; default: only in
    ``snakemake diagnoses``."""
    latents: Latents = Latents()
    resources: Resources = Resources()
    """Cluster resources that jobs request."""

    @property
    def candidates(self) -> list[int]:
        """Iterations of the milestones to choose the best from, ascending; empty without a selection."""
        if self.selection is None or self.training == "imported":
            return []
        every, end = self.training.keep_every, self.training.iterations
        return sorted(self.selection.milestones or range(every, end + 1, every))

    @property
    def selection_sampling(self) -> Sampling:
        """Sampling of the images for the selection: that of the scored images, with another count and seed."""
        selection = self.selection or Selection()
        own = {"count": selection.count, "seed": selection.seed, "noise": None, "iteration": None, "shards": 1}
        return self.sampling.model_copy(update=own | {"intermediate": False, "images": "none"})

    @property
    def selection_scoring(self) -> Scoring | None:
        """Scoring of the images for the selection: that of the end of training, in one range."""
        return None if self.scoring is None else self.scoring.model_copy(update={"ranges": 1})

    @check
    def _lists_have_one_value_per_level(self) -> None:
        _check_lengths(self, "latents.strongest")

    @check
    def _training_has_what_it_needs(self) -> None:
        _check_training(self)

    @check
    def _imported_weights_have_a_file(self) -> None:
        if self.training == "imported":
            if self.weights is None:
                raise ValueError("weights: is missing, but training is imported; name the file")
            if len(self.seeds) > 1:
                raise ValueError(f"seeds: imported weights are a single run, got {len(self.seeds)} seeds; keep one")

    @check
    def _sampling_fits_the_model(self) -> None:
        sampling, training = self.sampling, self.training
        if sampling.guidance != 1 and not self.generator.label_dropout:
            raise ValueError("sampling.guidance: needs a generator trained with label_dropout above 0")
        if isinstance(sampling.labels, list) and not self.generator.class_conditional:
            raise ValueError("sampling.labels: the generator is not class_conditional; leave them out")
        if sampling.labels == "none" and sampling.guidance != 1:
            raise ValueError("sampling.guidance: needs labels, but sampling.labels is none")
        if sampling.labels == "none" and not self.generator.label_dropout:
            raise ValueError("sampling.labels: none needs a generator trained with label_dropout above 0")
        if isinstance(training, Training) and sampling.weights not in training.kept_weights:
            kept = ", ".join(training.kept_weights)
            raise ValueError(f"sampling.weights: {sampling.weights} is not kept; training keeps {kept}")

    @check
    def _sampled_milestone_is_kept(self) -> None:
        iteration, training = self.sampling.iteration, self.training
        if iteration is None:
            return
        if not isinstance(training, Training):
            raise ValueError("sampling.iteration: imported weights have no milestones; leave it out")
        if not training.keep_every or iteration % training.keep_every or iteration > training.iterations:
            raise ValueError(
                f"sampling.iteration: {iteration} is not kept; training keeps every {training.keep_every} (keep_every) "
                f"up to {training.iterations}"
            )

    @check
    def _milestones_keep_the_sampled_weights(self) -> None:
        averages = self.training.averages if isinstance(self.training, Training) else {}
        samples_milestones = self.selection is not None or self.sampling.iteration is not None
        if samples_milestones and averages and self.sampling.weights == "raw":
            raise ValueError("sampling.weights: raw, but milestones keep only averages; use ema")

    @check
    def _scores_can_be_measured(self) -> None:
        scoring, count = self.scoring, self.sampling.count
        if scoring is None:
            return
        if count % scoring.ranges or count < 2 * scoring.ranges:
            raise ValueError(
                f"scoring.ranges: cannot split sampling.count, {count}, into {scoring.ranges} equal ranges of 2 or "
                "more; change one of the two, or set scoring: null"
            )

    @check
    def _selection_has_milestones(self) -> None:
        selection, training = self.selection, self.training
        if selection is None:
            return
        if self.scoring is None:
            raise ValueError("selection: needs scores, but scoring is null; leave one out")
        if not isinstance(training, Training):
            raise ValueError("selection: imported weights have no milestones to choose from; leave it out")
        every = training.keep_every
        if every == 0 or every > training.iterations:
            raise ValueError(
                f"selection: training keeps no milestones; training.keep_every is {every}, must be in "
                f"1..{training.iterations}"
            )
        for iteration in selection.milestones or []:
            if iteration % every or iteration > training.iterations:
                raise ValueError(
                    f"selection.milestones: {iteration} is not kept; training keeps every {every} (keep_every) up to "
                    f"{training.iterations}"
                )
        if training.epochs and not selection.milestones:
            raise ValueError("selection.milestones: is missing; training.epochs may end before the last milestone")

    @check
    def _selection_is_independent(self) -> None:
        selection, sampling, training = self.selection, self.sampling, self.training
        if selection is None or not isinstance(training, Training):
            return
        if selection.seed == sampling.seed:
            raise ValueError(
                f"selection.seed: {selection.seed} is also sampling.seed; use another, so that the reported score is "
                "independent of the selection"
            )
        if len(set(selection.milestones or [])) != len(selection.milestones or []):
            raise ValueError(f"selection.milestones: duplicate iteration in {selection.milestones}")
        if sampling.iteration is not None:
            raise ValueError("sampling.iteration: samples one milestone, but selection samples the best; leave one out")

    @check
    def _latents_fit_the_model(self) -> None:
        if self.latents.labels and not self.generator.class_conditional:
            raise ValueError("latents.labels: the generator is not class_conditional; leave them out")

    @check
    def _gpus_are_one_for_each_process(self) -> None:
        gpus, training = self.resources.training.gpus_per_node, self.training
        if isinstance(training, Training) and gpus not in (None, 0, training.processes_per_node):
            raise ValueError(
                f"resources.training.gpus_per_node: {gpus}, but training.processes_per_node is "
                f"{training.processes_per_node}; each process takes one GPU, or gpus_per_node is 0"
            )

    @check
    def _seeds_differ(self) -> None:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: duplicate seed in {self.seeds}")


def _check_lengths(config: Experiment | RunConfig, *more: str) -> None:
    """Check that lists by level have one value for each."""
    losses = (
        *("reconstruction_weight", "lpips_weight", "energy_weight", "adversarial_weight", "r1_gamma", "r2_gamma"),
        "discriminator_noise.std",
    )
    paths = [*(f"losses.{key}" for key in losses), *more]
    paths += ["training.level_probabilities"] if config.training != "imported" else []
    paths += ["discriminator.dropout"] if config.discriminator is not None else []
    wrong = [
        f"{path}: has {len(value)} values, but process.levels is {config.process.levels}; "
        "give one value, or one for each level"
        for path, value in ((path, attrgetter(path)(config)) for path in paths)
        if isinstance(value, list) and len(value) != config.process.levels
    ]
    if wrong:
        raise ValueError("\n".join(wrong))


def _check_training(config: Experiment | RunConfig) -> None:
    """Check the discriminator that a loss needs, the sum of probabilities, and that weights are a file."""
    wrong = []
    if config.discriminator is None and any(_as_list(config.losses.adversarial_weight, 1)):
        wrong.append("discriminator: is missing, but losses.adversarial_weight is above 0")
    if config.weights is not None and is_address(config.weights):
        wrong.append(
            f"weights: {config.weights} is an address, but must be a file, which stays the same; "
            f"`udpm fetch {config.weights}` writes resources/weights/{copy_name(config.weights)}"
        )
    probabilities = None if config.training == "imported" else config.training.level_probabilities
    if probabilities is not None and not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        wrong.append(f"training.level_probabilities: must sum to 1, but sum to {sum(probabilities):g}")
    if wrong:
        raise ValueError("\n".join(wrong))


NO_SIGNAL = 0.01
"""Signal-to-noise ratio below which x_L counts as pure noise."""


FORMER_LOSS = "feature_matching_weight"
"""Key of `losses` for a while; files with a weight of 0 are still read."""


class RunConfig(Section):
    """Everything that one training run depends on, resolved; `udpm train` reads it and weight files store it."""

    experiment: str
    """Name of the experiment."""
    seed: Seed
    """Training seed."""
    dataset_name: str
    """Name of the data set."""
    dataset: DatasetConfig
    process: Process
    generator: Generator
    discriminator: Discriminator | None
    losses: Losses
    training: TrainingOrImported
    weights: str | None

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_keys(cls, values: Any) -> Any:
        # Resolved files, checkpoints and weights of earlier versions have these; files of experiments must not.
        if not isinstance(values, Mapping):
            return values
        training, losses = values.get("training"), values.get("losses")
        if isinstance(losses, Mapping) and FORMER_LOSS in losses and not any(_as_list(losses[FORMER_LOSS], 1)):
            values = {**values, "losses": {key: value for key, value in losses.items() if key != FORMER_LOSS}}
        if not isinstance(training, Mapping) or not isinstance(training.get("tensorboard"), bool):
            return values
        kept = {key: value for key, value in training.items() if key != "tensorboard"}
        named = {"trackers": ["tensorboard"] if training["tensorboard"] else []}
        return {**values, "training": named | kept}

    @check
    def _lists_have_one_value_per_level(self) -> None:
        _check_lengths(self)

    @check
    def _training_has_what_it_needs(self) -> None:
        _check_training(self)

    @check
    def _network_fits(self) -> None:
        check_fit(self.dataset.side, self.process, self.generator, f"data set {self.dataset_name}")

    @check
    def _classes_where_conditional(self) -> None:
        for key in ("generator", "discriminator"):
            section = getattr(self, key)
            if section is not None and section.class_conditional and self.dataset.classes < 2:
                raise ValueError(f"{key}.class_conditional: true, but data set {self.dataset_name} has no classes")

    @check
    def _lpips_takes_the_image(self) -> None:
        for level, weight in enumerate(self.per_level("losses.lpips_weight"), start=1):
            side = self.dataset.side >> (level - 1)
            if weight > 0 and side < 16:
                raise ValueError(
                    f"losses.lpips_weight: {weight:g} at level {level}, whose images have side {side}; "
                    "LPIPS-VGG needs at least 16, so it must be 0 there"
                )

    @check
    def _energy_score_has_draws_that_differ(self) -> None:
        losses, last, snr = self.losses, self.process.levels, self.process.last_snr
        if losses.energy_redraw and snr >= NO_SIGNAL:
            raise ValueError(
                f"losses.energy_redraw: true, but the signal-to-noise ratio of x_{last} is {snr:.2g}, so draws differ "
                f"in what they show of the image; it must be below {NO_SIGNAL:g}, or use generator.latent_channels"
            )
        for level, weight in enumerate(self.per_level("losses.energy_weight"), start=1):
            if weight and not self.generator.latent_channels and not (losses.energy_redraw and level == last):
                raise ValueError(
                    f"losses.energy_weight: {weight:g} at level {level}, where all draws are the same: the output is a "
                    f"function of x_{level} alone; set generator.latent_channels above 0"
                    + (", or losses.energy_redraw" if level == last else "")
                )
            side = self.dataset.side >> (level - 1)
            if weight and losses.energy_patch and side % losses.energy_patch:
                raise ValueError(
                    f"losses.energy_patch: {losses.energy_patch} does not divide {side}, the side at level {level}"
                )

    @check
    def _grey_images_keep_their_colours(self) -> None:
        colour = self.losses.augmentation.colour
        if colour and self.dataset.source == "digits":
            raise ValueError(f"losses.augmentation.colour: {colour:g}, but data set {self.dataset_name} is grey; use 0")

    @check
    def _pairs_keep_their_logits(self) -> None:
        if self.discriminator is None or self.losses.adversarial != "relativistic":
            return
        values = (self.per_level(key) for key in ("discriminator.dropout", "losses.adversarial_weight"))
        for level, (dropout, adversarial) in enumerate(zip(*values, strict=False), start=1):
            if dropout and adversarial:
                raise ValueError(
                    f"discriminator.dropout: {dropout:g} at level {level} would drop one logit of a pair that "
                    "losses.adversarial: relativistic compares; it must be 0 there"
                )

    @property
    def classes(self) -> int:
        """Number of classes of the data set; 0 if unlabelled."""
        return self.dataset.classes

    @property
    def model(self) -> ModelConfig:
        """The part that defines the generator's tensors and sampling with them."""
        return ModelConfig(
            side=self.dataset.side,
            classes=self.classes if self.generator.class_conditional else 0,
            process=self.process,
            generator=self.generator,
        )

    @property
    def adversarial(self) -> bool:
        """True if a discriminator is trained."""
        return self.discriminator is not None and any(self.per_level("losses.adversarial_weight"))

    def per_level(self, path: str) -> list[float]:
        """Values of a per-level key such as "losses.r1_gamma", one for each level, l = 1 first."""
        return _as_list(attrgetter(path)(self), self.process.levels)


def _as_list(value: float | list[float], count: int) -> list[float]:
    return list(value) if isinstance(value, list) else [value] * count
