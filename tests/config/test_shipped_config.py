"""The files in config/ resolve and have the paper's values; schemas and manual agree with the code."""

import json
import re
import shlex

import jsonschema
import pytest
import torch
import yaml
from snakemake.cli import get_argument_parser, parse_config
from tiny import ROOT

from udpm.config import list_configs, load_experiment, resolve_run
from udpm.config.schema import FILES, KEYS, insert, json_schema, key_reference
from udpm.networks.discriminator import build_discriminator
from udpm.networks.unet import build_generator

CONFIG = ROOT / "config"
EXPERIMENTS = list_configs(CONFIG / "experiments")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_resolves_and_has_a_description(name):
    assert resolve_run(name, 0, CONFIG).experiment == name
    assert (CONFIG / f"experiments/{name}.yaml").read_text().startswith("# yaml-language-server: $schema=")


PAPER = {
    # dropout of G and D, γ, classes, parameters of G and D in millions
    "cifar10": (0.0, 0.4, [0.025, 0.1, 0.4], True, 57.74, 18.95),
    "ffhq64": (0.0, 0.2, [0.1, 0.4, 0.8], False, 65.41, 23.86),
    "afhqv2": (0.1, 0.3, [0.1, 0.4, 0.8], False, 65.41, 23.86),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_values(name):
    dropout, discriminator_dropout, gamma, conditional, generator_size, discriminator_size = PAPER[name]
    run = resolve_run(name, 0, CONFIG)
    assert (run.process.alphas, run.process.sigmas) == ([0.5, 0.2, 1e-3], [0.1, 0.2, 0.3])
    training = run.training
    assert (training.iterations, training.batch, training.warmup) == (600_000, 64, 5000)
    assert (training.learning_rate, training.discriminator_learning_rate) == (1e-4, None)
    assert (training.ema_decay, training.betas, training.flip) == (0.9999, [0.9, 0.999], True)
    assert (training.precision, training.level_probabilities) == ("bfloat16", None)
    losses = run.losses
    assert (losses.reconstruction, losses.normalize) == ("l1", True)
    assert losses.reconstruction_weight == [1, 1, 0]
    assert losses.lpips_weight == [4, 4, 0]
    assert losses.adversarial_weight == [0.2, 0.5, 1]
    assert losses.r1_gamma == gamma
    noise = losses.discriminator_noise
    assert (noise.kind, noise.std, noise.decay_per_1000) == ("noisy", 0.4, 0.99)
    assert (run.generator.dropout, run.discriminator.dropout) == (dropout, discriminator_dropout)
    assert run.generator.class_conditional is run.discriminator.class_conditional is conditional
    with torch.device("meta"):
        networks = build_generator(run.model), build_discriminator(run)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in networks]
    assert sizes == pytest.approx([generator_size, discriminator_size], abs=0.005)


def test_only_untrained_experiments_have_noise_of_a_counter():
    """Numbers of the paper's experiments and of those that were measured do not move."""
    kinds = {name: load_experiment(name, CONFIG) for name in EXPERIMENTS}
    named = {
        name: (experiment.training.noise, experiment.sampling.noise_kind)
        for name, experiment in kinds.items()
        if "counter" in (experiment.training.noise, experiment.sampling.noise_kind)
    }
    assert named == dict.fromkeys(("cifar10-plus", "ffhq64-plus", "afhqv2-plus"), ("counter", "counter"))


def test_the_demo_keeps_the_papers_levels_and_schedule():
    demo, paper = resolve_run("digits", 0, CONFIG), resolve_run("cifar10", 0, CONFIG)
    assert demo.process == paper.process


def test_the_proofs_points_are_the_recipes():
    """Changes of a recipe reach the sweep that compares it with the published one."""
    for point, experiment in (("recipe", "digits-plus"), ("published", "digits-paper")):
        given, own = resolve_run(f"recipe-digits.{point}", 1, CONFIG), resolve_run(experiment, 1, CONFIG)
        assert given == own.model_copy(update={"experiment": f"recipe-digits.{point}"})


@pytest.mark.parametrize("kind", FILES)
def test_schemas_are_the_models(kind):
    assert json.loads((CONFIG / f"schema/{kind}.schema.json").read_text()) == json_schema(kind), "run `udpm schema`"


def test_the_manual_lists_every_key():
    manual = (CONFIG / "README.md").read_text()
    assert insert(CONFIG / "README.md", manual, KEYS, key_reference()) == manual, "run `udpm schema`"


@pytest.mark.parametrize(
    ("kind", "path"),
    [("study", CONFIG / "config.yaml")]
    + [("experiment", CONFIG / f"experiments/{name}.yaml") for name in EXPERIMENTS]
    + [("sweep", CONFIG / f"sweeps/{name}.yaml") for name in list_configs(CONFIG / "sweeps")]
    + [("dataset", CONFIG / f"datasets/{name}.yaml") for name in list_configs(CONFIG / "datasets")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_files_fit_their_schemas(kind, path):
    validator = jsonschema.Draft202012Validator(json_schema(kind))
    validator.validate(yaml.safe_load(path.read_text()))
    assert list(validator.iter_errors({"nonsense": 1}))


def test_conda_requires_the_same_versions():
    pins = [line for line in (ROOT / "envs/constraints.txt").read_text().splitlines() if "==" in line]
    environment = yaml.safe_load((ROOT / "envs/udpm.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == pins, "run `make envs/udpm.yaml`"


MANUALS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *CONFIG.rglob("*.md"), *CONFIG.glob("*.yaml")]
COMMAND = re.compile(r"`(snakemake [^`]+)`|(?:^ {4}|: )(snakemake [^`#\n]+)", re.MULTILINE)


@pytest.mark.parametrize("path", sorted(MANUALS), ids=lambda path: str(path.relative_to(ROOT)))
def test_snakemake_understands_the_manuals_commands(path):
    """--config and --configfile swallow targets that follow them."""
    for command in map("".join, COMMAND.findall(path.read_text())):
        given = get_argument_parser().parse_args(shlex.split(command)[1:])
        parse_config(given.config)
        assert all((ROOT / file).is_file() for file in given.configfile or []), command
