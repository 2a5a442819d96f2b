"""Options that keep a discriminator alive: closed forms, what the players are shown, refusals."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F

from udpm.core import devices
from udpm.core.errors import UserError
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import Discriminator, DiscriminatorShape, batch_deviation
from udpm.training import dryrun
from udpm.training.batch import draw_noise
from udpm.training.estimate import IterationCounter
from udpm.training.losses import discriminator_losses, generator_losses, loss_weights
from udpm.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- minibatch deviation ---------------------------------------------------------------------------------------------


def test_the_mean_deviation_is_the_sum_over_their_number():
    h = 3 * normal(0, 8, 5, 4, 4)
    torch.testing.assert_close(batch_deviation(h, mean=True), batch_deviation(h) / (5 * 4 * 4))
    assert batch_deviation(h, mean=True).mean().item() == pytest.approx(3, rel=0.3)


@torch.no_grad()
@pytest.mark.parametrize("deviation", ["sum", "mean", "none"])
def test_only_without_the_map_an_image_is_judged_alone(deviation):
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorShape(8, 2, 8, deviation=deviation)).eval()
    images = normal(0, 4, 3, 8, 8)
    others = torch.cat([images[:1], normal(1, 3, 3, 8, 8)])
    ours, theirs = (network(given, 0.5)[0] for given in (images, others))
    assert (deviation == "none") == torch.allclose(ours, theirs, atol=1e-6)
    assert network.final.in_channels == network.blocks[-1].conv_out.out_channels + (deviation != "none")


# --- pairs and penalties ---------------------------------------------------------------------------------------------


class Step:
    """Both players' steps at level 2 by functions in place of networks; `shown` has what the discriminator saw."""

    def __init__(self, judge, level=2, **changes):
        config = tiny.run_config(training__batch=4, **changes)
        self.schedule, self.weights = Schedule.from_config(config.process), loss_weights(config)[level - 1].at(0)
        self.target, self.output = normal(0, 4, 3, 8, 8), normal(1, 4, 3, 8, 8).requires_grad_()
        self.shown, self._judge, self.config = [], judge, config

    def batch(self, player):
        return draw_noise(self.config, player, 3, 2, self.target, torch.arange(4), self.weights.noise)

    def judge(self, image, *_, **__):
        self.shown.append(image)
        return self._judge(image)

    def discriminator(self):
        batch = self.batch("discriminator")
        return discriminator_losses(lambda *_: self.output, self.judge, self.schedule, self.weights, batch)

    def generator(self):
        batch = self.batch("generator")
        return generator_losses(lambda *_: self.output, self.judge, None, self.schedule, self.weights, batch)


RELATIVISTIC = {"losses__adversarial": "relativistic"}
WEIGHT = normal(7, 3, 8, 8) / 10


def linear(image):
    return (WEIGHT * image).sum(dim=(1, 2, 3))[:, None]


def test_a_discriminator_that_knows_nothing_has_log_2():
    step = Step(lambda image: 0 * linear(image), **RELATIVISTIC)
    assert step.discriminator()["loss"].item() == pytest.approx(math.log(2))
    assert step.generator()["adversarial"].item() == pytest.approx(math.log(2))


def test_an_output_is_compared_with_its_own_target():
    step = Step(linear, **RELATIVISTIC)
    loss = step.discriminator()["loss"]
    fake, real = step.shown
    noise = step.batch("discriminator")
    torch.testing.assert_close(fake, step.output / 2 + noise.fake_noise)
    torch.testing.assert_close(real, step.target / 2 + noise.real_noise)
    torch.testing.assert_close(loss, F.softplus(linear(fake) - linear(real)).mean())
    step.shown.clear()
    adversarial = step.generator()["adversarial"]
    fake, real = step.shown
    torch.testing.assert_close(adversarial, F.softplus(linear(real) - linear(fake)).mean())
    noise = step.batch("generator")
    torch.testing.assert_close(real, step.target / 2 + noise.real_noise)
    assert not torch.equal(noise.real_noise, noise.fake_noise)


def test_the_generators_gradient_is_the_outputs_alone():
    """Of softplus(D(real) - D(fake)) with D linear: -sigmoid(D(real) - D(fake))·w / (B·divisor)."""
    step = Step(linear, **RELATIVISTIC, losses__reconstruction_weight=0.0)
    step.target.requires_grad_()
    step.generator()["total"].backward()
    fake, real = (linear(image.detach()) for image in step.shown)
    expected = -torch.sigmoid(real - fake)[..., None, None] * WEIGHT / 8
    torch.testing.assert_close(step.output.grad, expected)
    assert not step.target.grad.any()


@pytest.mark.parametrize("changes", [{}, RELATIVISTIC])
@pytest.mark.parametrize(("gammas", "terms"), [((0.4, 0.0), {"r1"}), ((0.0, 0.6), {"r2"}), ((0.4, 0.6), {"r1", "r2"})])
def test_penalties_of_a_linear_discriminator(changes, gammas, terms):
    step = Step(linear, **changes, losses__r1_gamma=gammas[0], losses__r2_gamma=gammas[1])
    losses = step.discriminator()
    squared = WEIGHT.square().sum()
    assert losses.keys() & {"r1", "r2"} == terms
    for term in terms:
        torch.testing.assert_close(losses[term], squared)
    torch.testing.assert_close(losses["total"].detach(), losses["loss"] + sum(gammas) / 2 * squared)


def test_penalties_decay_and_are_lazy_together():
    changes = {"losses__r1_gamma": 0.4, "losses__r2_gamma": [0.6, 0.2, 0.0], "losses__r1_decay_per_1000": 0.5}
    first, *_, last = loss_weights(tiny.run_config(**changes, losses__r1_every=2))
    found = [(first.at(iteration).r1, first.at(iteration).r2) for iteration in (0, 1, 1000, 2000)]
    assert found == [pytest.approx(pair) for pair in ((0.8, 1.2), (0, 0), (0.4, 0.6), (0.2, 0.3))]
    assert last.at(0).r2 == 0


# --- training with everything on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_each_position_of_the_batch_has_its_own_draws(player):
    """Two processes draw what one draws for the whole batch."""
    config = tiny.run_config(**tiny.ALIVE)
    target, labels = torch.zeros(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64)
    whole = draw_noise(config, player, 5, 3, target, labels, 0.5)
    for part in (slice(0, 4), slice(4, 8)):
        own = draw_noise(config, player, 5, 3, target[part], labels[part], 0.5, part)
        for name, value in own.tensors().items():
            assert torch.equal(value, whole.tensors()[name][part]), name


def test_all_options_train_together(levels):
    trainer = Trainer(tiny.run_config(**tiny.ALIVE, training__warmup=0, losses__r1_gamma=0.1), levels, CPU)
    before = trainer.state.discriminator.stem.weight.detach().clone()
    for iteration in range(3):
        for player in trainer.players(iteration):
            losses = trainer.train_step(player, iteration)[1]
            assert all(value.isfinite() for value in losses.values())
            assert ("r2" in losses) == (player == "discriminator")
    assert not torch.equal(trainer.state.discriminator.stem.weight, before)


# --- cost ------------------------------------------------------------------------------------------------------------


def test_what_options_cost():
    """A pair costs the generator a call of D; R2, the discriminator what R1 does."""
    counts = [
        IterationCounter(tiny.run_config(**changes)).count(3)
        for changes in ({"losses__r1_gamma": 0.0}, {}, RELATIVISTIC | {"losses__r2_gamma": 0.5})
    ]
    without, plain, both = (count.discriminator for count in counts)
    assert both - plain == plain - without > 0
    call = counts[2].generator - counts[1].generator
    assert plain - without == pytest.approx(3 * call, rel=0.05)


def test_a_dry_run_names_them():
    text = dryrun._describe_losses(tiny.run_config(**tiny.ALIVE))
    assert "relativistic adversarial [0.5, 1.0, 1.0], R1 [0.1, 0.5, 2.0], R2 [0.3, 0.3, 0.3]" in text


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"discriminator__minibatch_deviation": "average"}, "discriminator.minibatch_deviation: input should be "),
        (
            RELATIVISTIC | {"discriminator__dropout": [0.0, 0.2, 0.0]},
            "discriminator.dropout: 0.2 at level 2 would drop",
        ),
        ({"losses__adversarial": "hinge"}, "losses.adversarial: input should be "),
        ({"losses__r2_gamma": -1.0}, "losses.r2_gamma: input should be "),
    ],
)
def test_what_cannot_be(changes, expected):
    with pytest.raises(UserError) as refusal:
        tiny.run_config(**changes)
    (line,) = str(refusal.value).splitlines()
    assert expected in line
