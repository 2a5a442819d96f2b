"""Faults of a cluster during a long training, on a live SLURM: the weights do not change."""

import shutil
import signal

import pytest
from cluster import NODES, Cluster
from conftest import PATIENCE, TWO_NODES, Study, check, signalled, until


def wait_for_signal(study, process):
    until("SLURM's signal", lambda: signalled(process), output=study.output)


def test_wall_time_runs_out_twice(study, undisturbed):
    # Jobs of two minutes, each signalled to save 45 s before its end, or up to half a minute earlier.
    running = study.start(study.training(), UDPM_MAX_HOURS="0.03", UDPM_GRACE_SECONDS="45")
    for stops in (1, 2):
        with study.frozen(study.iteration() + 20) as process:
            wait_for_signal(study, process)
        wait_for_stops(study, stops)
    study.finish(running)
    check(study, undisturbed())


def wait_for_stops(study, number):
    """Wait until a number of attempts have saved and stopped after a signal."""
    until(f"{number} stops", lambda: study.attempts().count("stopped") >= number, output=study.output)


def test_cancelled(study, undisturbed):
    running = study.start(study.training())
    with study.frozen(40) as process:
        study.cluster.ask("scancel", *study.jobs())
        wait_for_signal(study, process)
    study.finish(running)
    assert len(study.attempts()) == 2
    check(study, undisturbed())


def test_a_node_dies_under_two(study, undisturbed):
    # Continue to sampling: the unpatched plugin would exclude the nodes of the requeued job from all later jobs.
    study.training(more=TWO_NODES)
    running = study.start("results/samples/steady/seed0.npz")
    with study.frozen(40):
        study.cluster.kill("n2")
        until("the job to leave the nodes", lambda: "n2" not in study.cluster.ask("squeue", "-h", "-o", "%N"))
    study.cluster.start_node("n2")
    study.finish(running)
    check(study, undisturbed(more=TWO_NODES))


def test_the_controller_is_restarted(study, undisturbed):
    running = study.start(study.training())
    with study.frozen(40):
        study.cluster.kill("slurmctld")
    study.wait_for(study.iteration() + 40)
    study.cluster.start("slurmctld", "slurmctld", "-D")
    study.finish(running)
    assert study.attempts() == ["complete"]
    check(study, undisturbed())


@pytest.mark.parametrize("partition", ["polite", "rude"])
def test_preempted(study, undisturbed, partition):
    """A job of higher priority takes all nodes, with and without a grace time."""
    running = study.start(study.training(), UDPM_PARTITION=partition)
    with study.frozen(40) as process:
        job = ["-A", "lab", "-p", "gpu", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
        study.cluster.ask("sbatch", *job)
        wait_for_signal(study, process)
    study.finish(running)
    assert len(study.attempts()) == 2
    check(study, undisturbed())


@pytest.fixture
def nodes_up(cluster):
    """Make both nodes take jobs again afterwards."""
    yield
    for node in NODES:
        if "drain" in cluster.ask("sinfo", "-h", "-n", node, "-o", "%T"):
            cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")


def test_drained_and_requeued(study, undisturbed, nodes_up):
    """A drained node keeps its training and gets no other job; a requeued training moves to another node."""
    running = study.start(study.training())
    with study.frozen(40):
        (job,) = study.jobs()
        node = study.cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
        study.cluster.ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=service")
        assert study.cluster.ask("sinfo", "-h", "-n", node, "-o", "%T").strip() == "draining"
        elsewhere = study.cluster.ask("srun", "-A", "lab", "--mem=100", "printenv", "SLURMD_NODENAME").strip()
        assert [elsewhere] == [name for name in NODES if name != node]
    with study.frozen(study.iteration() + 40) as process:
        assert study.jobs() == [job]
        study.cluster.ask("scontrol", "requeue", job)
        wait_for_signal(study, process)
    study.finish(running)
    # SLURM requeued the job under the same number; Snakemake submitted nothing.
    assert study.output().count("has been submitted with SLURM jobid") == 1
    places = study.cluster.ask("sacct", "-nPX", "-D", "-j", job, "-o", "nodelist").split()
    assert places == [node, elsewhere]
    assert study.attempts() == ["stopped", "complete"]
    check(study, undisturbed())


def test_out_of_memory(study, undisturbed):
    """SLURM ends the job; the next attempt requests twice the memory."""
    running = study.start(study.training(memory=0.3))
    study.finish(running)
    asked = study.cluster.ask("sacct", "-nPX", "-o", "reqmem", "-j", ",".join(job for job, _ in study.states()[-2:]))
    assert asked.split() == ["300M", "600M"]
    check(study, undisturbed())


def test_snakemake_is_killed(study, undisturbed):
    """Its jobs live on, unknown to its successor: two trainings of one run, one of which waits."""
    target = study.training()
    first = study.start(target)
    with study.frozen(40):
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert study.snakemake("--unlock").returncode == 0
        second = study.start(target)
        until("the second to wait", lambda: "waiting for it to end" in study.training_log(), output=study.output)
    study.finish(second)
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
            running = study.start(study.training(), UDPM_ACCOUNT="")
            with study.frozen(40) as process:
                live.ask("scancel", *study.jobs())
                wait_for_signal(study, process)
            study.finish(running)
            assert len(study.attempts()) == 2
            check(study, undisturbed())
        finally:
            study.end()


def test_a_loss_that_is_not_finite_is_not_tried_for_ever(study):
    target = study.training(more="learning_rate: 1.0e+30, warmup: 0")
    done = study.start(target, "--retries", "3")
    assert done.wait(PATIENCE) != 0
    assert study.attempts() == ["failed", "failed"]
    assert "failed twice for the same reason" in study.output()
