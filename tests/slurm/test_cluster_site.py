"""Limits and faults of a site: the study finishes, or ends with one line."""

import getpass
import subprocess

import pytest
from conftest import PYTHON, until

EXTRACTOR = "results/extractors/digits.pt"


@pytest.fixture
def submitted(study):
    """Return comment, CPUs, memory and minutes of the jobs submitted since."""
    before = {job for job, _ in study.states()}

    def found():
        rows = study.cluster.ask("sacct", "-nPX", "-D", "-o", "jobid,comment,reqcpus,reqmem,timelimitraw").splitlines()
        return [row.split("|")[1:] for row in rows if row.split("|")[0] not in before]

    return found


def test_cpus_are_the_experiments_and_time_the_partitions(study, submitted):
    """`snakemake` has one CPU, the partition half an hour; scoring stays on the login node."""
    study.experiment("smoke", "extends: digits-smoke\nresources: {scoring: {local: true}}\n")
    command = ["taskset", "-c", "0", PYTHON.parent / "snakemake", "--profile", "slurm", "results/references/smoke.npz"]
    environment = study.environment | {"UDPM_PARTITION": "short", "UDPM_MAX_HOURS": "0.5"}
    done = subprocess.run(command, cwd=study.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    assert submitted() == [["rule_train_extractor_wildcards_digits", "2", "8000M", "30"]]
    assert (study.folder / "results/references/smoke.npz").exists()


def test_a_limit_on_jobs_in_the_queue(study, submitted):
    study.experiment("smoke", "extends: digits-smoke\nseeds: [0, 1, 2]\ntraining: {iterations: 5, warmup: 0}\n")
    limit = ["sacctmgr", "-i", "modify", "user", "where", f"name={getpass.getuser()}", "account=lab", "set"]
    study.cluster.ask(*limit, "MaxSubmitJobs=1")
    try:
        done = study.snakemake(*(f"results/runs/smoke/seed{seed}/complete.json" for seed in range(3)))
    finally:
        study.cluster.ask(*limit, "MaxSubmitJobs=-1")
    assert done.returncode == 0, done.stderr[-6000:]
    assert "SLURM takes at most 1 jobs of yours at a time" in done.stderr
    assert "SLURM takes no more jobs for now" in done.stderr
    assert "Trying to restart" not in done.stderr
    assert len(submitted()) == 3


def test_slurm_is_down_when_a_job_is_submitted(study, submitted):
    study.cluster.kill("slurmctld")
    running = study.start(EXTRACTOR)
    until("a refusal", lambda: "SLURM does not answer" in study.output(), output=study.output)
    study.cluster.start("slurmctld", "slurmctld", "-D")
    study.finish(running)
    assert "SLURM takes jobs again" in study.output()
    assert "Trying to restart" not in study.output()
    assert len(submitted()) == 1


def test_a_training_without_its_gpu_is_tried_twice(study, submitted):
    """SLURM grants a GPU that CUDA does not find."""
    study.training(more="device: cuda", gpus=1)
    done = study.snakemake("results/runs/steady/seed0/complete.json")
    assert done.returncode != 0
    assert study.attempts() == ["failed", "failed"]
    assert done.stderr.count("failed twice for the same reason, so it is not retried") == 1
    assert len(submitted()) == 2
    status = study.shell("udpm status --results results")
    assert "failed" in status.stdout
    assert "cuda" in status.stdout


def test_what_slurm_refuses_is_not_tried_again(study, submitted):
    target = study.training()
    done = study.snakemake(target, "--set-resources", "train_model:constraint=nosuchfeature")
    assert done.returncode != 0
    assert done.stderr.count("SLURM sbatch failed") == 1
    assert submitted() == []


def test_an_attempt_that_never_began_asks_for_no_more_memory(study, submitted):
    cluster = study.cluster
    cluster.ask("sbatch", "-A", "lab", "-p", "gpu", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600")
    running = study.start(EXTRACTOR)
    for number in (1, 2):
        until("a job that waits", lambda number=number: len(submitted()) == 1 + number, output=study.output)
        job = max(study.jobs(), key=int)
        study.cluster.ask("scancel", *([job] if number == 1 else set(study.jobs()) - {job}))
    study.finish(running)
    assert [memory for rule, _, memory, _ in submitted() if rule.startswith("rule_")] == ["8000M", "8000M"]


def test_a_member_of_a_group_that_fails_costs_the_others_nothing(study, submitted):
    study.experiment("smoke", "extends: digits-smoke\ntraining: {iterations: 5, warmup: 0}\n")
    broken = study.folder / "results/figures/smoke/seed0/neighbours.svg"
    (broken / "notes").mkdir(parents=True)
    targets = ["results/figures/smoke/seed0/neighbours.png", "results/latents/smoke/seed0/swap.npz"]
    first = study.snakemake(*targets)
    assert first.returncode != 0
    made = [study.folder / path for path in ("results/samples/smoke/seed0.npz", targets[1])]
    before = [path.read_bytes() for path in made]
    (broken / "notes").rmdir()
    broken.rmdir()
    second = study.snakemake(*targets)
    assert second.returncode == 0, second.stderr[-6000:]
    assert [path.read_bytes() for path in made] == before
    jobs = [comment for comment, *_ in submitted() if not comment.startswith("rule_train")]
    # All jobs; then the rest twice: in a retry, and after the cause was removed.
    assert [job.partition("-smoke-0_")[2] for job in jobs[:2]] == [
        "explore_latents_render_neighbours_sample_images"
    ] * 2
    assert jobs[2:] == ["rule_render_neighbours_wildcards_smoke_0"]
