"""`snakemake --profile slurm` inside a SLURM job, for login nodes that allow no long programs."""

import re
import shlex

import pytest
from conftest import check
from tiny import ROOT

CONTROLLER = re.compile(r"`(sbatch --time=7-0 [^`]*)`")
ITERATIONS = 60


def documented():
    """Return the command of docs/cluster.md, for a partition with a limit of four hours; it waits for the job."""
    (command,) = CONTROLLER.findall((ROOT / "docs/cluster.md").read_text())
    return command.replace("--time=7-0", "--wait --time=4:00:00")


@pytest.mark.parametrize("kind", ["sbatch", "salloc"])
def test_snakemake_runs_in_a_job(study, undisturbed, kind):
    """Its job occupies a CPU; the jobs that it submits ignore the variables of that job."""
    target = study.training(iterations=ITERATIONS, more="flip: false, threads: 2")
    before = dict(study.states())
    if kind == "sbatch":
        *words, wrapped = shlex.split(documented())
        command = [*words, f"{wrapped} {target}"]
    else:
        command = shlex.split(f"salloc --time=4:00:00 --mem=4G --cpus-per-task=1 snakemake --profile slurm {target}")
    done = study.shell(shlex.join(command))
    assert done.returncode == 0, done.stderr[-6000:] + study.job_output() + study.training_log()
    rows = study.cluster.ask("sacct", "-nPX", "-o", "jobid,comment,reqcpus,state").splitlines()
    (training,) = [row.split("|") for row in rows if row.split("|")[0] not in before and "train_model" in row]
    assert training[2:] == ["2", "COMPLETED"]
    assert study.attempts() == ["complete"]
    check(study, undisturbed(ITERATIONS, "flip: false, threads: 2"))
