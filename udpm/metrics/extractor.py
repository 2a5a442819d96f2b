"""Feature extractors: TorchScript files, the check of their output, and features of many images with a cache."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field

from udpm.config.evaluation import NAMED_EXTRACTORS, Scoring
from udpm.config.validation import Exactly, PositiveInt, Record, Sha256, read_record
from udpm.core import devices
from udpm.core.arrays import check_array
from udpm.core.containers import check_archive
from udpm.core.devices import describe_failure, is_device_failure
from udpm.core.errors import UserError, first_line
from udpm.core.files import EXTRACTOR_WEIGHTS, INCEPTION, LITE0, fetch, lite0_path, sha256
from udpm.core.provenance import count_images
from udpm.core.work import Progress, prefetch
from udpm.data.npz import load_arrays, save_arrays
from udpm.metrics.efficientnet import INPUTS, EfficientNetLite0, load_lite0
from udpm.metrics.extractor_networks import FORMAT, MODES, SEALED, Inception, Inputs
from udpm.metrics.vision_transformer import INPUTS as TRANSFORMER_INPUTS
from udpm.metrics.vision_transformer import SIZES, TITLES, load_transformer

IMAGENET = (Inception, EfficientNetLite0)
"""Networks of this package that were trained on ImageNet."""

EXPECTED = "(N, 3, side, side) float in [0, 255] to (N, d) float"
CLASSIFIES = "(N, d) features to (N, K) float"

FAILURES = (RuntimeError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""Errors of a network on images of a side that it does not accept."""

SIDES = (32, 16, 64, 28, 128, 256)
"""Sides to try if neither the configuration nor a record names one."""

CONSTANT = 1e-6
"""Largest difference of features that counts as none, as a share of the largest feature."""

CLASSIFIED = 4096
"""Images whose features are classified at once."""

REPEATABLE = 1e-2
"""Allowed difference of one image's features between two calls, as a share of the difference between images."""


class ExtractorRecord(Record):
    """Required content of an extractor's record."""

    format: Annotated[str, Exactly(FORMAT)]
    sha256: Sha256
    name: Annotated[str, Field(min_length=1)]
    side: PositiveInt | None = None
    heldout_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    heldout_count: PositiveInt | None = None


@dataclass(frozen=True)
class Extractor:
    """A loaded extractor; its identity is its name, the file's SHA-256 and the preprocessing.

    Attributes:
        path: the file of its weights.
        name: of the published network; else from the record, or the file's stem.
        record: the JSON record next to the file, or empty.
        inputs: the preprocessing.
    """

    path: Path
    name: str
    sha256: str
    module: torch.nn.Module
    device: torch.device
    record: dict[str, Any]
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def is_inception(self) -> bool:
        """True for the published Inception file alone: only its Fréchet distance is called FID."""
        return self.name == "inception" and self.sha256 == INCEPTION.sha256

    @property
    def classifies(self) -> bool:
        """True if `probabilities` works: for networks of `IMAGENET` with a last layer, and files with `classify`."""
        return self.module.classifies if isinstance(self.module, IMAGENET) else hasattr(self.module, "classify")

    @property
    def knows_labels(self) -> bool:
        """True if its classes are the data set's, not ImageNet's."""
        return self.classifies and not isinstance(self.module, IMAGENET)

    def features(self, images: np.ndarray, batch: int) -> np.ndarray:
        """Compute features of images, `batch` per call: (N, h, w, 3) uint8 to (N, d) float32.

        Raises:
            UserError: the network fails, or its output has the wrong type or shape or is not finite.
        """
        parts = (images[start : start + batch] for start in range(0, len(images), batch))
        prepare = partial(self.inputs.prepare, threads=torch.get_num_threads())
        # The next batch is resized while the network runs on this one.
        with closing(prefetch(prepare, parts, depth=1)) as prepared:
            return np.concatenate([self.forward(part) for part in prepared])

    def forward(self, part: torch.Tensor) -> np.ndarray:
        """Call the network once: (n, 3, h, w), prepared, to (n, d) float32.

        Raises:
            UserError: as `features`.
        """
        try:
            with torch.inference_mode():
                found = self.module(part.to(self.device))
        except FAILURES as error:
            if is_device_failure(error):
                relief = f"lower scoring.batch (these were {len(part)} images)"
                raise UserError(f"{self.path}: {describe_failure(error, relief)}") from None
            shape = "×".join(map(str, part.shape[2:]))
            raise UserError(f"{self.path}: fails on {shape} images: {_last_line(error)}; expected {EXPECTED}") from None
        return self._checked(found, len(part)).cpu().numpy()

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Compute class probabilities: (N, d) to (N, K) float32. Needs `classifies`."""
        name = "logits" if isinstance(self.module, IMAGENET) else "classify"
        found = []
        with torch.inference_mode():
            for part in torch.from_numpy(features).split(CLASSIFIED):
                try:
                    logits = getattr(self.module, name)(part.to(self.device))
                except FAILURES as error:
                    if is_device_failure(error):
                        raise UserError(f"{self.path}: {describe_failure(error)}") from None
                    raise UserError(f"{self.path}: {name} fails: {_last_line(error)}; expected {CLASSIFIES}") from None
                found.append(self._checked(logits, len(part), "logits", CLASSIFIES).softmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    def describe(self) -> dict[str, Any]:
        """Return the extractor's part of a protocol: identity and, if known, held-out accuracy."""
        keys = ("heldout_accuracy", "heldout_count")
        known: dict[str, Any] = {key: self.record[key] for key in keys if key in self.record}
        return {"name": self.name, "sha256": self.sha256, "preprocessing": self.inputs.describe(), **known}

    def _checked(self, found: Any, count: int, what: str = "features", expected: str = EXPECTED) -> torch.Tensor:
        """Check the network's output and return it as (count, d) float32."""
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, torch.Tensor) else type(found).__name__
            raise UserError(f"{self.path}: wrong output ({kind}); expected {expected}")
        if found.ndim != 2 or len(found) != count or not found.shape[1]:
            raise UserError(f"{self.path}: wrong output {tuple(found.shape)} for {count} images; expected {expected}")
        found = found.float()
        if not torch.isfinite(found).all():
            raise UserError(f"{self.path}: its {what} are not finite (NaN or infinite); take another extractor")
        return found

    def width(self) -> int | None:
        """Return the number of features; None if it depends on the side or the network accepts none of `SIDES`."""
        widths = set(self.tried(1 if isinstance(self.module, IMAGENET) else 2))
        return widths.pop() if len(widths) == 1 else None

    def tried(self, most: int = 1) -> list[int]:
        """Call the network on four fixed images, to refuse a useless one before a long pass.

        Args:
            most: number of accepted sides after which to stop.

        Returns:
            The number of features at each accepted side.

        Raises:
            UserError: the output is no (n, d) float features, does not depend on the image, or is random.
        """
        own = self.inputs.side or self.record.get("side")
        found: list[int] = []
        for side in [own] if own else SIDES:
            images = replace(self.inputs, side=None).prepare(_fixed_images(side), 1).to(self.device)
            try:
                # Without TorchScript's optimizer, these calls do not change how it later runs the network.
                with torch.inference_mode(), torch.jit.optimized_execution(False):
                    calls = [self.module(images) for _ in range(2)]
            except FAILURES as error:
                if is_device_failure(error):
                    raise
                continue
            first, second = (self._checked(call, len(images)).cpu().numpy() for call in calls)
            self.check_varied(first)
            if np.abs(second - first).max() > REPEATABLE * np.ptp(first, axis=0).max():
                raise UserError(
                    f"{self.path}: gives the same images other features at every call; save the network in eval mode"
                )
            found.append(first.shape[1])
            if len(found) == most:
                break
        return found

    def check_varied(self, features: np.ndarray) -> None:
        """Raise UserError if the features, (n, d), of different images are all the same."""
        if np.ptp(features, axis=0).max() <= CONSTANT * np.abs(features).max():
            raise UserError(
                f"{self.path}: gives all images the same features, so it measures nothing; take another extractor"
            )


def extractor_files(config: Scoring) -> dict[str, Path | None]:
    """Return the extractor files that a configuration names, by key."""
    return {
        "scoring.extractor": None if config.extractor in NAMED_EXTRACTORS else Path(config.extractor),
        "scoring.weights_folder": Path(config.weights_folder) / config.weights.name if config.weights else None,
    }


def open_extractor(config: Scoring, path: str | Path | None, device: torch.device) -> Extractor:
    """Load the configured extractor, with its preprocessing, from `path` if that is given.

    Raises:
        UserError: the file is missing, is not a TorchScript file, or is another extractor's.
    """
    if config.weights is not None:
        return _open_published(config, path, device)
    if config.extractor == "lite0":
        path = Path(path or lite0_path())
        network: torch.nn.Module = load_lite0(path).to(device)
        found = Extractor(path, "EfficientNet-Lite0", str(LITE0.sha256), network, device, {}, INPUTS)
        found.tried()
        return found
    if config.extractor == "digits":
        if path is None:
            raise UserError("scoring.extractor: digits is trained by `udpm extractor`; give its file with --extractor")
        return load_extractor(path, device)
    inputs = Inputs(config.input_side, config.input_resize, config.input_range)
    return load_extractor(path or config.extractor, device, inputs)


def load_extractor(path: str | Path, device: torch.device, inputs: Inputs | None = None) -> Extractor:
    """Load a TorchScript extractor and its record (same name, .json), if it has one.

    Raises:
        UserError: missing, not a TorchScript file, or not the file its record describes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: extractor not found; scoring.extractor names a TorchScript file, or {', '.join(NAMED_EXTRACTORS)}"
        )
    check_archive(path, "TorchScript file")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        if is_device_failure(error):
            raise
        raise UserError(f"{path}: not a TorchScript file: {first_line(error)}") from None
    digest, record, about = sha256(path), {}, path.with_suffix(".json")
    if about.exists():
        record = read_record(ExtractorRecord, about, "extractor's record", SEALED, "make the extractor again")
        if record["sha256"] != digest:
            raise UserError(f"{about}: does not describe {path.name}; make the extractor again")
    found = Extractor(path, record.get("name", path.stem), digest, module, device, record, inputs or Inputs())
    found.tried()
    return found


def _open_published(config: Scoring, path: str | Path | None, device: torch.device) -> Extractor:
    """Open a network whose weights are downloaded if they are missing."""
    kind, file = config.extractor, config.weights
    assert file is not None
    path = Path(path or Path(config.weights_folder) / file.name)
    if path.name != file.name:
        raise UserError(f"{path}: scoring.extractor is {kind}, whose file is called {file.name}")
    path = fetch(file, path.parent, download=config.download)
    digest = file.sha256 or sha256(path)
    published = digest == EXTRACTOR_WEIGHTS[kind].sha256
    network: torch.nn.Module
    if kind == "inception":
        network, name = Inception(path.parent, config.inception_mode, device), kind
        inputs = MODES[config.inception_mode]
    else:
        network, name, inputs = load_transformer(kind, path), TITLES[kind], TRANSFORMER_INPUTS[kind]
        if EXTRACTOR_WEIGHTS[kind].sha256 is None and network.size == SIZES[kind]:
            # No SHA-256 is published to recognize the file by, so the name contains this file's.
            name, published = f"{name} {digest[:8]}", True
    # Scores by another file must not carry the published network's name.
    name = name if published else f"stand-in for {kind}"
    found = Extractor(path, name, digest, network.to(device), device, {}, inputs)
    found.tried()
    return found


def _last_line(error: Exception) -> str:
    """Return the last line of an error: TorchScript's messages are tracebacks of many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _fixed_images(side: int) -> np.ndarray:
    """Return noise, dark noise, a ramp of colours and white, (4, side, side, 3) uint8."""
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rows, columns = np.indices((side, side)) * 255 // max(side - 1, 1)
    ramp = np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    return np.stack([noise, noise // 4, ramp, np.full_like(noise, 255)])


CACHE_FORMAT = "udpm-features/1"
DIFFERENT = 8
"""Mean range of pixels over images, 0..255, above which the images clearly differ."""
PART = 1000
"""Images in one file of the cache: the most that a killed pass loses."""


class Images(Protocol):
    """Images to extract features from: an array (n, h, w, 3) uint8, or an object that reads one when sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def extract(
    images: Images, extractor: Extractor, batch: int, cache: str | Path | None = None
) -> tuple[np.ndarray, str]:
    """Compute the features of images and the images' digest.

    Args:
        images: (N, h, w, 3) uint8.
        cache: folder that keeps features by SHA-256 of images and extractor; None keeps none.

    Returns:
        (N, d) float32, and a SHA-256 over the images.

    Raises:
        UserError: an image cannot be read, or the extractor does not accept them.
    """
    found, digest = [], hashlib.sha256()
    with Progress(len(images), f"features ({extractor.name})", "image") as progress:
        for start in range(0, len(images), PART):
            part = np.ascontiguousarray(images[start : start + PART])
            own = hashlib.sha256(repr(part.shape).encode())
            own.update(part)
            digest.update(own.digest())
            found.append(_features(part, own.digest(), extractor, batch, cache))
            if np.ptp(part, axis=0).mean() > DIFFERENT:
                extractor.check_varied(found[-1])
            progress.update(len(part))
            count_images(len(part))
    return np.concatenate(found), digest.hexdigest()


def _features(
    part: np.ndarray, digest: bytes, extractor: Extractor, batch: int, cache: str | Path | None
) -> np.ndarray:
    """Return the features of images, from the cache if it has them."""
    if cache is None:
        return extractor.features(part, batch)
    identity = f"{extractor.sha256} {extractor.inputs.describe()} {_arithmetic(extractor)}".encode()
    path = Path(cache) / f"{hashlib.sha256(identity + digest).hexdigest()}.npz"
    kept = _kept(path, len(part))
    if kept is not None:
        return kept
    features = extractor.features(part, batch)
    save_arrays(path, {"features": features}, {"format": CACHE_FORMAT, "key": path.stem}, compressed=False)
    return features


def _arithmetic(extractor: Extractor) -> str:
    """Name the arithmetic that changes features by more than the order of sums.

    Features kept from a GPU with TF32 are not those without it.
    """
    kind = extractor.device.type
    return kind if kind == "cpu" or devices.uses_tf32(extractor.device) else f"{kind} without TF32"


def _kept(path: Path, count: int) -> np.ndarray | None:
    """Read features of an earlier pass; None if the file is missing, damaged, changed or renamed."""
    try:
        arrays, record = load_arrays(path, "entry of the features' cache", "")
        features = arrays.get("features", np.empty(0))
        check_array(f"{path}: features", features, np.float32, (count, "d"))
    except UserError:
        return None
    return features if record == {"format": CACHE_FORMAT, "key": path.stem} else None
