"""Exported networks draw the images that `udpm sample` draws, in programs without udpm."""

import json
import py_compile
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny

from udpm.cli.sample import NETWORKS
from udpm.core import kinds
from udpm.sampling import networks_export
from udpm.sampling.networks_export import RECORD

COUNT = 8
# The program as the main one, in a Python that cannot import udpm.
WITHOUT_UDPM = (
    "import runpy, sys; sys.modules['udpm'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
SLOW = pytest.mark.slow
FORMATS = ["torchscript", pytest.param("onnx", marks=SLOW), pytest.param("torch-export", marks=SLOW)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a model with classes, latents and attention."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    return tiny.save_random_weights(path, generator__latent_channels=2)


@pytest.fixture(scope="module")
def exported(weights):
    """Networks in TorchScript."""
    folder = weights.parent / "networks"
    assert not tiny.call("export", weights, "--format", "torchscript", "--output", folder)
    return folder


def noise_for(folder, count=COUNT):
    """Draw noise of the shapes that exported networks name."""
    source = np.random.default_rng(7)
    shapes = json.loads((folder / RECORD).read_text())["noise"].items()
    return {name: source.standard_normal((count, *shape), np.float32) for name, shape in shapes}


def sampled(weights, folder, noise, *options):
    """Draw images of this noise with udpm."""
    np.savez(folder / "noise.npz", **noise)
    given = ("--noise", folder / "noise.npz", "--count", COUNT, *options, "--output", folder / "expected.npz")
    assert not tiny.call("sample", weights, *given)
    return np.load(folder / "expected.npz")["images"]


def run(program, *arguments, cwd):
    command = [sys.executable, "-I", "-c", WITHOUT_UDPM, program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def assert_alike(found, expected):
    """Check that images differ by at most one step of their bytes, and that they are no constants."""
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert ((expected > 5) & (expected < 250)).mean() > 0.1
    assert np.abs(expected[0].astype(int) - expected[1]).max() > 20


@pytest.mark.parametrize("form", FORMATS)
def test_the_program_draws_the_same_images_without_udpm(weights, exported, tmp_path, form):
    folder = exported
    if form != "torchscript":
        folder = tmp_path / "networks"
        assert not tiny.call("export", weights, "--format", form, "--output", folder)
        paths = [path for path in folder.iterdir() if str(tiny.ROOT).encode() in path.read_bytes()]
        assert not paths, "files with paths of this machine"
    noise = noise_for(folder)
    assert [name for name in noise if name.startswith("z_")] == ["z_3", "z_2", "z_1"]
    expected = sampled(weights, tmp_path, noise, "--labels", "3,5")
    (tmp_path / "elsewhere").mkdir()
    options = ("--noise", tmp_path / "noise.npz", "--labels", 3, 5, "--output", "images.npy")
    done = run(folder / "chain.py", *options, cwd=tmp_path / "elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_alike(np.load(tmp_path / "elsewhere/images.npy"), expected)


def test_the_program_draws_from_a_seed(exported, tmp_path):
    """The n-th image depends on the seed and n alone."""
    program = runpy.run_path(str(exported / "chain.py"))
    for name, options in {"a": ("--count", 5), "b": ("--count", 3), "c": ("--count", 3, "--seed", 1)}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["chain.py", *map(str, options), "--output", str(tmp_path / name)])
            program["main"](batch=2)
    found = {name: np.load(tmp_path / name) for name in "abc"}
    assert found["a"].shape == (5, 16, 16, 3)
    assert np.abs(found["a"][:3].astype(int) - found["b"]).max() <= 1
    assert np.abs(found["b"].astype(int) - found["c"]).max() > 20


PLAIN = {
    "without classes, two levels": {
        "generator__class_conditional": False,
        "process__levels": 2,
        "process__alphas": [0.5, 0.001],
        "process__sigmas": [0.1, 0.3],
        **tiny.ANY_LEVELS,
    },
}
FAMILIES = {
    "DDPM++, H with sum 1": {"generator__family": "ddpmpp", "process__normalization": "sum"},
    "ADM, label dropout": {
        "generator__family": "adm",
        "generator__channels": 64,
        "generator__label_dropout": 0.1,
        "generator__latent_channels": 1,
    },
}


@pytest.mark.parametrize("name", [*PLAIN, *(pytest.param(name, marks=SLOW) for name in FAMILIES)])
def test_every_kind_of_model(tmp_path, name):
    weights = tiny.save_random_weights(tmp_path / "weights.safetensors", **(PLAIN | FAMILIES)[name])
    assert not tiny.call("export", weights, "--format", "torchscript", "--output", tmp_path / "networks")
    noise = noise_for(tmp_path / "networks")
    chain = runpy.run_path(str(tmp_path / "networks/chain.py"))["chain"]
    if "label dropout" in name:
        assert_alike(chain(noise, [-1] * COUNT), sampled(weights, tmp_path, noise, "--labels", "none"))
    else:
        assert_alike(chain(noise, np.arange(COUNT)), sampled(weights, tmp_path, noise))


def test_labels_that_the_networks_do_not_know(exported):
    chain = runpy.run_path(str(exported / "chain.py"))["chain"]
    for labels in ([0] * (COUNT - 1) + [10], [-1] * COUNT, [0] * (COUNT - 1), None):
        with pytest.raises(ValueError, match=r"labels: expected 8 of 0\.\.9"):
            chain(noise_for(exported), labels)


WRONG_NOISE = {
    "an array that fits only by repetition": {"eps_2": lambda values: values[:1]},
    "one channel": {"eps_1": lambda values: values[:, :1]},
    "no number": {"base": lambda values: np.nan * values},
    "no image": dict.fromkeys(("base", "eps_1", "eps_2", "eps_3", "z_1", "z_2", "z_3"), lambda values: values[:0]),
    "an array that is missing": {"eps_3": None},
}


@pytest.mark.parametrize("changes", WRONG_NOISE.values(), ids=WRONG_NOISE)
def test_noise_of_another_model(exported, tmp_path, monkeypatch, capsys, changes):
    noise = noise_for(exported)
    noise = {name: change(noise[name]) for name in noise if (change := changes.get(name, np.asarray)) is not None}
    np.savez(tmp_path / "noise.npz", **noise)
    assert_refused(exported, tmp_path, monkeypatch, capsys, "--noise noise.npz", "noise")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--labels 10", "labels: expected 16 of 0..9"),
        ("--labels -1", "labels: expected 16 of 0..9"),
        ("--seed -1", "--seed at least 0"),
        ("--count 0", "--count must be at least 1"),
        ("--noise missing.npz", "--noise: missing.npz: not a noise file of this model"),
        ("--noise array.npy", "--noise: array.npy: not a noise file of this model"),
        ("--noise noise.npz --count 2", "--noise: has its own number of images"),
    ],
)
def test_what_the_program_refuses(exported, tmp_path, monkeypatch, capsys, options, expected):
    np.savez(tmp_path / "noise.npz", **noise_for(exported))
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert_refused(exported, tmp_path, monkeypatch, capsys, options, expected)


@pytest.mark.parametrize("output", ["there.npy", "missing/images.npy"])
def test_the_programs_output_is_a_new_file(exported, tmp_path, monkeypatch, capsys, output):
    (tmp_path / "there.npy").write_bytes(b"somebody's")
    assert_refused(exported, tmp_path, monkeypatch, capsys, "", f"--output: {output}: must be a new file", output)
    assert (tmp_path / "there.npy").read_bytes() == b"somebody's"


def assert_refused(exported, folder, monkeypatch, capsys, options, expected, output="images.npy"):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["chain.py", *options.split(), "--output", output])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(exported / "chain.py"), run_name="__main__")
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "images.npy").exists()


def test_the_record(weights, exported, tmp_path, capsys):
    record = json.loads((exported / RECORD).read_text())
    assert record["format"] == "udpm-networks/1"
    assert (record["networks"], record["side"], record["levels"], record["classes"]) == ("torchscript", 16, 3, 10)
    assert (record["alphas"], record["sigmas"], record["scale"]) == ([0.5, 0.2, 0.001], [0.1, 0.2, 0.3], 2)
    assert (record["inputs"], record["latent_channels"]) == (["x", "labels"], 2)
    assert record["source"]["weights"] == "ema"
    assert record["source"]["weights_sha256"] == kinds.sha256(weights)
    capsys.readouterr()
    assert not tiny.call("info", exported)
    assert json.loads(capsys.readouterr().out) == record
    for name in (RECORD, "level_1.pt"):
        assert not tiny.call("info", exported / name)
        assert capsys.readouterr().err == f"next: udpm info {exported}\n"
    assert not kinds.EXTRACTOR.made(exported / "level_1.pt"), "udpm extractor would replace it"


@pytest.mark.slow
def test_other_weights_than_the_average(trained, tmp_path):
    assert not tiny.call("export", trained, "--format", "torchscript", "--weights", "raw", tmp_path / "networks")
    assert json.loads((tmp_path / "networks" / RECORD).read_text())["source"]["weights"] == "raw"


@pytest.mark.slow
def test_weights_that_an_onnx_file_cannot_hold(weights, tmp_path, monkeypatch):
    """They are in a file next to it; both are found from another folder."""
    monkeypatch.setattr(networks_export, "LARGEST", 0)
    folder = tmp_path / "networks"
    assert not tiny.call("export", weights, "--format", "onnx", "--output", folder)
    assert len(list(folder.glob("level_*.onnx.data"))) == 3
    noise = noise_for(folder)
    chain = runpy.run_path(str(folder / "chain.py"))["chain"]
    assert_alike(chain(noise, np.arange(COUNT)), sampled(weights, tmp_path, noise))


def test_the_command_offers_every_format():
    assert list(NETWORKS) == list(networks_export.FORMATS)


REFUSED = [
    ("export w.safetensors --format onx --output out", "Did you mean 'onnx'?"),
    ("export w.safetensors --output out", "a weights file; to export its networks, give --format, one of torchscript"),
    ("export w.safetensors --format onnx --output out.zip", "networks are written to a folder (--format onnx), not"),
    ("export w.safetensors --format onnx --layout flat --output out", "--layout and --split are for images, not for"),
    ("export w.safetensors --format onnx --split train --output out", "--layout and --split are for images, not for"),
    ("export w.safetensors --weights raw --output out", "--weights is for networks: give --format, one of"),
    ("export w.safetensors --format torchscript --weights raw --output out", "no raw weights, only ema; use those"),
    ("export w.safetensors --format torchscript --output mine", "contains other files (notes.txt), not a set of exp"),
    ("export s.npz --format torchscript --output out", "s.npz: not a readable safetensors file; it is an .npz of"),
    ("export mine --format torchscript --output out", "mine: holds no weights.safetensors; expected a weights file"),
    ("export none --format torchscript --output out", "none"),
]


@pytest.mark.parametrize(("command", "expected"), REFUSED, ids=[command for command, _ in REFUSED])
def test_what_is_refused(weights, tmp_path, monkeypatch, capsys, command, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    np.savez("s.npz", a=np.zeros(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    tiny.assert_refused(tmp_path, command, expected, capsys)


def test_a_missing_package_is_named(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    expected = "--format onnx: needs the onnx extra: pip install 'udpm[onnx]'"
    tiny.assert_refused(tmp_path, f"export {weights} --format onnx --output {tmp_path / 'out'}", expected, capsys)


def test_an_edited_export_is_kept(weights, exported, tmp_path, capsys):
    """Bytecode that Python leaves when the program is imported is no edit."""
    folder = tmp_path / "networks"
    shutil.copytree(exported, folder)
    py_compile.compile(str(folder / "chain.py"))
    capsys.readouterr()
    assert not tiny.call("export", weights, "--format", "torchscript", "--output", folder)
    written = ["chain.py", *(f"level_{level}.pt" for level in (1, 2, 3)), "networks.json"]
    assert capsys.readouterr().out == f"{folder}: {', '.join(written)}\n"
    assert sorted(path.name for path in folder.iterdir()) == [".udpm.json", *written]
    (folder / "chain.py").write_text("mine")
    command = f"export {weights} --format torchscript --output {folder}"
    tiny.assert_refused(tmp_path, command, "its files were changed (chain.py)", capsys)
