"""Single keys set on the command line: in resolved configurations, in runs, and mistakes in them."""

import itertools
import json
from pathlib import Path

import pytest
import tiny

CONFIG = tiny.ROOT / "config"


@pytest.fixture(autouse=True)
def no_estimate(monkeypatch):
    """Leave the memory estimate out of dry runs: seconds, for tests of the name alone."""
    monkeypatch.setattr("udpm.training.dryrun._describe_gpu", lambda config: "")


def resolve(tmp_path, *arguments):
    """Return the resolved configuration that a command line writes."""
    output = tmp_path / "resolved.json"
    assert tiny.call("resolve", *arguments, "--config", CONFIG, "--output", output) == 0
    return json.loads(output.read_text())


def sets(*settings):
    return [word for setting in settings for word in ("--set", setting)]


def test_a_run_has_the_values_and_says_so_in_its_name(tmp_path, capsys):
    plain = resolve(tmp_path, "digits-paper")
    changed = resolve(
        tmp_path,
        "digits-paper",
        *sets("training.batch=16", "training.learning_rate=1e-4", "process.sigmas[3]=0.6", "training.log_every=7"),
    )
    assert "seed 0, with training.batch=16 training.learning_rate=1e-4" in capsys.readouterr().out
    name = "digits-paper+process.sigmas=[0.1,0.2,0.6]+training.batch=16+training.learning_rate=0.0001"
    assert changed["experiment"] == name
    plain["experiment"], plain["process"]["sigmas"] = name, [0.1, 0.2, 0.6]
    plain["training"] |= {"batch": 16, "learning_rate": 1e-4, "log_every": 7}
    assert changed == plain


def test_values_are_set_as_in_the_experiments_file(tmp_path, capsys):
    (tmp_path / "experiments").mkdir()
    text = (CONFIG / "experiments/digits-paper.yaml").read_text()
    (tmp_path / "experiments/e.yaml").write_text(text.replace("  ema_decay: 0.99\n", ""))
    (tmp_path / "datasets").symlink_to(CONFIG / "datasets")
    # A half-life replaces the default decay where the file names none.
    assert tiny.call("resolve", "e", "--config", tmp_path, *sets("training.ema_halflife=500.0")) == 0
    assert json.loads(capsys.readouterr().out)["training"]["ema_decay"] is None


def test_keys_may_be_nested_and_of_a_sweeps_point(tmp_path):
    point = resolve(tmp_path, "schedules-digits.quiet", *sets("losses={r1_gamma: [1.5, 2.5, 3.5]}"))
    assert point["losses"]["r1_gamma"] == [1.5, 2.5, 3.5]
    assert point["experiment"] == "schedules-digits.quiet+losses.r1_gamma=[1.5,2.5,3.5]"


def test_sections_and_data_sets(tmp_path, capsys):
    assert resolve(tmp_path, "digits", "--part", "sampling", *sets("sampling.count=100"))["count"] == 100
    assert resolve(tmp_path, "--dataset", "digits", *sets("side=8", "description=small"))["side"] == 8
    assert capsys.readouterr().err == ""
    plain = resolve(tmp_path, "digits", "--part", "scoring")
    assert resolve(tmp_path, "digits", "--part", "scoring", *sets("sampling.count=100")) == plain
    assert capsys.readouterr().err.splitlines() == [
        "warning: --set sampling.count=100: changes nothing in scoring of experiment digits"
    ]


FILE = f"{CONFIG}/experiments/digits.yaml, with --set: "
REFUSED = {
    "digits --set training.bach=8": "--set: training.bach: not a key of an experiment; did you mean training.batch?",
    "digits --set batch=8": "--set: batch: not a key of an experiment; did you mean "
    "training.batch or sampling.batch or scoring.batch?",
    "digits --set extends=cifar10": "--set: extends: not a key of an experiment",
    "--dataset digits --set sid=8": "--set: sid: not a key of a data set; did you mean side?",
    "digits --set train.batch=8": "--set: train.batch: not a key of an experiment; did you mean training.batch?",
    "digits --set training.r1_gamma=8": "training.r1_gamma: not a key of an experiment; did you mean losses.r1_gamma?",
    "digits --set training.foo=8": "training.foo: not a key of an experiment; `udpm resolve` prints the keys",
    "digits --set training.seed=8": "training.seed: not a key of an experiment; `udpm resolve` prints the keys",
    "digits --set seed=8": "--set: seed: not a key of an experiment; --seed sets it",
    "digits --set dataset.side=8": "dataset.side: not a key of an experiment; `udpm resolve --dataset NAME` takes",
    "--dataset digits --set training.batch=8": "training.batch: not a key of a data set; `udpm resolve EXPER",
    "digits --set training={}": "--set: training: an empty section changes nothing; give a key in it",
    "digits --set losses={augmentation:{}}": "--set: losses: an empty section changes nothing",
    "digits --set training.batch=many": f"{FILE}training.batch: input should be a valid integer, got 'many'",
    "digits --set training.batch=": f"{FILE}training.batch: input should be a valid integer, got None",
    "digits --set process.alphas=[0.5]": f"{FILE}process.alphas: has 1 values, but levels is 3",
    "digits --set process.sigmas[4]=1": f"{FILE}process.sigmas[4]: no such level; levels are 1 to 3",
    "digits --set training.batch[1]=8": f"{FILE}training.batch[1]: not a list, but",
    "digits --set sampling.labels=[12]": f"{FILE}sampling.labels: must be in 0..9",
    "digits --set training.batch": "--set: 'training.batch' is not KEY=VALUE, such as training.batch=32",
    "digits --set =8": "--set: '=8' is not KEY=VALUE",
    "digits --set training.batch=[8": "--set: training.batch: not valid YAML: ",
    "digits --set training.batch=!!python/name:os.system": "--set: training.batch: not valid YAML: could not determine",
    "digits --set training.batch=8 --set training.batch=9": "--set: training.batch: duplicate key",
    "digits --set losses={r1_gamma:1}": "--set: losses.r1_gamma:1: not a key of an experiment",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_mistake_is_one_line(words, tmp_path, capsys):
    command = f"resolve {words} --config {CONFIG} --output {tmp_path}/out.json"
    tiny.assert_refused(tmp_path, command, REFUSED[words], capsys)
    assert not Path(tmp_path / "out.json").exists()


def test_a_file_is_checked_without_them_first(tmp_path, capsys):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/e.yaml").write_text("extends: d\ntraining: {batch: many}\n")
    (tmp_path / "experiments/d.yaml").write_text((CONFIG / "experiments/digits-paper.yaml").read_text())
    command = f"resolve e --config {tmp_path} --set training.batch=8"
    tiny.assert_refused(tmp_path, command, f"{tmp_path}/experiments/e.yaml: training.batch: input should", capsys)


def test_training_records_them_and_a_begun_run_keeps_its_own(digits, tmp_path, capsys):
    config, run = tiny.write_config(tmp_path), tmp_path / "run"
    places = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run]
    assert tiny.call("train", config, *places, *sets("training.batch=16", "training.iterations=2")) == 0
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["training"]["batch"] == 16
    assert recorded["training"]["iterations"] == 2
    assert recorded["experiment"] == "digits+training.batch=16"
    assert json.loads((run / "complete.json").read_text())["experiment"] == "digits+training.batch=16"
    # Without the setting, or with another one, it is another run.
    words = " ".join(map(str, places))
    for settings, was in (("", 16), ("--set training.batch=32", 16)):
        command = f"train {config} {words} {settings}"
        tiny.assert_refused(run, command, f"training.batch was {was}", capsys)
    # What does not change the weights may change, and a run may be trained further.
    assert tiny.call("train", config, *places, *sets("training.batch=16", "training.log_every=1")) == 0
    assert json.loads((run / "config.json").read_text())["training"]["log_every"] == 1
    assert json.loads((run / "complete.json").read_text())["iterations"] == 12
    assert tiny.call("info", run) == 0
    assert "digits+training.batch=16" in capsys.readouterr().out


def test_resolved_and_trained_with_one_setting_are_the_same_run(tmp_path, digits):
    config, resolved = tiny.write_config(tmp_path), tmp_path / "run/config.json"
    places = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", tmp_path / "run"]
    assert tiny.call("train", config, *places, *sets("training.batch=16", "training.iterations=2")) == 0
    # The run's own configuration already has the value: nothing is left to change.
    assert tiny.call("train", resolved, *places, *sets("training.batch=16")) == 0
    assert json.loads(resolved.read_text())["experiment"] == "digits+training.batch=16"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.bach=8", "--set: training.bach: not a key of a run; did you mean training.batch?"),
        ("sampling.count=8", "sampling.count: not a key of a run; `udpm resolve EXPERIMENT --part sampling` takes it"),
        ("description=x", "description: not a key of a run; it is of the experiment, not of its runs"),
        ("seeds=3", "seeds: not a key of a run; its key is seed"),
        ("losses={}", "--set: losses: an empty section changes nothing"),
        ("experiment=../../evil", "--set: experiment: '../../evil': not a valid name; use letters, digits,"),
        ('experiment="a\\nb"', "--set: experiment: 'a\\nb': not a valid name; use letters, digits,"),
        (f"experiment={'a' * 5000}", "has 5000 characters; use at most 250"),
        ("weights=nope.pt", "weights: nope.pt: no such file; name the weights to start training from, or null"),
        ("training.batch=many", "run.json, with --set: training.batch: input should be a valid integer, got 'many'"),
        ("losses.r1_gamma=[1,2]", "run.json, with --set: losses.r1_gamma: has 2 values, but process.levels is 3"),
        ("discriminator=null", "run.json, with --set: discriminator: is missing, but losses.adversarial_weight is"),
        ("training.level_probabilities=[0.1,0.1,0.1]", "training.level_probabilities: must sum to 1, but sum to 0.3"),
        ("training=imported", "training is imported"),
    ],
)
def test_mistakes_in_training(setting, expected, tmp_path, capsys, digits):
    config = tiny.write_config(tmp_path)
    command = f"train {config} --dataset {digits}/dataset --cache {digits}/cache --run {tmp_path}/run --set {setting}"
    tiny.assert_refused(tmp_path, command, expected, capsys)


def test_a_key_changed_twice_is_named_once(tmp_path, capsys):
    config = tmp_path / "run.json"
    command = ("resolve", "digits-paper", "--config", CONFIG, "--output", config)
    assert tiny.call(*command, *sets("training.batch=16", "losses.r1_gamma=2")) == 0
    for setting, name in (
        ("training.batch=8", "digits-paper+losses.r1_gamma=2.0+training.batch=8"),
        ("experiment=mine", "mine"),
        ("seed=3", "digits-paper+losses.r1_gamma=2.0+training.batch=16"),
    ):
        capsys.readouterr()
        assert tiny.call("train", config, "--dry-run", *sets(setting)) == 0
        assert capsys.readouterr().out.splitlines()[0].split(maxsplit=1)[1].startswith(f"{name}, seed ")


def names(config, capsys, *settings):
    """Return the name of a run in a dry run with these settings."""
    capsys.readouterr()
    assert tiny.call("train", config, "--dry-run", *sets(*settings)) == 0
    return capsys.readouterr().out.splitlines()[0].split(maxsplit=1)[1].partition(", seed ")[0]


def test_iterations_are_named_where_the_rates_decay_to_the_end(tmp_path, capsys):
    plain = tiny.write_config(tmp_path)
    assert names(plain, capsys, "training.iterations=20") == "digits"
    both = "digits+training.iterations=20+training.learning_rate_end=0.5"
    assert names(plain, capsys, "training.iterations=20", "training.learning_rate_end=0.5") == both
    fixed = ("training.learning_rate_end=0.5", "training.decay_iterations=8")
    assert "iterations=20" not in names(plain, capsys, "training.iterations=20", *fixed)
    decaying = tiny.write_config(tmp_path, training__learning_rate_end=0.5)
    assert names(decaying, capsys, "training.iterations=20") == "digits+training.iterations=20"
    assert names(decaying, capsys, "training.log_every=1") == "digits"


@pytest.mark.parametrize(
    "settings",
    [
        ("training.batch=16", "process.sigmas[3]=0.6"),
        ("training.iterations=200", "training.learning_rate_end=0.5"),
        ("weights=WEIGHTS", "losses.r1_gamma=1e+30"),
    ],
)
def test_the_order_of_changes_does_not_matter(settings, tmp_path, capsys):
    weights = tmp_path / "a+b=c" / "d+e.pt"
    weights.parent.mkdir()
    weights.touch()
    settings = [setting.replace("WEIGHTS", str(weights)) for setting in settings]
    found = set()
    for first, second in itertools.permutations(settings, 2):
        config = tmp_path / "resolved.json"
        command = ("resolve", "digits-paper", "--config", CONFIG, "--output", config)
        assert tiny.call(*command, *sets(first)) == 0
        found.add(names(config, capsys, second))
    assert len(found) == 1
    assert found.pop().startswith("digits-paper+")


def test_a_value_with_a_plus_is_replaced_whole(tmp_path, capsys):
    for name in ("a+b.pt", "c+d.pt"):
        (tmp_path / name).touch()
    config = tmp_path / "resolved.json"
    command = ("resolve", "digits-paper", "--config", CONFIG, "--output", config)
    assert tiny.call(*command, *sets(f"weights={tmp_path}/a+b.pt")) == 0
    assert names(config, capsys, f"weights={tmp_path}/c+d.pt") == f'digits-paper+weights="{tmp_path}/c+d.pt"'


def test_missing_weights_leave_the_folder_to_the_corrected_command(tmp_path, capsys, digits):
    config, run = tiny.write_config(tmp_path, weights="nope.pt"), tmp_path / "run"
    run.mkdir()
    command = f"train {config} --dataset {digits}/dataset --cache {digits}/cache --run {run}"
    expected = "weights: nope.pt: no such file"
    tiny.assert_refused(tmp_path, command, expected, capsys)
    tiny.assert_refused(tmp_path, f"{command} --dry-run", expected, capsys)
    assert tiny.call(*command.split(), *sets("weights=null", "training.iterations=2")) == 0
    # A run that has begun needs them no longer.
    weights, second = tmp_path / "start.safetensors", tmp_path / "second"
    (run / "weights.safetensors").rename(weights)
    command = f"train {config} --dataset {digits}/dataset --cache {digits}/cache --run {second} --set weights={weights}"
    assert tiny.call(*command.split(), *sets("training.iterations=2")) == 0
    weights.unlink()
    assert tiny.call(*command.split(), "--dry-run") == 0
    assert tiny.call(*command.split()) == 0


def test_only_what_took_effect_is_listed(tmp_path, capsys):
    resolve(tmp_path, "digits", *sets("training.batch=16", "sampling.count=100"))
    printed = capsys.readouterr()
    assert printed.out.endswith("run of experiment digits, seed 0, with training.batch=16\n")
    assert printed.err == "warning: --set sampling.count=100: changes nothing in run of experiment digits\n"
    resolve(tmp_path, "digits", *sets("sampling.count=100"))
    assert capsys.readouterr().out.endswith("run of experiment digits, seed 0\n")
