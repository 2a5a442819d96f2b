"""Image files of every kind, and CIFAR-10 batches as published, for tests."""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image


def noise(side=20, seed=0, width=None):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (side, width or side, 3), dtype=np.uint8))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tree(folder, splits=("train", "test"), count=3, side=20):
    """Write PNGs of classes a and b, with a space, a line break and a byte that is not UTF-8 in their names."""
    for number, split in enumerate(splits):
        for label, name in enumerate((b"a", b"b")):
            place = bytes(folder) + b"/" + split.encode() + b"/" + name
            (folder / split / name.decode()).mkdir(parents=True)
            for index in range(count):
                odd = (b"plain", b"two words\nand lines", b"latin-\xe9")[index % 3]
                with open(place + b"/%d %s.png" % (index, odd), "wb") as file:
                    file.write(encoded(noise(side, seed=100 * number + 10 * label + index, width=side + 7)))
    return folder


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    """Write a .zip of {name: content}."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def bomb(width=60_000, height=60_000):
    """Write a PNG of some hundred bytes that claims 3.6 gigapixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 with an old numpy did: bytes as plain strings, numpy.core."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    def save_global(self, thing, name=None):
        if getattr(thing, "__name__", "") == "_reconstruct":
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
            self.memoize(thing)
        else:
            super().save_global(thing, name)

    dispatch[bytes] = save_bytes
    dispatch[type(lambda: 0)] = save_global
    dispatch[type(len)] = save_global


def python_batch(images, labels):
    """Return a batch in python form: pixels as rows of three planes."""
    data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    buffer = io.BytesIO()
    names = [b"x_s_%06d.png" % number for number in range(len(images))]
    batch = {b"batch_label": b"fake", b"labels": labels.tolist(), b"data": data, b"filenames": names}
    Python2Pickler(buffer, protocol=2).dump(batch)
    return buffer.getvalue()


def binary_batch(images, labels):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tobytes()


def cifar(folder, form, count=12):
    """Write fake official batches of 6 × `count` images: form python or binary, folder or archive (python.tar, …)."""
    kind, _, archive = form.partition(".")
    make, suffix, name = {
        "python": (python_batch, "", "cifar-10-batches-py"),
        "binary": (binary_batch, ".bin", "cifar-10-batches-bin"),
    }[kind]
    generator = np.random.default_rng(0)
    place = folder / name
    place.mkdir(parents=True)
    for batch in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        (place / f"{batch}{suffix}").write_bytes(make(images, np.arange(count) % 10))
    if archive:
        with tarfile.open(folder / f"cifar-10-{kind}.tar.gz", "w:gz") as packed:
            packed.add(place, name)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    return folder
