"""Scoring on a GPU."""

from __future__ import annotations

import time
from functools import partial
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.checks import Check, Session, expect
from benchmarks.gpu.subjects import difference
from udpm.core.files import sha256
from udpm.metrics import distances
from udpm.metrics.distances import prdc
from udpm.metrics.extractor import load_extractor
from udpm.metrics.extractor_networks import Classifier, Inputs

POINTS, WIDTH, NEIGHBOURS = 3000, 64, 3
SIDE, IMAGES, BATCH = 16, 500, 64
FEATURES = 1e-4
NEAREST = (2048, 16384)
"""Images whose nearest ones are looked for, and among how many."""


def _prdc(session: Session) -> str:
    """Use features with many points on the edges of balls."""
    draw = np.random.default_rng(0)
    count = POINTS if session.full else POINTS // 10
    real, drawn = (draw.standard_normal((count, WIDTH)).astype(np.float32) for _ in range(2))
    # Copies of real points and points between two of them are in a ball or on its edge.
    drawn[: count // 3] = real[: count // 3]
    drawn[count // 3 : count // 2] += 0.5 * real[count // 3 : count // 2]
    found, expected = (prdc(real, drawn, NEIGHBOURS, device) for device in (session.device, "cpu"))
    figures = (", ".join(f"{value:.6f}" for value in values) for values in (found, expected))
    return expect(found == expected, " for ".join(figures))


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
    text = f"features differ by {off[0]:.1e}, probabilities by {off[1]:.1e} (at most {FEATURES:g})"
    return expect(max(off) <= FEATURES, f"{text}; file {sha256(path)[:8]}")


def _nearest(session: Session) -> str:
    """Time one thread of the host, with each kind of product that it has."""
    count, bank = NEAREST if session.full else (64, 128)
    draw = np.random.default_rng(0)
    images, others = (draw.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8) for size in (count, bank))
    torch.set_num_threads(1)
    found, texts = [], []
    for int8 in (False, True) if distances.has_int8_products() else (False,):
        with mock.patch.object(distances, "has_int8_products", partial(bool, int8)):
            began = time.perf_counter()
            found.append(distances.nearest_images(images, others))
            seconds = time.perf_counter() - began
        scaled = seconds * 50_000 / count * 50_000 / bank
        way = "int8" if int8 else "float32"
        session.report.timings.append({"of": "nearest images", "way": way, "seconds": seconds, "scaled": scaled})
        texts.append(f"{way} {scaled:.0f} s")
    same = all(np.array_equal(one, other) for pair in found for one, other in zip(pair, found[0], strict=True))
    return expect(same, f"of 50 000 images among 50 000, scaled from {count} × {bank}: {', '.join(texts)}")


CHECKS = [
    Check("scoring", "precision, recall, density and coverage equal the CPU's", _prdc),
    Check("scoring", "a TorchScript extractor's features match the CPU's", _extractor),
    Check("scoring", "nearest images on one core of the host", _nearest),
]
