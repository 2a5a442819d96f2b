"""A small classifier, trained on a data set's training split, whose features score what a model draws of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from udpm.core import provenance
from udpm.core.arrays import derive_seed, sealed
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256, write_json
from udpm.data.store import Store
from udpm.metrics.extractor import FORMAT, SEALED

EPOCHS = 40
BATCH = 64
RATE = 2e-3
FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and two linear layers; `forward` gives the features before the last one.

    Args:
        side: of the images, divisible by 4.
        classes: number of classes.
    """

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (side // 4) ** 2, FEATURES)
        self.last = nn.Linear(FEATURES, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) in [0, 255] to (N, 64)."""
        h = F.max_pool2d(F.relu(self.first(images / 127.5 - 1)), 2)
        h = F.max_pool2d(F.relu(self.second(h)), 2)
        return F.relu(self.hidden(h.flatten(1)))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """(N, 64) to (N, classes) logits."""
        return self.last(features)


def train_classifier(store: Store, seed: int, output: str | Path) -> float:
    """Train on the training split, measure on the test split, and write a TorchScript file and its record.

    Args:
        store: labelled images with a test split.
        seed: of weights, order and shifts.
        output: the TorchScript file; the record gets the same name with .json.

    Returns:
        Accuracy on the test split.

    Raises:
        UserError: no labels, no test split, or a side that is not divisible by 4.
    """
    if store.classes < 2:
        raise UserError(f"{store.folder}: has no classes; a classifier needs at least 2")
    if store.side % 4:
        raise UserError(f"{store.folder}: side is {store.side}; the classifier needs a multiple of 4")
    test = store.split("test")
    torch.manual_seed(derive_seed(seed, "classifier"))
    network = Classifier(store.side, store.classes)
    _fit(network, *_tensors(store, store.split("train")), seed)
    images, labels = _tensors(store, test)
    with torch.inference_mode():
        accuracy = (network.classify(network(images)).argmax(1) == labels).float().mean().item()
    _write(network.eval(), store, seed, accuracy, len(images), Path(output))
    return accuracy


def _fit(network: Classifier, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(derive_seed(seed, "classifier order"))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            shifts = torch.randint(-1, 2, (2,), generator=generator).tolist()
            batch = torch.roll(images[chosen], shifts, dims=(2, 3))
            loss = F.cross_entropy(network.classify(network(batch)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _tensors(store: Store, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.array(store.images[part])).permute(0, 3, 1, 2).float()
    return images, torch.from_numpy(store.labels[part])


def _write(network: Classifier, store: Store, seed: int, accuracy: float, count: int, path: Path) -> None:
    # Traced, because scripting lists a layer's constants in another order in every process; saved through
    # a buffer, because the archive would carry the temporary file's name. Same command, same bytes.
    images = torch.zeros(2, 3, store.side, store.side)
    traced = torch.jit.trace_module(network, {"forward": images, "classify": network(images).detach()})
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    record = {
        "format": FORMAT,
        "name": store.folder.name,
        "side": store.side,
        "classes": store.classes,
        "dataset_sha256": store.digest,
        "seed": seed,
        "heldout_accuracy": round(accuracy, 6),
        "heldout_count": count,
        "sha256": sha256(path),
        "provenance": provenance.record(),
    }
    write_json(path.with_suffix(".json"), sealed(record, SEALED))
