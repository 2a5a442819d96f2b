"""Configuration files of any content are read, or refused with a line number, in little time and memory."""

import json
import shutil

import pytest
import tiny

from udpm.config import load_study
from udpm.config.load import load_experiment
from udpm.config.validation import read_yaml
from udpm.core.errors import UserError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
REFUSED = {
    "a bomb": (BOMB, "more than 20000 values (line 5)"),
    "a bomb of a known key": (BOMB + "description: *a9\n", "more than 20000 values"),
    "a bomb of mappings": (
        "a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 30)),
        "more than 20000 values",
    ),
    "a bomb of merges": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 30)),
        "more than 20000 values",
    ),
    "an alias in itself": ("a: &a [*a]", "an alias refers to a node that contains it (line 1)"),
    "very many seeds": ("seeds: [" + "1, " * 40_000 + "1]", "more than 20000 values"),
    "deep": ("a: " + "[" * 1000 + "]" * 1000, "nested more than 32 deep (line 1)"),
    "deep and open": ("a: " + "[" * 100_000, "nested more than 32 deep"),
    "deep in lines": ("- " * 1000 + "a", "nested more than 32 deep"),
    "large": ("a: " + "x" * 2**20, "bytes, more than 1048576"),
    "a list as a key": ("b: 1\n[1, 2]: 3", "a list or mapping cannot be a key (line 2)"),
    "a mapping as a key": ("{a: 1}: 3", "a list or mapping cannot be a key (line 1)"),
    "a list as an explicit key": ("? - a\n  - b\n: 3", "cannot be a key"),
    "no integer": ("a: 1\nb: !!int abc", "'abc' is not of type int (line 2)"),
    "no integer at all": ("a: !!int ''", "'' is not of type int"),
    "no number": ("a: !!float abc", "'abc' is not of type float"),
    "no truth": ("a: !!bool maybe", "'maybe' is not of type bool"),
    "a long integer": ("a: " + "1" * 5000, "is not of type int (line 1)"),
    "a large integer": ("a: 18446744073709551616", "integer does not fit in 64 bits (line 1)"),
    "a hexadecimal one": ("a: 0x" + "f" * 100_000, "integer does not fit in 64 bits"),
    "an object": ("a: !!python/object/apply:os.system ['touch PWNED']", "could not determine a constructor"),
    "a name": ("a: !!python/name:os.system ''", "could not determine a constructor"),
    "an unknown tag": ("a: !mine 3", "could not determine a constructor for the tag '!mine' (line 1)"),
    "bytes": ("a: !!binary abc", "could not determine a constructor"),
    "a set": ("a: !!set {x, y}", "could not determine a constructor"),
    "a date": ("a: !!timestamp 2024-13-45", "could not determine a constructor"),
    "a map of a word": ("a: !!map x", "expected"),
    "a list of a word": ("a: !!seq x", "expected"),
    "tabs": ("a:\n\tb: 1", "cannot start any token (line 2)"),
    "two documents": ("a: 1\n---\nb: 2", "another document (line 2)"),
    "control characters": ("a: \x01", "special characters are not allowed"),
    "a NUL": ('a: "x\\0y"', "the character U+0000 (line 1)"),
    "half a pair": ('a: "\\ud800"', "the character U+D800 (line 1)"),
    "a merge of a word": ("<<: x", "expected a mapping or list of mappings for merging"),
    "an unknown alias": ("a: *b", "found undefined alias"),
    "nothing": ("", "expected 'key: value' lines, found NoneType"),
    "a word": ("x", "expected 'key: value' lines, found str"),
    "not UTF-8": (b"a: \xff", "not UTF-8 text: byte 3 is 0xff"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_yaml_is_bounded(tmp_path, case):
    text, expected = REFUSED[case]
    (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        read_yaml(tmp_path / "x.yaml")
    line = " ".join(str(refused.value).split())
    assert line.startswith(f"{tmp_path}/x.yaml: ")
    assert expected in line
    assert len(line) < 400


def test_values_are_what_they_look_like(tmp_path):
    lines = {
        "0123": "0123",
        "007": "007",
        "1:30": "1:30",
        "24:00:00": "24:00:00",
        "2024-01-31": "2024-01-31",
        "2024-13-45": "2024-13-45",
        "0": 0,
        "-12": -12,
        "1_000": 1000,
        "0x1f": 31,
        "0o17": 15,
        "1e-4": 1e-4,
        "1E5": 1e5,
        "1.5": 1.5,
        ".5": 0.5,
        "-.inf": float("-inf"),
        "true": True,
        "~": None,
        "[1, x]": [1, "x"],
    }
    (tmp_path / "x.yaml").write_text("".join(f"k{n}: {text}\n" for n, text in enumerate(lines)))
    found = list(read_yaml(tmp_path / "x.yaml").values())
    assert found == list(lines.values())
    assert [type(value) for value in found] == [type(value) for value in lines.values()]


def test_aliases_and_merges_of_a_usual_size(tmp_path):
    (tmp_path / "x.yaml").write_text("\ufeffa: &a {x: 1, y: [1, 2]}\nb: *a\nc:\n  <<: *a\n  x: 3\n", encoding="utf-8")
    inner = {"x": 1, "y": [1, 2]}
    assert read_yaml(tmp_path / "x.yaml") == {"a": inner, "b": inner, "c": {"x": 3, "y": [1, 2]}}


def test_shortens_an_endless_value():
    value = ["x"]
    for _ in range(30):
        value = [value] * 9
    with pytest.raises(UserError, match="experiments"):
        load_study({"experiments": [value]}, "config.yaml")


def test_a_long_chain_of_experiments(tmp_path):
    (tmp_path / "experiments").mkdir()
    for number in range(1500):
        (tmp_path / f"experiments/e{number}.yaml").write_text(f"extends: e{number + 1}\n")
    with pytest.raises(UserError, match="extends: chain of more than 32 files"):
        load_experiment("e0", tmp_path)


def test_a_refused_experiment_writes_nothing(tmp_path, capsys):
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "config/experiments/e.yaml").write_text(BOMB + "seeds: *a9\n")
    command = f"resolve e --config {tmp_path}/config --output {tmp_path}/out.json"
    tiny.assert_refused(tmp_path, command, "more than 20000 values", capsys)


def test_an_unknown_key_may_be_called_anything(tmp_path, capsys):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    for key in ("see[ds", "[]", "int", "list[x]", "", "a.b", "²"):
        write = json.dumps({"extends": "digits", key: 1})
        (tmp_path / "config/experiments/e.yaml").write_text(write, encoding="utf-8")
        command = f"resolve e --config {tmp_path}/config --output {tmp_path}/out.json"
        tiny.assert_refused(tmp_path, command, f"{key}: unknown key; ", capsys)
