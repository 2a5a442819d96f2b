"""Options that keep a discriminator alive: closed forms, what the players are shown, refusals."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F

from udpm.config.training import Augmentation
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import Discriminator, DiscriminatorShape, batch_deviation
from udpm.training import dryrun
from udpm.training.augmentation import (
    COLOURS,
    DRAWS,
    GEOMETRY,
    check_colours,
    draw_parameters,
    move,
    probability_at,
    transform,
)
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
    own = (linear(real) > linear(fake)).float().mean()
    torch.testing.assert_close(step.discriminator()["auc"], own)
    step.shown[:] = []
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


# --- augmentation ----------------------------------------------------------------------------------------------------


def parameters(mirrored=0, down=0, right=0, square=(0, 0, 0, 0), colours=()):
    return torch.tensor([[mirrored, down, right, *square, *colours]], dtype=torch.float32)


def drawn(section, side=16, iteration=10, count=4000):
    uniform = torch.rand(count, DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    section = Augmentation(**section)
    return draw_parameters(section, side, probability_at(section, iteration), uniform)


def test_images_move_by_whole_pixels():
    image = normal(0, 1, 3, 4, 6)
    down = transform(image, parameters(down=1, right=-2))
    assert torch.equal(down[..., 1:, :-2], image[..., :-1, 2:])
    assert not down[..., 0, :].any()
    assert not down[..., -2:].any()
    assert torch.equal(transform(image, parameters(mirrored=1)), image.flip(-1))
    assert torch.equal(transform(image, parameters(mirrored=1, right=1))[..., 1:], image.flip(-1)[..., :-1])
    cut = transform(image, parameters(square=(-1, 4, 2, 6)))
    expected = image.clone()
    expected[..., :2, 4:] = 0
    assert torch.equal(cut, expected)
    assert torch.equal(transform(image, parameters(colours=(0, 0, 0))), image)


def test_colours():
    image = normal(0, 1, 3, 4, 4)
    torch.testing.assert_close(transform(image, parameters(colours=(0.3, 0, 0))), image + 0.3)
    grey = transform(image, parameters(colours=(0, -1, 0)))
    torch.testing.assert_close(grey, image.mean(dim=1, keepdim=True).expand_as(image))
    half = transform(image, parameters(colours=(0, 0, -0.5)))
    torch.testing.assert_close(half, (image + image.mean()) / 2)


def test_parameters_are_uniform():
    found = drawn({"flip": True, "translation": 0.125, "cutout": 0.5, "colour": 0.8})
    assert found.shape == (4000, GEOMETRY + COLOURS)
    mirrored, down, right, top, left, bottom, far, *colours = found.unbind(1)
    assert mirrored.mean().item() == pytest.approx(0.5, abs=0.03)
    for shift in (down, right):
        assert torch.bincount((shift + 2).long()).tolist() == [pytest.approx(800, abs=120)] * 5
    for first, end in ((top, bottom), (left, far)):
        assert (end - first == 8).all()
        assert torch.bincount((first + 4).long()).tolist() == [pytest.approx(4000 / 17, abs=70)] * 17
    for values, largest in zip(colours, (0.4, 0.8, 0.4), strict=True):
        assert values.std().item() == pytest.approx(largest / 3**0.5, rel=0.05)
        assert values.abs().max() <= largest
    # A shift of 1/8 of 4 pixels is one pixel; a cut of 3 pixels is around a pixel.
    small = drawn({"translation": 0.125, "cutout": 0.75}, side=4)
    assert small[:, 1].unique().tolist() == [-1, 0, 1]
    assert small[:, 3].unique().tolist() == [-1, 0, 1, 2]
    assert not small[:, 0].any()


def test_the_probability_rises_along_half_a_cosine():
    section = {"translation": 0.5, "probability": 0.8, "ramp": 100}
    found = [probability_at(Augmentation(**section), iteration) for iteration in (0, 25, 50, 100, 1000)]
    assert found == pytest.approx([0, 0.4 * (1 - 0.5**0.5), 0.4, 0.8, 0.8])
    assert not drawn(section, iteration=0).any(dim=0)[:3].any()
    moved = drawn(section, iteration=50)[:, 1:3].any(dim=1).float().mean().item()
    assert moved == pytest.approx(0.4 * (1 - 1 / 17**2), abs=0.03)
    image = normal(0, 4000, 3, 2, 2)
    assert torch.equal(transform(image, drawn(section, side=2, iteration=0)), image)


AUGMENTED = {"losses__augmentation": tiny.ALIVE["losses__augmentation"] | {"probability": 1.0, "ramp": 0}}
DIFFUSION = {"losses__discriminator_noise": {"kind": "diffusion", "std": 0.0, "decay_per_1000": 1.0}}


@pytest.mark.parametrize("kind", [{}, DIFFUSION])
def test_both_players_show_transformed_images_with_noise_on_top(kind):
    step = Step(linear, **AUGMENTED, **RELATIVISTIC, **kind)
    scale = step.weights.scale
    assert scale == (0.5 if kind else 1)
    for player, play in (("discriminator", step.discriminator), ("generator", step.generator)):
        step.shown.clear()
        play()
        batch = step.batch(player)
        fake, real = step.shown
        torch.testing.assert_close(fake, scale * transform(step.output / 2, batch.fake_transform) + batch.fake_noise)
        torch.testing.assert_close(real, scale * transform(step.target / 2, batch.real_transform) + batch.real_noise)
        assert not torch.equal(batch.fake_transform, batch.real_transform)


def test_penalties_are_of_the_image_before_transforms():
    step = Step(linear, **AUGMENTED, losses__r1_gamma=0.4, losses__r2_gamma=0.6)
    losses, batch = step.discriminator(), step.batch("discriminator")
    for term, found in (("r1", batch.real_transform), ("r2", batch.fake_transform)):
        _, gradient = torch.autograd.functional.vjp(
            lambda image, given=found: transform(image, given), step.target, WEIGHT.expand(4, -1, -1, -1)
        )
        torch.testing.assert_close(losses[term], gradient.square().sum(dim=(1, 2, 3)).mean())
        # The cut and the edges have no gradient.
        assert losses[term] < 0.9 * WEIGHT.square().sum()


def test_gradients_of_gradients_flow_through_transforms():
    image = normal(0, 2, 3, 4, 4).double().requires_grad_()
    both = parameters(1, 1, -1, (1, 0, 3, 2), (0.1, 0.5, -0.3)).expand(2, -1)
    assert torch.autograd.gradgradcheck(lambda image: transform(image, both).pow(2), image)


def test_a_state_that_is_seen_moves_with_its_image():
    step, seen = Step(linear, **AUGMENTED, discriminator__sees_state=True), []
    step.judge = lambda image, time, labels, dropout, state: (seen.append(state), linear(image))[1]
    step.discriminator()
    step.generator()
    for state, (player, name) in zip(
        seen, (("discriminator", "fake"), ("discriminator", "real"), ("generator", "fake")), strict=True
    ):
        batch = step.batch(player)
        large = F.interpolate(batch.state(step.schedule), scale_factor=2, mode="nearest")
        torch.testing.assert_close(state, move(large, batch.tensors()[f"{name}_transform"]))


def test_grey_images_have_no_colours_to_transform(levels):
    colours = Augmentation(colour=0.5)
    for modes, grey in (({"L": 2, "I;16": 1}, True), ({"L": 2, "RGB": 1}, False), ({}, False)):
        store = SimpleNamespace(folder="images", record={"preprocessing": {"modes": modes}})
        with pytest.raises(UserError, match="all images in images are grey") if grey else nullcontext():
            check_colours(colours, SimpleNamespace(store=store))
    check_colours(Augmentation(flip=True), levels)


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
    assert "augmentation with probability 0.9" in text


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
        (
            {"losses__augmentation": {"colour": 0.5}},
            "losses.augmentation.colour: 0.5, but data set digits is grey; use 0",
        ),
        ({"losses__augmentation": {"translation": 0.6}}, "losses.augmentation.translation: input should be less than"),
        ({"losses__augmentation": {"cutout": 1.0}}, "losses.augmentation.cutout: input should be less than 1"),
        (
            {"losses__augmentation": {"probability": 0.0}},
            "losses.augmentation.probability: input should be greater than 0",
        ),
        ({"losses__augmentation": {"flips": True}}, "losses.augmentation.flips: unknown key; did you mean flip?"),
        (
            {"losses__augmentation": {"ramp": -1}},
            "losses.augmentation.ramp: input should be greater than or equal to 0",
        ),
        ({"losses__augmentation": True}, "losses.augmentation: input should be a section"),
        ({"losses__r2_gamma": -1.0}, "losses.r2_gamma: input should be "),
    ],
)
def test_what_cannot_be(changes, expected):
    with pytest.raises(UserError) as refusal:
        tiny.run_config(**changes)
    (line,) = str(refusal.value).splitlines()
    assert expected in line
