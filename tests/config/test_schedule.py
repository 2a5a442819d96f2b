"""`udpm schedule`: the paper's closed forms, the bounds on where sampling starts, the files, bad input."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from udpm.cli import main
from udpm.data.levels import mean_square
from udpm.data.store import open_store
from udpm.diffusion.process import downsample
from udpm.diffusion.schedule import Schedule, divergence_bound, prior_variance
from udpm.report.figures.schedule import HEADINGS, schedule_table

PAPER = Schedule((0.5, 0.2, 1e-3), (0.1, 0.2, 0.3))
TYPED = "--alphas 0.5,0.2,1e-3 --sigmas 0.1,0.2,0.3"
CONFIG = str(tiny.ROOT / "config")


def run(arguments, capsys):
    """Run the command; return its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        main(["schedule", *arguments.split(), "--config", CONFIG])
    shown = capsys.readouterr()
    return stop.value.code or 0, shown.out, shown.err


def test_the_papers_numbers():
    table = schedule_table(PAPER, 32)
    assert table["side"].tolist() == [16, 8, 4]
    assert table["signal"].tolist() == pytest.approx([1, 0.4, 8e-4])
    assert table["sigma_tilde"].tolist() == pytest.approx([0.1, 0.2010, 0.3], rel=1e-4)
    assert table["time"].tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert (table["std"] ** 2).tolist()[1:] == pytest.approx([0.009901, 0.0404], rel=1e-4)
    # Σ = 1/(0.2²/0.2² + 1/0.1²) = 1/101, so μ_2 = (0.5·100 f + 5 Hᵀx)/101.
    assert table["output_weight"].iloc[1] == pytest.approx(50 / 101)
    assert table["state_weight"].iloc[1] == pytest.approx(5 / 101)
    posterior = ["output_weight", "state_weight", "std", "std_blocks", "std_rest"]
    assert table[posterior].isna().all(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize("scale", [1, 2])
def test_the_exact_posterior_has_two_deviations(scale):
    row = schedule_table(Schedule(PAPER.alphas, PAPER.sigmas, scale), 32).iloc[1]
    assert row["std_blocks"] == pytest.approx((scale**2 / 4 + 100) ** -0.5)
    assert row["std_rest"] == pytest.approx(0.1)


@pytest.mark.parametrize("scale", [1, 2])
def test_prior_variance_is_that_of_the_start_of_sampling(scale):
    schedule = Schedule((0.9, 0.8), (0.1, 0.2), scale)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(100_000, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(100_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    start = schedule.alpha_bar(2) * downsample(white, scale, 2) + schedule.sigma_tilde(2) * noise
    assert start.var().item() == pytest.approx(prior_variance(schedule), rel=5 * math.sqrt(2 / 100_000))


def test_the_papers_schedule_ends_where_sampling_starts():
    variance = prior_variance(PAPER)
    assert variance == pytest.approx(0.09 + 1e-8, rel=1e-6)
    assert divergence_bound(PAPER, variance) == pytest.approx(8e-4**2 / 0.09 / 2, rel=1e-4)
    assert divergence_bound(PAPER, variance, 0.0) == pytest.approx((1e-8 / 0.09) ** 2 / 4, rel=1e-3)
    assert divergence_bound(PAPER, 1.0) == pytest.approx((0.09 - 1 - math.log(0.09)) / 2, rel=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_bound_against_a_monte_carlo_estimate(scale):
    """For white Gaussian images the bound can be estimated, and KL(q(x_L) ‖ prior) is known."""
    schedule, count, spread = Schedule((0.9, 0.8), (0.3, 0.4), scale), 200_000, 0.7
    generator = torch.Generator().manual_seed(1)
    images = spread * torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    low = downsample(images, scale, 2).flatten()
    mean, deviation, variance = schedule.alpha_bar(2) * low, schedule.sigma_tilde(2), prior_variance(schedule)
    state = mean + deviation * torch.randn(count, generator=generator, dtype=torch.float64)
    prior = torch.distributions.Normal(0.0, variance**0.5)
    ratios = torch.distributions.Normal(mean, deviation).log_prob(state) - prior.log_prob(state)
    bound = divergence_bound(schedule, variance, spread**2 / 16)
    assert ratios.mean().item() == pytest.approx(bound, abs=5 * ratios.std().item() / math.sqrt(count))
    marginal = (schedule.alpha_bar(2) * (scale / 2) ** 2 * spread) ** 2 + deviation**2
    true = (marginal / variance - 1 - math.log(marginal / variance)) / 2
    assert 0 < true < bound


def test_mean_square_is_exact(digits):
    store = open_store(digits / "dataset")
    train = store.images[store.split("train")].astype(np.float64) / 127.5 - 1
    for level, block in ((0, 1), (3, 8)):
        count, side = train.shape[:2]
        blocks = train.reshape(count, side // block, block, side // block, block, 3).mean(axis=(2, 4))
        assert mean_square(store, level) == pytest.approx((blocks**2).mean(), rel=1e-12)


def test_readable_table(capsys):
    code, shown, errors = run(f"{TYPED} --side 64", capsys)
    assert (code, errors) == (0, "")
    header, _, first, _, last, *notes = shown.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(HEADINGS.values())
    assert [cell.strip() for cell in first.strip("|").split("|")].count("–") == 5
    assert last.split("|")[2].strip() == "8"
    text = " ".join(notes)
    assert "upper bounds" in text
    assert "at most 3.56e-06 nats per dimension" in text
    assert "at most 0.749 nats per dimension" in text
    assert "m₂ = 1 (the largest possible" in text


def test_an_experiment_and_options_give_the_same_schedule(capsys, digits):
    _, named, _ = run("digits", capsys)
    _, typed, _ = run(f"{TYPED} --side 16", capsys)
    _, by_data, _ = run(f"{TYPED} --dataset {digits}/dataset", capsys)
    assert named == typed
    assert by_data.splitlines()[:5] == typed.splitlines()[:5]


def test_bounds_for_a_data_set(capsys, digits):
    _, shown, _ = run(f"digits --dataset {digits}/dataset", capsys)
    store = open_store(digits / "dataset")
    measured = mean_square(store, 3)
    assert 0 < measured < 1
    assert f"m₂ = {measured:.4g} (measured on the 1297 training images of" in shown
    assert f"at most {8e-4**2 * measured / 0.09 / 2:.3g} nats" in shown


@pytest.mark.parametrize("normalization", ["norm", "sum"])
def test_warns_of_a_schedule_that_keeps_signal(capsys, normalization):
    code, shown, errors = run(f"--alphas 0.5,0.2,0.5 --sigmas 0.1,0.2,0.3 --normalization {normalization}", capsys)
    assert code == 0
    assert len(errors.splitlines()) == 1
    assert errors.startswith("warning: ")
    assert "smaller" in errors
    assert "larger" in errors
    assert "upper bound" in shown


def test_files(capsys, tmp_path):
    """Both commands write the same table and the same drawing."""
    assert run(f"digits --output {tmp_path}/a", capsys)[0] == 0
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(HEADINGS) == list(table.columns)[: len(HEADINGS)]
    assert table["divergence"].iloc[-1] == pytest.approx(3.56e-6, rel=1e-2)
    config = tiny.write_config(tmp_path)
    with pytest.raises(SystemExit):
        main(["figure", "schedule", str(config), "--output", str(tmp_path / "b")])
    for suffix in (".csv", ".svg", ".pdf", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


BAD = {
    "neither": ("", "give either an EXPERIMENT, or --alphas and --sigmas"),
    "both": (f"digits {TYPED}", "give either an EXPERIMENT, or --alphas and --sigmas"),
    "half": ("--alphas 0.5", "give either an EXPERIMENT, or --alphas and --sigmas"),
    "an experiment has its side": ("digits --side 32", "give either an EXPERIMENT, or --alphas and --sigmas"),
    "unknown experiment": ("digit", "digit.yaml: no such file; did you mean digits?"),
    "lengths": ("--alphas 0.5,0.2 --sigmas 0.1,0.2,0.3", "--alphas has 2 values, --sigmas 3"),
    "alpha above 1": ("--alphas 0.5,1.2 --sigmas 0.1,0.2", "alphas[1]: input should be less than or equal to 1"),
    "alpha of 0": ("--alphas 0,0.2 --sigmas 0.1,0.2", "alphas[0]: input should be greater than 0"),
    "alpha not a number": ("--alphas nan --sigmas 0.1", "alphas[0]: input should be"),
    "sigma of 0": ("--alphas 0.5 --sigmas 0", "sigmas[0]: input should be greater than 0"),
    "infinite sigma": ("--alphas 0.5 --sigmas inf", "sigmas[0]: input should be a finite number"),
    "sigma beyond squares": ("--alphas 0.5 --sigmas 1e-200", "sigmas: must be between 1e-150 and 1e+150"),
    "words": ("--alphas 0.5,x --sigmas 0.1,0.2", "Invalid value for '--alphas': '0.5,x'"),
    "no words": ("--alphas , --sigmas 0.1", "Invalid value for '--alphas'"),
    "side not divisible": (f"{TYPED} --side 20", "not divisible by 2^3"),
    # 2^20000 has more digits than Python shows.
    "far too many levels": (
        f"--alphas {'0.5,' * 19_999}1 --sigmas {'0.5,' * 19_999}1",
        "side 32 cannot be halved 20000 times: not divisible by 2^20000",
    ),
    "side of 0": (f"{TYPED} --side 0", "Invalid value for '--side'"),
    "normalization": (f"{TYPED} --normalization max", "Invalid value for '--normalization'"),
    "no data set": ("digits --dataset nowhere", "nowhere/dataset.json: dataset record"),
    "images of another side": ("cifar10 --dataset {digits}", "has images of side 16, but the schedule is for side 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, capsys, tmp_path, digits):
    arguments, expected = BAD[case]
    code, shown, errors = run(arguments.format(digits=digits / "dataset") + f" --output {tmp_path}/s", capsys)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert expected in errors
    assert shown == ""
    assert not list(tmp_path.iterdir())


def test_reporting_imports_no_torch():
    modules = "udpm.report.figures.schedule, udpm.report.paper.tables, udpm.data.levels"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
