"""GPUs that several processes of a machine share. Names are this test's own, so no GPU is needed."""

import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from uuid import uuid4

import pytest
import torch

from udpm.core import devices, gpus
from udpm.core.errors import StoppedEarly, UserError

HOLDER = """
import sys
from udpm.core import gpus
names, count, wait = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3] == "wait"
print(*[names[index] for index in gpus.claim(names, count, wait=wait)], flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that claims GPUs and holds them until its input is closed."""

    def __init__(self, *command, **environment):
        self._process = subprocess.Popen(
            [sys.executable, *command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | environment,
        )  # fmt: skip

    def got(self):
        """Return the names that it claimed; waits until it has."""
        return self._process.stdout.readline().split()

    def said(self):
        return self._process.stderr.readline().strip()

    def kill(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def names():
    return [f"{uuid4().hex}-{number}" for number in range(3)]


@pytest.fixture
def hold():
    """Starts holders, killed at the end."""
    with ExitStack() as started:

        def hold(names, count=1, wait="wait"):
            holder = Holder("-c", HOLDER, ",".join(names), str(count), wait)
            started.callback(holder.kill)
            return holder

        yield hold


@pytest.fixture(autouse=True)
def claims(monkeypatch):
    """This process's claims, freed at the end."""
    found = {}
    monkeypatch.setattr(gpus, "_claims", found)
    yield found
    for claimed in found.values():
        claimed.close()


def test_each_process_gets_a_gpu_of_its_own(names, hold):
    taken = [hold(names).got() for _ in names]
    assert taken == [[name] for name in names]


def test_several_at_once(names, hold):
    assert hold(names[:1]).got() == names[:1]
    assert hold(names, 2).got() == names[1:]


def test_a_process_keeps_its_gpu(names, hold):
    assert gpus.claim(names, wait=True) == [0]
    assert gpus.claim(names, wait=True) == [0]
    assert hold(names).got() == names[1:2]


def test_a_killed_process_frees_its_gpu(names, hold):
    first = hold(names[:1])
    first.got()
    second = hold(names[:1])
    assert second.said() == "waiting for 1 of 1 GPUs that other jobs of udpm use"
    first.kill()
    assert second.got() == names[:1]


def test_who_waits_for_several_holds_none(names, hold):
    hold(names[:1]).got()
    waiting = hold(names[:2], 2)
    assert waiting.said().startswith("waiting for 2 of 2")
    assert hold(names[1:2]).got() == names[1:2]


def test_without_waiting_the_least_used_is_shared(names, hold, capfd):
    for one in (names[:1], names[:1], names[1:2]):
        hold(one, wait="share").got()
    assert gpus.claim(names[:2], wait=False) == [1]
    assert capfd.readouterr().err == f"GPU {names[1]} has 1 other process of udpm: none is free\n"


@pytest.mark.parametrize("wait", ["wait", "share"])
def test_a_gpu_is_not_free_while_anybody_shares_it(names, hold, wait):
    first, second = (hold(names[:1], wait="share") for _ in range(2))
    first.got()
    second.got()
    first.kill()
    assert hold(names[:2], wait=wait).got() == names[1:2]


def test_a_marked_gpu_counts_even_if_it_was_in_use(names, hold):
    first = hold(names[:1])
    first.got()
    gpus.mark(names[0])
    first.kill()
    assert hold(names[:2]).got() == names[1:2]


def test_a_system_without_claims_does_not_stop_training(names, monkeypatch, capsys):
    def bind(_socket, _address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("udpm.core.gpus.socket.socket.bind", bind)
    assert gpus.claim(names, wait=True) == [0]
    assert capsys.readouterr().err == (
        f"GPU {names[0]} cannot be claimed (Permission denied); other jobs may use it, too\n"
    )


def test_an_unknown_policy_is_refused():
    assert gpus.is_exclusive({}) is gpus.is_exclusive({"UDPM_GPUS": "share"}) is False
    with pytest.raises(UserError, match=r"^environment variable UDPM_GPUS: must be exclusive or share, got Exclusive$"):
        gpus.is_exclusive({"UDPM_GPUS": "Exclusive"})


@pytest.mark.parametrize("build", ["2.13.0+cpu", "2.13.0+rocm6.4"])
def test_a_pytorch_that_cannot_use_nvidias_gpus_sees_none(monkeypatch, build):
    monkeypatch.setattr(gpus, "version", lambda name: build)
    monkeypatch.setattr(gpus.Path, "glob", lambda path, pattern: [path] if str(path) == "/dev" else [])
    assert gpus.visible({}) == []
    monkeypatch.setattr(gpus, "version", lambda name: "2.13.0")
    assert gpus.visible({}) == ["0"]


def test_a_signal_ends_the_waiting(names, hold):
    hold(names[:1]).got()
    with pytest.raises(StoppedEarly, match="while waiting for a GPU"):
        gpus.claim(names[:1], wait=True, stop=True)


def test_jobs_of_slurm_number_their_gpus_alone(names, hold, monkeypatch):
    hold(names[:1]).got()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert gpus.claim(names[:1], wait=True) == [0]


SHOW = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"


def test_a_command_sees_the_gpus_claimed_for_it(names, hold):
    hold(names[1:2]).got()
    shown = Holder(
        "-m", "udpm.core.gpus", "2", sys.executable, "-c", SHOW,
        CUDA_VISIBLE_DEVICES=",".join(names), UDPM_GPUS="exclusive",
    )  # fmt: skip
    try:
        assert shown.got() == [f"{names[0]},{names[2]}"]
        later = hold(names)
        assert later.said().startswith("waiting for 1 of 3")
    finally:
        shown.kill()
    assert later.got() == names[:1]


@pytest.mark.parametrize(
    ("value", "expected"), [("1,3", ["1", "3"]), ("", []), ("0,-1,1", ["0"]), (" a , b", ["a", "b"])]
)
def test_visible_gpus(value, expected):
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": value}) == expected
    assert gpus.visible({"HIP_VISIBLE_DEVICES": value}) == expected


# --- as a device -----------------------------------------------------------------------------------------------------


@pytest.fixture
def visible(monkeypatch, names):
    """Two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names[:2]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    kept = [backend.allow_tf32 for backend in (torch.backends.cuda.matmul, torch.backends.cudnn)]
    yield names[:2]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def test_a_single_process_takes_a_free_gpu(visible, hold):
    hold(visible).got()
    assert devices.configure("auto", 1) == torch.device("cuda", 1)


def test_a_rank_takes_its_own_and_others_see_it(visible, hold):
    assert devices.configure("auto", 1, 0) == torch.device("cuda", 0)
    assert hold(visible).got() == visible[1:]
