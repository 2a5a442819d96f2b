"""One trainer per run folder: waiting, taking over, and never two writers."""

import json
import signal

import pytest
import tiny

from udpm.core.errors import StoppedEarly
from udpm.runs import lock as owners
from udpm.runs.lock import RunLock, read_owner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(owners, "HEARTBEAT", 0.05)


class Clock:
    """Replacement of the module `time`, whose clock only advances while it sleeps, and at once."""

    def __init__(self, monkeypatch):
        self.now = 1e9
        monkeypatch.setattr(owners, "time", self)

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds


class NotAsked:
    """A request to stop that must not be checked, since there is nothing to wait for."""

    def __bool__(self):
        raise AssertionError("waited")


def foreign(folder, **changes):
    """Write the record of a trainer on another node."""
    record = {"token": "other", "host": "elsewhere", "pid": 1, "started": "x", "job": "7", "beat": 3} | changes
    (folder / "owner.json").write_text(json.dumps(record))


def test_the_record_exists_only_while_training(tmp_path):
    with RunLock(tmp_path, False) as owner:
        first = read_owner(tmp_path)
        assert owner.is_held()
        tiny.wait_for(lambda: read_owner(tmp_path)["beat"] > first["beat"])
    assert read_owner(tmp_path) is None


def test_replaces_a_dead_owner_on_this_host_at_once(tmp_path):
    foreign(tmp_path, machine=owners._machine(), pid=2**22 + 1)
    with RunLock(tmp_path, NotAsked()) as owner:
        assert owner.is_held()


def test_recognizes_a_reused_pid(tmp_path):
    # Process 1 of this host is alive, but it did not start when the record says.
    foreign(tmp_path, machine=owners._machine(), pid=1)
    with RunLock(tmp_path, False) as owner:
        assert owner.is_held()


def test_replaces_a_silent_owner_on_another_host_after_a_while(tmp_path, monkeypatch, capsys):
    foreign(tmp_path)
    clock = Clock(monkeypatch)
    started = clock.now
    with RunLock(tmp_path, False, stale=60) as owner:
        assert owner.is_held()
        assert 60 <= clock.now - started < 65
    printed = capsys.readouterr().err
    assert "process 1 on elsewhere, job 7 is training here; waiting for it to end" in printed
    assert "taking over" in printed


def test_waits_for_a_living_owner(tmp_path, monkeypatch):
    foreign(tmp_path)
    clock = Clock(monkeypatch)
    started = clock.now

    class StopAfterBeats:
        def __init__(self):
            self.beat = 0

        def __bool__(self):
            self.beat += 1
            foreign(tmp_path, beat=self.beat)
            return self.beat > 200

    with (
        pytest.raises(StoppedEarly, match="while waiting for process 1 on elsewhere"),
        RunLock(tmp_path, StopAfterBeats(), stale=60),
    ):
        pass
    assert clock.now - started > 120
    assert read_owner(tmp_path)["token"] == "other"


def test_a_trainer_that_lost_the_folder_keeps_the_new_record(tmp_path):
    with RunLock(tmp_path, False) as owner:

        def stopped_beating():
            # Repeatedly: one heartbeat may have been on its way.
            foreign(tmp_path)
            return not owner._thread.is_alive()

        tiny.wait_for(stopped_beating)
        assert not owner.is_held()
    assert read_owner(tmp_path)["token"] == "other"


@pytest.mark.parametrize("content", ["", "rubbish", "[1]"])
def test_ignores_an_unreadable_record(tmp_path, content):
    (tmp_path / "owner.json").write_text(content)
    with RunLock(tmp_path, False) as owner:
        assert owner.is_held()


def command(digits, config, run, *more):
    return ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run, *more]


@pytest.mark.slow
def test_two_trainers_on_one_folder(digits, tmp_path):
    """The second waits for the first, and finds the work done."""
    config = tiny.write_config(tmp_path, training__iterations=40)
    held = tiny.Held.before_iteration(tmp_path, 10)
    first = tiny.start(*command(digits, config, tmp_path / "run"), program=held.program)
    held.wait(first)
    second = tiny.start(*command(digits, config, tmp_path / "run"))
    assert "is training here; waiting for it to end" in second.stderr.readline()
    held.release()
    assert "complete already" in second.communicate()[0]
    assert (first.wait(), second.returncode) == (0, 0)
    tiny.udpm(*command(digits, config, tmp_path / "undisturbed"))
    tiny.assert_same_weights(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_suspended_trainer_loses_the_folder(digits, tmp_path):
    config = tiny.write_config(tmp_path, training__iterations=40, training__checkpoint_every=5)
    tiny.udpm(*command(digits, config, tmp_path / "undisturbed"))
    run = tmp_path / "run"
    held = tiny.Held.before_iteration(tmp_path, 8)
    first = tiny.start(*command(digits, config, run), program=held.program)
    held.wait(first)
    first.send_signal(signal.SIGSTOP)
    # As from another node, which cannot check whether the process is alive.
    record = json.loads((run / "owner.json").read_text())
    (run / "owner.json").write_text(json.dumps(record | {"host": "elsewhere", "machine": "another"}))
    second = tiny.start(*command(digits, config, run, "--stale-after", 1))
    tiny.wait_for(lambda: (read_owner(run) or {}).get("pid") == second.pid or second.poll() is not None)
    held.release()
    first.send_signal(signal.SIGCONT)
    _, printed = first.communicate()
    assert first.returncode == 75
    assert "another trainer took over; this one writes nothing more" in printed
    assert second.wait() == 0
    tiny.assert_same_weights(run, tmp_path / "undisturbed")
    assert [line["iteration"] for line in tiny.metrics(run)] == [
        line["iteration"] for line in tiny.metrics(tmp_path / "undisturbed")
    ]
