"""`snakemake --profile slurm` on a live SLURM: the whole DAG, requests of its jobs, and mistakes."""

import os
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from conftest import PATIENCE, rules_of, until
from tiny import ROOT, TORCHRUN, udpm

from udpm.core.files import sha256
from udpm.sampling.sample_set import load_samples

# One draws its samples in one job, the other in several.
ONE_NODE = """\
extends: digits-smoke
training: {processes_per_node: 2}
sampling: {count: 90, batch: 25}
resources: {training: {gpus_per_node: 2}}
"""
TWO_NODES = """\
extends: digits-smoke
training: {nodes: 2, processes_per_node: 2}
sampling: {count: 90, batch: 25, shards: 4}
resources: {training: {gpus_per_node: 2}}
"""


@pytest.fixture(scope="module")
def whole(cluster, prepared, tmp_path_factory):
    """The whole DAG, trained once by torchrun on one node and once by srun over two."""
    from conftest import Study, copy_sources

    folder = tmp_path_factory.mktemp("whole") / "study"
    copy_sources(folder)
    study = Study(folder, cluster)
    study.experiment("one", ONE_NODE)
    study.experiment("two", TWO_NODES)
    (folder / "config/config.yaml").write_text("experiments: [one, two]\n")
    planned = study.snakemake("-n")
    assert planned.returncode == 0, planned.stderr
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    done = study.snakemake()
    assert done.returncode == 0, done.stderr[-6000:] + study.training_log()
    study.planned, study.began = planned.stdout, began
    yield study
    study.end()


def results(study, kind, name):
    return study.folder / "results" / kind / name


@pytest.mark.parametrize("name", ["one", "two"])
def test_weights_are_those_of_the_same_ranks_without_slurm(whole, name, tmp_path):
    processes = {"one": "2", "two": "4"}[name]
    command = [processes if word == "2" else word for word in TORCHRUN]
    folders = {"--dataset": "datasets", "--cache": "caches"}
    given = [part for option, kind in folders.items() for part in (option, results(whole, kind, "digits"))]
    config = results(whole, "configs", name) / "seed0.json"
    command += ["train", config, *given, "--run", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = results(whole, "runs", name) / "seed0" / "weights.safetensors"
    assert sha256(found) == sha256(tmp_path / "weights.safetensors")


def test_samples_are_those_of_one_job(whole, tmp_path):
    weights = results(whole, "runs", "two") / "seed0" / "weights.safetensors"
    config = results(whole, "configs", "two") / "sampling.json"
    udpm("sample", weights, "--config", config, "--output", tmp_path / "a.npz")
    expected, found = load_samples(tmp_path / "a.npz"), load_samples(results(whole, "samples", "two") / "seed0.json")
    assert [part["count"] for part in found.record["shards"]] == [25, 25, 25, 15]
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.labels, expected.labels)


def test_everything_is_reported(whole):
    table = (results(whole, "tables", "scores.md")).read_text()
    assert "one" in table
    assert "two" in table
    figures = {path.stem for path in results(whole, "figures", "two").rglob("*.png")}
    assert {"samples", "chain", "curves"} <= figures
    assert not list(whole.folder.glob("*.out"))


RULE = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", re.MULTILINE)


def asked_for(planned):
    """Return the resources and the number of jobs in a dry run, by rule and experiment."""
    found = {}
    for name, text in RULE.findall(planned):
        fields = dict(part.split("=", 1) for part in re.search(r"resources: (.*)", text)[1].split(", ") if "=" in part)
        wildcards = re.search(r"wildcards: (.*)", text)
        experiment = re.search(r"experiment=(\w+)", wildcards[1]) if wildcards else None
        key = name, experiment and experiment[1]
        found[key] = fields | {"jobs": found.get(key, {}).get("jobs", 0) + 1}
    return found


def test_jobs_ask_for_what_the_configuration_says(whole):
    """A group requests the sum of its members' times, and the maximum of everything else."""
    planned = asked_for(whole.planned)
    columns = "comment,reqcpus,reqmem,reqtres,timelimitraw,reqnodes,account,partition,state"
    rows = [row.split("|") for row in whole.cluster.ask("sacct", "-nPX", "-S", whole.began, "-o", columns).splitlines()]
    seen = Counter()
    for comment, cpus, memory, tres, minutes, nodes, account, partition, state in rows:
        experiment = next((name for name in ("one", "two") if name in re.split("[_-]", comment)), None)
        rules = rules_of(comment, {rule for rule, _ in planned})
        members = [planned[rule, experiment] for rule in rules]
        grouped = "_wildcards_" not in comment
        times = [int(member["runtime"]) * (member["jobs"] if grouped else 1) for member in members]
        tasks = 4 if (rules, experiment) == ({"train_model"}, "two") else 1
        gpus = {"one": "2", "two": "4"}[experiment] if rules == {"train_model"} else "0"
        assert int(cpus) == max(int(member["cpus_per_task"]) for member in members) * tasks, comment
        assert int(minutes) == sum(times), comment
        assert int(nodes) == max(int(member.get("nodes", 1)) for member in members), comment
        # Requested on each node; accounting adds them up.
        assert memory == f"{max(int(member['mem_mb']) for member in members) * int(nodes)}M", comment
        assert (re.search(r"gres/gpu=(\d+)", tres) or [0, "0"])[1] == gpus, comment
        assert (account, partition, state) == ("lab", "gpu", "COMPLETED"), comment
        seen.update(rules)
    assert {"prepare_dataset", "compute_reference", "sample_images"} <= seen.keys()
    # Shards run at the same time; all jobs after a run form one group.
    assert (seen["train_model"], seen["sample_shard"]) == (2, 4)
    assert seen["explore_latents"] == seen["score_samples"] == 2
    assert not {"render_table", "resolve_run", "join_shards"} & seen.keys()


def test_the_default_profile_leaves_the_slurm_profile_alone(study):
    """Snakemake always reads workflow/profiles/default, and its keys win."""
    study.experiment("smoke", "extends: digits-smoke\nresources: {training: {hours: 3, memory_gb: 2.5}}\n")
    planned = study.snakemake("-n")
    asked = asked_for(planned.stdout)
    training, figure = asked["train_model", "smoke"], asked["train_extractor", None]
    for found in (training, figure):
        assert (found["slurm_account"], found["slurm_partition"]) == ("lab", "gpu")
    assert (training["runtime"], training["mem_mb"], figure["runtime"]) == ("180", "2500", "60")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"UDPM_ACCOUNT": "other"}, "account: other is not one of yours; these are: lab"),
        ({"UDPM_PARTITION": "gpus"}, "partition: gpus not found; this cluster has: gpu, polite, rude, short"),
        ({"UDPM_PARTITION": "short"}, "max_hours: 24, but partition short takes jobs of at most 30 minutes"),
        ({"UDPM_MAX_HOURS": "never"}, "environment variable UDPM_MAX_HOURS: max_hours: input should be a valid number"),
    ],
    ids=["account", "partition", "longer than the partition takes", "hours"],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_submitted(study, variables, expected):
    before = len(study.states())
    done = study.snakemake(**variables)
    assert done.returncode == 2
    assert [expected in line for line in done.stderr.splitlines() if "rror" in line] == [True]
    assert len(study.states()) == before


def test_two_at_once(study):
    study.experiment("slow", "extends: digits-smoke\ntraining: {iterations: 100000}\n")
    first = study.start("results/runs/slow/seed0/complete.json")
    until("a job", study.jobs, output=study.output)
    second = study.snakemake("results/runs/slow/seed0/complete.json")
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stderr
    assert first.poll() is None


def test_without_several_nodes(study):
    """A run over several nodes is refused without a scheduler."""
    study.experiment("two", TWO_NODES)
    done = subprocess.run(
        [f"{sys.prefix}/bin/snakemake", "-n"], cwd=study.folder, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    assert "two.yaml: training.nodes: several nodes need a scheduler: snakemake --profile slurm" in done.stderr
