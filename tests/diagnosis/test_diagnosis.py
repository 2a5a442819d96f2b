"""Diagnoses: what each level, band and noise map is found to lose, the discriminator, and the sentences about it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

from udpm.config import Scoring, to_json
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.core.files import INCEPTION
from udpm.data.store import open_store
from udpm.diagnosis.chain import _bands, noise_shares, variance_ratio
from udpm.diagnosis.discriminator import Players, diagnose_discriminator
from udpm.diagnosis.record import findings, read_diagnosis
from udpm.diffusion.process import Latent, downsample, sample, sample_from, seeded
from udpm.diffusion.schedule import Schedule
from udpm.metrics.extractor_networks import train_classifier
from udpm.networks.weights import load_model
from udpm.report.figures.diagnosis import diagnosis_table
from udpm.report.figures.style import LARGEST
from udpm.sampling.sampler import Sampler, Start
from udpm.training.state import State


@pytest.fixture(scope="module")
def results(digits, trained, tmp_path_factory):
    """A folder of results with the tiny run, its extractor and its reference."""
    folder = tmp_path_factory.mktemp("results")
    for source, target in ((digits / "dataset", "datasets/digits"), (trained, "runs/digits/seed0")):
        (folder / target).parent.mkdir(parents=True)
        shutil.copytree(source, folder / target)
    (folder / "extractors").mkdir()
    # The real extractor takes a minute to train.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udpm.metrics.extractor_networks.EPOCHS", 1)
        train_classifier(open_store(folder / "datasets/digits"), 0, folder / "extractors/digits.pt")
    scoring = folder / "configs/digits/scoring.json"
    scoring.parent.mkdir(parents=True)
    scoring.write_text(to_json(Scoring(extractor="digits", device="cpu", threads=1)))
    options = ("--extractor", folder / "extractors/digits.pt", "--config", scoring)
    output = folder / "references/digits.npz"
    assert not tiny.call("reference", folder / "datasets/digits", *options, "--output", output)
    return folder


@pytest.fixture(scope="module")
def diagnosis(results):
    """The diagnosis of the tiny run, by its folder alone."""
    run = results / "runs/digits/seed0"
    assert not tiny.call("diagnose", run, "--count", 60, "--draws", 2, "--threads", 1, "--device", "cpu")
    return results / "diagnoses/digits/seed0.json"


def test_the_chain_from_a_state_is_the_rest_of_the_whole_chain(trained):
    model = load_model(trained / "weights.safetensors")
    schedule = Schedule.from_config(model.config.process)
    base, noises, _ = seeded(schedule, 16, 3, range(4))
    labels = torch.arange(4)
    whole = sample(schedule, model.generator, base, noises, labels)
    for level in (1, 2, 3):
        step = whole[3 - level]
        assert step.level == level
        rest = sample_from(schedule, model.generator, step.state, noises[4 - level :], labels)
        assert [part.level for part in rest] == list(range(level, 0, -1))
        assert torch.equal(rest[-1].output, whole[-1].output)


def test_chains_start_from_the_marginal_of_real_images(levels, trained):
    sampler = Sampler(load_model(trained / "weights.safetensors"), batch=4)
    images, labels = np.asarray(levels.store.images[:6]), levels.store.labels[:6]
    steps = [step for batch in sampler.chains(labels, 7, start=Start(2, images)) for step in batch if step.level == 2]
    states = torch.cat([step.state for step in steps])
    noise = seeded(sampler.schedule, 16, 7, range(6)).noise(2)
    real = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    means = sampler.schedule.alpha_bar(2) * downsample(real, sampler.schedule.scale, 2)
    torch.testing.assert_close(states, means + sampler.schedule.sigma_tilde(2) * noise)


def test_the_batch_does_not_matter(levels, trained):
    images, labels = np.asarray(levels.store.images[:7]), levels.store.labels[:7]
    found = []
    for batch in (3, 7):
        sampler = Sampler(load_model(trained / "weights.safetensors"), batch=batch)
        found.append(sampler.images(labels, 1, start=Start(3, images))[1].astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1


def test_variance_is_within_classes():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    deviations = generator.normal(size=(120, 4, 4, 3))
    means = 50 * generator.normal(size=(3, 4, 4, 3))[labels]
    real = means + deviations
    assert variance_ratio(real + 7, real, labels) == pytest.approx(1)
    assert variance_ratio(means + deviations / 2, real, labels) == pytest.approx(0.25, rel=1e-4)
    # Class means that differ are no variance within classes.
    assert variance_ratio(-means + deviations, real, labels) == pytest.approx(1, rel=1e-4)


def test_one_image_of_each_class_has_no_variance(results, trained, tmp_path, monkeypatch):
    """The numbers are missing, and the record, the table, the figure and the findings say nothing about them."""
    real = np.random.default_rng(0).normal(size=(5, 4, 4, 3))
    assert variance_ratio(real, real, np.arange(5)) is None
    monkeypatch.setattr("udpm.diagnosis.chain._deviations", lambda images, labels: np.zeros(images.shape, np.float32))
    output, count = tmp_path / "d.json", ("--count", 5, "--draws", 1, "--threads", 1)
    run = results / "runs/digits/seed0"
    assert not tiny.call("diagnose", run, *count, "--output", output, "--table", tmp_path / "t")
    found = read_diagnosis(output)
    assert found["chain"]["levels"][0]["variance"] == [None]
    assert not [text for text in findings(found) if text.startswith("Outputs vary")]
    assert not tiny.call("figure", "diagnosis", output, "--output", tmp_path / "f")


def test_noise_of_another_kind_is_recorded(results, tmp_path):
    run, few = results / "runs/digits/seed0", ("--count", 5, "--draws", 1, "--threads", 1)
    found = []
    for kind in ("host", "counter"):
        assert not tiny.call("diagnose", run, *few, "--noise-kind", kind, "--output", tmp_path / f"{kind}.json")
        found.append(json.loads((tmp_path / f"{kind}.json").read_text()))
    assert [record["subject"].get("noise_kind") for record in found] == [None, "counter"]
    assert found[0]["chain"]["maps"] != found[1]["chain"]["maps"]


def test_images_that_do_not_vary_are_determined_by_no_map():
    sampler = Additive(eps_3=0.0)
    assert {row["share"][0] for row in noise_shares(sampler, np.zeros(4, int), range(1))} == {None}


def test_bands_are_octaves():
    """Averaging pairs of pixels in both directions leaves the coarse band, and takes all of the highest frequency."""
    generator = np.random.default_rng(0)
    real = generator.normal(size=(64, 16, 16, 3))
    labels = np.zeros(64, int)
    assert [band["below"] for band in _bands(real, [real], labels, 3)] == [0.0625, 0.125, 0.25, 0.5]
    for factor in (1, 0.5):
        assert [band["variance"] for band in _bands(real, [factor * real], labels, 3)] == [
            [pytest.approx(factor**2, rel=1e-4)]
        ] * 4
    spectrum = np.fft.fft2(real, axes=(1, 2))
    frequencies = np.abs(np.fft.fftfreq(16))
    low = np.maximum(frequencies[:, None], frequencies[None]) <= 0.125
    smooth = np.fft.ifft2(spectrum * low[None, :, :, None], axes=(1, 2)).real
    shares = [band["variance"][0] for band in _bands(real, [smooth], labels, 3)]
    assert shares == pytest.approx([1, 1, 0, 0], abs=1e-4)


class Additive:
    """Replaces a sampler by one whose images are sums of the noise maps with these weights, in bytes."""

    noise_kind, noise_of = "host", Sampler.noise_of

    def __init__(self, channels=0, **weights):
        config = tiny.run_config(generator__latent_channels=channels).model
        self.schedule, self.model = Schedule.from_config(config.process), SimpleNamespace(config=config)
        self.weights = weights

    def images(self, labels, source):
        latent: Latent = source(range(len(labels)))
        maps = {f"eps_{3 - index}": noise for index, noise in enumerate(latent.noises)}
        maps |= {f"z_{3 - index}": value for index, value in enumerate(latent.inputs)}
        total = sum(weight * maps[name].mean(1).flatten(1)[:, :4] for name, weight in self.weights.items())
        return {1: total.numpy()}


def test_the_share_of_a_noise_map_is_its_part_of_the_variance():
    sampler = Additive(channels=1, eps_3=2.0, eps_2=1.0, z_1=1.0)
    found = noise_shares(sampler, np.zeros(1000, int), range(2))
    assert [row["map"] for row in found] == ["eps_3", "z_3", "eps_2", "z_2", "eps_1", "z_1"]
    shares = {row["map"]: np.mean(row["share"]) for row in found}
    # Means of three channels have a third of the variance of the latent's single one.
    total = 4 / 3 + 1 / 3 + 1
    expected = {"eps_3": 4 / 3 / total, "eps_2": 1 / 3 / total, "z_1": 1 / total}
    for name, share in shares.items():
        assert share == pytest.approx(expected.get(name, 0), abs=0.03)


def test_the_record(diagnosis):
    found = read_diagnosis(diagnosis)
    assert [row["start"] for row in found["chain"]["starts"]] == [0, 1, 2, 3, "noise"]
    assert all(len(row["recall"]) == (1 if row["start"] == 0 else 2) for row in found["chain"]["starts"])
    assert [row["level"] for row in found["chain"]["levels"]] == [3, 2, 1]
    assert [row["map"] for row in found["chain"]["maps"]] == ["eps_3", "eps_2", "eps_1"]
    assert [row["level"] for row in found["discriminator"]["levels"]] == [1, 2, 3]
    first, _, last = found["discriminator"]["levels"]
    assert set(first["gradients"]) == {"reconstruction", "adversarial"}
    assert set(last["gradients"]) == {"adversarial"}
    assert (last["share"], last["cosine"]) == (1, None)
    assert (found["protocol"]["n"], found["protocol"]["draws"]) == (60, 2)
    assert found["discriminator"]["iteration"] == found["subject"]["iteration"] == 12


def test_the_same_command_gives_the_same_numbers(diagnosis, results, tmp_path):
    again = tmp_path / "again.json"
    options = ("--count", 60, "--draws", 2, "--threads", 1, "--device", "cpu", "--output", again)
    assert not tiny.call("diagnose", results / "runs/digits/seed0", *options)
    one, other = read_diagnosis(diagnosis), read_diagnosis(again)
    assert {key: one[key] for key in ("chain", "discriminator", "protocol")} == {
        key: other[key] for key in ("chain", "discriminator", "protocol")
    }


def test_figure_and_table(diagnosis, tmp_path):
    assert not tiny.call("figure", "diagnosis", diagnosis, "--output", tmp_path / "figure")
    width, height = Image.open(tmp_path / "figure.png").size
    assert max(width, height) <= LARGEST
    numbers = pd.read_csv(tmp_path / "figure.csv")
    assert set(numbers["part"]) == {"starts", "levels", "bands", "maps", "discriminator"}
    table = diagnosis_table(read_diagnosis(diagnosis))
    assert len(table.shown) == 5
    text = table.markdown()
    assert all(words in text for words in ("60 held-out images", "2 draws", "SHA-256"))
    assert "†" not in text


def test_distances_that_share_labels_with_a_loss_are_marked(diagnosis):
    found = read_diagnosis(diagnosis)
    assert found["subject"]["loss_features"] == []
    found["subject"]["loss_features"], found["protocol"]["extractor"]["sha256"] = ["vgg"], INCEPTION.sha256
    text = diagnosis_table(found).markdown()
    assert text.count(" † ") == 5
    assert text.count("†: LPIPS") == 1


def test_a_run_without_checkpoints_has_no_discriminator(results, trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("weights.safetensors", "config.json", "complete.json"):
        (run / name).symlink_to(trained / name)
    options = ("--dataset", "datasets/digits", "--reference", "references/digits.npz")
    options += ("--config", "configs/digits/scoring.json", "--extractor", "extractors/digits.pt")
    options = [results / option if "/" in option else option for option in options]
    output = tmp_path / "diagnosis.json"
    count = ("--count", 20, "--draws", 1, "--threads", 1)
    assert not tiny.call("diagnose", run, *options, *count, "--output", output, "--table", tmp_path / "table")
    assert read_diagnosis(output)["discriminator"]["reason"] == "the run's checkpoints were removed"
    assert "No discriminator: the run's checkpoints were removed." in (tmp_path / "table.md").read_text()
    assert not tiny.call("figure", "diagnosis", output, "--output", tmp_path / "figure")


def record(starts, levels=(1.0, 1.0, 1.0), maps=(("eps_3", 0.5),), players=()):
    """The parts of a diagnosis that findings are made from: (FD, recall) by start."""
    rows = [
        {"start": start, "frechet_distance": [distance, distance + 0.2], "recall": [recall, recall + 0.01]}
        for start, (distance, recall) in zip([0, 1, 2, 3, "noise"], starts, strict=True)
    ]
    levels = [{"level": 3 - index, "variance": [ratio]} for index, ratio in enumerate(levels)]
    maps = [{"map": name, "share": [share]} for name, share in maps]
    keys = ("level", "auc", "share", "loss", "gradients")
    players = [dict(zip(keys, player, strict=True)) for player in players]
    chain = {"starts": rows, "levels": levels, "maps": maps}
    return {"chain": chain, "protocol": {"label": "FD"}, "discriminator": {"levels": players}}


BOTH = {"reconstruction": 1.0, "adversarial": 0.01}


def test_findings_name_the_level_and_the_dead_discriminator():
    found = findings(
        record(
            [(7, 0.92), (8, 0.92), (11, 0.6), (31, 0.3), (31, 0.3)],
            levels=(0.3, 0.32, 0.9),
            maps=(("eps_3", 0.5), ("z_3", 0.001)),
            players=[(1, 0.6, 0.01, 0.69, BOTH), (2, 0.8, 0.4, 0.6, BOTH), (3, 1.0, 1.0, 0.01, {"adversarial": 1})],
        )
    )
    assert found == [
        "l = 3 loses most of the quality: FD goes from 7.1 (held-out images) to 31.1 (full chain), 83% of it there.",
        "l = 2 loses most of the variety: recall goes from 0.925 (held-out images) to 0.305 (full chain), 52% of it "
        "there.",
        "Outputs vary too little within a class: of the real variance, 0.30 at l = 3, 0.32 at l = 2.",
        "The latent z_3 has no effect: it determines 0.1% of the images' variance.",
        "The discriminator at l = 1 separates almost nothing: AUC 0.60 (0.5 is chance), and 1.0% of the generator's "
        "gradient is its own.",
        "The discriminator at l = 3 has won: AUC 1.00, loss 0.01 (0.69 is chance).",
    ]


def test_findings_claim_nothing_within_the_spread_of_draws():
    found = findings(record([(7, 0.92), (7.1, 0.92), (7.2, 0.92), (7.1, 0.92), (7.2, 0.92)]))
    assert found[0].startswith("No level loses more quality than draws differ")
    assert found[1].startswith("No level loses more variety than draws differ")


def test_a_run_elsewhere_needs_its_files(trained, tmp_path, capsys):
    assert tiny.call("diagnose", trained, "--output", tmp_path / "d.json") == 2
    assert "is not in a folder of results, RESULTS/runs/EXPERIMENT/seedN; give --dataset" in capsys.readouterr().err


def test_mistakes(results, diagnosis, tmp_path, capsys):
    run, output = results / "runs/digits/seed0", ("--output", tmp_path / "d.json")
    for arguments, expected in (
        ((results / "datasets", *output), "has no weights.safetensors; expected the folder of a finished run"),
        ((run, "--draws", 0, *output), "--draws"),
        ((run, "--count", 3, *output), "3 held-out images are too few: scoring.neighbours: 3 needs more"),
        ((run, "--weights", "ema-0.5", *output), "no ema-0.5 weights"),
        ((run, "--output", results / "references/digits.npz"), "references/digits.npz"),
        ((run, "--reference", tmp_path / "none.npz", *output), "none.npz"),
    ):
        assert tiny.call("diagnose", *arguments) == 2, arguments
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        assert expected in error
    assert not (tmp_path / "d.json").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: found["chain"]["starts"][1].update(recall=[2.0]), "recall"),
        (lambda found: found["chain"]["starts"][1].update(frechet_distance=[]), "frechet_distance"),
        (lambda found: found["protocol"].update(n=0), "n"),
        (lambda found: found["discriminator"]["levels"][0].update(auc=0.1), "changed"),
        (lambda found: found.update(format="udpm-score/1"), "format"),
    ],
)
def test_a_record_that_was_edited_is_refused(change, expected, diagnosis, tmp_path):
    found = json.loads(diagnosis.read_text())
    change(found)
    (tmp_path / "d.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=expected):
        read_diagnosis(tmp_path / "d.json")


def test_gradients_of_all_terms_add_up(levels):
    """The terms' mean gradients are parts of that of the whole loss."""
    config = tiny.run_config(
        training__batch=20, losses__energy_weight=[0, 0.5, 0.5], losses__energy_redraw=False,
        generator__latent_channels=1,
    )  # fmt: skip
    devices.configure("cpu", 1)
    state = State.fresh(config, torch.device("cpu"))
    players = Players(
        config, state, np.asarray(levels.store.images[:40]), levels.store.labels[:40], torch.device("cpu")
    )
    found = diagnose_discriminator(players)
    assert [set(row["gradients"]) for row in found] == [
        {"reconstruction", "adversarial"},
        {"reconstruction", "energy", "adversarial"},
        {"energy", "adversarial"},
    ]
    for row in found:
        assert row["share"] == pytest.approx(row["gradients"]["adversarial"] / sum(row["gradients"].values()))
        assert all(norm > 0 for norm in row["gradients"].values())
