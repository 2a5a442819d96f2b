"""Strict configuration: every mistake is one line that names the key and what would be right."""

import copy
import functools
from pathlib import Path

import pytest
import tiny

from udpm.config import DatasetConfig, Experiment, Scoring, Study, to_json
from udpm.config.experiment import RunConfig
from udpm.config.load import resolve_run, validate
from udpm.config.overrides import read_settings
from udpm.config.validation import read_yaml
from udpm.core.errors import UserError
from workflow.content import without_mutable_keys

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("process.alphas", [0.5, 1.5, 0.1], "process.alphas[1]: input should be less than or equal to 1, got 1.5"),
        ("process.alphas", [0.5, 0, 0.1], "process.alphas[1]: input should be greater than 0, got 0"),
        ("process.sigmas", [0.5, -0.1, 0.2], "process.sigmas[1]: input should be greater than 0"),
        ("process.sigmas", [0.5, 0.1], "process.sigmas: has 2 values, but levels is 3; give one for each level"),
        ("losses.r1_gamma", [1, 2], "losses.r1_gamma: has 2 values, but process.levels is 3"),
        ("losses.r2_gamma", [1, 2], "losses.r2_gamma: has 2 values, but process.levels is 3"),
        ("training.learningrate", 3, "training.learningrate: unknown key; did you mean learning_rate?"),
        ("training.batch", "x", "training.batch: input should be a valid integer, got 'x'"),
        ("discriminator", None, "discriminator: is missing, but losses.adversarial_weight is above 0"),
    ],
)
def test_mistakes_are_one_line(key, value, expected):
    values = copy.deepcopy(read_yaml(ROOT / "config/experiments/digits-paper.yaml"))
    section = values
    *parents, last = key.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    with pytest.raises(UserError) as error:
        validate(Experiment, values, "x.yaml")
    assert str(error.value).startswith(f"x.yaml: {expected}")
    assert "\n" not in str(error.value)


PATHS = {
    "scoring.extractor": Experiment,
    "scoring.reference": Experiment,
    "scoring.weights_folder": Experiment,
    "weights": Experiment,
    "sampling.noise": Experiment,
    "path": DatasetConfig,
    "results": Study,
}


@pytest.mark.parametrize("key", PATHS)
def test_a_path_may_be_anything_that_fits_on_a_line(key):
    model = PATHS[key]
    files = {Experiment: "experiments/digits-paper", DatasetConfig: "datasets/afhqv2", Study: "config"}
    values = read_yaml(ROOT / f"config/{files[model]}.yaml")
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
    if key == "scoring.reference":
        section["extractor"] = "x.pt"
    for path in (" a'b\"c $(touch x) `y`;&*?#~|<name>\\\t\r!", "-", "\u00fc/\u202f\u540d", "/", "."):
        section[last] = path
        found = validate(model, values, "x.yaml")
        assert functools.reduce(getattr, key.split("."), found) == path
    for path, named in (("", "must name a path"), (" ", "must name"), ("a\nb", r"'\n'"), ("a\0", r"'\x00'")):
        section[last] = path
        with pytest.raises(UserError, match=r"^[^\n]*$") as error:
            validate(model, values, "x.yaml")
        assert str(error.value).startswith(f"x.yaml: {key}: ")
        assert named in str(error.value)
    section[last] = "a{b}"
    if key in ("sampling.noise", "path"):
        validate(model, values, "x.yaml")
    else:
        with pytest.raises(UserError, match=r"must not contain \{, which Snakemake reads as a wildcard"):
            validate(model, values, "x.yaml")


def test_several_extractors_are_one_section_each():
    values = {"extractors": ["dinov2", "clip", "x.pt"], "weights_sha256": "a" * 64, "batch": 7}
    first, clip, file = validate(Scoring, values, "x").each
    alone = {**values, "extractor": "dinov2", "extractors": None}
    assert to_json(first) == to_json(validate(Scoring, alone, "x"))
    assert (clip.extractor, clip.batch, clip.weights_sha256) == ("clip", 7, None)
    assert (file.extractor, file.batch, file.weights) == ("x.pt", 7, None)
    # Published statistics are in the features of one network.
    published = {"extractors": ["x.pt", "inception", "digits"], "reference": "theirs.npz", "weights_sha256": "b" * 64}
    sections = validate(Scoring, published, "x").each
    assert [section.reference for section in sections] == ["theirs.npz", None, None]
    assert sections[1].weights.sha256 == "b" * 64


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"extractors": []}, "x: extractor"),
        ({"extractor": "lite0", "extractors": []}, "x: extractors: list should have at least 1 item"),
        ({"extractors": ["lite0", "clip", "lite0"]}, "x: extractors: lite0 is listed twice"),
        ({"extractors": ["x.pt", "./x.pt"]}, "x: extractors: x.pt is listed twice"),
        (
            {"extractor": "clip", "extractors": ["lite0"]},
            "x: extractors: the first is lite0, but extractor is clip; put",
        ),
        ({"extractor": "clip", "extractors": [3]}, "x: extractors[0]: "),
        ({"extractor": "lite0", "extractors": "lite0"}, "x: extractors: input should be a valid list"),
        ({"extractors": ["lite0", "a{b}"]}, "x: extractors[1]: a path must not contain {"),
    ],
)
def test_a_list_of_extractors_that_makes_no_sense(values, expected):
    with pytest.raises(UserError) as error:
        validate(Scoring, values, "x")
    assert str(error.value).splitlines()[0].startswith(expected)


def test_digits_resolves():
    run = resolve_run("digits-paper", 0, ROOT / "config")
    assert run.per_level("losses.r1_gamma") == [0.1, 0.5, 2]


def test_earlier_names_of_scoring_keys_still_read():
    earlier = {"extractor": "inception", "inception_folder": "w", "inception_sha256": "a" * 64}
    found = validate(Scoring, earlier, "x")
    assert (found.weights_folder, found.weights.sha256) == ("w", "a" * 64)
    with pytest.raises(UserError, match="inception_folder: is called weights_folder now; leave one out"):
        validate(Scoring, {**earlier, "weights_folder": "v"}, "x")


@pytest.mark.parametrize("weight", [0.0, [0.0, 0.0, 0.0]])
def test_a_loss_that_is_gone_may_have_no_weight(weight):
    now = tiny.run_config()
    values = now.model_dump(mode="json")
    values["losses"]["feature_matching_weight"] = weight
    assert validate(RunConfig, values, "run.json") == now
    assert without_mutable_keys(values) == without_mutable_keys(now.model_dump(mode="json"))
    values["losses"]["feature_matching_weight"] = [0.0, 0.5, 0.0]
    with pytest.raises(UserError, match=r"losses\.feature_matching_weight: unknown key"):
        validate(RunConfig, values, "run.json")
    with pytest.raises(UserError, match="it gained nothing, and was removed"):
        read_settings(Experiment, ["losses.feature_matching_weight=1"])
