"""A thousand mutated inputs for every reader of a file: a result, or one line; never late, large or a traceback."""

import os
import subprocess
import sys

import pytest
import tiny

pytestmark = pytest.mark.soak

INPUTS = 1000


def test_every_reader(tmp_path):
    command = [sys.executable, "-m", "fuzz", "--inputs", str(INPUTS), "--kept", str(tmp_path / "kept")]
    path = os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests"), str(tiny.ROOT / "tests/helpers")])
    done = subprocess.run(
        command,
        cwd=tiny.ROOT / "tests",
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and not line.startswith("| reader")]
    found = [line for line in rows if not line.endswith("| none |")]
    assert not found, "\n".join(found)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows) > 50
