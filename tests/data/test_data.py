"""The prepared store, level caches and batches."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from udpm.bench.data import bench_preparation, open_for_bench, preparation_lines
from udpm.cli import main
from udpm.config import DatasetConfig
from udpm.core.errors import UserError
from udpm.data import levels as cache
from udpm.data.levels import block_sums, decode, differences, draw_sheet, open_levels, write_cache
from udpm.data.prepare import prepare
from udpm.data.store import open_store
from udpm.diffusion.process import downsample
from udpm.runs.config_guard import MUTABLE_KEYS
from udpm.training.batch import Batches


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    prepare(DatasetConfig(source="digits", side=16, classes=10, holdout=500), folder / "dataset")
    write_cache(folder / "dataset", folder / "cache")
    return folder


def test_digits_are_the_real_ones(digits):
    store = open_store(digits / "dataset")
    assert store.images.shape == (1797, 16, 16, 3)
    assert store.split("train") == slice(0, 1297)
    assert store.split("test") == slice(1297, 1797)
    assert np.bincount(store.labels).min() > 170
    assert (store.images[..., 0] == store.images[..., 2]).all()


def test_preparation_is_deterministic(digits, tmp_path):
    prepare(DatasetConfig(source="digits", side=16, classes=10, holdout=500), tmp_path / "again")
    assert open_store(tmp_path / "again").digest == open_store(digits / "dataset").digest


@settings(max_examples=30, deadline=None)
@given(images=arrays.arrays(np.uint8, (2, 16, 16, 3)), level=st.integers(1, 4), scale=st.sampled_from([1, 2]))
def test_block_sums_are_exact_and_decode_to_the_formula(images, level, scale):
    sums = block_sums(images, level)
    block = 2**level
    expected = np.zeros((2, 16 // block, 16 // block, 3), dtype=np.int64)
    for row in range(block):
        for column in range(block):
            expected += images[:, row::block, column::block]
    assert (sums == expected).all()
    formula = scale**level * (2 * expected.astype(np.float64) / (255 * 4**level) - 1)
    assert (decode(sums, level, scale) == formula.astype(np.float32)).all()


def test_brightest_blocks_fit():
    white = np.full((1, 64, 64, 3), 255, dtype=np.uint8)
    for level in range(7):
        assert int(block_sums(white, level).max()) == 255 * 4**level
        assert (decode(block_sums(white, level), level, 2) == 2.0**level).all()


def test_cached_sums_equal_the_stores(digits):
    levels = open_levels(digits / "dataset", digits / "cache", 5)
    for level in range(1, 5):
        assert (levels.sums[level] == block_sums(np.asarray(levels.store.images), level)).all()


def batches(digits, **options):
    levels = open_levels(digits / "dataset", digits / "cache", 3)
    given = {"scale": 2, "batch": 100, "seed": 0, "flip": False, "device": torch.device("cpu")} | options
    return Batches(levels, **given)


def test_cache_equals_direct_computation(digits):
    feed = batches(digits)
    image, labels = feed(3, 1)
    assert image.min() >= -1
    assert image.max() <= 1
    for level in (2, 3):
        small, same = feed(3, level)
        torch.testing.assert_close(small, downsample(image, 2, level - 1))
        assert (labels == same).all()


def test_an_epoch_visits_every_training_image_once(digits):
    feed = batches(digits, batch=1297)
    first, second = feed.indices(0), feed.indices(1)
    assert sorted(first) == list(range(1297)) == sorted(second)
    assert (first != second).any()
    straddling = np.concatenate([batches(digits).indices(iteration) for iteration in range(25)])
    assert (straddling[:1297] == first).all()
    assert (straddling[1297:] == second[: 2500 - 1297]).all()


def test_batches_do_not_depend_on_earlier_batches(digits):
    feed = batches(digits, flip=True)
    expected = [feed(iteration, 1)[0] for iteration in range(30)]
    fresh = batches(digits, flip=True)
    for iteration in (29, 3, 14):
        assert (fresh(iteration, 1)[0] == expected[iteration]).all()


def test_flips_are_mirrors_of_about_half(digits):
    plain, flipped = batches(digits)(0, 1)[0], batches(digits, flip=True)(0, 1)[0]
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    same = (flipped == plain).flatten(1).all(1)
    assert (mirrored | same).all()
    assert 25 <= int((mirrored & ~same).sum()) <= 75


def tree(folder, count=3, side=20):
    generator = np.random.default_rng(0)
    for name in ("b", "a"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (side, side + 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_folder_of_images(tmp_path):
    tree(tmp_path / "train")
    tree(tmp_path / "test", count=1)
    config = DatasetConfig(source="folder", path=str(tmp_path), side=16, classes=2)
    prepare(config, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert list(store.labels) == [0, 0, 0, 1, 1, 1, 0, 1]
    assert store.split("test") == slice(6, 8)
    with Image.open(tmp_path / "train/a/0.png") as image:
        resized = image.resize((22, 16), Image.Resampling.BICUBIC).crop((3, 0, 19, 16))
    assert (store.images[0] == np.asarray(resized)).all()


def test_a_failed_preparation_keeps_the_old_store(tmp_path):
    tree(tmp_path / "images")
    config = DatasetConfig(source="folder", path=str(tmp_path / "images"), side=16, classes=2)
    prepare(config, tmp_path / "store")
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    (tmp_path / "images/a/1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a/1\.png: not a readable image"):
        prepare(config, tmp_path / "store")
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "store"]


def test_a_cache_of_other_images_is_refused(digits, tmp_path):
    tree(tmp_path / "images")
    prepare(DatasetConfig(source="folder", path=str(tmp_path / "images"), side=16, classes=2), tmp_path / "store")
    with pytest.raises(UserError, match="made from other images"):
        open_levels(tmp_path / "store", digits / "cache", 2)


def test_a_truncated_store_is_refused(digits, tmp_path):
    (tmp_path / "store").mkdir()
    for path in (digits / "dataset").iterdir():
        (tmp_path / "store" / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "store/images.npy", "r+b") as handle:
        handle.truncate(5000)
    with pytest.raises(UserError, match="not a readable array"):
        open_store(tmp_path / "store")
    record = json.loads((tmp_path / "store/dataset.json").read_text())
    assert record["config"]["source"] == "digits"


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_location_of_images_does_not_matter(digits, level):
    mapped, resident = (batches(digits, flip=True, location=kind) for kind in ("memory", "device"))
    assert resident.resident
    assert not mapped.resident
    for iteration in (0, 13, 40):
        for ours, theirs in zip(mapped(iteration, level), resident(iteration, level), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("world", [2, 4, 5])
def test_ranks_share_the_global_batch_without_overlap(digits, world):
    whole = batches(digits, flip=True)
    parts = [batches(digits, flip=True, rank=rank, world=world) for rank in range(world)]
    for iteration in (0, 12, 13):
        shares = [part.indices(iteration) for part in parts]
        assert (np.concatenate(shares) == whole.indices(iteration)).all()
        images, labels = zip(*(part(iteration, 2) for part in parts), strict=True)
        assert torch.equal(torch.cat(images), whole(iteration, 2)[0])
        assert torch.equal(torch.cat(labels), whole(iteration, 2)[1])


def test_only_the_requested_level_is_read(digits):
    levels = open_levels(digits / "dataset", digits / "cache", 3)
    levels.sums[0] = levels.sums[1] = None
    with pytest.raises(TypeError):
        Batches(levels, 2, 100, 0, flip=False, device=torch.device("cpu"))(0, 1)
    target, _ = Batches(levels, 2, 100, 0, flip=False, device=torch.device("cpu"))(0, 3)
    assert target.shape == (100, 3, 4, 4)


def test_an_older_store_without_file_sums_can_be_checked(digits, tmp_path):
    shutil.copytree(digits / "dataset", tmp_path / "store")
    record = json.loads((tmp_path / "store/dataset.json").read_text())
    for key in ("files", "class_names", "duplicates", "source", "record_sha256"):
        del record[key]
    (tmp_path / "store/dataset.json").write_text(json.dumps(record))
    assert differences(open_store(tmp_path / "store")) == []
    tiny.flip_byte(tmp_path / "store/images.npy", 5000)
    assert differences(open_store(tmp_path / "store")) == ["images.npy or labels.npy"]


def test_info_describes_a_data_set(digits, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", str(digits / "dataset")])
    assert stop.value.code == 0
    said, store = json.loads(capsys.readouterr().out), open_store(digits / "dataset")
    assert said["sha256"] == store.digest
    assert np.sum(said["class_counts"]["train"]) == 1297
    assert said["class_counts"]["test"] == np.bincount(store.labels[1297:]).tolist()
    train = np.asarray(store.images[:1297], dtype=np.float64)
    assert said["mean"] == pytest.approx(train.mean(axis=(0, 1, 2)), abs=1e-4)
    assert said["std"] == pytest.approx(train.std(axis=(0, 1, 2)), abs=1e-4)


def test_the_contact_sheet_has_a_row_for_each_class(digits, tmp_path):
    store = open_store(digits / "dataset")
    shown = draw_sheet(store, tmp_path / "sheet.png")
    assert [int(label) for label in store.labels[shown]] == [label for label in range(10) for _ in range(12)]
    with Image.open(tmp_path / "sheet.png") as sheet:
        corner = np.asarray(sheet.convert("RGB"))[:64:4, -64::4]
    assert (corner == store.images[shown[11]]).all()


def test_a_contact_sheet_without_classes(tmp_path):
    tree(tmp_path / "images")
    prepare(DatasetConfig(source="folder", path=str(tmp_path / "images"), side=16), tmp_path / "store")
    assert draw_sheet(open_store(tmp_path / "store"), tmp_path / "sheet.jpg") == list(range(6))


def test_a_wrongly_written_cache_is_detected(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_halved", lambda sums, level: block_sums(np.asarray(sums), 1) * 0)
    with pytest.raises(UserError, match=r"level_1\.npy: contains other values than were written"):
        write_cache(digits / "dataset", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_images_of_an_odd_side_have_no_levels(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (15, 15)).save(tmp_path / "images/a.png")
    prepare(DatasetConfig(source="folder", path=str(tmp_path / "images"), side=15), tmp_path / "store")
    with pytest.raises(UserError, match="store: images of side 15 cannot be halved, so they have no levels to cache"):
        write_cache(tmp_path / "store", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_benchmark_names_what_limits_it(tmp_path):
    tree(tmp_path / "images", count=70)
    best = {"copy_bytes": 1e9}
    opened = open_for_bench(str(tmp_path / "images"), 16)
    # There are too few images to measure four processes.
    lines = preparation_lines(bench_preparation(*opened, workers=4, limit=128, best=best))
    assert "140 images" in lines[0]
    assert any(line.split()[:2] == ["limited", "by"] for line in lines)
    assert "images per second with 1 process" in lines[-1]


def test_keys_without_influence_on_the_images_exist():
    keys = {key.removeprefix("dataset.") for key in MUTABLE_KEYS if key.startswith("dataset.")}
    assert keys < DatasetConfig.model_fields.keys()
