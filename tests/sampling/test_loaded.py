"""`udpm.load`: the same images as the commands draw, from a run's folder or a weight file."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import udpm
from udpm.core import devices, gpus
from udpm.sampling.sample_set import load_samples


@pytest.fixture(scope="module")
def model(trained):
    devices.configure("cpu", 1)
    return udpm.load(trained)


def command(*arguments):
    assert tiny.call(*arguments, "--threads", 1) == 0


def test_importing_udpm_imports_nothing_heavy():
    heavy = {"torch", "numpy", "pydantic", "PIL", "click", "matplotlib"}
    code = f"import sys, udpm; udpm.UserError, udpm.load; sys.exit(sorted({heavy!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ((), {}),
        (("--weights", "raw", "--posterior", "exact"), {"weights": "raw", "posterior": "exact"}),
        (("--precision", "bfloat16", "--batch", 3), {"precision": "bfloat16", "batch": 3}),
    ],
)
def test_samples_are_those_of_the_command(trained, tmp_path, options, given):
    command("sample", trained, "--count", 8, "--seed", 1, *options, "--output", tmp_path / "a.npz")
    expected = load_samples(tmp_path / "a.npz").images
    images = udpm.load(trained, **given).sample(8, seed=1)
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected)
    assert np.array_equal(udpm.load(str(trained / "weights.safetensors"), **given).sample(8, seed=1), expected)


def test_a_samples_noise_does_not_depend_on_their_number(model):
    assert np.array_equal(model.sample(16, labels="3")[:4], model.sample(4, labels=3))


def test_the_grid_is_that_of_the_command(trained, model, tmp_path):
    command("sample", trained, "--count", 8, "--seed", 1, "--labels", "3,5", "--output", tmp_path / "a.png")
    labels = ["3", 5] * 4
    picture = model.grid(8, labels, seed=1)
    assert picture.size == (4 * 64 + 3 * 2, 2 * 64 + 2)
    assert np.array_equal(picture, Image.open(tmp_path / "a.png"))
    images = model.sample(8, labels, seed=1)
    assert np.array_equal(model.grid(images, labels), picture)
    assert np.array_equal(model.grid(list(images), labels), picture)
    assert model.grid(images).size == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2)


@pytest.mark.parametrize(
    ("kind", "options", "draw", "shape", "size"),
    [
        ("interpolate", ("--labels", 3, "--grid", 3), lambda model: model.interpolate(3, grid=3), (3, 3), (3, 3)),
        ("interpolate", (), lambda model: model.interpolate(), (6, 6), (6, 6)),
        ("swap", ("--labels", "3,5"), lambda model: model.swap(["3", np.int64(5)]), (2, 5), (5, 2)),
        ("swap", ("--seeds", "4,5,6,7"), lambda model: model.swap(seeds=np.arange(4, 8)), (4, 5), (5, 4)),
        (
            "perturb",
            ("--labels", "3", "--strengths", 2, "--strongest", "0.5,0,0"),
            lambda model: model.perturb("3", strengths=2, strongest=(0.5, 0, 0)),
            (3, 1, 2),
            (2, 3),
        ),
    ],
)
def test_latents_are_those_of_the_command(trained, model, tmp_path, kind, options, draw, shape, size):
    command("latents", kind, trained, *options, "--output", tmp_path / "a.npz")
    images = draw(model)
    assert images.shape == (*shape, 16, 16, 3)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert np.array_equal(images, arrays["images"])
    assert model.grid(images).size == tuple(count * 66 - 2 for count in size)


def test_says_what_it_is(trained, model, tmp_path):
    assert repr(model) == (
        "<udpm model: digits, seed 0 on digits; 16×16 in 3 levels, 10 classes, 0.0496 M parameters; ema weights of "
        "iteration 12; cpu, float32, scalar posterior>"
    )
    path = tiny.save_random_weights(tmp_path / "a.safetensors", **tiny.ALL, generator__label_dropout=0.1)
    assert repr(udpm.load(path, device="cpu", precision="bfloat16", posterior="exact", guidance=2)) == (
        "<udpm model: unnamed; 16×16 in 3 levels, 10 classes, 0.0499 M parameters; ema weights of iteration 0; cpu, "
        "bfloat16, exact posterior, guidance 2>"
    )


def test_a_milestone(trained, tmp_path):
    (tmp_path / "run/milestones").mkdir(parents=True)
    shutil.copy(trained / "config.json", tmp_path / "run")
    shutil.copy(trained / "weights.safetensors", tmp_path / "run/milestones/000000008.safetensors")
    command("sample", tmp_path / "run", "--iteration", 8, "--count", 2, "--output", tmp_path / "a.npz")
    images = udpm.load(tmp_path / "run", iteration=8).sample(2)
    assert np.array_equal(images, load_samples(tmp_path / "a.npz").images)
    with pytest.raises(udpm.UserError, match="no weights of iteration 9; kept are 8"):
        udpm.load(tmp_path / "run", iteration=9)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"precision": "float16"}, "udpm.load: precision: input should be 'float32' or 'bfloat16', got 'float16'"),
        ({"posterior": "both"}, "udpm.load: posterior: input should be 'scalar' or 'exact', got 'both'"),
        ({"weights": "best"}, "no best weights, only ema and raw; use those"),
        ({"device": "cuda"}, "device: cuda is not available: PyTorch sees no CUDA device; use device: auto or cpu"),
        ({"device": "cuda:0"}, "device: cuda is not available: PyTorch sees no CUDA device; use device: auto or cpu"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda or one GPU such as cuda:1, got 'gpu'"),
        ({"guidance": 2.0}, "guidance: this model was not trained with label dropout; expected 1 (none)"),
        ({"batch": 0}, "udpm.load: batch: input should be greater than 0, got 0"),
    ],
)
def test_a_mistake_in_a_setting(trained, given, expected):
    with pytest.raises(udpm.UserError) as found:
        udpm.load(trained, **given)
    (line,) = found.value.mistakes
    assert line.endswith(expected)


def test_a_folder_without_weights_or_with_several(digits, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("results/runs/a/seed0", "results/runs/a/seed1", "results/runs/b/seed0"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "weights.safetensors").symlink_to(trained / "weights.safetensors")
    (tmp_path / "unfinished").mkdir()
    shutil.copy(trained / "config.json", tmp_path / "unfinished")
    (tmp_path / "dataset").symlink_to(digits / "dataset")
    (tmp_path / "empty").mkdir()
    none = "holds no weights.safetensors; expected a weights file or a run's folder"
    for path, expected in {
        "dataset": f"dataset: {none}; it is a prepared data set (for --dataset)",
        "empty": f"empty: {none}",
        "unfinished": "unfinished/weights.safetensors: no such file; unfinished is the folder of a run that is not "
        "finished (udpm train finishes it)",
        "nowhere": "nowhere: no such file",
        "results": "results: holds the weights of 3 runs; expected one of results/runs/a/seed0, results/runs/a/seed1, "
        "results/runs/b/seed0",
        "results/runs/a": "results/runs/a: holds the weights of 2 runs; expected one of results/runs/a/seed0, "
        "results/runs/a/seed1",
    }.items():
        with pytest.raises(udpm.UserError) as found:
            udpm.load(path)
        assert found.value.mistakes == [expected]
    monkeypatch.chdir(tmp_path / "results/runs")
    assert udpm.load("b").sample(2).shape == (2, 16, 16, 3)


def test_a_mistake_in_a_call(model):
    for draw, expected in (
        (lambda: model.sample(0), "count: must be at least 1, got 0"),
        (lambda: model.grid(2000), "count: a grid has at most 1024 images, got 2000; sample fewer, or write an .npz"),
        (lambda: model.interpolate("cow"), "labels: no class is called 'cow'"),
        (lambda: model.swap(seeds=[1, 2]), "swap: seeds: list should have at least 4 items"),
        (lambda: model.perturb(strengths=0), "perturb: strengths: input should be greater than 0, got 0"),
        (lambda: model.perturb(strongest=[0.5]), "strongest: has 1 values, but the model has 3 levels"),
        (
            lambda: model.grid(model.swap("3"), labels="3"),
            "labels: are for images in one row after the other, but these",
        ),
        (lambda: model.grid(np.zeros((2, 4, 4, 3))), "images is float64 (2, 4, 4, 3); expected uint8 (n, h, w, 3)"),
    ):
        with pytest.raises(udpm.UserError) as found:
            draw()
        assert str(found.value).startswith(expected)


def test_a_gpu_is_chosen_without_changing_settings_of_pytorch(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-loaded-a,test-loaded-b")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU")
    monkeypatch.setattr(gpus, "_claims", {})
    for name in ("set_device", "init"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("touched"))
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    assert devices.choose("cuda:1") == torch.device("cuda", 1)
    assert devices.choose("auto") == torch.device("cuda", 1), "the one that this process uses already"
    with pytest.raises(udpm.UserError, match="device: cuda:2 is not available: PyTorch sees 2 × GPU, numbered from 0"):
        devices.choose("cuda:2")
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before
