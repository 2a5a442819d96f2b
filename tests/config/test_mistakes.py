"""All mistakes of a configuration file are reported together, one line for each."""

import pytest
import tiny
import yaml

from udpm.config import Experiment
from udpm.config.load import read_yaml, validate
from udpm.core.errors import UserError

DIGITS = tiny.ROOT / "config/experiments/digits-paper.yaml"
LENGTH = read_yaml(DIGITS)["training"]["iterations"]


def changed(**changes):
    """Return the digits experiment with changed keys ("a__b" for a.b; ... removes one)."""
    values = read_yaml(DIGITS)
    for dotted, value in changes.items():
        section = values
        *parents, last = dotted.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return values


def mistakes(**changes):
    with pytest.raises(UserError) as caught:
        validate(Experiment, changed(**changes), "x.yaml")
    return caught.value.mistakes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"training__batch": "many", "training__learning_rat": 1.0, "process__alphas": [0.5]},
            [
                "process.alphas: has 1 values, but levels is 3; give one for each level",
                "training.batch: input should be a valid integer, got 'many'",
                "training.learning_rat: unknown key; did you mean learning_rate?",
            ],
        ),
        # A value may be a number or a list: one line, about the wrong part.
        (
            {"losses__r1_gamma": "x", "losses__lpips_weight": [1, "a", -2]},
            [
                "losses.lpips_weight[1]: input should be a valid number, got 'a'",
                "losses.lpips_weight[2]: input should be greater than or equal to 0, got -2",
                "losses.r1_gamma: input should be a valid number or a valid list, got 'x'",
            ],
        ),
        (
            {"sampling__labels": "some", "training": 3},
            [
                "training: input should be a section, its keys indented below it, got 3",
                "sampling.labels: input should be 'balanced' or 'none' or a valid list, got 'some'",
            ],
        ),
        # Keys that must agree: all that do not are reported.
        (
            {"losses__r1_gamma": [1.0], "seeds": [0, 0], "sampling__guidance": 2.0, "discriminator__dropout": [0.1]},
            [
                "losses.r1_gamma: has 1 values, but process.levels is 3; give one value, or one for each level",
                "discriminator.dropout: has 1 values, but process.levels is 3; give one value, or one for each level",
                "sampling.guidance: needs a generator trained with label_dropout above 0",
                "seeds: duplicate seed in [0, 0]",
            ],
        ),
        (
            {"selection": {"milestones": [7]}, "training__keep_every": 0, "sampling__iteration": 7},
            [
                f"sampling.iteration: 7 is not kept; training keeps every 0 (keep_every) up to {LENGTH}",
                f"selection: training keeps no milestones; training.keep_every is 0, must be in 1..{LENGTH}",
                "sampling.iteration: samples one milestone, but selection samples the best; leave one out",
            ],
        ),
    ],
)
def test_every_mistake_has_a_line_of_its_own(changes, expected):
    assert mistakes(**changes) == [f"x.yaml: {line}" for line in expected]


def test_reports_ten_mistakes_and_counts_the_rest():
    lines = mistakes(**{f"training__key{index:02d}": 1 for index in range(14)})
    assert len(lines) == 11
    assert lines[0].startswith("x.yaml: training.key00: unknown key")
    assert lines[-1] == "x.yaml: and 4 more"


def test_they_reach_the_screen(tmp_path, monkeypatch, capsys):
    (tmp_path / "config/experiments").mkdir(parents=True)
    values = changed(training__batch="many", sampling__count=0, scoring__extractor=...)
    (tmp_path / "config/experiments/x.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    assert tiny.call("resolve", "x", "--output", "x.json") == 2
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(".yaml: ")[2].partition(":")[0] for line in shown] == [
        "training.batch",
        "sampling.count",
        "scoring.extractor",
    ]
    assert all(line.startswith("error: config/experiments/x.yaml: ") for line in shown)
