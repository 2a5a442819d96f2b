"""Training that is killed repeatedly ends in the weights of undisturbed training."""

import itertools
import random
import signal
import subprocess
import sys
import time

import pytest
import soak
import tiny

from udpm.training.checkpoint import checkpoints

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def single(digits, tmp_path_factory):
    return soak.Soak(tmp_path_factory.mktemp("single"), digits)


@pytest.fixture(scope="module")
def pair(digits, tmp_path_factory):
    return soak.Soak(tmp_path_factory.mktemp("pair"), digits, processes=2)


def test_sigkill_at_any_moment(single):
    moment = soak.at_random(random.Random(1), signal.SIGKILL, single.seconds)
    kills = list(single.kills(8, signal.SIGKILL, moment))
    assert len(kills) == 8


def test_sigkill_of_two_processes_at_any_moment(pair):
    moment = soak.at_random(random.Random(2), signal.SIGKILL, pair.seconds)
    assert len(list(pair.kills(2, signal.SIGKILL, moment))) == 2


def test_sigterm_at_the_start_and_in_a_save(single):
    rng = random.Random(3)
    moments = itertools.cycle([soak.at_start(rng, 1.0), soak.in_a_save(rng, 2)])
    kills = list(single.kills(5, signal.SIGTERM, lambda *given: next(moments)(*given)))
    assert [kill.codes for kill in kills] == [[75]] * 5
    for kill in kills:
        *_, last = kill.printed[0].splitlines()
        assert last.startswith("stopped on SIGTERM at iteration ")
        assert last.endswith(" of 20, state saved: run the same command again")


def test_of_two_processes_one_is_killed_then_both_are_stopped(pair):
    """The one that is left says so, and does not wait for ever."""
    run = pair.folder / "halved"
    processes = pair.start(run)
    soak.waiting(processes, lambda: checkpoints(run / "checkpoints"))
    processes[1].kill()
    codes, output = soak.ended(processes)
    assert codes == [75, -signal.SIGKILL]
    assert output[0].splitlines()[-1].startswith("another process of this training ended")
    processes = pair.start(run)
    soak.at_start(random.Random(4), 1.0)(processes, run, 0)
    for process in processes:
        process.terminate()
    codes, output = soak.ended(processes)
    assert codes == [75, 75]
    assert all(lines.splitlines()[-1].startswith("stopped on SIGTERM ") for lines in output)
    pair.finish(run)
    pair.compare(run)


def test_a_second_interrupt_ends_at_once(single):
    program = (
        "import os, signal, time\n"
        "from udpm.core.work import StopRequest\n"
        "stop = StopRequest.install()\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n"
        "    os.kill(os.getpid(), number)\n"
        "print(stop, flush=True)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.stdout.split() == ["SIGINT", "interrupted"]
    run = single.folder / "interrupted"
    (process,) = single.start(run)
    soak.waiting([process], lambda: soak.listens(process))
    # Those that come during one long call, such as the loading of a library, count as one: so they are sent until it
    # ends, which it does within its start-up.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    (code,), (output,) = soak.ended([process])
    assert (code, output.splitlines()[-1]) == (130, "interrupted")
    assert not (run / "weights.safetensors").exists()
