"""Training with noise from a counter: a function of (seed, iteration, position), drawn by each process for its part."""

import pytest
import tiny
import torch

from udpm.core import devices
from udpm.core.distributed import RankInfo
from udpm.core.errors import StoppedEarly, UserError
from udpm.diffusion import counter
from udpm.networks.weights import load_model
from udpm.sampling.latents import EXPERIMENTS, Latents
from udpm.sampling.sampler import Sampler
from udpm.training import batch as batches
from udpm.training import noise as step_noise
from udpm.training.batch import draw_noise
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")
COUNTER = {"training__noise": "counter"}
ALL = tiny.ALL | COUNTER | {"generator__label_dropout": 0.5, "training__warmup": 0}


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


def drawn(config, player="generator", iteration=5, part=slice(0, 8), level=3):
    target = torch.zeros(len(range(8)[part]), 3, 4, 4)
    return draw_noise(config, player, iteration, level, target, torch.zeros(len(target)), 0.5, part)


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_part_is_drawn_alone(player, monkeypatch):
    """Two processes draw what one draws for the whole batch, and neither draws the other's part."""
    config = tiny.run_config(**ALL)
    whole = drawn(config, player)
    assert {"noise", "latent", "fake_noise", "real_noise", "fake_transform"} <= whole.tensors().keys()
    assert (whole.dropped_labels is not None) is (whole.redraws is not None) is (player == "generator")
    positions, original = [], counter._counter
    monkeypatch.setattr(
        counter, "_counter", lambda seed, images, *rest: positions.append(images) or original(seed, images, *rest)
    )
    for part in (slice(0, 2), slice(2, 8)):
        for name, value in drawn(config, player, part=part).tensors().items():
            assert torch.equal(value, whole.tensors()[name][part]), name
        assert set(positions) == {range(8)[part]}
        positions.clear()


def test_what_does_not_depend_on_the_kind():
    """Shapes, standard deviations, data; and the host's generator is not asked."""
    own, host = drawn(tiny.run_config(**ALL)), drawn(tiny.run_config(**ALL | {"training__noise": "host"}))
    for name, value in own.tensors().items():
        other = host.tensors()[name]
        assert (value.shape, value.stride(), value.dtype) == (other.shape, other.stride(), other.dtype), name
        assert name in ("target", "labels") or not torch.equal(value, other), name


def test_the_host_is_the_default(monkeypatch):
    config = tiny.run_config()
    assert config.training.noise == "host"
    monkeypatch.setattr(counter, "philox", None)
    whole = drawn(config)
    # Every process draws the global batch, as before there were kinds.
    generator = step_noise.StepNoise(config, "generator", 5, slice(0, 8))._generator("state")
    assert torch.equal(whole.noise, torch.randn((8, 3, 2, 2), generator=generator))


def test_iterations_players_and_seeds_differ():
    config = tiny.run_config(**ALL)
    found = [
        drawn(config).noise,
        drawn(config, iteration=6).noise,
        drawn(config, iteration=5 + 2**32).noise,
        drawn(config, "discriminator").noise,
        drawn(config.model_copy(update={"seed": 1})).noise,
    ]
    assert torch.stack(found).unique(dim=0).shape[0] == len(found)


def test_no_two_draws_share_a_counter(levels, tmp_path, monkeypatch):
    """A training with everything on, two of its processes, its images and latent-space experiments, all of one seed."""
    config, seen = tiny.run_config(**ALL), []
    original, purposes = counter.philox, set()

    def watched(blocks, key):
        seen.append((key, torch.stack(list(blocks), dim=1)))
        purposes.update((seen[-1][1][:, 0] >> counter.BLOCK_BITS).unique().tolist())
        return original(blocks, key)

    monkeypatch.setattr(counter, "philox", watched)
    for rank in range(2):
        trainer = Trainer(config, levels, CPU, RankInfo(rank, 2))
        for iteration in range(8):
            for player in ("discriminator", "generator"):
                trainer.batches(player, iteration)
    model = load_model(tiny.save_random_weights(tmp_path / "w.safetensors", generator__latent_channels=2))
    sampler = Sampler(model, batch=4, noise_kind="counter")
    sampler.sample(10, seed=config.seed)
    # Of the first latent, other maps alone: its own are those of image 0.
    sampler.latent = lambda seed: counter.Latent(torch.zeros(1, 3, 16, 16), maps(3), maps(2))
    EXPERIMENTS["pca"](sampler, Latents(labels=[1], pca_images=9))
    assert {counter.PURPOSES[number] for number in purposes} == set(counter.PURPOSES)
    assert {key for key, _ in seen} == {(config.seed, 0)}
    blocks = torch.cat([found for _, found in seen])
    assert len(blocks.unique(dim=0)) == len(blocks) > 10_000


def maps(channels):
    return tuple(torch.zeros(1, channels, side, side) for side in (2, 4, 8))


def test_the_batch_has_room():
    config = tiny.run_config(**COUNTER)
    config = config.model_copy(update={"training": config.training.model_copy(update={"batch": 2**33})})
    with pytest.raises(
        UserError, match=r"noise of kind counter: number or position of an image must be below 4294967296"
    ):
        draw_noise(config, "generator", 0, 3, torch.zeros(1, 3, 4, 4), None, 0.0, slice(2**32, 2**32 + 1))


@pytest.mark.parametrize("changes", [COUNTER, pytest.param(ALL, id="all options")])
def test_a_resumed_run_ends_with_the_same_bytes(levels, tmp_path, changes):
    config = tiny.run_config(**changes, training__iterations=6)
    train(config, levels, tmp_path / "one", stop=False)
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path / "two", tiny.StopAfter(3))
    train(config, levels, tmp_path / "two", stop=False)
    tiny.assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_threads_draw_the_same_numbers(levels):
    ahead = Trainer(tiny.run_config(**ALL, training__workers=2), levels, CPU)
    plain = Trainer(tiny.run_config(**ALL), levels, CPU)
    assert isinstance(ahead.batches, batches.Prefetcher)
    for iteration in range(3):
        for player in plain.players(iteration):
            expected = plain.batches(player, iteration).tensors()
            for name, value in ahead.batches(player, iteration).tensors().items():
                assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("before", "now"), [("host", "counter"), ("counter", "host")])
def test_another_kind_is_another_run(levels, tmp_path, before, now):
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(training__noise=before), levels, tmp_path, tiny.StopAfter(2))
    with pytest.raises(UserError, match=f"another configuration .training.noise was '{before}', is '{now}'.; undo"):
        train(tiny.run_config(training__noise=now), levels, tmp_path, stop=False)
