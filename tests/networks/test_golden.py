"""The process, the networks and the sampler against vectors measured on the published code."""

import golden_vectors as golden
import pytest
import torch

from udpm.diffusion.process import adjoint, downsample, marginal, posterior, sample
from udpm.diffusion.schedule import Schedule
from udpm.networks.layers import Resample

TOLERANCE = 2e-5


@pytest.mark.parametrize("name", ["process_paper32", "process_two_step_sum"])
def test_process(name):
    vectors, config = golden.load(name)
    scale = 2 if config["w_norm_type"] == "norm" else 1
    schedule = Schedule(tuple(config["alphas"]), tuple(config["sigmas"]), scale)
    for level in range(1, schedule.levels + 1):
        small = downsample(vectors["x0"], scale, level)
        assert golden.relative_error(small, vectors[f"H{level}_x0"]) < TOLERANCE
        state = marginal(schedule, small, level, vectors[f"noise_l{level}"])
        assert golden.relative_error(state, vectors[f"x_l{level}"]) < TOLERANCE
        assert golden.relative_error(adjoint(state, scale), vectors[f"HT_x_l{level}"]) < TOLERANCE
        if level > 1:
            found = posterior(schedule, vectors[f"x_l{level}"], vectors[f"f_l{level}"], level, "scalar")
            assert golden.relative_error(found.mean, vectors[f"posterior_mean_l{level}"]) < TOLERANCE
            assert found.variance_blocks == pytest.approx(vectors[f"posterior_var_l{level}"].item(), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["net_ncsn_cond", "net_ncsn_uncond", "net_ddpm_cond", "net_adm_cond"])
@torch.no_grad()
def test_generator(name):
    network, vectors = golden.generator(name)
    sides = [key.removeprefix("io/x_") for key in vectors if key.startswith("io/x_")]
    assert len(sides) >= 2
    for side in sides:
        found = network(vectors[f"io/x_{side}"], vectors[f"io/t_{side}"], vectors.get(f"io/y_{side}"))
        assert golden.relative_error(found, vectors[f"io/out_{side}"]) < TOLERANCE


@pytest.mark.parametrize("name", ["disc_cond", "disc_uncond"])
@torch.no_grad()
def test_discriminator(name):
    network, vectors = golden.discriminator(name)
    for level in range(1, network.shape.levels + 1):
        found = network(vectors[f"io/x_{level}"], vectors[f"io/t_{level}"], vectors[f"io/y_{level}"])
        torch.testing.assert_close(found, vectors[f"io/out_{level}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 8, 12])
@torch.no_grad()
def test_groups_of_the_minibatch_deviation(batch):
    network, _ = golden.discriminator("disc_cond")
    vectors, config = golden.load("disc_batches")
    found = network(vectors[f"x_b{batch}"], config["t"], vectors[f"y_b{batch}"])
    torch.testing.assert_close(found, vectors[f"out_b{batch}"], rtol=0, atol=1e-6)


def test_published_filters_are_ours():
    _, vectors = golden.generator("net_ncsn_cond")
    filters = [value for key, value in vectors.items() if key.endswith("resample_filter")]
    assert filters
    for published in filters:
        torch.testing.assert_close(published[0, 0], Resample("down", (1, 3, 3, 1)).kernel, rtol=0, atol=0)


@torch.no_grad()
def test_sampler():
    network, _ = golden.generator("net_ncsn_cond")
    vectors, config = golden.load("sampler_paper32")
    schedule = Schedule(tuple(config["alphas"]), tuple(config["sigmas"]))
    noises = [vectors[f"eps_{index}"] for index in range(3)]
    steps = sample(schedule, network, vectors["base_image"], noises, vectors["y"])
    assert golden.relative_error(steps[-1].output, vectors["sample"]) < TOLERANCE
