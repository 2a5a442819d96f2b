"""Scoring on a GPU."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.gpu.checks import Check, Session, expect
from benchmarks.gpu.subjects import difference
from udpm.core.files import sha256
from udpm.metrics.distances import precision_recall
from udpm.metrics.extractor import load_extractor
from udpm.metrics.extractor_networks import Classifier, Inputs

POINTS, WIDTH, NEIGHBOURS = 3000, 64, 3
SIDE, IMAGES, BATCH = 16, 500, 64
FEATURES = 1e-4


def _precision_recall(session: Session) -> str:
    """Use features with many points on the edges of balls."""
    draw = np.random.default_rng(0)
    count = POINTS if session.full else POINTS // 10
    real, drawn = (draw.standard_normal((count, WIDTH)).astype(np.float32) for _ in range(2))
    # Copies of real points and points between two of them lie in a ball or on its edge.
    drawn[: count // 3] = real[: count // 3]
    drawn[count // 3 : count // 2] += 0.5 * real[count // 3 : count // 2]
    found, expected = (precision_recall(real, drawn, NEIGHBOURS, device) for device in (session.device, "cpu"))
    return expect(found == expected, f"{found[0]:.6f}, {found[1]:.6f} for {expected[0]:.6f}, {expected[1]:.6f}")


def _extractor(session: Session) -> str:
    """Load the digits extractor's network, with random weights, from a file."""
    torch.manual_seed(0)
    network, images = Classifier(SIDE, 10).eval(), torch.zeros(2, 3, SIDE, SIDE)
    traced = torch.jit.trace_module(network, {"forward": images, "classify": network(images).detach()})
    path = session.folder / "extractor.pt"
    torch.jit.save(traced, str(path))
    shown = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    results = []
    for device in (session.device, torch.device("cpu")):
        extractor = load_extractor(path, device, Inputs())
        features = extractor.features(shown, BATCH)
        results.append((features, extractor.probabilities(features)))
    off = [difference(torch.from_numpy(ours), torch.from_numpy(theirs)) for ours, theirs in zip(*results, strict=True)]
    told = f"features differ by {off[0]:.1e}, probabilities by {off[1]:.1e} (at most {FEATURES:g})"
    return expect(max(off) <= FEATURES, f"{told}; file {sha256(path)[:8]}")


CHECKS = [
    Check("scoring", "precision and recall equal the CPU's", _precision_recall),
    Check("scoring", "a TorchScript extractor's features match the CPU's", _extractor),
]
