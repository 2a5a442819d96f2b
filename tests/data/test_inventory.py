"""Sources changed since a data set was prepared, and remembered digests."""

import json
import os
import shutil
import zipfile

import numpy as np
import parquets
import pytest
from photos import add, change, picture, remove, replace_keeping_times

from udpm.config import DatasetConfig
from udpm.core.files import sha256
from udpm.core.provenance import Digests
from udpm.data.inventory import Difference, difference, inventory_now, read_inventory
from udpm.data.prepare import prepare


def changes(store, config):
    return difference(read_inventory(store), inventory_now(config, Digests()))


def move(source):
    (source / "a/0.png").rename(source / "b/0.png")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda source: None, Difference(0, 0, 0)),
        (lambda source: os.utime(source / "a/0.png", (1, 2)), Difference(0, 0, 0)),
        (add, Difference(1, 0, 0)),
        (remove, Difference(0, 1, 0)),
        (change, Difference(0, 0, 1)),
        (move, Difference(1, 1, 0)),
        (lambda source: (source / "notes.txt").write_text("mine"), Difference(0, 0, 0)),
    ],
)
def test_what_changed_in_a_folder(photographs, edit, expected):
    source, store, config = photographs
    edit(source)
    found = changes(store, config)
    assert found == expected
    assert bool(found) == (expected != Difference(0, 0, 0))


def test_what_changed_in_an_archive(photographs, tmp_path):
    source, _, config = photographs

    def pack(path, compression):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for file in sorted(source.rglob("*.png")):
                archive.write(file, file.relative_to(source))

    config = config.model_copy(update={"path": str(tmp_path / "a.zip")})
    pack(tmp_path / "a.zip", zipfile.ZIP_STORED)
    prepare(config, tmp_path / "zipped")
    pack(tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    assert not changes(tmp_path / "zipped", config)
    change(source)
    pack(tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    assert changes(tmp_path / "zipped", config) == Difference(0, 0, 1)


@pytest.mark.parametrize("archived", [False, True])
def test_a_file_of_labels_that_changed(tmp_path, archived):
    source = tmp_path / "labelled"
    for number in range(4):
        picture(source / f"{number}.png", 40 * number)

    def label(values):
        (source / "dataset.json").write_text(json.dumps({"labels": [[f"{n}.png", v] for n, v in enumerate(values)]}))
        if archived:
            with zipfile.ZipFile(tmp_path / "labelled.zip", "w") as archive:
                for file in sorted(source.iterdir()):
                    archive.write(file, file.name)

    label([0, 1, 0, 1])
    path = tmp_path / "labelled.zip" if archived else source
    config = DatasetConfig(source="folder", path=str(path), side=16, classes=2)
    prepare(config, tmp_path / "store")
    label([0, 1, 0, 1])
    assert not changes(tmp_path / "store", config)
    label([0, 1, 1, 0])
    assert changes(tmp_path / "store", config) == Difference(0, 0, 2)


def test_a_moved_or_missing_source(photographs, tmp_path):
    source, store, config = photographs
    shutil.copytree(source, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert not changes(store, config.model_copy(update={"path": str(tmp_path / "elsewhere")}))
    shutil.rmtree(source)
    assert inventory_now(config, Digests()) is None


def test_remembered_digests_are_never_wrong(tmp_path, monkeypatch):
    file, memory = tmp_path / "file", tmp_path / "memory/digests.jsonl"
    file.write_bytes(b"one")
    monkeypatch.setattr("udpm.core.provenance.SETTLED", -(10**12))
    digests = Digests(memory)
    assert digests(file) == sha256(file)
    digests.save()
    read = []
    monkeypatch.setattr("udpm.core.provenance.sha256", lambda path: read.append(path) or sha256(path))
    assert Digests(memory)(file) == sha256(file)
    assert not read
    replace_keeping_times(file, b"two")
    assert Digests(memory)(file) == sha256(file)
    assert len(read) == 1
    # Damage costs reading once more, no more than that.
    memory.write_bytes(b'["torn", 1\n[]\n\xff\xfe\nnull\n' + memory.read_bytes()[:-9])
    again = Digests(memory)
    assert again(file) == sha256(file)
    again.save()
    read.clear()
    assert Digests(memory)(file) == sha256(file)
    assert not read


def test_a_fresh_change_is_not_remembered(tmp_path):
    """Two changes within a tick of the file system's clock have the same time."""
    file, memory = tmp_path / "file", tmp_path / "digests.jsonl"
    file.write_bytes(b"one")
    digests = Digests(memory)
    digests(file)
    digests.save()
    assert not memory.exists()


def test_a_change_of_a_file_of_many_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 16, 16, 3), np.uint8))
    config = DatasetConfig(source="folder", path=str(tmp_path / "a.npz"), side=16)
    prepare(config, tmp_path / "store")
    assert not changes(tmp_path / "store", config)
    np.savez(tmp_path / "a.npz", images=np.ones((3, 16, 16, 3), np.uint8))
    assert changes(tmp_path / "store", config) == Difference(0, 0, 1)


@pytest.mark.parametrize(
    "names", ["train.parquet test.parquet", "default/train/0000.parquet default/test/0000.parquet"]
)
def test_moved_files_of_many_images(tmp_path, monkeypatch, names):
    for name in names.split():
        parquets.write(tmp_path / "set" / name, parquets.files(3))
    config = DatasetConfig(source="folder", path=str(tmp_path / "set"), side=16)
    prepare(config, tmp_path / "store")
    (tmp_path / "set").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for path in ("moved", "./moved/", "moved/../moved", str(tmp_path / "moved")):
        assert not changes(tmp_path / "store", config.model_copy(update={"path": path}))
    parquets.write(tmp_path / "moved" / names.split()[0], parquets.files(3, start=9))
    assert changes(tmp_path / "store", config.model_copy(update={"path": "moved"})) == Difference(0, 0, 1)
