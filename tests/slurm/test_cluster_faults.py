"""What a cluster does to a training that runs for days, done to a live one: the weights are the same after it."""

import json
import shutil
import signal
import subprocess

import pytest
from cluster import Cluster
from conftest import PYTHON, Study, until
from tiny import ROOT, TORCHRUN, udpm

from udpm.core.files import sha256

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

TARGET = "results/runs/{name}/seed0/complete.json"
TRAINING = """\
extends: digits-smoke
training: {{iterations: {iterations}, checkpoint_every: 20, {more}}}
resources: {{training: {{hours: {hours}, memory_gb: {memory}, gpus_per_node: 0}}}}
"""
LONG = 2000
TWO_NODES = "nodes: 2, processes_per_node: 1"


def experiment(study, name="steady", iterations=400, more="flip: false", hours=1, memory=2):
    study.experiment(name, TRAINING.format(iterations=iterations, more=more, hours=hours, memory=memory))
    return TARGET.format(name=name)


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """SHA-256 of the weights of a training that nothing happens to, by (number of iterations, keys of training)."""
    known = {}

    def weights(iterations=400, more="flip: false"):
        if (iterations, more) not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "study"
            shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns(".snakemake"))
            study = Study(folder, _NoCluster)
            experiment(study, iterations=iterations, more=more)
            config, run = folder / "run.json", folder / "run"
            udpm("resolve", "steady", "--part", "run", "--config", folder / "config", "--output", config)
            given = ["--dataset", folder / "results/datasets/digits", "--cache", folder / "results/caches/digits"]
            command = TORCHRUN if more == TWO_NODES else [PYTHON, "-m", "udpm"]
            done = subprocess.run(
                [*command, "train", config, *given, "--run", run], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            known[iterations, more] = sha256(run / "weights.safetensors")
        return known[iterations, more]

    return weights


class _NoCluster:
    environment = {}


def check(study, expected):
    """The run ended as if nothing had happened, and nobody wrote between two lines of another."""
    record = json.loads((study.run / "complete.json").read_text())
    found = sha256(study.run / "weights.safetensors")
    assert record["weights_sha256"] == found
    assert found == expected
    iterations = [line["iteration"] for line in study.lines()]
    assert iterations == sorted(set(iterations))
    assert not (study.run / "owner.json").exists()
    assert study.attempts()[-1] == "complete"


def test_wall_time_runs_out_twice(study, undisturbed):
    # In jobs of one minute, each told to save half a minute before its end, or earlier: SLURM rounds.
    target = experiment(study, iterations=LONG)
    study.start(target, UDPM_MAX_HOURS="0.016", UDPM_GRACE_SECONDS="30")
    until("two stops", lambda: study.attempts().count("stopped") >= 2, 300, study.said)
    # The rest in a longer job: what was seen would only be seen again.
    study.end()
    assert study.snakemake("--unlock").returncode == 0
    study.finish(study.start(target))
    check(study, undisturbed(LONG))


def test_cancelled(study, undisturbed):
    running = study.start(experiment(study))
    study.wait_for(60)
    study.cluster.ask("scancel", *study.jobs())
    study.finish(running)
    assert len(study.attempts()) == 2
    check(study, undisturbed())


def test_a_node_dies_under_two(study, undisturbed):
    running = study.start(experiment(study, more=TWO_NODES))
    study.wait_for(60)
    study.cluster.kill("n2")
    until("the job to leave the nodes", lambda: "n2" not in study.cluster.ask("squeue", "-h", "-o", "%N"), 120)
    study.cluster.start_node("n2")
    study.finish(running)
    check(study, undisturbed(more=TWO_NODES))


def test_the_controller_is_restarted(study, undisturbed):
    running = study.start(experiment(study))
    study.wait_for(60)
    study.cluster.kill("slurmctld")
    study.wait_for(120)
    study.cluster.start("slurmctld", "slurmctld", "-D")
    study.finish(running)
    assert study.attempts() == ["complete"]
    check(study, undisturbed())


@pytest.mark.parametrize("partition", ["polite", "rude"])
def test_preempted(study, undisturbed, partition):
    """By a job of higher priority that wants all nodes; with a grace time to save in, and without."""
    running = study.start(experiment(study), UDPM_PARTITION=partition)
    study.wait_for(60)
    study.cluster.ask("sbatch", "-A", "lab", "-p", "gpu", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    study.finish(running)
    assert len(study.attempts()) == 2
    check(study, undisturbed())


def test_out_of_memory(study, undisturbed):
    """SLURM ends the job; the next attempt asks for twice the memory."""
    running = study.start(experiment(study, memory=0.3))
    study.finish(running)
    asked = study.cluster.ask("sacct", "-nPX", "-o", "reqmem", "-j", ",".join(job for job, _ in study.states()[-2:]))
    assert asked.split() == ["300M", "600M"]
    check(study, undisturbed())


def test_snakemake_is_killed(study, undisturbed):
    """Its jobs live on and its successor does not know them: two trainings of one run, one of which waits."""
    target = experiment(study)
    first = study.start(target)
    study.wait_for(60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert study.snakemake("--unlock").returncode == 0
    study.finish(study.start(target))
    check(study, undisturbed())


def test_nobody_keeps_accounts(prepared, undisturbed, tmp_path):
    with Cluster(accounting=False) as live:
        shutil.copytree(prepared, tmp_path / "study", ignore=shutil.ignore_patterns(".snakemake"))
        study = Study(tmp_path / "study", live)
        profile = study.folder / "slurm" / "config.yaml"
        text = profile.read_text()
        key = "slurm-status-command: squeue"
        assert f"# {key}" in text
        profile.write_text(text.replace(f"# {key}", key))
        try:
            running = study.start(experiment(study), UDPM_ACCOUNT="")
            study.wait_for(60)
            live.ask("scancel", *study.jobs())
            study.finish(running)
            assert len(study.attempts()) == 2
            check(study, undisturbed())
        finally:
            study.end()


def test_a_loss_that_is_not_finite_is_not_tried_for_ever(study):
    target = experiment(study, more="learning_rate: 1.0e+30, warmup: 0")
    done = study.start(target, "--retries", "3")
    assert done.wait(300) != 0
    assert study.attempts() == ["failed", "failed"]
    assert "failed twice alike" in study.said()
