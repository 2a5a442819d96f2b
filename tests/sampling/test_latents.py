"""The latent-space experiments: mixing, what each image is made from, files, figures, mistakes."""

import csv
import json
import math
import re

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA

from udpm.cli import main
from udpm.config import Experiment, Latents, ModelConfig, Sampling, load_dataset, to_json
from udpm.config.load import run_config, validate
from udpm.config.validation import read_yaml
from udpm.core import devices
from udpm.core.devices import to_bytes
from udpm.core.errors import UserError
from udpm.data.npz import load_arrays, save_arrays
from udpm.diffusion.process import Latent, interpolate, join, mix
from udpm.networks.unet import build_generator
from udpm.networks.weights import load_model, save_weights
from udpm.report.figures.latents import plot_latents
from udpm.report.figures.style import LARGEST
from udpm.sampling.latents import EXPERIMENTS, explore_latents, pca, perturb, principal_components, swap
from udpm.sampling.latents import interpolate_four as interpolated
from udpm.sampling.sampler import Sampler

SIDE, LEVELS = 16, 3


@pytest.fixture(scope="module")
def sampler(trained):
    """One image per call, so that equal latents give equal bytes independently of other images."""
    devices.configure("cpu", 1)
    return Sampler(load_model(trained / "weights.safetensors", "raw"), batch=1)


def save_unconditional(path, **process):
    """Untrained weights of a model without classes."""
    run = tiny.run_config(generator__class_conditional=False, **process)
    config = ModelConfig(side=run.dataset.side, classes=0, process=run.process, generator=run.generator)
    torch.manual_seed(0)
    save_weights(path, config, {"ema": build_generator(config).state_dict()}, {"iteration": None})
    return path


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return save_unconditional(tmp_path_factory.mktemp("unconditional") / "weights.safetensors")


def latent(seed, count=1, side=8, levels=2):
    generator = torch.Generator().manual_seed(seed)
    sides = [side, *(side >> level for level in range(levels, 0, -1))]
    base, *noises = [torch.randn(count, 3, size, size, generator=generator).double() for size in sides]
    return Latent(base, tuple(noises))


def plain(sampler, label, seed):
    """The first image of a seed, as sampling draws it."""
    return sampler.sample(1, labels=label, seed=seed)[0]


# --- mixing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(keep=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_mixing_keeps_the_variance(keep, seed):
    """For orthonormal a and b the mix has norm 1 and keeps g of a, which is the closed form of unit variance."""
    pair = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(seed)).double()).Q
    mixed = mix(pair[:, 0], pair[:, 1], keep)
    assert mixed.norm().item() == pytest.approx(1)
    assert (mixed @ pair[:, 0]).item() == pytest.approx(keep, abs=1e-12)
    assert (mixed @ pair[:, 1]).item() == pytest.approx(math.sqrt(1 - keep**2), abs=1e-12)


def test_the_ends_of_mixing_are_exact():
    first, second = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix(first, second, 1), first)
    assert torch.equal(mix(first, second, 0), second)


@settings(max_examples=25, deadline=None)
@given(across=st.floats(0, 1), down=st.floats(0, 1))
def test_four_way_interpolation_keeps_the_variance_of_every_map(across, down):
    corners = [latent(seed, count=2000) for seed in range(4)]
    mixed = interpolate(corners, across, down)
    for values in (mixed.base, *mixed.noises):
        assert values.var().item() == pytest.approx(1, abs=6 * math.sqrt(2 / values.numel()))
    first, second, third, fourth = (corner.noise(1) for corner in corners)
    top, bottom = (across * a + math.sqrt(1 - across**2) * b for a, b in ((first, second), (third, fourth)))
    torch.testing.assert_close(mixed.noise(1), down * top + math.sqrt(1 - down**2) * bottom)


def test_a_level_is_replaced_alone():
    first, second = latent(0, levels=3), latent(1, levels=3)
    for level in (1, 2, 3):
        assert first.noise(level).shape[-1] == 8 >> level
        changed = first.replaced(level, second.noise(level))
        assert torch.equal(changed.base, first.base)
        for other in (1, 2, 3):
            assert torch.equal(changed.noise(other), (second if other == level else first).noise(other))


def test_join():
    both = join([latent(0), latent(1)])
    assert torch.equal(both.noise(2), torch.cat([latent(0).noise(2), latent(1).noise(2)]))
    assert both.base.shape == (2, 3, 8, 8)


# --- experiments -----------------------------------------------------------------------------------------------------


def test_a_latent_is_that_of_the_first_sample(sampler):
    found = to_bytes(sampler.decode([sampler.latent(5), sampler.latent(6)], [3, 4]))
    assert (found == [plain(sampler, 3, 5), plain(sampler, 4, 6)]).all()


def test_perturbations(sampler):
    found = perturb(sampler, Latents(labels=[3, 5], seeds=[7, 1, 2, 3], strengths=4))
    images, strengths = found["images"], found["strengths"]
    assert images.shape == (LEVELS, 2, 4, SIDE, SIDE, 3)
    assert found["levels"].tolist() == [3, 2, 1]
    assert found["labels"].tolist() == [3, 5]
    assert found["seeds"].tolist() == [7, 7]
    np.testing.assert_allclose(strengths, [np.linspace(1, last, 4) for last in (0.8, 0.1, 0)])
    for row, label in enumerate((3, 5)):
        assert (images[:, row, 0] == plain(sampler, label, 7)).all()
    assert (images[:, :, -1] != images[:, :, 0]).any()


def test_only_the_named_map_is_perturbed(sampler, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Sampler, "decode", lambda self, latents, labels: seen.extend(latents) or torch.zeros(len(latents), 3, 16, 16)
    )
    perturb(sampler, Latents(labels=[0], strengths=3, strongest=[0, 0, 0]))
    original, by_level = sampler.latent(0), {3: seen[:3], 2: seen[3:6], 1: seen[6:]}
    for level, changed in by_level.items():
        for strength, found in zip((1, 0.5, 0), changed, strict=True):
            assert torch.equal(found.base, original.base)
            for other in (1, 2, 3):
                same = torch.equal(found.noise(other), original.noise(other))
                assert same is (other != level or strength == 1)
        old, half, new = (found.noise(level) for found in changed)
        torch.testing.assert_close(half, mix(old, new, 0.5))
    fresh = torch.cat([changed[-1].noise(level).flatten() for level, changed in by_level.items()])
    assert fresh.std().item() == pytest.approx(1, abs=0.2)


def test_swaps(sampler):
    found = swap(sampler, Latents(labels=[2, 8], seeds=[4, 9, 0, 1]))
    images = found["images"]
    assert images.shape == (2, LEVELS + 2, SIDE, SIDE, 3)
    assert found["seeds"].tolist() == [[4, 9], [4, 9]]
    first, second = sampler.latent(4), sampler.latent(9)
    for row, label in enumerate((2, 8)):
        assert (images[row, 0] == plain(sampler, label, 4)).all()
        assert (images[row, -1] == plain(sampler, label, 9)).all()
        for column, level in enumerate(found["levels"], start=1):
            expected = sampler.decode([second.replaced(level, first.noise(level))], [label])
            assert (images[row, column] == to_bytes(expected)[0]).all()


def test_the_corners_of_interpolation_are_the_four_latents(sampler):
    seeds = [4, 5, 6, 7]
    found = interpolated(sampler, Latents(labels=[6, 1], seeds=seeds, grid=3))
    images = found["images"]
    assert images.shape == (3, 3, SIDE, SIDE, 3)
    assert found["labels"].tolist() == [6]
    assert found["across"].tolist() == found["down"].tolist() == [0, 0.5, 1]
    for seed, row, column in zip(seeds, (-1, -1, 0, 0), (-1, 0, -1, 0), strict=True):
        assert (images[row, column] == plain(sampler, 6, seed)).all()
    middle = interpolate([sampler.latent(seed) for seed in seeds], 0.5, 0.5)
    assert (images[1, 1] == to_bytes(sampler.decode([middle], [6]))[0]).all()


@pytest.mark.parametrize("keep", [0.0, 0.8])
def test_principal_components_of_a_level(sampler, keep):
    found = pca(sampler, Latents(labels=[3], pca_images=12, pca_components=4, pca_keep=keep))
    assert found["images"].shape == (LEVELS, 12, SIDE, SIDE, 3)
    assert found["components"].shape == (LEVELS, 4, SIDE, SIDE, 3)
    assert found["mean"].shape == (LEVELS, SIDE, SIDE, 3)
    assert found["mean"].dtype == found["components"].dtype == np.float32
    for panel in range(LEVELS):
        flat = found["components"][panel].reshape(4, -1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-5)
        shares = found["explained"][panel]
        assert (np.diff(shares) <= 0).all()
        assert 0 < shares.sum() <= 1
        drawn = found["images"][panel] / 127.5 - 1
        np.testing.assert_allclose(found["mean"][panel], drawn.mean(0), atol=1 / 127.5)
        assert len(np.unique(found["images"][panel].reshape(12, -1), axis=0)) > 1


def test_principal_components_are_scikit_learns():
    images = np.random.default_rng(0).normal(size=(20, 4, 4, 3)) * np.linspace(1, 3, 3)
    mean, components, shares = principal_components(images, 5)
    expected = PCA(5, svd_solver="full").fit(images.reshape(20, -1))
    np.testing.assert_allclose(mean.ravel(), expected.mean_, atol=1e-6)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, rtol=1e-6)
    flat = components.reshape(5, -1)
    np.testing.assert_allclose(np.abs((flat * expected.components_).sum(1)), 1, atol=1e-5)
    assert (flat[np.arange(5), np.abs(flat).argmax(1)] > 0).all()


def test_principal_components_of_equal_images():
    mean, components, shares = principal_components(np.ones((5, 2, 2, 3)), 3)
    assert (mean == 1).all()
    assert shares.tolist() == [0, 0, 0]
    assert np.isfinite(components).all()


def test_without_classes_rows_are_seeds(unconditional):
    model = Sampler(load_model(unconditional), batch=1)
    config = Latents(seeds=[5, 6, 7, 8], strengths=2, pca_images=4, pca_components=2)
    perturbed, swapped = perturb(model, config), swap(model, config)
    assert perturbed["images"].shape[:3] == (LEVELS, 4, 2)
    assert perturbed["seeds"].tolist() == [5, 6, 7, 8]
    assert swapped["seeds"].tolist() == [[5, 6], [7, 8]]
    own = [model.sample(1, seed=seed)[0] for seed in (5, 6, 7, 8)]
    assert (perturbed["images"][:, :, 0] == own).all()
    assert (swapped["images"][:, [0, -1]].reshape(4, SIDE, SIDE, 3) == own).all()
    assert pca(model, config)["explained"].shape == (LEVELS, 2)


def test_labels_by_default(sampler):
    assert perturb(sampler, Latents(strengths=1))["labels"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("levels", "expected"), [(1, [0.0]), (2, [0.8, 0.0]), (3, [0.8, 0.1, 0.0])])
def test_the_strongest_by_default(tmp_path, levels, expected):
    process = {"process__levels": levels, "process__alphas": [0.5] * levels, "process__sigmas": [0.2] * levels}
    path = save_unconditional(tmp_path / "weights.safetensors", **process, **tiny.ANY_LEVELS)
    found = perturb(Sampler(load_model(path)), Latents(strengths=2))
    assert found["strengths"][:, -1].tolist() == expected


# --- files and figures -----------------------------------------------------------------------------------------------

SMALL = Latents(labels=[3, 5], strengths=3, grid=3, pca_images=10, pca_components=3)


@pytest.fixture(scope="module", params=EXPERIMENTS)
def explored(request, trained, tmp_path_factory):
    """(kind, file) of each experiment."""
    path = tmp_path_factory.mktemp("explored") / f"{request.param}.npz"
    explore_latents(trained / "weights.safetensors", request.param, SMALL, Sampling(threads=1), path)
    return request.param, path


def test_the_record(explored):
    kind, path = explored
    arrays, record = load_arrays(path, "experiment", "udpm latents")
    assert arrays["images"].dtype == np.uint8
    assert (record["format"], record["kind"], record["classes"]) == ("udpm-latents/1", kind, 10)
    assert (record["experiment"], record["run_seed"], record["iteration"]) == ("digits", 0, 12)
    assert (record["weights"], record["posterior"], record["guidance"]) == ("ema", "scalar", 1)
    assert record["nfe"] == LEVELS
    assert len(record["weights_sha256"]) == 64
    assert record["latents"] == json.loads(to_json(SMALL))
    assert record["provenance"]["versions"]["torch"]


def test_same_seeds_same_bytes(explored, trained, tmp_path):
    kind, path = explored
    explore_latents(trained / "weights.safetensors", kind, SMALL, Sampling(threads=1), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_the_batch_does_not_matter(explored, trained, tmp_path):
    kind, path = explored
    sampling = Sampling(threads=1, batch=2)
    explore_latents(trained / "weights.safetensors", kind, SMALL, sampling, tmp_path / "again.npz")
    images, again = (load_arrays(file, "", "")[0]["images"].astype(int) for file in (path, tmp_path / "again.npz"))
    assert np.abs(images - again).max() <= 1


def test_figures(explored, tmp_path):
    kind, path = explored
    for name in ("a", "b"):
        plot_latents(path, tmp_path / name)
    for suffix in (".svg", ".pdf", ".png", ".csv"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) <= LARGEST
        assert np.asarray(image.convert("L")).std() > 5
    with open(tmp_path / "a.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    columns, count = {
        "perturb": ({"level", "row", "column", "label", "seed", "strength"}, LEVELS * 2 * 3),
        "swap": ({"row", "column", "label", "image", "seed_a", "seed_b"}, 2 * (LEVELS + 2)),
        "interpolate": ({"row", "column", "label", "across", "down"}, 9),
        "pca": ({"level", "component", "label", "seed", "explained"}, LEVELS * 4),
    }[kind]
    assert set(lines[0]) == columns
    assert len(lines) == count


@pytest.mark.parametrize("explored", ["interpolate"], indirect=True)
def test_the_first_latent_is_the_upper_left_corner(explored, tmp_path):
    path = explored[1]
    plot_latents(path, tmp_path / "a")
    words = re.findall(r">(seed \d+|[δη] = [\d.]+)</text>", (tmp_path / "a.svg").read_text())
    seeds = load_arrays(path, "", "")[0]["seeds"]
    assert [word for word in words if word.startswith("seed")] == [f"seed {seed}" for seed in seeds]
    shares = ["1", "0.5", "0"]
    assert [word for word in words if not word.startswith("seed")] == [
        f"{x} = {share}" for x in "δη" for share in shares
    ]


def crowded(kind):
    """Arrays and record of an experiment with far more rows and columns than names have room for."""

    def image(*shape):
        return np.random.default_rng(0).integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)

    arrays = {
        "perturb": {"images": image(6, 30, 40), "levels": np.arange(6, 0, -1), "strengths": np.full((6, 40), 1 / 3)},
        "swap": {"images": image(30, 9), "levels": np.arange(7, 0, -1)},
        "interpolate": {"images": image(40, 40), "across": np.linspace(0, 1, 40), "down": np.linspace(0, 1, 40)},
        "pca": {
            "images": image(6, 2),
            "mean": np.zeros((6, 8, 8, 3), np.float32),
            "components": np.ones((6, 40, 8, 8, 3), np.float32),
            "explained": np.full((6, 40), 1 / 40),
            "levels": np.arange(6, 0, -1),
        },
    }[kind]
    seeds = {"perturb": [0] * 30, "swap": [[2**31, 2**31 + 1]] * 30, "interpolate": [2**31] * 4, "pca": [0]}[kind]
    origin = {"experiment": None, "run_seed": None, "iteration": None, "weights": "ema", "classes": 0}
    record = {"format": "udpm-latents/1", "kind": kind, **origin}
    return {**arrays, "labels": np.zeros(30, int), "seeds": np.array(seeds)}, record


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_figures_never_outgrow_the_report(kind, tmp_path):
    save_arrays(tmp_path / "a.npz", *crowded(kind))
    plot_latents(tmp_path / "a.npz", tmp_path / "figure")
    with Image.open(tmp_path / "figure.png") as image:
        assert max(image.size) <= LARGEST


def test_figures_of_nothing(tmp_path):
    save_arrays(tmp_path / "other.npz", {"images": np.zeros(1)}, {"format": "udpm-reference/1"})
    np.save(tmp_path / "array.npy", np.zeros(1))
    (tmp_path / "rubbish.npz").write_bytes(b"rubbish")
    for name, expected in {
        "missing.npz": "not found; `udpm latents` makes it",
        "rubbish.npz": "not a readable latent-space experiment",
        "array.npy": "not a readable latent-space experiment",
        "other.npz": "format is 'udpm-reference/1', expected 'udpm-latents/1'",
    }.items():
        with pytest.raises(UserError, match=expected) as error:
            plot_latents(tmp_path / name, tmp_path / "figure")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("figure*"))


# --- the command -----------------------------------------------------------------------------------------------------


def udpm(*arguments):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


def test_options_replace_the_section(trained, tmp_path):
    (tmp_path / "latents.json").write_text(to_json(SMALL))
    weights, output = trained / "weights.safetensors", tmp_path / "out.npz"
    given = ("--config", tmp_path / "latents.json", "--output", output, "--threads", 1)
    options = ("--labels", "7", "--strengths", 2, "--strongest", "0,0.5,1", "--seeds", "4,5,6,7", "--weights", "raw")
    assert udpm("latents", "perturb", weights, *given, *options, "--posterior", "exact") == 0
    arrays, record = load_arrays(output, "", "")
    assert arrays["strengths"].tolist() == [[1, 1], [1, 0.5], [1, 0]]
    assert arrays["labels"].tolist() == [7]
    assert (record["weights"], record["posterior"]) == ("raw", "exact")
    assert record["latents"] == json.loads(to_json(SMALL)) | {
        "labels": ["7"],
        "strengths": 2,
        "strongest": [0, 0.5, 1],
        "seeds": [4, 5, 6, 7],
    }


def test_the_section_is_what_resolve_writes(trained, tmp_path, capsys):
    section = tmp_path / "latents.json"
    assert udpm("resolve", "digits", "--part", "latents", "--config", tiny.ROOT / "config", "--output", section) == 0
    weights, output = trained / "weights.safetensors", tmp_path / "swap.npz"
    assert udpm("latents", "swap", weights, "--config", section, "--output", output, "--threads", 1) == 0
    assert udpm("figure", "latents", output, "--output", tmp_path / "swap") == 0
    assert (tmp_path / "swap.svg").exists()
    capsys.readouterr()
    assert udpm("info", output) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "swap"


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_every_kind_has_help_with_an_example(kind, capsys):
    assert udpm("latents", kind, "--help") == 0
    assert f"Example: udpm latents {kind}" in capsys.readouterr().out


MISTAKES = {
    "labels out of range": ("perturb", "--labels 3,10", "labels: must be in 0..9, got 10"),
    "negative labels": ("swap", "--labels=-1", "labels: no class is called '-1'"),
    "labels without classes": ("swap plain", "--labels 3", "labels: this model is unconditional; leave them out"),
    "labels that are none": ("pca", "--labels a", "labels: no class is called 'a'"),
    "too few seeds": ("interpolate", "--seeds 0,1,2", "options: seeds: list should have at least 4 items"),
    "strengths of other levels": ("perturb", "--strongest 0,1", "strongest: has 2 values, but the model has 3 levels"),
    "a share above 1": ("perturb", "--strongest 0,1,2", "options: strongest[2]: input should be less than or equal"),
    "too many components": ("pca", "--images 8", "pca_components: 8 need at least 9 images, but pca_images is 8"),
    "nothing left to differ": ("pca", "--keep 1", "options: pca_keep: input should be less than 1"),
    "a grid of one": ("interpolate", "--grid 1", "Invalid value for '--grid'"),
    "an option of another kind": ("swap", "--grid 3", "No such option"),
    "missing weights": ("perturb missing", "", "missing.safetensors: no such file"),
    "weights that are none": ("perturb rubbish", "", "not a readable safetensors file"),
    "a missing section": ("perturb", "--config nowhere.json", "nowhere.json: resolved configuration not found"),
    "guidance without label dropout": (
        "swap",
        "--guidance 2",
        "guidance: this model was not trained with label dropout",
    ),
    "weights that were not kept": ("swap", "--iteration 5", "no weights of iteration 5; none are kept"),
    "averaged weights only": ("perturb plain", "--weights raw", "no raw weights, only ema"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, trained, unconditional, tmp_path, monkeypatch, capsys):
    command, options, expected = MISTAKES[case]
    kind, _, name = command.partition(" ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubbish.safetensors").write_bytes(b"rubbish")
    known = {"": trained / "weights.safetensors", "plain": unconditional}
    weights = known.get(name, tmp_path / f"{name}.safetensors")
    before = tiny.snapshot(tmp_path)
    code = udpm("latents", kind, weights, "--output", "folder/out.npz", "--threads", 1, *options.split())
    errors = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(errors) == 1
    assert expected in errors[0]
    assert tiny.snapshot(tmp_path) == before
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"latents": {"pca_images": 5}}, "latents.pca_components: 8 need at least 9 images, but pca_images is 5"),
        ({"latents": {"strongest": [0, 1]}}, "latents.strongest: has 2 values, but process.levels is 3"),
        ({"latents": {"labels": [1]}}, "latents.labels: the generator is not class_conditional"),
    ],
)
def test_mistakes_in_an_experiment(values, expected):
    experiment = read_yaml(tiny.ROOT / "config/experiments/digits-paper.yaml")
    experiment["generator"]["class_conditional"] = "labels" not in values["latents"]
    with pytest.raises(UserError, match=expected):
        validate(Experiment, experiment | values, "x.yaml")


@pytest.mark.parametrize("section", ["latents", "sampling"])
def test_labels_that_the_data_set_lacks_are_found_before_training(section):
    experiment = read_yaml(tiny.ROOT / "config/experiments/digits-paper.yaml") | {section: {"labels": [3, 10]}}
    dataset = load_dataset("digits", tiny.ROOT / "config")
    with pytest.raises(UserError, match=rf"x.yaml: {section}.labels: must be in 0..9, the classes of data set digits"):
        run_config(validate(Experiment, experiment, "x.yaml"), "x", 0, dataset, "x.yaml")
