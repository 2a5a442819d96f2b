"""A newcomer's mistakes are reported in one line: what was given, what takes it, and what would be right."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from scored import save_samples

from udpm.cli import VERBS
from udpm.config import Sampling, Scoring, to_json
from udpm.core.identify import what_is
from udpm.data.npz import save_arrays

RECORDS = {"score.json": "udpm-score/1", "selection.json": "udpm-selection/1", "speed.json": "udpm-bench/1"}


@pytest.fixture(scope="module")
def made(digits, trained, tmp_path_factory):
    """Files and folders of every kind that the commands make."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("dataset", "cache"):
        (folder / name).symlink_to(digits / name)
    shutil.copytree(trained, folder / "run")
    shutil.copytree(tiny.ROOT / "config", folder / "config")
    shutil.copy(next((trained / "checkpoints").glob("*.safetensors")), folder / "checkpoint.safetensors")
    tiny.write_config(folder)
    (folder / "unfinished").mkdir()
    shutil.copy(trained / "config.json", folder / "unfinished")
    for run in ("two/runs/a/seed0", "two/runs/b/seed3", "one/runs/a/seed0"):
        (folder / run).mkdir(parents=True)
        shutil.copy(trained / "weights.safetensors", folder / run)
    (folder / "sampling.json").write_text(to_json(Sampling(count=4, batch=4)))
    (folder / "scoring.json").write_text(to_json(Scoring(extractor="digits")))
    (folder / "dataset-config.json").write_text(to_json(tiny.run_config().dataset))
    for name, kind in RECORDS.items():
        (folder / name).write_text(json.dumps({"format": kind}))
    images = np.zeros((4, 16, 16, 3), np.uint8)
    save_samples(folder / "samples.npz", images, np.zeros(4, np.int64), {"classes": 0})
    save_arrays(folder / "reference.npz", {"mu": np.zeros(2), "sigma": np.eye(2)}, {"format": "udpm-reference/1"})
    save_arrays(folder / "latents.npz", {"images": images}, {"format": "udpm-latents/1", "kind": "swap"})
    save_arrays(folder / "chain.npz", {"labels": np.zeros(1), "x_1": np.zeros(1)}, {"seed": 0})
    np.savez(folder / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(folder / "noise.npz", base=np.zeros(1), eps_1=np.zeros(1))
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "theirs.pt")
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 4, 4)), str(folder / "extractor.pt"))
    return folder


KINDS = {
    "dataset": "a prepared data set",
    "cache": "a level cache",
    "run": "a run's folder",
    "unfinished": "the folder of a run that is not finished",
    "two": "a folder of results",
    "two/runs/a/seed0": "a folder with weights",
    "config": "a configuration folder",
    "run/weights.safetensors": "a weights file",
    "checkpoint.safetensors": "a checkpoint of a training",
    "run/metrics.jsonl": "a run's metrics",
    "run.json": "a run's resolved configuration",
    "sampling.json": "a resolved sampling section",
    "scoring.json": "a resolved scoring section",
    "dataset-config.json": "a data set's resolved configuration",
    "dataset/dataset.json": "the record of a prepared data set",
    "score.json": "a score",
    "selection.json": "a selection",
    "speed.json": "a record of speeds",
    "samples.npz": "a sample set",
    "samples.json": "the record of a sample set",
    "reference.npz": "a reference",
    "latents.npz": "a latent-space experiment",
    "chain.npz": "a sampling chain",
    "statistics.npz": "statistics of features",
    "noise.npz": "a noise file",
    "theirs.pt": "a PyTorch checkpoint",
    "extractor.pt": "a TorchScript file",
    "config/experiments/digits.yaml": "an experiment's YAML configuration",
    "config/datasets/digits.yaml": "a data set's YAML configuration",
    "config/config.yaml": "the study's YAML configuration",
    "config/README.md": None,
    "nowhere": None,
}


@pytest.mark.parametrize("name", KINDS)
def test_identifies_every_kind(made, name):
    kind = what_is(made / name)
    assert (kind.name if kind else None) == KINDS[name]


def test_identification_never_fails(tmp_path):
    begins = [
        b"",
        b"\x80",
        b"PK\x03\x04",
        b"{",
        b"\xff" * 9,
        b"12345678{",
        b"\x09" + b"\0" * 7 + b"{rubbish",
        b"\x93NUMPY",
    ]
    for index, begin in enumerate(begins):
        (tmp_path / f"{index}").write_bytes(begin)
        what_is(tmp_path / f"{index}")
    (tmp_path / "deep").write_text('{"a":' * 100_000)
    assert what_is(tmp_path / "deep") is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_of_pickles_only_checkpoints_of_pytorch_are_called_so(tmp_path, protocol):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert what_is(path).name == "a PyTorch checkpoint"
    path.write_bytes(pickle.dumps({"data": [1]}, protocol))
    assert what_is(path) is None


def test_weights_cut_in_their_header_are_not_those_of_another_program(made, tmp_path):
    (tmp_path / "w.safetensors").write_bytes((made / "run/weights.safetensors").read_bytes()[:300])
    assert what_is(tmp_path / "w.safetensors") is None


SCORE = "score --heldout --dataset dataset --extractor extractor.pt --output out.json"
MISTAKES = [
    # YAML, or another part, instead of the resolved configuration.
    ("train config/experiments/digits.yaml", "`udpm resolve digits --output run.json` makes one"),
    ("train config/datasets/digits.yaml", "not a run's resolved configuration but a data set's YAML configuration"),
    ("train sampling.json", "not a run's resolved configuration but a resolved sampling section (for udpm sample"),
    ("train run/weights.safetensors", "not a run's resolved configuration but a weights file (for udpm sample"),
    ("train nowhere.json", "resolved configuration not found; `udpm resolve EXPERIMENT --output run.json` makes one"),
    ("prepare config/datasets/digits.yaml --output out", "`udpm resolve --dataset digits --output dataset.json` makes"),
    ("prepare run.json --output out", "not a data set's resolved configuration but a run's resolved configuration"),
    ("sample run/weights.safetensors --config scoring.json --output out.npz", "but a resolved scoring section"),
    ("figure schedule config/experiments/digits.yaml --output out", "makes one"),
    ("resolve config/experiments/digits.yaml", "give only the name: digits"),
    # A file of another kind.
    ("sample samples.npz --output out.npz", "it is a sample set (for udpm score --samples"),
    ("sample run.json --output out.npz", "it is a run's resolved configuration (for udpm train)"),
    ("sample checkpoint.safetensors --output out.npz", "expected 'udpm-weights/2'; it is a checkpoint of a training"),
    ("sample theirs.pt --output out.npz", "it is a PyTorch checkpoint (udpm import brings it over)"),
    ("latents swap samples.npz --output out.npz", "it is a sample set"),
    (f"{SCORE} --config scoring.json --reference score.json", "it is a score (for udpm table"),
    (f"{SCORE} --config scoring.json --reference samples.npz", "it is a sample set"),
    (f"{SCORE} --config sampling.json --reference reference.npz", "not a resolved scoring section but a resolved"),
    (
        "score --samples reference.npz --reference r --config scoring.json --output o.json --dataset dataset",
        "reference.npz is a reference (for udpm score --reference)",
    ),
    (
        "score --samples run/weights.safetensors --reference r --config scoring.json --output o.json --dataset dataset",
        "run/weights.safetensors is a weights file",
    ),
    ("table selection.json --output out", "expected 'udpm-score/1'; it is a selection"),
    ("table run/metrics.jsonl --output out", "it is a run's metrics (for udpm figure curves)"),
    ("select speed.json --output out.json", "it is a record of speeds (for python -m benchmarks table)"),
    ("sample run/weights.safetensors --selection score.json --output out.npz", "it is a score"),
    ("figure samples latents.npz --output out", "latents.npz is a latent-space experiment (for udpm figure latents)"),
    ("figure latents chain.npz --output out", "it is a sampling chain (for udpm figure chain)"),
    ("figure selection score.json --output out", "it is a score"),
    ("export reference.npz --output out", "reference.npz is a reference"),
    ("import samples.npz --output out.safetensors", "not a checkpoint but a sample set"),
    ("import extractor.pt --output out.safetensors", "not a checkpoint but a TorchScript file (for --extractor)"),
    # A folder of another kind.
    ("cache cache --output out", "cache is a level cache (for udpm train --cache)"),
    ("cache run --output out", "run is a run's folder"),
    ("extractor run --output out.pt", "run is a run's folder"),
    ("train run.json --dataset run --cache cache --run out", "run is a run's folder"),
    ("train run.json --dataset dataset --cache dataset --run out", "dataset is a prepared data set"),
    ("card dataset --output out.md", "dataset is a prepared data set"),
    ("export dataset --output out", "dataset is a prepared data set"),
    # A folder instead of a file, and vice versa.
    (
        "sample dataset --output out.npz",
        "holds no weights.safetensors; expected a weights file or a run's folder; it is a",
    ),
    (
        "latents swap config --output out.npz",
        "config: holds no weights.safetensors; expected a weights file or a run's",
    ),
    ("import cache --output out.safetensors", "cache: holds no weights.safetensors"),
    (
        "sample unfinished --output out.npz",
        "weights.safetensors: no such file; unfinished is the folder of a run that is",
    ),
    (
        "sample two --output out.npz",
        "two: holds the weights of 2 runs; expected one of two/runs/a/seed0, two/runs/b/seed3",
    ),
    ("train run", "run is a folder, expected a file: run/config.json"),
    ("figure curves run --output out", "run is a folder, expected a file: run/metrics.jsonl"),
    ("table config --output out", "config is a folder, expected a file (it is a configuration folder"),
    ("cache dataset/images.npy --output out", "is a file, expected a folder: dataset"),
    ("card run/weights.safetensors --output out.md", "is a file, expected a folder: run"),
    # Options, commands, values.
    ("trian", "No such command 'trian'; did you mean train?"),
    ("figure sampels", "No such command 'sampels'; did you mean samples?"),
    ("sample run/weights.safetensors --sed 1 --output out.npz", "No such option"),
    ("sample run/weights.safetensors --device cdua --output out.npz", "Did you mean 'cuda'?"),
    ("sample run/weights.safetensors", "Missing option '--output'"),
    ("sample run/weights.safetensors --labels 3,12 --output out.npz", "12"),
    ("sample run/weights.safetensors --count many --output out.npz", "'many' is not a valid integer"),
    ("sample run/weights.safetensors --weights best --output out.npz", "weights"),
    ("sample run/weights.safetensors --output out.jpg", "must end in .npz or .png"),
    (
        "sample run --count 2000 --output out.png",
        "count: a grid has at most 1024 images, got 2000; sample fewer, or write",
    ),
    ("sample run --intermediate --output out.png", "out.png: a grid has no outputs of other levels; write an .npz"),
    ("sample run/weights.safetensors --shard 3 --output out.npz", "expected the form 2/4, got '3'"),
    ("sample run --count 4 --shard 3/2 --output out.npz", "shard 3 of 2: the first number must be 1 or more, and at"),
    ("sample run --count 4 --shard 1/2 --output out.npz", "4 images in batches of 250 make 1"),
    ("figure samples samples.npz --output out.png", "out.png must have no suffix, since .svg, .pdf, .png, .csv are"),
    ("train", "Missing argument 'CONFIG'"),
    ("resolve digit", "did you mean digits?"),
]


@pytest.mark.parametrize(("command", "expected"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_reported_with_its_correction(made, monkeypatch, capsys, command, expected):
    monkeypatch.chdir(made)
    capsys.readouterr()
    before = sorted(path.name for path in made.iterdir())
    assert tiny.call(*command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert sorted(path.name for path in made.iterdir()) == before


WRITTEN = [
    ("resolve digits --output {}/run.json", "run.json: run of experiment digits, seed 0"),
    ("resolve --dataset digits --output {}/d.json", "d.json: data set digits"),
    ("cache dataset --output {}/cache", "cache: 4 levels, of side 8, 4, 2, 1"),
    ("sample run/weights.safetensors --count 4 --output {}/a.npz", "a.npz: 4 images of 4 classes, 16×16"),
    ("sample run --count 4 --output {}/a.npz", "a.npz: 4 images of 4 classes, 16×16"),
    ("sample run --count 4 --output {}/a.png", "a.png: 4 images of 4 classes, 16×16"),
    ("sample one --count 4 --output {}/a.npz", "a.npz: 4 images of 4 classes, 16×16"),
    ("sample two/runs/a --count 4 --output {}/a.npz", "a.npz: 4 images of 4 classes, 16×16"),
    ("latents swap run --labels 3 --output {}/l.npz", "l.npz: 5 images"),
    ("figure curves run/metrics.jsonl --output {}/c", "c.png: 1800×1060 pixels; also .svg, .pdf, and .csv of the data"),
    ("export samples.npz --output {}/images", "images: 4 files"),
    ("card run --output {}/README.md", "README.md: model card of run, 0 scores"),
]


@pytest.mark.parametrize(("command", "expected"), WRITTEN, ids=[command for command, _ in WRITTEN])
def test_prints_what_was_written(made, tmp_path, monkeypatch, capsys, command, expected):
    monkeypatch.chdir(made)
    capsys.readouterr()
    assert tiny.call(*command.format(tmp_path).split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/{expected}"


def test_machine_readable_output_is_alone_on_stdout(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    for command in ("info samples.npz", "info run", "info two/runs/a/seed0", "resolve digits", "status run --json"):
        assert tiny.call(*command.split()) == 0
        json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("group", ["", "bench", "figure", "latents", "sweep"])
def test_a_group_without_a_command_shows_its_help(capsys, group):
    assert tiny.call(*group.split()) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == ""
    assert lines[0].startswith(f"Usage: udpm {group}".rstrip())
    assert len(lines) > 8
    assert lines[-1].startswith("error: a command is missing")
    # Click cuts off long descriptions.
    assert "..." not in shown.err.partition("Commands:")[2]


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_without_arguments_reports_what_is_missing(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    code = tiny.call(verb)
    error = capsys.readouterr().err
    assert code == 2
    assert error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def claim_version_9(path):
    path.write_bytes(path.read_bytes().replace(b"udpm-weights/2", b"udpm-weights/9"))


DAMAGED = {
    # what is wrong: (file, what makes it so, command, what the line says)
    "cut weights": ("run/weights.safetensors", tiny.cut, "sample {} --output out.npz", "follow the header"),
    "weights of a later version": (
        "run/weights.safetensors",
        claim_version_9,
        "sample {} --output out.npz",
        "format is 'udpm-weights/9', expected 'udpm-weights/2'",
    ),
    "a configuration with NaN": (
        "scoring.json",
        lambda path: path.write_text(path.read_text().replace(": 250", ": NaN", 1)),
        "score --heldout --reference r.npz --dataset dataset --output out.json --config {}",
        "NaN is not a valid JSON number",
    ),
    "statistics of objects": (
        "statistics.npz",
        lambda path: np.savez(path, mu=np.array([None]), sigma=np.eye(1)),
        "reference {} --import --extractor extractor.pt --config scoring.json --output out.npz",
        "array mu holds values of type object, not plain numbers or text",
    ),
    "statistics that are no covariance": (
        "statistics.npz",
        lambda path: np.savez(path, mu=np.zeros(2), sigma=np.array([[1.0, 1.0], [0.0, 1.0]])),
        "reference {} --import --extractor extractor.pt --config scoring.json --output out.npz",
        "sigma is not symmetric, as covariances are",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_the_right_kind_is_reported_with_the_reason(made, tmp_path, monkeypatch, capsys, case):
    name, damage, command, expected = DAMAGED[case]
    monkeypatch.chdir(made)
    path = tmp_path / Path(name).name
    shutil.copy(name, path)
    damage(path)
    capsys.readouterr()
    assert tiny.call(*command.format(path).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert expected in line
    assert "it is" not in line


def test_cut_images_of_a_data_set_are_reported_with_the_reason(made, tmp_path, capsys):
    shutil.copytree(made / "dataset", tmp_path / "dataset")
    tiny.cut(tmp_path / "dataset/images.npy")
    tiny.assert_refused(tmp_path, f"cache {tmp_path}/dataset --output {tmp_path}/c", "array: it claims uint8", capsys)
