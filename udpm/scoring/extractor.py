"""Feature extractors: TorchScript files that map images to feature vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.core.errors import UserError
from udpm.core.files import read_json, sha256

FORMAT = "udpm-extractor/1"
EXPECTED = "(N, 3, side, side) float in [0, 255] to (N, d) float"


@dataclass(frozen=True)
class Extractor:
    """A loaded extractor; its identity is the file's SHA-256.

    Attributes:
        path: the TorchScript file.
        name: from the record beside it, else the file's stem.
        sha256: of the file.
        module: the loaded network.
        device: where it runs.
        record: the JSON record beside the file, or empty.
    """

    path: Path
    name: str
    sha256: str
    module: torch.jit.ScriptModule
    device: torch.device
    record: dict[str, Any]

    @property
    def classifies(self) -> bool:
        """Whether it also exports `classify`, features to class logits."""
        return hasattr(self.module, "classify")

    def features(self, images: np.ndarray, batch: int) -> np.ndarray:
        """Features of images.

        Args:
            images: (N, side, side, 3) uint8.
            batch: images per call.

        Returns:
            (N, d) float32.

        Raises:
            UserError: the file's output is not what an extractor's should be.
        """
        return np.concatenate(list(self._passes(images, batch)))

    def classes(self, features: np.ndarray) -> np.ndarray:
        """The most likely class of each feature vector: (N, d) to (N,) int64. Only where `classifies`."""
        with torch.inference_mode():
            logits = self.module.classify(torch.from_numpy(features).to(self.device))
        return logits.argmax(dim=1).cpu().numpy()

    def describe(self) -> dict[str, Any]:
        """Its part of a protocol: name, SHA-256, and the held-out accuracy where it is known."""
        known = {key: self.record[key] for key in ("heldout_accuracy", "heldout_count") if key in self.record}
        return {"name": self.name, "sha256": self.sha256, **known}

    def _passes(self, images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.array(images[start : start + batch])).to(self.device)
            try:
                with torch.inference_mode():
                    found = self.module(part.permute(0, 3, 1, 2).float())
            except RuntimeError as error:
                # TorchScript's own message is a traceback of many lines; its last one says what went wrong.
                reason = str(error).strip().splitlines()[-1]
                shape = "×".join(map(str, images.shape[1:3]))
                raise UserError(f"{self.path}: fails on {shape} images: {reason}; expected {EXPECTED}") from None
            yield self._checked(found, len(part))

    def _checked(self, found: Any, count: int) -> np.ndarray:
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            raise UserError(f"{self.path}: wrong output ({type(found).__name__}); expected {EXPECTED}")
        if found.ndim != 2 or len(found) != count:
            raise UserError(f"{self.path}: wrong output {tuple(found.shape)} for {count} images; expected {EXPECTED}")
        if not torch.isfinite(found).all():
            raise UserError(f"{self.path}: its features are not finite")
        return found.float().cpu().numpy()


def load_extractor(path: str | Path, device: torch.device) -> Extractor:
    """Load a TorchScript extractor and, if there is one, the record beside it (same name, .json).

    Raises:
        UserError: missing, not a TorchScript file, or not the file its record describes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: extractor not found; scoring.extractor names a TorchScript file, or digits")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a TorchScript file: {str(error).strip().splitlines()[0]}") from None
    digest, record = sha256(path), {}
    if path.with_suffix(".json").exists():
        record = read_json(path.with_suffix(".json"), "extractor's record")
        if record.get("format") != FORMAT or record.get("sha256") != digest:
            raise UserError(f"{path.with_suffix('.json')}: does not describe {path.name}; make the extractor again")
    return Extractor(path, record.get("name", path.stem), digest, module, device, record)
