"""`udpm info` recognizes what people have and what udpm made, and the command that it shows runs as it is."""

import json
import shlex
import shutil

import golden_vectors as golden
import numpy as np
import parquets
import pyarrow as pa
import pytest
import tiny
from pictures import encoded, noise, tree, zipped
from scored import save_samples

from udpm.config import DatasetConfig, to_json
from udpm.data import npz

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)


@pytest.fixture
def things(digits, trained, tmp_path, monkeypatch):
    """A folder with images of every kind, and with files and folders that udpm made."""
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "my 'flowers'")
    plain = {f"{number}.png": encoded(noise(40, seed=number, width=50 + number)) for number in range(3)}
    zipped(tmp_path / "photos.zip", plain)
    labels = {"labels": [[f"0000{number % 2}/{number}.png", number % 2] for number in range(4)]}
    stylegan = {name: encoded(noise(16, seed=label)) for name, label in labels["labels"]}
    zipped(tmp_path / "stylegan.zip", stylegan | {"dataset.json": json.dumps(labels)})
    for name, content in (stylegan | {"dataset.json": json.dumps(labels).encode()}).items():
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).write_bytes(content)
    parquets.hub(tmp_path / "hub")
    parquets.write(tmp_path / "one.parquet", parquets.files(3))
    np.savez("arrays.npz", images=IMAGES, labels=np.arange(8) % 4)
    np.savez("named.npz", x_train=IMAGES, y_train=np.arange(8) % 4, x_test=IMAGES)
    np.save("array.npy", IMAGES[..., 0])
    for name in ("dataset", "cache"):
        shutil.copytree(digits / name, name)
    shutil.copytree(trained, "run")
    shutil.copytree(tiny.ROOT / "config", "config")
    save_samples("samples.npz", IMAGES, np.arange(8) % 2, {"classes": 2, "nfe": 3})
    shutil.copytree(golden.FOLDER / "earlier", "earlier")
    (tmp_path / "results/runs/digits").mkdir(parents=True)
    (tmp_path / "results/runs/digits/seed0").symlink_to(tmp_path / "run")
    assert tiny.call("export", "samples.npz", "exported") == 0
    assert tiny.call("export", "run", "bundle") == 0
    tiny.write_config(tmp_path)
    (tmp_path / "set.json").write_text(to_json(DatasetConfig(source="folder", path="photos.zip", side=16)))
    return tmp_path


NEXT = {
    "my 'flowers'": "prepare \"my 'flowers'\" --side 16 --classes 2 --output results/datasets/my__flowers_",
    "photos.zip": "prepare photos.zip --side 32 --output results/datasets/photos",
    "stylegan.zip": "prepare stylegan.zip --side 16 --classes 2 --output results/datasets/stylegan",
    "unpacked": "prepare unpacked --side 16 --classes 2 --output results/datasets/unpacked",
    "hub": "prepare hub --side 16 --classes 2 --output results/datasets/hub",
    "one.parquet": "prepare one.parquet --side 16 --output results/datasets/one",
    "arrays.npz": "prepare arrays.npz --side 16 --classes 4 --output results/datasets/arrays",
    "named.npz": "prepare named.npz --side 16 --output results/datasets/named",
    "array.npy": "prepare array.npy --side 16 --output results/datasets/array",
    "dataset": "cache dataset --output results/caches/dataset",
    "cache": "info cache --check",
    "run": "sample run --output run-samples.npz",
    "run/weights.safetensors": "sample run/weights.safetensors --output run-samples.npz",
    "run/metrics.jsonl": "figure curves run/metrics.jsonl --output metrics-curves",
    "run/complete.json": "info run",
    "run.json": "train run.json --dry-run",
    "set.json": "prepare set.json --output results/datasets/set",
    "samples.npz": "figure samples samples.npz --output samples-grid",
    "samples.json": "figure samples samples.json --output samples-grid",
    "dataset/dataset.json": "info dataset",
    "exported": "reference --help",
    "bundle": "sample bundle --output bundle-samples.npz",
    "results": "status --results results",
    "earlier/half": "status earlier/half",
    "earlier/score.json": "table earlier/score.json --output score-table",
    "earlier/chain.npz": "figure chain earlier/chain.npz --output chain-chain",
    "earlier/reference.npz": "score --help",
    "earlier/extractor.pt": "score --help",
    "config/experiments/digits.yaml": "resolve digits --config {}/config",
    "config/datasets/digits.yaml": "resolve --dataset digits --config {}/config",
    "config/sweeps/schedules-digits.yaml": "sweep plan schedules-digits --config {}/config",
}


@pytest.mark.parametrize("name", NEXT)
def test_the_next_command_runs(things, name, capsys):
    assert tiny.call("info", name) == 0
    shown = capsys.readouterr()
    assert isinstance(json.loads(shown.out), dict)
    line = shown.err.splitlines()[-1]
    words = shlex.split(line.removeprefix("next: "))
    assert words == shlex.split("udpm " + NEXT[name].format(things))
    assert tiny.call(*words[1:]) == 0


def test_a_checkpoint_leads_to_its_run(things, capsys):
    checkpoint = next((things / "run/checkpoints").glob("*.safetensors"))
    assert tiny.call("info", checkpoint) == 0
    words = shlex.split(capsys.readouterr().err.splitlines()[-1].removeprefix("next: "))
    assert words == ["udpm", "status", str(things / "run")]
    assert tiny.call(*words[1:]) == 0


def test_images_are_described(things, capsys):
    assert tiny.call("info", "hub") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "a folder of Parquet files"
    assert (found["images"], found["splits"]) == (11, {"train": 7, "test": 4})
    assert (found["classes"], found["class_names"], found["labels"]) == (2, ["cat", "dog"], "column label")
    assert (found["width"], found["height"]) == (23, 20)
    assert tiny.call("info", "photos.zip") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["classes"], found["width"], found["height"]) == (0, [50, 52], 40)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (pa.array(["a", "b", "a"]), "not usable: x.parquet: column label is string; expected whole numbers"),
        ([0, None, 1], "not usable: x.parquet: row 1: the label (label) is null; every image needs one"),
        (None, None),
    ],
)
def test_labels_that_cannot_be_used_are_named(labels, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parquets.write(tmp_path / "x.parquet", parquets.files(3), labels)
    assert tiny.call("info", "x.parquet") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["classes"] == 0
    assert found["labels"].startswith(reason) if reason else "labels" not in found
    words = shlex.split(printed.err.splitlines()[-1])
    assert "--classes" not in words
    assert tiny.call(*words[2:]) == 0


def test_labels_of_some_images_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x_train=IMAGES, y_train=np.arange(8) % 2, x_test=IMAGES)
    for name in ("a/0.png", "b/0.png", "loose.png"):
        (tmp_path / "flowers" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flowers" / name).write_bytes(encoded(noise(16)))
    for name, reason in (("x.npz", "has no labels for some of its splits"), ("flowers", "not in a class folder")):
        assert tiny.call("info", name) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["labels"].startswith("not usable: ")
        assert reason in found["labels"]


@pytest.mark.parametrize("labels", [{}, {"labels": np.arange(8) % 4}], ids=["unlabelled", "labelled"])
def test_a_compressed_file_is_unpacked_once(labels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez_compressed("x.npz", images=IMAGES, **labels)
    unpacked = []
    monkeypatch.setattr(
        "udpm.data.array_files.place_array", lambda *given: unpacked.append(given) or npz.place_array(*given)
    )
    assert tiny.call("info", "x.npz") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == (4 if labels else 0)
    assert len(unpacked) == 1


def test_the_next_command_overwrites_nothing(things, capsys):
    (things / "results/datasets/arrays").mkdir(parents=True)
    (things / "samples-grid.svg").write_text("mine")
    for name, expected in (("arrays.npz", "--output results/datasets/arrays-2"), ("samples.npz", "samples-grid-2")):
        assert tiny.call("info", name) == 0
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.endswith(expected)
        assert tiny.call(*shlex.split(line)[2:]) == 0
    assert (things / "samples-grid.svg").read_text() == "mine"


def test_images_are_named_in_errors(things, capsys):
    for command, expected in (
        ("export unpacked --output x.zip", "which a .zip is made; it is a folder of images (for udpm prepare"),
        ("cache hub --output x", "hub is a folder of Parquet files (for udpm prepare"),
        ("sample photos.zip --output x.npz", "it is a .zip of images (for udpm prepare and"),
        ("sample one.parquet --output x.npz", "it is a Parquet file (udpm prepare takes images)"),
        ("cache unpacked/00000/0.png --output x", "0.png is a file, expected a folder (it is an image)"),
    ):
        tiny.assert_refused(things, command, expected, capsys)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seg", "seg_test/, seg_train/ look like splits; name them by splits"),
        ("damaged.zip", "damaged.zip: 1.png: not a readable image"),
        ("part-00000-of-00002.parquet", None),
        ("notes.txt", "not a file made by udpm, nor images"),
        ("nowhere", "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_prepared_is_reported(tmp_path, monkeypatch, capsys, name, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ("seg_train", "seg_test"):
        (tmp_path / "seg" / folder).mkdir(parents=True)
        (tmp_path / "seg" / folder / "1.png").write_bytes(encoded(noise()))
    zipped(tmp_path / "damaged.zip", {"1.png": b"no image"})
    parquets.write(tmp_path / "part-00000-of-00002.parquet", parquets.files(2))
    (tmp_path / "notes.txt").write_text("mine")
    if expected is None:
        assert tiny.call("info", name) == 0
    else:
        tiny.assert_refused(tmp_path, f"info {name}", expected, capsys)
