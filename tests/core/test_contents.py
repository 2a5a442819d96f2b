"""Readers check types, shapes, ranges and digests of every format."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scored import save_samples

from udpm.config import Scoring, to_json
from udpm.core.arrays import check_array, content_digest, sealed
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.data.levels import open_levels
from udpm.data.npz import save_arrays
from udpm.data.store import open_store
from udpm.metrics.extractor import SEALED, extract, load_extractor
from udpm.metrics.reference import check_statistics, load_reference
from udpm.metrics.selection import read_selection
from udpm.report.figures.curves import milestone_table
from udpm.report.figures.style import LARGEST
from udpm.sampling.sample_set import join_shards, load_samples

CPU = torch.device("cpu")
WIDTH = 12


def pictures(seed, count=40, side=8):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def rewrite(path, digest=False, record=(), **changes):
    """Change arrays of an .npz (None removes one) and keys of its record; remove its digest unless `digest`."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    if "record" in arrays:
        record = json.loads(str(arrays["record"])) | dict(record)
        if not digest:
            record.pop("content_sha256")
        arrays["record"] = np.array(json.dumps(record))
    arrays = {name: values for name, values in (arrays | changes).items() if values is not None}
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def scoring_files(tmp_path_factory):
    """Bytes of a folder with an extractor of 12 features, its configuration, a reference and images to score."""
    folder = tmp_path_factory.mktemp("scoring")
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 8, 8)), str(folder / "x.pt"))
    (folder / "scoring.json").write_text(to_json(Scoring(extractor=str(folder / "x.pt"), threads=1, kernel_subsets=2)))
    np.savez(folder / "real.npz", pictures(0))
    np.savez(folder / "drawn.npz", pictures(1) // 2)
    command = f"reference {folder}/real.npz --config {folder}/scoring.json --output {folder}/r.npz"
    assert tiny.call(*command.split()) == 0
    return tiny.snapshot(folder), folder


@pytest.fixture
def project(scoring_files, tmp_path, monkeypatch):
    """A fresh copy of `scoring_files`."""
    files, _ = scoring_files
    for path, data in files.items():
        (tmp_path / path).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SCORE = "score --images drawn.npz --reference r.npz --config scoring.json --output s.json"


def statistics(**changes):
    """Return a mean and a covariance with changes; functions get the covariance."""
    mixing = np.random.default_rng(5).normal(size=(WIDTH, WIDTH))
    sigma = mixing @ mixing.T
    return {"mu": changes.get("mu", np.arange(WIDTH) / 7), "sigma": changes.get("sigma", lambda s: s)(sigma)}


def without_symmetry(sigma):
    return sigma + np.triu(np.ones_like(sigma), 1)


def with_a_negative_direction(sigma):
    values, vectors = np.linalg.eigh(sigma)
    values[0] = -1e-3 * values[-1]
    return (vectors * values) @ vectors.T


NO_STATISTICS = {
    "mu of NaN": (statistics(mu=np.full(WIDTH, np.nan)), "mu contains values that are not finite"),
    "infinite sigma": (statistics(sigma=lambda s: s + np.inf), "sigma contains values that are not finite"),
    "complex mu": (statistics(mu=np.ones(WIDTH, complex)), "mu is complex128 (12,); expected floating-point (d,)"),
    "complex sigma": (statistics(sigma=lambda s: s + 1j), "sigma is complex128 (12, 12); expected floating-point (12"),
    "integer mu": (statistics(mu=np.arange(WIDTH)), "mu is int64 (12,)"),
    "text": (statistics(mu=np.array(["a"] * WIDTH)), "mu is <U1 (12,)"),
    "objects": (
        statistics(mu=np.array([None] * WIDTH)),
        ".npz: not a readable ",
    ),
    "empty": ({"mu": np.empty(0), "sigma": np.empty((0, 0))}, "mu is float64 (0,)"),
    "mu of two axes": (statistics(mu=np.ones((1, WIDTH))), "mu is float64 (1, 12)"),
    "a number": (statistics(mu=np.array(1.0)), "mu is float64 ()"),
    "another size": (
        statistics(sigma=lambda s: s[:3, :3]),
        "sigma is float64 (3, 3)",
    ),
    "a row of sigma": (statistics(sigma=lambda s: s[0]), "sigma is float64 (12,)"),
    "not symmetric": (statistics(sigma=without_symmetry), "sigma is not symmetric"),
    "negative definite": (statistics(sigma=lambda s: -s), "sigma has no variance above 0"),
    "one negative eigenvalue": (statistics(sigma=with_a_negative_direction), "sigma has negative eigenvalues"),
    "no variance": (statistics(sigma=np.zeros_like), "sigma has no variance above 0"),
}


@pytest.mark.parametrize("case", NO_STATISTICS)
def test_refuses_invalid_statistics(project, case, capsys):
    arrays, expected = NO_STATISTICS[case]
    np.savez(project / "theirs.npz", **arrays)
    command = "reference theirs.npz --import --config scoring.json --output out.npz"
    tiny.assert_refused(project, command, expected, capsys)
    # The same in a reference of an earlier version, without a digest.
    rewrite(project / "r.npz", **arrays)
    tiny.assert_refused(project, SCORE, expected, capsys)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accepts_rounded_statistics(dtype):
    features = np.random.default_rng(0).normal(size=(30, 200)).astype(dtype).astype(np.float64)
    sigma = np.cov(features, rowvar=False).astype(dtype)
    skew = np.triu(np.full((200, 200), np.finfo(dtype).eps, np.float64), 1)
    check_statistics("x.npz", features.mean(0).astype(dtype), sigma + skew)


def test_refuses_statistics_of_another_extractor(project, capsys):
    np.savez(project / "theirs.npz", mu=np.zeros(3), sigma=np.eye(3))
    command = "reference theirs.npz --import --config scoring.json --output out.npz"
    tiny.assert_refused(project, command, "has statistics of 3 features, but extractor x gives 12", capsys)


CHANGED = {
    "mu": {"mu": np.zeros(WIDTH)},
    "sigma": {"sigma": np.eye(WIDTH)},
    "features": {"features": np.ones((40, WIDTH), np.float32)},
    "labels that were not there": {"labels": np.zeros(40, np.int64)},
    "the number of images": {"record": {"n": 41}},
    "another data set": {"record": {"dataset_sha256": "0" * 64}},
}


@pytest.mark.parametrize("case", CHANGED)
def test_refuses_a_changed_reference(project, case, capsys):
    rewrite(project / "r.npz", digest=True, **CHANGED[case])
    tiny.assert_refused(project, SCORE, "r.npz: its content was changed since it was written", capsys)


WRONG_REFERENCES = {
    "features of another number": ({"features": np.ones((39, WIDTH), np.float32)}, "features is float32 (39, 12)"),
    "integer features": ({"features": np.ones((40, WIDTH), np.int64)}, "features is int64"),
    "NaN features": ({"features": np.full((40, WIDTH), np.nan, np.float32)}, "features contains values that are not"),
    "labels of another number": ({"labels": np.zeros(39, np.int64)}, "labels is int64 (39,); expected integer (40,)"),
    "labels that are no classes": ({"labels": np.full(40, 0.5)}, "labels is float64 (40,)"),
    "no sigma": ({"sigma": None}, "r.npz: array sigma not found"),
    "one image": ({"record": {"n": 1}}, "record: n: input should be greater than or equal to 2"),
    "a fraction of an image": ({"record": {"n": 40.5}}, "record: n: input should be a valid integer"),
    "no extractor": ({"record": {"extractor": None}}, "record: extractor: input should be"),
    "an extractor without a digest": ({"record": {"extractor": {"name": "x"}}}, "extractor.sha256: is missing"),
}


@pytest.mark.parametrize("case", WRONG_REFERENCES)
def test_refuses_invalid_references(project, case, capsys):
    changes, expected = WRONG_REFERENCES[case]
    rewrite(project / "r.npz", **changes)
    tiny.assert_refused(project, SCORE, expected, capsys)


def test_reads_references_without_a_digest(project):
    before = load_reference("r.npz")
    rewrite(project / "r.npz")
    after = load_reference("r.npz")
    assert (before.mu == after.mu).all()
    assert before.record == after.record


def test_recomputes_changed_cached_features(project):
    network, images = load_extractor("x.pt", CPU), pictures(3)
    whole, _ = extract(images, network, 8)
    extract(images, network, 8, "kept")
    (entry,) = (project / "kept").iterdir()
    good = entry.read_bytes()
    rewrite(entry, digest=True, features=whole + 1)
    assert (extract(images, network, 8, "kept")[0] == whole).all()
    assert entry.read_bytes() == good
    # Another entry under this one's name.
    extract(pictures(4), network, 8, "kept")
    (other,) = set((project / "kept").iterdir()) - {entry}
    entry.write_bytes(other.read_bytes())
    assert (extract(images, network, 8, "kept")[0] == whole).all()
    # An entry of the previous format.
    np.save(entry.with_suffix(".npy"), whole + 1)
    entry.unlink()
    assert (extract(images, network, 8, "kept")[0] == whole).all()


def test_refuses_an_extractor_that_is_constant_on_real_images(project, capsys):
    """It accepts no common side, so nothing is known about it before the first images."""

    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.linear(x.flatten(1), torch.zeros(5, 192)) + 2

    torch.jit.save(torch.jit.trace(Constant(), torch.zeros(2, 3, 8, 8)), "x.pt")
    command = "reference real.npz --config scoring.json --output out.npz --extractor x.pt"
    tiny.assert_refused(project, command, "x.pt: gives all images the same features", capsys)


def test_equal_images_are_not_blamed_on_the_extractor(project):
    found, _ = extract(np.repeat(pictures(0, 1), 9, axis=0), load_extractor("x.pt", CPU), 4)
    assert (found == found[0]).all()


def test_check_array():
    check_array("a", np.zeros((2, 4, 4, 3), np.uint8), np.uint8, ("N", "side", "side", 3))
    with pytest.raises(UserError, match=r"a is uint8 \(2, 4, 5, 3\); expected uint8 \(N, side, side, 3\)"):
        check_array("a", np.zeros((2, 4, 5, 3), np.uint8), np.uint8, ("N", "side", "side", 3))
    assert content_digest({"a": np.zeros(2)}, {}) != content_digest({"a": np.zeros((2, 1))}, {})
    assert content_digest({"a": np.zeros((0, 3))}, {"b": 1}) != content_digest({"a": np.zeros((0, 3))}, {"b": 2})


def edit_tensors(path, change=None, **description):
    """Change tensors of a safetensors file and keys of its description (… removes one)."""
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["udpm"]) | description
    tensors = tiny.tensors(path)
    if change is not None:
        change(tensors)
    record = {key: value for key, value in record.items() if value is not ...}
    save_file(tensors, path, metadata={"udpm": json.dumps(record)})


def name_in(tensors, start, end=""):
    return next(name for name in tensors if name.startswith(start) and name.endswith(end))


def spoil(start, value, end=""):
    """Return a function that changes one number in the first tensor whose name begins and ends like this."""

    def change(tensors):
        tensors[name_in(tensors, start, end)].view(-1)[0] = value

    return change


def cast(dtype, start="ema/"):
    def change(tensors):
        name = name_in(tensors, start)
        tensors[name] = tensors[name].to(dtype)

    return change


def drop(tensors):
    del tensors[name_in(tensors, "ema/", "head.weight")]


def add(tensors):
    tensors["ema/unknown_layer.weight"] = torch.zeros(3)


def widen(tensors):
    tensors["ema/head.weight"] = torch.zeros(12, 16, 3, 3)


def model(weights, **changes):
    """Return the description's model with changed keys of its generator."""
    with safe_open(weights, "pt") as file:
        record = json.loads(file.metadata()["udpm"])["model"]
    own = {key: changes.pop(key) for key in ("side", "classes") if key in changes}
    return {"model": record | own | {"generator": record["generator"] | changes}}


WRONG_WEIGHTS = {
    "NaN in an average": (spoil("ema/", float("nan")), {}, "tensor ema/", "not finite"),
    "infinity in what is not sampled": (spoil("raw/", float("-inf")), {}, "tensor raw/", "not finite"),
    "int8": (cast(torch.int8), {}, "tensor ema/", "holds int8, not floating-point values"),
    "bool": (cast(torch.bool), {}, "tensor ema/", "holds bool"),
    "complex": (cast(torch.complex64), {}, "complex64|safetensors|type"),
    "float8": (cast(torch.float8_e4m3fn), {}, "float8|safetensors|type"),
    "a tensor less": (drop, {}, "1 tensors are missing: head.weight"),
    "a tensor more": (add, {}, "1 tensors are unknown: unknown_layer.weight"),
    "another shape": (widen, {}, "1 tensors are of another shape: head.weight (12, 16, 3, 3) for (12, 8, 3, 3)"),
    "blocks without end": (None, {"blocks": 250}, "generator.blocks needs 500, but the tensors have at most"),
    "channels without end": (None, {"channels": 16_384}, "generator.channels needs 32768"),
    "one more block": (None, {"blocks": 2}, "tensors are missing: encoder.0.blocks.1"),
    "multipliers without end": (None, {"channel_multipliers": [1, 2**30]}, "channel_multipliers[1]: input should be"),
    "classes without end": (None, {"classes": 10**12}, "classes needs 1000000000000"),
    "negative classes": (None, {"classes": -1}, "classes: input should be greater than or equal to 0"),
    "a side without end": (None, {"side": 2**50}, "side: input should be less than or equal to"),
}


@pytest.fixture
def weights(trained, tmp_path, monkeypatch):
    """A copy of a finished run's weights, and a configuration to sample them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes((trained / "weights.safetensors").read_bytes())
    (tmp_path / "sampling.json").write_text('{"count": 4, "threads": 1, "device": "cpu"}')
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_refuses_invalid_weights(weights, case, capsys):
    change, generator, *expected = WRONG_WEIGHTS[case]
    edit_tensors(weights, change, **(model(weights, **generator) if generator else {}))
    for verb in ("sample --config sampling.json --output o.npz", "import --output o.safetensors"):
        before = tiny.snapshot(weights.parent)
        assert tiny.call(*verb.split(), weights) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert all(any(part in said for part in text.split("|")) for text in expected), said
        assert tiny.snapshot(weights.parent) == before


def test_refuses_weights_that_produce_no_finite_image(weights, capsys):
    """The weights are finite, but the network's output is not."""
    edit_tensors(weights, lambda tensors: tensors["ema/head.weight"].fill_(3e38))
    expected = "the network's outputs are not finite"
    for command in (
        "sample w.safetensors --config sampling.json --output out.npz",
        "latents swap w.safetensors --device cpu --output out.npz",
    ):
        tiny.assert_refused(weights.parent, command, expected, capsys)


@pytest.mark.parametrize(
    ("key", "value"),
    [("iteration", -5), ("iteration", "12"), ("run_seed", 0.5), ("dataset_sha256", "abc"), ("model", None)],
)
def test_refuses_weights_with_an_invalid_description(weights, key, value, capsys):
    edit_tensors(weights, **{key: value})
    expected = "does not describe its model" if key == "model" else f"{key}: "
    command = "sample w.safetensors --config sampling.json --output out.npz"
    tiny.assert_refused(weights.parent, command, f"w.safetensors: {expected}", capsys)


def forge(run, change=None, iteration=None, inside=None, manifest=None, **description):
    """Change a run's newest checkpoint and its manifest."""
    path = max((run / "checkpoints").glob("*.safetensors"))
    if iteration is not None or inside is not None:
        description["iteration"] = iteration if inside is None else inside
    edit_tensors(path, change, **description)
    record = json.loads(path.with_suffix(".json").read_text()) | {"sha256": sha256(path)} | (manifest or {})
    path.with_suffix(".json").unlink()
    if iteration is not None:
        record["iteration"] = iteration
        path = path.rename(path.with_stem(f"{iteration:09d}"))
    path.with_suffix(".json").write_text(json.dumps(record))


def all_nan(tensors):
    for values in tensors.values():
        if values.is_floating_point():
            values.fill_(float("nan"))


def without_moments(tensors):
    for name in [name for name in tensors if name.startswith("adam/generator/")]:
        del tensors[name]


def without_one_moment(tensors):
    del tensors[name_in(tensors, "adam/generator/exp_avg_sq/")]


def of_another_shape(tensors):
    name = name_in(tensors, "adam/generator/exp_avg/")
    tensors[name] = tensors[name][:1].clone()


FORGED = {
    "all NaN": ({"change": all_nan}, "not finite"),
    "NaN in a moment": ({"change": spoil("adam/generator/exp_avg/", float("nan"))}, "tensor adam/generator/exp_avg/"),
    "iteration beyond the end": ({"iteration": 10**9}, "is of iteration 1000000000, but training ends after 12"),
    "iteration just beyond the end": ({"iteration": 13}, "is of iteration 13, but training ends after 12"),
    "another iteration inside": (
        {"manifest": {"iteration": 11}},
        "by its name, 11 by its manifest and 12 by its description",
    ),
    "negative iteration": ({"inside": -5}, "iteration: input should be greater than 0, got -5"),
    "negative iteration in the manifest": (
        {"manifest": {"iteration": -5}},
        "iteration: input should be greater than 0",
    ),
    "negative means of squares": ({"change": spoil("adam/discriminator/exp_avg_sq/", -1.0)}, "has values below 0"),
    "more steps than iterations": ({"change": spoil("adam/generator/step/", 99.0)}, "is 99; expected a whole number"),
    "part of a step": ({"change": spoil("adam/generator/step/", 2.5)}, "is 2.5; expected a whole number in 1..12"),
    "no moments": ({"change": without_moments}, "it has no moments of Adam for the generator"),
    "a moment less": ({"change": without_one_moment}, "1 tensors are missing: adam/generator/exp_avg_sq/"),
    "a moment of another shape": ({"change": of_another_shape}, "1 tensors are of another shape: adam/generator/"),
    "integer weights": ({"change": cast(torch.int32, "generator/")}, "holds int32, not floating-point values"),
    "a count that is none": ({"change": cast(torch.float32, "ema/n_averaged")}, "holds float32, not int64"),
    "no history": ({"processes": ...}, "processes: is missing"),
    "no images": ({"dataset_sha256": ...}, "dataset_sha256: is missing"),
}


@pytest.mark.parametrize("case", FORGED)
def test_refuses_forged_checkpoints(digits, trained, tmp_path, case, capsys, monkeypatch):
    options, expected = FORGED[case]
    shutil.copytree(trained, tmp_path / "run")
    for name in ("weights.safetensors", "complete.json"):
        (tmp_path / "run" / name).unlink()
    forge(tmp_path / "run", **options)
    tiny.write_config(tmp_path)
    command = f"train {tmp_path}/run.json --dataset {digits}/dataset --cache {digits}/cache --run {tmp_path}/run"
    assert tiny.call(*command.split()) == 2
    errors = capsys.readouterr().err
    assert expected in errors.splitlines()[-1]
    assert not (tmp_path / "run/weights.safetensors").exists()


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """Bytes of a prepared data set of three classes, with a test split, and of its level cache."""
    folder = tmp_path_factory.mktemp("store")
    for split, count in (("train", 6), ("test", 3)):
        for label in "abc":
            (folder / f"images/{split}/{label}").mkdir(parents=True)
            for number, image in enumerate(pictures(number_of(split, label), count)):
                Image.fromarray(image).save(folder / f"images/{split}/{label}/{number}.png")
    config = {"source": "folder", "path": str(folder / "images"), "side": 8, "classes": 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert tiny.call("prepare", folder / "config.json", "--output", folder / "dataset") == 0
    assert tiny.call("cache", folder / "dataset", "--output", folder / "cache") == 0
    shutil.rmtree(folder / "images")
    return tiny.snapshot(folder)


def number_of(split, label):
    return 100 * len(split) + ord(label)


@pytest.fixture
def store(small_store, tmp_path):
    """A fresh copy of `small_store`: dataset/ and cache/."""
    for path, data in small_store.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return tmp_path


def edit_record(path, keep_seal=False, **changes):
    """Change keys of a JSON record (… removes one); remove its digest unless `keep_seal`."""
    record = json.loads(path.read_text()) | changes
    if not keep_seal:
        record.pop("record_sha256")
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


WRONG_STORES = {
    "overlapping splits": ({"splits": {"train": [0, 20], "test": [18, 27]}}, "splits: test is [18, 27]"),
    "a split beyond the end": ({"splits": {"train": [0, 18], "test": [18, 30]}}, "splits: end at 30, but there are 27"),
    "a gap between splits": ({"splits": {"train": [0, 18], "test": [20, 27]}}, "expected [18, …]"),
    "images in no split": ({"splits": {"train": [0, 18]}}, "splits: end at 18, but there are 27 images"),
    "a split that ends before it starts": (
        {"splits": {"train": [0, 27], "test": [27, 18]}},
        "splits: test is [27, 18]",
    ),
    "a split below 0": ({"splits": {"train": [-1, 27]}}, "splits.train[0]: input should be greater than or equal to 0"),
    "no splits": ({"splits": {}}, "splits: end at 0, but there are 27"),
    "splits of text": ({"splits": {"train": "all"}}, "splits.train: input should be a valid list"),
    "a split of one number": ({"splits": {"train": [27]}}, "splits.train"),
    "negative classes": ({"classes": -1, "class_names": []}, "classes: input should be greater than or equal to 0"),
    "classes as text": ({"classes": "3"}, "classes: input should be a valid integer"),
    "classes that are true": ({"classes": True}, "classes: input should be a valid integer"),
    "fewer classes than labels": (
        {"classes": 2, "class_names": []},
        "labels are 0..2, but the record requires",
    ),
    "more names than classes": ({"class_names": list("abcd")}, "class_names: 4 names for 3 classes"),
    "no images": ({"count": 0}, "count: input should be greater than 0"),
    "more images than there are": (
        {"count": 28, "splits": {"train": [0, 28]}},
        "images.npy: uint8 (27, 8, 8, 3)",
    ),
    "half a pixel": ({"side": 8.5}, "side: input should be a valid integer"),
    "no digest": ({"sha256": ...}, "sha256: is missing"),
    "a digest that is none": ({"sha256": "abc"}, "sha256: "),
    "files without digests": ({"files": [1]}, "files: "),
}


@pytest.mark.parametrize("case", WRONG_STORES)
def test_refuses_invalid_records_of_data_sets(store, case, capsys):
    changes, expected = WRONG_STORES[case]
    edit_record(store / "dataset/dataset.json", **changes)
    capsys.readouterr()
    assert tiny.call("info", store / "dataset") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert expected in said


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("dataset/dataset.json", {"splits": {"train": [0, 27]}}),
        ("dataset/dataset.json", {"splits": {"train": [0, 20], "test": [20, 27]}}),
        ("dataset/dataset.json", {"classes": 5, "class_names": []}),
        ("dataset/dataset.json", {"class_names": list("cba")}),
        ("cache/cache.json", {"images_checked": 99}),
    ],
)
def test_refuses_changed_but_plausible_records(store, file, changes, capsys):
    edit_record(store / file, keep_seal=True, **changes)
    assert tiny.call("info", (store / file).parent, "--check") == 2
    assert f"{file}: was changed since it was written" in capsys.readouterr().err


def test_reads_records_without_a_digest(store):
    for file in ("dataset/dataset.json", "cache/cache.json"):
        edit_record(store / file, description="of another time")
    assert len(open_levels(store / "dataset", store / "cache", 2).store.images) == 27


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset_sha256": ...}, "dataset_sha256: is missing"),
        ({"dataset_sha256": "0" * 64}, "made from other images"),
        ({"files": {"level_1.npy": 1}}, "files.level_1.npy: input should be a valid string"),
        ({"files": [1]}, "files: input should be a valid dictionary"),
        ({"format": "udpm-cache/0"}, "format is 'udpm-cache/0', expected 'udpm-cache/1'"),
    ],
)
def test_refuses_invalid_records_of_caches(store, changes, expected):
    edit_record(store / "cache/cache.json", **changes)
    with pytest.raises(UserError, match=re.escape(expected)):
        open_levels(store / "dataset", store / "cache", 2)


def samples_in(folder, images, labels, record=(), **arrays):
    """Write a sample set of any content, with a record that describes it."""
    save_samples(folder / "s.npz", pictures(0, 4), np.arange(4) % 2, {"classes": 2, "nfe": 3, "weights": "ema"})
    np.savez(folder / "s.npz", **{"images": images, "labels": labels} | arrays)
    record = {"sha256": sha256(folder / "s.npz"), "count": len(images) if np.ndim(images) else 1} | dict(record)
    edit_record(folder / "s.json", **record)
    return folder / "s.npz"


GOOD = pictures(0, 4)
WRONG_SAMPLES = {
    "images of three axes": ((GOOD[..., 0], np.zeros(4, int)), "images is uint8 (4, 8, 8); expected uint8 (4, height"),
    "one image": ((GOOD[0], np.zeros(8, int)), "images is uint8 (8, 8, 3)"),
    "four channels": ((np.zeros((4, 8, 8, 4), np.uint8), np.zeros(4, int)), "images is uint8 (4, 8, 8, 4)"),
    "floats": ((GOOD / 255, np.zeros(4, int)), "images is float64 (4, 8, 8, 3)"),
    "signed bytes": ((GOOD.astype(np.int8), np.zeros(4, int)), "images is int8"),
    "no images": ((GOOD[:0], np.zeros(0, int), {"count": 0}), "count: input should be greater than 0, got 0"),
    "no images instead of four": ((GOOD[:0], np.zeros(0, int), {"count": 4}), "images is uint8 (0, 8, 8, 3)"),
    "text for labels": ((GOOD, np.array(list("abcd"))), "labels is <U1 (4,); expected integer (4,)"),
    "NaN labels": ((GOOD, np.full(4, np.nan)), "labels is float64 (4,)"),
    "labels of another number": ((GOOD, np.zeros(3, int)), "labels is int64 (3,)"),
    "labels of two axes": ((GOOD, np.zeros((4, 1), int)), "labels is int64 (4, 1)"),
    "labels below 0": ((GOOD, np.full(4, -1)), "labels are -1..-1, but by its record they must be in 0..1"),
    "labels beyond the classes": ((GOOD, np.arange(4)), "labels are 0..3, but by its record they must be in 0..1"),
    "a label without classes": ((GOOD, np.ones(4, int), {"classes": 0}), "by its record they must be in 0..0"),
    "another count": ((GOOD, np.zeros(4, int), {"count": 5}), "images is uint8 (4, 8, 8, 3); expected uint8 (5,"),
    "negative classes": ((GOOD, np.zeros(4, int), {"classes": -3}), "classes: input should be greater than or equal"),
    "a seed of text": ((GOOD, np.zeros(4, int), {"seed": "x"}), "seed: input should be a valid integer"),
    "shards that are a number": ((GOOD, np.zeros(4, int), {"shards": 3}), "shards: input should be a valid list"),
    "a shard beyond the last": ((GOOD, np.zeros(4, int), {"shard": [3, 2]}), "shard: 3 of 2"),
    "no count": ((GOOD, np.zeros(4, int), {"count": ...}), "count: is missing"),
}


@pytest.mark.parametrize("case", WRONG_SAMPLES)
def test_refuses_invalid_sample_sets(tmp_path, monkeypatch, case, capsys):
    monkeypatch.chdir(tmp_path)
    content, expected = WRONG_SAMPLES[case]
    samples_in(tmp_path, *content)
    for command in ("export s.npz --output e", "figure samples s.npz --output f"):
        tiny.assert_refused(tmp_path, command, expected, capsys)


def test_more_of_sample_sets(tmp_path, capsys):
    path = samples_in(tmp_path, GOOD, np.zeros(4, int), output_2=GOOD[:, :4], output_x=np.zeros(3))
    with pytest.raises(UserError, match=r"output_2 is uint8 \(4, 4, 8, 3\); expected uint8 \(4, 8, 8, 3\)"):
        load_samples(path)
    path = samples_in(tmp_path, GOOD, np.zeros(4, int))
    assert load_samples(path).record["classes"] == 2
    save_samples(path, GOOD, np.zeros(4, int), {"classes": 2})
    edit_record(tmp_path / "s.json", keep_seal=True, classes=0)
    with pytest.raises(UserError, match=r"s\.json: was changed since it was written"):
        load_samples(path)


def test_joined_sample_sets(tmp_path):
    parts = [tmp_path / f"{index}.npz" for index in (1, 2)]
    for index, path in enumerate(parts, 1):
        save_samples(path, GOOD // index, np.zeros(4, int), {"shard": [index, 2], "classes": 2})
    join_shards(parts, tmp_path / "all.json")
    assert len(load_samples(tmp_path / "all.json").images) == 8
    record = json.loads((tmp_path / "all.json").read_text())
    for changes, expected in {
        "shards: do not have 8": {"shards": record["shards"][:1]},
        "shards: are not those that were joined": {"shards": record["shards"][::-1]},
        "shards: input should be a valid list": {"shards": 3},
        "shards[0]": {"shards": [1, 2]},
        "list should have at least 1 item": {"shards": []},
        "all.npz: sample set not found": {"shards": None},
    }.items():
        (tmp_path / "all.json").write_text(json.dumps(record))
        edit_record(tmp_path / "all.json", **expected)
        with pytest.raises(UserError, match=re.escape(changes)):
            load_samples(tmp_path / "all.json")
    np.savez(parts[0], images=GOOD, labels=np.zeros(4))
    edit_record(tmp_path / "1.json", sha256=sha256(parts[0]))
    with pytest.raises(UserError, match=r"1\.npz: labels is float64"):
        join_shards(parts, tmp_path / "again.json")


@pytest.mark.parametrize(
    ("count", "classes"),
    [(10, 10), (20, 10), (40, 10), (60, 10), (1, 10), (1, 0), (500, 0), (2000, 1000), (13, 13), (3, 2), (144, 12)],
)
def test_any_sample_set_makes_a_figure_that_fits(tmp_path, count, classes):
    labels = np.arange(count) % max(classes, 1)
    save_samples(tmp_path / "s.npz", pictures(0, count, 4), labels, {"classes": classes, "nfe": 3})
    assert tiny.call("figure", "samples", tmp_path / "s.npz", "--output", tmp_path / "f") == 0
    assert max(Image.open(tmp_path / "f.png").size) <= LARGEST
    shown = pd.read_csv(tmp_path / "f.csv")
    assert len(shown) == min(count, 96 if not classes else 12 * -(-count // classes), 144)
    assert (labels[shown["number"]] == shown["label"]).all()
    note = f"{len(shown)} of {count} images" in (tmp_path / "f.svg").read_text()
    assert note == (len(shown) < count)


def chain_of(path, count, classes, levels=2, side=8, **changes):
    normal = np.random.default_rng(0).normal
    arrays = {"labels": np.arange(count)}
    for level in range(1, levels + 1):
        arrays[f"x_{level}"] = normal(size=(count, 3, side >> level, side >> level)).astype(np.float32)
        arrays[f"f_{level}"] = normal(size=(count, 3, 2 * side >> level, 2 * side >> level)).astype(np.float32)
    record = {"classes": classes, "scale": 2} | changes.pop("record", {})
    save_arrays(path, {name: values for name, values in (arrays | changes).items() if values is not None}, record)
    return path


@pytest.mark.parametrize(("count", "classes", "levels"), [(11, 11, 2), (100, 100, 1), (1, 0, 8)])
def test_any_chain_makes_a_figure_that_fits(tmp_path, count, classes, levels):
    chain_of(tmp_path / "c.npz", count, classes, levels, side=2**levels)
    assert tiny.call("figure", "chain", tmp_path / "c.npz", "--output", tmp_path / "f") == 0
    assert max(Image.open(tmp_path / "f.png").size) <= LARGEST
    note = f"12 of {count} {'classes' if classes else 'images'} are shown" in (tmp_path / "f.svg").read_text()
    assert note == (count > 12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"x_1": np.zeros((3, 3, 4, 5), np.float32)}, "x_1 is float32 (3, 3, 4, 5)"),
        ({"x_2": np.full((3, 3, 2, 2), np.nan)}, "x_2 contains values that are not finite"),
        ({"f_2": np.zeros((3, 3, 4, 4), np.uint8)}, "f_2 is uint8"),
        ({"f_2": None}, "array f_2 not found"),
        ({"x_1": None}, "expected arrays labels, x_1, f_1, …"),
        ({"labels": np.array(["a"] * 3)}, "labels is <U1"),
        ({"record": {"scale": "2"}}, "record: scale: "),
        ({"record": {"scale": 1e300}}, "record: scale: "),
        ({"record": {"classes": -1}}, "record: classes: "),
    ],
)
def test_refuses_invalid_chains(tmp_path, monkeypatch, changes, expected, capsys):
    monkeypatch.chdir(tmp_path)
    chain_of(tmp_path / "c.npz", 3, 3, **changes)
    tiny.assert_refused(tmp_path, "figure chain c.npz --output f", expected, capsys)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": np.zeros((3, 3, 8, 8, 3))}, "images is float64 (3, 3, 8, 8, 3); expected uint8 (R, C, N, N, 3)"),
        ({"images": np.zeros((3, 4, 8, 8, 3), np.uint8)}, "images has 4 columns for 1 levels; expected 3"),
        ({"labels": np.zeros(2, int)}, "labels is int64 (2,)"),
        ({"seeds": np.zeros((3, 2))}, "seeds is float64"),
        ({"levels": None}, "array levels not found; expected images, levels, labels, seeds"),
        ({"record": {"classes": None}}, "record: classes: "),
        ({"record": {"kind": ["swap"]}}, "format is 'udpm-latents/1'"),
    ],
)
def test_refuses_invalid_latent_space_experiments(tmp_path, monkeypatch, changes, expected, capsys):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((3, 3, 8, 8, 3), np.uint8)
    arrays = {"images": images, "levels": np.ones(1, int), "labels": np.zeros(3, int), "seeds": np.zeros((3, 2), int)}
    record = {"format": "udpm-latents/1", "kind": "swap", "classes": 0} | changes.get("record", {})
    arrays |= {name: values for name, values in changes.items() if name != "record"}
    save_arrays("l.npz", {name: values for name, values in arrays.items() if values is not None}, record)
    tiny.assert_refused(tmp_path, "figure latents l.npz --output f", expected, capsys)


def test_refuses_changed_arrays(tmp_path, capsys):
    rewrite(chain_of(tmp_path / "c.npz", 3, 3), digest=True, f_1=np.zeros((3, 3, 8, 8), np.float32))
    assert tiny.call("figure", "chain", tmp_path / "c.npz", "--output", tmp_path / "f") == 2
    assert "c.npz: its content was changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("base", np.full((4, 3, 16, 16), np.nan, np.float32), "base contains values that are not finite"),
        ("eps_1", np.full((4, 3, 8, 8), np.inf), "eps_1 contains values that are not finite"),
        ("eps_2", np.full((4, 3, 4, 4), 1e300), "eps_2 holds values beyond"),
        ("eps_3", np.zeros((3, 3, 2, 2)), "eps_3 is float64 (3, 3, 2, 2); expected floating-point (4, 3, 2, 2)"),
        ("base", np.zeros((4, 3, 16, 16), complex), "base is complex128"),
        ("base", np.zeros((0, 3, 16, 16)), "base is float64 (0, 3, 16, 16)"),
        ("base", np.zeros(4), "base is float64 (4,)"),
    ],
)
def test_refuses_invalid_noise(weights, name, values, expected, capsys):
    arrays = {"base": np.zeros((4, 3, 16, 16), np.float32)}
    arrays |= {f"eps_{level}": np.zeros((4, 3, 16 >> level, 16 >> level), np.float32) for level in (1, 2, 3)}
    np.savez("noise.npz", **arrays | {name: values})
    (weights.parent / "sampling.json").write_text('{"count": 4, "threads": 1, "noise": "noise.npz"}')
    command = "sample w.safetensors --config sampling.json --output out.npz"
    tiny.assert_refused(weights.parent, command, expected, capsys)


# --- scores, selections, benchmarks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_files(scoring_files, tmp_path_factory):
    """Bytes of a folder with a real score, a selection among two, and a benchmark's record."""
    _, source = scoring_files
    folder = tmp_path_factory.mktemp("scored")
    command = f"score --images {source}/drawn.npz --reference {source}/r.npz --config {source}/scoring.json"
    assert tiny.call(*command.split(), "--output", folder / "score.json") == 0
    score = json.loads((folder / "score.json").read_text())
    for iteration in (10, 20):
        subject = {"kind": "samples", "experiment": "digits", "run_seed": 0, "iteration": iteration, "weights": "ema"}
        subject |= {"weights_sha256": f"{iteration:064}", "seed": 1, "posterior": "scalar", "nfe": 3}
        kept = {key: value for key, value in score.items() if key != "record_sha256"}
        (folder / f"{iteration}.json").write_text(json.dumps(kept | {"subject": subject}))
    assert tiny.call("select", folder / "10.json", folder / "20.json", "--output", folder / "selection.json") == 0
    spread = {"median": 1.0, "low": 0.5, "high": 2.0}
    row = {"part": "network", "way": "plain", "seconds": spread, "cpu_seconds": None, "images_per_second": spread}
    record = {
        "format": "udpm-bench/1",
        "of": "sampling",
        "ceilings": CEILINGS,
        "rows": [row],
        "device": "cpu",
    }
    (folder / "bench.json").write_text(json.dumps(sealed(record | {"batch": 8})))
    return tiny.snapshot(folder)


@pytest.fixture
def scored(scored_files, tmp_path, monkeypatch):
    for path, content in scored_files.items():
        (tmp_path / path.name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_json(path, key, value, keep_seal=False):
    """Change the value of a dotted key such as "protocol.n"; ... removes it. Remove the seal unless `keep_seal`."""
    record = json.loads(path.read_text())
    *parents, last = key.split(".")
    holder = record
    for parent in parents:
        holder = holder[int(parent) if isinstance(holder, list) else parent]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    if not keep_seal:
        record.pop("record_sha256", None)
    path.write_text(json.dumps(record))


CEILINGS = {"float32_flops": 1e9, "bfloat16_flops": 1e9, "copy_bytes": 1e9}
READ_BY = {"score": "table score.json --output t", "selection": "figure selection selection.json --output f"}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("score", "metrics.frechet_distance.value", 0.5),
        ("score", "metrics.precision.value", 0.123),
        ("score", "protocol.n", 50_000),
        ("score", "subject.source", "another"),
        ("selection", "protocol.n", 50_000),
        ("selection", "seed", 7),
    ],
)
def test_refuses_changed_but_plausible_results(scored, capsys, name, key, value):
    edit_json(scored / f"{name}.json", key, value, keep_seal=True)
    tiny.assert_refused(scored, READ_BY[name], "was changed since it was written", capsys)


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("score", "metrics.frechet_distance.value", -1.0, "metrics.frechet_distance: must be in 0..inf, got -1"),
        ("score", "metrics.frechet_distance.value", "12", "metrics.frechet_distance.value: input should be"),
        ("score", "metrics.frechet_distance", ..., "metrics.frechet_distance: is missing"),
        ("score", "metrics.precision.value", 1.5, "metrics.precision: must be in 0..1, got 1.5"),
        ("score", "metrics.recall", 3, "metrics.recall: input should be"),
        ("score", "protocol.n", 0, "protocol.n: "),
        ("score", "protocol.n", ..., "protocol.n: is missing"),
        ("score", "protocol.extractor.sha256", ..., "protocol.extractor.sha256: is missing"),
        ("score", "subject.kind", "photographs", "subject.kind: "),
        ("score", "subject.iteration", 2**64 - 1, "digits does not fit into 64 bits"),
        ("score", "protocol", [], "protocol: input should be"),
        ("selection", "frechet_distance", -3.0, "frechet_distance: "),
        ("selection", "milestones", [], "milestones: "),
        ("selection", "milestones.0.iteration", "ten", "milestones[0].iteration: "),
        ("selection", "iteration", -10, "iteration: "),
        ("selection", "iteration", 20, "20 is selected, but milestone 10 has the least distance"),
    ],
)
def test_refuses_invalid_results(scored, capsys, name, key, value, expected):
    edit_json(scored / f"{name}.json", key, value)
    tiny.assert_refused(scored, READ_BY[name], expected, capsys)


def test_reads_results_without_a_digest(scored):
    for name, command in READ_BY.items():
        edit_json(scored / f"{name}.json", "comment", "of another time")
        assert tiny.call(*command.split()) == 0


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("10", "subject.run_seed", ...),
        ("10", "subject.nfe", None),
        ("10", "subject.selection", None),
        ("10", "subject.selection", {"iterations": [10], "n": 4, "seed": None}),
        ("10", "subject.guidance", None),
        ("10", "subject.origin", {"files": [{"sha256": "0"}]}),
        ("10", "metrics.precision", {"value": None, "label": "precision"}),
        ("10", "provenance", ...),
        ("selection", "protocol.extractor.name", ...),
        ("selection", "protocol.reference.dataset", ...),
        ("selection", "protocol.reference.n", ...),
    ],
)
def test_missing_entries_of_results_are_unknown(scored, name, key, value):
    edit_json(scored / f"{name}.json", key, value)
    commands = {
        "10": ("table 10.json 20.json --output t",),
        "selection": ("figure selection selection.json --output f",),
    }
    for command in commands[name]:
        assert not tiny.call(*command.split())
    if name == "selection":
        milestone_table(read_selection(scored / "selection.json")).write(scored / "milestones")
        assert ("unknown" in (scored / "milestones.md").read_text()) == (key != "protocol.reference.n")


def test_refuses_a_selection_among_unknown_weights(scored, capsys):
    edit_json(scored / "10.json", "subject.weights_sha256", ...)
    command = "select 10.json 20.json --output s.json"
    tiny.assert_refused(scored, command, "10.json: has no subject.weights_sha256", capsys)


def test_refuses_impossible_numbers_of_classes(weights, store, capsys):
    assert not tiny.call("sample", weights, "--config", "sampling.json", "--output", "few.npz")
    edit_json(weights.parent / "few.json", "classes", 10**9)
    tiny.assert_refused(weights.parent, "export few.npz --output images", "few.json: classes: input should be", capsys)
    edit_json(store / "dataset/dataset.json", "classes", 10**9)
    with pytest.raises(UserError, match="classes: input should be less"):
        open_store(store / "dataset")


@pytest.mark.parametrize(
    ("key", "value"), [("iterations", 20_000), ("parameters", {"generator": 3}), ("class_names", ["b", "a"])]
)
def test_refuses_changed_but_plausible_records_of_finished_runs(trained, digits, tmp_path, capsys, key, value):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = (run / "complete.json").read_text()
    edit_json(run / "complete.json", key, value, keep_seal=True)
    expected = "complete.json: was changed since it was written"
    tiny.assert_refused(run, f"card {run} --output {run}/card.md", expected, capsys)
    tiny.assert_refused(run, f"clean {run} --yes", expected, capsys)
    config = tiny.write_config(run.parent, training__iterations=20)
    command = f"train {config} --dataset {digits}/dataset --cache {digits}/cache --run {run}"
    assert tiny.call(*command.split()) == 2
    assert expected in capsys.readouterr().err
    (run / "complete.json").write_text(before)
    edit_json(run / "complete.json", "provenance.machine", "renamed", keep_seal=True)
    assert not tiny.call("card", run, "--output", run / "card.md")


@pytest.mark.parametrize("seal", [True, False])
def test_refuses_changed_records_of_extractors(tmp_path, seal):
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 8, 8)), str(tmp_path / "e.pt"))
    record = {"format": "udpm-extractor/1", "sha256": sha256(tmp_path / "e.pt"), "name": "e", "side": 8}
    record = sealed(record | {"heldout_accuracy": 0.9}, SEALED)
    (tmp_path / "e.json").write_text(json.dumps(record))
    assert load_extractor(tmp_path / "e.pt", CPU).describe()["heldout_accuracy"] == 0.9
    edit_json(tmp_path / "e.json", "heldout_accuracy", 0.5, keep_seal=seal)
    with pytest.raises(UserError, match="was changed since it was written") if seal else nullcontext():
        load_extractor(tmp_path / "e.pt", CPU)
