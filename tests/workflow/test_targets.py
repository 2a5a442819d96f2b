"""The tests that each target of the Makefile runs: those on a live SLURM take long and have a separate target."""

import shlex
import subprocess
from itertools import chain, combinations

import pytest
from tiny import ROOT

OTHERS = ("slow", "soak", "gpu")


def expressions(target):
    """Return the values of `pytest -m` in a target, one for each call."""
    lines = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    calls = [words for words in map(shlex.split, lines.replace("\\\n", "").splitlines()) if "pytest" in words]
    return [words[words.index("-m", words.index("pytest")) + 1] for words in calls]


def selects(expression, marks):
    return eval(expression, {}, {name: name in marks for name in (*OTHERS, "slurm")})


@pytest.mark.parametrize("target", ["test", "soak"])
def test_no_other_target_runs_live_tests(target):
    """Other marks of a live test make no difference."""
    found = expressions(target)
    assert found
    for others in chain.from_iterable(combinations(OTHERS, number) for number in range(len(OTHERS) + 1)):
        assert not any(selects(expression, {"slurm", *others}) for expression in found), others


def test_live_tests_have_their_own_target():
    (found,) = expressions("test-slurm")
    assert selects(found, {"slurm"})
    assert not selects(found, {"slow"})
    assert (ROOT / ".ci/run").read_text().count("test-slurm") == 1
