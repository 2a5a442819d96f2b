"""Losses and gradients of both players against vectors measured on the published code."""

import golden_vectors as golden
import pytest
import torch

from udpm.diffusion.process import downsample
from udpm.diffusion.schedule import Schedule
from udpm.interop.architecture import discriminator_names, generator_names
from udpm.training.losses import LossWeights, TrainingBatch, discriminator_losses, generator_losses

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def players():
    return golden.generator("net_ncsn_cond")[0], golden.discriminator("disc_cond")[0]


def setting(kind, level):
    vectors, config = golden.load(f"losses_{kind}")
    schedule = Schedule(tuple(config["alphas"]), tuple(config["sigmas"]))
    terms = LossWeights(
        reconstruction=config["l1_weight"][level - 1],
        lpips=0.0,
        adversarial=config["disc_weight"][level - 1],
        r1=config["disc_grad_pen"][level - 1],
        noise=config["noisy_disc_std"][level - 1] if kind == "noisy" else 0.0,
        scale=1.0,
        dropout=0.0,
        divisor=2.0 ** (level - 1) if config["normalize_loss_inp"] else 1.0,
        squared=False,
    )
    return vectors, config, schedule, terms


def draw_of(player, level, vectors, schedule, terms):
    noise = [vectors.get(f"{player}_noise{index}_l{level}") for index in range(3)]
    target = downsample(vectors["x0"], schedule.scale, level - 1)
    fake_noise, real_noise = (None if added is None else added * terms.noise for added in noise[1:])
    return TrainingBatch(level, target, vectors["y"], noise[0], fake_noise, real_noise)


def gradient_norms(network, names, published_order):
    parameters = dict(network.named_parameters())
    ours = {published: name for name, published in names.items()}
    norms = []
    for published in published_order:
        module, _, kind = published.rpartition(".")
        gradient = parameters[f"{ours[module]}.{kind}"].grad
        norms.append(-1.0 if gradient is None else gradient.norm().item())
    return torch.tensor(norms)


def assert_gradients(found, expected, whole):
    assert ((found < 0) == (expected < 0)).all()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * whole.item())


@pytest.mark.parametrize("kind", ["noisy", "standard"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_discriminator_step(players, level, kind):
    generator, discriminator = players
    vectors, config, schedule, terms = setting(kind, level)
    draw = draw_of("d", level, vectors, schedule, terms)
    discriminator.zero_grad(set_to_none=True)
    losses = discriminator_losses(generator, discriminator, schedule, terms, draw)
    assert losses["loss"].item() == pytest.approx(vectors[f"d_loss_l{level}"].item(), rel=TOLERANCE)
    losses["total"].backward()
    norms = gradient_norms(discriminator, discriminator_names(discriminator.shape), config["d_params"])
    assert_gradients(norms, vectors[f"d_gradnorms_l{level}"], vectors[f"d_gradnorm_l{level}"])


@pytest.mark.parametrize("kind", ["noisy", "standard"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_generator_step(players, level, kind):
    generator, discriminator = players
    vectors, config, schedule, terms = setting(kind, level)
    draw = draw_of("g", level, vectors, schedule, terms)
    generator.zero_grad(set_to_none=True)
    discriminator.requires_grad_(False)
    losses = generator_losses(generator, discriminator, None, schedule, terms, draw)
    discriminator.requires_grad_(True)
    assert losses["reconstruction"].item() == pytest.approx(vectors[f"g_l1_l{level}"].item(), rel=TOLERANCE)
    assert losses["adversarial"].item() == pytest.approx(vectors[f"g_adv_l{level}"].item(), rel=TOLERANCE)
    losses["total"].backward()
    norms = gradient_norms(generator, generator_names(generator.shape), config["g_params"])
    assert_gradients(norms, vectors[f"g_gradnorms_l{level}"], vectors[f"g_gradnorm_l{level}"])
