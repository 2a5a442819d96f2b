"""CIFAR-10's official batches, python or binary, in a folder or its archive; nothing in a file is ever executed."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.dataset import CIFAR_SIDE, OWN_CLASSES, DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import CIFAR10, expanded, fetch
from udpm.core.reading import opened, read_bytes
from udpm.data.source import Source

CLASSES = OWN_CLASSES["cifar10"]
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
BATCH_BYTES, ARCHIVE_BYTES = 2**26, 2**28
"""Largest batch and, unpacked, archive that is read: the official ones have 31 and 186 MB."""
PIXELS = 3 * CIFAR_SIDE**2
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    # Of the binary batches only the archive's sum is published.
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
"""Official MD5 sums (https://www.cs.toronto.edu/~kriz/cifar.html and torchvision)."""

FORMS = {
    # kind: folder, archive, suffix of the batches
    "python": ("cifar-10-batches-py", "cifar-10-python.tar.gz", ""),
    "binary": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin"),
}


@dataclass(frozen=True)
class Batches:
    """The six batch files, one of them in memory at a time.

    Attributes:
        kind: "python" or "binary".
        path: their folder or archive.
        identity: MD5 sums of the files, once they have been read.
    """

    kind: str
    path: Path
    identity: str = ""
    parallel: bool = False
    _loaded: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def names(self) -> list[str]:
        """File names of the batches, training first."""
        return [name + FORMS[self.kind][2] for name in (*BATCHES, "test_batch")]

    @property
    def files(self) -> list[Path]:
        """The files that hold the batches: themselves, or their archive."""
        return [self.path / name for name in self.names] if self.path.is_dir() else [self.path]

    def content(self, name: str) -> bytes:
        """Read the bytes of one batch file.

        Raises:
            UserError: missing or unreadable.
        """
        if self.path.is_dir():
            if not (self.path / name).exists():
                raise UserError(f"{self.path}: has no {name}; unpack or download it again")
            return read_bytes(self.path / name, "batch of CIFAR-10", BATCH_BYTES)
        with opened(self.path, "archive of CIFAR-10") as packed:
            try:
                # Read as a stream: looking up a name would first unpack the whole archive.
                stream: Any = _Bounded(gzip.GzipFile(fileobj=packed))
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    member = next(member for member in archive if member.name.rsplit("/", 1)[-1] == name)
                    file = archive.extractfile(member)
                    if file is None:
                        raise ValueError(f"{name} is not a file")
                    return file.read()
            except StopIteration:
                raise UserError(f"{self.path}: has no {name}; unpack or download it again") from None
            except Exception as error:  # Damaged bytes make these libraries raise errors of any type.
                raise UserError(f"{self.path}: cannot be read: {error}") from None

    def parsed(self, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Parse one batch file to images (n, 32, 32, 3) uint8 and labels (n,) int64.

        Raises:
            UserError: not a batch.
        """
        try:
            flat, labels = _PARSERS[self.kind](content)
            planes = flat.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
            if not len(labels) or len(planes) != len(labels) or labels.min() < 0 or labels.max() >= len(CLASSES):
                raise ValueError("labels do not fit the images")
        except Exception as error:  # Damaged bytes make pickle and numpy raise errors of any type.
            raise UserError(f"{self.path}/{name}: not a {self.kind} batch of CIFAR-10: {error}") from None
        return planes.transpose(0, 2, 3, 1), labels

    def load(self, name: bytes, key: np.ndarray) -> np.ndarray:
        """Return the pixels of image key[1] of batch key[0]."""
        batch = self.names[key[0]]
        if batch not in self._loaded:
            self._loaded.clear()
            self._loaded[batch] = self.parsed(batch, self.content(batch))[0]
        return self._loaded[batch][key[1]]


def open_cifar10(config: DatasetConfig) -> Source:
    """Open the official batches below `path`; download them there if they are missing.

    Raises:
        UserError: missing and impossible to download, incomplete, not batches, or not the official ones.
    """
    assert config.path is not None
    path = expanded(config.path, "path")
    batches = find_batches(path) or Batches("python", fetch(CIFAR10, path))
    sums, labels = {}, []
    if batches.kind == "binary" and batches.path.is_file():
        with opened(batches.path, "archive of CIFAR-10") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        sums[batches.path.name] = _checked_sum(batches.path, "", digest, config)
    for name in batches.names:
        content = batches.content(name)
        sums[name] = _checked_sum(batches.path, name, hashlib.md5(content).hexdigest(), config)
        labels.append(batches.parsed(name, content)[1])
    counts = [len(found) for found in labels]
    return Source(
        splits={"train": sum(counts[:-1]), "test": counts[-1]},
        names=[f"{name}[{row}]".encode() for name, n in zip(batches.names, counts, strict=True) for row in range(n)],
        keys=np.array([(batch, row) for batch, n in enumerate(counts) for row in range(n)], dtype=np.int64),
        labels=np.concatenate(labels),
        class_names=CLASSES,
        reader=Batches(batches.kind, batches.path, identity=" ".join(sums.values())),
        notes={"labels": "the batches", "batches": batches.kind, "md5": sums, "md5_checked": _verdict(batches, config)},
    )


def find_batches(path: Path) -> Batches | None:
    """Find batches at `path` or directly below it: folders before archives, python before binary."""
    for index in (0, 1):
        for kind, form in FORMS.items():
            for found in (path, path / form[index]):
                if found.name == form[index] and found.exists():
                    return Batches(kind, found)
    return None


def _checked_sum(path: Path, name: str, found: str, config: DatasetConfig) -> str:
    """Return the MD5 sum `found` if it is the official one, or is not checked."""
    official = MD5.get(name or path.name, found)
    if config.check_md5 and found != official:
        where = path / name if name else path
        raise UserError(
            f"{where}: its MD5 is {found}, the official file's is {official}; download it again, or set "
            "check_md5: false to use it as it is"
        )
    return found


def _verdict(batches: Batches, config: DatasetConfig) -> str:
    if not config.check_md5:
        return "no: check_md5 is false"
    if batches.kind == "binary" and batches.path.is_dir():
        return "no: of the binary batches only the archive's sum is published; their structure was checked"
    return "yes"


def _binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse rows of a label and 3 072 pixels, one colour plane after another."""
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse a pickled dictionary with an array `data` and a list `labels`."""
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    # A few bytes can describe endlessly nested lists.
    if not isinstance(batch["labels"], list) or not all(type(label) is int for label in batch["labels"]):
        raise ValueError("labels is not a list of whole numbers")
    return batch["data"].pixels(), np.array(batch["labels"], dtype=np.int64)


_PARSERS: dict[str, Callable[[bytes], tuple[np.ndarray, np.ndarray]]] = {"python": _python, "binary": _binary}


class _Bounded:
    """Stream that fails once it has unpacked more than the official archives contain."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, ARCHIVE_BYTES

    def read(self, count: int) -> bytes:
        part = self._stream.read(count)
        self._left -= len(part)
        if self._left < 0:
            raise tarfile.ReadError(f"unpacks to more than {ARCHIVE_BYTES} bytes")
        return part


class _Pickled:
    """Replacement for an array or its type in a pickle, which only records its arguments and state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """Build the uint8 array from its state: version, shape, type, column order, bytes."""
        _, shape, kind, columns_first, data = self.state
        if kind.arguments[0] not in ("u1", b"u1") or columns_first:
            raise ValueError("data is not an array of bytes in rows")
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _latin1(text: str, encoding: str) -> bytes:
    """Restore bytes that Python 3 pickled for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_HARMLESS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Pickled,
    ("numpy._core.multiarray", "_reconstruct"): _Pickled,
    ("numpy", "ndarray"): _Pickled,
    ("numpy", "dtype"): _Pickled,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle._Unpickler):
    """Unpickler that replaces the few names a batch needs and refuses all others, so that no pickle can run code.

    The C implementation would allocate a table of 32 GB for an entry numbered 2^32.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _HARMLESS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no batch needs") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("asks for something outside the file")
