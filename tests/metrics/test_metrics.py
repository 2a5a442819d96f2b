"""Metrics on random features against packages that compute them their own way."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import svdvals
from sklearn.metrics.pairwise import polynomial_kernel

from udpm.core.arrays import derive_seed
from udpm.core.devices import patch_torchvision
from udpm.core.errors import UserError
from udpm.metrics import distances as module
from udpm.metrics.distances import (
    class_agreement,
    class_distances,
    distance_of_features,
    frechet_distance,
    inception_score,
    kernel_distance,
    prdc,
    statistics,
)


def features(seed, count, width, shift=0.0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, width)) + shift).astype(np.float32)


@pytest.fixture(scope="module")
def fidelity():
    patch_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity import metric_isc, metric_kid
    return metric_isc, metric_kid


def test_the_kernel_distance_of_whole_sets_equals_torch_fidelitys(fidelity):
    real, drawn = features(0, 200, 16), features(1, 200, 16, 0.3)
    options = {"kid_subsets": 1, "kid_subset_size": 200, "verbose": False}
    theirs = fidelity[1].kid_features_to_metric(torch.from_numpy(drawn), torch.from_numpy(real), **options)
    mean, spread, size = kernel_distance(real, drawn, 1, 1000)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert (spread, size) == (0, 200)


def test_the_kernel_distance_of_subsets_is_sklearns_and_seeded():
    real, drawn = features(0, 300, 8), features(1, 250, 8, 0.2)
    mean, spread, size = kernel_distance(real, drawn, 40, 100)
    assert (mean, spread, size) == kernel_distance(real, drawn, 40, 100)
    inner = [polynomial_kernel(points.astype(np.float64), coef0=1) for points in (real, drawn)]
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in inner]
    whole = sum(within) - 2 * polynomial_kernel(real.astype(np.float64), drawn.astype(np.float64), coef0=1).mean()
    assert mean == pytest.approx(whole, abs=4 * spread / np.sqrt(40))
    assert 0 < spread < 5 * abs(whole)


def test_the_kernel_distance_of_equals_is_about_nothing():
    mean, spread, _ = kernel_distance(features(0, 400, 8), features(1, 400, 8), 50, 100)
    assert abs(mean) < spread
    with pytest.raises(UserError, match="at least 2 images"):
        kernel_distance(features(0, 1, 8), features(1, 9, 8), 3, 3)


@pytest.mark.parametrize("splits", [1, 5])
def test_the_inception_score_equals_torch_fidelitys(fidelity, splits):
    logits = 3 * torch.from_numpy(features(2, 400, 10)).double()
    order = np.random.Generator(np.random.PCG64(derive_seed("inception score", "order"))).permutation(400)
    theirs = fidelity[0].isc_features_to_metric(logits[order], splits=splits, shuffle=False)
    mean, spread = inception_score(logits.softmax(1).numpy(), splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(theirs["inception_score_std"], abs=1e-6)


def test_the_inception_score_of_certain_and_of_blank_classes():
    certain, blank = np.eye(10)[np.arange(1000) % 10], np.full((1000, 10), 0.1)
    assert inception_score(certain, 1) == pytest.approx((10, 0))
    assert inception_score(blank, 10) == pytest.approx((1, 0))


def test_distances_and_agreement_by_class():
    real, drawn = features(0, 90, 4), features(1, 60, 4)
    labels, asked = np.arange(90) % 3, np.arange(60) % 3
    drawn[asked == 1] += 5
    found = class_distances(real, labels, drawn, asked)
    assert found[1] > 50 > 5 > max(found[0], found[2])
    assert found[2] == frechet_distance(*statistics(real[labels == 2]), *statistics(drawn[asked == 2]))
    assert set(class_distances(real, labels, drawn[:4], asked[:4])) == {0}
    assert class_agreement(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])) == {0: 0.5, 1: 1.0}


@pytest.mark.parametrize("block", [1 << 12, 1 << 27])
@pytest.mark.parametrize("shift", [0, 1e4])
def test_prdc_in_blocks_equals_prdcs(monkeypatch, block, shift):
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    real, drawn = features(0, 150, 6).astype(np.float64) + shift, 0.6 * features(1, 120, 6).astype(np.float64) + shift
    theirs = compute_prdc(real_features=real, fake_features=drawn, nearest_k=3)
    found = prdc(real, drawn, 3)._asdict()
    own = np.linalg.norm(real[:, None] - real[None], axis=-1) + np.diag(np.full(len(real), np.inf))
    cross = np.linalg.norm(drawn[:, None] - real[None], axis=-1)
    assert found.pop("authenticity") == (cross.min(1) > own.min(1)[cross.argmin(1)]).mean()
    assert found == pytest.approx(theirs, rel=1e-12)


def test_copies_of_training_images_are_not_authentic():
    real = features(0, 150, 6)
    others = features(1, 50, 6) * 3
    assert prdc(real, real[:100], 3).authenticity == 0
    assert prdc(real, np.concatenate([real[:50] + np.float32(1e-6), others]), 3).authenticity == pytest.approx(
        0.5, abs=0.02
    )


def test_points_on_the_edge_of_a_ball_belong_to_it():
    # Whole numbers, so that many distances equal a radius exactly; and every point twice.
    points = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(np.float32).repeat(2, axis=0)
    others = np.random.default_rng(1).integers(0, 7, (80, 3)).astype(np.float32)
    far = np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=-1)
    radii = np.sort(far, axis=1)[:, 3]
    cross = np.linalg.norm(others[:, None].astype(np.float64) - points[None], axis=-1)
    found = prdc(points, others, 3)
    assert found.precision == pytest.approx((cross <= radii).any(1).mean())
    assert found.density == pytest.approx((cross <= radii).sum(1).mean() / 3)
    assert found.coverage == pytest.approx((cross <= radii).any(0).mean())


def test_singular_covariances_have_the_distance_of_their_factors():
    # tr (Σ₁^½ Σ₂ Σ₁^½)^½ is the sum of the singular values of X₁ X₂ᵀ / √((n₁-1)(n₂-1)) for centred features X.
    one, other = features(0, 40, 256), features(1, 50, 256, 0.1)
    centred = [(part - part.mean(0, dtype=np.float64)) / np.sqrt(len(part) - 1) for part in (one, other)]
    cross = svdvals(centred[0] @ centred[1].T).sum()
    (mu, sigma), (other_mu, other_sigma) = statistics(one), statistics(other)
    expected = ((mu - other_mu) ** 2).sum() + np.trace(sigma) + np.trace(other_sigma) - 2 * cross
    found = frechet_distance(mu, sigma, other_mu, other_sigma)
    assert found == pytest.approx(expected, rel=1e-9)
    assert distance_of_features(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mu, sigma, mu, sigma) < 1e-9 * np.trace(sigma)


@pytest.mark.parametrize(("count", "tolerance"), [(900, 1e-6), (150, 1e-4)])
def test_the_frechet_distance_is_clean_fids(count, tolerance):
    patch_torchvision()
    from cleanfid.fid import frechet_distance as theirs

    one, other = statistics(features(0, count, 300)), statistics(features(1, count, 300, 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*one, *other)
    found = frechet_distance(*one, *other)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.soak
@pytest.mark.parametrize(("count", "tolerance"), [(6000, 1e-6), (1000, 1e-4)])
def test_the_frechet_distance_of_inceptions_width(count, tolerance):
    patch_torchvision()
    from cleanfid.fid import frechet_distance as theirs

    mixing = features(2, 2048, 2048) / 45
    one, other = (statistics(np.abs(features(seed, count, 2048) @ mixing) + 0.05 * seed) for seed in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*one, *other)
    assert frechet_distance(*one, *other) == pytest.approx(expected, rel=tolerance)


@pytest.mark.soak
def test_prdc_of_inceptions_width_stays_within_2_gib():
    code = (
        "import resource, numpy as np, torch; from udpm.metrics.distances import prdc; "
        "draw = np.random.default_rng(0).standard_normal; "
        "real, drawn = (draw((10_000, 2048), dtype=np.float32) for _ in range(2)); prdc(real, drawn, 3); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=True)
    assert int(done.stdout) < 2 << 20


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_statistics_of_blocks_are_those_of_the_whole(monkeypatch, rows):
    """Features far from zero, whose squares would lose digits."""
    drawn = features(0, 200, 9) + 1000
    expected = statistics(drawn)
    monkeypatch.setattr(module, "BLOCK_BYTES", rows * 9 * 8)
    for found, whole in zip(statistics(drawn), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-9)
