"""A live cluster, and copies of the project on it."""

import getpass
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cluster import ACCOUNT, Cluster, missing
from filelock import FileLock
from tiny import ROOT, TORCHRUN, udpm

from udpm.config import load_experiment
from udpm.core.files import sha256

SOURCES = ("config", "workflow", "slurm", "envs")
PYTHON = Path(sys.executable)
LIVE = ROOT / "tests" / "slurm"
# Seconds to wait for an event, even on a busy machine.
PATIENCE = 600
# Changes that make the profile faster: it polls jobs more often than a shared cluster would tolerate.
QUICK = {"slurm-init-seconds-before-status-checks": 2, "seconds-between-status-checks": 2, "latency-wait": 5}
# Files whose tests share a study: one worker of pytest-xdist runs each file.
SHARING = ("test_cluster.py", "test_cluster_targets.py")
TARGET = "results/runs/{name}/seed0/complete.json"
TRAINING = """\
extends: digits-smoke
training: {{iterations: {iterations}, checkpoint_every: 20, {more}}}
resources: {{training: {{hours: {hours}, memory_gb: {memory}, gpus_per_node: {gpus}}}}}
"""
TWO_NODES = "nodes: 2, processes_per_node: 1"


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Mark all tests here, and report loudly if SLURM is not tested."""
    for item in _here(items):
        item.add_marker("slurm")
        # Most submit a whole DAG of jobs, which is slow on a busy machine.
        item.add_marker(pytest.mark.timeout(1800))
    yield
    lacking, selected = missing(), _here(items)
    if not lacking or not selected:
        return
    why = f"SLURM IS NOT TESTED HERE: {', '.join(lacking)} not installed; `make test-slurm` installs them"
    for item in selected:
        item.add_marker(pytest.mark.skip(reason=why))
    config.get_terminal_writer().line(f"\n{why}\n", red=True, bold=True)


def _here(items):
    return [item for item in items if LIVE in item.path.parents]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each test to a free worker, and all tests of a file that share a study to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if Path(path).name in SHARING else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def cluster():
    """A live SLURM; each worker of pytest-xdist has its own."""
    with Cluster() as live:
        yield live


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder with a function, or take the one that another worker of pytest-xdist made."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name, make):
        folder = shared / name
        done = shared / f"{name}.done"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def prepared(once):
    """A copy of the project with prepared and cached digits, ready for training."""

    def make(folder):
        copy_sources(folder)
        write_experiment(folder, "smoke", "extends: digits-smoke\n")
        done = subprocess.run(
            [PYTHON.parent / "snakemake", "results/caches/digits/cache.json"],
            **_options(folder, os.environ | {"PYTHONPATH": str(ROOT)}),
        )
        assert done.returncode == 0, done.stderr

    return once("prepared", make)


@pytest.fixture(scope="session")
def undisturbed(prepared, once):
    """SHA-256 of the weights of an undisturbed training, by number of iterations and keys of training."""

    def weights(iterations=150, more="flip: false"):
        def make(folder):
            shutil.copytree(prepared / "config", folder / "config")
            write_training(folder, "steady", iterations, more)
            config = folder / "run.json"
            udpm("resolve", "steady", "--part", "run", "--config", folder / "config", "--output", config)
            given = ["--dataset", prepared / "results/datasets/digits", "--cache", prepared / "results/caches/digits"]
            command = TORCHRUN if more == TWO_NODES else [PYTHON, "-m", "udpm"]
            done = subprocess.run(
                [*command, "train", config, *given, "--run", folder / "run"], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr

        name = re.sub(r"\W+", "-", f"undisturbed {iterations} {more}")
        return sha256(once(name, make) / "run/weights.safetensors")

    return weights


@pytest.fixture
def study(cluster, prepared, tmp_path):
    """A copy of the project, with prepared digits, on the live cluster."""
    yield from copied(prepared, tmp_path / "study", cluster)


@pytest.fixture(scope="module")
def shared_study(cluster, prepared, tmp_path_factory):
    """The same, for tests that each add to its results."""
    yield from copied(prepared, tmp_path_factory.mktemp("shared") / "study", cluster)


def copied(prepared, folder, cluster):
    """A study in a folder, ended afterwards."""
    shutil.copytree(prepared, folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    live = Study(folder, cluster)
    yield live
    live.end()


def copy_sources(folder):
    """Copy the sources, with a faster profile."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    profile = folder / "slurm" / "config.yaml"
    text = profile.read_text()
    for key, seconds in QUICK.items():
        text, found = re.subn(rf"^{key}: .*$", f"{key}: {seconds}", text, flags=re.MULTILINE)
        assert found == 1, key
    profile.write_text(text)


def write_experiment(folder, name, text):
    """Write an experiment, the only one of the study."""
    (folder / "config/experiments" / f"{name}.yaml").write_text(text)
    (folder / "config/config.yaml").write_text(f"experiments: [{name}]\n")
    return load_experiment(name, folder / "config")


def write_training(folder, name="steady", iterations=150, more="flip: false", hours=1, memory=2, gpus=0):
    """Write a training to disturb, the only experiment of the study; return its completion record."""
    given = {"iterations": iterations, "more": more, "hours": hours, "memory": memory, "gpus": gpus}
    write_experiment(folder, name, TRAINING.format(**given))
    return TARGET.format(name=name)


def check(study, expected):
    """Check that the run ended as if undisturbed, and that its files have no interleaved lines."""
    record = json.loads((study.run / "complete.json").read_text())
    found = sha256(study.run / "weights.safetensors")
    assert record["weights_sha256"] == found
    assert found == expected
    iterations = [line["iteration"] for line in study.lines()]
    assert iterations == sorted(set(iterations))
    assert not (study.run / "owner.json").exists()
    assert study.attempts()[-1] == "complete"


def _options(folder, environment):
    return {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 1700}


class Study:
    """The project on a cluster, as a user sees it."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.environment = cluster.environment | {
            # On many clusters, homes are read-only on the nodes.
            "HOME": "/proc/nowhere",
            "PYTHONPATH": str(ROOT),
            "UDPM_ACCOUNT": ACCOUNT,
            "UDPM_PARTITION": "gpu",
        }
        self._running = []

    def experiment(self, name, text):
        """Write an experiment, the only one of the study."""
        return write_experiment(self.folder, name, text)

    def training(self, **given):
        """Write a training to disturb (see `write_training`)."""
        return write_training(self.folder, **given)

    def snakemake(self, *arguments, **environment):
        """Run `snakemake --profile slurm` to its end."""
        command = [PYTHON.parent / "snakemake", "--profile", "slurm", *arguments]
        return subprocess.run(command, **_options(self.folder, self.environment | environment))

    def shell(self, command):
        """Run a command line to its end, as a user types it in an activated environment."""
        path = {"PATH": f"{PYTHON.parent}:{self.environment['PATH']}"}
        return subprocess.run(shlex.split(command), **_options(self.folder, self.environment | path))

    def start(self, *arguments, **environment):
        """Start `snakemake --profile slurm`."""
        with open(self.folder / f"snakemake{len(self._running)}.log", "wb") as log:
            process = subprocess.Popen(
                [PYTHON.parent / "snakemake", "--profile", "slurm", *arguments],
                cwd=self.folder,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)
        return process

    def output(self):
        """Return the output of all started processes."""
        return "".join(log.read_text() for log in sorted(self.folder.glob("snakemake*.log")))

    def finish(self, process):
        """Wait for a started process to succeed."""
        assert process.wait(PATIENCE) == 0, self.output()[-6000:] + self.training_log()

    def end(self):
        """Stop running processes and their jobs."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        subprocess.run(["scancel", "-u", getpass.getuser(), "--full"], env=self.environment, check=False)
        until("no job is left", lambda: not self.cluster.ask("squeue", "-h"))

    @property
    def run(self):
        """The folder of the only run."""
        return next((self.folder / "results/runs").glob("*/seed0"))

    def lines(self):
        """Return the metrics of the training so far."""
        try:
            return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        except (OSError, StopIteration, ValueError):
            return []

    def iteration(self):
        """Return the last iteration of the training."""
        return max((line["iteration"] for line in self.lines()), default=0)

    def wait_for(self, iteration):
        """Wait until training reaches an iteration."""
        until(f"iteration {iteration}", lambda: self.iteration() >= iteration, output=self.output)

    @contextmanager
    def frozen(self, iteration):
        """Freeze training at about an iteration, so that it cannot end before it is disturbed.

        Yields the training process.
        """
        self.wait_for(iteration)
        process = json.loads((self.run / "owner.json").read_text())["pid"]
        os.kill(process, signal.SIGSTOP)
        try:
            until("training to freeze", lambda: status(process)["State"].startswith("T"))
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def attempts(self):
        """Return how each attempt at the run ended; None for an attempt without a record of its end."""
        try:
            lines = [json.loads(line) for line in (self.run / "attempts.jsonl").read_text().splitlines()]
        except (OSError, StopIteration):
            return []
        ends = {line["token"]: line["ended"] for line in lines if "ended" in line}
        return [ends.get(line["token"]) for line in lines if "began" in line]

    def jobs(self):
        """Return the SLURM jobs in the queue."""
        return self.cluster.ask("squeue", "-h", "-o", "%i").split()

    def states(self):
        """Return the states of jobs from accounting."""
        rows = self.cluster.ask("sacct", "-nPX", "-D", "-o", "jobid,state").splitlines()
        return [tuple(row.split("|")) for row in rows]

    def job_output(self):
        """Return the output of jobs that were submitted without an output file."""
        return "".join(path.read_text()[-4000:] for path in self.folder.glob("slurm-*.out"))

    def training_log(self):
        """Return the logs of training jobs."""
        return "".join(path.read_text()[-2000:] for path in (self.folder / "results/logs/train_model").glob("*"))


def rules_of(comment, known):
    """Return the rules that a SLURM job runs, from its comment; for a group, several.

    Args:
        comment: of the job.
        known: names of rules.
    """
    name = comment.removeprefix("rule_").partition("_wildcards_")[0]
    return {name} if name in known else {rule for rule in known if f"_{rule}_" in f"{name}_"}


def status(process):
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def signalled(process):
    """Return whether a frozen process got SIGTERM: the signal is pending, or has thawed the process."""
    try:
        found = status(process)
    except OSError:
        return True
    return not found["State"].startswith("T") or bool(int(found["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)


def until(what, ready, seconds=PATIENCE, output=lambda: ""):
    """Wait for something, or fail."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}\n{output()[-4000:]}"
        time.sleep(0.3)
