"""Laws of the process: H Hᵀ = I, variances of the forward chain and of both posteriors, seeds, closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udpm.diffusion.process import adjoint, downsample, marginal, noise_sides, posterior, project, sample, step
from udpm.diffusion.schedule import Schedule

PAPER = Schedule((0.5, 0.2, 1e-3), (0.1, 0.2, 0.3))


def images(count, side, seed):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_papers_numbers():
    assert [PAPER.alpha_bar(level) for level in (0, 1, 2, 3)] == pytest.approx([1, 0.5, 0.1, 1e-4])
    assert [PAPER.sigma_tilde(level) for level in (1, 2, 3)] == pytest.approx([0.1, 0.2009975, 0.3], rel=1e-6)
    assert [PAPER.signal(level) for level in (1, 2, 3)] == pytest.approx([1, 0.4, 8e-4])
    assert [PAPER.snr(level) for level in (1, 2, 3)] == pytest.approx([10, 1.99, 0.0027], rel=2e-2)
    assert [PAPER.time(level) for level in (1, 2, 3)] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    variances = [posterior(PAPER, torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4), i, "scalar") for i in (2, 3)]
    assert [found.variance_blocks for found in variances] == pytest.approx([0.009901, 0.0404], rel=1e-4)


@pytest.mark.parametrize(
    ("alphas", "sigmas", "scale"),
    [
        ((), (), 2),
        ((0.5,), (0.1, 0.2), 2),
        ((1.5,), (0.1,), 2),
        ((0.0,), (0.1,), 2),
        ((0.5,), (0.0,), 2),
        ((0.5,), (math.inf,), 2),
        ((0.5,), (0.1,), 3),
    ],
)
def test_a_schedule_is_validated(alphas, sigmas, scale):
    with pytest.raises(ValueError, match=r"alpha|sigma|scale"):
        Schedule(alphas, sigmas, scale)


@settings(max_examples=25, deadline=None)
@given(
    times=st.integers(1, 3),
    small=st.integers(1, 4),
    scale=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
def test_operator_and_adjoint(times, small, scale, seed):
    low, high = images(2, small, seed), images(2, small * 2**times, seed + 1)
    again = downsample(adjoint(low, scale, times), scale, times)
    torch.testing.assert_close(again, (scale**2 / 4) ** times * low)
    inner = (downsample(high, scale, times) * low).sum()
    torch.testing.assert_close((high * adjoint(low, scale, times)).sum(), inner)
    torch.testing.assert_close(adjoint(downsample(high, scale), scale), scale**2 / 4 * project(high))
    torch.testing.assert_close(project(project(high)), project(high))


def test_forward_chain_has_the_marginals_moments():
    x0, count = images(1, 8, 0), 40_000
    state = x0.expand(count, -1, -1, -1)
    for level in (1, 2, 3):
        noise = images(count, 8 >> level, level)
        state = step(PAPER, state, level, noise)
        expected = marginal(PAPER, downsample(x0, 2, level), level, torch.zeros(1, 3, 8 >> level, 8 >> level))
        deviation = PAPER.sigma_tilde(level)
        assert (state.mean(0) - expected[0]).abs().max() < 5 * deviation / math.sqrt(count)
        assert state.var(0) == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("form", ["scalar", "exact"])
@pytest.mark.parametrize("level", [2, 3])
def test_posterior_has_the_closed_forms_moments(scale, form, level):
    schedule = Schedule(PAPER.alphas, PAPER.sigmas, scale)
    state, output, count = images(1, 2, 0), images(1, 4, 1), 40_000
    alpha, sigma, prior = schedule.alpha(level), schedule.sigma(level), schedule.sigma_tilde(level - 1)
    operator = torch.stack([downsample(image, scale).flatten() for image in torch.eye(16).double().view(-1, 1, 4, 4)])
    gram = torch.eye(16).double() if form == "scalar" else operator @ operator.T
    covariance = torch.linalg.inv(alpha**2 / sigma**2 * gram + torch.eye(16).double() / prior**2)
    natural_mean = alpha / sigma**2 * adjoint(state, scale) + schedule.alpha_bar(level - 1) / prior**2 * output
    mean = (natural_mean.reshape(3, 16) @ covariance).reshape(1, 3, 4, 4)
    found = posterior(schedule, state, output, level, form)
    torch.testing.assert_close(found.mean, mean)
    drawn = (found.draw(images(count, 4, 2)) - mean)[:, 0].reshape(count, 16)
    empirical = drawn.T @ drawn / count
    assert (empirical - covariance).abs().max() < 6 * covariance.max() * math.sqrt(2 / count)


def test_exact_posterior_is_bayes_rule():
    """x_{l-1} | x_l, x_0 from the joint Gaussian of the forward process itself."""
    level, x0 = 2, images(1, 8, 3)
    previous, operator = downsample(x0, 2), torch.eye(16).double().view(-1, 1, 4, 4)
    matrix = torch.stack([downsample(image, 2).flatten() for image in operator]).T
    prior = PAPER.sigma_tilde(1) ** 2 * torch.eye(16).double()
    alpha, sigma = PAPER.alpha(level), PAPER.sigma(level)
    cross = prior @ (alpha * matrix).T
    gain = cross @ torch.linalg.inv(alpha**2 * matrix @ prior @ matrix.T + sigma**2 * torch.eye(4).double())
    mean_previous = PAPER.alpha_bar(1) * previous.reshape(3, 16)
    state = images(1, 2, 4)
    expected = mean_previous + (state.reshape(3, 4) - alpha * mean_previous @ matrix.T) @ gain.T
    found = posterior(PAPER, state, previous, level, "exact")
    torch.testing.assert_close(found.mean.reshape(3, 16), expected)
    covariance = prior - gain @ cross.T
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(values.min().item(), found.variance_blocks)
    torch.testing.assert_close(values.max().item(), found.variance_rest)


def test_chain_calls_the_network_once_per_level():
    calls = []

    def network(x, time, labels):
        calls.append((x.shape[-1], time))
        return torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])

    noises = [torch.zeros(1, 3, side, side) for side in noise_sides(PAPER, 32)]
    steps = sample(PAPER, network, torch.zeros(1, 3, 32, 32), noises)
    assert calls == [(4, PAPER.time(3)), (8, PAPER.time(2)), (16, PAPER.time(1))]
    assert steps[-1].output.shape == (1, 3, 32, 32)


def test_the_chain_starts_at_the_marginals_deviation():
    side, count = 8, 20_000
    seen = []

    def network(x, time, labels):
        seen.append(x)
        return torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])

    noises = [images(count, small, index).float() for index, small in enumerate(noise_sides(PAPER, side))]
    sample(PAPER, network, images(count, side, 9).float(), noises)
    assert seen[0].std().item() == pytest.approx(0.3, rel=0.02)
