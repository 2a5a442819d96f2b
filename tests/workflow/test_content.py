"""Planning compares contents of files, never times, and protects finished runs."""

import asyncio
import json
import os
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import yaml
from photos import add, change, remove, replace_keeping_times
from tiny import ROOT

from udpm.config.load import to_json
from udpm.core.files import sha256
from udpm.data.prepare import prepare
from udpm.runs.config_guard import MUTABLE_KEYS

sys.path.insert(0, str(ROOT / "workflow"))
from content import KEPT, Content, install
from existing import Existing
from experiments import Experiments

EDITS = {
    "dataset.check_md5": False,
    "dataset.description": "other words",
    "dataset.expected_count": 5,
    "dataset.expected_test_count": 500,
    "dataset.licence": "none",
    "dataset.max_file_bytes": 7,
    "dataset.max_pixels": 7,
    "dataset.obtain": "somewhere",
    "dataset.workers": 3,
    "training.checkpoint_every": 3,
    "training.checkpoint_minutes": 1.5,
    "training.cuda_graphs": True,
    "training.data": "memory",
    "training.device": "auto",
    "training.keep_every": 2,
    "training.log_every": 1,
    "training.preview_every": 5,
    "training.trackers": ["tensorboard", "wandb", "mlflow"],
    "training.workers": 2,
}
"""Another value for each key that has no influence on the weights; that of a source's path is tested by itself."""
RUN = "results/runs/digits/seed0"


def edit(path, /, **changes):
    """Change keys of a YAML file, dots as "__"."""
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section = values
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    path.write_text(yaml.safe_dump(values))


@pytest.fixture
def study(tmp_path, monkeypatch, trained, digits):
    """A study whose one run is finished."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    # As the finished run was trained.
    shutil.copy(ROOT / "config/experiments/digits-paper.yaml", tmp_path / "config/experiments/digits.yaml")
    edit(tmp_path / "config/experiments/digits.yaml", **{k.replace(".", "__"): v for k, v in tiny.SMALL.items()})
    shutil.copytree(digits / "dataset", tmp_path / "results/datasets/digits")
    shutil.copytree(digits / "cache", tmp_path / "results/caches/digits")
    shutil.copytree(trained, tmp_path / RUN)
    monkeypatch.chdir(tmp_path)
    write_configs()
    return tmp_path


def write_configs():
    """Write resolved configurations as the workflow's first jobs do."""
    plan = Experiments({"experiments": ["digits"]}, False)
    for name, config in {
        "digits/seed0": plan.run("digits", 0),
        "digits/sampling": plan.known["digits"].sampling,
        "datasets/digits": plan.dataset_config("digits"),
    }.items():
        os.makedirs(f"results/configs/{os.path.dirname(name)}", exist_ok=True)
        with open(f"results/configs/{name}.json", "w") as file:
            file.write(to_json(config))


def job(rule, inputs, outputs, **params):
    """The attributes of a Snakemake job that planning reads."""
    return SimpleNamespace(rule=SimpleNamespace(name=rule), input=inputs, output=outputs, params=params)


def jobs():
    """Return the jobs before and after training."""
    configs, data = "results/configs", "results/datasets/digits/dataset.json"
    weights = [f"{RUN}/weights.safetensors", f"{RUN}/complete.json"]
    return [
        job("resolve_run", [], [f"{configs}/digits/seed0.json"]),
        job("resolve_section", [], [f"{configs}/digits/sampling.json"]),
        job("resolve_dataset", [], [f"{configs}/datasets/digits.json"]),
        job(
            "prepare_dataset", [f"{configs}/datasets/digits.json"], [data], usage="u", folder="results/datasets/digits"
        ),
        job("cache_levels", [data], ["results/caches/digits/cache.json"]),
        job("train_model", [f"{configs}/digits/seed0.json", data], weights, command="udpm"),
        job("render_schedule", [f"{configs}/digits/seed0.json"], ["results/figures/schedule.png"]),
        job("sample_images", [weights[0], f"{configs}/digits/sampling.json"], ["results/samples/s.npz"]),
        job("score_samples", ["results/samples/s.npz", data, "own.pt"], ["results/scores/s.json"], extractor="own.pt"),
    ]


def made(study):
    """Make the outputs of the jobs and their records."""
    for path in ("results/figures/schedule.png", "results/samples/s.npz", "results/scores/s.json", "own.pt"):
        (study / path).parent.mkdir(parents=True, exist_ok=True)
        (study / path).write_text(path)
    content = Content("results")
    for one in jobs():
        content.note(one)


def planned(results="results"):
    """Return the outputs that a plan would make again."""
    plan = Experiments({"experiments": ["digits"], "results": results}, False)
    content = Content(results, plan.is_resolved)
    Existing(plan, content).check()
    return {path.removeprefix("results/") for path in content.stale(jobs(), remember=False)}


def refused(capsys):
    """Return the one line that a plan ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        planned()
    errors = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(errors) == 1
    return errors[0]


def test_every_incidental_key_has_an_edit():
    assert EDITS.keys() == MUTABLE_KEYS - {"dataset.path"}


@pytest.mark.parametrize("checkpoints", [True, False])
def test_no_incidental_key_and_no_time_costs_a_finished_run_its_files(study, checkpoints):
    made(study)
    if not checkpoints:
        shutil.rmtree(study / RUN / "checkpoints")
    assert planned() == set()
    before = tiny.snapshot(study / RUN)
    for key, value in EDITS.items():
        kind = "datasets" if key.startswith("dataset.") else "experiments"
        path = study / f"config/{kind}/digits.yaml"
        text = path.read_text()
        edit(path, **{key.removeprefix("dataset.").replace(".", "__"): value})
        assert yaml.safe_load(path.read_text()) != yaml.safe_load(text), key
        assert planned() == set(), key
        path.write_text(text)
    dice = random.Random(1)
    for path in (study / "results").rglob("*"):
        os.utime(path, (dice.randrange(2**32), dice.randrange(2**32)))
    assert planned() == set()
    assert tiny.snapshot(study / RUN) == before


def test_results_copied_without_times_and_records(study):
    made(study)
    shutil.copytree("results", "copy", copy_function=shutil.copyfile)
    shutil.rmtree("results")
    os.rename("copy", "results")
    assert planned() == set()
    # A changed configuration is still noticed.
    shutil.rmtree("results/content")
    assert planned() == set()
    edit(study / "config/experiments/digits.yaml", sampling__count=7)
    assert planned() == {"configs/digits/sampling.json"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("own.pt", {"scores/s.json"}),
        ("results/samples/s.npz", {"scores/s.json"}),
        ("results/caches/digits/cache.json", set()),
        ("results/datasets/digits/images.npy", {"datasets/digits/dataset.json"}),
        ("results/datasets/digits/labels.npy", {"datasets/digits/dataset.json"}),
    ],
)
def test_outputs_of_changed_content_are_made_again(study, path, expected):
    made(study)
    data = bytearray((study / path).read_bytes())
    data[-1] ^= 1
    replace_keeping_times(study / path, bytes(data))
    assert planned() == expected


def test_a_parameter_that_changed(study):
    made(study)
    content = Content("results")
    other = job("score_samples", jobs()[-1].input, jobs()[-1].output, extractor="other.pt")
    assert content.stale([other], remember=False) == {"results/scores/s.json"}
    assert content.stale([jobs()[-1]], remember=False) == set()


def test_outputs_without_an_entry_count_as_current(study):
    made(study)
    shutil.rmtree("results/content")
    Content("results").stale(jobs(), remember=True)
    replace_keeping_times(study / "own.pt", b"another")
    assert planned() == {"scores/s.json"}


def test_damaged_records_are_ignored(study):
    made(study)
    path = study / "results/content/made_from.jsonl"
    path.write_bytes(b'{"made": 1}\n[[[[\n\xff\n{"made": "x", "from": [], "with": 3}\n' + path.read_bytes()[:-30])
    assert planned() == set()
    Content("results").note(jobs()[-1])
    replace_keeping_times(study / "own.pt", b"another")
    assert planned() == {"scores/s.json"}


def test_more_iterations_continue_a_finished_run(study, capsys):
    made(study)
    edit(study / "config/experiments/digits.yaml", training__iterations=18)
    assert planned() == {"configs/digits/seed0.json", "runs/digits/seed0/weights.safetensors"}
    before = tiny.snapshot(study / RUN)
    shutil.rmtree(study / RUN / "checkpoints")
    assert "is finished after 12 iterations, and the checkpoints" in refused(capsys)
    edit(study / "config/experiments/digits.yaml", training__iterations=9)
    assert "training.iterations was 12, is 9" in refused(capsys)
    assert {path: before[path] for path in tiny.snapshot(study / RUN)} == tiny.snapshot(study / RUN)


def test_an_unfinished_run_gets_its_incidental_keys(study):
    made(study)
    (study / RUN / "complete.json").unlink()
    assert planned() == set()
    edit(study / "config/experiments/digits.yaml", training__device="auto")
    assert planned() == {"configs/digits/seed0.json"}


def test_other_weights_in_a_run_are_refused(study, capsys):
    made(study)
    data = bytearray((study / RUN / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    replace_keeping_times(study / RUN / "weights.safetensors", bytes(data))
    assert "weights.safetensors: is not what the run ended with" in refused(capsys)


def test_refuses_other_images_than_a_run_was_trained_on(study, capsys):
    made(study)
    edit(study / "config/datasets/digits.yaml", holdout=400)
    printed = refused(capsys)
    assert (
        "data set digits: holdout was 500, is 400 since it was prepared, and results/runs/digits/seed0 was" in printed
    )
    edit(study / "config/datasets/digits.yaml", holdout=500)
    record = json.loads((study / "results/datasets/digits/dataset.json").read_text())
    (study / "results/datasets/digits/dataset.json").write_text(json.dumps(record | {"sha256": "0" * 64}))
    assert "was trained on other images" in refused(capsys)


@pytest.fixture
def own_images(study, photographs):
    """The study on a folder of images, which are prepared."""
    source, _, config = photographs
    path = study / "config/datasets/own.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()))
    edit(study / "config/experiments/digits.yaml", dataset="own")
    shutil.rmtree(study / RUN)
    edit(study / "config/experiments/digits.yaml", generator__class_conditional=False)
    edit(study / "config/experiments/digits.yaml", discriminator__class_conditional=False, latents__labels=[])
    prepare(config, study / "results/datasets/own")
    write_configs()
    return source, path


@pytest.mark.parametrize(
    ("edit_source", "expected"), [(add, "1 added"), (remove, "1 removed"), (change, "1 changed"), (None, "")]
)
def test_a_source_that_changed(own_images, study, capsys, edit_source, expected):
    source, _ = own_images
    if edit_source:
        edit_source(source)
    plan = Experiments({"experiments": ["digits"]}, False)
    content = Content("results", plan.is_resolved)
    Existing(plan, content).check()
    assert content.forced == ({"results/datasets/own/dataset.json"} if edit_source else set())
    assert expected in capsys.readouterr().err
    # Runs of experiments outside the plan count too.
    run = study / "results/runs/other/seed3"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"dataset_name": "own"}')
    (run / "weights.safetensors").write_text("")
    if edit_source:
        printed = refused(capsys)
        assert expected in printed
        assert "results/runs/other/seed3 was trained on it" in printed
    else:
        Existing(plan, content).check()


def test_a_source_that_moved(own_images, study, tmp_path):
    source, path = own_images
    source.rename(tmp_path / "moved")
    edit(path, path=str(tmp_path / "moved"))
    plan = Experiments({"experiments": ["digits"]}, False)
    content = Content("results", plan.is_resolved)
    Existing(plan, content).check()
    # The run has not begun, so it gets the new path.
    assert content.forced == {"results/configs/digits/seed0.json"}


def test_weights_that_a_run_started_from(study, capsys):
    made(study)
    shutil.copy(study / RUN / "weights.safetensors", "start.safetensors")
    edit(study / "config/experiments/digits.yaml", weights="start.safetensors")
    (study / RUN / "config.json").write_text(to_json(Experiments({"experiments": ["digits"]}, False).run("digits", 0)))
    record = json.loads((study / RUN / "complete.json").read_text())
    record.pop("record_sha256")
    record["origin"] = {"kind": "udpm", "files": [{"name": "start.safetensors", "sha256": sha256("start.safetensors")}]}
    (study / RUN / "complete.json").write_text(json.dumps(record))
    write_configs()
    assert "runs/digits/seed0/weights.safetensors" not in planned()
    tiny.flip_byte(study / "start.safetensors", 999)
    assert "weights: start.safetensors has changed since results/runs/digits/seed0 started from it" in refused(capsys)


@pytest.mark.parametrize("changed", ["start.safetensors", f"{RUN}/weights.safetensors"])
def test_imported_weights_that_changed(study, trained, changed):
    shutil.copy(trained / "weights.safetensors", "start.safetensors")
    edit(study / "config/experiments/digits.yaml", training="imported", weights="start.safetensors")
    shutil.rmtree(study / RUN)
    write_configs()
    assert not tiny.call("import", "--run-config", "results/configs/digits/seed0.json", "--run", RUN)
    assert planned() == set()
    data = bytearray((study / changed).read_bytes())
    data[-1] ^= 1
    replace_keeping_times(study / changed, bytes(data))
    assert f"{RUN}/weights.safetensors".removeprefix("results/") in planned()


def test_imported_and_trained_weights_never_replace_each_other(study, trained, capsys):
    made(study)
    before = tiny.snapshot(study / RUN)
    shutil.copy(trained / "weights.safetensors", "start.safetensors")
    experiment = study / "config/experiments/digits.yaml"
    text = experiment.read_text()
    edit(experiment, training="imported", weights="start.safetensors")
    write_configs()
    assert "holds a trained run; give" in refused(capsys)
    importing = ("import", "--run-config", "results/configs/digits/seed0.json", "--run", RUN)
    assert tiny.call(*importing) == 2
    assert "holds a trained run; give" in capsys.readouterr().err
    assert tiny.snapshot(study / RUN) == before
    shutil.rmtree(study / RUN)
    assert not tiny.call(*importing)
    before = tiny.snapshot(study / RUN)
    experiment.write_text(text)
    write_configs()
    assert "holds imported weights; give" in refused(capsys)
    data = ("--dataset", "results/datasets/digits", "--cache", "results/caches/digits")
    assert tiny.call("train", "results/configs/digits/seed0.json", *data, "--run", RUN) == 2
    assert "holds imported weights" in capsys.readouterr().err
    assert tiny.snapshot(study / RUN) == before


def say(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("changed", [None, "samples", "reference", "extractor", "weights"])
def test_outputs_without_an_entry_are_compared_with_their_own_record(study, changed):
    """Such outputs are made by hand or copied without results/content. A score of other images must not count."""
    files = {"samples": "results/samples/digits/seed0.npz", "reference": "results/references/digits.npz"}
    files |= {"extractor": "own.pt", "weights": f"{RUN}/weights.safetensors"}
    for name in ("samples", "reference", "extractor"):
        say(study / files[name], name)
    digests = {name: sha256(path) for name, path in files.items()}
    if changed is not None:
        digests[changed] = "0" * 64
    say(study / "results/samples/digits/seed0.json", {"weights_sha256": digests["weights"], "iteration": 12})
    score = {"subject": {"samples_sha256": digests["samples"]}}
    score["protocol"] = {name: {"sha256": digests[name]} for name in ("reference", "extractor")}
    say(study / "results/scores/digits/seed0.json", score)
    drawn = job("sample_images", [files["weights"]], [files["samples"], "results/samples/digits/seed0.json"])
    scored = job(
        "score_samples", [files[n] for n in ("samples", "reference", "extractor")], ["results/scores/digits/seed0.json"]
    )
    expected = {None: set(), "weights": {files["samples"]}}.get(changed, {"results/scores/digits/seed0.json"})
    assert Content("results").stale([drawn, scored], remember=True) == expected
    assert Content("results").stale([drawn, scored], remember=True) == expected


def test_samples_of_a_milestone_are_not_compared_with_the_last_weights(study):
    kept = study / RUN / "milestones/000000006.safetensors"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("weights")
    say(study / "results/samples/digits/seed0.json", {"weights_sha256": sha256(kept), "iteration": 6})
    drawn = job("sample_milestone", [f"{RUN}/weights.safetensors"], ["results/samples/digits/seed0.json"])
    assert Content("results").stale([drawn], remember=False) == set()
    kept.write_text("others")
    assert Content("results").stale([drawn], remember=False) == {"results/samples/digits/seed0.json"}


def test_a_run_that_lost_its_configuration_is_known_by_its_weights(study, capsys):
    made(study)
    before = tiny.snapshot(study / RUN)
    (study / RUN / "config.json").unlink()
    assert planned() == set()
    # A run that started from other weights is not an import.
    record = json.loads((study / RUN / "complete.json").read_text())
    started = {key: value for key, value in record.items() if key != "record_sha256"} | {"origin": {"kind": "udpm"}}
    say(study / RUN / "complete.json", started)
    assert planned() == set()
    say(study / RUN / "complete.json", record)
    edit(study / "config/experiments/digits.yaml", training="imported", weights="start.safetensors")
    shutil.copy(study / RUN / "weights.safetensors", "start.safetensors")
    assert "holds a trained run; give" in refused(capsys)
    shutil.copy(ROOT / "config/experiments/digits.yaml", study / "config/experiments")
    small = {key.replace(".", "__"): value for key, value in tiny.SMALL.items()}
    edit(study / "config/experiments/digits.yaml", **small | {"training__learning_rate": 0.5})
    write_configs()
    assert "training.learning_rate was 0.001, is 0.5" in refused(capsys)
    data = ("--dataset", "results/datasets/digits", "--cache", "results/caches/digits")
    assert tiny.call("train", "results/configs/digits/seed0.json", *data, "--run", RUN) == 2
    assert "training.learning_rate was 0.001, is 0.5" in capsys.readouterr().err
    assert before[Path("weights.safetensors")] == (study / RUN / "weights.safetensors").read_bytes()


def test_imported_weights_of_another_experiment_are_imported_again(study, trained):
    shutil.copy(trained / "weights.safetensors", "start.safetensors")
    edit(study / "config/experiments/digits.yaml", training="imported", weights="start.safetensors")
    shutil.rmtree(study / RUN)
    write_configs()
    importing = ("import", "--run-config", "results/configs/digits/seed0.json", "--run", RUN)
    assert not tiny.call(*importing)
    record = json.loads((study / RUN / "complete.json").read_text())
    say(study / RUN / "complete.json", {k: v for k, v in record.items() if k != "record_sha256"} | {"experiment": "b"})
    assert f"{RUN}/weights.safetensors".removeprefix("results/") in planned()
    assert not tiny.call(*importing)
    assert planned() == set()


@pytest.mark.parametrize("rule", [*KEPT, "fetch_extractor_1", "render_table"])
def test_outputs_that_snakemake_must_not_remove(rule, monkeypatch):
    """A run, a data set and a folder of images stay, before a job and after it fails."""
    import snakemake.api  # noqa: F401  its other modules cannot be the first
    from snakemake.dag import DAG
    from snakemake.io import _IOFile
    from snakemake.jobs import Job

    removed = []

    async def remove(self, *_):
        removed.append(self.rule.name)

    for owner, name in ((_IOFile, "is_newer"), (DAG, "check_output_mtime"), (DAG, "check_incomplete")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in ("remove_existing_output", "cleanup", "postprocess"):
        monkeypatch.setattr(Job, name, remove)
    install(None, None)
    one = job(rule, [], [])
    asyncio.run(Job.remove_existing_output(one))
    asyncio.run(Job.cleanup(one, []))
    assert removed == ([rule, rule] if rule == "render_table" else [])


@pytest.mark.parametrize("changes", [{"files": [1]}, {"splits": [1]}, {"splits": {"train": ["0", 1]}}, {"sha256": 3}])
def test_a_broken_data_set_record_is_reported_in_one_line(study, changes, capsys):
    path = study / "results/datasets/digits/dataset.json"
    say(path, json.loads(path.read_text()) | changes)
    assert f"dataset.json: {next(iter(changes))}" in refused(capsys)
