"""Sampling: seeds, batches, labels, files."""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scored import save_samples

import udpm
from udpm.config import Sampling
from udpm.core import devices
from udpm.core.devices import to_bytes
from udpm.core.errors import UserError
from udpm.networks.weights import load_model
from udpm.sampling.generate import draw_samples
from udpm.sampling.grid import arrange
from udpm.sampling.sample_set import load_samples
from udpm.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def model(trained):
    devices.configure("cpu", 1)
    return load_model(trained / "weights.safetensors", "raw")


def test_batch_size_does_not_matter(model):
    single, many = (Sampler(model, batch=batch).sample(64, seed=3).astype(int) for batch in (1, 64))
    difference = np.abs(single - many)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    assert np.unique(single.reshape(64, -1), axis=0).shape[0] == 64


def test_an_image_is_a_function_of_its_seed_and_number(model):
    sampler = Sampler(model, batch=8)
    first = sampler.sample(16, seed=1)
    assert (sampler.sample(16, seed=1) == first).all()
    assert (sampler.sample(8, seed=1) == first[:8]).all()
    assert (sampler.sample(16, seed=2) != first).any()


def test_labels(model):
    sampler = Sampler(model)
    assert list(sampler.balanced_labels(12)) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    threes = sampler.sample(4, labels=3)
    assert (threes == sampler.sample(4, labels=[3, 3, 3, 3])).all()
    assert (threes != sampler.sample(4)).any()
    for wrong in ([1, 2], 10, -1):
        with pytest.raises(UserError, match="labels: "):
            sampler.sample(4, labels=wrong)
    with pytest.raises(UserError, match="count: "):
        sampler.sample(0)


def test_posterior_forms_differ_little(model):
    scalar, exact = (Sampler(model, posterior=form).sample(16).astype(int) for form in ("scalar", "exact"))
    assert (scalar != exact).any()


def test_bytes_are_rounded_and_clipped():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_bytes(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_every_byte_survives_the_round_trip():
    levels = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert (to_bytes(levels / 127.5 - 1)[0, ..., 0].flatten() == np.arange(256)).all()


def test_the_sample_set_and_its_record(trained, tmp_path):
    output, chain = tmp_path / "a.npz", tmp_path / "chain.npz"
    config = Sampling(count=12, batch=5, seed=4, threads=1)
    draw_samples(trained / "weights.safetensors", config, output, chain)
    found = load_samples(output)
    assert found.images.shape == (12, 16, 16, 3)
    assert found.record["nfe"] == 3
    assert found.record["seed"] == 4
    assert found.record["weights"] == "ema"
    assert found.record["iteration"] == 12
    with np.load(chain, allow_pickle=False) as arrays:
        assert arrays["x_3"].shape == (10, 3, 2, 2)
        assert arrays["f_3"].shape == arrays["x_2"].shape == (10, 3, 4, 4)
        final = to_bytes(torch.from_numpy(arrays["f_1"]))
        assert json.loads(str(arrays["record"]))["seed"] == 4
    assert np.abs(final.astype(int) - found.images[:10].astype(int)).max() <= 1
    again = tmp_path / "b.npz"
    draw_samples(trained / "weights.safetensors", config, again)
    assert again.read_bytes() == output.read_bytes()


def test_the_grid_of_the_sampled_images(trained, tmp_path, capsys):
    """One row per class, images enlarged four times, two pixels between them; the record is in the file."""
    arguments = ("--count", 8, "--seed", 1, "--labels", "3,5", "--threads", 1)
    for name in ("a.png", "again.png", "a.npz"):
        assert tiny.call("sample", trained, *arguments, "--output", tmp_path / name) == 0
    assert not (tmp_path / "again.json").exists()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    found, picture = load_samples(tmp_path / "a.npz"), Image.open(tmp_path / "a.png")
    assert picture.size == (4 * 64 + 3 * 2, 2 * 64 + 2)
    pixels, step = np.asarray(picture), 66
    for row, label in enumerate((3, 5)):
        for column, image in enumerate(found.images[found.labels == label]):
            shown = pixels[row * step : row * step + 64 : 4, column * step : column * step + 64 : 4]
            assert (shown == image).all()
    record = json.loads(picture.text["Record"])
    given = {key: value for key, value in found.record.items() if key not in ("format", "sha256")}
    assert record | {"provenance": None} == given | {"provenance": None}
    assert tiny.call("sample", trained, *arguments, "--output", tmp_path / "a.png") == 0


@pytest.mark.parametrize(
    ("shape", "labels", "size"),
    [
        ((5,), None, (3, 2)),
        ((5,), [0, 1, 0, 1, 0], (3, 2)),
        ((6,), [0, 0, 0, 0, 0, 0], (3, 2)),
        ((9,), list(range(9)), (3, 3)),
        ((2, 3), None, (3, 2)),
        ((4, 2, 3), None, (3, 8)),
    ],
)
def test_the_rows_of_a_grid(shape, labels, size):
    picture = arrange(np.zeros((*shape, 64, 64, 3), np.uint8), None if labels is None else np.array(labels))
    assert picture.size == tuple(count * 66 - 2 for count in size)


@pytest.mark.parametrize(
    "images", [np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8), np.uint8(1)]
)
def test_a_grid_of_other_arrays(images):
    with pytest.raises(UserError, match=r"^images is .*; expected uint8 \(.*3\)$"):
        arrange(images)


def test_a_sample_set_that_is_not_its_records(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
    save_samples(tmp_path / "a.npz", images, labels, {})
    save_samples(tmp_path / "b.npz", images + 1, labels, {})
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"does not describe a\.npz"):
        load_samples(tmp_path / "a.npz")


def test_a_sample_set_whose_process_was_killed_before_its_last_step(tmp_path):
    images, labels = np.ones((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
    save_samples(tmp_path / "a.npz", images, labels, {})
    (tmp_path / "a.npz").rename(tmp_path / ".a.npz.tmp-node7-41")
    assert np.array_equal(load_samples(tmp_path / "a.npz").images, images)
    (tmp_path / ".a.npz.tmp-node7-41").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"does not describe a\.npz"):
        load_samples(tmp_path / "a.npz")


def test_the_python_interface(trained):
    sampler = udpm.load(trained / "weights.safetensors")
    assert sampler.sample(3, labels=7, seed=1).shape == (3, 16, 16, 3)


def test_threads_come_from_the_configuration(trained, tmp_path):
    torch.set_num_threads(1)
    draw_samples(trained / "weights.safetensors", Sampling(count=2, threads=2), tmp_path / "a.npz")
    assert torch.get_num_threads() == 2
    assert load_samples(tmp_path / "a.npz").record["device"] == "cpu (2 threads)"
    torch.set_num_threads(1)


@pytest.mark.slow
def test_threads_are_not_the_environments(trained, tmp_path):
    config = tmp_path / "sampling.json"
    config.write_text(Sampling(count=2, threads=2).model_dump_json())
    import os

    tiny.udpm(
        "sample",
        trained / "weights.safetensors",
        "--config",
        config,
        "--output",
        tmp_path / "a.npz",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert load_samples(tmp_path / "a.npz").record["device"] == "cpu (2 threads)"
