"""One trainer per run folder: waiting, taking over, and never two writers."""

import json
import signal
import time

import pytest
import tiny

from udpm.core.errors import StoppedEarly
from udpm.training import owner as owners
from udpm.training.checkpoint import checkpoints
from udpm.training.owner import Owner, read_owner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(owners, "HEARTBEAT", 0.05)
    monkeypatch.setattr(owners, "SETTLE", 0.01)


def foreign(folder, **changes):
    """A record that a trainer on another node left."""
    record = {"token": "other", "host": "elsewhere", "pid": 1, "started": "x", "job": "7", "beat": 3} | changes
    (folder / "owner.json").write_text(json.dumps(record))


def test_the_record_is_there_while_training_and_gone_after(tmp_path):
    with Owner(tmp_path, False) as owner:
        first = read_owner(tmp_path)
        assert owner.holds()
        time.sleep(0.3)
        assert read_owner(tmp_path)["beat"] > first["beat"]
    assert read_owner(tmp_path) is None


def test_a_dead_owner_of_this_host_is_followed_at_once(tmp_path):
    foreign(tmp_path, machine=owners._machine(), pid=2**22 + 1)
    started = time.monotonic()
    with Owner(tmp_path, False) as owner:
        assert owner.holds()
    assert time.monotonic() - started < 5


def test_a_number_given_to_another_process_is_not_the_owner(tmp_path):
    # Process 1 of this host is alive, but it did not start when the record says.
    foreign(tmp_path, machine=owners._machine(), pid=1)
    with Owner(tmp_path, False) as owner:
        assert owner.holds()


def test_a_silent_owner_elsewhere_is_followed_after_a_while(tmp_path, capsys):
    foreign(tmp_path)
    started = time.monotonic()
    with Owner(tmp_path, False, stale=0.5) as owner:
        assert owner.holds()
    assert time.monotonic() - started >= 0.5
    told = capsys.readouterr().err
    assert "process 1 on elsewhere, job 7 is training here; waiting for it to end" in told
    assert "taking over" in told


def test_a_living_owner_is_waited_for(tmp_path):
    foreign(tmp_path)

    class StopAfterBeats:
        def __init__(self):
            self.beat = 0

        def __bool__(self):
            self.beat += 1
            foreign(tmp_path, beat=self.beat)
            return self.beat > 20

    with (
        pytest.raises(StoppedEarly, match="while waiting for process 1 on elsewhere"),
        Owner(tmp_path, StopAfterBeats(), stale=0.3),
    ):
        pass
    assert read_owner(tmp_path)["token"] == "other"


def test_one_that_lost_the_folder_knows_and_leaves_the_record_alone(tmp_path):
    with Owner(tmp_path, False) as owner:
        foreign(tmp_path)
        time.sleep(0.3)
        assert not owner.holds()
    assert read_owner(tmp_path)["token"] == "other"


@pytest.mark.parametrize("content", ["", "rubbish", "[1]"])
def test_a_record_that_cannot_be_read_holds_nobody_up(tmp_path, content):
    (tmp_path / "owner.json").write_text(content)
    with Owner(tmp_path, False) as owner:
        assert owner.holds()


def command(digits, config, run, *more):
    return ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run, *more]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_trainers_on_one_folder(digits, tmp_path):
    """The second waits for the first, and finds the work done."""
    config = tiny.write_config(tmp_path, training__iterations=150)
    first = tiny.start(*command(digits, config, tmp_path / "run"))
    wait_for((tmp_path / "run/metrics.jsonl").exists)
    second = tiny.udpm(*command(digits, config, tmp_path / "run"))
    assert "is training here; waiting for it to end" in second.stderr
    assert "complete already" in second.stdout
    assert first.wait(timeout=60) == 0
    tiny.udpm(*command(digits, config, tmp_path / "undisturbed"))
    tiny.assert_same_weights(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_trainer_that_sleeps_long_enough_loses_the_folder(digits, tmp_path):
    config = tiny.write_config(tmp_path, training__iterations=200, training__checkpoint_every=5)
    tiny.udpm(*command(digits, config, tmp_path / "undisturbed"))
    run = tmp_path / "run"
    first = tiny.start(*command(digits, config, run))
    wait_for(lambda: checkpoints(run / "checkpoints"))
    first.send_signal(signal.SIGSTOP)
    # As from another node, where nobody can see whether the process lives.
    record = json.loads((run / "owner.json").read_text())
    (run / "owner.json").write_text(json.dumps(record | {"host": "elsewhere", "machine": "another"}))
    second = tiny.start(*command(digits, config, run, "--stale-after", 1))
    wait_for(lambda: (read_owner(run) or {}).get("pid") == second.pid)
    first.send_signal(signal.SIGCONT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 75
    assert "another trainer took it over; nothing more is written" in told
    assert second.wait(timeout=120) == 0
    tiny.assert_same_weights(run, tmp_path / "undisturbed")
    assert [line["iteration"] for line in tiny.metrics(run)] == [
        line["iteration"] for line in tiny.metrics(tmp_path / "undisturbed")
    ]
