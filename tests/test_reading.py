"""Files of any kind and content: read, or refused in one line; never waited for, never more than the limits allow."""

import os
import socket

import pytest

from udpm.core import reading
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.reading import parse_json, read_json, read_json_lines, read_text


def special(folder):
    """Something of each kind that is not a regular file, with a part of what is said of it."""
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "folder").mkdir()
    where = os.getcwd()
    os.chdir(folder)  # the name of a socket has at most 107 characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    os.chdir(where)
    return {
        folder / "pipe": "it is a pipe, not a file",
        folder / "loop": "a link that leads back to itself",
        folder / "dangling": "a link to nowhere, which does not exist",
        folder / "folder": "it is a folder, not a file",
        folder / "socket": "it is a socket, not a file",
        folder / "nothing": "score not found",
        folder / ("x" * 300): "name too long",
        folder / "pipe" / "x": "Not a directory",
        "/dev/zero": "it is a device, not a file",
        "a\0b": "no name of a file",
    }


@pytest.mark.parametrize("read", [read_json, lambda path, what: list(read_json_lines(path, what))])
def test_only_regular_files_are_read(tmp_path, read):
    for path, expected in special(tmp_path).items():
        with pytest.raises(UserError, match=f"(?i){expected}"):
            read(path, "score")


def test_a_digest_of_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        sha256(tmp_path / "pipe")


JSON = {
    "deep": (b"[" * 100_000, "nested more than 64 deep"),
    "deep objects": (b'{"a":' * 100_000, "nested more than 64 deep"),
    "a little too deep": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 deep"),
    "a long integer": (b'{"a":' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
    "a negative one": (b'{"a":-9223372036854775809}', "an integer of 20 digits"),
    "a large float": (b'{"a":1e999}', "1e999 is beyond the range"),
    "NaN": (b'{"a":NaN}', "NaN is not a number"),
    "infinity": (b'{"a":[-Infinity]}', "-Infinity is not a number"),
    "a key twice": (b'{"a":1,"b":1,"a":2}', "key 'a' stands twice"),
    "not UTF-8": (b'{"a":"\xff"}', "not UTF-8 text: byte 6 is 0xff"),
    "a NUL": (b'{"a":["\\u0000"]}', r"character U\+0000"),
    "half a pair": (b'{"\\ud800":1}', r"character U\+D800"),
    "nothing": (b"", "Expecting value"),
    "torn": (b'{"a":', "Expecting value"),
    "many values": (b"[" + b"[]," * 1_100_000 + b"[]]", "more than 2097152 values"),
    "large": (b'"' + b" " * 16 * 2**20 + b'"', "more than 16777216"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_is_bounded(case):
    data, expected = JSON[case]
    with pytest.raises(UserError, match=expected) as refused:
        parse_json(data, "x.json: not a readable score")
    assert str(refused.value).startswith("x.json: not a readable score: ")


def test_json_as_editors_write_it(tmp_path):
    text = '\ufeff{"a": ["ü", "\\ud83d\\ude00", "\\\\u0000", 1e-4, 18446744073709551615]}'
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "a.json", "score") == {"a": ["ü", "😀", "\\u0000", 1e-4, 2**64 - 1]}
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(UserError, match=r"b\.json: not a score: expected a JSON object, found list"):
        read_json(tmp_path / "b.json", "score")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="it has 1099511627776 bytes, more than 1000"):
        read_text(tmp_path / "large", "score", 1000)
    # Files of the kernel say that their size is 0.
    with pytest.raises(UserError, match="more than 10"):
        read_text("/proc/self/status", "score", 10)


def test_lines_that_cannot_be_read_are_told_from_a_torn_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE_BYTES", 40)
    path = tmp_path / "lines.jsonl"
    lines = [b'{"a":1}', b"", b"[1]", b'{"b":' + b" " * 100 + b"1}", b"[" * 39, b'{"c":NaN}', b'{"d":2}', b'{"e":']
    path.write_bytes(b"\n".join(lines))
    assert list(read_json_lines(path, "metrics")) == [{"a": 1}, None, None, None, None, None, {"d": 2}]
    path.write_bytes(b'{"a":1}\n{"b":2}')
    assert list(read_json_lines(path, "metrics")) == [{"a": 1}, {"b": 2}]
    assert list(read_json_lines(path, "metrics", tail=10)) == [None, {"b": 2}]
    path.write_bytes(b" " * 100)
    assert list(read_json_lines(path, "metrics")) == []
