"""The energy score: unbiased, proper for draws that share x_l, finite where draws coincide; and trained with."""

import math

import pytest
import tiny
import torch
from torch import nn

from udpm.config.load import resolve_run
from udpm.core.errors import UserError
from udpm.diffusion.schedule import Schedule
from udpm.training.batch import draw_level, draw_noise
from udpm.training.dryrun import _describe_losses
from udpm.training.losses import energy_score
from udpm.training.trainer import Trainer

CPU = torch.device("cpu")
LATENT = {"generator__latent_channels": 1, "losses__energy_weight": [0.0, 1.0, 1.0]}


def draws(count, images=64, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, images, 3, side, side, generator=generator)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("patch", [0, 2])
def test_it_is_what_its_formula_says(exponent, patch):
    found, target = draws(3), draws(1, seed=1)[0]

    def distance(first, second):
        difference = (first - second).square().mean(dim=1, keepdim=True)
        cells = difference.unfold(2, patch or 4, patch or 4).unfold(3, patch or 4, patch or 4).mean(dim=(-1, -2))
        return cells.sqrt().pow(exponent).mean()

    error = sum(distance(draw, target) for draw in found) / 3
    apart = sum(distance(found[i], found[j]) for i in range(3) for j in range(3) if i != j) / 6
    score, spread = energy_score(found, target, exponent, patch)
    torch.testing.assert_close(score, error - apart / 2)
    torch.testing.assert_close(spread, apart / error)


def test_the_gradient_of_two_draws_is_unbiased():
    """Mean gradient of a parameter over many pairs of draws = gradient by many draws at once."""

    def gradient(count, images, seed):
        scale = torch.tensor(0.7, requires_grad=True)
        score, _ = energy_score(scale * draws(count, images, 2, seed), draws(1, images, 2, seed + 99)[0])
        return torch.autograd.grad(score, scale)[0]

    pairs = torch.stack([gradient(2, 2000, seed) for seed in range(20)])
    many = torch.stack([gradient(16, 2000, 1000 + seed) for seed in range(20)])
    error = math.hypot(pairs.std() / 20**0.5, many.std() / 20**0.5)
    assert error < 0.01
    assert abs(pairs.mean() - many.mean()) < 4 * error


@pytest.mark.parametrize("exponent", [0.1, 1.0, 1.9])
def test_draws_that_coincide_have_a_finite_gradient(exponent):
    value = torch.zeros(2, 5, 3, 4, 4, requires_grad=True)
    energy_score(value, torch.zeros(5, 3, 4, 4), exponent)[0].backward()
    assert torch.isfinite(value.grad).all()


def learned_variance(shares, snr=2.0):
    """Variance of f given x, learned for x = √snr·v + ε with v, ε ~ N(0, 1); draws share x, or have each their own."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.tensor([0.1, 0.5]))
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 600)
        target = torch.randn(4000, 1, 1, 1)
        noise = torch.randn(1 if shares else 2, 4000, 1, 1, 1)
        state = math.sqrt(snr) * target + noise
        found = weight[0] * state + weight[1] * torch.randn(2, 4000, 1, 1, 1)
        optimizer.zero_grad()
        energy_score(found, target)[0].backward()
        optimizer.step()
    return weight[1].item() ** 2


def test_draws_that_share_the_state_find_the_posterior():
    """Var[v | x] = 1/(1 + snr); draws of another x score the law given v, whose variance at fixed x is less."""
    assert learned_variance(shares=True) == pytest.approx(1 / 3, rel=0.05)
    assert learned_variance(shares=False) < 0.1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_weights_of_a_mixture_are_found(seed):
    """Two clusters in the plane, of weights 0.3 and 0.7, by a small network of noise."""
    torch.manual_seed(seed)
    centres, shares = torch.tensor([[-1.0, 0.5], [1.0, -0.5]]), torch.tensor([0.3, 0.7])
    network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    steps = 800
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        target = centres[torch.multinomial(shares, 512, replacement=True)] + 0.1 * torch.randn(512, 2)
        found = network(torch.randn(4 * 512, 2)).reshape(4, 512, 1, 1, 2)
        optimizer.zero_grad()
        energy_score(found, target.reshape(512, 1, 1, 2))[0].backward()
        optimizer.step()
    with torch.no_grad():
        found = network(torch.randn(20000, 2))
    assert (found[:, 0] > 0).float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_all_draws_of_a_step_share_the_state(levels):
    config = tiny.run_config(**LATENT, losses__energy_draws=3)
    schedule = Schedule.from_config(config.process)
    trainer = Trainer(config, levels, CPU)
    seen = set()
    for iteration in range(12):
        batch = trainer.batches("generator", iteration)
        inputs = batch.inputs(schedule, batch.state(schedule))
        count = 1 if batch.level == 1 else 3
        assert inputs.shape[:2] == (count * config.training.batch, 4)
        first, *others = inputs.chunk(count)
        for other in others:
            assert torch.equal(other[:, :3], first[:, :3])
            assert not torch.equal(other[:, 3], first[:, 3])
        seen.add(batch.level)
    assert seen == {1, 2, 3}


def test_the_noise_of_the_coarsest_state_is_drawn_anew(levels):
    config = tiny.run_config(losses__energy_weight=[0.0, 0.0, 1.0], losses__energy_redraw=True)
    schedule, trainer = Schedule.from_config(config.process), Trainer(config, levels, CPU)
    for iteration in range(12):
        batch = trainer.batches("generator", iteration)
        inputs = batch.inputs(schedule, batch.state(schedule))
        assert len(inputs) == (2 if batch.level == 3 else 1) * config.training.batch
        if batch.level == 3:
            first, second = inputs.chunk(2)
            # The image's share in x_3 is 0.0027; the noise of both is the schedule's.
            assert (first - second).std().item() == pytest.approx(math.sqrt(2) * schedule.sigma_tilde(3), rel=0.2)


def test_a_level_without_adversarial_weight_takes_no_discriminator_step(levels, tmp_path):
    config = tiny.run_config(losses__adversarial_weight=[1.0, 0.0, 0.0], training__iterations=1)
    trainer = Trainer(config, levels, CPU)
    steps = {iteration: trainer.players(iteration) for iteration in range(30)}
    for iteration, players in steps.items():
        assert ("discriminator" in players) == (draw_level(config, "discriminator", iteration) == 1)
    assert len({len(players) for players in steps.values()}) == 2


def test_each_position_of_the_batch_has_its_own_draws():
    """Two processes draw what one draws for the whole batch."""
    config = tiny.run_config(**LATENT, losses__energy_redraw=True, losses__energy_draws=3)
    target, labels = torch.zeros(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64)
    whole = draw_noise(config, "generator", 5, 3, target, labels, 0.0)
    for part in (slice(0, 4), slice(4, 8)):
        own = draw_noise(config, "generator", 5, 3, target[part], labels[part], 0.0, part)
        for name, value in own.tensors().items():
            assert torch.equal(value, whole.tensors()[name][part]), name
    assert whole.latent.shape == (8, 3, 1, 2, 2)
    assert whole.redraws.shape == (8, 2, 3, 2, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses__energy_draws": 1}, "losses.energy_draws: "),
        ({"losses__energy_exponent": 2.0}, "losses.energy_exponent: "),
        ({"losses__energy_exponent": 0.0}, "losses.energy_exponent: "),
        ({"losses__energy_weight": [0.0, 1.0, 0.0]}, "at level 2, where all draws are the same"),
        ({"losses__energy_weight": [0.0, 0.0, 1.0]}, "or losses.energy_redraw"),
        ({"losses__energy_weight": [0.0, 1.0, 1.0], "losses__energy_redraw": True}, "at level 2, where all draws"),
        ({"losses__energy_redraw": True, "process__alphas": [0.5, 0.2, 0.1]}, "signal-to-noise ratio of x_3 is"),
        ({**LATENT, "losses__energy_patch": 3}, "losses.energy_patch: 3 does not divide 8"),
        ({"losses__energy_weight": [1.0, 1.0]}, "losses.energy_weight: "),
        ({"generator__latent_channels": -1}, "generator.latent_channels: "),
    ],
)
def test_what_it_cannot_be(changes, expected):
    with pytest.raises(UserError) as refusal:
        tiny.run_config(**changes)
    assert expected in str(refusal.value)


def test_the_last_ratio_is_the_schedules():
    for name in ("digits", "cifar10", "ffhq64"):
        process = resolve_run(name, 0, tiny.ROOT / "config").process
        schedule = Schedule.from_config(process)
        assert process.last_snr == schedule.snr(schedule.levels)


def test_a_dry_run_names_it():
    assert "energy score [0.0, 1.0, 1.0]" in _describe_losses(tiny.run_config(**LATENT))
