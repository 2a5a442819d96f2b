"""Images whose noise is from a counter: the same for any batch and shard, recorded, and not the host's."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import udpm
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.diffusion.counter import another, counted
from udpm.diffusion.schedule import Schedule
from udpm.metrics.protocol import drawing_words
from udpm.metrics.selection import SAME
from udpm.networks.weights import load_model
from udpm.sampling.sample_set import join_shards
from udpm.sampling.sampler import Sampler

CHANNELS = 2
COUNTER = ("--noise-kind", "counter")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a model with a latent."""
    path = tmp_path_factory.mktemp("counter") / "weights.safetensors"
    return tiny.save_random_weights(path, generator__latent_channels=CHANNELS)


def record(path):
    return json.loads(path.with_suffix(".json").read_text())


def latent(seed, numbers):
    return counted(Schedule.from_config(tiny.run_config().process), 16, seed, numbers, CHANNELS)


def test_the_kind_is_recorded(weights, tmp_path):
    host, default, own = (
        tiny.drawn(weights, tmp_path / f"{name}.npz", *options)
        for name, options in (("host", ("--noise-kind", "host")), ("default", ()), ("own", COUNTER))
    )
    assert np.array_equal(host, default)
    assert not np.array_equal(host, own)
    # Records of the host's noise are what they were before there were kinds.
    assert "noise_kind" not in record(tmp_path / "host.npz")
    assert record(tmp_path / "own.npz")["noise_kind"] == "counter"
    assert "sampling seed 0 (counter), scalar" in drawing_words(record(tmp_path / "own.npz"))
    assert "sampling seed 0, scalar" in drawing_words(record(tmp_path / "host.npz"))


def test_an_image_depends_on_its_number_alone(weights):
    model = load_model(weights)
    sampler = Sampler(model, batch=4, noise_kind="counter")
    found = sampler.sample(7, labels=3)
    for start in (0, 4):
        part = sampler.images(np.full(7 - start if start else 4, 3), 0, start)[1]
        assert np.array_equal(part, found[start : start + len(part)])
    for batch in (1, 7):
        other = Sampler(model, batch=batch, noise_kind="counter")
        # Networks round differently in other batches; noise does not.
        assert np.abs(other.sample(7, labels=3).astype(int) - found).max() <= 1
        for one, whole in zip(other.noise_of(0)(range(5, 6)), sampler.noise_of(0)(range(7)), strict=True):
            assert all(torch.equal(*pair) for pair in zip(parts(one), [v[5:6] for v in parts(whole)], strict=True))


def parts(values):
    return [values] if isinstance(values, torch.Tensor) else list(values)


def test_shards(weights, tmp_path):
    whole = tiny.drawn(weights, tmp_path / "whole.npz", "--batch", 2, *COUNTER)
    shards = [tmp_path / f"{index}.npz" for index in (1, 2)]
    found = [tiny.drawn(weights, path, "--batch", 2, "--shard", f"{path.stem}/2", *COUNTER) for path in shards]
    assert np.array_equal(np.concatenate(found), whole)
    join_shards(shards, tmp_path / "joined.json")
    assert record(tmp_path / "joined.json")["noise_kind"] == "counter"
    tiny.drawn(weights, shards[1], "--batch", 2, "--shard", "2/2")
    with pytest.raises(UserError, match=r"2\.npz: not of the same sample set as .*1\.npz: noise_kind differs; draw"):
        join_shards(shards, tmp_path / "mixed.json")


def test_a_noise_file_of_these_numbers_gives_these_images(weights, tmp_path):
    base, noises, inputs = latent(3, range(6))
    arrays = {"base": base} | {f"eps_{3 - index}": noise for index, noise in enumerate(noises)}
    arrays |= {f"z_{3 - index}": value for index, value in enumerate(inputs)}
    np.savez(tmp_path / "n.npz", **arrays)
    expected = tiny.drawn(weights, tmp_path / "seed.npz", "--seed", 3, *COUNTER)
    for name, options in (("file", ()), ("both", COUNTER)):
        found = tiny.drawn(weights, tmp_path / f"{name}.npz", "--noise", tmp_path / "n.npz", *options)
        assert np.array_equal(found, expected)
        # The file's noise has no kind.
        assert "noise_kind" not in record(tmp_path / f"{name}.npz")


def test_chains_and_intermediate_outputs(weights, tmp_path):
    tiny.drawn(weights, tmp_path / "a.npz", "--chain", tmp_path / "chain.npz", "--intermediate", *COUNTER)
    with np.load(tmp_path / "chain.npz") as file:
        assert json.loads(str(file["record"]))["noise_kind"] == "counter"
        image = ((file["f_1"][:6] + 1) * 127.5).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(image, np.load(tmp_path / "a.npz")["images"])


def test_in_python(weights, tmp_path):
    devices.configure("cpu", 1)
    model = udpm.load(weights, device="cpu", noise_kind="counter")
    assert np.array_equal(model.sample(6), tiny.drawn(weights, tmp_path / "a.npz", *COUNTER))
    with pytest.raises(UserError, match=r"noise_kind: input should be 'host' or 'counter', got 'philox'"):
        udpm.load(weights, noise_kind="philox")


@pytest.mark.parametrize("kind", ["perturb", "swap", "interpolate", "pca"])
def test_latents(weights, tmp_path, kind):
    """Images of the seeds themselves are those of the sample set."""
    path = tmp_path / "l.npz"
    more = ("--images", 9, "--components", 2) if kind == "pca" else ()
    assert not tiny.call("latents", kind, weights, "--labels", 3, "--output", path, "--threads", 1, *more, *COUNTER)
    with np.load(path) as file:
        images = file["images"]
        assert json.loads(str(file["record"]))["noise_kind"] == "counter"
    sampler = Sampler(load_model(weights), noise_kind="counter")
    first, second, _, fourth = (sampler.sample(1, labels=3, seed=seed)[0].astype(int) for seed in range(4))
    if kind == "perturb":
        assert np.abs(images[:, 0, 0] - first).max() <= 1
        assert np.ptp(images[:, 0], axis=1).max() > 20
    elif kind == "swap":
        assert np.abs(images[0, 0] - first).max() <= 1
        assert np.abs(images[0, -1] - second).max() <= 1
    elif kind == "interpolate":
        assert np.abs(images[-1, -1] - first).max() <= 1
        assert np.abs(images[0, 0] - fourth).max() <= 1


def test_fresh_maps_are_the_counters(weights, monkeypatch):
    from udpm.sampling.latents import NoiseMap

    for noise_kind in ("counter", "host"):
        sampler = Sampler(load_model(weights), noise_kind=noise_kind)
        for kind, channels in (("eps", 3), ("z", CHANNELS)):
            found = NoiseMap(kind, 2).another(sampler, sampler.latent(4), 4, 7)
            expected = another(4, kind, 2, (channels, 4, 4), 7)
            assert torch.equal(found, expected) is (noise_kind == "counter")


def test_sets_of_different_kinds_are_not_of_equal_noise(weights, tmp_path):
    for name, options in (("a", ()), ("b", COUNTER), ("c", COUNTER)):
        tiny.drawn(weights, tmp_path / f"{name}.npz", *options)
    for pair, title in (("ab", 2), ("bc", 1)):
        sets = [tmp_path / f"{name}.npz" for name in pair]
        assert tiny.call("compare", *sets, "--output", tmp_path / pair) == 0
        assert pd.read_csv(tmp_path / pair / "grid.csv")["noise"].nunique() == title
    text = (tmp_path / "ab/grid.svg").read_text()
    assert "different noise" in text


def test_milestones_are_compared_on_one_kind_of_noise():
    assert {"seed", "noise_kind"} <= set(SAME)


def test_noise_of_numbers_that_do_not_fit(weights):
    sampler = Sampler(load_model(weights), noise_kind="counter")
    with pytest.raises(UserError, match=r"noise of kind counter: seed must be below"):
        sampler.sample(1, seed=2**64)


def test_values_of_a_gpu_are_not_pinned():
    there = torch.empty(1, device="meta")
    assert devices.pinned(there, torch.device("cuda")) is there


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_draws_the_images_of_a_cpu(weights, graphs):
    found, expected = (
        Sampler(load_model(weights, device=torch.device(device)), batch=4, graphs=graphs, noise_kind="counter")
        .sample(11)
        .astype(int)
        for device in ("cuda", "cpu")
    )
    off = np.abs(found - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


def test_the_workflow_decodes_latents_with_the_noise_of_samples(monkeypatch):
    """Options of earlier studies stay as they are, since other ones would make results again."""
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.syspath_prepend(tiny.ROOT / "workflow")
    from experiments import Experiments
    from targets import Inputs

    inputs = Inputs(Experiments({"experiments": ["cifar10", "cifar10-plus"]}, False))
    for name, expected in (("cifar10", False), ("cifar10-plus", True)):
        for options in (inputs.latent_options, inputs.diagnosis_options):
            text = str(options(SimpleNamespace(experiment=name)))
            assert ("--noise-kind counter" in text) is ("noise" in text) is expected
