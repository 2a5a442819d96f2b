"""Preparation of stores: kinds of images, bad input, interruptions at any moment."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from itertools import count
from pathlib import Path

import numpy as np
import pictures
import pytest
import tiny
from pictures import encoded, noise
from PIL import Image

from udpm.cli import main
from udpm.config import DatasetConfig
from udpm.core import folders, work
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import PublishedFile, exclusive, sha256
from udpm.core.folders import list_contents
from udpm.core.kinds import DATASET
from udpm.core.work import StopRequest
from udpm.data import cifar, fill
from udpm.data import prepare as preparation
from udpm.data.decode import ImageError, Preprocessing, _opaque_rgb, fit, quiet_decoders, to_rgb
from udpm.data.prepare import prepare
from udpm.data.source import list_members, read_member, shown
from udpm.data.store import open_store


def folder_config(path, **options):
    return DatasetConfig(**{"source": "folder", "path": str(path), "side": 16} | options)


def same_store(found, expected):
    """Check for the same bytes, except the commit, which may change during development."""
    left, right = tiny.snapshot(found), tiny.snapshot(expected)
    records = [json.loads(store.pop(Path("dataset.json"))) for store in (left, right)]
    for record in records:
        record["provenance"].pop("commit")
    assert left == right
    assert records[0] == records[1]


# --- one image


def prepared(image, kind="PNG", recipe=None, **options):
    with quiet_decoders():
        found, mode = to_rgb(encoded(image, kind, **options), recipe or Preprocessing(16))
    assert found.mode == "RGB"
    return np.asarray(found), mode


GREY = np.arange(400, dtype=np.uint8).reshape(20, 20) % 251


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_kinds_keep_every_pixel(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (prepared(noise(), kind, **options)[0] == np.asarray(noise())).all()


def test_grey_becomes_three_equal_channels():
    found, mode = prepared(Image.fromarray(GREY))
    assert mode == "L"
    assert (found == GREY[..., None]).all()


def test_sixteen_bits_keep_their_high_byte():
    values = (np.arange(400, dtype=np.uint32) * 164).reshape(20, 20).astype(np.uint16)
    found, mode = prepared(Image.fromarray(values))
    assert mode.startswith("I")
    assert (found == (values >> 8)[..., None]).all()


def test_palettes_show_their_colours():
    image = noise().quantize(8)
    found, mode = prepared(image)
    assert mode == "P"
    assert (found == np.asarray(image.convert("RGB"))).all()


def test_transparent_parts_show_the_background():
    alpha = Image.fromarray(np.where(np.arange(400).reshape(20, 20) < 200, 0, 255).astype(np.uint8))
    image = noise()
    image.putalpha(alpha)
    assert (prepared(image)[0][:10] == 255).all()
    found, mode = prepared(image, recipe=Preprocessing(16, background=(10, 20, 30)))
    assert mode == "RGBA"
    assert (found[:10] == (10, 20, 30)).all()
    assert (found[10:] == np.asarray(noise())[10:]).all()
    half = Image.new("LA", (20, 20), (0, 128))
    assert (prepared(half)[0] == 127).all()


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(GREY), Image.fromarray(GREY.astype(np.uint16) * 100), noise().quantize(8)],
    ids=["grey", "16 bits", "palette"],
)
def test_a_transparent_colour_shows_the_background(image):
    value = int(np.asarray(image)[3, 4])
    found, _ = prepared(image, transparency=value)
    assert (found[np.asarray(image) == value] == 255).all()
    assert (found[np.asarray(image) != value] != 255).any()


def test_cmyk_is_converted():
    found, mode = prepared(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG", quality=100)
    assert mode == "CMYK"
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_turns_the_image(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, _ = prepared(noise(width=30), kind, **options)
    turned, _ = prepared(noise(width=30), kind, exif=exif, **options)
    assert (turned == np.rot90(plain, -1)).all()


@pytest.mark.parametrize("mode", ["F", "LAB", "HSV"])
def test_other_modes_are_refused_by_name(mode):
    with pytest.raises(ImageError, match=f"mode {mode} cannot"):
        _opaque_rgb(Image.new(mode, (20, 20)), (0, 0, 0))


def test_resizing_is_bicubic_with_a_centre_crop():
    image = noise(41, width=67)
    expected = image.resize((26, 16), Image.Resampling.BICUBIC).crop((5, 0, 21, 16))
    assert (fit(image, 16) == np.asarray(expected)).all()


def test_names_are_shown_in_one_line():
    assert shown(b"two words\nand \xe9.png") == "two words\\nand \\xe9.png"


# --- folders and archives


def members(folder):
    """Return {name: content} of a tree, with names as in zipfile."""
    found = {}
    for base, _, files in os.walk(bytes(folder)):
        for name in files:
            path = os.path.join(base, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, bytes(folder)).decode("cp437")] = file.read()
    return found


def test_a_tree_and_its_zip_make_the_same_store(tmp_path):
    pictures.tree(tmp_path / "images")
    inside = members(tmp_path / "images")
    # Another order, a folder around it all, and what macOS adds.
    backwards = {f"top/{name}": inside[name] for name in sorted(inside, reverse=True)}
    hidden = {"__MACOSX/top/train/a/._0.png": b"", "top/train/.hidden.png": b""}
    pictures.zipped(tmp_path / "a.zip", hidden | backwards)
    pictures.zipped(tmp_path / "b.zip", inside, zipfile.ZIP_STORED)
    stores = []
    for name in ("images", "a.zip", "b.zip"):
        prepare(folder_config(tmp_path / name, classes=2), tmp_path / f"store-{name}")
        stores.append(open_store(tmp_path / f"store-{name}"))
    assert len({store.digest for store in stores}) == 1
    assert list(stores[0].labels) == [0, 0, 0, 1, 1, 1] * 2
    assert stores[1].record["class_names"] == ["a", "b"]
    assert stores[1].record["splits"] == {"train": [0, 6], "test": [6, 12]}


def test_the_order_is_that_of_the_names(tmp_path):
    for folder, names in (("one", "abc"), ("two", "cab")):
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").write_bytes(encoded(noise(seed=ord(name))))
        prepare(folder_config(tmp_path / folder), tmp_path / f"store-{folder}")
    assert open_store(tmp_path / "store-one").digest == open_store(tmp_path / "store-two").digest


def test_links_are_followed(tmp_path):
    pictures.tree(tmp_path / "real", splits=["train"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train").symlink_to(tmp_path / "real/train")
    prepare(folder_config(tmp_path / "images", classes=2), tmp_path / "store")
    assert open_store(tmp_path / "store").record["count"] == 6


def test_holdout_of_a_folder_that_has_only_training_images(tmp_path):
    pictures.tree(tmp_path / "images", splits=["train"])
    prepare(folder_config(tmp_path / "images", classes=2, holdout=2), tmp_path / "store")
    assert open_store(tmp_path / "store").record["splits"] == {"train": [0, 4], "test": [4, 6]}


def test_skipping_keeps_the_rest_and_says_what_was_left_out(tmp_path, capsys):
    images = pictures.tree(tmp_path / "images", count=40)
    (images / "train/a/0 bad\n.png").write_bytes(b"rubbish")
    (images / "test/b/small.png").write_bytes(encoded(noise(10)))
    prepare(folder_config(images, classes=2, on_error="skip"), tmp_path / "store", workers=2)
    store = open_store(tmp_path / "store")
    assert store.record["skipped"] == [
        {"name": "train/a/0 bad\\n.png", "why": "not a readable image"},
        {"name": "test/b/small.png", "why": "has 10×10 pixels, smaller than side 16"},
    ]
    assert "2 images cannot be used and were skipped" in capsys.readouterr().err
    (images / "train/a/0 bad\n.png").unlink()
    (images / "test/b/small.png").unlink()
    prepare(folder_config(images, classes=2), tmp_path / "clean")
    assert store.digest == open_store(tmp_path / "clean").digest
    assert tiny.snapshot(tmp_path / "store").keys() == tiny.snapshot(tmp_path / "clean").keys()


def test_exact_duplicates_are_counted(tmp_path):
    images = pictures.tree(tmp_path / "images")
    same = encoded(noise(seed=5))
    for name in ("train/a/x.png", "train/b/x.png", "test/a/x.png", "test/a/y.png"):
        (images / name).write_bytes(same)
    prepare(folder_config(images, classes=2), tmp_path / "store")
    assert open_store(tmp_path / "store").record["duplicates"] == {
        "images": 3,
        "groups": 1,
        "label_conflicts": 1,
        "across_splits": 1,
        "examples": [["train/a/x.png", "train/b/x.png", "test/a/x.png", "test/a/y.png"]],
    }


@pytest.mark.parametrize("kind", ["plain", "long numbers", "something before it"])
def test_an_archives_directory_is_read_as_the_library_does(tmp_path, monkeypatch, kind):
    if kind == "long numbers":
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    path = pictures.zipped(tmp_path / "a.zip", {f"d/{n} é.bin": bytes(range(n)) * 3 for n in range(0, 250, 10)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("empty")
        archive.comment = b"a comment"
    if kind == "something before it":
        path.write_bytes(b"#!/bin/sh\n" * 9 + path.read_bytes())
    names, keys = list_members(path)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        expected = [member for member in archive.infolist() if not member.is_dir()]
        assert names == [member.filename.encode() for member in expected]
        for key, member in zip(keys, expected, strict=True):
            assert key[0] == member.header_offset
            assert read_member(file, key, 10_000) == archive.read(member)


def test_a_log_shows_progress(capsys, monkeypatch):
    monkeypatch.setattr(work, "SECONDS_BETWEEN_LINES", 0)
    with work.Progress(100, "prepare", "image", initial=40) as bar:
        bar.update(10)
    assert re.fullmatch(
        r"prepare: 50 of 100 images, [\d.]+ per second, \d+\.\d minutes left\n", capsys.readouterr().err
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An archive of 700 images, and the store of an undisturbed preparation."""
    folder = tmp_path_factory.mktemp("many")
    files = [encoded(noise(24, seed=seed), "JPEG") for seed in range(50)]
    pictures.zipped(folder / "many.zip", {f"{number:04d}.jpg": files[number % 50] for number in range(700)})
    prepare(folder_config(folder / "many.zip"), folder / "store", workers=1)
    return folder


def test_the_number_of_workers_changes_nothing(many, tmp_path):
    prepare(folder_config(many / "many.zip", workers=3), tmp_path / "store", workers=2)
    same_store(tmp_path / "store", many / "store")


def test_a_finished_store_is_kept_and_a_changed_one_prepared_again(many, tmp_path, capsys):
    prepare(folder_config(many / "many.zip"), tmp_path / "store")
    before = (tmp_path / "store/dataset.json").stat().st_mtime_ns
    prepare(folder_config(many / "many.zip", workers=2), tmp_path / "store")
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "store/dataset.json").stat().st_mtime_ns == before
    tiny.flip_byte(tmp_path / "store/images.npy", 5000)
    prepare(folder_config(many / "many.zip"), tmp_path / "store")
    assert "preparing again" in capsys.readouterr().err
    same_store(tmp_path / "store", many / "store")
    prepare(folder_config(many / "many.zip", side=8), tmp_path / "store")
    assert open_store(tmp_path / "store").side == 8


@pytest.mark.parametrize(
    ("harm", "workers"), [(None, 1), (None, 2), ("torn journal", 1), ("changed rows", 1), ("lost rows", 1)]
)
def test_a_stopped_preparation_resumes(many, tmp_path, capsys, workers, harm):
    with pytest.raises(StoppedEarly, match="prepared and kept: run the same command again"):
        prepare(folder_config(many / "many.zip"), tmp_path / "store", workers, stop=tiny.StopAfter(3))
    assert not (tmp_path / "store").exists()
    partial = tmp_path / ".store.partial"
    if harm == "torn journal":
        (partial / "journal.jsonl").write_bytes((partial / "journal.jsonl").read_bytes()[:-20])
    elif harm == "changed rows":
        tiny.flip_byte(partial / "rows.npy", 500)
    elif harm == "lost rows":
        (partial / "rows.npy").unlink()
    prepare(folder_config(many / "many.zip"), tmp_path / "store", workers)
    assert ("resuming: " in capsys.readouterr().err) is (harm != "lost rows")
    same_store(tmp_path / "store", many / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("step", ["sync", "rename", "exchange", "rmtree"])
def test_a_kill_during_publication_loses_nothing(many, tmp_path, monkeypatch, step):
    """Interrupt publication after each of its steps in turn."""

    class Killed(BaseException):
        pass

    prepare(folder_config(many / "many.zip", side=8), tmp_path / "store")
    owner = {"sync": folders, "rename": os, "exchange": folders, "rmtree": folders.shutil}[step]
    original = getattr(owner, step)
    for fatal in range(6):
        calls = count()

        def dying(*arguments, calls=calls, fatal=fatal, **options):
            if next(calls) == fatal:
                raise Killed
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, dying)
            try:
                prepare(folder_config(many / "many.zip"), tmp_path / "store")
            except Killed:
                continue
            break
    prepare(folder_config(many / "many.zip"), tmp_path / "store")
    same_store(tmp_path / "store", many / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- CIFAR-10


def cifar_config(path, **options):
    given = {"source": "cifar10", "path": str(path), "side": 32, "classes": 10, "check_md5": False}
    return DatasetConfig(**given | options)


@pytest.mark.parametrize("form", ["python", "python.tar", "binary", "binary.tar"])
def test_official_batches_of_every_form(tmp_path, form):
    pictures.cifar(tmp_path / "data", form)
    prepare(cifar_config(tmp_path / "data"), tmp_path / "store")
    store = open_store(tmp_path / "store")
    generator = np.random.default_rng(0)
    expected = np.concatenate([generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8) for _ in range(6)])
    assert (store.images == expected).all()
    assert list(store.labels) == list(np.arange(12) % 10) * 6
    assert store.record["splits"] == {"train": [0, 60], "test": [60, 72]}
    assert store.record["class_names"][9] == "truck"
    assert store.record["source"]["md5_checked"] == "no: check_md5 is false"
    assert len(store.record["source"]["md5"]) == (7 if form == "binary.tar" else 6)


def test_the_record_states_what_was_checked_of_binary_batches(tmp_path):
    pictures.cifar(tmp_path / "data", "binary")
    prepare(cifar_config(tmp_path / "data", check_md5=True), tmp_path / "store")
    assert "structure was checked" in open_store(tmp_path / "store").record["source"]["md5_checked"]


def test_the_batches_of_a_newer_python_are_read(tmp_path):
    pictures.cifar(tmp_path / "data", "python")
    prepare(cifar_config(tmp_path / "data"), tmp_path / "store")
    for path in (tmp_path / "data/cifar-10-batches-py").iterdir():
        batch = pickle.loads(path.read_bytes(), encoding="bytes")
        path.write_bytes(pickle.dumps(batch, protocol=2))
    prepare(cifar_config(tmp_path / "data"), tmp_path / "again")
    assert open_store(tmp_path / "again").digest == open_store(tmp_path / "store").digest


# --- bad input


class Evil:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def lying_zip(path):
    """Write a member that claims fewer bytes than it unpacks to."""
    pictures.zipped(path, {"a.png": bytes(5_000_000)})
    data = bytearray(path.read_bytes())
    where = data.rindex(b"PK\x01\x02") + 24
    data[where : where + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)


def encrypted_zip(path):
    pictures.zipped(path, {"a.png": encoded(noise())})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def damaged_zip(path):
    pictures.zipped(path, {"a.png": encoded(noise())}, zipfile.ZIP_STORED)
    tiny.flip_byte(path, 200)


def place(folder, **files):
    """Write image files; "__" in their names is a dot."""
    (folder / "images").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "images" / name.replace("__", ".")).write_bytes(content)


def place_in_train(folder):
    (folder / "images/train/a.png").write_bytes(b"x")


def cifar_with(folder, name, content):
    pictures.cifar(folder / "images", "python")
    (folder / "images/cifar-10-batches-py" / name).write_bytes(content)


GOOD = encoded(noise())
CIFAR = {"source": "cifar10", "side": 32, "check_md5": False}
ZIP = {"path": "a.zip"}
BAD = {
    # what is wrong: (what makes it, keys of the configuration, what the line says)
    "no folder": (lambda f: None, {}, "images: no such folder or .zip"),
    "no folder, but a hint": (lambda f: None, {"obtain": "ask Bob"}, "no such folder or .zip of images; ask Bob"),
    "empty folder": (lambda f: place(f), {}, "images: no images"),
    "only other files": (lambda f: place(f, notes__txt=b"x", hidden__gif=b"x"), {}, "images: no images"),
    "empty zip": (lambda f: pictures.zipped(f / "a.zip", {}), ZIP, "a.zip: no images"),
    "another archive": (
        lambda f: (f / "a.tar").write_bytes(b"x"),
        {"path": "a.tar"},
        "a.tar: is neither a folder nor a .zip of images",
    ),
    "an enormous side": (
        lambda f: place(f, a__png=GOOD),
        {"side": 10**8},
        "config.json: side: images of 100000000×100000000 pixels have more than max_pixels 100000000",
    ),
    "no zip": (lambda f: (f / "a.zip").write_bytes(b"x" * 100), ZIP, "a.zip: not a readable .zip"),
    "smaller than the side": (
        lambda f: place(f, a__png=GOOD, b__png=encoded(noise(15)), c__png=encoded(noise(15, width=90))),
        {},
        "2 of 3 images cannot be used: images/b.png: has 15×15 pixels, smaller than side 16; images/c.png: has 90×15",
    ),
    "corrupt PNG": (lambda f: place(f, a__png=GOOD, b__png=GOOD[:200]), {}, "images/b.png: not a readable image"),
    "flipped bit in a PNG": (
        lambda f: (place(f, a__png=GOOD, b__png=GOOD), tiny.flip_byte(f / "images/b.png", 60)),
        {},
        "images/b.png: not a readable image",
    ),
    "corrupt JPEG": (
        lambda f: place(f, a__png=GOOD, b__jpg=encoded(noise(64), "JPEG")[:900]),
        {},
        "images/b.jpg: not a readable image",
    ),
    "corrupt WebP": (lambda f: place(f, a__webp=encoded(noise(), "WEBP")[:60]), {}, "images/a.webp: not a readable"),
    "corrupt BMP": (lambda f: place(f, a__bmp=encoded(noise(), "BMP")[:100]), {}, "images/a.bmp: not a readable"),
    "another format under that name": (lambda f: place(f, a__png=encoded(noise(), "GIF")), {}, "not a readable image"),
    "an empty file": (lambda f: place(f, a__png=b""), {}, "images/a.png: not a readable image"),
    "many of them": (
        lambda f: place(f, **{f"{name}__png": b"x" for name in "abcdefg"}),
        {},
        "images/c.png: not a readable image; and 4 more; repair or remove them, or set on_error: skip",
    ),
    "nothing left to skip to": (lambda f: place(f, a__png=b""), {"on_error": "skip"}, "1 of 1 images cannot be used"),
    "nothing left to train on": (
        lambda f: (pictures.tree(f / "images", splits=["test"]), (f / "images/train").mkdir(), place_in_train(f)),
        {"on_error": "skip"},
        "1 of 7 images cannot be used: images/train/a.png",
    ),
    "a picture bomb": (
        lambda f: place(f, a__png=pictures.bomb()),
        {},
        "claims 60000×60000 pixels, more than max",
    ),
    "a large file": (
        lambda f: place(f, a__png=GOOD),
        {"max_file_bytes": 99},
        f"has {len(GOOD)} bytes, more than",
    ),
    "a zip bomb": (
        lambda f: pictures.zipped(f / "a.zip", {"a.png": bytes(5_000_000)}),
        ZIP | {"max_file_bytes": 1_000_000},
        "has 5000000 bytes, more than max_file_bytes 1000000",
    ),
    "a zip bomb with a false size": (lambda f: lying_zip(f / "a.zip"), ZIP, "its checksum is wrong"),
    "an encrypted member": (lambda f: encrypted_zip(f / "a.zip"), ZIP, "a.zip/a.png: is encrypted"),
    "a damaged member": (lambda f: damaged_zip(f / "a.zip"), ZIP, "a.zip/a.png: not a readable member"),
    "a rare compression": (
        lambda f: pictures.zipped(f / "a.zip", {"a.png": GOOD}, zipfile.ZIP_LZMA),
        ZIP,
        "compressed by method 14; only deflate is read",
    ),
    "a loop of links": (
        lambda f: (place(f, a__png=GOOD), (f / "images/loop").symlink_to(f / "images")),
        {},
        "images/loop: a symbolic link to a folder above itself",
    ),
    "a link to itself": (
        lambda f: (place(f, a__png=GOOD), (f / "images/b.png").symlink_to("b.png")),
        {},
        "images/b.png: cannot be read (Too many levels of symbolic links)",
    ),
    "a link to nothing": (
        lambda f: (place(f, a__png=GOOD), (f / "images/b.png").symlink_to("nothing")),
        {},
        "images/b.png: cannot be read (No such file or directory)",
    ),
    "an odd name": (
        lambda f: (place(f), (f / os.fsdecode(b"images/two\nlines \xe9.png")).write_bytes(b"x")),
        {},
        "images/two\\nlines \\xe9.png: not a readable image",
    ),
    "not that many classes": (
        lambda f: pictures.tree(f / "images"),
        {"classes": 3},
        "images: has 2 class folders, but classes is 3",
    ),
    "an image without a class": (
        lambda f: (pictures.tree(f / "images"), (f / "images/train/x.png").write_bytes(GOOD)),
        {"classes": 2},
        "train/x.png is not in a class folder, but classes is 2",
    ),
    "not as many as expected": (
        lambda f: pictures.tree(f / "images"),
        {"expected_count": 7, "obtain": "see there"},
        "images: has 6 training images, expected 7; see there",
    ),
    "not as many to test": (
        lambda f: pictures.tree(f / "images"),
        {"expected_test_count": 5},
        "images: has 6 test images, expected 5",
    ),
    "too much held out": (
        lambda f: place(f, a__png=GOOD),
        {"holdout": 1},
        "holdout: 1 leaves no training image of 1; lower it",
    ),
    "wrong MD5": (
        lambda f: pictures.cifar(f / "images", "python"),
        CIFAR | {"check_md5": True},
        "the official file's is c99cafc152244af753f735de768cd75f",
    ),
    "wrong MD5 of the archive": (
        lambda f: pictures.cifar(f / "images", "binary.tar"),
        CIFAR | {"check_md5": True},
        "the official file's is c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "a batch missing": (
        lambda f: (pictures.cifar(f / "images", "python"), (f / "images/cifar-10-batches-py/data_batch_3").unlink()),
        CIFAR,
        "cifar-10-batches-py: has no data_batch_3",
    ),
    "a pickle that runs code": (
        lambda f: cifar_with(f, "data_batch_1", pickle.dumps({b"data": Evil()})),
        CIFAR,
        "data_batch_1: not a python batch of CIFAR-10: asks for posix.system, which no batch needs",
    ),
    # The end of the line: a batch is not taken for a checkpoint of PyTorch.
    "an empty batch": (
        lambda f: cifar_with(f, "data_batch_1", pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []})),
        CIFAR,
        "data_batch_1: not a python batch of CIFAR-10: labels do not fit the images\n",
    ),
    "a cut pickle": (lambda f: cifar_with(f, "data_batch_2", b"\x80\x02}q"), CIFAR, "data_batch_2: not a python batch"),
    "CIFAR-10 enlarged": (lambda f: None, CIFAR | {"side": 64}, "side: must be at most 32"),
    "a cut archive": (
        lambda f: (pictures.cifar(f / "images", "python.tar"), tiny.cut(f / "images/cifar-10-python.tar.gz")),
        CIFAR,
        "cifar-10-python.tar.gz: cannot be read",
    ),
    "another preparation": (
        lambda f: place(f, a__png=GOOD),
        "locked",
        "out: another process is preparing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, monkeypatch, capsys):
    make, options, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    locked, options = options == "locked", {} if options == "locked" else options
    (tmp_path / "config.json").write_text(json.dumps({"source": "folder", "path": "images", "side": 16} | options))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("an old store")
    list_contents(tmp_path / "out", DATASET, {"old": None})
    before = sorted(map(str, tmp_path.rglob("*")))
    with (
        exclusive(tmp_path / ("out" if locked else "other"), "at it"),
        pytest.raises(SystemExit) as stop,
    ):
        main(["prepare", "config.json", "--output", "out"])
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(errors.splitlines()) == 1, errors
    assert expected in errors
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_wrong_md5_names_both_sums(tmp_path):
    pictures.cifar(tmp_path, "python")
    with pytest.raises(UserError, match=r"its MD5 is [0-9a-f]{32}, the official file's is c99c.*set check_md5: false"):
        prepare(cifar_config(tmp_path, check_md5=True), tmp_path / "store")


def test_without_network_and_batches_the_error_gives_instructions(tmp_path, monkeypatch):
    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr("udpm.core.files._receive", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\); put cifar-10-python.tar.gz from"):
        prepare(cifar_config(tmp_path), tmp_path / "store")


def test_nothing_is_downloaded_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("udpm.core.files._receive", lambda *_: pytest.fail("asks the network"))
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz: not found, and downloads are switched off; put"):
        prepare(cifar_config(tmp_path), tmp_path / "store")


def test_downloaded_batches_are_read_from_their_archive(tmp_path, monkeypatch):
    archive = pictures.cifar(tmp_path / "there", "python.tar") / "cifar-10-python.tar.gz"
    published = PublishedFile(archive.name, archive.as_uri(), sha256(archive))
    monkeypatch.setattr(cifar, "CIFAR10", published)
    prepare(cifar_config(tmp_path / "here"), tmp_path / "store")
    prepare(cifar_config(tmp_path / "there"), tmp_path / "again")
    assert open_store(tmp_path / "again").digest == open_store(tmp_path / "store").digest


@pytest.mark.parametrize("when", ["at once", "in the middle", "at the end"])
def test_a_full_disk_is_reported_and_leaves_nothing(many, tmp_path, monkeypatch, when):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {
        "at once": (preparation.os, "posix_fallocate"),
        "in the middle": (fill.Work, "write"),
        "at the end": (preparation.np, "save"),
    }[when]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match="store: cannot be written: No space left on device"):
        prepare(folder_config(many / "many.zip"), tmp_path / "store", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_reported_in_one_line(many, tmp_path):
    """A limit on file sizes behaves almost like a full disk."""
    (tmp_path / "config.json").write_text(json.dumps({"source": "folder", "path": str(many / "many.zip"), "side": 16}))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = tiny.udpm("prepare", tmp_path / "config.json", "--output", tmp_path / "out", check=False, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path}/out: cannot be written: File too large"]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_worker_that_is_killed_is_no_loss(many, tmp_path, monkeypatch):
    def with_a_kill(*given):
        for outcome in fill.process_chunks(*given):
            for child in multiprocessing.active_children():
                child.kill()
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "process_chunks", with_a_kill)
        with pytest.raises(StoppedEarly, match="a worker was killed"):
            prepare(folder_config(many / "many.zip"), tmp_path / "store", workers=2)
    prepare(folder_config(many / "many.zip"), tmp_path / "store", workers=1)
    same_store(tmp_path / "store", many / "store")


class Signalled:
    """Sends a signal to the process that unpickles it, which a worker does before it runs any other code."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return signal.raise_signal, (self.number,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_no_signal_ends_a_worker_that_has_only_begun(number):
    process = work.SPAWN.Process(target=repr, args=(Signalled(number),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(work.SIGNALS)


def test_a_worker_killed_after_a_request_to_stop_is_a_stop(many, tmp_path, monkeypatch):
    stop = StopRequest()

    def with_a_kill(*given):
        for outcome in fill.process_chunks(*given):
            stop._remember(signal.SIGTERM, None)
            for child in multiprocessing.active_children():
                child.kill()
            yield outcome

    monkeypatch.setattr(preparation, "process_chunks", with_a_kill)
    with pytest.raises(StoppedEarly, match=r"stopped on SIGTERM with .* prepared and kept"):
        prepare(folder_config(many / "many.zip"), tmp_path / "store", workers=2, stop=stop)


# --- interruptions from outside


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An archive that takes seconds to prepare, its configuration, and the undisturbed store."""
    folder = tmp_path_factory.mktemp("large")
    files = [encoded(noise(256, seed=seed), "JPEG") for seed in range(20)]
    names = {f"{number:05d}.jpg": files[number % 20] for number in range(1500)}
    pictures.zipped(folder / "large.zip", names, zipfile.ZIP_STORED)
    (folder / "config.json").write_text(json.dumps({"source": "folder", "path": str(folder / "large.zip"), "side": 32}))
    start = time.monotonic()
    tiny.udpm("prepare", folder / "config.json", "--output", folder / "store", "--workers", 2)
    return folder, time.monotonic() - start


def gone(group):
    """Wait until all processes of a group have ended; return True if they do."""
    for _ in range(6000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(large, tmp_path):
    folder, seconds = large
    moments = random.Random(0)
    given = ("prepare", folder / "config.json", "--output", tmp_path / "store", "--workers", 2)
    for _ in range(5):
        process = tiny.start(*given, start_new_session=True)
        time.sleep(moments.uniform(0.2, 0.8) * seconds)
        process.kill()
        process.communicate()
        assert gone(process.pid), "workers outlived their parent"
    tiny.udpm(*given)
    same_store(tmp_path / "store", folder / "store")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".store.lock") == ["store"]


@pytest.mark.slow
def test_sigterm_to_the_group_ends_with_75_and_keeps_what_is_done(large, tmp_path):
    folder, _ = large
    given = ("prepare", folder / "config.json", "--output", tmp_path / "store", "--workers", 2)
    process = tiny.start(*given, start_new_session=True)
    journal = tmp_path / ".store.partial/journal.jsonl"
    while process.poll() is None and not journal.exists():
        time.sleep(0.01)
    # Its workers are about to begin, or have begun: what they are given first is finished and kept.
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "stopped on SIGTERM" in errors.splitlines()[-1]
    assert "resuming: " in tiny.udpm(*given).stderr
    same_store(tmp_path / "store", folder / "store")


@pytest.mark.slow
def test_a_second_preparation_at_once_is_refused(large, tmp_path):
    folder, _ = large
    given = ("prepare", folder / "config.json", "--output", tmp_path / "store", "--workers", 1)
    held = tiny.Held(tmp_path, "udpm.data.fill:Journal.add", "calls == 0")
    first = tiny.start(*given, program=held.program)
    held.wait(first)
    second = tiny.udpm(*given, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: {tmp_path}/store: another process is preparing this data set; wait for it")
    assert len(second.stderr.splitlines()) == 1
    held.release()
    assert first.wait() == 0
    same_store(tmp_path / "store", folder / "store")


def test_workers_import_neither_torch_nor_scikit_learn():
    code = "import sys, udpm.data.fill, udpm.data.open, udpm.data.cifar\n"
    code += "sys.exit(sorted({'torch', 'sklearn'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny.ROOT)
