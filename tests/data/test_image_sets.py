"""Image sets as people have them: arrays and Parquet files are prepared like folders, or refused in one line."""

import json
import os
import pickle
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import parquets
import pyarrow as pa
import pytest
import tiny
from pictures import bomb, encoded, noise, zipped
from PIL import Image
from pyarrow import parquet

from udpm.config import DatasetConfig
from udpm.core import containers
from udpm.data.open import open_folder
from udpm.data.store import open_store

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 20, 23, 3), np.uint8)
LABELS = np.arange(7) % 2
GREY = IMAGES[..., :1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prepared(source, *options):
    """Prepare images by a command; return the store."""
    assert tiny.call("prepare", source, "--side", 16, *options, "--output", f"{source}-store") == 0
    return open_store(f"{source}-store")


def as_folder(name, images, labels=None):
    """Write images as PNGs, in class folders if labelled, and prepare them."""
    for number, image in enumerate(images):
        folder = f"{name}/{'' if labels is None else labels[number]}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{number:05d}.png", "wb") as file:
            file.write(image if isinstance(image, bytes) else encoded(image))
    return prepared(name, "--classes", 0 if labels is None else len(set(labels)))


def pictures_of(images):
    return [Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3))) for image in images]


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": IMAGES, "labels": LABELS}, IMAGES),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2), "arr_1": LABELS[:, None]}, IMAGES),
        ({"x": GREY, "y": LABELS.astype(np.uint8)}, GREY),
        ({"data": GREY[..., 0], "label": LABELS}, GREY),
        ({"samples": GREY.transpose(0, 3, 1, 2), "targets": LABELS}, GREY),
    ],
)
def test_arrays_make_the_store_of_their_files(save, arrays, expected):
    save("x.npz", **arrays)
    store = prepared("x.npz", "--classes", 2)
    order = np.argsort(LABELS, kind="stable")
    files = as_folder("files", pictures_of(expected), LABELS)
    assert (store.images[order] == files.images).all()
    assert store.labels.tolist() == LABELS.tolist()
    assert store.record["splits"] == {"train": [0, 7]}
    assert store.record["source"]["labels"].endswith(" of x.npz")


def test_an_npy_has_no_labels(capsys):
    np.save("x.npy", IMAGES)
    assert (prepared("x.npy").images == as_folder("files", pictures_of(IMAGES)).images).all()
    assert tiny.call("prepare", "x.npy", "--side", 16, "--classes", 2, "--output", "other") == 2
    assert "x.npy: has no labels, but classes is 2; set classes: 0" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "train_images train_labels val_images val_labels"])
def test_arrays_named_by_a_split_are_the_splits(names):
    train, labels, test, others = names.split()
    np.savez("x.npz", **{train: IMAGES, labels: LABELS, test: IMAGES[:2], others: LABELS[:2]})
    store = prepared("x.npz", "--classes", 2)
    assert store.record["splits"] == {"train": [0, 7], "test": [7, 9]}
    assert store.labels.tolist() == [*LABELS, *LABELS[:2]]


def test_labels_of_arrays_do_not_matter_without_classes():
    np.savez("x.npz", x_train=IMAGES, y_train=LABELS, train_labels=LABELS)
    assert prepared("x.npz").record["splits"] == {"train": [0, 7]}


def test_held_out_images_of_arrays_keep_their_labels():
    np.savez_compressed("x.npz", images=IMAGES, labels=LABELS)
    store = prepared("x.npz", "--classes", 2, "--holdout", 2)
    assert store.record["splits"] == {"train": [0, 5], "test": [5, 7]}
    os.rename("x.npz-store", "held")
    everything = prepared("x.npz")
    store = open_store("held")
    places = [int(np.flatnonzero((everything.images == image).all(axis=(1, 2, 3)))[0]) for image in store.images]
    assert sorted(places) == list(range(7))
    assert store.labels.tolist() == LABELS[places].tolist()


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_workers_make_the_same_store_of_arrays(name):
    many = np.tile(IMAGES, (20, 1, 1, 1))
    np.savez(name, images=many) if name == "x.npz" else np.save(name, many)
    one = prepared(name, "--workers", 1).digest
    os.rename(f"{name}-store", "one")
    assert prepared(name, "--workers", 2).digest == one


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_a_reader_of_arrays_can_be_sent_to_another_process(save):
    save("x.npz", images=IMAGES.transpose(0, 3, 1, 2))
    source = open_folder(DatasetConfig(source="folder", path="x.npz", side=16))
    reader = pickle.loads(pickle.dumps(source.reader))
    assert all((reader.load(b"", key) == image).all() for key, image in zip(source.keys, IMAGES, strict=True))


def test_a_prepared_set_is_left_alone_until_its_file_changes(capsys):
    np.savez("x.npz", images=IMAGES)
    digest = prepared("x.npz").digest
    prepared("x.npz")
    assert "complete already, nothing to do" in capsys.readouterr().out
    np.savez("x.npz", images=IMAGES[::-1])
    assert prepared("x.npz").digest != digest


def test_nothing_of_an_array_is_executed():
    class Trap:
        def __reduce__(self):
            return os.system, ("touch executed",)

    np.save("x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    assert tiny.call("prepare", "x.npy", "--side", 16, "--output", "store") == 2
    assert not os.path.exists("executed")


RAGGED = np.empty(2, object)
ARRAYS = {
    "floats": ({"images": IMAGES / 255}, "images is float64 (7, 20, 23, 3); expected uint8"),
    "wider numbers": ({"images": IMAGES.astype(np.int16)}, "images is int16 (7, 20, 23, 3); expected uint8"),
    "objects": ({"images": RAGGED}, "array images holds values of type object"),
    "one image": ({"images": IMAGES[0]}, "expected uint8 (N, height, width, 3), or channels first, or one channel"),
    "four channels": ({"images": IMAGES.repeat(2, axis=3)}, "expected uint8 (N, height, width, 3)"),
    "no images": ({"images": IMAGES[:0]}, "images is uint8 (0, 20, 23, 3)"),
    "two arrays": ({"a": IMAGES, "b": IMAGES}, "contains 'a', 'b', but no array images"),
    "too small": ({"images": IMAGES[:, :8]}, "images of 23×8 pixels, smaller than side 16"),
    "columns first": ({"images": np.asfortranarray(IMAGES)}, "is in Fortran order; save numpy.ascontiguousarray"),
    "few labels": ({"images": IMAGES, "labels": LABELS[:5]}, "labels has 5 labels for the 7 images of images"),
    "fractions as labels": ({"images": IMAGES, "labels": LABELS / 2}, "labels is float64 (7,); expected whole numbers"),
    "names as labels": ({"images": IMAGES, "labels": LABELS.astype(str)}, "expected whole numbers (7,), one per"),
    "objects as labels": ({"images": IMAGES, "labels": LABELS.astype(object)}, "holds values of type object"),
    "vectors as labels": ({"images": IMAGES, "labels": np.eye(7, dtype=int)}, "labels is int64 (7, 7); expected"),
    "a negative label": ({"images": IMAGES, "labels": LABELS - 1}, "images[0]: the label is -1; labels are numbers"),
    "a gap": ({"images": IMAGES, "labels": 2 * LABELS}, "the label is 2, but no image has 1; number classes without"),
    "three classes": ({"images": IMAGES, "labels": np.arange(7) % 3}, "has 3 classes (numbers 0..2), but classes is 2"),
    "no labels": ({"images": IMAGES}, "x.npz: has no labels, but classes is 2; set classes: 0"),
    "no labels of a split": ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES}, "x.npz: has no labels"),
    "two arrays of a split": (
        {"x_train": IMAGES, "y_train": LABELS, "train_images": IMAGES},
        "x.npz: 'x_train' and 'train_images' are both images of the split train; keep one",
    ),
    "test images next to images of no split": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES},
        "x.npz: 'test_images' is named as images of a split, but no array as those to train on",
    ),
    "test images alone": ({"x_test": IMAGES}, "call one train_images, or set splits: none if no array is a split"),
    "two label arrays of a split": (
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "test_labels": LABELS, "y_test": LABELS},
        "x.npz: 'test_labels' and 'y_test' are both labels of the split test; keep one",
    ),
}


def refused(capsys, *command):
    """Return the one line that a command prints, after checking that nothing was written."""
    before = tiny.snapshot(Path.cwd())
    capsys.readouterr()
    assert tiny.call(*command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert tiny.snapshot(Path.cwd()) == before
    return line


@pytest.mark.parametrize("case", ARRAYS)
def test_refuses_arrays(case, capsys):
    arrays, expected = ARRAYS[case]
    np.savez("x.npz", **arrays)
    line = refused(capsys, "prepare", "x.npz", "--side", 16, "--classes", 2, "--output", "store")
    assert expected in line


def test_refuses_damaged_arrays(capsys):
    np.savez("whole.npz", images=IMAGES)
    np.save("whole.npy", IMAGES)
    for suffix, change, expected in (
        (".npz", lambda data: data[: len(data) // 2], "not a readable .npz of images"),
        (".npz", lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "checksum of array images is wrong"),
        (".npy", lambda data: data[:-10], "claims uint8 (7, 20, 23, 3)"),
        (".npz", lambda data: b"", "not a readable .npz of images"),
        (".npy", lambda data: b"PK\x03\x04", "has no readable header of an array"),
    ):
        with open(f"whole{suffix}", "rb") as file, open(f"x{suffix}", "wb") as other:
            other.write(change(file.read()))
        assert expected in refused(capsys, "prepare", f"x{suffix}", "--side", 16, "--output", "store")


def test_a_full_disk_is_reported(monkeypatch, capsys):
    np.savez_compressed("x.npz", images=IMAGES)
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "wb", buffering=0))
    line = refused(capsys, "prepare", "x.npz", "--side", 16, "--output", "store")
    assert f"x.npz: cannot be unpacked to {tempfile.gettempdir()}: No space left on device; set TMPDIR" in line


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_shards_of_the_hub_make_the_store_of_their_files(tmp_path, capsys):
    train, test = parquets.hub(tmp_path / "set")
    store = prepared("set", "--classes", 2)
    assert store.record["splits"] == {"train": [0, 7], "test": [7, 11]}
    assert store.class_names == ["cat", "dog"]
    assert store.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert store.record["source"]["labels"] == "column label"
    assert (store.images == as_folder("files", [*train, *test]).images).all()
    prepared("set", "--classes", 2)
    assert "complete already, nothing to do" in capsys.readouterr().out


def test_one_parquet_file_is_a_set(tmp_path):
    images = parquets.files(5)
    parquets.write(tmp_path / "x.parquet", images, [0, 1, 2, 0, 1], plain=True)
    store = prepared("x.parquet", "--classes", 3)
    assert store.class_names == []
    assert store.labels.tolist() == [0, 1, 2, 0, 1]
    assert (store.images == as_folder("files", images).images).all()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train.parquet test.parquet", {"train": [0, 3], "test": [3, 6]}),
        ("default/train/0000.parquet default/test/0000.parquet", {"train": [0, 3], "test": [3, 6]}),
        ("train-00000-of-00001.parquet validation-00000-of-00001.parquet", {"train": [0, 3], "test": [3, 6]}),
        ("0000.parquet 0001.parquet", {"train": [0, 6]}),
        (
            "train-00000-of-00001-a09b74b3ef9c3b56.parquet test-00000-of-00001-0123456789abcdef.parquet",
            {"train": [0, 3], "test": [3, 6]},
        ),
        ("a/train.parquet a/valid.parquet a/test.parquet", {"train": [0, 3], "test": [3, 6]}),
        ("data-00000-of-00002.parquet data-00001-of-00002.parquet", {"train": [0, 6]}),
    ],
)
def test_splits_come_from_the_names_of_parquet_files(tmp_path, names, splits):
    for name in names.split():
        parquets.write(tmp_path / "set" / name, parquets.files(3))
    assert prepared("set").record["splits"] == splits


def test_workers_and_held_out_rows_make_the_same_store(tmp_path):
    images = parquets.files(150)
    parquets.write(tmp_path / "x.parquet", images, [number % 2 for number in range(150)])
    one = prepared("x.parquet", "--classes", 2, "--holdout", 30, "--workers", 1)
    os.rename("x.parquet-store", "one")
    two = prepared("x.parquet", "--classes", 2, "--holdout", 30, "--workers", 2)
    assert one.digest == two.digest
    assert one.record["splits"] == {"train": [0, 120], "test": [120, 150]}
    every = as_folder("files", images).images
    places = [int(np.flatnonzero((every == image).all(axis=(1, 2, 3)))[0]) for image in two.images]
    assert sorted(places) == list(range(150))
    assert two.labels.tolist() == [place % 2 for place in places]


def test_a_configuration_names_splits_of_parquet_files(tmp_path):
    parquets.hub(tmp_path / "set")
    config = {"source": "folder", "path": "set", "side": 16, "splits": {"train": "test", "test": "train"}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert tiny.call("prepare", "c.json", "--output", "store") == 0
    assert open_store("store").record["splits"] == {"train": [0, 4], "test": [4, 11]}


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_labels_are_only_inside(tmp_path, name, capsys):
    np.savez("x.npz", images=IMAGES, labels=LABELS)
    parquets.write(tmp_path / "x.parquet", parquets.files(2), [0, 1])
    config = {"source": "folder", "path": name, "side": 16, "classes": 2, "labels": "labels.csv"}
    (tmp_path / "labels.csv").write_text("file_name,label\n")
    (tmp_path / "c.json").write_text(json.dumps(config))
    line = refused(capsys, "prepare", "c.json", "--output", "store")
    assert f"labels: labels.csv: is for folders and .zip files; the labels of {name} are inside it" in line


@pytest.mark.parametrize(
    ("name", "test", "unused"),
    [("x.npz", "test", "y_train of x.npz"), ("set", "data/test", "column label")],
)
def test_what_is_not_used_of_a_source_is_said(tmp_path, name, test, unused, capsys):
    np.savez("x.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES)
    parquets.hub(tmp_path / "set")
    prepared(name, "--holdout", 3)
    warned = capsys.readouterr().err
    assert f"holdout: 3 is not used: {test}/ is the test split" in warned
    assert f"{unused} is not used, since classes is 0 (unlabelled)" in warned


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_a_source_without_labels_warns_of_nothing(tmp_path, name, capsys):
    np.save("x.npy", IMAGES)
    parquets.write(tmp_path / "x.parquet", GOOD)
    prepared(name, "--holdout", 2)
    assert "is not used" not in capsys.readouterr().err


def test_sets_next_to_each_other_are_refused(tmp_path, capsys):
    for name in ("a/train.parquet", "a/test.parquet", "b/train.parquet", "b/test.parquet"):
        parquets.write(tmp_path / "set" / name, parquets.files(2))
    line = refused(capsys, "prepare", "set", "--side", 16, "--output", "store")
    assert "look like splits below other folders" in line


GOOD = parquets.files(3)
TWO = {"labels": [0, 1, 0]}
TABLES = {
    "a null image": ({"images": [GOOD[0], None, GOOD[2]], **TWO}, "x.parquet/row 1: is null: it has no bytes"),
    "damaged bytes": ({"images": [GOOD[0], GOOD[1][:60], GOOD[2]], **TWO}, "x.parquet/row 1: not a readable image"),
    "a bomb": ({"images": [bomb(), *GOOD[:2]], **TWO}, "row 0: claims 60000×60000 pixels, more than max_pixels"),
    "a small one": (
        {"images": [GOOD[0], encoded(noise(9)), GOOD[1]], **TWO},
        "row 1: has 9×9 pixels, smaller than side 16",
    ),
    "another image column": (
        {"images": GOOD, **TWO, "depth": pa.array(GOOD, pa.binary())},
        "has 2 columns of images (image, depth); expected one",
    ),
    "names as labels": (
        {"images": GOOD, "labels": pa.array(["a", "b", "a"])},
        "column label is string; expected whole",
    ),
    "fractions as labels": ({"images": GOOD, "labels": pa.array([0.0, 1.0, 0.5])}, "column label is double; expected"),
    "a null label": ({"images": GOOD, "labels": [0, None, 1]}, "row 1: the label (label) is null"),
    "a label without a name": (
        {"images": GOOD, "labels": [0, 1, 2], "names": ["cat", "dog"]},
        "row 2: the label is 2, but there are 2 class names",
    ),
    "a negative label": ({"images": GOOD, "labels": [0, 1, -1], "names": ["cat", "dog"]}, "row 2: the label is -1"),
    "three names": (
        {"images": GOOD, "labels": [0, 1, 0], "names": ["cat", "dog", "cow"]},
        "has 3 classes (names cat, dog, cow), but classes is 2; set classes: 3",
    ),
    "no labels": ({"images": GOOD}, "x.parquet: has no labels, but classes is 2"),
    "no rows": ({"images": [], "labels": []}, "x.parquet: has no rows"),
}


@pytest.mark.parametrize("case", TABLES)
def test_refuses_tables(case, tmp_path, capsys):
    given, expected = TABLES[case]
    parquets.write(tmp_path / "x.parquet", **given)
    line = refused(capsys, "prepare", "x.parquet", "--side", 16, "--classes", 2, "--output", "store")
    assert expected in line


@pytest.mark.parametrize(
    "labels", [pa.array(["a", "b", "a"]), pa.array([0.0, 1.0, 0.5]), [0, None, 1], [0, 1, -1], None]
)
def test_labels_of_tables_do_not_matter_without_classes(labels, tmp_path):
    parquets.write(tmp_path / "set/train.parquet", GOOD, labels)
    parquets.write(tmp_path / "set/test.parquet", GOOD, [0, 1, 0], ["cat", "dog"])
    assert prepared("set").record["splits"] == {"train": [0, 3], "test": [3, 6]}


def test_refuses_other_tables(tmp_path, capsys):
    parquet.write_table(pa.table({"text": ["a"], "label": [1]}), "x.parquet")
    line = refused(capsys, "prepare", "x.parquet", "--side", 16, "--output", "store")
    assert (
        "has no column of images; expected one, of bytes or of a struct of bytes and path; found text (string)" in line
    )


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-200], lambda data: b"PAR1", lambda data: b"", lambda data: b"# A set\n" * 99],
    ids=["truncated", "only its mark", "empty", "text"],
)
def test_refuses_what_is_no_parquet_file(change, tmp_path, capsys):
    path = parquets.write(tmp_path / "x.parquet", GOOD)
    path.write_bytes(change(path.read_bytes()))
    line = refused(capsys, "prepare", "x.parquet", "--side", 16, "--output", "store")
    assert "x.parquet: not a readable Parquet file" in line


def test_refuses_a_set_of_shards_that_is_not_whole(tmp_path, capsys):
    for number in (0, 2):
        parquets.write(tmp_path / f"set/data/train-{number:05d}-of-00003.parquet", GOOD)
    line = refused(capsys, "prepare", "set", "--side", 16, "--output", "store")
    assert "set: data/train-00001-of-00003.parquet is missing: found 2 of 3 files; download it again" in line
    parquets.write(tmp_path / "set/data/train-00001-of-00003.parquet", GOOD)
    parquets.write(tmp_path / "set/data/train-00000-of-00001.parquet", GOOD)
    assert "two numbered sets of files data/train-…" in refused(
        capsys, "prepare", "set", "--side", 16, "--output", "store"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet data/train-00000-of-00001-b09b74b3ef9c3b56.parquet",
            "set: data/train-00000-of-00001-a09b74b3ef9c3b56.parquet and "
            "data/train-00000-of-00001-b09b74b3ef9c3b56.parquet are the same part of a set",
        ),
        (
            "train-00000-of-00001.parquet train-00000-of-00001-b09b74b3ef9c3b56.parquet",
            "train-00000-of-00001.parquet are the same part of a set; remove the older one",
        ),
        (
            "train-00000-of-00001-a09b74b3ef9c3b56.parquet train.parquet test.parquet",
            "train-00000-of-00001-a09b74b3ef9c3b56.parquet, a part of a numbered set, and train.parquet stand for",
        ),
        ("train-00000-of-00001.parquet train/0000.parquet", "and train/0000.parquet stand for the same images"),
    ],
)
def test_refuses_two_uploads_of_a_set(tmp_path, names, expected, capsys):
    for name in names.split():
        parquets.write(tmp_path / "set" / name, GOOD)
    assert expected in refused(capsys, "prepare", "set", "--side", 16, "--output", "store")


def test_refuses_shards_of_different_sets(tmp_path, capsys):
    parquets.write(tmp_path / "set/train.parquet", GOOD, [0, 1, 0], ["cat", "dog"])
    parquets.write(tmp_path / "set/test.parquet", GOOD, [0, 1, 0], ["dog", "cat"])
    line = refused(capsys, "prepare", "set", "--side", 16, "--classes", 2, "--output", "store")
    assert "differ from those of" in line


def test_parquet_needs_its_extra(tmp_path, monkeypatch, capsys):
    parquets.write(tmp_path / "x.parquet", GOOD)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = refused(capsys, "prepare", "x.parquet", "--side", 16, "--output", "store")
    assert line == "error: x.parquet: Parquet files need the parquet extra: pip install 'udpm[parquet]'"


def test_refuses_a_table_that_unpacks_to_far_more(tmp_path, monkeypatch, capsys):
    parquets.write(tmp_path / "x.parquet", [bytes(1 << 16)] * 30, plain=True)
    monkeypatch.setattr(containers, "UNPACKED_BYTES", 1 << 16)
    monkeypatch.setattr(containers, "UNPACKED_TIMES", 1)
    line = refused(capsys, "prepare", "x.parquet", "--side", 16, "--output", "store")
    assert "x.parquet: not a readable Parquet file: it unpacks to " in line


# --- what is neither --------------------------------------------------------------------------------------------------


def test_refuses_a_zip_of_zips(tmp_path, capsys):
    inner = zipped(tmp_path / "a.zip", {"1.png": encoded(noise())}).read_bytes()
    zipped(tmp_path / "x.zip", {"a.zip": inner, "b.zip": inner})
    line = refused(capsys, "prepare", "x.zip", "--side", 16, "--output", "store")
    assert "x.zip: no images; looked for .png, " in line
    assert line.endswith("; found 2 .zip; unpack the archives in it")


@pytest.mark.parametrize("name", ["x.zip", "x.npz", "x.npy", "x.parquet", "folder"])
def test_images_without_a_side_are_refused(name, tmp_path, capsys):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        with zipfile.ZipFile(name, "w"):
            pass
    line = refused(capsys, "prepare", name, "--output", "store")
    assert f"{name}: not a resolved configuration; give --side N with images" in line
    assert "--classes and --holdout are for images, with --side" in refused(
        capsys, "prepare", name, "--classes", 2, "--output", "store"
    )
