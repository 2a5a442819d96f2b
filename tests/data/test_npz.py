"""Arrays of any file: claimed sizes are checked against the file before memory is allocated."""

import io
import os
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from udpm.core import containers as zipped
from udpm.core.containers import check_archive
from udpm.core.errors import UserError
from udpm.data import cifar
from udpm.data.cifar import Batches
from udpm.data.npz import map_npy, read_npz
from udpm.data.source import list_members
from udpm.interop.checkpoint import read_weights
from udpm.metrics.extractor import load_extractor

VALUES = b"x" * 8


def header(shape, descr="<f8", version=1, text=None):
    """Build the header of an array, true or not."""
    text = (text or str({"descr": descr, "fortran_order": False, "shape": shape})).encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text


def archive(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def whole(*arrays):
    """Build the bytes of a usual .npz."""
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return file.getvalue()


HEADERS = {
    "10^13 values": (header((10**13,)), "claims float64 (10000000000000,), 80000000000000 bytes, but has 0"),
    "a negative size": (header((-1,)) + VALUES, "claims float64 (-1,)"),
    "two negative sizes": (header((-1, -1)) + VALUES, "claims float64 (-1, -1)"),
    "beyond 64 bits": (header((2**62, 2**62, 4)), "bytes, but has 0"),
    "truth for a size": (header((True,)) + VALUES, "claims float64 (True,)"),
    "too many axes": (header((1,) * 40) + VALUES, "claims float64"),
    "too few values": (header((2,)) + VALUES, "16 bytes, but has 8"),
    "too many values": (header((2,)) + VALUES * 3, "16 bytes, but has 24"),
    "values of no size": (header((10**13,), "<U0"), "values of type <U0"),
    "objects": (header((1,), "|O") + VALUES, "values of type object"),
    "records": (header((1,), [("a", "<f8")]) + VALUES, "not plain numbers or text"),
    "arrays of arrays": (header((1,), ("<f8", (10**6,))) + VALUES, "readable header|not plain numbers"),
    "an unknown type": (header((1,), "<x9") + VALUES, "no readable header"),
    "a later version": (header((1,), version=3) + VALUES, "no readable header"),
    "brackets": (header(0, text="(" * 9000), "no readable header"),
    "signs": (header(0, text="-" * 9000 + "1"), "no readable header"),
    "an open text": (header(0, text='{"""'), "no readable header"),
    "a call": (header(0, text="__import__('os').system('touch PWNED')"), "no readable header"),
    "a long header": (header(0, text=" " * 60_000), "no readable header"),
    "a header of 4 GB": (b"\x93NUMPY\x02\0" + b"\xff" * 4 + VALUES, "no readable header"),
    "nothing": (b"", "no readable header"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_held_against_the_file(tmp_path, case):
    data, expected = HEADERS[case]
    archive(tmp_path / "a.npz", ("a.npy", data))
    (tmp_path / "a.npy").write_bytes(data)
    for read, name in ((read_npz, "a.npz"), (map_npy, "a.npy")):
        with pytest.raises(UserError) as refused:
            read(tmp_path / name, "noise file")
        assert str(refused.value).startswith(f"{tmp_path / name}: not a readable noise file: ")
        assert any(part in str(refused.value) for part in expected.split("|"))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(zipped, "UNPACKED_BYTES", 2**22)
    bomb = header((2**26,), "|u1") + bytes(2**26)
    archive(tmp_path / "a.npz", ("a.npy", bomb), ("b.npy", header((1,)) + VALUES))
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to 67109011 bytes, more than 4194304"):
        read_npz(tmp_path / "a.npz", "noise file")
    # The directory may be wrong, too.
    data = (tmp_path / "a.npz").read_bytes()
    size = len(bomb).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data.replace(size, (200).to_bytes(4, "little")))
    with pytest.raises(UserError, match="claims uint8"):
        read_npz(tmp_path / "a.npz", "noise file")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert read_npz(tmp_path / "a.npz", "noise file", names=["b"])["b"].shape == (1,)


def test_files_that_are_not_archives(tmp_path):
    path = tmp_path / "a.npz"
    array = header((1,)) + VALUES
    for members, expected in (
        ([("a.npy", array), ("a", array)], "array a exists twice"),
        ([("a.txt", b"hello")], "array a.txt has no readable header"),
        ([(f"a{number}.npy", b"") for number in range(4097)], "more than 4096 arrays"),
    ):
        with pytest.raises(UserError, match=expected):
            read_npz(archive(path, *members), "noise file")
    with pytest.raises(UserError, match="compressed by method 14"):
        read_npz(archive(path, ("a.npy", array), method=zipfile.ZIP_LZMA), "noise file")
    np.save(tmp_path / "b.npy", np.arange(3))
    with pytest.raises(UserError, match=r"it is one array \(.npy\), not an archive"):
        read_npz(tmp_path / "b.npy", "noise file")
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a zip file"):
        read_npz(path, "noise file")


def test_damaged_and_cut_archives(tmp_path):
    """With any byte changed, or the rest cut off, a file is refused, or read unchanged."""
    path, arrays = tmp_path / "a.npz", (np.arange(50), np.ones((3, 4), np.float32))
    data = whole(*arrays)
    for place in range(0, len(data), 5):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]):
            path.write_bytes(changed)
            try:
                found = read_npz(path, "noise file")
            except UserError:
                continue
            assert all(any(np.array_equal(value, array) for array in arrays) for value in found.values())


def test_usual_arrays_are_what_numpy_reads(tmp_path):
    arrays = {
        "images": np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "text": np.array('{"a": 1}'),
        "empty": np.zeros((0, 3)),
        "number": np.float32(3),
        "truth": np.array([True]),
        "big": np.arange(3, dtype=">i8"),
        "ü": np.arange(3),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found, usual = read_npz(tmp_path / "a.npz", "x"), np.load(tmp_path / "a.npz")
        assert list(found) == usual.files
        for name in usual.files:
            assert np.array_equal(found[name], usual[name])
            assert (found[name].dtype, found[name].shape) == (usual[name].dtype, usual[name].shape)
            assert found[name].flags.writeable
    for values in arrays.values():
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(map_npy(tmp_path / "a.npy", "x"), values)


def test_directories_that_claim_more_than_the_archive_holds(tmp_path):
    path = archive(tmp_path / "a.zip", ("a.png", b"x" * 100), ("b.png", b"y" * 100), method=zipfile.ZIP_STORED)
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    locator = b"PK\x06\x07" + bytes(4) + (2**64 - 1).to_bytes(8, "little") + bytes(4)
    for changed in (
        data[: entry + 20] + b"\xff\xff\xff\x7f" + data[entry + 24 :],  # packed size
        data[: entry + 42] + b"\xff\xff\xff\x7f" + data[entry + 46 :],  # offset
        data[: end + 8] + b"\xff" * 4 + data[end + 12 :],  # number of members
        data[:end] + locator + data[end:],  # a directory beyond the end
    ):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"a.zip: not a readable .zip: "):
            list_members(path)


def test_files_of_pytorch_are_no_bombs(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(10)}, path)
    check_archive(path, "checkpoint")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path))
    check_archive(path, "checkpoint")
    monkeypatch.setattr(zipped, "UNPACKED_BYTES", 2**16)
    archive(path, ("archive/data.pkl", bytes(2**25)))
    for read in (lambda: read_weights([path]), lambda: load_extractor(path, torch.device("cpu"))):
        with pytest.raises(UserError, match="it unpacks to 33554432 bytes, more than"):
            read()
    os.mkfifo(tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b.pt: .*a pipe, not a file"):
        read_weights([tmp_path / "b.pt"])


@pytest.mark.parametrize("save", [torch.save, torch.jit.save])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(b"X\xff\xff\xff\x7f", "expected 2147483647 bytes"), (b"r\xff\xff\xff\x7f", "numbered 2147483647")],
    ids=["text", "memo"],
)
def test_a_pickle_that_claims_gigabytes(tmp_path, save, code, expected):
    """PyTorch would allocate them before looking at the size of the file."""
    path = tmp_path / "a.pt"
    save(torch.jit.script(torch.nn.ReLU()) if save is torch.jit.save else {"a": torch.zeros(3)}, str(path))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for name in members:
        if name.endswith("data.pkl"):
            members[name] = members[name][:2] + b"N" + code + members[name][2:]
    archive(path, *members.items())
    for read in (lambda: read_weights([path]), lambda: load_extractor(path, torch.device("cpu"))):
        with pytest.raises(UserError, match=rf"a\.pt: not a readable .*data\.pkl: .*{expected}"):
            read()


def test_a_pickle_that_cannot_be_unpacked(tmp_path):
    """A future version of .zip, and an encrypted file."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(3)}, path)
    place = path.read_bytes().index(b"PK\x01\x02")
    for offset, value in ((6, 128), (8, 1), (10, 99)):
        with open(path, "r+b") as file:
            file.seek(place + offset)
            before = file.read(1)
            file.seek(place + offset)
            file.write(bytes([value]))
        with pytest.raises(UserError, match=r"a\.pt: not a readable checkpoint: "):
            read_weights([path])
        with open(path, "r+b") as file:
            file.seek(place + offset)
            file.write(before)


def test_a_tensor_that_claims_terabytes(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"net.enc.SxS_conv.weight": torch.zeros(1).expand(2**20, 2**20)}, path)
    with pytest.raises(UserError, match=r"a\.pt: "):
        read_weights([path])


def test_a_batch_of_few_bytes_is_small(tmp_path):
    """A memo entry numbered 2^24, and nested lists."""
    nested = b"]" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in range(60))
    labels = b"}(U\x04dataNU\x06labels" + nested + b"u."
    tracemalloc.start()
    for content in (b"\x80\x02]r\xff\xff\xff\x00.", b"\x80\x02" + labels):
        with pytest.raises(UserError, match="not a python batch"):
            Batches("python", tmp_path).parsed("test_batch", content)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_an_archive_of_batches_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ARCHIVE_BYTES", 2**20)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as made:
        for name in ("x", "data_batch_1.bin"):
            member = tarfile.TarInfo(name)
            member.size = 2**22
            made.addfile(member, io.BytesIO(bytes(2**22)))
    with pytest.raises(UserError, match="unpacks to more than 1048576 bytes"):
        Batches("binary", tmp_path / "cifar-10-binary.tar.gz").content("data_batch_1.bin")
