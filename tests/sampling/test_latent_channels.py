"""Models whose calls take a latent z_l: it is a function of (seed, image), belongs to noise files, and is explored."""

import csv
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from udpm.config import Latents
from udpm.core.errors import StoppedEarly
from udpm.diffusion.process import seeded
from udpm.diffusion.schedule import Schedule
from udpm.networks.weights import load_model
from udpm.report.figures import latents
from udpm.report.figures.latents import plot_latents
from udpm.sampling.latents import swap
from udpm.sampling.sampler import Sampler
from udpm.training.trainer import train

CHANNELS = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a model with a latent."""
    path = tmp_path_factory.mktemp("latent") / "weights.safetensors"
    return tiny.save_random_weights(path, generator__latent_channels=CHANNELS)


def noise_file(path, seed=0, count=6, channels=CHANNELS, **changes):
    """The noise of images 0..count - 1 of a seed, as sampling draws it."""
    base, noises, inputs = seeded(Schedule.from_config(tiny.run_config().process), 16, seed, range(count), channels)
    arrays = {"base": base} | {f"eps_{3 - index}": noise for index, noise in enumerate(noises)}
    arrays |= {f"z_{3 - index}": value for index, value in enumerate(inputs)}
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_the_latent_leaves_the_other_noise_as_it_is():
    schedule = Schedule.from_config(tiny.run_config().process)
    without, with_latent = (seeded(schedule, 16, 5, range(3), channels) for channels in (0, CHANNELS))
    assert torch.equal(without.base, with_latent.base)
    assert all(map(torch.equal, without.noises, with_latent.noises))
    assert [tuple(value.shape) for value in with_latent.inputs] == [(3, 2, 2, 2), (3, 2, 4, 4), (3, 2, 8, 8)]
    assert not without.inputs


def test_an_image_depends_on_its_number_alone(weights):
    """Batches and shards do not matter; images of one label differ."""
    model = load_model(weights, "ema")
    found = Sampler(model, batch=4).sample(7, labels=3)
    for start in (0, 4):
        part = Sampler(model, batch=4).images(np.full(7 - start if start else 4, 3), 0, start)[1]
        assert np.array_equal(part, found[start : start + len(part)])
    alone = Sampler(model, batch=1).sample(7, labels=3)
    assert np.abs(alone.astype(int) - found).max() <= 1


def test_noise_files(weights, tmp_path):
    expected = tiny.drawn(weights, tmp_path / "seed.npz", "--seed", 3)
    assert np.array_equal(
        tiny.drawn(weights, tmp_path / "file.npz", "--noise", noise_file(tmp_path / "n.npz", 3)), expected
    )
    other = noise_file(tmp_path / "other.npz", 3, z_1=torch.zeros(6, CHANNELS, 8, 8))
    assert not np.array_equal(tiny.drawn(weights, tmp_path / "other_images.npz", "--noise", other), expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"z_2": None}, "array z_2 not found; this model needs base, eps_3, eps_2, eps_1, z_3, z_2, z_1"),
        ({"z_2": np.zeros((6, 1, 4, 4))}, "z_2 is float64 (6, 1, 4, 4); expected floating-point (6, 2, 4, 4)"),
        ({"z_1": np.full((6, 2, 8, 8), 1e5)}, "z_1 holds values beyond"),
    ],
)
def test_noise_files_that_do_not_fit(weights, tmp_path, capsys, changes, expected):
    path = noise_file(tmp_path / "n.npz", **changes)
    tiny.assert_refused(tmp_path, f"sample {weights} --count 6 --noise {path} --output x.npz", expected, capsys)


def test_a_latent_for_a_model_without(trained, tmp_path, capsys):
    path = noise_file(tmp_path / "n.npz")
    command = f"sample {trained / 'weights.safetensors'} --count 6 --noise {path} --output x.npz"
    tiny.assert_refused(tmp_path, command, "has z_1, z_2, z_3, but this model takes no latent", capsys)


@pytest.mark.parametrize("kind", ["perturb", "swap", "interpolate", "pca"])
def test_latents_are_maps_of_their_own(weights, tmp_path, kind):
    config = tmp_path / "latents.json"
    config.write_text(json.dumps({"strengths": 2, "grid": 2, "pca_images": 4, "pca_components": 2, "labels": [0, 1]}))
    output = tmp_path / "latents.npz"
    assert not tiny.call("latents", kind, weights, "--config", config, "--output", output)
    arrays = np.load(output)
    plot_latents(output, tmp_path / "figure")
    assert Image.open(tmp_path / "figure.png").size[0] > 100
    if kind == "interpolate":
        return
    assert arrays["kinds"].tolist() == ["eps"] * 3 + ["z"] * 3
    assert arrays["levels"].tolist() == [3, 2, 1] * 2
    rows = list(csv.DictReader((tmp_path / "figure.csv").read_text().splitlines()))
    assert any("z, " in row["image" if kind == "swap" else "level"] for row in rows)


def test_every_column_of_a_swap_has_its_name(weights, tmp_path, monkeypatch):
    assert not tiny.call("latents", "swap", weights, "--labels", "0,1", "--output", tmp_path / "swap.npz")
    figures: list = []
    monkeypatch.setattr(latents, "save", lambda figure, *rest: figures.append(figure))
    latents.plot_latents(tmp_path / "swap.npz", tmp_path / "figure")
    names = [label.get_text().split("\n")[-1] for label in figures[0].axes[0].get_xticklabels()]
    assert names == ["seed 0", *(f"{noise} of A" for noise in ("ε₃", "ε₂", "ε₁", "z₃", "z₂", "z₁")), "seed 1"]


def test_what_a_swap_takes_from_the_other(weights):
    """The last column but one is B with z_1 of A."""
    sampler = Sampler(load_model(weights, "ema"), batch=1)
    images = swap(sampler, Latents(labels=[3]))["images"][0]
    first, second = sampler.latent(0), sampler.latent(1)
    expected = sampler.decode([second.replaced_input(1, first.input(1))], [3])
    found = torch.from_numpy(images[-2]).permute(2, 0, 1).float() / 127.5 - 1
    assert (found - expected[0].clamp(-1, 1)).abs().max() <= 1 / 127
    assert not np.array_equal(images[-2], images[-1])


@pytest.mark.parametrize("change", [{}, {"training__accumulate": 2}, {"training__precision": "bfloat16"}])
def test_training_resumes_exactly(levels, tmp_path, change):
    """Stopped after any iteration, with every new option at once; previews are drawn with the latent."""
    options = {
        "generator__latent_channels": CHANNELS,
        "losses__energy_weight": [0.0, 1.0, 1.0],
        "losses__energy_redraw": True,
        "losses__energy_draws": 3,
        "losses__energy_patch": 2,
        "training__iterations": 6,
        "training__preview_every": 3,
        **change,
    }
    config = tiny.run_config(**options)
    train(config, levels, tmp_path / "whole", False)
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path / "parts", tiny.StopAfter(3))
    train(config, levels, tmp_path / "parts", False)
    tiny.assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    line = tiny.metrics(tmp_path / "whole")[-1]
    assert {key for key in line if "energy" in key or "spread" in key}
