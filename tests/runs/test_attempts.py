"""Attempts are recorded from their first moment, once for all processes; their failures are compared by kind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import call

from udpm.core.errors import StoppedEarly, UserError
from udpm.runs import attempts
from udpm.runs import lock as owners
from udpm.runs.attempts import (
    ATTEMPTS,
    SERIES,
    any_killed,
    attempted,
    failed_twice_identically,
    kind_of,
    read_attempts,
    reason_of,
    recorded,
)
from udpm.runs.status import read_status, render_statuses
from udpm.training.trainer import train


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Run outside of any workflow or job."""
    for name in (SERIES, "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def lines_of(run):
    return [json.loads(line) for line in (run / ATTEMPTS).read_text().splitlines()]


def write(run, *lines):
    run.mkdir(parents=True, exist_ok=True)
    (run / ATTEMPTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(digits, folder, config, run="run"):
    given = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", folder / run]
    return ["train", config, *given]


# Early failures


def no_tensorboard(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "tensorboard", None)


def no_vgg(monkeypatch, folder):
    def fail(*_):
        raise UserError("VGG-16's weights cannot be downloaded")

    monkeypatch.setattr("udpm.training.trainer.load_lpips", fail)


def no_memory(monkeypatch, folder):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("udpm.data.levels.open_levels", fail)


FAILURES = {
    "no GPU": ({"training__device": "cuda"}, None, "device: cuda is not available: PyTorch sees no CUDA device"),
    "no data set": ({}, "dataset", "dataset.json: dataset record (run `udpm prepare` first) not found"),
    "no cache": ({}, "cache", "cache.json: level cache's record (run `udpm cache` first) not found"),
    "no level": ({}, "cache/level_2.npy", "level_2.npy"),
    "no extra": ({"training__trackers": ["tensorboard"]}, no_tensorboard, "needs the tensorboard extra"),
    "no VGG": ({"losses__lpips_weight": [1.0, 0.0, 0.0]}, no_vgg, "VGG-16's weights cannot be downloaded"),
    "no memory": ({}, no_memory, "out of memory on the CPU"),
    "alone": ({"training__processes_per_node": 2}, None, "2 in all are configured, but only one was started"),
}


def test_a_mistyped_command_leaves_no_folder(digits, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    assert call(*command(tmp_path, tmp_path, config)) == 2
    assert "dataset" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FAILURES)
def test_records_an_attempt_that_fails_at_once(digits, tmp_path, capsys, monkeypatch, name):
    changes, broken, reason = FAILURES[name]
    shutil.copytree(digits, tmp_path / "digits")
    if callable(broken):
        broken(monkeypatch, tmp_path)
    elif broken:
        (tmp_path / "digits" / broken).rename(tmp_path / "away")
    config, run = tiny.write_config(tmp_path, **changes), tmp_path / "run"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert call(*command(tmp_path / "digits", tmp_path, config)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in run.iterdir() if path.name != "config.json"] == [ATTEMPTS]
    began, ended = lines_of(run)
    assert (began["token"], began["job"]) == (ended["token"], "77")
    assert ended["ended"] == "failed"
    assert reason in ended["reason"]
    assert call("status", run, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["job"], found["attempts"]) == ("failed", "77", 1)
    assert found["host"] == began["host"]
    assert reason in found["note"]
    row = render_statuses([read_status(run)]).splitlines()[1]
    assert reason in row
    assert "job 77" in row
    assert not any_killed(run)


def test_trains_in_a_folder_with_only_failed_attempts(digits, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    config = tiny.write_config(tmp_path, training__device="cuda")
    assert call(*command(digits, tmp_path, config)) == 2
    assert call("clean", tmp_path / "run", "--yes") == 2
    assert "nothing removed: not finished" in capsys.readouterr().err
    config = tiny.write_config(tmp_path)
    assert call(*command(digits, tmp_path, config)) == 0
    assert [line.get("ended") for line in lines_of(tmp_path / "run")] == [None, "failed", None, "complete"]
    tiny.assert_same_weights(tmp_path / "run", trained)


def test_records_a_failed_import(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delitem(sys.modules, "udpm.training.trainer")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert call(*command(digits, tmp_path, tiny.write_config(tmp_path))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot import torch: ")
    assert lines_of(tmp_path / "run")[-1]["reason"].startswith("ModuleNotFoundError: import of torch halted")


def test_records_a_failed_import_of_the_package(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setitem(sys.modules, "udpm.training.trainer", None)
    with pytest.raises(ImportError):
        call(*command(digits, tmp_path, tiny.write_config(tmp_path)))
    assert lines_of(tmp_path / "run")[-1]["reason"].startswith("ModuleNotFoundError: import of udpm.training.trainer")


def test_records_a_process_killed_before_torch_is_imported(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import builtins, os, sys\n"
        "plain = builtins.__import__\n"
        "def killing(name, *rest, **more):\n"
        "    if name == 'torch':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return plain(name, *rest, **more)\n"
        "builtins.__import__ = killing\n"
        "from udpm.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    started = tiny.start(*command(digits, tmp_path, tiny.write_config(tmp_path)), program=[killed])
    assert started.wait() == -signal.SIGKILL
    started.communicate()
    run = tmp_path / "run"
    assert [set(line) & {"began", "ended"} for line in lines_of(run)] == [{"began"}]
    assert any_killed(run)
    status = read_status(run)
    assert (status.state, status.attempts) == ("waiting", 1)
    assert re.fullmatch(rf"process {started.pid} on \S+, job 77 ended abruptly", status.note)


def test_an_attempt_elsewhere_that_has_not_ended(tmp_path, capsys):
    write(tmp_path, {"token": "a", "began": 1.0, "host": "n\n1", "machine": "another", "pid": 12, "job": "7"})
    assert call("status", tmp_path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["job"], found["attempts"]) == ("waiting", "7", 1)
    assert re.fullmatch("process 12 on n 1, job 7 began .* days ago and has not recorded an end", found["note"])


# Folders with something else


def test_writes_nothing_to_a_finished_run(digits, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    before = tiny.snapshot(tmp_path / "run")
    assert call(*command(digits, tmp_path, tiny.write_config(tmp_path))) == 0
    assert "complete already, nothing to do" in capsys.readouterr().out
    assert tiny.snapshot(tmp_path / "run", but=[".lock"]) == before


def another_run(run):
    (run / "config.json").write_text(tiny.to_json(tiny.run_config(training__batch=4)))


def imported(run):
    from udpm.core.containers import read_header
    from udpm.networks.weights import write_tensors

    description = read_header(run / "weights.safetensors").description
    del description["run"]
    tensors = tiny.weights(run)
    shutil.rmtree(run)
    write_tensors(run / "weights.safetensors", tensors, description | {"origin": {"kind": "x"}})


def orphaned(run):
    shutil.rmtree(run / "checkpoints")
    (run / "complete.json").unlink()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (another_run, "holds a run of another configuration"),
        (imported, "holds imported weights"),
        (orphaned, "complete.json and checkpoints not found"),
        (
            lambda run: (shutil.rmtree(run), run.mkdir(), (run / "thesis.tex").touch()),
            "contains other files (thesis.tex)",
        ),
    ],
)
def test_writes_nothing_to_another_run(digits, trained, tmp_path, capsys, edit, expected):
    shutil.copytree(trained, tmp_path / "run")
    edit(tmp_path / "run")
    config = tiny.write_config(tmp_path, training__device="cuda")
    command_line = " ".join(map(str, command(tmp_path / "no data", tmp_path, config))).replace("no data", "none")
    tiny.assert_refused(tmp_path, command_line, expected, capsys)


# Several processes, several trainers

TORCHRUN = {"TORCHELASTIC_RUN_ID": "r", "MASTER_ADDR": "n1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
SRUN = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(("environment", "rank"), [(TORCHRUN, "RANK"), (SRUN, "SLURM_PROCID")])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("recorded_end", ["stopped", None])
def test_one_of_several_processes_records_the_attempt(tmp_path, monkeypatch, environment, rank, first, recorded_end):
    """The other fails, before or after the first has begun, and the first only stops or is killed."""
    monkeypatch.setattr(attempts, "is_dead", lambda record: True)
    config = tiny.run_config(training__processes_per_node=2)

    def first_process():
        with attempted(tmp_path, config, environment=environment | {rank: "0"}):
            raise StoppedEarly("another process of this training ended")

    def other_process():
        with attempted(tmp_path, config, environment=environment | {rank: "1"}):
            raise UserError("device: cuda is not available")

    for process in (first_process, other_process) if first == 0 else (other_process, first_process):
        with pytest.raises((StoppedEarly, UserError)):
            process()
    lines = lines_of(tmp_path)
    if recorded_end is None:
        write(tmp_path, *(line for line in lines if line.get("ended") is None))
    assert len([line for line in lines if "began" in line]) == 1
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.ended, attempt.reason) == ("failed", "device: cuda is not available")
    assert not any_killed(tmp_path)


def test_the_same_launch_twice_is_two_attempts(tmp_path):
    config = tiny.run_config(training__processes_per_node=2)
    for _ in range(2):
        with pytest.raises(UserError), attempted(tmp_path, config, environment=TORCHRUN | {"RANK": "0"}):
            raise UserError("again")
    assert [attempt.ended for attempt in read_attempts(tmp_path)] == ["failed", "failed"]
    assert failed_twice_identically(tmp_path) == "again"


def test_a_single_process_ignores_leaked_variables(tmp_path):
    with attempted(tmp_path, tiny.run_config(), environment=TORCHRUN | SRUN | {"RANK": "1", "SLURM_PROCID": "1"}):
        pass
    assert [line.get("ended") for line in lines_of(tmp_path)] == [None, "complete"]


@pytest.mark.slow
def test_torchrun_records_one_attempt(digits, tmp_path):
    config = tiny.write_config(tmp_path, training__processes_per_node=2, training__device="cuda")
    done = subprocess.run(
        [str(part) for part in (*tiny.TORCHRUN, *command(digits, tmp_path, config))],
        capture_output=True,
        text=True,
        cwd=tiny.ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", SERIES: "one"},
    )
    assert done.returncode != 0
    assert len([line for line in lines_of(tmp_path / "run") if "began" in line]) == 1
    (attempt,) = read_attempts(tmp_path / "run")
    assert attempt.ended == "failed"
    assert "sees no CUDA device" in attempt.reason


class Elsewhere:
    """A living trainer on another node, as a request to stop that a waiting trainer checks."""

    def __init__(self, run, monkeypatch):
        self.run, self.beat, self.seen = run, 0, []
        write(run, {"token": "other", "began": 1.0, "host": "elsewhere"})
        self.live()
        monkeypatch.setattr(owners, "time", self)

    def live(self):
        self.beat += 1
        record = {"token": "other", "host": "elsewhere", "beat": self.beat, "time": 1e9}
        (self.run / "owner.json").write_text(json.dumps(record))

    def time(self):
        return 1e9

    def monotonic(self):
        return float(self.beat)

    def sleep(self, seconds):
        self.live()

    def __bool__(self):
        self.seen.append((any_killed(self.run), failed_twice_identically(self.run), len(read_attempts(self.run))))
        if len(self.seen) == 3:
            write(self.run, *lines_of(self.run), {"token": "other", "ended": "complete", "saved": 0})
        return len(self.seen) == 3


def test_a_waiting_attempt_was_not_killed(levels, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    other = Elsewhere(run, monkeypatch)
    with pytest.raises(StoppedEarly, match="while waiting for a process on elsewhere"):
        train(tiny.run_config(), levels, run, other)
    assert other.seen == [(False, None, 2)] * 3
    assert [attempt.ended for attempt in read_attempts(run)] == ["complete", "stopped"]


def test_an_attempt_that_took_over_may_be_killed(tmp_path):
    (tmp_path / "owner.json").write_text(json.dumps({"token": "other", "host": "elsewhere"}))
    attempt = attempts.Attempt(tmp_path, {"token": "mine"})
    attempt.begin()
    (tmp_path / "owner.json").unlink()
    assert not any_killed(tmp_path)
    attempt.take_over()
    assert any_killed(tmp_path)


def test_an_owner_without_heartbeat_was_killed(tmp_path, monkeypatch):
    other = Elsewhere(tmp_path, monkeypatch)
    assert not any_killed(tmp_path)
    beats = iter(range(10**6))
    monkeypatch.setattr(other, "sleep", lambda seconds: None)
    monkeypatch.setattr(other, "monotonic", lambda: float(next(beats)))
    assert any_killed(tmp_path)


def test_the_owner_and_its_attempt_have_the_same_token(levels, tmp_path):
    seen = []

    class Looks:
        def __bool__(self):
            seen.append((owners.read_owner(tmp_path)["token"], any_killed(tmp_path)))
            return False

    train(tiny.run_config(training__iterations=1), levels, tmp_path, Looks())
    assert set(seen) == {(lines_of(tmp_path)[0]["token"], False)}


def test_reserves_space_for_the_end_at_the_beginning(tmp_path):
    """The disk is full by then."""
    for _ in range(9):
        attempt = attempts.Attempt(tmp_path, {"token": "a"})
        attempt.begin()
        size = (tmp_path / ATTEMPTS).stat().st_size
        assert size % attempts.BLOCK
        assert -size % attempts.BLOCK >= attempts.END - 1
        attempt.end("failed", "x" * 5000)
        assert (tmp_path / ATTEMPTS).stat().st_size < size + attempts.END


def test_an_end_without_a_beginning_identifies_its_process(tmp_path, monkeypatch):
    """The disk was full when the attempt began."""
    plain = attempts._append
    monkeypatch.setattr(attempts, "_append", lambda run, line, room=0: not room and plain(run, line))
    for _ in range(2):
        with pytest.raises(UserError), recorded(tmp_path, {"token": "a", "host": "n1", "job": "7"}):
            raise UserError("no room")
    assert [(attempt.ended, attempt.record["host"]) for attempt in read_attempts(tmp_path)] == [("failed", "n1")] * 2
    assert failed_twice_identically(tmp_path, job="7") == "no room"


def test_a_full_disk_is_one_kind_for_every_file(levels, tmp_path, monkeypatch):
    def full(path):
        if "checkpoints" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("udpm.core.files.sync", full)
    reasons = []
    for every in (2, 3):
        with pytest.raises(UserError, match="No space left on device") as refused:
            train(tiny.run_config(training__checkpoint_every=every), levels, tmp_path, False)
        reasons.append(str(refused.value))
    assert reasons[0] != reasons[1]
    assert failed_twice_identically(tmp_path) == reasons[1]


# Failures of one kind

A, B = {"ended": "failed", "reason": "no room for 12 bytes in /a/b"}, {"ended": "failed", "reason": "no GPU"}
STOPPED, KILLED, COMPLETE = {"ended": "stopped"}, {}, {"ended": "complete"}
WAITING = {"waits": True}


def write_ends(run, *ends):
    lines = []
    for number, end in enumerate(ends):
        token = str(number)
        extra = {key: end[key] for key in ("waits", "series", "host", "job") if key in end}
        lines.append({"token": token, "began": 1.0 + number, **extra})
        if "ended" in end:
            lines.append({"token": token, "reason": "", **end})
    write(run, *lines)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([], False),
        ([A], False),
        ([A, A], True),
        ([B, A, A], True),
        ([A, B], False),
        ([A, A, B], False),
        ([A, KILLED, A], False),
        ([A, A, KILLED], False),
        ([A, WAITING, A], True),
        ([A, COMPLETE, A], False),
        ([A, A, STOPPED], False),
        # An earlier version did not record the checkpoint.
        ([A, STOPPED, A], False),
        ([A | {"saved": 20}, STOPPED | {"saved": 20}, A | {"saved": 20}], True),
        ([A | {"saved": 20}, STOPPED | {"saved": 40}, A | {"saved": 40}], False),
        ([A | {"saved": 20}, A | {"saved": 20}], True),
        ([A | {"saved": 20}, A | {"saved": 40}], False),
        ([A | {"saved": 40}, A | {"saved": 20}], True),
    ],
)
def test_failed_twice_identically(tmp_path, ends, expected):
    write_ends(tmp_path, *ends)
    assert failed_twice_identically(tmp_path) == (A["reason"] if expected else None)


def test_returns_the_last_reason(tmp_path):
    write_ends(tmp_path, A, A | {"reason": "no room for 7 bytes in /c"})
    assert failed_twice_identically(tmp_path) == "no room for 7 bytes in /c"


def test_considers_only_one_series(tmp_path):
    write_ends(tmp_path, A, A | {"series": "s"}, A, A | {"series": "t"})
    assert failed_twice_identically(tmp_path) == A["reason"]
    assert failed_twice_identically(tmp_path, "s") is failed_twice_identically(tmp_path, "t") is None
    write_ends(tmp_path, A | {"series": "s"}, B, A | {"series": "s"})
    assert failed_twice_identically(tmp_path) is None
    assert failed_twice_identically(tmp_path, "s") == A["reason"]


def test_ignores_attempts_of_another_job(tmp_path):
    write_ends(tmp_path, A, A | {"job": "7"})
    assert failed_twice_identically(tmp_path, job="7") == A["reason"]
    assert failed_twice_identically(tmp_path, job="8") is None


def test_reads_attempts_of_earlier_versions_and_torn_lines(tmp_path):
    for message in ("first", "again", "again"):
        assert failed_twice_identically(tmp_path) is None
        with pytest.raises(UserError), recorded(tmp_path, {"token": message}):
            raise UserError(message)
    assert failed_twice_identically(tmp_path) == "again"
    assert not any_killed(tmp_path)
    with open(tmp_path / ATTEMPTS, "a") as file:
        file.write('{"token": "torn", "beg')
    with recorded(tmp_path, {"token": "last"}):
        assert any_killed(tmp_path)
    assert not any_killed(tmp_path)


@pytest.mark.parametrize("lines", [None, "", "rubbish\n", '{"token": "a", "ended": "failed", "reason": "x"}\n'])
def test_a_run_that_was_never_started_was_not_killed(tmp_path, lines):
    if lines is not None:
        (tmp_path / ATTEMPTS).write_text(lines)
    assert not any_killed(tmp_path)
    assert not any_killed(tmp_path / "missing")


FULL = "{}: cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FULL.format("results/runs/a/seed0/metrics.jsonl"), FULL.format("/data/x/checkpoints/000000040.safetensors")),
        ("OSError: [Errno 28] No space left on device: '/a'", "No space left on device"),
        ("I/O error: No space left on device (os error 28)", "No space left on device"),
        ("/x y/b: Disk quota exceeded", "c/d.json: Disk quota exceeded"),
        ("'.weights.safetensors.tmp-n1-12' is gone", "'.weights.safetensors.tmp-node-b-7' is gone"),
        ("cannot rename .w.json.tmp-n1-12", "cannot rename .w.json.tmp-other-3"),
        ("tmpk3x9_a2b: bad", "tmpqqqqqqqq: bad"),
        ("cannot open '/a b/c': gone", "cannot open '/d': gone"),
        ("tried to allocate 2.00 GiB", "tried to allocate 512.5 MiB"),
        ("loss of level 2 in iteration 1,200", "loss of level 2 in iteration 7"),
        ("process 12 on node3, job 7", "process 7 on node12, job 99"),
        ("no route to [n1.cluster.lan]:29500", "no route to [fe80::1]:4711"),
        ("peer 10.0.0.1:29500 closed", "peer 192.168.1.77:1 closed"),
        ("peer a.b.lan:29500 closed", "peer c.lan:29501 closed"),
        ("peer fe80::1ff:fe23:4567:890a closed", "peer ::1 closed"),
        ("at 0x7f3a: bad", "at 0xDEADBEEF: bad"),
        ("SHA-256 is 9f86d081884c7d65, not 60303ae22b998861", "SHA-256 is d4735e3a265e16ee, not ef2d127de37b942b"),
        ("job 123e4567-e89b-12d3-a456-426614174000", "job 00000000-0000-0000-0000-000000000000"),
        ("took 1.5e-05 s", "took 12 min"),
        ("~/runs/a: gone", "../b/c: gone"),
    ],
)
def test_reasons_of_one_kind(one, other):
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("No module named 'tensorboard'", "No module named 'lpips'"),
        ("generator/lpips of level 2 is not finite", "generator/adversarial of level 2 is not finite"),
        ("training.backend: nccl is not available in this PyTorch", "training.threads: nccl is not in this PyTorch"),
        ("/a: cannot be written: Input/output error", "/a: cannot be written: Permission denied"),
        ("/a: data set record not found", "/a: level cache not found"),
        ("out of memory on the GPU", "out of memory on the CPU"),
        ("/a: cannot be written: No space left on device", "/a: cannot be written: Disk quota exceeded"),
        ("KeyError: 'a'", "ValueError: 'a'"),
    ],
)
def test_reasons_of_two_kinds(one, other):
    assert kind_of(one) != kind_of(other)


def test_ignores_the_host(tmp_path):
    hosts = ("gpu-a.cluster", "gpu-b.cluster")
    write_ends(
        tmp_path, *({"ended": "failed", "reason": f"{host.split('.')[0]}: no GPU", "host": host} for host in hosts)
    )
    assert failed_twice_identically(tmp_path) == "gpu-b: no GPU"


NUMBERS = st.one_of(
    st.integers(0, 10**20).map(str),
    st.floats(0, 1e300, allow_subnormal=False).map(repr),
    st.integers(0, 2**64).map(hex),
    st.uuids().map(str),
    st.ip_addresses(v=4).map(str),
)
NAMES = st.text("abcxyzABC0189_-+.", min_size=1, max_size=12)
PATHS = st.builds("/".join, st.lists(NAMES, min_size=1, max_size=4)).map("/".__add__)
TEMPLATES = ["{path}: {number} bytes do not fit", "process {number} on {path} (job {number})", "'{path}' has {number}"]


@given(
    st.sampled_from([*TEMPLATES, "node{plain} ended with {number}: {path}", "x={number}, in {path}"]),
    st.lists(st.tuples(NUMBERS, PATHS, st.integers(0, 10**9)), min_size=2, max_size=2),
)
def test_numbers_and_paths_never_matter(template, values):
    one, other = (template.format(number=number, path=path, plain=plain) for number, path, plain in values)
    assert kind_of(one) == kind_of(other)
    assert kind_of(kind_of(one)) == kind_of(one)


def test_reasons_are_one_line():
    assert reason_of(UserError("a: no\nroom", "b: none")) == "a: no room; b: none"
    assert reason_of(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert reason_of(FileNotFoundError(2, "No such file", "/x")) == "/x: No such file"
    assert reason_of(MemoryError()) == "MemoryError"
    assert reason_of(KeyboardInterrupt()) == "interrupted"


# The third attempt


def test_refuses_the_third_attempt_and_its_advice_helps(digits, trained, tmp_path, capsys, monkeypatch):
    wrong, run = tiny.write_config(tmp_path, training__device="cuda"), tmp_path / "run"
    arguments = command(digits, tmp_path, wrong)

    def ends():
        return [attempt.ended for attempt in read_attempts(run)]

    monkeypatch.setenv(SERIES, "one")
    for job in ("1", "2"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert call(*arguments) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    expected = (
        f"error: {run}: failed twice for the same reason (device: cuda is not available: PyTorch sees no CUDA device;"
    )
    tiny.assert_refused(tmp_path, " ".join(map(str, arguments)), expected, capsys)
    # The user requeued the job.
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(*arguments) == 2
    assert ends() == ["failed"] * 3
    # Another `snakemake` also tries twice.
    monkeypatch.setenv(SERIES, "two")
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    assert call(*arguments) == 2
    assert ends() == ["failed"] * 4
    # A start by hand belongs to no series; the cause is fixed.
    monkeypatch.delenv(SERIES)
    assert call(*command(digits, tmp_path, tiny.write_config(tmp_path))) == 0
    assert ends() == [*["failed"] * 4, "complete"]
    tiny.assert_same_weights(run, trained)


def test_follows_a_link_to_a_folder_that_does_not_exist(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "disk/run")
    attempts.make_folder(tmp_path / "run")
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk/run").is_dir()
