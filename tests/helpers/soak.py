"""Kill training at random moments until it ends, and compare its weights with an undisturbed run's, bit for bit.

``python tests/helpers/soak.py --kills 100 [--processes 2] [--signal KILL|TERM] [--seed N]``: the moments are uniform
over a whole run's duration, so that they hit start-ups and saves too. A line per kill; exit code 1 at the first
difference.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import tiny
import torch

from udpm.data.levels import write_cache
from udpm.data.prepare import prepare

SETTING = tiny.ALL | {
    "training__iterations": 20,
    "training__batch": 4,
    "training__checkpoint_every": 2,
    "training__keep_every": 10,
    "training__log_every": 1,
}
PATIENCE = 240
"""Seconds after which a process that should end is taken to hang."""


class WrongEnd(Exception):
    """Training ended in an unexpected way."""


@dataclass
class Kill:
    """A signal and its effect."""

    number: signal.Signals
    seconds: float
    iteration: int
    codes: list[int]
    printed: list[str]

    def __str__(self):
        ended = ", ".join(map(str, self.codes))
        return f"{self.number.name} after {self.seconds:.2f} s: iteration {self.iteration}, exit code {ended}"


class Soak:
    """One configuration, trained once undisturbed, then killed repeatedly.

    Args:
        folder: for all files.
        digits: folder of the prepared digits.
        processes: number of processes that train one model, started as by srun.
    """

    def __init__(self, folder, digits, processes=1, **changes):
        self.folder, self.processes = folder, processes
        setting = SETTING | {"training__processes_per_node": processes} | changes
        config = tiny.write_config(folder, **setting)
        self.command = ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run"]
        self.jobs = self.runs = 0
        self.undisturbed = folder / "undisturbed"
        started = time.monotonic()
        self.finish(self.undisturbed)
        self.seconds = time.monotonic() - started

    def start(self, run):
        """Start processes that train in a folder."""
        self.jobs += 1
        given = {"SLURM_JOB_ID": str(self.jobs), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(self.processes)}
        processes = []
        for rank in range(self.processes):
            own = given | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} if self.processes > 1 else {}
            command = [sys.executable, "-m", "udpm", *map(str, self.command), str(run)]
            pipe = subprocess.PIPE
            environment = os.environ | {"PYTHONUNBUFFERED": "1"} | own
            processes.append(
                subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tiny.ROOT, env=environment)
            )
        return processes

    def finish(self, run):
        """Train to the end."""
        codes, printed = ended(self.start(run))
        if any(codes):
            raise WrongEnd(f"exit codes {codes}: {printed}")

    def kills(self, count, number, moment):
        """Kill one training after another; finish and compare each.

        Args:
            count: number of kills.
            number: the signal.
            moment: waits for one, given the processes, the run's folder and the time the processes were started.
        """
        good = 75 if number == signal.SIGTERM else -number
        while count > 0:
            run, codes = self._fresh(), [good]
            while any(codes):
                processes, started = self.start(run), time.monotonic()
                if count > 0:
                    moment(processes, run, started)
                struck = count > 0 and all(process.poll() is None for process in processes)
                kill = Kill(number, time.monotonic() - started, reached(run), [], [])
                if struck:
                    for process in processes:
                        process.send_signal(number)
                kill.codes, kill.printed = codes, printed = ended(processes)
                # One process may have ended just before the signal.
                if not set(codes) <= ({0, good} if struck else {0}):
                    raise WrongEnd(f"{kill}: {printed}")
                if struck:
                    count -= 1
                    yield kill
            self.compare(run)

    def compare(self, run):
        """Compare what is kept of weights with the undisturbed run's, and check that no temporary file remains."""
        kept = [f"{kind}/{each:09d}.safetensors" for kind in ("milestones", "snapshots") for each in (10, 20)]
        for path in ["weights.safetensors", *kept]:
            found, expected = (tiny.tensors(folder / path) for folder in (run, self.undisturbed))
            different = [key for key in expected if key not in found or not torch.equal(found[key], expected[key])]
            if different or found.keys() != expected.keys():
                raise WrongEnd(f"{run / path}: differs from the undisturbed run's: {', '.join(different)}")
        left = [str(path) for path in run.rglob(".*.tmp-*") if not path.name.startswith(".owner.json")]
        if left:
            raise WrongEnd(f"left behind: {', '.join(left)}")

    def _fresh(self):
        self.runs += 1
        return self.folder / f"run{self.runs}"


def ended(processes):
    """Return exit codes of processes, and the stderr of each."""
    printed = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    return [process.returncode for process in processes], printed


def reached(run):
    """Return the last iteration in a run's metrics."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]
    except (OSError, IndexError, ValueError):
        return 0


def listens(process):
    """Return whether a process handles SIGTERM. While its interpreter starts, the signal ends it."""
    return _has(process, "SigCgt:", signal.SIGTERM)


def _has(process, field, number):
    """Return whether a signal is in one of a process's sets of proc(5)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (found,) = [line.split()[1] for line in status.splitlines() if line.startswith(field)]
    except (OSError, ValueError):
        return False
    return bool(int(found, 16) & 1 << number - 1)


def waiting(processes, condition):
    """Wait until a condition holds, or a process ends."""
    while not condition() and all(process.poll() is None for process in processes):
        time.sleep(0.001)


def at_random(rng, number, seconds):
    """Wait for a random part of a number of seconds; with SIGTERM, at least until it is handled."""

    def moment(processes, _run, started):
        due = started + rng.uniform(0, seconds)
        heard = number == signal.SIGKILL
        waiting(processes, lambda: time.monotonic() > due and (heard or all(map(listens, processes))))

    return moment


def at_start(rng, seconds):
    """Wait until shortly after signals are handled, before the first iteration."""

    def moment(processes, _run, _started):
        waiting(processes, lambda: all(map(listens, processes)))
        due = time.monotonic() + rng.uniform(0, seconds)
        waiting(processes, lambda: time.monotonic() > due)

    return moment


def in_a_save(rng, most):
    """Wait until one of the first checkpoints is being written."""

    def moment(processes, run, _started):
        for _ in range(rng.randint(1, most)):
            waiting(processes, lambda: not any((run / "checkpoints").glob(".*.tmp-*")))
            waiting(processes, lambda: any((run / "checkpoints").glob(".*.tmp-*")))

    return moment


@click.command(help=__doc__.splitlines()[0])
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--signal", "name", type=click.Choice(["KILL", "TERM"]), default="KILL", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(kills, processes, name, seed):
    number, rng, started = signal.Signals[f"SIG{name}"], random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder)
        prepare(tiny.run_config().dataset, digits / "dataset")
        write_cache(digits / "dataset", digits / "cache")
        try:
            soak = Soak(digits, digits, processes)
            for index, kill in enumerate(soak.kills(kills, number, at_random(rng, number, soak.seconds)), start=1):
                print(f"{index}: {kill}", flush=True)
        except WrongEnd as wrong:
            sys.exit(f"different: {wrong}")
    took = time.monotonic() - started
    print(f"{kills} kills in {took:.0f} s; {soak.runs} trainings, all with the weights of the undisturbed one")


if __name__ == "__main__":
    main()
