"""The networks behind extractors: Inception as clean-fid and StyleGAN load it, and a small classifier to train."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from udpm.core import provenance
from udpm.core.arrays import derive_seed, sealed
from udpm.core.devices import is_device_failure, patch_torchvision
from udpm.core.errors import UserError, first_line
from udpm.core.files import INCEPTION, atomic_path, sha256, write_json
from udpm.data.store import Store

FORMAT = "udpm-extractor/1"
SEALED = ("format", "name", "side", "classes", "dataset_sha256", "seed", "heldout_accuracy", "heldout_count", "sha256")
"""Keys that the digest of an extractor's record covers."""

RANGES = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
LIBRARIES = {"pil": "PIL", "pytorch": "PyTorch"}


@dataclass(frozen=True)
class Inputs:
    """Preprocessing: image bytes to a network's input.

    Attributes:
        side: to resize to; None keeps the images' own.
        resize: library and filter, such as pil_bicubic; unused without a side.
        range: of the input, to which 0..255 is mapped.
        rounded: to bytes after resizing.
        note: on the network's own preprocessing, for the record.
    """

    side: int | None = None
    resize: str = "pil_bicubic"
    range: str = "0..255"
    note: str = ""
    rounded: bool = False

    def describe(self) -> str:
        """Describe the preprocessing for protocols; part of an extractor's identity."""
        low, high = RANGES[self.range]
        if self.side is None:
            text = f"none: images enter the extractor at their own side, in [{low:g}, {high:g}]"
        else:
            library, how = self.resize.split("_")
            how += ", rounded to bytes" if self.rounded else ""
            text = f"to {self.side}×{self.side} by clean-fid's {LIBRARIES[library]} {how}, in [{low:g}, {high:g}]"
        return f"{text}; {self.note}" if self.note else text

    def prepare(self, images: np.ndarray, threads: int) -> torch.Tensor:
        """Preprocess images in `threads` threads: (n, h, w, 3) uint8 to (n, 3, side, side) float32."""
        if self.side is None:
            values = np.asarray(images, dtype=np.float32)
        else:
            resize = resizer(self.resize, self.side, self.rounded)
            with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = np.stack(list(pool.map(resize, images))).astype(np.float32, copy=False)
        low, high = RANGES[self.range]
        batch = torch.from_numpy(values).permute(0, 3, 1, 2)
        return batch if self.range == "0..255" else batch * ((high - low) / 255) + low


def resizer(name: str, side: int, rounded: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return clean-fid's function from (h, w, 3) uint8 to (side, side, 3) in [0, 255], float32 or, if rounded, uint8.

    Raises:
        UserError: clean-fid is not installed.
    """
    patch_torchvision()
    try:
        from cleanfid.resize import make_resizer
    except ImportError:
        raise UserError("scoring.extractor: resizing needs the scoring extra: pip install 'udpm[scoring]'") from None
    library, how = name.split("_")
    # Without this it silences all warnings of the process for good.
    with warnings.catch_warnings():
        return make_resizer(LIBRARIES[library], rounded, how, (side, side))


SIDE = 299

MODES = {
    "clean": Inputs(SIDE, "pil_bicubic", note="clean-fid's mode clean"),
    "legacy_tensorflow": Inputs(note="resized inside the network; clean-fid's mode legacy_tensorflow"),
    # clean-fid pairs this resizing with another file of the same weights; here all modes share one network.
    "legacy_pytorch": Inputs(SIDE, "pytorch_bilinear", note="clean-fid's mode legacy_pytorch, TorchScript network"),
}


class Inception(nn.Module):
    """Inception in clean-fid's wrapper of the TorchScript file: (N, 3, h, w) in [0, 255] to (N, 2048) features.

    `mode` is one of `MODES`.

    Raises:
        UserError: clean-fid is not installed, or the file is no TorchScript Inception.
    """

    def __init__(self, folder: Path, mode: str, device: torch.device) -> None:
        super().__init__()
        patch_torchvision()
        try:
            from cleanfid.inception_torchscript import InceptionV3W
        except ImportError:
            raise UserError(
                "scoring.extractor: inception needs the scoring extra: pip install 'udpm[scoring]'"
            ) from None
        try:
            network = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow")
        except (RuntimeError, ValueError, AttributeError) as error:
            if is_device_failure(error):
                raise
            reason = first_line(error)
            raise UserError(f"{folder / INCEPTION.name}: not a TorchScript file of Inception: {reason}") from None
        self.network = network.eval().to(device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features before the last layer."""
        return self.network(images)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Map (N, 2048) to (N, classes) without the last layer's bias, as the first Inception scores did."""
        return features @ self.network.base.state_dict()["output.weight"].T

    @property
    def classifies(self) -> bool:
        """True if the file holds the last layer."""
        return "output.weight" in self.network.base.state_dict()


EPOCHS = 40
BATCH = 64
RATE = 2e-3
FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and two linear layers, for images whose side is divisible by 4."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (side // 4) ** 2, FEATURES)
        self.last = nn.Linear(FEATURES, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, side, side) in [0, 255] to (N, 64) features."""
        h = F.max_pool2d(F.relu(self.first(images / 127.5 - 1)), 2)
        h = F.max_pool2d(F.relu(self.second(h)), 2)
        return F.relu(self.hidden(h.flatten(1)))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Map (N, 64) features to (N, classes) logits."""
        return self.last(features)


def train_classifier(store: Store, seed: int, output: str | Path) -> float:
    """Train on the training split and write a TorchScript file and its record (same name, .json).

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
    # The same command writes the same bytes. Scripting would order a layer's constants differently in every
    # process, so this traces; an archive contains its file's name, so this saves to a buffer first.
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
