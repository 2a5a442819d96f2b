"""Resources of jobs, shards of a sample set, and usage of a command, without a scheduler."""

import json
import os
import sys

import numpy as np
import pytest
import tiny
import torch
from snakemake.resources import Resource, Resources
from tiny import ROOT, call

from udpm.config import Sampling, load_cluster
from udpm.config.validation import validate
from udpm.core import gpus
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.work import use_private_cache_dirs
from udpm.runs.attempts import ATTEMPTS, recorded
from udpm.sampling.generate import draw_samples, shard_numbers
from udpm.sampling.sample_set import load_samples

sys.path.insert(0, str(ROOT / "workflow"))

from jobs import limit_gpus


def test_cluster_from_file_and_environment(tmp_path):
    (tmp_path / "cluster.yaml").write_text("account: 4711\npartition: slow\nmax_hours: 8\n")
    found = load_cluster(tmp_path, {"UDPM_PARTITION": "fast", "UDPM_MAX_HOURS": "0.5"})
    assert (found.account, found.partition, found.max_hours) == ("4711", "fast", 0.5)
    assert found.minutes(0.25) == 15
    assert found.minutes(100) == 30
    assert load_cluster(tmp_path / "nothing", {}).account is None
    names = {"account": "0123", "partition": "1e3", "gpu_model": "007"}
    (tmp_path / "cluster.yaml").write_text("".join(f"{key}: {name!r}\n" for key, name in names.items()))
    for environment in ({}, {f"UDPM_{key.upper()}": name for key, name in names.items()}):
        assert load_cluster(tmp_path, environment).model_dump(include=set(names)) == names
    (tmp_path / "cluster.yaml").write_text("account: 0123\n")
    assert load_cluster(tmp_path, {}).account == "0123"


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("acount: a\n", {}, "cluster.yaml: acount: unknown key; did you mean account?"),
        ("account: a b\n", {}, "cluster.yaml: account: string should match pattern"),
        ("max_hours: 0\n", {}, "cluster.yaml: max_hours: input should be greater than 0, got 0"),
        ("", {"UDPM_GRACE_SECONDS": "5"}, "environment variable UDPM_GRACE_SECONDS: grace_seconds: input should be"),
        ("", {"UDPM_GRACE_SECONDS": "1e3"}, "environment variable UDPM_GRACE_SECONDS: grace_seconds: input should be"),
        ("", {"UDPM_MAX_HOURS": "inf"}, "environment variable UDPM_MAX_HOURS: max_hours: input should be a finite"),
        ("", {"UDPM_ACCOUNT": "a: b: c"}, "environment variable UDPM_ACCOUNT: account: "),
        ("", {"UDPM_PARTITION": "a' $(touch PWNED)"}, "environment variable UDPM_PARTITION: partition: string should"),
        ("gpu_model: 'a;b'\n", {}, "cluster.yaml: gpu_model: string should match pattern"),
        ('account: "a\\n"\n', {}, "cluster.yaml: account: string should match pattern"),
    ],
)
def test_a_mistake_names_file_or_variable(tmp_path, text, environment, expected):
    (tmp_path / "cluster.yaml").write_text(text or "max_hours: 1\n")
    with pytest.raises(UserError, match=r"^[^\n]+$") as printed:
        load_cluster(tmp_path, environment)
    assert expected in str(printed.value)


@pytest.mark.parametrize("value", ["it's $(touch PWNED)", "back\\slash", "a\tb"])
def test_refuses_values_that_would_reach_a_node_changed(tmp_path, monkeypatch, capsys, value):
    monkeypatch.chdir(tmp_path)
    asked(tmp_path)
    from limits import check_config_values

    check_config_values(["experiments=some", 'results=a b $(c) "d" \u00fc'])
    with pytest.raises(SystemExit) as stop:
        check_config_values([f"results={value}"])
    assert stop.value.code == 2
    assert "put it into config/config.yaml" in capsys.readouterr().err


class Wildcards:
    experiment, seed = "some", "0"


def asked(study, training=(), resources=None, environment=None, attempt=1):
    """Return the resources of the training rule for an experiment with these keys, as Snakemake evaluates them."""
    from inspect import signature

    from experiments import Experiments
    from jobs import Jobs

    keys = "".join(f"  {key}: {value}\n" for key, value in dict(training).items())
    (study / "config/experiments").mkdir(parents=True, exist_ok=True)
    for kind in ("experiments/digits-paper", "experiments/digits-smoke", "datasets/digits"):
        target = study / "config" / f"{kind}.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text((ROOT / "config" / f"{kind}.yaml").read_text())
    (study / "config/experiments/some.yaml").write_text(
        f"extends: digits-smoke\nresources: {json.dumps(resources or {})}\n" + (f"training:\n{keys}" if keys else "")
    )
    os.chdir(study)
    plan = Experiments({"experiments": ["some"]}, True)
    functions = Jobs(plan, load_cluster("config", environment or {}), False).training
    given = {"wildcards": Wildcards, "attempt": attempt}
    found = {
        name: function(*(given[part.lstrip("_")] for part in signature(function).parameters))
        for name, function in functions.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def test_one_node(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = {"training": {"hours": 100, "memory_gb": 1.5, "gpus_per_node": None}}
    given = {"processes_per_node": 2, "device": "auto"}
    found = asked(tmp_path, given, resources, {"UDPM_GPU_MODEL": "a100"})
    assert found == {"runtime": 1440, "mem_mb": 1500, "nodes": 1, "gpu": 2, "gpu_model": "a100"}


def test_several_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = {"training": {"gpus_per_node": 2}}
    given = {"nodes": 4, "processes_per_node": 2}
    found = asked(tmp_path, given, resources, {"UDPM_GPU_MODEL": "a100"})
    assert found["gres"] == "gpu:a100:2"
    assert (found["nodes"], found["tasks_per_node"], found["mpi"]) == (4, 2, "srun")
    assert not {"gpu", "gpu_model", "tasks"} & set(found)
    found = asked(tmp_path, {"nodes": 2, "device": "cpu"}, {"training": {"gpus_per_node": None}})
    assert (found["nodes"], found["tasks"]) == (2, 2)
    assert not {"gpu", "gres", "tasks_per_node"} & set(found)


def test_memory_grows_after_a_kill_but_not_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results/runs/some/seed0"
    resources = {"training": {"memory_gb": 2}}
    assert asked(tmp_path, resources=resources)["mem_mb"] == 2000
    # The job never began, since SLURM refused it.
    assert asked(tmp_path, resources=resources, attempt=2)["mem_mb"] == 2000
    run.mkdir(parents=True)
    with pytest.raises(StoppedEarly), recorded(run, {"token": "a"}):
        raise StoppedEarly("its time was up")
    assert asked(tmp_path, resources=resources, attempt=2)["mem_mb"] == 2000
    with open(run / ATTEMPTS, "a") as file:
        file.write('{"token": "b", "began": 1}\n')
    assert asked(tmp_path, resources=resources, attempt=3)["mem_mb"] == 4000


@pytest.mark.parametrize(("count", "batch", "shards"), [(90, 25, 4), (100, 25, 3), (7, 7, 1), (1000, 1, 7)])
def test_shards_are_whole_batches_and_all_of_them(count, batch, shards):
    parts = [shard_numbers(count, batch, index, shards) for index in range(1, shards + 1)]
    assert [number for part in parts for number in part] == list(range(count))
    assert all(len(part) % batch == 0 for part in parts[:-1])
    assert all(parts)


@pytest.fixture(scope="module")
def shards(trained, tmp_path_factory):
    """A sample set drawn in one, in two and in three parts."""
    folder = tmp_path_factory.mktemp("shards")
    config = Sampling(count=22, batch=5, device="cpu", threads=1, intermediate=True)
    draw_samples(trained / "weights.safetensors", config, folder / "whole.npz")
    for count in (2, 3):
        names = [folder / f"{index}of{count}.npz" for index in range(1, count + 1)]
        for index, name in enumerate(names, start=1):
            draw_samples(trained / "weights.safetensors", config, name, shard=(index, count))
        assert call("join", *reversed(names), "--output", folder / f"joined{count}.json") == 0
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_the_set_is_the_same_in_any_number_of_shards(shards, count):
    whole, joined = load_samples(shards / "whole.npz"), load_samples(shards / f"joined{count}.json")
    assert np.array_equal(joined.images, whole.images)
    assert np.array_equal(joined.labels, whole.labels)
    assert all(np.array_equal(joined.outputs[level], whole.outputs[level]) for level in (2, 3))
    own = {"sha256", "shards"}
    assert {key: joined.record[key] for key in joined.record.keys() - own} == {
        key: whole.record[key] for key in whole.record.keys() - own
    }


OTHERS = {
    "seed.npz": {"seed": 1},
    "labels.npz": {"labels": [3, 5]},
    "count.npz": {"count": 12},
    "batch.npz": {"batch": 7},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["1of2.npz", "2of3.npz"], "expected shards 1 to 2 of 2, got 1 of 2, 2 of 3"),
        (["1of2.npz"], "expected shards 1 to 1 of 1, got 1 of 2"),
        (["1of2.npz", "none.npz"], "none.json: sample set's record not found"),
        (["whole.npz"], "not a shard but a whole sample set"),
        (["1of2.npz", "seed.npz"], "1of2.npz: seed differs; draw the shards again"),
        (["1of2.npz", "labels.npz"], "1of2.npz: labels differs; draw the shards again"),
        (["1of2.npz", "count.npz"], "1of2.npz: total differs; draw the shards again"),
        (["1of2.npz", "batch.npz"], "batch.npz: begins with image 14, but the shards before it hold 10; draw all"),
        (["1of2.npz", "damaged.npz"], "does not describe damaged.npz; draw the sample set again"),
    ],
)
def test_refuses_shards_of_different_sets(shards, trained, tmp_path, capsys, arguments, expected):
    for name in OTHERS.keys() & {*arguments}:
        config = Sampling(**{"count": 22, "batch": 5, "device": "cpu", "threads": 1} | OTHERS[name])
        draw_samples(trained / "weights.safetensors", config, shards / name, shard=(2, 2))
    if "damaged.npz" in arguments:
        (shards / "damaged.npz").write_bytes((shards / "2of2.npz").read_bytes())
        (shards / "damaged.json").write_bytes((shards / "2of2.json").read_bytes())
        tiny.flip_byte(shards / "damaged.npz", 400)
    before = tiny.snapshot(shards)
    assert call("join", *(shards / name for name in arguments), "--output", shards / "set.json") == 2
    printed = capsys.readouterr().err.strip()
    assert expected in printed
    assert "\n" not in printed
    assert tiny.snapshot(shards) == before


def test_more_shards_than_batches():
    with pytest.raises(UserError, match="shards: must be at most 2, the number of batches of 5 in 10 images, got 3"):
        validate(Sampling, {"count": 10, "batch": 5, "shards": 3}, "sampling")


def test_usage_of_a_command(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("udpm.core.provenance._images", 0)
    weights = trained / "weights.safetensors"
    assert not tiny.call(
        "--usage", tmp_path / "u.jsonl", "sample", weights, "--count", 6, "--output", tmp_path / "a.npz"
    )
    (line,) = [json.loads(text) for text in (tmp_path / "u.jsonl").read_text().splitlines()]
    assert (line["verb"], line["images"]) == ("sample", 6)
    assert line["images_per_second"] == pytest.approx(6 / line["seconds"], rel=0.1)
    assert line["peak_memory_mib"] > 50
    if not torch.cuda.is_available():
        assert line["gpu"] is None
        assert line["gpu_busy_percent"] is None


def test_caches_of_a_job(tmp_path):
    leaked = {"SLURM_JOB_ID": "7", "TMPDIR": "/nowhere/on/this/node", "TRITON_CACHE_DIR": "/mine"}
    use_private_cache_dirs(leaked)
    assert leaked["TMPDIR"] != "/nowhere/on/this/node"
    assert leaked["TRITON_CACHE_DIR"] == "/mine"
    assert "udpm-7-" in leaked["MPLCONFIGDIR"]
    plain = {"TMPDIR": "/nowhere"}
    use_private_cache_dirs(plain)
    assert plain == {"TMPDIR": "/nowhere"}


class FakeWorkflow:
    """What `limit_gpus` uses of Snakemake's."""

    def __init__(self, asked):
        self.global_resources = Resources({} if asked is None else {"gpu": Resource("gpu", asked)})

    def register_resource(self, name, value):
        self.global_resources[name] = value


@pytest.mark.parametrize(
    ("visible", "asked", "limit", "policy"),
    [
        ("0,1", None, 2, "exclusive"),
        ("0,1", 1, 1, "exclusive"),
        ("0,1", 5, 5, None),
        ("", None, None, None),
        ("", 1, 1, None),
    ],
)
def test_local_jobs_get_a_gpu_each(monkeypatch, visible, asked, limit, policy):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop(gpus.POLICY, None)
    workflow = FakeWorkflow(asked)
    limit_gpus(workflow)
    assert workflow.global_resources.get("gpu").value == limit
    assert os.environ.get(gpus.POLICY) == policy
