"""Class names in weights, samples, files and figures, and labels given by name."""

import json

import numpy as np
import pytest
import tiny
import torch
from scored import save_samples

import udpm
from udpm.config import ModelConfig, Sampling
from udpm.config.dataset import class_folders, class_number, class_title
from udpm.config.load import load_dataset, load_experiment, run_config
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.metrics.protocol import class_words
from udpm.networks.unet import build_generator
from udpm.networks.weights import load_model, read_tensors, save_weights
from udpm.sampling.sample_set import load_samples

PETS = ["cat", "dog", "a, b"]
NUMBERS = ["0", "1", "10", "2"]


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        ("cat", PETS, 0),
        ("a, b", PETS, 2),
        ("1", PETS, 1),
        (1, PETS, 1),
        (2, [], 2),
        ("2", [], 2),
        ("2", NUMBERS, 3),
        (2, NUMBERS, 3),
        ("10", NUMBERS, 2),
        ("3", PETS, "must be in 0..2, got 3; the classes are cat, dog, a, b"),
        (10**30, [], "must be in 0..9, got 1000"),
        ("3", NUMBERS, "no class is called '3'; the classes are 0, 1, 10, 2"),
        ("12", ["0", "1", "2"], "must be in 0..2, got 12"),
        ("-1", PETS, "no class is called '-1'"),
        ("cats", PETS, "no class is called 'cats'; did you mean 'cat'?"),
        ("cat", [], "the class names are unknown; expected numbers 0..9, got 'cat'"),
    ],
)
def test_a_name_wins_over_a_number(label, names, expected):
    if isinstance(expected, int):
        assert class_number(label, names, len(names) or 10) == expected
        return
    with pytest.raises(UserError) as refusal:
        class_number(label, names, len(names) or 10)
    assert expected in str(refusal.value)


def test_names_become_valid_folders():
    assert class_folders(["cat", "a/b", "..", "-x", "CON: ", "été"], 6) == ["cat", "a_b", "_", "_x", "CON__", "été"]
    assert class_folders(["cat", "Cat"], 2) == ["0", "1"]
    assert class_folders([], 3) == ["0", "1", "2"]
    assert class_folders(["a"], 2) == ["0", "1"]
    assert class_folders(["a", "Level_2"], 2, ["", "level_2"]) == ["0", "1"]
    assert class_folders(["a" * 300], 1) == ["0"]


def test_titles():
    assert [class_title(label, PETS) for label in (0, 7)] == ["cat", "class 7"]
    assert class_title(2, NUMBERS) == "class 10"
    assert class_words({"class_names": ["a very long name of it"]}, 0) == "a very long n…"
    assert class_words({}, 3) == "class 3"


def untrained(path, names):
    """Write weights of a network for classes with these names."""
    run = tiny.run_config()
    config = ModelConfig(side=16, classes=len(names), process=run.process, generator=run.generator)
    torch.manual_seed(0)
    save_weights(path, config, {"ema": build_generator(config).state_dict()}, {"class_names": names, "iteration": None})
    return path


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    devices.configure("cpu", 1)
    return untrained(tmp_path_factory.mktemp("pets") / "pets.safetensors", PETS)


def test_names_come_with_weights_and_samples(trained, pets, tmp_path):
    digits = [str(digit) for digit in range(10)]
    assert read_tensors(trained / "weights.safetensors", "udpm-weights/2")[1]["class_names"] == digits
    assert json.loads((trained / "complete.json").read_text())["class_names"] == digits
    assert tiny.call("sample", pets, "--count", 4, "--labels", '"a, b",cat', "--output", tmp_path / "s.npz") == 0
    samples = load_samples(tmp_path / "s.npz")
    assert samples.labels.tolist() == [2, 0, 2, 0]
    assert samples.record["class_names"] == PETS
    assert tiny.call("export", tmp_path / "s.npz", "--layout", "classes", "--output", tmp_path / "e") == 0
    assert sorted(path.name for path in (tmp_path / "e").iterdir() if path.is_dir()) == ["a, b", "cat"]


def test_imported_weights_keep_class_names(pets, tmp_path):
    assert tiny.call("import", pets, "--output", tmp_path / "b.safetensors") == 0
    assert load_model(tmp_path / "b.safetensors").record["class_names"] == PETS


@pytest.mark.parametrize("names", [["a", "b"], "abc", [1, 2, 3], {"a": 1}])
def test_names_that_do_not_fit_are_refused(pets, tmp_path, names):
    path = untrained(tmp_path / "w.safetensors", PETS)
    model = load_model(path)
    state = {"ema": model.generator.state_dict()}
    save_weights(path, model.config, state, {"class_names": names, "iteration": None})
    with pytest.raises(UserError, match="class_names must be 3 names"):
        load_model(path)


def test_labels_in_python(pets):
    sampler = udpm.load(pets)
    cats = sampler.sample(2, labels="cat")
    assert (cats == sampler.sample(2, labels=0)).all()
    assert (cats == sampler.sample(2, labels=np.int64(0))).all()
    assert (sampler.sample(2, labels=["dog", 0]) == sampler.sample(2, labels=[1, 0])).all()
    assert (sampler.sample(2, labels="1") == sampler.sample(2, labels="dog")).all()
    for wrong, expected in (
        ("cow", "no class is called 'cow'"),
        (["cat"], "2 images need 2 labels, got 1"),
        ([0.5, 1], "whole numbers"),
        ([True, False], "whole numbers"),
        ([[0], [1]], "whole numbers"),
        (3, r"must be in 0\.\.2"),
    ):
        with pytest.raises(UserError, match=expected):
            sampler.sample(2, labels=wrong)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sample WEIGHTS --labels cow", "no class is called 'cow'"),
        ("sample WEIGHTS --labels dog,7", "must be in 0..2, got 7"),
        ("sample WEIGHTS --labels ,", "is not a comma-separated list of classes"),
        ("latents swap WEIGHTS --labels cow", "no class is called 'cow'"),
        ("latents swap WEIGHTS --labels 3", "must be in 0..2, got 3"),
    ],
)
def test_labels_on_the_command_line(pets, tmp_path, command, expected, capsys):
    output = tmp_path / "x.npz"
    tiny.assert_refused(tmp_path, f"{command.replace('WEIGHTS', str(pets))} --output {output}", expected, capsys)


def test_latents_by_name(pets, tmp_path):
    given = ("--labels", "dog,cat", "--seeds", "0,1,2,3", "--output", tmp_path / "s.npz")
    assert tiny.call("latents", "swap", pets, *given) == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, "5"], None),
        ([10], "sampling.labels: must be in 0..9, the classes of data set digits, got 10"),
        (["10"], "sampling.labels: must be in 0..9, got 10"),
        (["ten"], "sampling.labels: no class is called 'ten'"),
    ],
)
def test_labels_of_the_configuration_are_checked_where_names_are_known(labels, expected):
    experiment = load_experiment("digits", tiny.ROOT / "config")
    sampling = Sampling(**experiment.sampling.model_dump() | {"labels": labels})
    experiment = experiment.model_copy(update={"sampling": sampling})
    dataset = load_dataset("digits", tiny.ROOT / "config")
    if expected is None:
        run_config(experiment, "digits", 0, dataset, "digits.yaml")
        return
    with pytest.raises(UserError, match=expected):
        run_config(experiment, "digits", 0, dataset, "digits.yaml")


def test_figures_name_classes(tmp_path, monkeypatch):
    from udpm.report.figures import samples as pictures

    record = {"classes": 3, "class_names": PETS, "nfe": 3, "weights": "ema", "experiment": "x", "run_seed": 0}
    images = np.zeros((6, 16, 16, 3), np.uint8)
    save_samples(tmp_path / "s.npz", images, np.arange(6) % 3, record)
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, stem, data: drawn.append(figure))
    pictures.plot_samples(tmp_path / "s.npz", tmp_path / "f")
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == PETS


def test_the_card_names_classes(trained, tmp_path):
    from udpm.report.card import model_card

    card = model_card(trained)
    assert "- Classes: 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in card
    assert 'sample(16, labels="0", seed=0)' in card
