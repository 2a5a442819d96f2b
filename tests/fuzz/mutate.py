"""Mutations of files by their structure: bytes, JSON and YAML values, arrays, tensors, archives, lines."""

import copy
import io
import json
import struct
import zipfile
from contextlib import suppress

import numpy as np
import yaml

from udpm.core.arrays import SEAL

NUMBERS = [0, 1, -1, 2, 7, 255, 256, 2**31, -(2**31), 2**63 - 1, 2**64 - 1, 10**6, 10**9, 0.5, -0.5, 1e-300, 1e300]
ODD = [None, True, False, "", "x", "0", "-1", "1e5", "nan", "²", "x" * 5000, "\u202e", "😀", "a/b", "../x", "/dev/null"]
ODD += [[], {}, [[]], [{}], [None], [1, 2], ["x"], {"x": 1}, {"": {}}, [0] * 2000, "nothing.npz", "{}", "%s", "a b; c"]
HOSTILE = [10**30, -(10**30), 10**5000, float("nan"), float("inf"), -float("inf"), "\0", "\ud800"]


def value(rng):
    """Return a replacement for a value."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.8:
        return copy.deepcopy(rng.choice(ODD))
    if kind < 0.95:
        return rng.choice(HOSTILE)
    nested = []
    for _ in range(rng.choice([3, 40, 200])):
        nested = [nested] if rng.random() < 0.5 else {"x": nested}
    return nested


def values(rng, tree):
    """Return a tree of dicts and lists with some values, keys or elements changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        holder, key = _place(rng, tree)
        if holder is None:
            return value(rng)
        # An integer of 5000 digits cannot be changed again.
        with suppress(OverflowError, ValueError):
            _change(rng, holder, key)
    return tree


def _place(rng, tree):
    holder, key, here = None, None, tree
    while isinstance(here, (dict, list)) and here:
        holder, key = here, rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here = here[key]
        if rng.random() < 0.15:
            break
    return holder, key


def _change(rng, holder, key):
    kind = rng.random()
    if kind < 0.5:
        holder[key] = value(rng)
    elif kind < 0.6:
        del holder[key]
    elif kind < 0.7:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
    elif kind < 0.8 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "seed", "format", "0", "²"])] = value(rng)
    elif kind < 0.9 and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key])] * rng.choice([1, 2, 50])
    elif isinstance(holder[key], bool) or not isinstance(holder[key], (int, float)):
        holder[key] = str(holder[key])[: rng.randrange(60)] + rng.choice(["", "x", "0", "\n"])
    else:
        holder[key] = rng.choice(
            [-holder[key], holder[key] + 1, holder[key] * 10, float(holder[key]), str(holder[key])]
        )


def octets(rng, data):
    """Return bytes with some flipped, cut, doubled, overwritten or inserted."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del data[place:]
        elif kind == 1 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2 and data:
            data[place % len(data)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 3:
            number = rng.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(2**20)])
            size = rng.choice([2, 4, 8])
            data[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(["little", "big"]))
        elif kind == 4:
            end = min(len(data), place + rng.choice([1, 4, 64, 4096]))
            data[place:place] = data[place:end] * rng.choice([1, 2])
        elif kind == 5:
            del data[place : place + rng.choice([1, 4, 64])]
        else:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
    return bytes(data)


def head(rng, data, size=400):
    """Return bytes with changes among the first, where headers are."""
    return octets(rng, data[:size]) + data[size:]


def text(rng, data):
    """Return text as bytes, with inserted pieces of syntax, or changed as bytes."""
    if rng.random() < 0.4:
        return octets(rng, data)
    pieces = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        "\\",
        "\n",
        "\t",
        "NaN",
        "1e999",
        "9" * 30,
        "\\u0000",
        "&a ",
        "*a",
        "- ",
    ]
    pieces += ["!!int ", "!!python/name:os.system ", "? ", "<<: ", "|", ">", "#", "%", "---\n", "~", "[" * 50, "\ufeff"]
    shown = data.decode("utf-8", "replace")
    for _ in range(rng.choice([1, 2, 3])):
        place = rng.randrange(len(shown) + 1)
        shown = shown[:place] + rng.choice(pieces) + shown[place + rng.choice([0, 0, 1, 3]) :]
    return shown.encode("utf-8", "replace")


def as_json(rng, data):
    """Return a JSON file with changed values, or changed text."""
    if rng.random() < 0.2:
        return text(rng, data)
    return dumped(values(rng, json.loads(data)))


def as_sealed(rng, data):
    """Return a JSON record, mostly without a digest, as in files of older versions."""
    if rng.random() < 0.2:
        return as_json(rng, data)
    return as_json(rng, dumped({key: value for key, value in json.loads(data).items() if key != SEAL}))


def dumped(tree):
    """Return JSON of a mutated value, sometimes with duplicate keys."""
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(tree).encode()
    finally:
        sys.set_int_max_str_digits(limit)


def as_yaml(rng, data):
    """Return a YAML file with changed values, or changed text."""
    if rng.random() < 0.35:
        return text(rng, data)
    tree = values(rng, yaml.safe_load(data))
    # JSON is YAML, except for values that YAML cannot express.
    return dumped(tree) if rng.random() < 0.5 else _yaml(tree)


def _yaml(tree):
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError):
        return dumped(tree)


def as_lines(rng, data):
    """Return JSON lines with one changed, torn or doubled."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.random()
    if kind < 0.7 and lines[place].strip():
        lines[place] = as_json(rng, lines[place])
    elif kind < 0.8:
        lines[place:place] = [lines[place]] * 2
    elif kind < 0.9:
        del lines[place]
    else:
        return octets(rng, data)
    return b"\n".join(lines)


def as_npz(rng, data):
    """Return an .npz with changed arrays, headers or record, or changed bytes."""
    kind = rng.random()
    if kind < 0.25:
        return octets(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    if "record.npy" in members and rng.random() < 0.8:
        # As in files of older versions, which have no digest.
        record = json.loads(str(np.load(io.BytesIO(members["record.npy"]))))
        record.pop("content_sha256", None)
        members["record.npy"] = _npy(np.array(json.dumps(record)))
    name = rng.choice(list(members))
    if kind < 0.4:
        members[name] = head(rng, members[name], 128)
    elif kind < 0.7:
        members[name] = _npy(_array(rng, members[name]))
    elif kind < 0.75:
        del members[name]
    elif kind < 0.8:
        members[rng.choice(["x.npy", "record.npy", "output_x.npy", "output_9.npy", "eps_9.npy"])] = members[name]
    elif kind < 0.85:
        members[name] = _header(rng, members[name])
    elif "record.npy" in members:
        record = json.loads(str(np.load(io.BytesIO(members["record.npy"]))))
        record = dumped(values(rng, record) if rng.random() < 0.9 else value(rng)).decode("utf-8", "replace")
        members["record.npy"] = _npy(np.array(record))
    return archive(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def archive(members, method=zipfile.ZIP_DEFLATED):
    """Return the bytes of a .zip."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def as_npy(rng, data):
    """Return an .npy with a changed array, header or bytes."""
    kind = rng.random()
    if kind < 0.4:
        return head(rng, data, 128)
    return _header(rng, data) if kind < 0.6 else _npy(_array(rng, data))


def _npy(array):
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def _array(rng, data):
    array = np.load(io.BytesIO(data))
    kind = rng.randrange(8)
    if kind == 0:
        kinds = ["u1", "i8", "f4", "f8", "c16", "?", "U5", "S3", ">f4", "f2", "O"]
        return array.astype(rng.choice(kinds if array.dtype.kind != "U" else ["U5", "O"]))
    if kind == 1:
        return array.reshape(-1)[: rng.choice([0, 1, 3])]
    if kind == 2:
        return array[None] if rng.random() < 0.5 else array.reshape(-1)
    if kind == 3 and array.ndim:
        return array[: rng.randrange(len(array) + 1)]
    if kind == 4 and array.dtype.kind in "fiu" and array.size:
        array = array.astype(float) if rng.random() < 0.3 else array.copy()
        odd = [np.nan, np.inf, -1, 1e300] if array.dtype.kind == "f" else [0, 1, 127]
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(odd)
        return array
    if kind == 5:
        return np.zeros_like(array)
    if kind == 6:
        return np.array(rng.choice([3, "x", "{}", "[]", "null", 1.5, True]))
    return np.asfortranarray(array) if array.ndim else array


def _header(rng, data):
    shape = rng.choice(
        ["(10000000000000,)", "(-1,)", "(3, 3)", "()", "(0,)", "(1, 2, 3, 4, 5)", "(True,)", "3", "None"]
    )
    kind = rng.choice(["'<f8'", "'|u1'", "'|O'", "'<U0'", "[('a','<f8')]", "'<m8'", "'<i8'", "3", "'V8'"])
    order = rng.choice(["True", "False", "2", "None"])
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    version = rng.choice([1, 1, 2, 3, 9])
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data[128:]


def as_safetensors(rng, data):
    """Return a safetensors file with a changed header, description or bytes."""
    length = int.from_bytes(data[:8], "little")
    kind, header, rest = rng.random(), json.loads(data[8 : 8 + length]), data[8 + length :]
    if kind < 0.2:
        return head(rng, data, 8 + length)
    if kind < 0.3:
        return octets(rng, data)
    if kind < 0.6 and "udpm" in header.get("__metadata__", {}):
        record = values(rng, json.loads(header["__metadata__"]["udpm"]))
        header["__metadata__"]["udpm"] = dumped(record).decode("utf-8", "replace")
    elif kind < 0.7:
        # Values of the tensors: NaN, infinity, zeros.
        place = rng.randrange(max(1, len(rest) // 4)) * 4
        rest = rest[:place] + rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"]) + rest[place + 4 :]
    elif kind < 0.85:
        name = rng.choice(list(header))
        header[name] = values(rng, header[name])
    else:
        header = values(rng, header)
    text = dumped(header)
    return len(text).to_bytes(8, "little") + text + rest


def as_zip(rng, data):
    """Return a .zip with changed members, names or bytes."""
    kind = rng.random()
    if kind < 0.6:
        tail = max(0, len(data) - 400)
        return data[:tail] + octets(rng, data[tail:]) if kind < 0.3 else octets(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = rng.choice(list(members))
    if kind < 0.8:
        members[name] = octets(rng, members[name])
    else:
        members[rng.choice(["../x.png", "/x.png", "a\\b.png", "x.png/", "x" * 300 + ".png", ".png"])] = members.pop(
            name
        )
    return archive(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def as_words(rng, data):
    """Return a command line with changed words."""
    words = data.decode().split(" ")
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(words))
        kind = rng.randrange(5)
        if kind == 0:
            words[place] = rng.choice(
                ["none", "²", "--", "-", "=", "10**9", "9" * 30, "1e400", "nan", "-1", "'", "\\", ""]
            )
        elif kind == 1:
            del words[place]
            words = words or [""]
        elif kind == 2:
            words[place:place] = [words[place]]
        elif kind == 3:
            words[place] = text(rng, words[place].encode()).decode("utf-8", "replace")
        else:
            words.insert(place, rng.choice(words))
    return " ".join(words).encode("utf-8", "replace")
