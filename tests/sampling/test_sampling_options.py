"""Sampling's options: guidance, labels, noise files, intermediate outputs, image files, the command's defaults."""

import json
import os

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scored import save_samples

from udpm.core.devices import to_bytes
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.data.npz import load_arrays
from udpm.diffusion.process import adjoint, posterior, seeded
from udpm.diffusion.schedule import Schedule
from udpm.networks.layers import NO_LABEL
from udpm.networks.weights import load_model
from udpm.sampling import sample_set as sets
from udpm.sampling.sample_set import load_samples
from udpm.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def guidable(tmp_path_factory):
    """Weights of a model with label dropout."""
    path = tmp_path_factory.mktemp("guidable") / "weights.safetensors"
    return tiny.save_random_weights(path, generator__label_dropout=0.1)


@pytest.fixture
def weights(trained):
    return trained / "weights.safetensors"


def sample(weights, output, *options):
    """Draw a few images with `udpm sample`."""
    assert tiny.call("sample", weights, "--count", 6, "--threads", 1, "--output", output, *options) == 0
    return load_samples(output)


def assert_close_bytes(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def by_hand(model, network, labels, seed):
    """The chain of images 0..len(labels) - 1, without the sampler: their outputs, coarsest first."""
    schedule = Schedule.from_config(model.config.process)
    base, noises, _ = seeded(schedule, 16, seed, range(len(labels)))
    coarsest = torch.nn.functional.avg_pool2d(base, 8) * 8
    state, outputs = 0.5 * 0.2 * 1e-3 * coarsest + schedule.sigma_tilde(3) * noises[0], []
    for level, noise in ((3, noises[1]), (2, noises[2]), (1, None)):
        outputs.append(network(state, (level - 0.5) / 3, torch.as_tensor(labels)))
        if noise is not None:
            state = posterior(schedule, state, outputs[-1], level, "scalar").draw(noise)
    return outputs


# --- guidance --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_goes_from_no_label_past_the_label(guidable, tmp_path):
    model = load_model(guidable)

    def guided(state, time, labels):
        conditional, free = (model.generator(state, time, y) for y in (labels, torch.full_like(labels, NO_LABEL)))
        return free + 2.5 * (conditional - free)

    found = sample(guidable, tmp_path / "a.npz", "--guidance", 2.5, "--seed", 3)
    assert_close_bytes(found.images, to_bytes(by_hand(model, guided, found.labels, 3)[-1]))
    assert (found.record["guidance"], found.record["nfe"]) == (2.5, 6)


def test_guidance_of_1_is_none(guidable, tmp_path):
    plain, same, other = (
        sample(guidable, tmp_path / f"{index}.npz", *options)
        for index, options in enumerate([(), ("--guidance", 1), ("--guidance", 3)])
    )
    assert (same.images == plain.images).all()
    assert (plain.record["guidance"], plain.record["nfe"]) == (1, 3)
    assert np.abs(other.images.astype(int) - plain.images).max() > 1


def test_guidance_needs_label_dropout(weights):
    with pytest.raises(UserError, match="guidance: this model was not trained with label dropout"):
        Sampler(load_model(weights), guidance=2.0)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_listed_labels_are_taken_in_turn(guidable, tmp_path):
    chain = tmp_path / "chain.npz"
    found = sample(guidable, tmp_path / "a.npz", "--labels", "7,2,5", "--count", 8, "--chain", chain)
    assert list(found.labels) == [7, 2, 5, 7, 2, 5, 7, 2]
    expected = Sampler(load_model(guidable)).sample(8, labels=list(found.labels))
    assert (found.images == expected).all()
    assert found.record["labels"] == [7, 2, 5]
    # A chain has all classes.
    assert "labels" not in load_arrays(chain, "chain", "udpm sample")[1]


@torch.no_grad()
def test_without_labels(guidable, tmp_path):
    model = load_model(guidable)
    found = sample(guidable, tmp_path / "a.npz", "--labels", "none")
    assert_close_bytes(found.images, to_bytes(by_hand(model, model.generator, [NO_LABEL] * 6, 0)[-1]))
    assert not found.labels.any()
    assert found.record["classes"] == 0


def test_the_chain_without_labels_has_none_either(guidable, tmp_path):
    found = sample(guidable, tmp_path / "a.npz", "--labels", "none", "--chain", tmp_path / "chain.npz")
    arrays, record = load_arrays(tmp_path / "chain.npz", "chain", "udpm sample")
    assert_close_bytes(to_bytes(torch.from_numpy(arrays["f_1"][:6])), found.images)
    assert not arrays["labels"].any()
    assert record["classes"] == 0


# --- noise from a file -----------------------------------------------------------------------------------------------


def noise_of(seed, count):
    base, noises, _ = seeded(Schedule.from_config(tiny.run_config().process), 16, seed, range(count))
    return {"base": base.numpy()} | {f"eps_{level}": noises[3 - level].numpy() for level in (3, 2, 1)}


def test_noise_from_a_file_gives_the_seeds_images(guidable, tmp_path):
    file = tmp_path / "noise.npz"
    np.savez(file, **noise_of(5, 7))
    expected = sample(guidable, tmp_path / "seed.npz", "--seed", 5)
    found, one_by_one = (
        sample(guidable, tmp_path / f"{batch}.npz", "--noise", file, "--batch", batch) for batch in (250, 1)
    )
    assert (found.images == expected.images).all()
    assert_close_bytes(one_by_one.images, expected.images)
    assert found.record["noise"] == {"file": "noise.npz", "sha256": sha256(file)}
    assert found.record["seed"] is None
    assert "noise" not in expected.record


def test_the_chain_has_the_files_noise_too(guidable, tmp_path):
    """Draw `count` images; the noise file may have fewer than one per class."""
    np.savez(tmp_path / "noise.npz", **noise_of(5, 6))
    chain = tmp_path / "chain.npz"
    found = sample(guidable, tmp_path / "a.npz", "--noise", tmp_path / "noise.npz", "--chain", chain)
    arrays, record = load_arrays(chain, "chain", "udpm sample")
    assert_close_bytes(to_bytes(torch.from_numpy(arrays["f_1"])), found.images)
    assert record["noise"] == found.record["noise"]


# --- intermediate outputs --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_intermediate_outputs_are_shown_at_full_side(guidable, tmp_path):
    model = load_model(guidable)
    found = sample(guidable, tmp_path / "a.npz", "--intermediate", "--batch", 4)
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays.files) == {"images", "labels", "output_2", "output_3"}
    coarse, middle, last = by_hand(model, model.generator, found.labels, 0)
    assert set(found.outputs) == {2, 3}
    assert_close_bytes(found.outputs[3], to_bytes(adjoint(coarse, 2, 2)))
    assert_close_bytes(found.outputs[2], to_bytes(adjoint(middle, 2, 1)))
    assert_close_bytes(found.images, to_bytes(last))
    assert sample(guidable, tmp_path / "b.npz").outputs == {}


# --- image files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """A set of random images with intermediate outputs, of classes 0, 1, 2."""
    draw = np.random.default_rng(0)
    images, *outputs = draw.integers(0, 256, (3, 7, 16, 16, 3), dtype=np.uint8)
    record = {"classes": 3}
    save_samples(tmp_path / "a.npz", images, np.arange(7) % 3, record, dict(zip((2, 3), outputs, strict=True)))
    return load_samples(tmp_path / "a.npz")


def pictures(folder):
    """Pixels of every image file below a folder, by its path."""
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.*g"))}


def assert_pictures(found, expected):
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_png_files_are_the_images(samples, tmp_path, capsys):
    assert tiny.call("export", tmp_path / "a.npz", "--output", tmp_path / "files") == 0
    sets = {"": samples.images, "level_2/": samples.outputs[2], "level_3/": samples.outputs[3]}
    expected = {f"{place}{number:05d}.png": images[number] for place, images in sets.items() for number in range(7)}
    assert_pictures(pictures(tmp_path / "files"), expected)
    assert capsys.readouterr().out == f"{tmp_path / 'files'}: 21 files\n"


def test_classes_have_folders(samples, tmp_path):
    assert tiny.call("export", tmp_path / "a.npz", "--layout", "classes", "--output", tmp_path / "files") == 0
    found = pictures(tmp_path / "files")
    expected = {f"{number % 3}/{number:05d}.png": image for number, image in enumerate(samples.images)}
    expected |= {
        f"level_{level}/{number % 3}/{number:05d}.png": image
        for level, images in samples.outputs.items()
        for number, image in enumerate(images)
    }
    assert_pictures(found, expected)


def test_a_set_without_classes_has_one_folder(samples, tmp_path):
    save_samples(tmp_path / "a.npz", samples.images, np.zeros(7, np.int64), {"classes": 0})
    assert tiny.call("export", tmp_path / "a.npz", "--layout", "classes", "--output", tmp_path / "files") == 0
    assert_pictures(pictures(tmp_path / "files"), {f"{number:05d}.png": samples.images[number] for number in range(7)})


def test_jpg_files_resemble_the_images(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, None, :, None], (2, 16, 16, 3))
    save_samples(tmp_path / "a.npz", ramp, np.zeros(2, np.int64), {"classes": 0})
    assert tiny.call("export", tmp_path / "a.npz", "--format", "jpg", "--output", tmp_path / "files") == 0
    found = pictures(tmp_path / "files")
    assert set(found) == {"00000.jpg", "00001.jpg"}
    assert Image.open(tmp_path / "files/00000.jpg").format == "JPEG"
    assert np.abs(found["00000.jpg"].astype(int) - ramp[0]).max() <= 8


def test_a_folder_is_replaced_by_a_whole_one_only(samples, tmp_path, monkeypatch, capsys):
    folder, command = tmp_path / "files", ("export", tmp_path / "a.npz", "--output", tmp_path / "files")
    folder.mkdir()
    (folder / "thesis.txt").write_text("not ours")
    assert tiny.call(*command) == 2
    assert "contains other files (thesis.txt), not a set of exported images" in capsys.readouterr().err
    assert tiny.snapshot(folder) == {(folder / "thesis.txt").relative_to(folder): b"not ours"}
    (folder / "thesis.txt").unlink()
    assert tiny.call(*command) == 0
    before = tiny.snapshot(folder)
    capsys.readouterr()
    write, written = sets._write, []

    def full_disk(image, path):
        if len(written) == 3:
            raise OSError(28, os.strerror(28))
        written.append(path)
        write(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(sets, "_write", full_disk)
        assert tiny.call(*command) == 2
    assert capsys.readouterr().err == f"error: {folder}: cannot be written: No space left on device\n"
    assert tiny.snapshot(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.json", "files"}
    assert tiny.call(*command) == 0
    assert len(pictures(folder)) == 21


# --- the command -----------------------------------------------------------------------------------------------------


def test_without_a_configuration_64_images_are_drawn(weights, tmp_path):
    assert tiny.call("sample", weights, "--threads", 1, "--output", tmp_path / "a.npz") == 0
    found = load_samples(tmp_path / "a.npz")
    assert found.images.shape == (64, 16, 16, 3)
    assert (found.record["seed"], found.record["weights"], found.record["posterior"]) == (0, "ema", "scalar")


def test_options_win_over_the_configuration(weights, tmp_path):
    config = tmp_path / "sampling.json"
    config.write_text(json.dumps({"count": 5, "seed": 8, "posterior": "exact", "threads": 1, "labels": [4]}))
    command = ("sample", weights, "--config", config, "--output")
    assert tiny.call(*command, tmp_path / "a.npz") == 0
    options = ("--count", 3, "--seed", 9, "--weights", "raw", "--labels", "1,2")
    assert tiny.call(*command, tmp_path / "b.npz", *options) == 0
    plain, changed = (load_samples(tmp_path / f"{name}.npz") for name in "ab")
    assert [list(found.labels) for found in (plain, changed)] == [[4] * 5, [1, 2, 1]]
    seen = [tuple(found.record[key] for key in ("seed", "posterior", "weights")) for found in (plain, changed)]
    assert seen == [(8, "exact", "ema"), (9, "exact", "raw")]


# --- mistakes --------------------------------------------------------------------------------------------------------


def noise_file(**changes):
    """Writes noise.npz for 6 images; a value of ... leaves an array out."""

    def write(folder):
        arrays = noise_of(0, 6) | changes
        np.savez(folder / "noise.npz", **{name: values for name, values in arrays.items() if values is not ...})

    return write


def damaged(path, write):
    """Writes a compressed file and breaks the data in it."""

    def damage(folder):
        write(folder)
        with np.load(folder / path) as arrays:
            np.savez_compressed(folder / path, **arrays)
        content = bytearray((folder / path).read_bytes())
        content[64:128] = b"\xff" * 64
        (folder / path).write_bytes(content)

    return damage


def sample_set(folder):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    save_samples(folder / "a.npz", images, np.zeros(6, np.int64), {"classes": 0})


NOISE = "sample trained.safetensors --count 6 --threads 1 --output out.npz --chain chain.npz --noise noise.npz"
SAMPLE = "sample trained.safetensors --threads 1 --output out.npz"
EXPORT = "export a.npz --output files"
MISTAKES = {
    "no noise file": (lambda f: None, NOISE, "noise.npz: noise file not found"),
    "noise that is no npz": (lambda f: (f / "noise.npz").write_text("rubbish"), NOISE, "not a readable noise file"),
    "an empty noise file": (lambda f: (f / "noise.npz").touch(), NOISE, "not a readable noise file"),
    "a single array": (
        lambda f: np.save((f / "noise.npz").open("wb"), np.zeros((6, 3, 16, 16))),
        NOISE,
        "not a readable noise file",
    ),
    "a damaged noise file": (damaged("noise.npz", noise_file()), NOISE, "not a readable noise file"),
    "noise without its base": (
        noise_file(base=...),
        NOISE,
        "array base not found; this model needs base, eps_3, eps_2, eps_1",
    ),
    "noise without a level": (noise_file(eps_2=...), NOISE, "array eps_2 not found; this model needs base, eps_3"),
    "noise of another side": (
        noise_file(eps_1=np.zeros((6, 3, 4, 4))),
        NOISE,
        "eps_1 is float64 (6, 3, 4, 4); expected floating-point (6, 3, 8, 8)",
    ),
    "noise of fewer images at a level": (
        noise_file(eps_3=np.zeros((5, 3, 2, 2))),
        NOISE,
        "eps_3 is float64 (5, 3, 2, 2); expected floating-point (6, 3, 2, 2)",
    ),
    "noise of integers": (
        noise_file(base=np.zeros((6, 3, 16, 16), np.int64)),
        NOISE,
        "base is int64 (6, 3, 16, 16); expected floating-point (n, 3, 16, 16)",
    ),
    "a number for noise": (noise_file(base=np.float32(1)), NOISE, "noise.npz"),
    "noise of too few images": (
        noise_file(),
        NOISE.replace("--count 6", "--count 7"),
        "noise.npz: has the noise of 6 images; expected at least 7",
    ),
    "a label out of range": (lambda f: None, f"{SAMPLE} --labels 3,10", "labels: must be in 0..9, got 10"),
    "a label that is none": (lambda f: None, f"{SAMPLE} --labels 3,x", "labels: no class is called 'x'"),
    "no labels for a model that needs them": (
        lambda f: None,
        f"{SAMPLE} --labels none",
        "labels: none, but this model was not trained with label dropout",
    ),
    "guidance without label dropout": (
        lambda f: None,
        f"{SAMPLE} --guidance 2",
        "guidance: this model was not trained with label dropout; expected 1 (none)",
    ),
    "guidance of 0": (lambda f: None, f"{SAMPLE} --guidance 0", "sampling: guidance: input should be greater than 0"),
    "no images": (lambda f: None, f"{SAMPLE} --count 0", "sampling: count: input should be greater than 0, got 0"),
    "no sample set": (lambda f: None, EXPORT, "a.npz: sample set not found; `udpm sample` makes it"),
    "a sample set that is an array": (
        lambda f: np.save((f / "a.npz").open("wb"), np.zeros(3)),
        EXPORT,
        "a.npz is a single array (.npy)",
    ),
    "a damaged sample set": (damaged("a.npz", sample_set), EXPORT, "a.json: does not describe a.npz"),
    "images into the folder one is in": (
        sample_set,
        "export a.npz --output .",
        ".: is or contains the working directory",
    ),
    "images over everything": (
        sample_set,
        "export a.npz --output ../..",
        "../..: is or contains the working directory",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(weights, tmp_path, monkeypatch, capsys, case):
    prepare, command, expected = MISTAKES[case]
    folder = tmp_path / "deep/deeper"
    folder.mkdir(parents=True)
    (folder / "trained.safetensors").symlink_to(weights)
    prepare(folder)
    before = tiny.snapshot(tmp_path)
    monkeypatch.chdir(folder)
    assert tiny.call(*command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert tiny.snapshot(tmp_path) == before


def test_a_bfloat16_network_draws_nearly_the_same_images(weights, tmp_path):
    drawn = {}
    for precision in ("float32", "bfloat16"):
        path = tmp_path / f"{precision}.npz"
        drawn[precision] = sample(weights, path, "--precision", precision).images.astype(float)
        assert json.loads(path.with_suffix(".json").read_text())["precision"] == precision
    difference = np.abs(drawn["float32"] - drawn["bfloat16"])
    assert 0 < difference.mean() < 3
