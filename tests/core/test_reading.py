"""Files of any kind and content are read or refused in one line, without waiting and within limits."""

import json
import os
import shutil
import socket

import pytest
import tiny

from udpm.core import reading
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.reading import parse_json, read_json, read_json_lines, read_text
from udpm.data.fill import Journal
from udpm.runs.attempts import any_killed, failed_twice_identically
from udpm.runs.lock import read_owner
from udpm.training.checkpoint import checkpoints
from udpm.training.metrics import Metrics


def special(folder):
    """Make a file of each kind that is not regular; return them with a part of the expected error."""
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
        folder / "loop": "a symbolic link that points to itself",
        folder / "dangling": "a symbolic link to nowhere, which does not exist",
        folder / "folder": "it is a folder, not a file",
        folder / "socket": "it is a socket, not a file",
        folder / "nothing": "score not found",
        folder / ("x" * 300): "name too long",
        folder / "pipe" / "x": "Not a directory",
        "/dev/zero": "it is a device, not a file",
        "a\0b": "not a valid file name",
    }


@pytest.mark.parametrize("read", [read_json, lambda path, what: list(read_json_lines(path, what))])
def test_reads_only_regular_files(tmp_path, read):
    for path, expected in special(tmp_path).items():
        with pytest.raises(UserError, match=f"(?i){expected}"):
            read(path, "score")


def test_refuses_to_digest_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        sha256(tmp_path / "pipe")


JSON = {
    "deep": (b"[" * 100_000, "nested more than 64 levels deep"),
    "deep objects": (b'{"a":' * 100_000, "nested more than 64 levels deep"),
    "a little too deep": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 levels deep"),
    "a long integer": (b'{"a":' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
    "a negative one": (b'{"a":-9223372036854775809}', "an integer of 20 digits"),
    "a large float": (b'{"a":1e999}', "1e999 is out of range"),
    "NaN": (b'{"a":NaN}', "NaN is not a valid JSON number"),
    "infinity": (b'{"a":[-Infinity]}', "-Infinity is not a valid JSON number"),
    "a key twice": (b'{"a":1,"b":1,"a":2}', "key 'a' is duplicated"),
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


def test_reads_json_as_editors_write_it(tmp_path):
    text = '\ufeff{"a": ["ü", "\\ud83d\\ude00", "\\\\u0000", 1e-4, 9223372036854775807]}'
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "a.json", "score") == {"a": ["ü", "😀", "\\u0000", 1e-4, 2**63 - 1]}
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(UserError, match=r"b\.json: not a score: expected a JSON object, found list"):
        read_json(tmp_path / "b.json", "score")


def test_refuses_a_file_that_is_too_large(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="it has 1099511627776 bytes, more than 1000"):
        read_text(tmp_path / "large", "score", 1000)
    # Files of the kernel have size 0.
    with pytest.raises(UserError, match="more than 10"):
        read_text("/proc/self/status", "score", 10)


def test_distinguishes_unreadable_lines_from_a_torn_end(tmp_path, monkeypatch):
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


# --- a run's records -------------------------------------------------------------------------------------------------


COMPLETE = [
    {"format": "udpm-run/1"},
    [],
    tiny.FINISHED | {"iterations": "9"},
    tiny.FINISHED | {"seconds": "x"},
    tiny.FINISHED | {"weights_sha256": 3},
]
COMPLETE += [
    tiny.FINISHED | {"provenance": {}},
    tiny.FINISHED | {"parameters": [1]},
    tiny.FINISHED | {"iterations": -1},
]
LINES = [{"iteration": "2"}, {"iteration": -1}, {"iteration": 2, "seconds": "x"}, {"iteration": 2, "x": [1]}, [], {}]
LINES += [{"iteration": 2, "images_per_second": "fast"}, {"iteration": 2, "x": None}]
OWNERS = [{}, {"token": 1}, {"token": "t", "time": "now"}, {"token": "t", "pid": "1"}, {"token": "t", "since": [1]}]
OWNERS += [{"token": "t", "pid": 10**18}, {"token": "t", "host": {}}, {"token": "t", "time": -1.0}]


def make_run(folder, name, **files):
    (folder / name).mkdir(parents=True)
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name / file.replace("__", ".")).write_text(text)
    return folder / name


@pytest.mark.parametrize("number", range(len(COMPLETE)))
def test_refuses_an_invalid_record_of_a_finished_run(tmp_path, capsys, number):
    """Every reader of complete.json reports it; status still shows the other runs."""
    broken = make_run(tmp_path / "runs/e", "seed0", complete__json=COMPLETE[number], config__json={})
    make_run(tmp_path / "runs/e", "seed1", complete__json=tiny.FINISHED, config__json={})
    mistakes = {0: 4, 5: 3}.get(number, 1)
    tiny.assert_refused(tmp_path, f"status {broken}", "complete.json: ", capsys, mistakes)
    tiny.assert_refused(tmp_path, f"card {broken} --output {tmp_path}/card.md", "complete.json: ", capsys, mistakes)
    assert tiny.call("status", "--results", tmp_path, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["state"], second["state"]) == ("unreadable", "complete")
    assert "complete.json: " in first["note"]
    assert tiny.call("status", "--results", tmp_path) == 0
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    (tmp_path / "runs/e").rename(tmp_path / "runs/digits")
    page = f"summary digits --config {tmp_path}/config --results {tmp_path} --output {tmp_path}".split()
    assert tiny.call(*page) == 0
    assert "seed0/complete.json: " in capsys.readouterr().out.partition("What cannot be read")[2]


@pytest.mark.parametrize(
    "content", [{"training": 3}, {"training": {"iterations": "x"}}, {"training": {"batch": -1}}, []]
)
def test_refuses_an_invalid_configuration_of_a_run(tmp_path, capsys, content):
    run = make_run(tmp_path, "run", config__json=content)
    tiny.assert_refused(tmp_path, f"status {run}", "config.json: ", capsys)


def test_skips_invalid_lines_of_metrics(tmp_path, capsys):
    good = [{"iteration": 1, "seconds": 1.0, "images_per_second": 5.0}, {"iteration": 3, "seconds": 2.0}]
    for line in LINES:
        text = "".join(json.dumps(value) + "\n" for value in (good[0], line, good[1]))
        run = make_run(tmp_path, "run", config__json={}, metrics__jsonl=text)
        assert tiny.call("status", run, "--json") == 0
        assert json.loads(capsys.readouterr().out)[0]["iteration"] == 3
        tiny.assert_refused(
            tmp_path, f"figure curves {run}/metrics.jsonl --output {run}/f", "line 2 contains no metrics", capsys
        )
        metrics = Metrics(run / "metrics.jsonl", 3)
        assert metrics.seconds == 2.0
        assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == good
        shutil.rmtree(run)


def test_ignores_invalid_owners(tmp_path, capsys):
    for record in OWNERS:
        run = make_run(tmp_path, "run", owner__json=record, config__json={})
        assert read_owner(run) is None
        assert tiny.call("status", run, "--json") == 0
        assert json.loads(capsys.readouterr().out)[0]["state"] == "waiting"
        shutil.rmtree(run)


def test_skips_invalid_lines_of_attempts(tmp_path):
    lines = [{"token": []}, {"token": "a", "began": "x"}, {"token": "a", "ended": 1}, {"ended": "failed", "reason": 3}]
    run = make_run(tmp_path, "run", attempts__jsonl="".join(json.dumps(line) + "\n" for line in lines))
    assert failed_twice_identically(run) is None
    assert not any_killed(run)


def test_ignores_files_not_named_by_an_iteration(tmp_path):
    for name in ("1x", "²", "1", "00000001²", "000000012", "9" * 40, "000000003"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.stem for path in checkpoints(tmp_path)] == ["000000003", "000000012"]


JOURNAL = [{"number": 0}, {}, [], {"number": "0"}, {"refused": {"x": "why"}}, {"refused": {"99": "why"}}]
JOURNAL += [{"number": 7}, {"number": -1}, {"refused": [1]}, {"modes": {"L": "many"}}, {"sha256": None}, {"refused": 3}]


def test_skips_invalid_lines_of_chunks(tmp_path):
    header, whole = {"count": 70}, {"number": 0, "inputs": "i", "sha256": "s", "refused": {"3": "why"}, "modes": {}}
    (tmp_path / "rows").touch()
    for change in JOURNAL:
        line = whole | change if isinstance(change, dict) and change not in ({}, {"number": 0}) else change
        (tmp_path / "journal").write_text("".join(json.dumps(value) + "\n" for value in (header, line)))
        assert Journal(tmp_path / "journal", tmp_path / "rows", header).outcomes == {}
    (tmp_path / "journal").write_text("".join(json.dumps(value) + "\n" for value in (header, whole)))
    assert Journal(tmp_path / "journal", tmp_path / "rows", header).outcomes[0].refused == {3: "why"}
