"""Memory of a training, estimated without values."""

from functools import cache
from itertools import pairwise

import pytest
import tiny
import torch
from torch.autograd.graph import saved_tensors_hooks

from udpm.config.load import resolve_run
from udpm.core.errors import UserError
from udpm.training import dryrun
from udpm.training.dryrun import AsOnGPU, BatchMemory, LiveBytes, _Steps, estimate_memory
from udpm.training.estimate import IterationCounter, estimate_resources
from udpm.training.losses import loss_weights
from udpm.training.trainer import Trainer

WIDE = {"generator__channels": 32, "discriminator__channels": 32, "losses__lpips_weight": 0.0}


def run_config(**changes):
    return tiny.run_config(**WIDE | {"losses__r1_gamma": 0.5, "training__precision": "float32"} | changes)


@cache
def plain_memory():
    return estimate_memory(run_config())


def at_level(level):
    return [float(other == level) for other in (1, 2, 3)]


@pytest.mark.parametrize("changes", [{}, {"training__accumulate": 2}, tiny.ALIVE | {"losses__r1_gamma": 0.0}])
def test_the_estimate_is_what_a_real_iteration_takes(levels, changes):
    config = run_config(**changes, training__level_probabilities=at_level(1))
    with LiveBytes() as counted:
        trainer = Trainer(config, levels, torch.device("cpu"))
        for _ in range(2):
            trainer.iterate()
    assert estimate_memory(config).total == pytest.approx(counted.peak, rel=0.03)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_forward_pass_keeps_what_autograd_saves(levels, player, level):
    config = run_config(training__level_probabilities=at_level(level))
    trainer = Trainer(config, levels, torch.device("cpu"))
    weights, batch = trainer.loss_weights[level - 1].at(0), trainer.batches(player, 0)
    compute = trainer.losses_of(player, weights)
    own = {value.untyped_storage().data_ptr() for value in trainer.state.tensors().values()}
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        losses = compute(weights, batch)
    saved = sum(size for address, size in kept.items() if address not in own)
    assert losses["total"].requires_grad
    counter = IterationCounter(config)
    with LiveBytes() as counted, AsOnGPU():
        total = counter.forward(player, level, loss_weights(config)[level - 1].at(0), 8)
    assert total.requires_grad
    assert counted.live == pytest.approx(saved, rel=0.03)


def test_storages_count_until_they_are_freed():
    with LiveBytes() as counted:
        value = torch.empty(1024, device="meta", requires_grad=True)
        twice = value.sin()[:512].exp()
        assert counted.live == 4096 + 2048
        del twice
        assert (counted.live, counted.peak) == (4096, 4096 + 4096 + 2048)
        assert torch.empty(1, device="meta").untyped_storage().nbytes() == 4
        assert counted.live == 4096


def test_types_are_those_of_a_gpu():
    """CUDA's autocast normalizes in float32 and converts a weight once; a CPU's does not."""
    with torch.device("meta"):
        image, conv = torch.empty(4, 8, 4, 4), torch.nn.Conv2d(8, 8, 3, padding=1)
        norm = torch.nn.GroupNorm(2, 8)
    with AsOnGPU(), torch.autocast("cpu", torch.bfloat16):
        one = conv(image)
        assert (one.dtype, norm(one).dtype, torch.nn.functional.softplus(one).dtype) == (
            torch.bfloat16, torch.float32, torch.float32
        )  # fmt: skip
        with LiveBytes() as counted:
            two = conv(image.bfloat16())
        assert counted.live == two.nbytes + image.nbytes // 2
        with torch.autocast("cpu", enabled=False):
            assert conv(image).dtype == torch.float32


def test_attention_and_dropout_keep_what_fused_kernels_keep():
    with torch.device("meta"):
        query = torch.empty(1, 1, 4096, 8, requires_grad=True)
    with LiveBytes() as counted, AsOnGPU():
        mixed = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert mixed.nbytes <= counted.live < 2 * mixed.nbytes
    with LiveBytes() as counted, AsOnGPU():
        dropped = torch.nn.functional.dropout(query, 0.5)
    assert counted.live == dropped.nbytes * 5 // 4


def test_bfloat16_and_small_parts_take_less():
    less = [{"training__precision": "bfloat16"}, {"training__accumulate": 2}]
    sizes = [plain_memory().kept, *(estimate_memory(run_config(**changes)).kept for changes in less)]
    assert all(less < more for more, less in pairwise(sizes))


def test_r1_and_the_finest_level_take_most():
    found = plain_memory()
    assert (found.player, found.level) == ("discriminator", 1)
    assert estimate_memory(run_config(losses__r1_gamma=0.0)).kept < found.kept
    steps = _Steps(run_config(losses__r1_gamma=[0.0, 0.0, 0.5]), None)
    assert steps.largest() == [("discriminator", 1), ("discriminator", 3), ("generator", 1)]
    config = run_config(losses__r1_every=4, training__discriminator_every=2, losses__adversarial_start=3)
    assert estimate_memory(config).kept == found.kept


def test_recorded_passes_have_separate_gradients():
    plain, recorded = plain_memory(), estimate_memory(run_config(training__cuda_graphs=True))
    assert recorded.state - plain.state == 2 * estimate_resources(run_config(), 1).gradients
    # Another step is called while the memory of the largest one's recording is held; the same, if its weight decays.
    assert 1.2 * plain.kept < recorded.kept < 1.9 * plain.kept
    decaying = estimate_memory(run_config(training__cuda_graphs=True, losses__r1_decay_per_1000=0.9))
    assert decaying.kept == 2 * plain.kept
    assert decaying.per_image == pytest.approx(2 * plain.per_image)


def test_recordings_are_of_the_steps_that_are_taken(monkeypatch):
    """The discriminator has one with R1 and one without at each of the two levels where it has a weight."""
    monkeypatch.setattr(_Steps, "peak", lambda *_: 0)
    changes = {"losses__adversarial_weight": [0.0, 0.5, 0.5], "losses__r1_every": 2, "training__cuda_graphs": True}
    config = run_config(**changes)
    needs = estimate_resources(config, 1)
    generator, discriminator = (4 * count for count in needs.parameters.values())
    assert estimate_memory(config).state == needs.state + 2 * generator + 3 * discriminator
    # Parts of a batch are summed outside of the recordings.
    accumulating = estimate_memory(run_config(**changes, training__accumulate=2))
    assert accumulating.state == needs.state + 3 * generator + 4 * discriminator


def test_the_batch_that_fits():
    found = BatchMemory(
        state=10**9, perceptual=0, batch=64, kept=64 * 10**8, level=1, player="generator", per_image=1e8
    )
    assert [found.largest_batch(size) for size in (1, 2.5, 24, 80)] == [0, 2, 196, 700]
    # Linear in the batch, so that an estimate of another batch confirms it.
    small = plain_memory()
    twice = estimate_memory(run_config(), batch=2 * small.batch)
    assert twice.kept == pytest.approx(small.kept + small.batch * small.per_image, rel=0.03)


def test_a_dry_run_without_lpips(monkeypatch):
    def missing(*_):
        raise UserError("no lpips")

    config = resolve_run("cifar10", 0, tiny.ROOT / "config")
    monkeypatch.setattr(dryrun, "load_lpips", missing)
    monkeypatch.setattr(dryrun, "estimate_memory", lambda config, perceptual: estimate_memory(run_config(), perceptual))
    assert "(without LPIPS, which is not installed): the state, and " in dryrun._describe_gpu(config)
