"""Import of published checkpoints by the command line, identified by their tensors."""

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import golden_vectors as golden
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import save_file

import udpm
from udpm.cli import main
from udpm.config.load import resolve_run, to_json
from udpm.core.errors import UserError
from udpm.interop.architecture import generator_shape, load_tensors
from udpm.networks.weights import load_model

NETWORKS = ["net_ncsn_cond", "net_ncsn_uncond", "net_ddpm_cond", "net_adm_cond"]
TOLERANCE = 2e-5


def state_dict(name, prefix="net/"):
    tensors, _ = golden.load(name)
    return {key: value.float() for key, value in golden.part(tensors, prefix).items()}


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files as the published code writes them, and this project's configuration."""
    state = state_dict("net_ncsn_cond")
    torch.save(state, tmp_path / "model_ema_state_x.pt")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()
    whole = {
        "model": {f"module.{name}": value for name, value in state.items()},
        "discriminator": state_dict("disc_cond", "disc/"),
        "optimizer": optimizer,
        "epochs": 7,
    }
    torch.save(whole, tmp_path / "model_state_x_epoch_7_itr_1200.pt")
    (tmp_path / "config_x.json").write_text(json.dumps(FLAGS))
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = {
    "img_size": 32,
    "diffusion_steps": 3,
    "alphas": [0.5, 0.2, 1e-3],
    "sigmas": [0.1, 0.2, 0.3],
    "net_type": "NCSN",
    "model_channels": 16,
    "channels_mult": [2, 2, 2],
    "num_blocks_per_res": 2,
    "attention_res": [8, 4, 2],
    "classes_num": 10,
    "EMA_weight": 0.9999,
    "l1_weight": [1, 1, 0],
    "disc_weight": [0.2, 0.5, 1],
    "disc_channels": 8,
    "class_disc": True,
}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "in a model_state"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_without_any_configuration_the_outputs_are_the_published_ones(tmp_path, name, nested):
    vectors, _ = golden.load(name)
    state = state_dict(name)
    torch.save({"model": state} if nested else state, tmp_path / "published.pt")
    assert run("import", tmp_path / "published.pt", "--output", tmp_path / "ours.safetensors") == 0
    model = load_model(tmp_path / "ours.safetensors", "raw" if nested else "ema")
    sides = [key.removeprefix("io/x_") for key in vectors if key.startswith("io/x_")]
    assert len(sides) >= 2
    for side in sides:
        found = model.generator(vectors[f"io/x_{side}"], vectors[f"io/t_{side}"], vectors.get(f"io/y_{side}"))
        assert golden.relative_error(found, vectors[f"io/out_{side}"]) < TOLERANCE


def test_loading_a_published_checkpoint_points_to_the_import(folder):
    with pytest.raises(UserError, match="udpm import brings it over"):
        udpm.load("model_ema_state_x.pt")


def test_what_the_tensors_determine(folder, capsys):
    assert run("import", "model_ema_state_x.pt", "model_state_x_epoch_7_itr_1200.pt", "--output", "x.safetensors") == 0
    shown = capsys.readouterr().out
    assert "ncsnpp" in shown
    assert "10 classes" in shown
    assert "no schedule given: using the paper's" in shown
    assert run("info", "x.safetensors") == 0
    found = json.loads(capsys.readouterr().out)
    generator = found["model"]["generator"]
    assert found["iteration"] == 1200
    assert (found["model"]["side"], found["model"]["classes"]) == (32, 10)
    assert (generator["family"], generator["channels"], generator["channel_multipliers"]) == ("ncsnpp", 16, [2, 2, 2])
    assert (generator["blocks"], generator["attention"], generator["label_dropout"]) == (2, [8, 4], 0)
    assert [file["name"] for file in found["origin"]["files"]] == [
        "model_ema_state_x.pt",
        "model_state_x_epoch_7_itr_1200.pt",
    ]
    assert run("info", "model_state_x_epoch_7_itr_1200.pt") == 0
    found = json.loads(capsys.readouterr().out)
    # The discriminator's blocks determine the number of levels.
    assert found["levels"] == 3
    assert found["parameters"].keys() == {"raw", "discriminator"}


def test_the_discriminator_separates_label_dropout_from_another_class(folder, capsys):
    state = state_dict("net_ncsn_cond")
    state["net.map_label.weight"] = torch.cat([state["net.map_label.weight"], torch.zeros(32, 1)], dim=1)
    torch.save({"model": state, "discriminator": state_dict("disc_cond", "disc/")}, "both.pt")
    torch.save(state, "alone.pt")
    assert run("import", "both.pt", "--output", "both.safetensors") == 0
    assert run("import", "alone.pt", "--classes", "10", "--output", "known.safetensors") == 0
    assert run("import", "alone.pt", "--output", "unknown.safetensors") == 0
    shapes = [
        load_model(f"{name}.safetensors", kind).generator.shape
        for name, kind in (("both", "raw"), ("known", "ema"), ("unknown", "ema"))
    ]
    assert [(shape.classes, shape.label_dropout) for shape in shapes] == [(10, True), (10, True), (11, False)]
    images = udpm.load("known.safetensors").sample(2, labels=3)
    assert images.shape == (2, 32, 32, 3)


def test_checkpoint_and_configuration_become_an_experiment(folder, capsys):
    """The whole way from a published checkpoint to an experiment."""
    command = (
        "import",
        "model_ema_state_x.pt",
        "--config",
        "config_x.json",
        "--name",
        "moved",
        "--output",
        "x.safetensors",
    )
    assert run(*command) == 0
    shown = capsys.readouterr().out
    assert "left out attention at side 2" in shown
    config = resolve_run("moved", 0)
    assert (config.training, config.weights) == ("imported", "x.safetensors")
    assert config.dataset.side == 32
    assert yaml.safe_load((folder / "config/experiments/moved.yaml").read_text())["process"]["alphas"] == [
        0.5,
        0.2,
        1e-3,
    ]


def test_an_imported_run_is_what_the_experiment_says(folder):
    assert run("import", "model_ema_state_x.pt", "--config", "config_x.json", "--name", "moved") == 0
    config = resolve_run("moved", 0)
    (folder / "run.json").write_text(
        to_json(config.model_copy(update={"weights": "model_state_x_epoch_7_itr_1200.pt"}))
    )
    assert run("import", "--run-config", "run.json", "--run", "run") == 0
    record = json.loads((folder / "run/complete.json").read_text())
    assert (record["experiment"], record["iterations"]) == ("moved", 1200)
    assert record["origin"]["files"][0]["name"] == "model_state_x_epoch_7_itr_1200.pt"
    images = udpm.load("run/weights.safetensors", "raw").sample(2)
    # An already converted file gives the same run.
    assert run("import", "model_state_x_epoch_7_itr_1200.pt", "--output", "x.safetensors") == 0
    (folder / "run.json").write_text(to_json(config.model_copy(update={"weights": "x.safetensors"})))
    assert run("import", "--run-config", "run.json", "--run", "again") == 0
    assert (udpm.load("again/weights.safetensors", "raw").sample(2) == images).all()


@pytest.mark.parametrize("known", [True, False])
def test_losses_that_a_published_training_names_go_into_the_weights(folder, known):
    (folder / "config_x.json").write_text(json.dumps(FLAGS | {"lpips_weight": [4, 0, 0]}))
    described = ("--config", "config_x.json", "--name", "moved") if known else ()
    assert run("import", "model_ema_state_x.pt", *described, "--output", "x.safetensors") == 0
    assert load_model("x.safetensors").record["loss_features"] == (["vgg"] if known else None)


def _prefixed(prefix):
    return {prefix + name: value for name, value in state_dict("net_ncsn_cond").items()}


HELD = {
    "an averaged model": (lambda: {"n_averaged": torch.tensor(3), **_prefixed("module.")}, ["ema"]),
    "an averaged model under model": (
        lambda: {"model": {"n_averaged": torch.tensor(3), **_prefixed("module.")}},
        ["ema"],
    ),
    "a state_dict of a framework": (lambda: {"state_dict": _prefixed("model."), "epoch": 3}, ["raw"]),
    "both kinds": (lambda: {"model": _prefixed(""), "ema": _prefixed("")}, ["ema", "raw"]),
    "compiled and distributed": (lambda: {"model": _prefixed("module._orig_mod.")}, ["raw"]),
    "options and counters": (
        lambda: {
            "model": _prefixed(""),
            "args": argparse.Namespace(lr=np.float64(1e-4), data_dir=Path("x"), seen=np.int64(3)),
            "random": np.random.RandomState(0).get_state(),
            "more": types.SimpleNamespace(loss=np.float32(0.3)),
        },
        ["raw"],
    ),
}


@pytest.mark.parametrize("case", HELD)
def test_weights_are_read_from_what_others_save(tmp_path, case, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, kinds = HELD[case]
    torch.save(make(), "theirs.pt")
    assert run("import", "theirs.pt", "--output", "ours.safetensors") == 0
    expected = load_tensors(state_dict("net_ncsn_cond"), generator_shape(state_dict("net_ncsn_cond")))
    for kind in kinds:
        found = load_model("ours.safetensors", kind).generator.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert f"contains {' and '.join(kinds)}" in capsys.readouterr().out


def test_plain_safetensors_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(_prefixed("model."), "theirs.safetensors")
    shutil.copy("theirs.safetensors", "named.pt")
    for name in ("theirs.safetensors", "named.pt"):
        assert run("import", name, "--output", f"{name}.ours.safetensors") == 0
        assert load_model(f"{name}.ours.safetensors").config.side == 32


class Trap:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _save(change):
    state = state_dict("net_ncsn_cond")
    change(state)
    torch.save(state, "bad.pt")


def _save_both(change):
    judge = state_dict("disc_cond", "disc/")
    change(judge)
    torch.save({"model": state_dict("net_ncsn_cond"), "discriminator": judge}, "bad.pt")


def _code(folder):
    torch.save({"model": state_dict("net_ncsn_cond"), "optimizer": Trap(str(folder / "sprung"))}, "bad.pt")


def _plain_pickle(folder):
    (folder / "bad.pt").write_bytes(pickle.dumps(Trap(str(folder / "sprung"))))


def _truncate(folder):
    data = (folder / "model_ema_state_x.pt").read_bytes()
    (folder / "bad.pt").write_bytes(data[: len(data) // 2])


def _json(**changes):
    def write(folder):
        (folder / "bad.json").write_text(json.dumps(FLAGS | changes))

    return write


def _drop(*names):
    return lambda folder: _save(lambda state: [state.pop(name) for name in names])


SIX = [f"net.enc.8x8_block{index}.{part}" for index in (0, 1) for part in ("qkv.bias", "proj.weight", "proj.bias")]
IMPORT = "import bad.pt --output out.safetensors"
WITH_JSON = "import model_ema_state_x.pt --config bad.json --output out.safetensors"
CASES = {
    "code in it": (_code, IMPORT, "bad.pt: refused without executing it"),
    "code next to options": (
        lambda f: torch.save({"model": {}, "args": argparse.Namespace(trap=Trap(str(f / "sprung")))}, "bad.pt"),
        IMPORT,
        "where it was made: torch.save(model.state_dict(), FILE)",
    ),
    "a whole model": (
        lambda f: torch.save(torch.nn.Linear(2, 2), "bad.pt"),
        IMPORT,
        "(Unsupported global: GLOBAL torch.nn.modules.linear.Linear); save only the tensors where it was made",
    ),
    "a TorchScript file": (
        lambda f: torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 4, 4)), "bad.pt"),
        IMPORT,
        "bad.pt: not a checkpoint but a TorchScript file (for --extractor)",
    ),
    "a published checkpoint sampled from": (
        lambda f: None,
        "sample model_ema_state_x.pt --output out.npz",
        "not a readable safetensors file; it is a PyTorch checkpoint (udpm import brings it over)",
    ),
    "a plain pickle with code": (_plain_pickle, IMPORT, "bad.pt: refused without executing it"),
    "truncated": (_truncate, IMPORT, "bad.pt: not a readable checkpoint"),
    "rubbish": (lambda f: (f / "bad.pt").write_bytes(b"rubbish"), IMPORT, "may be truncated (invalid pickle)"),
    "empty": (lambda f: (f / "bad.pt").write_bytes(b""), IMPORT, "may be truncated (invalid pickle)"),
    "not there": (lambda f: None, IMPORT, "bad.pt: checkpoint not found"),
    "not finite": (
        lambda f: _save(lambda state: state.update({"net.map_layer1.bias": torch.full((64,), torch.nan)})),
        IMPORT,
        "1 tensors are not finite: net.map_layer1.bias",
    ),
    "tensors of no dimension": (
        lambda f: _save(lambda state: state.update({"net.map_layer0.weight": torch.tensor(1.0)})),
        IMPORT,
        "bad.pt: not a network of a known family",
    ),
    "a discriminator of other classes": (
        lambda f: _save_both(lambda judge: judge.update({"map_label.weight": judge["map_label.weight"][:, :7]})),
        IMPORT,
        "its discriminator has 7 classes, its generator 10",
    ),
    "the checkpoint itself as output": (
        lambda f: None,
        "import model_ema_state_x.pt --output model_ema_state_x.pt",
        "model_ema_state_x.pt must end in .safetensors",
    ),
    "another schedule than the JSON's": (
        lambda f: shutil.copy(f / "config_x.json", f / "bad.json"),
        WITH_JSON + " --alphas 0.5,0.2,0.1 --sigmas 0.1,0.2,0.3",
        "bad.json: schedule differs from that of --alphas, --sigmas",
    ),
    "another box than the JSON's": (
        lambda f: shutil.copy(f / "config_x.json", f / "bad.json"),
        WITH_JSON + " --normalization sum",
        "--normalization: sum, but bad.json has norm",
    ),
    "an experiment that already exists": (
        lambda f: None,
        "import model_ema_state_x.pt --config config_x.json --name digits",
        "digits.yaml: already exists; choose another --name",
    ),
    "a name that leads elsewhere": (
        lambda f: None,
        "import model_ema_state_x.pt --config config_x.json --name ../evil",
        "'../evil': not a valid name",
    ),
    "JSON of a wrong type": (_json(img_size="32"), WITH_JSON, "bad.json: img_size: expected int, got '32'"),
    "JSON of a word for a truth": (_json(use_amp="False"), WITH_JSON, "use_amp: expected bool, got 'False'"),
    "weights as the place of samples": (
        lambda f: run("import", "model_ema_state_x.pt", "--output", "ours.safetensors"),
        "sample ours.safetensors --output ours.safetensors",
        "ours.safetensors must end in .npz",
    ),
    "samples and chain in one place": (
        lambda f: run("import", "model_ema_state_x.pt", "--output", "ours.safetensors"),
        "sample ours.safetensors --output a.npz --chain a.npz",
        "--chain: a.npz: is also the output of --output",
    ),
    "no state dict": (lambda f: torch.save({"epoch": 3}, "bad.pt"), IMPORT, "not a published checkpoint"),
    "another network": (
        lambda f: torch.save(torch.nn.Linear(3, 3).state_dict(), "bad.pt"),
        IMPORT,
        "not a generator of NCSN++, DDPM++ or ADM",
    ),
    "missing tensors, the first five": (
        _drop(*SIX),
        IMPORT,
        f"6 tensors are missing: {', '.join(SIX[:5])}, …",
    ),
    "extra tensors": (
        lambda f: _save(lambda state: state.update({"net.more.weight": torch.ones(1)})),
        IMPORT,
        "1 tensors are unknown: net.more.weight",
    ),
    "wrong shape": (
        lambda f: _save(lambda state: state.update({"net.map_layer1.weight": torch.ones(64, 63)})),
        IMPORT,
        "1 tensors are of another shape: net.map_layer1.weight (64, 63) for (64, 64)",
    ),
    "two of a kind": (
        lambda f: shutil.copy(f / "model_ema_state_x.pt", f / "bad.pt"),
        "import model_ema_state_x.pt bad.pt --output out.safetensors",
        "bad.pt: contains ema weights, already found in another file",
    ),
    "JSON of another family": (_json(net_type="DDPM"), WITH_JSON, "bad.json: contradicts the tensors"),
    "JSON of another width": (
        _json(model_channels=32),
        WITH_JSON,
        "generator.channels is 32, not 16 as in the tensors",
    ),
    "JSON of other attention": (
        _json(attention_res=[16]),
        WITH_JSON,
        "generator.attention is [16], not [4, 8] as in the tensors",
    ),
    "JSON of other classes": (_json(classes_num=7), WITH_JSON, "classes is 7, not 10 as in the tensors"),
    "JSON of an unknown family": (_json(net_type="VAE"), WITH_JSON, "net_type is 'VAE'; expected one of NCSN, DDPM"),
    "JSON of another scale": (_json(diffusion_scale=4), WITH_JSON, "process.factor"),
    "JSON without a schedule": (_json(alphas=None), WITH_JSON, "process.alphas"),
    "no JSON": (lambda f: (f / "bad.json").write_text("[1]"), WITH_JSON, "bad.json: not a published configuration"),
    "wrong number of classes": (
        lambda f: None,
        "import model_ema_state_x.pt --classes 7 --output out.safetensors",
        "--classes: 7, but the network in model_ema_state_x.pt has labels for 10",
    ),
    "another number of levels": (
        lambda f: None,
        "import model_state_x_epoch_7_itr_1200.pt --alphas 0.5,0.1 --sigmas 0.1,0.2 --output out.safetensors",
        "its discriminator is for 3 levels, but the process has 2",
    ),
    "half a schedule": (
        lambda f: None,
        "import model_ema_state_x.pt --alphas 0.5,0.1 --output out.safetensors",
        "--alphas and --sigmas go together",
    ),
    "nothing to do": (lambda f: None, "import", "give CHECKPOINTS, or --name"),
    "an experiment of that name": (
        lambda f: None,
        "import --config config_x.json --name digits",
        "digits.yaml: already exists; choose another --name",
    ),
    "an experiment of nothing": (lambda f: None, "import --name new", "--name: needs --config or"),
    "a run of another model": (
        lambda f: (f / "bad.json").write_text(
            to_json(
                resolve_run("digits-paper", 0).model_copy(
                    update={"training": "imported", "weights": "model_ema_state_x.pt"}
                )
            )
        ),
        "import --run-config bad.json --run run",
        "model_ema_state_x.pt: not the model of experiment digits-paper: side is 32, not 16",
    ),
    "a run that is not imported": (
        lambda f: (f / "bad.json").write_text(to_json(resolve_run("digits-paper", 0))),
        "import --run-config bad.json --run run",
        "training: is not imported",
    ),
    "a label out of range": (
        lambda f: run("import", "model_ema_state_x.pt", "--output", "ours.safetensors"),
        "sample ours.safetensors --labels 3,10 --output out.npz",
        "labels: must be in 0..9",
    ),
    "guidance without label dropout": (
        lambda f: run("import", "model_ema_state_x.pt", "--output", "ours.safetensors"),
        "sample ours.safetensors --guidance 2 --output out.npz",
        "guidance: this model was not trained with label dropout",
    ),
    "noise of wrong shapes": (
        lambda f: (
            run("import", "model_ema_state_x.pt", "--output", "ours.safetensors"),
            np.savez(f / "noise.npz", base=np.zeros((4, 3, 16, 16), np.float32)),
        ),
        "sample ours.safetensors --noise noise.npz --count 2 --output out.npz",
        "noise.npz: array eps_3 not found; this model needs base, eps_3, eps_2, eps_1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(folder, case, capsys):
    prepare, command, expected = CASES[case]
    prepare(folder)
    capsys.readouterr()
    before = tiny.snapshot(folder)
    assert run(*command.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert expected in lines[0]
    assert tiny.snapshot(folder) == before
    assert not (folder / "sprung").exists()


@pytest.mark.soak
def test_a_published_checkpoint_reaches_a_scored_report_without_training(tmp_path):
    """With only the checkpoint of a digits model, `snakemake` samples directly."""
    for name in ("config", "workflow", "envs"):
        shutil.copytree(tiny.ROOT / name, tmp_path / name)
    torch.manual_seed(0)
    smoke = resolve_run("digits-smoke", 0, tmp_path / "config")
    torch.save(tiny.as_published(smoke.model), tmp_path / "model_ema_state_digits.pt")
    (tmp_path / "config/experiments/theirs.yaml").write_text(
        "extends: digits-smoke\ntraining: imported\nweights: model_ema_state_digits.pt\n"
    )
    command = [sys.executable, "-m", "snakemake", "--config", "experiments=theirs"]
    for more in ([], ["--report", "results/report.html"]):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "train_model" not in done.stdout
    assert not (tmp_path / "results/runs/theirs/seed0/checkpoints").exists()
    table = (tmp_path / "results/tables/scores.md").read_text()
    assert "imported ema weights" in table
    assert (tmp_path / "results/report.html").stat().st_size > 100_000
