"""Sweeps: points, messages about mistakes, shared runs, dry runs, and one whole sweep up to its ranking."""

import json
import shutil
import sys
from pathlib import Path

import dag
import pandas as pd
import pytest
import yaml
from tiny import FINISHED, ROOT, call

from udpm.cli import main
from udpm.config import list_configs, load_experiment, load_sweep, resolve_run, to_json
from udpm.core.errors import UserError
from udpm.core.kinds import EXPERIMENT
from udpm.report.figures.sweep import plot_heat_map
from udpm.report.sweep import best_experiment, plan_table, ranking_table, read_results
from udpm.runs.layout import Layout
from udpm.runs.status import trained_points
from udpm.training.estimate import IterationCost

BIN = Path(sys.executable).parent
SWEEPS = list_configs(ROOT / "config/sweeps")
GRID = {
    "alpha3": {"key": "process.alphas[3]", "values": [0.001, 0.1]},
    "weight": {"key": "losses.adversarial_weight", "values": {"weak": 0.1, "by-level": [0.1, 0.5, 1]}},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A folder with the shipped configuration as ./config, in which sweeps can be written."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config"


def write(config, name="mine", **values):
    (config / f"sweeps/{name}.yaml").write_text(yaml.safe_dump({"base": "digits-paper", **values}, sort_keys=False))


@pytest.mark.parametrize("name", SWEEPS)
def test_what_ships_is_valid(name):
    sweep = load_sweep(name, ROOT / "config")
    assert (ROOT / f"config/sweeps/{name}.yaml").read_text().startswith("# yaml-language-server: $schema=")
    assert sweep.sweep.description
    if sweep.sweep.budget:
        base = load_experiment(sweep.sweep.base, ROOT / "config").training.iterations
        assert all(run.training.iterations < base for run in sweep.runs.values())


def test_enough_ships():
    digits = load_sweep("schedules-digits", ROOT / "config")
    assert len(digits.points) >= 12
    assert digits.sweep.heat_maps
    assert load_sweep("paper-schedules", ROOT / "config").sweep.base == "cifar10"
    for name in ("ablations", "ablations-digits"):
        points = load_sweep(name, ROOT / "config").points
        seeds = {resolved.point.name: resolved.experiment.seeds for resolved in points.values()}
        assert seeds["full"] == seeds["no-gan"] == [0, 1, 2]
        assert {"gan-only", "exact-posterior", "discriminator-sees-state", "unconditional", "levels-1"} <= set(seeds)


def test_a_grids_points_are_named_by_their_values(config):
    write(config, grids={"g": GRID}, points={"other": {"losses": {"r1_gamma": 3}}})
    names = [resolved.point.name for resolved in load_sweep("mine", config).points.values()]
    assert names == [
        "other",
        "alpha3-0.001_weight-weak",
        "alpha3-0.001_weight-by-level",
        "alpha3-0.1_weight-weak",
        "alpha3-0.1_weight-by-level",
    ]
    longer = {"alpha3": GRID["alpha3"] | {"values": [0.05, 0.001, 0.1]}, "weight": GRID["weight"]}
    write(config, grids={"g": longer})
    assert set(names) - {"other"} < {resolved.point.name for resolved in load_sweep("mine", config).points.values()}


def test_a_point_is_an_experiment(config):
    write(config, seeds=[3, 4], budget={"training.iterations": 7}, grids={"g": GRID})
    experiment = load_experiment("mine.alpha3-0.1_weight-by-level", config)
    assert experiment.process.alphas == [0.5, 0.2, 0.1]
    assert experiment.losses.adversarial_weight == [0.1, 0.5, 1]
    assert (experiment.training.iterations, experiment.seeds) == (7, [3, 4])
    run = resolve_run("mine.alpha3-0.1_weight-by-level", 3, config)
    assert run == load_sweep("mine", config).runs[run.experiment, 3]


def test_a_group_changes_keys_together(config):
    short = {"process": {"levels": 2, "alphas": [0.5, 0.001], "sigmas": [0.1, 0.3]}}
    rest = {"losses": {"reconstruction_weight": 1, "adversarial_weight": 1, "r1_gamma": 1}}
    rest |= {"training.level_probabilities": None, "latents.strongest": None}
    write(config, grids={"g": {"levels": {"values": {"two": short | rest, "three": {"process.levels": 3}}}}})
    sweep = load_sweep("mine", config)
    assert [resolved.experiment.process.levels for resolved in sweep.points.values()] == [2, 3]
    assert sweep.sweep.heat_maps == []


def test_a_points_own_budget(config):
    write(config, budget={"training.iterations": 7}, points={"a": {}, "b": {"budget": {"training": {"iterations": 9}}}})
    points = load_sweep("mine", config).points
    assert [resolved.experiment.training.iterations for resolved in points.values()] == [7, 9]
    assert points["mine.b"].overrides == {}


POINT = "config/sweeps/mine.yaml: point p"
MISTAKES = {
    "unknown key": (
        {"points": {"p": {"process.alpha": [1]}}},
        f"{POINT}: process.alpha: not a key of an experiment; did you mean process.alphas?",
    ),
    "key without its section": ({"points": {"p": {"iterations": 3}}}, "did you mean training.iterations?"),
    "axis that names no key": (
        {"grids": {"g": {"a": {"key": "losses.r1_gama", "values": [1]}}}},
        "config/sweeps/mine.yaml: grids.g.a: losses.r1_gama: not a key of an experiment; did you mean losses.r1_gamma?",
    ),
    "budget that names no key": ({"budget": {"iterations": 3}, "points": {"p": {}}}, "mine.yaml: budget: iterations:"),
    "invalid value": (
        {"points": {"p": {"process.sigmas": [0.1, 0.2]}}},
        f"{POINT}: process.sigmas: has 2 values, but levels is 3; give one for each level",
    ),
    "wrong type": ({"points": {"p": {"training.batch": "many"}}}, f"{POINT}: training.batch: input should be"),
    "network does not fit": (
        {"points": {"p": {"generator.channel_multipliers": [1, 1, 1, 1]}}},
        f"{POINT}: generator.channel_multipliers: a network of 4 U-Net levels needs inputs",
    ),
    "valid only with the budget": (
        {
            "budget": {"training.keep_every": 5, "training.iterations": 10},
            "points": {"p": {"sampling.iteration": 5}},
        },
        f"{POINT}, without its budget: sampling.iteration: 5 is not kept",
    ),
    "unknown level": (
        {"points": {"p": {"process.sigmas[4]": 1}}},
        "sigmas[4]: no such level; levels are 1 to 3",
    ),
    "level of no list": ({"points": {"p": {"losses.lpips_weight[1]": 1}}}, "lpips_weight[1]: not a list, but"),
    "same point twice": (
        {"points": {"a-1": {}}, "grids": {"g": {"a": {"key": "losses.r1_gamma", "values": [1]}}}},
        "mine.yaml: point a-1: duplicate, also in grids.g; rename one",
    ),
    "same configuration twice": (
        {"points": {"a": {}, "p": {"process.alphas": [0.5, 0.2, 0.001]}}},
        f"{POINT}: same configuration as point a; leave one out",
    ),
    "key twice": ({"points": {"p": {"training": {"batch": 8}, "training.batch": 9}}}, "training.batch: duplicate key"),
    "two axes, one key": (
        {"grids": {"g": {a: {"key": "losses.r1_gamma", "values": [1, 2]} for a in "ab"}}},
        "grids.g.b: losses.r1_gamma: already changed by another axis of the grid",
    ),
    "key of the budget": (
        {"budget": {"training.batch": 8}, "points": {"p": {"training.batch": 9}}},
        f"{POINT}: training.batch: also in the sweep's budget",
    ),
    "budget that is no mapping": ({"points": {"p": {"budget": 3}}}, f"{POINT}: budget: must be keys and values, got 3"),
    "base missing": ({"base": "digit", "points": {"p": {}}}, "mine.yaml: base: config/experiments/digit.yaml: no such"),
    "no points": ({}, "mine.yaml: points: is missing; a sweep needs points or grids"),
    "unknown key of a sweep": ({"point": {}}, "mine.yaml: point: unknown key; did you mean points?"),
    "unknown key of an axis": (
        {"grids": {"g": {"a": {"keys": "losses.r1_gamma", "values": [1]}}}},
        "mine.yaml: grids.g.a.keys: unknown key; did you mean key?",
    ),
    "list without a name": (
        {"grids": {"g": {"a": {"key": "process.alphas", "values": [[0.5, 0.2, 0.1]]}}}},
        "grids.g.a.values: [0.5, 0.2, 0.1] needs a name; write NAME: [0.5, 0.2, 0.1]",
    ),
    "axis without values": ({"grids": {"g": {"a": {"key": "losses.r1_gamma", "values": []}}}}, "values: empty"),
    "value twice": ({"grids": {"g": {"a": {"key": "losses.r1_gamma", "values": [1, 1]}}}}, "duplicate value in [1, 1]"),
    "axis without a key": ({"grids": {"g": {"a": {"values": [1]}}}}, "grids.g.a.key: is missing; without it"),
    "no name": ({"points": {"a/b": {}}}, "mine.yaml: points: 'a/b' is not a valid name"),
    "extends": ({"points": {"p": {"extends": "cifar10"}}}, f"{POINT}: extends: not a key of an experiment"),
    "name of an experiment": ({"points": {"taken": {}}}, "config/experiments/mine.taken.yaml has the same name"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, config, capsys):
    values, expected = MISTAKES[case]
    write(config, **values)
    (config / "experiments/mine.taken.yaml").write_text("extends: digits\n")
    assert call("sweep", "status", "mine") == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert expected in printed, printed


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sweep plan schedules-digit", "schedules-digit.yaml: no such file; did you mean schedules-digits?"),
        ("sweep plan a.b", "'a.b': not a sweep's name"),
        ("resolve schedules-smoke.paper", "schedules-smoke.yaml: no point paper; did you mean paper-exact?"),
        (
            "sweep heat schedules-smoke start --output x",
            "start: not a grid of two axes of sweep schedules-smoke, which has",
        ),
        ("sweep rank schedules-smoke --best best.yaml", "no point has a frechet_distance yet, so none is the best"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(command, expected, config, capsys):
    (config.parent / "results").mkdir()
    assert call(*command.split()) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert expected in printed


def test_points_that_differ_after_training_share_a_run(config, tmp_path):
    write(config, points={"a": {}, "b": {"sampling.posterior": "exact"}, "c": {"training.batch": 8}})
    sweep = load_sweep("mine", config)
    assert trained_points(sweep, tmp_path) == {
        ("mine.a", 0): "mine.a",
        ("mine.b", 0): "mine.a",
        ("mine.c", 0): "mine.c",
    }
    # An existing run is used even if an earlier point could share its training; one of another configuration is not.
    for name, run in (("mine.a", sweep.runs["mine.c", 0]), ("mine.b", sweep.runs["mine.b", 0])):
        folder = Path(Layout(tmp_path).run(name, 0))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(run))
    assert trained_points(sweep, tmp_path)["mine.a", 0] == "mine.b"


def test_points_are_scored_as_their_base_is(config):
    write(config, points={"a": {}, "b": {"scoring.neighbours": 5}})
    assert load_sweep("mine", config).scored == {"mine.a": "digits-paper", "mine.b": "mine.b"}


def test_status_names_the_key(config, capsys):
    results = config.parent / "results"
    write(config, points={name: {} | ({"losses.r1_gamma": n} if n else {}) for n, name in enumerate("abcd")})
    sweep = load_sweep("mine", config)
    iterations = resolve_run("digits-paper", 0, config).training.iterations
    for name in "bcd":
        folder = Path(Layout(results).run(f"mine.{name}", 0))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(sweep.runs[f"mine.{name}", 0]))
        (folder / "complete.json").write_text(json.dumps(FINISHED | {"iterations": iterations}))
    sampling = results / "configs/mine.c/sampling.json"
    sampling.parent.mkdir(parents=True)
    sampling.write_text(to_json(sweep.points["mine.c"].experiment.sampling.model_copy(update={"count": 7})))
    values = yaml.safe_load((config / "sweeps/mine.yaml").read_text())
    values["points"]["b"]["losses.r1_gamma"] = 9
    write(config, **values)
    assert not call("sweep", "status", "mine", "--results", results)
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["a", "0", "new"],
        ["b", "0", "changed", "losses.r1_gamma was 1.0, is 9.0"],
        ["c", "0", "resample", "sampling.count was 7, is 1000"],
        ["d", "0", "trained"],
    ]


def test_the_plan_shows_schedules_and_hours(config, capsys):
    write(config, points={"a": {"process.alphas[3]": 0.5}, "b": {}, "c": {"sampling.posterior": "exact"}}, seeds=[0, 1])
    assert not call("sweep", "plan", "mine", "--output", "plan")
    printed = capsys.readouterr().out
    assert "a: the last state x_L and what sampling starts from may differ" in printed
    assert "3 points of digits-paper, 4 trainings" in printed
    table = pd.read_csv("plan.csv").set_index("point")
    assert list(table["trainings"]) == [2, 2, 0]
    run, seconds = resolve_run("digits-paper", 0, config), table["device_hours"] * 3600
    training = run.training.iterations * table["iteration_multiply_adds"]["b"]
    expected = 2 * (training + 1000 * table["image_multiply_adds"]["b"]) / 2e13
    assert seconds["b"] == pytest.approx(expected)
    assert run.training.iterations == table["iterations"]["b"]
    assert all(Path(f"plan.{suffix}").stat().st_size for suffix in ("md", "tex", "html"))


def test_the_plan_counts_guidance_twice(config, monkeypatch):
    monkeypatch.setattr("udpm.report.sweep._image", lambda run: 10)
    monkeypatch.setattr("udpm.training.estimate.iteration_cost", lambda *_, **__: IterationCost(0, 20, 0))
    points = {str(weight): {"generator.label_dropout": 0.1, "sampling.guidance": weight} for weight in (1, 2)}
    write(config, points=points)
    plain, guided = plan_table(load_sweep("mine", config)).full.itertuples()
    assert (plain.image_multiply_adds, guided.image_multiply_adds) == (10, 20)
    assert (plain.trainings, guided.trainings) == (1, 0)
    assert guided.device_hours * 3600 == pytest.approx(1000 * 20 / 2e13)


def score(results, name, seed, value, count=100, agreement=0.5):
    metrics = {"frechet_distance": {"value": value, "label": "FD (x features)"}}
    metrics |= {"class_agreement": {"value": agreement, "label": "class agreement"}}
    protocol = {"n": count, "extractor": {"sha256": "e" * 64}, "reference": {"sha256": "f" * 64}}
    path = results / f"scores/mine.{name}/seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"format": "udpm-score/1", "subject": {"kind": "samples"}, "metrics": metrics, "protocol": protocol}
    path.write_text(json.dumps(found))


def test_ranking_with_a_seed_missing(config, tmp_path):
    write(config, points={"a": {}, "b": {"losses.r1_gamma": 1}, "c": {"losses.r1_gamma": 2}}, seeds=[0, 1])
    for name, seed, value in (("a", 0, 5.0), ("a", 1, 7.0), ("b", 0, 4.0)):
        score(tmp_path, name, seed, value)
    sweep = load_sweep("mine", config)
    found = read_results(sweep, tmp_path)
    assert [(result.name, result.rank) for result in found] == [("b", 1), ("a", 2), ("c", None)]
    assert (found[1].mean("frechet_distance"), found[1].spread("frechet_distance")) == (6.0, pytest.approx(2**0.5))
    text = ranking_table(sweep, found).markdown()
    assert "6.00 ± 1.41" in text
    assert "budget" not in text
    assert f"b, seed 1: no score ({tmp_path}/scores/mine.b/seed1.json: score not found)" in text
    score(tmp_path, "c", 0, 1.0, count=50)
    found = read_results(sweep, tmp_path)
    assert found[-1].rank is None
    assert "c: not ranked, since it was not measured as most points were." in ranking_table(sweep, found).markdown()


def test_ranking_shows_the_processor_time_of_the_training_that_was_scored(config, tmp_path, trained):
    write(config, points={"a": {}, "b": {"losses.r1_gamma": 1}})
    run = tmp_path / "runs/mine.a/seed0"
    run.mkdir(parents=True)
    shutil.copy(trained / "complete.json", run)
    record = json.loads((run / "complete.json").read_text())
    assert 0 < record["cpu_seconds"] == pytest.approx(json.loads(last_line(trained))["cpu_seconds"], abs=1e-3)
    for name in ("a", "b"):
        score(tmp_path, name, 0, 1.0)
        path = tmp_path / f"scores/mine.{name}/seed0.json"
        found = json.loads(path.read_text())
        found["subject"] |= {"experiment": f"mine.{name}", "run_seed": 0, "weights_sha256": record["weights_sha256"]}
        path.write_text(json.dumps(found))
    sweep = load_sweep("mine", config)
    # The run of b is not there.
    assert [result.cpu_seconds for result in read_results(sweep, tmp_path)] == [{0: record["cpu_seconds"]}, {}]
    shown = ranking_table(sweep, read_results(sweep, tmp_path)).shown["training (CPU s)"].tolist()
    assert shown == [f"{record['cpu_seconds']:.0f}", "–"]
    # Other weights than the run has now.
    found["subject"] |= {"experiment": "mine.a", "weights_sha256": "0" * 64}
    path.write_text(json.dumps(found))
    assert read_results(sweep, tmp_path)[1].cpu_seconds == {}


def last_line(run):
    return (run / "metrics.jsonl").read_text().splitlines()[-1]


def test_ranking_by_a_metric_that_should_be_high(config, tmp_path):
    write(config, points={"a": {}, "b": {"losses.r1_gamma": 1}}, rank_by="class_agreement")
    score(tmp_path, "a", 0, 1.0, agreement=0.5)
    score(tmp_path, "b", 0, 2.0, agreement=0.9)
    assert [result.name for result in read_results(load_sweep("mine", config), tmp_path)] == ["b", "a"]


def test_points_trained_by_other_losses_are_named():
    for name, base, expected in (
        ("ablations", "reconstruction, lpips, adversarial", {"adversarial": "gan-only, levels-1"}),
        ("ablations-digits", "reconstruction, adversarial", {"adversarial": "gan-only, levels-1"}),
    ):
        sweep = load_sweep(name, ROOT / "config")
        text = ranking_table(sweep, read_results(sweep, Path("nowhere"))).markdown()
        expected |= {"reconstruction": "no-gan-no-lpips" if "lpips" in base else "no-gan"}
        for kinds, names in expected.items():
            assert f"Trained by {kinds} losses alone, at all levels: {names}. The base's: {base}." in text
        assert text.count("Trained by") == 2 + 2 * ("lpips" in base)
    smoke = load_sweep("schedules-smoke", ROOT / "config")
    assert "Trained by" not in ranking_table(smoke, read_results(smoke, Path("nowhere"))).markdown()


def test_the_best_point_runs_at_full_length(config, tmp_path):
    write(config, grids={"g": GRID}, budget={"training.iterations": 7, "generator.channels": 8}, seeds=[5])
    for n, name in enumerate(("alpha3-0.1_weight-by-level", "alpha3-0.001_weight-weak")):
        score(tmp_path, name, 5, float(n))
    sweep = load_sweep("mine", config)
    text = best_experiment(sweep, read_results(sweep, tmp_path))
    path = config / "experiments/best.yaml"
    path.write_text(text + "# mine\n")
    assert not EXPERIMENT.made(path)
    path.write_text(text)
    assert EXPERIMENT.made(path)
    best, base = load_experiment("best", config), load_experiment("digits-paper", config)
    assert best.process.alphas == [0.5, 0.2, 0.1]
    assert best.losses.adversarial_weight == [0.1, 0.5, 1]
    assert (best.training, best.generator, best.seeds) == (base.training, base.generator, base.seeds)


def test_a_heat_map_with_a_cell_missing(config, tmp_path):
    write(config, grids={"g": GRID})
    score(tmp_path, "alpha3-0.1_weight-by-level", 0, 3.0)
    sweep = load_sweep("mine", config)
    plot_heat_map(sweep, read_results(sweep, tmp_path), "g", tmp_path / "heat")
    table = pd.read_csv(tmp_path / "heat.csv")
    assert list(table.columns[:3]) == ["alpha3", "weight", "point"]
    assert list(table["frechet_distance"].notna()) == [False, False, False, True]
    first = {suffix: (tmp_path / f"heat.{suffix}").read_bytes() for suffix in ("svg", "pdf", "png", "csv")}
    plot_heat_map(sweep, read_results(sweep, tmp_path), "g", tmp_path / "heat")
    assert first == {suffix: (tmp_path / f"heat.{suffix}").read_bytes() for suffix in first}


def snakemake(folder, *arguments):
    return dag.snakemake(*arguments, cwd=folder)


@pytest.fixture
def tree(config):
    """A copy of the sources of the workflow."""
    for name in ("workflow", "slurm", "envs"):
        shutil.copytree(ROOT / name, config.parent / name)
    return config.parent


def jobs(done):
    """Return the number of jobs by rule."""
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


@pytest.mark.parametrize("name", SWEEPS)
def test_dry_run_of_every_sweep(tree, name):
    done = snakemake(tree, "-n", "sweep", "--config", f"sweep={name}")
    assert done.returncode == 0, done.stderr
    sweep = load_sweep(name, tree / "config")
    planned = jobs(done)
    assert planned["train_model"] == len(set(sweep.trained().items()) & {((n, s), n) for n, s in sweep.runs})
    assert planned["score_samples"] == planned["sample_images"] == len(sweep.runs)
    assert planned["compute_reference"] == 1
    assert f"sweep {name}: {len(sweep.points)} points, {len(sweep.runs)} runs: {len(sweep.runs)} new" in done.stderr


def test_a_sweep_needs_a_name(tree):
    for given, expected in (
        ((), "sweep: is missing"),
        (("--config", "sweep=smoke"), "sweeps/smoke.yaml: no such file"),
    ):
        done = snakemake(tree, "-n", "sweep", *given)
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert expected in errors[0]


@pytest.mark.soak
def test_a_sweep_to_its_ranking_and_one_point_more(tree):
    given = ("sweep", "--config", "sweep=schedules-smoke")
    done = snakemake(tree, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tree / "results/sweeps/schedules-smoke"
    ranking = pd.read_csv(folder / "ranking.csv")
    assert list(ranking["rank"]) == [1, 2, 3]
    assert len(list((tree / "results/runs").iterdir())) == 2
    for name in ("plan.html", "ranking.tex", "heat_end.png", "heat_end.svg", "heat_end.pdf", "heat_end.csv"):
        assert (folder / name).stat().st_size
    assert "Nothing to be done" in snakemake(tree, "-n", *given).stdout

    # The best point, copied to the experiments, trains at full length.
    shutil.copy(folder / "best.yaml", tree / "config/experiments/best.yaml")
    done = snakemake(tree, "-n", "--config", "experiments=best")
    assert done.returncode == 0, done.stderr
    assert jobs(done)["train_model"] == 1

    path = tree / "config/sweeps/schedules-smoke.yaml"
    text = path.read_text()
    path.write_text(text.replace("points:\n", "points:\n  fast: {process.alphas: [0.3, 0.05, 1.0e-3]}\n"))
    done = snakemake(tree, "-n", *given)
    assert "4 points, 4 runs: 1 new (fast), 3 complete" in done.stderr
    planned = jobs(done)
    assert {rule: planned[rule] for rule in ("resolve_run", "train_model", "sample_images", "score_samples")} == {
        "resolve_run": 1,
        "train_model": 1,
        "sample_images": 1,
        "score_samples": 1,
    }
    assert "prepare_dataset" not in planned
    assert "draw_heat_map" not in planned

    # A changed point is refused by its key; a change of sampling does not train again.
    path.write_text(text.replace("iterations: 30", "iterations: 29"))
    done = snakemake(tree, "-n", *given)
    assert done.returncode == 2
    assert "training.iterations was 30, is 29" in done.stderr
    path.write_text(text.replace("iterations: 30", "iterations: 31"))
    done = snakemake(tree, "-n", *given)
    assert "3 longer (" in done.stderr
    path.write_text(text.replace("sampling.count: 60", "sampling.count: 61"))
    done = snakemake(tree, "-n", *given)
    assert "3 resample (" in done.stderr
    assert "sampling.count was 60, is 61" in done.stderr
    assert "train_model" not in jobs(done)


def test_help_has_examples(capsys):
    for verb in ("plan", "status", "rank", "heat"):
        with pytest.raises(SystemExit):
            main(["sweep", verb, "--help"])
        assert "Example: udpm sweep" in capsys.readouterr().out


def test_a_point_must_exist(config):
    with pytest.raises(UserError, match="no point nope; found: paper-exact, "):
        load_experiment("schedules-smoke.nope", config)
