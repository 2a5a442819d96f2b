"""The .zip format of StyleGAN and EDM: written from data sets and sample sets, and read back unchanged."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from scored import save_samples

from udpm.core.kinds import IMAGE_ZIP
from udpm.data.store import open_store

IMAGES = np.random.default_rng(0).integers(0, 256, (43, 4, 4, 3), np.uint8)
LABELS = np.arange(43) % 3


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """A prepared data set of 43 training and 3 test images in 3 classes."""
    np.savez("x.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:3], y_test=LABELS[:3])
    assert tiny.call("prepare", "x.npz", "--side", 4, "--classes", 3, "--output", "dataset") == 0
    return Path("dataset")


def prepared(path, classes):
    assert tiny.call("prepare", path, "--side", 4, "--classes", classes, "--output", f"{path}-store") == 0
    return open_store(f"{path}-store")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_read_back(dataset, split, capsys):
    assert tiny.call("export", dataset, "--output", "x.zip", "--split", split) == 0
    count = {"train": 43, "test": 3}[split]
    assert capsys.readouterr().out.splitlines()[-1] == f"x.zip: {count} images of the {split} split"
    store = prepared("x.zip", 3)
    assert (store.images == IMAGES[:count]).all()
    assert store.labels.tolist() == LABELS[:count].tolist()


def test_the_format_is_that_of_stylegan():
    images, classes = np.tile(IMAGES, (24, 1, 1, 1)), np.tile(LABELS, 24)
    save_samples("s.npz", images, classes, {"classes": 3, "nfe": 3})
    assert tiny.call("export", "s.npz", "x.zip") == 0
    with zipfile.ZipFile("x.zip") as archive:
        names = archive.namelist()
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with archive.open(names[1001]) as file:
            assert (np.asarray(Image.open(file)) == images[1001]).all()
    assert names[0] == "00000/img00000000.png"
    assert names[1001] == "00001/img00001001.png"
    assert names[-1] == "dataset.json"
    assert labels == [[name, label] for name, label in zip(names[:-1], classes.tolist(), strict=True)]


@pytest.mark.parametrize("classes", [3, 0])
def test_a_sample_set_is_read_back(classes):
    labels = LABELS if classes else np.zeros(43, np.int64)
    save_samples("s.npz", IMAGES, labels, {"classes": classes, "nfe": 3})
    assert tiny.call("export", "s.npz", "--output", "x.zip") == 0
    store = prepared("x.zip", classes)
    assert (store.images == IMAGES).all()
    assert store.labels.tolist() == labels.tolist()
    with zipfile.ZipFile("x.zip") as archive:
        assert (json.loads(archive.read("dataset.json"))["labels"] is None) == (not classes)


def test_equal_images_make_equal_bytes(dataset):
    for name in ("a.zip", "b.zip"):
        assert tiny.call("export", dataset, "--output", name) == 0
    assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()
    assert IMAGE_ZIP.made(Path("a.zip"))


def test_an_export_replaces_only_an_unchanged_export(dataset, tmp_path, capsys):
    for _ in range(2):
        assert tiny.call("export", dataset, "--output", "x.zip") == 0
    shutil.copy("x.zip", "edited.zip")
    with zipfile.ZipFile("edited.zip", "a") as archive:
        archive.writestr("mine.txt", "mine")
    with zipfile.ZipFile("mine.zip", "w") as archive:
        archive.writestr("00000/img00000000.png", "mine")
    for name in ("edited.zip", "mine.zip"):
        expected = f"{name}: already exists, not a zip of exported images that udpm wrote"
        tiny.assert_refused(tmp_path, f"export dataset --output {name}", expected, capsys)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("export dataset --output folder", "folder: must end in .zip, since dataset is a prepared data set"),
        ("export dataset --output x.zip --split val", "dataset: has no val split; its splits are train, test"),
        ("export dataset --output x.zip --layout classes", "--layout and --format are for folders of files, not for"),
        ("export x.npz --output x.zip --split train", "--split is for data sets"),
        ("export x.npz --output x.zip", "x.json: sample set's record not found"),
        ("export nothing --output x.zip", "nothing: not a sample set or a prepared data set, of which a .zip is made"),
        ("export dataset --output dataset/x.zip", "is inside dataset, the input of"),
    ],
)
def test_what_is_refused(dataset, tmp_path, command, expected, capsys):
    (tmp_path / "nothing").mkdir()
    tiny.assert_refused(tmp_path, command, expected, capsys)


def test_a_damaged_data_set_is_not_exported(dataset, tmp_path, capsys):
    tiny.flip_byte(dataset / "images.npy", 300)
    tiny.assert_refused(tmp_path, "export dataset --output x.zip", "its bytes were changed since it was", capsys)
