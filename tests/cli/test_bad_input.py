"""Every mistake: exit code 2, one line on stderr that names what is wrong, and nothing on disk changed."""

import json
import shutil

import pytest
import tiny
import torch
import yaml

from udpm.cli import VERBS, main
from udpm.config import Scoring, to_json

EXPERIMENT = "config/experiments/digits-paper.yaml"


def edit(folder, path, **changes):
    """Change keys ("a__b" for a.b) of a YAML file; a value of ... removes the key."""
    values = yaml.safe_load((folder / path).read_text())
    for dotted, value in changes.items():
        section = values
        *parents, last = dotted.split("__")
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    (folder / path).write_text(yaml.safe_dump(values))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damage(path):
    path.write_bytes(path.read_bytes()[:300])


def touch(path):
    path.parent.mkdir(parents=True)
    path.touch()


def two_runs(folder):
    for name in ("seed0", "seed1"):
        touch(folder / "runs" / name / "config.json")
        (folder / "runs" / name / "checkpoints").mkdir()


RESOLVE = "resolve digits-paper --output out.json"
TRAIN = "train run.json --dataset dataset --cache cache --run fresh"
SAMPLE = "sample run/weights.safetensors --config sampling.json --output out.npz"
SCORE = "score --heldout --reference reference.npz --extractor x.pt --dataset dataset --config scoring.json"
SCORE += " --output out.json"
CASES = {
    "wrong type": (lambda f: edit(f, EXPERIMENT, training__batch="many"), RESOLVE, "training.batch: input should be"),
    "unknown key": (
        lambda f: edit(f, EXPERIMENT, training__learning_rat=1.0),
        RESOLVE,
        "training.learning_rat: unknown key; did you mean learning_rate?",
    ),
    "unknown section": (lambda f: edit(f, EXPERIMENT, sampler={}), RESOLVE, "did you mean sampling?"),
    "missing key": (lambda f: edit(f, EXPERIMENT, training__iterations=...), RESOLVE, "iterations: is missing"),
    "alphas not of length L": (
        lambda f: edit(f, EXPERIMENT, process__alphas=[0.5, 0.2]),
        RESOLVE,
        "process.alphas: has 2 values, but levels is 3",
    ),
    "weights not of length L": (
        lambda f: edit(f, EXPERIMENT, losses__r1_gamma=[1, 2, 3, 4]),
        RESOLVE,
        "losses.r1_gamma: has 4 values, but process.levels is 3",
    ),
    "alpha above 1": (lambda f: edit(f, EXPERIMENT, process__alphas=[0.5, 1.2, 0.1]), RESOLVE, "process.alphas[1]"),
    "alpha of 0": (lambda f: edit(f, EXPERIMENT, process__alphas=[0, 0.2, 0.1]), RESOLVE, "greater than 0, got 0"),
    "sigma of 0": (lambda f: edit(f, EXPERIMENT, process__sigmas=[0.1, 0, 0.3]), RESOLVE, "process.sigmas[1]"),
    "infinite sigma": (
        lambda f: edit(f, EXPERIMENT, process__sigmas=[0.1, float("inf"), 0.3]),
        RESOLVE,
        "process.sigmas[1]",
    ),
    "side not divisible": (
        lambda f: edit(f, "config/datasets/digits.yaml", side=20),
        RESOLVE,
        "side 20 of data set digits is not divisible by 2^3",
    ),
    "network too deep": (
        lambda f: edit(f, EXPERIMENT, generator__channel_multipliers=[1, 2, 2]),
        RESOLVE,
        "needs inputs whose side is a multiple of 4, but its smallest input (level 3 of a 16-pixel image) has side 2",
    ),
    "attention nowhere": (
        lambda f: edit(f, EXPERIMENT, generator__attention=[5]),
        RESOLVE,
        "generator.attention: 5 is not the side of a U-Net level; these are [8, 4]",
    ),
    "LPIPS on small images": (
        lambda f: edit(f, EXPERIMENT, losses__lpips_weight=[1, 1, 0]),
        RESOLVE,
        "losses.lpips_weight: 1 at level 2, whose images have side 8",
    ),
    "no such experiment": (lambda f: None, "resolve digit", "digit.yaml: no such file; did you mean digits?"),
    "circular extends": (lambda f: edit(f, EXPERIMENT, extends="digits-paper"), RESOLVE, "extends: circular: "),
    "a key twice": (
        lambda f: (f / EXPERIMENT).write_text("dataset: digits\ndataset: cifar10\n"),
        RESOLVE,
        "duplicate key 'dataset' (line 2)",
    ),
    "not YAML": (lambda f: (f / EXPERIMENT).write_text("a: [1,\nb: }"), RESOLVE, "digits-paper.yaml: not valid YAML"),
    "no experiment named": (lambda f: None, "resolve", "give either an EXPERIMENT or --dataset NAME"),
    "unknown option": (lambda f: None, "resolve digits --sed 1", "No such option"),
    "unknown verb": (lambda f: None, "trian", "No such command 'trian'"),
    "missing images": (
        lambda f: (f / "dataset.json").write_text(json.dumps({"source": "folder", "path": "nowhere", "side": 16})),
        "prepare dataset.json --output out",
        "nowhere: no such folder",
    ),
    "empty folder of images": (
        lambda f: (
            (f / "empty").mkdir(),
            (f / "dataset.json").write_text('{"source":"folder","path":"empty","side":8}'),
        ),
        "prepare dataset.json --output out",
        "empty: no images",
    ),
    "missing data set": (lambda f: shutil.rmtree(f / "dataset"), TRAIN, "dataset.json: dataset record"),
    "missing images file": (lambda f: (f / "dataset/images.npy").unlink(), TRAIN, "images.npy: not found"),
    "missing cache": (lambda f: shutil.rmtree(f / "cache"), TRAIN, "cache.json: level cache's record"),
    "missing level": (lambda f: (f / "cache/level_2.npy").unlink(), TRAIN, "level_2.npy: not found"),
    "truncated level": (lambda f: damage(f / "cache/level_1.npy"), TRAIN, "level_1.npy: not a readable array"),
    "changed images": (
        lambda f: tiny.flip_byte(f / "dataset/images.npy", 9999),
        TRAIN,
        "dataset: its bytes were changed since it was prepared: SHA-256 of images and labels is",
    ),
    "changed labels": (
        lambda f: tiny.flip_byte(f / "dataset/labels.npy", 1001),
        TRAIN,
        "the record requires 0..9",
    ),
    "changed level": (
        lambda f: tiny.flip_byte(f / "cache/level_2.npy", 999),
        TRAIN,
        "level_2.npy: its bytes were changed",
    ),
    "changed images, cached": (
        lambda f: tiny.flip_byte(f / "dataset/images.npy", 9999),
        "cache dataset --output other",
        "dataset: its bytes were changed since it was prepared",
    ),
    "a check of changed images": (
        lambda f: tiny.flip_byte(f / "dataset/images.npy", 9999),
        "info dataset --check",
        "dataset: changed since it was made: images.npy",
    ),
    "a check of a changed record": (
        lambda f: edit_json(f / "dataset/dataset.json", sha256="0" * 64),
        "info dataset --check",
        "dataset/dataset.json: was changed since it was written",
    ),
    "a check of a changed level": (
        lambda f: tiny.flip_byte(f / "cache/level_1.npy", 999),
        "info cache --check",
        "cache: changed since it was made: level_1.npy",
    ),
    "a check of something else": (lambda f: None, "info run --check", "--check for a data set or a level cache"),
    "a benchmark of nothing": (lambda f: None, "bench data nothing", "nothing: no such folder or .zip"),
    "missing configuration": (lambda f: (f / "run.json").unlink(), TRAIN, "run.json: resolved configuration not found"),
    "damaged configuration": (lambda f: damage(f / "run.json"), TRAIN, "run.json: not a readable resolved"),
    "missing weights": (lambda f: (f / "run/weights.safetensors").unlink(), SAMPLE, "no such file"),
    "unreadable weights": (lambda f: damage(f / "run/weights.safetensors"), SAMPLE, "not a readable safetensors file"),
    "a checkpoint for weights": (
        lambda f: shutil.copy(next((f / "run/checkpoints").glob("*.safetensors")), f / "run/weights.safetensors"),
        SAMPLE,
        "format is 'udpm-checkpoint/2', expected 'udpm-weights/2'",
    ),
    "unreadable checkpoints": (
        lambda f: [(f / "run/complete.json").unlink(), *map(damage, (f / "run/checkpoints").iterdir())],
        TRAIN.replace("fresh", "run"),
        "none of its 2 checkpoints can be read",
    ),
    "a run of another configuration": (
        lambda f: tiny.write_config(f, training__batch=9),
        TRAIN.replace("fresh", "run"),
        "training.batch was 8, is 9",
    ),
    "an extractor that is none": (lambda f: (f / "x.pt").write_bytes(b"rubbish"), SCORE, "not a TorchScript file"),
    "a missing extractor": (lambda f: None, SCORE.replace("x.pt", "nowhere.pt"), "nowhere.pt: extractor not found"),
    "a missing reference": (lambda f: None, SCORE, "reference.npz: reference not found"),
    "nothing to score": (lambda f: None, SCORE.replace("--heldout", ""), "give exactly one of"),
    "a table of nothing": (lambda f: None, "table nothing.json --output t", "nothing.json: score not found"),
    "a figure of nothing": (
        lambda f: None,
        "figure curves nothing.jsonl --output t",
        "nothing.jsonl: record of metrics not found",
    ),
    "a file where checkpoints go": (
        lambda f: touch(f / "begun/checkpoints"),
        TRAIN.replace("fresh", "begun"),
        "begun/checkpoints: is a file; expected a folder, or nothing",
    ),
    "info on a folder of runs": (two_runs, "info runs", "runs: holds 2 runs; give one of them, such as runs/seed0"),
    "info on a part of a run": (two_runs, "info runs/seed1/checkpoints", "is a part of a run; give the run, "),
    "info on nothing": (lambda f: (f / "empty").mkdir(), "info empty", "not a folder made by udpm"),
}


@pytest.fixture
def folder(digits, trained, tmp_path, monkeypatch):
    """A small project: configuration, prepared data, a finished run."""
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    for name in ("dataset", "cache"):
        shutil.copytree(digits / name, tmp_path / name)
    shutil.copytree(trained, tmp_path / "run")
    tiny.write_config(tmp_path)
    (tmp_path / "sampling.json").write_text('{"count": 4, "threads": 1}')
    (tmp_path / "scoring.json").write_text(to_json(Scoring(extractor="digits", threads=1)))
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 16, 16)), str(tmp_path / "x.pt"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_bad_input(folder, case, capsys):
    prepare, command, expected = CASES[case]
    prepare(folder)
    # An attempt at a run that exists is recorded.
    free = (".lock", "attempts.jsonl")
    before = tiny.snapshot(folder, but=free)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if not line.startswith("warning: skipped")]
    assert stop.value.code == 2
    assert len(lines) == 1, errors
    assert expected in lines[0]
    assert tiny.snapshot(folder, but=free) == before
    assert not (folder / "fresh").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"Usage: udpm {verb}" in shown
    assert "Example: udpm" in shown or "Commands:" in shown
