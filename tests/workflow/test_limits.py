"""The limits of a site from the output of SLURM's commands, and requests beyond them, without a live SLURM."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny import ROOT

sys.path.insert(0, str(ROOT / "workflow"))

import limits
from comparison import Request
from experiments import Experiments
from jobs import FIGURE_RULES, SECTIONS
from limits import Limits, Options
from slurm_site import Site, gpus_in, minutes_of, read_partitions

from udpm.core.commands import Answer, ask
from udpm.core.errors import UserError

SITE = """\
cpu*|up|1-00:00:00|1-infinite|90|64|191000|(null)
cpu*|up|1-00:00:00|1-infinite|10|128|515000|(null)
gpu|up|4:00:00|1-4|8|48|380000|gpu:a100:4(S:0-1)
gpu|up|4:00:00|1-4|2|32|190000|gpu:v100:2
big|up|infinite|1-infinite|1|256|4000000+|gpu:1
old|drain|30:00|1|0|0|0|(null)
"""
"""Output of sinfo: different kinds of nodes, a limit on nodes, a partition without nodes."""


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("(null)", {}),
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:a100", {"a100": 1}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:2,gpu:v100:2", {"a100": 2, "v100": 2}),
        ("gpu:a100:2(S:0,2),gpu:a100:2(S:1,3),shard:a100:16(S:0,2),mps:400", {"a100": 4}),
        ("shard:8", {}),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100_1g.5gb:7(S:0)", {"a100_3g.20gb": 2, "a100_1g.5gb": 7}),
        ("gpu:nvidia_a100-sxm4-80gb:8(S:0-7)", {"nvidia_a100-sxm4-80gb": 8}),
        ("gpu:gtx1080:no_consume:2,lustre:1", {"gtx1080": 2}),
        ("gpu:0", {}),
        ("craynetwork:4,gpu:h100:4", {"h100": 4}),
        ("", {}),
    ],
)
def test_gpus_of_a_node(gres, expected):
    assert gpus_in(gres) == expected


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("infinite", math.inf),
        ("UNLIMITED", math.inf),
        ("n/a", math.inf),
        ("30", 30),
        ("30:00", 30),
        ("4:00:00", 240),
        ("04:00:00", 240),
        ("1-00:00:00", 1440),
        ("7-12", 10_800),
        ("2-12:30", 3630),
        ("1-00:00:30", 1440),
        ("0:30", 0),
    ],
)
def test_time_limits(time, minutes):
    assert minutes_of(time) == minutes


def test_partitions():
    scontrol = ["PartitionName=gpu MaxNodes=2 MaxTime=04:00:00 MaxCPUsPerNode=24 MaxMemPerNode=UNLIMITED QoS=N/A"]
    found = read_partitions(SITE.splitlines(), scontrol)
    assert list(found) == ["cpu", "gpu", "big", "old"]
    assert [name for name, partition in found.items() if partition.is_default] == ["cpu"]
    assert [partition.minutes for partition in found.values()] == [1440, 240, math.inf, 30]
    assert [partition.max_nodes for partition in found.values()] == [math.inf, 2, math.inf, 1]
    assert [[kind.memory_mb for kind in partition.nodes] for partition in found.values()] == [
        [191_000, 515_000],
        [380_000, 190_000],
        [4_000_000],
        [],
    ]
    assert [kind.cpus for kind in found["gpu"].nodes] == [24, 24]
    assert found["gpu"].nodes[0].gpus == {"a100": 4}
    assert found["old"].state == "drain"
    # Unexpected output is no partition.
    assert read_partitions(["CLUSTER: a", "", "gpu|up", "|up|1:00|1|1|1|1|"]) == {}


class KnownSite(Site):
    """A site with given answers."""

    def __init__(self, sinfo=SITE, **answers):
        self.__dict__["missing"] = []
        self.__dict__["_answers"] = dict.fromkeys(
            ("nodes", "partitions", "settings", "associations", "qualities", "accounting"), Answer()
        ) | {"nodes": Answer(tuple(sinfo.splitlines()))}
        for name, answer in answers.items():
            self._answers[name] = answer if isinstance(answer, Answer) else Answer(tuple(answer.splitlines()))


@pytest.mark.parametrize(
    ("partition", "asked", "fits"),
    [
        ("gpu", {"minutes": 240}, True),
        ("gpu", {"minutes": 241}, False),
        ("gpu", {"memory_mb": 380_000, "gpus": 2, "model": "a100"}, True),
        ("gpu", {"memory_mb": 380_000, "gpus": 2, "model": "v100"}, False),
        ("gpu", {"nodes": 5}, False),
        ("gpu,big", {"minutes": 9999, "gpus": 1}, True),
        (None, {"minutes": 1440}, True),
        (None, {"minutes": 1441}, False),
    ],
)
def test_a_request_fits_or_not(partition, asked, fits):
    assert any(candidate.has(**asked) for candidate in KnownSite().candidates(partition)) is fits


def test_the_largest_node():
    assert KnownSite().max_memory(None) == 515_000
    assert KnownSite().max_memory("gpu,big") == 4_000_000
    assert KnownSite().max_memory("nowhere") == math.inf


NORMAL = "normal||\nlong|9|\nheavy|40|30\n"


@pytest.mark.parametrize(
    ("associations", "given", "enforced", "most"),
    [
        ("here|lab||||normal|", {}, "associations,limits", None),
        ("here|lab||50||normal|", {}, "associations,limits", 50),
        ("here|lab||50||normal|", {}, "associations,limits,qos,safe", 50),
        # The site has a limit, but does not enforce it.
        ("here|lab||50||normal|", {}, "associations", None),
        ("here|lab||50||normal|", {}, "none", None),
        ("here|lab||50|20|normal|", {}, "limits", 20),
        ("here|lab||50||heavy|", {}, "limits", 30),
        ("here|lab||50||heavy,long|long", {}, "limits", 9),
        ("here|lab||50||heavy,long|", {}, "limits", 50),
        ("here|lab||50||heavy,long|long", {"qos": "heavy"}, "limits", 30),
        ("here|lab||50||normal|\nhere|other||7||normal|", {"account": "LAB"}, "limits", 50),
        ("here|lab||50||normal|\nhere|lab|gpu|8||normal|", {"partition": "gpu"}, "limits", 8),
        ("here|lab||50||normal|\nhere|lab|gpu|8||normal|", {"partition": "cpu"}, "limits", 50),
        ("there|lab||5||normal|\nhere|lab||50||normal|", {}, "limits", 50),
        ("unexpected output", {}, "limits", None),
        ("", {}, None, None),
    ],
)
def test_jobs_that_the_queue_takes(associations, given, enforced, most):
    settings = "ClusterName             = here\n" + (f"AccountingStorageEnforce = {enforced}\n" if enforced else "")
    site = KnownSite(associations=associations, qualities=NORMAL, settings=settings)
    assert site.max_jobs(**given) == most


def test_the_quality_of_service_of_a_partition_counts():
    site = KnownSite(partitions="PartitionName=gpu QoS=long\n", qualities=NORMAL, associations="here|lab||||normal|")
    assert site.max_jobs(partition="gpu") == 9
    assert site.max_jobs(partition="cpu") is None


def program(folder, name, text):
    """Write a program into a folder that a test may put first on PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("echo 'sinfo: error: cannot reach it' >&2; exit 1", "sinfo: error: cannot reach it"),
        ("echo Slurm accounting storage is disabled >&2; exit 1", "sinfo: Slurm accounting storage is disabled"),
        ("exit 3", "sinfo: code 3"),
        # A child of the command keeps its output open.
        ("sleep 77", "sinfo did not answer in 0.2 s"),
        ("sleep 77 & exit 1", "sinfo: code 1"),
    ],
)
def test_a_command_that_does_not_answer(tmp_path, monkeypatch, text, trouble):
    program(tmp_path, "sinfo", text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    assert ask(("sinfo",), 0.2 if "did not" in trouble else 60) == Answer(trouble=trouble)
    assert time.monotonic() - began < 60


def test_a_command_not_in_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(("sinfo",)).trouble == "sinfo not found in PATH"
    assert Site().missing == ["sbatch", "sinfo", "squeue"]
    assert Site().trouble == "sinfo not found in PATH"


def test_environment_variables_do_not_change_queries(tmp_path, monkeypatch):
    program(tmp_path, "sinfo", 'printf "%s\\n" "a${SINFO_PARTITION}" "$1"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SINFO_PARTITION", "gpu")
    assert ask(("sinfo", "x y")).lines == ("a", "x y")


# Requests of jobs.


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plan one experiment with the given keys."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)

    def make(values=None, cluster="", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Path("config/cluster.yaml").write_text(cluster or "max_hours: 4\n")
        Path("config/experiments/some.yaml").write_text(json.dumps({"extends": "digits"} | (values or {})))
        return Experiments({"experiments": ["some"]}, True)

    return make


def job(rule="train_model", threads=1, wildcards=None, **resources):
    """The attributes of a Snakemake job that are compared."""
    named = SimpleNamespace(**({"experiment": "some", "seed": "0"} if wildcards is None else wildcards))
    return SimpleNamespace(
        rule=SimpleNamespace(name=rule),
        wildcards=named,
        threads=threads,
        resources={"slurm_partition": "gpu"} | resources,
    )


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"runtime": 60, "mem_mb": 500}, (60, 500, 3, 0, None, 1)),
        ({"cpus_per_task": 8, "gpu": 2, "gpu_model": "a100", "nodes": 1}, (0, 0, 8, 2, "a100", 1)),
        ({"nodes": 4, "tasks_per_node": 2, "gres": "gpu:a100:2", "mpi": "srun"}, (0, 0, 6, 2, "a100", 4)),
        ({"nodes": 2, "tasks": 2, "gres": "gpu:1"}, (0, 0, 3, 1, None, 2)),
        ({"nodes": 2, "gpu": 8}, (0, 0, 3, 4, None, 2)),
        ({"mem_mb_per_cpu": 100, "cpus_per_task": 4}, (0, 400, 4, 0, None, 1)),
        ({"gpu": 2, "cpus_per_gpu": 5}, (0, 0, 10, 2, None, 1)),
        ({"gpu": 0, "gpu_model": "a100"}, (0, 0, 3, 1, "a100", 1)),
        ({"cpus_per_task": -1, "runtime": None, "mem_mb": "<TBD>"}, (0, 0, 1, 0, None, 1)),
    ],
)
def test_request_of_a_job(resources, expected):
    asked = Request.of(job(threads=3, **resources))
    assert (asked.minutes, asked.memory_mb, asked.cpus, asked.gpus, asked.gpu_model, asked.nodes) == expected


HERE = "config/experiments/some.yaml: "
MEMORY = {"resources": {"training": {"memory_gb": 500}, "sampling": {"memory_gb": 500}}}
THREADS = {"training": {"threads": 16, "workers": 4, "processes_per_node": 4}}


@pytest.mark.parametrize(
    ("values", "asked", "expected"),
    [
        ({}, {"mem_mb": 380_000, "cpus_per_task": 48, "gpu": 4, "runtime": 240}, None),
        (
            MEMORY,
            {"mem_mb": 500_000},
            HERE + "resources.training.memory_gb: 500, but no node of partition gpu has more than 380 GB "
            "(these have it: cpu, big)",
        ),
        (
            MEMORY,
            {"mem_mb": 1_000_000},
            HERE + "resources.training.memory_gb: 500, twice that after an attempt that was killed, but no node "
            "of partition gpu has more than 380 GB (this partition has it: big)",
        ),
        (
            MEMORY,
            {"rule": "sample_shard", "mem_mb": 500_000},
            HERE + "resources.sampling.memory_gb: 500, but no node of partition gpu has more than 380 GB",
        ),
        ({}, {"mem_mb": 400_000}, "slurm/config.yaml: mem_mb of train_model: 400000, but no node"),
        (
            THREADS,
            {"cpus_per_task": 80},
            HERE + "training.threads: 16 and training.workers: 4 for each of training.processes_per_node: 4 make 80 "
            "CPUs, but no node of partition gpu has more than 48",
        ),
        (
            {"sampling": {"threads": 64}},
            {"rule": "sample_images", "cpus_per_task": 64},
            HERE + "sampling.threads: 64, but no node of partition gpu has more than 48",
        ),
        (
            {},
            {"rule": "prepare_dataset", "cpus_per_task": 50, "wildcards": {"dataset": "digits"}},
            "config/datasets/digits.yaml: workers: 50, but no node of partition gpu has more than 48",
        ),
        (
            {},
            {"rule": "train_extractor", "cpus_per_task": 50, "wildcards": {"dataset": "digits"}},
            "slurm/config.yaml: CPUs of train_extractor: 50, but no node of partition gpu has more than 48",
        ),
        (
            {"resources": {"training": {"gpus_per_node": 8}}, "training": {"processes_per_node": 8}},
            {"gpu": 8},
            HERE + "resources.training.gpus_per_node: 8, but no node of partition gpu has more than 4",
        ),
        (
            {"resources": {"training": {"gpus_per_node": None}}, "training": {"device": "auto"}},
            {"gpu": 1, "slurm_partition": "cpu"},
            HERE
            + "resources.training.gpus_per_node is 1, by training.processes_per_node, but partition cpu has no GPUs "
            "(these have it: gpu, big)",
        ),
        (
            {"resources": {"scoring": {"gpus": None}}},
            {"rule": "score_samples", "gpu": 1, "slurm_partition": "cpu"},
            HERE + "resources.scoring.gpus is 1, by scoring.device, but partition cpu has no GPUs",
        ),
        (
            {},
            {"gpu": 1, "gpu_model": "h100"},
            "slurm/config.yaml: gpu_model of train_model: h100, but partition gpu has a100, v100",
        ),
        (
            {},
            {"gpu": 1, "gpu_model": "a100", "slurm_partition": "big"},
            "gpu_model of train_model: a100, but partition big does not name the types of its GPUs: leave",
        ),
        (
            {"training": {"nodes": 8}},
            {"nodes": 8, "tasks": 8},
            HERE + "training.nodes: 8, but partition gpu takes jobs of at most 4 nodes (this partition has it: cpu)",
        ),
        (
            {"training": {"nodes": 2}},
            {"nodes": 2, "tasks": 2, "slurm_partition": "big"},
            HERE + "training.nodes: 2, but partition big has only 1 (these have it: cpu, gpu)",
        ),
        (
            {},
            {"gpu": 2, "gpu_model": "v100", "mem_mb": 300_000},
            HERE
            + "train_model requests 1 CPU, 300 GB and 2 GPUs of type v100 on one node, but no node of partition gpu "
            "has all of that",
        ),
        (
            {},
            {"nodes": 3, "gres": "gpu:v100:2"},
            HERE + "train_model requests 1 CPU and 2 GPUs of type v100 on each of 3 nodes, but partition gpu does not "
            "have enough such nodes",
        ),
        (
            {},
            {"slurm_partition": "gpus"},
            "slurm/config.yaml: slurm_partition of train_model: gpus not found; this cluster has: cpu, gpu, big, old",
        ),
        ({}, {"slurm_partition": "gpu,big", "runtime": 9999}, None),
        (
            {},
            {"runtime": 300},
            "slurm/config.yaml: runtime of train_model: 300 minutes, but partition gpu takes jobs of at",
        ),
        ({}, {"slurm_partition": "old", "runtime": 30, "mem_mb": 10**9}, None),
        ({}, {"slurm_partition": "gpu", "clusters": "elsewhere", "runtime": 9999}, None),
        # Jobs without a partition go to the site's default.
        ({}, {"slurm_partition": None, "runtime": 1440, "mem_mb": 515_000}, None),
        (
            {},
            {"slurm_partition": None, "gpu": 1},
            "slurm/config.yaml: gpu of train_model: 1, but partition cpu has no GPUs",
        ),
    ],
)
def test_mistakes_of_requests(plan, values, asked, expected):
    found = Limits(plan(values), KnownSite(), Options()).mistakes([job(**asked)])
    assert [expected in line for line in found] == [True] * (expected is not None), found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"gpu": 4, "gpu_model": "a100", "runtime": 240}, None),
        ({"runtime": 99_999, "gpu": 1}, None),
        ({"gpu": 9}, "gpu of train_model: 9, but no node here has more than 4"),
        ({"mem_mb": 5_000_000}, "mem_mb of train_model: 5000000, but no node here has more than 4000 GB"),
        ({"nodes": 101}, "training.nodes: 101, but no partition here has more than 100"),
        (
            {"gpu": 2, "gpu_model": "a100", "runtime": 241},
            "train_model requests 1 CPU, 2 GPUs of type a100 and 4.02 hours on one node, but no node here has",
        ),
    ],
)
@pytest.mark.parametrize("how", ["a file of partitions", "no default"])
def test_one_of_all_partitions(plan, asked, expected, how):
    site = KnownSite(SITE.replace("*", "") if how == "no default" else SITE)
    given = Options(partition_config="partitions.yaml") if how != "no default" else Options()
    found = Limits(plan(), site, given).mistakes([job(slurm_partition=None, **asked)])
    assert [expected in line for line in found] == [True] * (expected is not None), found


def test_a_partition_that_takes_shorter_jobs(plan):
    names = [{"experiment": name, "seed": "0"} for name in ("some", "digits", "digits-smoke", "cifar10")]
    made = plan({"resources": {"training": {"hours": 20}}}, "partition: gpu\nmax_hours: 12\n")
    for name in ("digits", "digits-smoke", "cifar10"):
        made.known[name] = made.known["some"]
    found = Limits(made, KnownSite(), Options()).mistakes(
        [job(wildcards=name, runtime=720) for name in names] + [job("train_extractor", wildcards={}, runtime=60)]
    )
    assert found == [
        "config/cluster.yaml: max_hours: 12, but partition gpu takes jobs of at most 4 hours; set max_hours: 4 (or "
        "UDPM_MAX_HOURS=4); requested by train_model of some, train_model of digits, train_model of digits-"
        "smoke and 1 more"
    ]


@pytest.mark.parametrize("longest", ["20:00", "1", "1:30:00", "1-00:00:00", "7:01:00"])
def test_the_hours_in_the_message_are_granted(plan, longest):
    site = KnownSite(f"gpu|up|{longest}|1-infinite|1|8|9000|(null)")

    def mistakes(max_hours):
        made = plan({"resources": {"training": {"hours": 30}}}, "partition: gpu\n", UDPM_MAX_HOURS=str(max_hours))
        asked = [job("train_model", runtime=made.cluster.minutes(30))]
        asked += [job("train_extractor", wildcards={}, runtime=made.cluster.minutes(1))]
        return Limits(made, site, Options()).mistakes(asked)

    (found,) = mistakes(30)
    assert found.startswith(
        "environment variable UDPM_MAX_HOURS: max_hours: 30, but partition gpu takes jobs of at most"
    )
    assert ("train_extractor" in found) == (minutes_of(longest) < 60)
    assert mistakes(re.search(r"set max_hours: ([\d.]+) ", found)[1]) == []


def test_the_type_of_gpu_of_the_cluster(plan):
    made = plan({}, "partition: gpu\ngpu_model: A100\n")
    asked = [job(rule, gpu=1, gpu_model="A100") for rule in ("train_model", "sample_images", "score_samples")]
    assert Limits(made, KnownSite(), Options()).mistakes(asked) == [
        "config/cluster.yaml: gpu_model: A100, but partition gpu has a100, v100"
    ]


def test_seeds_and_shards_make_one_mistake(plan):
    asked = [
        job("sample_shard", wildcards={"experiment": "some", "seed": seed, "part": part}, mem_mb=500_000)
        for seed in range(3)
        for part in range(9)
    ]
    assert len(Limits(plan(MEMORY), KnownSite(), Options()).mistakes(asked)) == 1


def test_points_of_a_sweep_make_one_mistake(plan):
    plan({"resources": {"training": {"memory_gb": 500}}})
    grid = {"a": {"axis": {"key": "training.batch", "values": [8, 16, 32]}}}
    Path("config/sweeps").mkdir(exist_ok=True)
    Path("config/sweeps/many.yaml").write_text(yaml.safe_dump({"base": "some", "grids": grid}))
    made = Experiments({"experiments": ["some"], "sweep": "many"}, True)
    asked = [job(wildcards={"experiment": name, "seed": "0"}, mem_mb=500_000) for name in made.sweep.loaded.points]
    assert len(asked) == 3
    (found,) = Limits(made, KnownSite(), Options()).mistakes(asked)
    assert found.startswith(HERE + "resources.training.memory_gb: 500")


def outcome(limits, jobs, dry_run=False, most=100):
    """Return the notes of a check, or the mistakes that it ends with."""
    try:
        return "note", limits.check(jobs, dry_run, most, len(jobs))
    except UserError as error:
        return "error", error.mistakes


DISABLED = Answer(trouble="sacct: Slurm accounting storage is disabled")
AWAY = Answer(trouble="sacct: error: slurm_persist_conn_open: Connection refused")
NO_SACCT = Answer(trouble="sacct not found in PATH")


@pytest.mark.parametrize(
    ("site", "given", "jobs", "kind", "expected"),
    [
        (KnownSite(), Options(), [job()], "note", []),
        (KnownSite(), Options(array_jobs="all"), [], "error", ["slurm-array-jobs: leave it out"]),
        (
            KnownSite(accounting=DISABLED),
            Options(),
            [job()],
            "error",
            ["is disabled); set slurm-status-command: squeue"],
        ),
        (KnownSite(accounting=DISABLED), Options(status_command="sacct"), [job()], "error", ["status-command: squeue"]),
        (
            KnownSite(accounting=NO_SACCT),
            Options(),
            [job()],
            "error",
            ["sacct not found in PATH); set slurm-status-command"],
        ),
        (KnownSite(accounting=DISABLED), Options(status_command="squeue"), [job()], "note", []),
        (KnownSite(accounting=DISABLED), Options(), [], "note", []),
        (KnownSite(accounting=AWAY), Options(), [job()], "note", []),
        (
            KnownSite("", nodes=Answer(trouble="sinfo: no")),
            Options(),
            [job()],
            "note",
            ["is not known (sinfo: no); jobs are submitted"],
        ),
        (KnownSite(""), Options(), [job()], "note", ["(sinfo names no partition)"]),
        (
            KnownSite(),
            Options(),
            [job(slurm_partition="old")],
            "note",
            ["partition old takes no jobs at present (sinfo: drain)"],
        ),
        (
            KnownSite(accounting=DISABLED, associations="here|other||||normal|"),
            Options(),
            [job(runtime=999), job(gpu=9)],
            "error",
            ["account: lab is not one of yours; these are: other", "gpu of train_model", "runtime of", "sacct cannot"],
        ),
        (KnownSite(associations="here|LAB||||normal|"), Options(), [job()], "note", []),
        (
            KnownSite(associations="here|lab||5||normal|"),
            Options(),
            [job()] * 9,
            "note",
            ["SLURM takes at most 5 jobs of yours at a time (MaxSubmit): of 9 jobs, 5 will be in the queue at once"],
        ),
        (KnownSite(associations="here|lab||5||normal|"), Options(), [job()] * 5, "note", []),
        (KnownSite(associations="here|lab||500||normal|"), Options(), [job()] * 900, "note", []),
    ],
)
def test_messages_before_the_first_job(plan, site, given, jobs, kind, expected):
    found = outcome(Limits(plan({}, "account: lab\n"), site, given), jobs)
    assert found[0] == kind
    assert len(found[1]) == len(expected)
    for line, part in zip(sorted(found[1]), sorted(expected), strict=True):
        assert part in line or any(other in line for other in expected)


def test_without_slurm(plan):
    site = Site()
    site.__dict__["missing"] = ["sbatch", "sinfo", "squeue"]
    compared = Limits(plan(), site, Options())
    (note,) = outcome(compared, [job()], dry_run=True)[1]
    assert note == (
        "SLURM's commands (sbatch, sinfo, squeue) not found in PATH: this is the plan, but it cannot run here; "
        "without SLURM: snakemake"
    )
    kind, (mistake,) = outcome(compared, [job()])
    assert kind == "error"
    assert mistake.endswith("run everything on this machine: snakemake")
    # Local jobs need no SLURM.
    assert outcome(compared, []) == ("note", [])


@pytest.mark.parametrize(
    "said",
    [
        "error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host",
        "error: s_p_parse_file: unable to status file /etc/slurm/slurm.conf: No such file or directory",
    ],
)
def test_commands_of_slurm_without_a_cluster(plan, tmp_path, monkeypatch, said):
    for name in ("sbatch", "sinfo", "squeue", "scontrol", "sacctmgr", "sacct"):
        program(tmp_path, name, f"echo '{name}: {said}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kind, (mistake,) = outcome(Limits(plan(), Site(), Options()), [job()])
    assert kind == "error"
    assert f"--profile slurm: SLURM is not configured here (sinfo: {said}); start it on a cluster's login" in mistake


def choice(**asked):
    """Return the partition of the example file that the plugin chooses for a job."""
    import snakemake_executor_plugin_slurm as plugin

    quiet = SimpleNamespace(**dict.fromkeys(("info", "debug", "warning"), lambda text: None))
    one = SimpleNamespace(name="a", threads=1, resources={"mem_mb": 8000, "runtime": 60, "nodes": 1} | asked)
    return plugin.get_best_partition(plugin.read_partition_file(ROOT / "slurm/partitions.yaml"), one, quiet)


@pytest.mark.slow
def test_the_example_of_several_partitions():
    assert choice() == "short"
    assert choice(runtime=61) == choice(cpus_per_task=17) == choice(mem_mb=100_000) == "cpu"
    assert choice(gpu=1, gpu_model="a100") == choice(gpu=4, runtime=1440) == "gpu"
    assert choice(nodes=4, gres="gpu:a100:2", mpi="srun", tasks_per_node=2, runtime=1440) == "gpu"
    assert choice(gpu=5) is choice(gpu=1, gpu_model="h100") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "cluster", "expected"),
    [
        ("partitions: {cpu: {}, gpu: {max_gpu: 4}}", "max_hours: 1\n", ("note", [])),
        (
            "partitions: {cpu: {}, gpus: {max_gpu: 4}}",
            "max_hours: 1\n",
            ("error", ["p.yaml: gpus not found; this cluster has"]),
        ),
        ("partitions: {cpu: {max_gpus: 4}}", "max_hours: 1\n", ("error", ["max_gpus"])),
        ("partitions: [cpu]", "max_hours: 1\n", ("error", ["p.yaml: 'partitions' section"])),
        ("cpu", "max_hours: 1\n", ("error", ["p.yaml: Partition file p.yaml is missing"])),
        (
            "partitions: {cpu: {}}",
            "partition: cpu\n",
            ("note", ["partition: cpu: all jobs go there, so slurm-partition-conf"]),
        ),
    ],
)
def test_a_file_of_partitions(plan, text, cluster, expected):
    made = plan({}, cluster)
    Path("p.yaml").write_text(text)
    kind, lines = outcome(Limits(made, KnownSite(), Options(partition_config="p.yaml")), [job()])
    assert kind == expected[0]
    assert [part in line for line, part in zip(lines, expected[1], strict=True)] == [True] * len(expected[1])


def test_rules_request_the_resources_of_their_section():
    found = {}
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for text in re.split(r"^(?=rule |use rule )", path.read_text(), flags=re.M)[1:]:
            name, like = re.match(r"(?:use rule (?P<like>\w+) as|rule) (?P<name>\w+)", text).group("name", "like")
            sections = re.findall(r"\*\*JOBS\.(\w+),", text) or ([found[like]] if like else [])
            found |= dict.fromkeys([name] * bool(sections), *sections)
    figures = {"figures": "sampling", "neighbours": "scoring"}
    assert {rule for rule, section in found.items() if section in figures} == FIGURE_RULES
    assert {rule: figures.get(section, section) for rule, section in found.items()} == SECTIONS


@pytest.mark.slow
def test_the_profile_and_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SNAKEMAKE_SLURM_PARTITIONS", raising=False)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--profile", "slurm", "-n"])
    assert limits.read_options() == Options(executor="slurm")
    monkeypatch.setenv("SNAKEMAKE_SLURM_PARTITIONS", "there.yaml")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--slurm-array-jobs", "all", "--slurm-qos=long"])
    assert limits.read_options() == Options(
        array_jobs="all", qos="long", partition_config="there.yaml", executor="slurm"
    )
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    with open(tmp_path / "slurm/config.yaml", "a") as file:
        file.write("slurm-status-command: squeue\nslurm-array-jobs: sample_shard\n")
    monkeypatch.setattr(sys, "argv", ["snakemake", "--profile", str(tmp_path / "slurm")])
    assert limits.read_options() == Options("sample_shard", "squeue", "there.yaml", executor="slurm")
    monkeypatch.setattr(sys, "argv", ["pytest", "-x", "tests"])
    assert limits.read_options() == Options()


# The efficiency report.


@pytest.fixture
def report(monkeypatch):
    """Write the plugin's report, and return the lines that it logged."""
    import slurm_patches
    import snakemake_executor_plugin_slurm as plugin

    monkeypatch.setattr(plugin, "create_efficiency_report", plugin.create_efficiency_report)
    monkeypatch.setattr(slurm_patches, "PATIENCE", 30.0)
    slurm_patches.guard_report()

    def write(folder):
        heard = []
        logger = SimpleNamespace(
            **{
                level: lambda text, level=level: heard.append((level, text))
                for level in ("info", "debug", "warning", "error")
            }
        )
        plugin.create_efficiency_report(e_threshold=0.8, run_uuid="udpm_1", e_report_path=folder, logger=logger)
        return [line for line in heard if line[0] != "debug"]

    return write


ROW = "1|udpm_1|rule_a|00:10:00|00:00:01|1|2||4G\n1.0|python||00:10:00|00:00:01|1|2|100M|\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (f"printf '{ROW}'", True),
        ("echo Slurm accounting storage is disabled >&2; exit 1", False),
        ("true", False),
        ("echo '1|a|b|c|with|too|many|bars|in|the|comment'", False),
        ("echo '1.batch|batch||00:00:01|00:00:01|1|1||'", True),
        (None, False),
    ],
    ids=["a report", "disabled", "nothing", "bars", "no step", "no sacct"],
)
def test_a_failing_report_does_not_fail_a_finished_study(tmp_path, monkeypatch, report, text, written):
    if text:
        program(tmp_path, "sacct", text)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if text else str(tmp_path / "nothing"))
    heard = report(tmp_path / "reports")
    assert len(list((tmp_path / "reports").glob("*.csv"))) == written
    assert [level for level, _ in heard] == ["info"] * written


def test_a_report_is_not_waited_for(tmp_path, monkeypatch, report):
    import slurm_patches

    program(tmp_path, "sacct", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_patches, "PATIENCE", 0.1)
    assert report(tmp_path / "reports") == []


# The whole command.

SLURM = re.compile(r"s(batch|info|queue|acct|acctmgr|control|cancel|run|share|diag|alloc)")
DOOR = {
    "sinfo": f"case \"$*\" in *--format=*) cat;; *) echo 'cpu*';; esac <<'END'\n{SITE}END",
    "scontrol": 'case "$*" in *config*) echo "ClusterName = here"; echo "AccountingStorageEnforce = limits";; esac',
    "sacctmgr": 'case "$*" in *assoc*) echo "here|0123||5||normal|";; *list*) echo 0123;; esac',
    "sacct": "exit 0",
    "squeue": "exit 0",
    "scancel": "exit 0",
    "sbatch": 'printf "%s\\n" "$@" >> submitted.txt; echo "sbatch: error: no" >&2; exit 1',
}


@pytest.fixture(scope="module")
def path_without_slurm(tmp_path_factory):
    """A folder with all programs of this machine except SLURM's."""
    folder = tmp_path_factory.mktemp("bin")
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for path in Path(place).iterdir():
            if not SLURM.fullmatch(path.name) and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def run_profile(tmp_path, path_without_slurm):
    """Run `snakemake --profile slurm` in a clone, with fake SLURM programs or without any."""
    for name in ("config", "workflow", "slurm", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def snakemake(*arguments, slurm=True, **environment):
        if slurm:
            (tmp_path / "bin").mkdir(exist_ok=True)
            for name, text in DOOR.items():
                program(tmp_path / "bin", name, text)
        command = [Path(sys.executable).parent / "snakemake", "--profile", "slurm", *arguments]
        given = os.environ | {"PATH": f"{tmp_path}/bin:{path_without_slurm}", "PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=300)

    return snakemake


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_nothing_starts_without_slurm(run_profile, tmp_path):
    (tmp_path / "config/cluster.yaml").write_text("account: 0123\nmax_hours: 0.2\n")
    done = run_profile("-n", "--config", "experiments=[digits-smoke,digits]", slurm=False)
    assert done.returncode == 0, done.stderr
    assert "note: SLURM's commands (sbatch, sinfo, squeue) not found in PATH: this is the plan" in done.stderr
    # max_hours limits jobs of every rule.
    runtimes = [int(minutes) for minutes in re.findall(r"resources: .*\bruntime=(\d+)", done.stdout)]
    assert set(runtimes) == {12}
    assert done.stdout.count("slurm_account=0123,") == len(runtimes) > 40
    done = run_profile("--config", "experiments=digits-smoke", slurm=False)
    assert done.returncode == 2
    assert len(errors(done)) == 1
    assert "not found in PATH; start it on a cluster's login node, or run everything on this machine" in errors(done)[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results/configs").exists()


@pytest.mark.slow
def test_all_mistakes_are_reported_before_anything_starts(run_profile, tmp_path):
    keys = {"extends": "digits-smoke", "resources": {"training": {"memory_gb": 600}, "sampling": {"gpus": 9}}}
    (tmp_path / "config/experiments/some.yaml").write_text(json.dumps(keys))
    with open(tmp_path / "slurm/config.yaml", "a") as file:
        file.write("  prepare_dataset: {slurm_partition: old, runtime: 31}\n")
    done = run_profile("--config", "experiments=some", UDPM_ACCOUNT="123", UDPM_PARTITION="gpu", UDPM_GPU_MODEL="h100")
    assert done.returncode == 2
    assert [line.removeprefix("error: ") for line in errors(done)] == [
        "environment variable UDPM_ACCOUNT: account: 123 is not one of yours; these are: 0123",
        "config/experiments/some.yaml: resources.training.memory_gb: 600, but no node of partition gpu has more than "
        "380 GB (this partition has it: big)",
        "environment variable UDPM_GPU_MODEL: gpu_model: h100, but partition gpu has a100, v100",
        "slurm/config.yaml: runtime of prepare_dataset: 31 minutes, but partition old takes jobs of at most 30 "
        "minutes; set its runtime in set-resources",
    ]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results/configs").exists()
    assert not (tmp_path / "submitted.txt").exists()


@pytest.mark.slow
def test_options_of_sbatch(run_profile, tmp_path):
    quick = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1")
    done = run_profile("results/datasets/digits/dataset.json", *quick, UDPM_ACCOUNT="0123", UDPM_MAX_HOURS="0.75")
    assert done.returncode == 1
    words = (tmp_path / "submitted.txt").read_text().splitlines()
    given = {word: words[words.index(word) + 1] for word in ("-A", "-p", "-t")}
    assert given == {"-A": "0123", "-p": "cpu", "-t": "45"}
    assert words[words.index("--job-name") + 1].startswith("udpm_")


@pytest.mark.slow
def test_cpus_are_the_experiments_on_a_host_of_one(run_profile, tmp_path):
    keys = {"extends": "digits-smoke", "training": {"threads": 6, "workers": 2}, "sampling": {"threads": 5}}
    (tmp_path / "config/experiments/some.yaml").write_text(json.dumps(keys))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        done = run_profile("-n", "--config", "experiments=some")
    finally:
        os.sched_setaffinity(0, before)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: .*\bcpus_per_task=(\d+)", done.stdout, re.M
    )
    asked = {rule: int(cpus) for rule, cpus in jobs}
    expected = {"train_model": 8, "sample_images": 5, "explore_latents": 5, "score_samples": 2, "prepare_dataset": 1}
    assert {rule: asked[rule] for rule in expected} == expected
