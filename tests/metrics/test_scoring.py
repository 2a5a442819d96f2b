"""Metrics against closed forms, brute force and other packages; extractors; score files."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from udpm.config import Scoring
from udpm.core import devices
from udpm.core.devices import patch_torchvision
from udpm.core.errors import UserError
from udpm.data.store import open_store
from udpm.metrics import distances
from udpm.metrics import score as scores
from udpm.metrics.distances import frechet_distance, nearest_distances, prdc, statistics
from udpm.metrics.extractor import load_extractor
from udpm.metrics.extractor_networks import train_classifier
from udpm.metrics.reference import load_reference, write_reference
from udpm.sampling.sample_set import SampleSet

CPU = torch.device("cpu")


def features(seed, count=60, width=8, rank=None, scale=1.0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(rank or width, width)) * scale
    return (generator.normal(size=(count, rank or width)) @ mixing + generator.normal(size=width)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 8), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_frechet_distance_is_a_distance(seed, rank, scale):
    one, other = (statistics(features(seed + i, rank=rank, scale=scale)) for i in (0, 1))
    there, back = frechet_distance(*one, *other), frechet_distance(*other, *one)
    size = np.trace(one[1]) + np.trace(other[1]) + 1
    assert there == pytest.approx(back, rel=1e-6, abs=1e-6 * size)
    assert there >= 0
    assert frechet_distance(*one, *one) == pytest.approx(0, abs=1e-6 * size)


def test_frechet_distance_of_commuting_covariances():
    sigma, other = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 1.0, 2.0])
    expected = 3**2 + (1 - 3) ** 2 + (2 - 1) ** 2 + 2
    assert frechet_distance(np.zeros(3), sigma, np.array([3.0, 0, 0]), other) == pytest.approx(expected)


def test_frechet_distance_equals_clean_fids():
    patch_torchvision()
    from cleanfid.fid import frechet_distance as theirs

    one, other = statistics(features(0, count=500, width=32)), statistics(features(1, count=400, width=32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = theirs(*one, *other)
    assert frechet_distance(*one, *other) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_prdc_equals_prdcs(neighbours):
    real, drawn = features(0, count=300), features(0, count=200) + 0.5 * features(2, count=200)
    theirs = compute_prdc(real_features=real, fake_features=drawn, nearest_k=neighbours)
    found = prdc(real, drawn, neighbours)
    assert {name: value for name, value in found._asdict().items() if name in theirs} == pytest.approx(
        theirs, rel=1e-12
    )
    assert 0.05 < found.precision < 0.95
    assert found.density != pytest.approx(found.precision)


def test_prdc_needs_more_points_than_neighbours():
    with pytest.raises(UserError, match=r"scoring\.neighbours: 3 needs more than 3 drawn images"):
        prdc(features(0), features(1, count=3), 3)


@pytest.mark.parametrize("int8", [False, True])
def test_nearest_distances_by_brute_force(monkeypatch, int8):
    monkeypatch.setattr(distances, "has_int8_products", lambda: int8)
    generator = np.random.default_rng(0)
    images, bank = (generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8) for count in (7, 11))
    expected = [min(np.sqrt((((a / 255.0) - (b / 255.0)) ** 2).mean()) for b in bank) for a in images]
    np.testing.assert_allclose(nearest_distances(images, bank), expected)
    assert nearest_distances(bank, bank).max() == 0
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert nearest_distances(black, white) == pytest.approx(1)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("side", "blocks"), [(32, (70, 30, 40)), (4, (3, 2, 2))])
def test_nearest_images_are_exact(monkeypatch, int8, side, blocks):
    """At side 32 float32 would round a sum over all bytes; here extreme bytes make sums as large as they get."""
    for name, value in zip(("IMAGES", "ROWS", "COLUMNS"), blocks, strict=True):
        monkeypatch.setattr(distances, name, value)
    monkeypatch.setattr(distances, "has_int8_products", lambda: int8)
    generator = np.random.default_rng(0)
    shape = (100, side, side, 3)
    bank = generator.choice(np.array([0, 1, 255], np.uint8), shape, p=(0.9, 0.05, 0.05))
    images = bank[generator.permutation(100)][:80].copy()
    images[:, 0, 0] ^= 1
    rows = [values.reshape(len(values), -1).astype(np.int64) for values in (images, bank)]
    squares = ((rows[0][:, None] - rows[1]) ** 2).sum(axis=2)
    numbers, found = distances.nearest_images(images, bank)
    np.testing.assert_array_equal(numbers, squares.argmin(axis=1))
    np.testing.assert_array_equal(found, np.sqrt(squares.min(axis=1).astype(float)) / (255 * np.sqrt(rows[0].shape[1])))


@pytest.fixture(scope="module")
def stage(digits, tmp_path_factory):
    """The digits with their classifier and reference."""
    devices.configure("cpu", 1)
    folder, store = tmp_path_factory.mktemp("scoring"), open_store(digits / "dataset")
    train_classifier(store, 0, folder / "digits.pt")
    extractor = load_extractor(folder / "digits.pt", CPU)
    write_reference(store, "train", extractor, 250, folder / "reference.npz")
    return store, extractor, folder


CONFIG = Scoring(extractor="digits", threads=1)


def test_the_classifier_knows_digits(stage):
    _, extractor, folder = stage
    record = json.loads((folder / "digits.json").read_text())
    assert record["heldout_accuracy"] > 0.97
    assert record["heldout_count"] == 500
    assert extractor.describe()["sha256"] == record["sha256"]


@pytest.mark.soak
def test_the_classifier_has_the_same_bytes_every_time(digits, tmp_path):
    for name in ("a", "b"):
        tiny.udpm("extractor", digits / "dataset", "--output", tmp_path / name / "x.pt", "--threads", 1)
    assert (tmp_path / "a/x.pt").read_bytes() == (tmp_path / "b/x.pt").read_bytes()
    assert (tmp_path / "a/x.json").read_bytes() == (tmp_path / "b/x.json").read_bytes()


def test_other_programs_read_a_reference(stage):
    store, extractor, folder = stage
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        mu, sigma = arrays["mu"], arrays["sigma"]
    expected = extractor.features(store.images[:1297], 100)
    np.testing.assert_allclose(mu, expected.mean(0, dtype=np.float64), rtol=1e-5)
    assert mu.dtype == sigma.dtype == np.float64
    assert sigma.shape == (len(mu), len(mu))


def test_the_baselines(stage):
    store, extractor, folder = stage
    reference = load_reference(folder / "reference.npz")
    floor = scores.score(scores.heldout(store), store, reference, extractor, CONFIG)
    ceiling = scores.score(scores.noise(store, 500), store, reference, extractor, CONFIG)
    low, high = floor["metrics"], ceiling["metrics"]
    assert low["frechet_distance"]["label"] == f"FD ({extractor.name} features)"
    assert low["frechet_distance"]["value"] < high["frechet_distance"]["value"] / 50
    assert low["recall"]["value"] > 0.8
    assert high["recall"]["value"] == 0
    assert low["nearest_distance_ratio"]["value"] == 1
    assert low["class_agreement"]["value"] == json.loads((folder / "digits.json").read_text())["heldout_accuracy"]
    assert floor["protocol"]["n"] == 500
    assert floor["protocol"]["reference"]["n"] == 1297
    again = scores.score(scores.noise(store, 500), store, reference, extractor, CONFIG)
    assert again == ceiling


@pytest.mark.parametrize("tf32", [False, True])
def test_scores_and_references_record_tf32(stage, monkeypatch, tmp_path, tf32):
    store, extractor, _ = stage
    monkeypatch.setattr(devices, "uses_tf32", lambda device: tf32)
    write_reference(store, "test", extractor, 250, tmp_path / "reference.npz")
    reference = load_reference(tmp_path / "reference.npz")
    assert reference.record["tf32"] is tf32
    found = scores.score(scores.noise(store, 20), store, reference, extractor, CONFIG)
    assert found["protocol"]["tf32"] is tf32


@pytest.mark.parametrize(("samples", "expected"), [(700, 500), (300, 300)])
def test_samples_and_floor_are_compared_at_equal_n(stage, samples, expected):
    store, extractor, folder = stage
    reference = load_reference(folder / "reference.npz")

    def distances(subject, match=None):
        found = scores.score(subject, store, reference, extractor, CONFIG, match=match)["metrics"]
        return found["frechet_distance"], found["frechet_distance_matched"]

    own, matched = distances(scores.noise(store, samples))
    first = distances(scores.noise(store, expected))[0]
    assert (matched["n"], matched["value"]) == (expected, first["value"])
    assert (matched["value"] == own["value"]) is (samples == expected)
    own, matched = distances(scores.heldout(store), samples)
    assert matched["n"] == expected
    # Fewer images are further from the reference.
    assert matched["value"] == own["value"] if expected == 500 else matched["value"] > own["value"]


def test_images_sorted_by_class_are_drawn_for_equal_n(stage):
    store, extractor, folder = stage
    order = np.argsort(store.labels[:1297], kind="stable")
    images = scores.external_images(np.array(store.images[:1297])[order], "theirs")
    found = scores.score(images, store, load_reference(folder / "reference.npz"), extractor, CONFIG)["metrics"]
    # The first 500 would be of four classes.
    assert found["frechet_distance"]["value"] < found["frechet_distance_matched"]["value"] < 10


def test_detects_copies_of_the_training_set(stage):
    store, extractor, folder = stage
    copies = SampleSet(np.array(store.images[:400]), store.labels[:400], {"classes": 10, "sha256": "x", "count": 400})
    found = scores.score(scores.sampled(copies), store, load_reference(folder / "reference.npz"), extractor, CONFIG)[
        "metrics"
    ]
    assert found["nearest_distance_ratio"]["value"] == 0
    assert found["precision"]["value"] == 1


def test_a_metric_that_cannot_be_measured_has_a_reason(stage):
    store, extractor, folder = stage
    unlabelled = SampleSet(np.array(store.images[:20]), store.labels[:20], {"classes": 0, "sha256": "x", "count": 20})
    record = store.record | {"splits": {"train": [0, 1297], "test": [1297, 1297]}}
    without = type(store)(store.folder, store.images, store.labels, record)
    reference = load_reference(folder / "reference.npz")
    # It is of a data set with a test split, which this does not look at.
    reference = replace(reference, record=reference.record | {"dataset_splits": record["splits"]})
    metrics = scores.score(scores.sampled(unlabelled), without, reference, extractor, CONFIG)["metrics"]
    assert metrics["class_agreement"]["value"] is None
    assert "no labels" in metrics["class_agreement"]["reason"]
    assert metrics["nearest_distance_ratio"]["value"] is None
    assert "no test split" in metrics["nearest_distance_ratio"]["reason"]


@pytest.mark.parametrize("known", [True, False])
def test_a_reference_of_other_splits_is_refused(stage, known):
    """Images that one data set holds out, another may train on: by their ranges, or by their number if it is known."""
    store, extractor, folder = stage
    record = store.record | {"splits": {"train": [0, 1097], "test": [1097, 1797]}}
    other = type(store)(store.folder, store.images, store.labels, record)
    reference = load_reference(folder / "reference.npz")
    assert reference.record["dataset_splits"] == store.record["splits"]
    if not known:
        kept = {key: value for key, value in reference.record.items() if key != "dataset_splits"}
        reference = replace(reference, record=kept)
    with pytest.raises(UserError, match=r"which is of other splits than .*: train (had|gave) 1297 images, .* 1097"):
        scores.score(scores.heldout(other), other, reference, extractor, CONFIG)


class Wrong(torch.nn.Module):
    """An extractor whose output is not features."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {
            "map": lambda: x,
            "none": lambda: x.flatten(1)[:, :0],
            "one row": lambda: x.flatten(1).sum(1),
            "too large": lambda: x.flatten(1).double() * 1e200,
            "complex": lambda: x.flatten(1).to(torch.complex64),
            "a pair": lambda: (x.flatten(1), x),
            "constant": lambda: torch.ones_like(x).flatten(1),
            "constant to rounding": lambda: x.flatten(1) * 1e-12 + 3,
            "random": lambda: torch.nn.functional.dropout(x.flatten(1), 0.5, training=True),
            "half": lambda: x.flatten(1)[: len(x) // 2],
            "nan": lambda: x.flatten(1) * float("nan"),
            "integers": lambda: x.flatten(1).long(),
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("map", "wrong output (4, 3, 32, 32) for 4 images"),
        ("half", "wrong output (2, 3072) for 4 images"),
        ("none", "wrong output (4, 0) for 4 images"),
        ("one row", "wrong output (4,) for 4 images"),
        ("nan", "features are not finite"),
        ("too large", "features are not finite"),
        ("integers", "wrong output (torch.int64)"),
        ("complex", "wrong output (torch.complex64)"),
        ("a pair", "wrong output (tuple)"),
        ("constant", "gives all images the same features"),
        ("constant to rounding", "gives all images the same features"),
        ("random", "gives the same images other features at every call"),
    ],
)
def test_wrong_extractor_output(tmp_path, kind, expected):
    module = torch.jit.trace(Wrong(kind), torch.zeros(4, 3, 16, 16), check_trace=False)
    torch.jit.save(module, str(tmp_path / "wrong.pt"))
    with pytest.raises(UserError) as error:
        load_extractor(tmp_path / "wrong.pt", CPU)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_extractor_for_another_side(stage, tmp_path):
    _, extractor, _ = stage
    with pytest.raises(UserError, match=r"digits\.pt: fails on 20×20 images"):
        extractor.features(np.zeros((2, 20, 20, 3), np.uint8), 2)


def test_not_an_extractor(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_extractor(tmp_path / "x.pt", CPU)


def test_another_extractor_than_the_references(stage, tmp_path):
    store, _, folder = stage
    other = torch.jit.trace(torch.nn.Flatten(), torch.zeros(4, 3, 16, 16))
    torch.jit.save(other, str(tmp_path / "digits.pt"))
    other = load_extractor(tmp_path / "digits.pt", CPU)
    with pytest.raises(UserError, match="not the extractor of the reference"):
        scores.score(scores.heldout(store), store, load_reference(folder / "reference.npz"), other, CONFIG)
