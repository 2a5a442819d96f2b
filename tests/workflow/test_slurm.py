"""The executor for SLURM and its patches, without SLURM; `make test-slurm` tests them on a live one."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
plugin = pytest.importorskip("snakemake_executor_plugin_slurm")

import executor as ours  # noqa: E402
import jobs as groups  # noqa: E402
import slurm_patches  # noqa: E402
from slurm_patches import STUCK, States  # noqa: E402

from udpm.core.commands import Answer  # noqa: E402


class Member(SimpleNamespace):
    """The attributes of a job that groups read."""

    def __hash__(self):
        return id(self)


class Answers:
    """Answers of SLURM in order, and the lines printed for the user."""

    def __init__(self, *states, queue=""):
        self.states, self.queue, self.said = list(states), queue, []
        self.asked = States(self._ask, self._run, self.said.append)

    async def _ask(self, command, logger):
        found = self.states.pop(0)
        return (None, None) if found is None else (found, 0.1)

    def _run(self, command):
        return Answer(trouble="down") if self.queue is None else Answer(tuple(self.queue.splitlines()))

    def look(self):
        return asyncio.run(self.asked.query("sacct", None))[0]


@pytest.mark.parametrize(
    ("state", "queue", "expected"),
    [
        ("CANCELLED by 1000", "", "CANCELLED"),
        ("RUNNING", "", "RUNNING"),
        ("NODE_FAIL", "7|None\n", "REQUEUED"),
        ("NODE_FAIL", "8|None\n", "FAILED"),
        ("NODE_FAIL", None, "REQUEUED"),
        ("PREEMPTED", "7|None\n", "REQUEUED"),
        ("PREEMPTED", "", "FAILED"),
    ],
)
def test_states_are_translated_for_the_plugin(state, queue, expected):
    answers = Answers({"7": state}, queue=queue)
    assert answers.look() == {"7": expected}
    assert answers.asked.last == {"7": state.split()[0]}


def test_no_answer_is_no_state():
    answers = Answers({"7": "RUNNING"}, None, None, {"7": "COMPLETED"})
    assert [answers.look() for _ in range(4)] == [{"7": "RUNNING"}, {}, {}, {"7": "COMPLETED"}]
    assert len(answers.said) == 2


@pytest.mark.parametrize("reason", sorted(STUCK))
def test_a_stuck_job_is_reported_once(reason):
    answers = Answers(*[{"7": "PENDING"}] * 3, queue=f"7|{reason}\n8|Priority\n9|{reason}\n")
    for _ in range(3):
        assert answers.look() == {"7": "PENDING"}
    assert len(answers.said) == 1
    assert "7" in answers.said[0]
    assert reason in answers.said[0]


@pytest.mark.parametrize(
    "reason", ["Priority", "Resources", "None", "QOSMaxJobsPerUserLimit", "Dependency", "BeginTime"]
)
def test_a_passing_reason_is_not_reported(reason):
    answers = Answers({"7": "PENDING"}, queue=f"7|{reason}\n")
    answers.look()
    assert answers.said == []


def plugin_alone(states, failed):
    """Poll the states of one active job, "7", with the plugin alone."""
    executor = object.__new__(plugin.Executor)
    settings = SimpleNamespace(
        init_seconds_before_status_checks=1, status_attempts=1, requeue=True, status_command="sacct"
    )
    executor.workflow = SimpleNamespace(executor_settings=settings)
    executor.logger = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), lambda *a, **b: None))
    executor.run_uuid, executor._failed_nodes, executor._preemption_warning = "run", set(), False
    executor._status_query_calls = executor._status_query_failures = executor._status_query_total_seconds = 0
    executor._status_query_min_seconds, executor._status_query_max_seconds = None, 0.0
    executor._status_query_cycle_rows, executor._next_seconds_between_status_checks = [], 1
    executor.report_job_error = lambda job, **_: failed.append(job)
    executor.status_rate_limiter = _Free()

    async def ask(command, logger):
        return (None, None) if states is None else (states, 0.1)

    async def look():
        job = SimpleNamespace(external_jobid="7", aux={})
        return [left async for left in executor.check_active_jobs([job])]

    return executor, ask, look


class _Free:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return False


@pytest.fixture
def tools(monkeypatch):
    """Make `sacct` available to the plugin; it reports no nodes for a job."""
    monkeypatch.setattr(plugin, "is_query_tool_available", lambda name: True)
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: 300)
    monkeypatch.setattr(plugin.subprocess, "check_output", lambda *a, **b: "None assigned\n")


def test_the_plugin_still_needs_the_patches(monkeypatch, tools):
    """If this fails, the plugin is fixed: shorten workflow/slurm_patches.py."""
    for states, check in (
        ({"7": "CANCELLED by 0"}, lambda executor, left, failed: left and not failed),
        ({"7": "NODE_FAIL"}, lambda executor, left, failed: executor._failed_nodes == {"None assigned"}),
        ({"7": "PREEMPTED"}, lambda executor, left, failed: left and not failed),
        (None, lambda executor, left, failed: not left),
    ):
        failed = []
        executor, ask, look = plugin_alone(states, failed)
        monkeypatch.setattr(plugin, "query_job_status", ask)
        assert check(executor, asyncio.run(look()), failed), states


def test_the_plugin_still_fails_without_a_report(monkeypatch, tmp_path):
    """If this fails, the plugin is fixed: remove `slurm_patches.guard_report` and the bound in pyproject.toml."""
    monkeypatch.setenv("PATH", str(tmp_path))
    logger = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), lambda *a, **b: None))
    with pytest.raises(Exception, match=r".+"):
        plugin.create_efficiency_report(e_threshold=0.8, run_uuid="u", e_report_path=tmp_path, logger=logger)


def test_the_installed_plugin_is_the_patched_version():
    """The patches are for one minor version. Review all of them when raising the bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bounds,) = (text for text in project["optional-dependencies"]["workflow"] if "slurm" in text)
    (lower, upper) = re.search(r">=([\d.]+),<([\d.]+)$", bounds).groups()
    corrected = re.search(r"plugin for SLURM \(([\d.]+)\)", slurm_patches.__doc__).group(1)
    assert lower.startswith(corrected)
    major, minor = map(int, corrected.split("."))
    assert upper == f"{major}.{minor + 1}"
    assert version("snakemake-executor-plugin-slurm").startswith(f"{corrected}.")


def test_the_patches_lose_no_job_and_exclude_no_node(monkeypatch, tools):
    def queued(command):
        return Answer(("7|None",))

    for states, expected in (({"7": "CANCELLED by 0"}, "failed"), ({"7": "NODE_FAIL"}, "left"), (None, "left")):
        failed = []
        executor, ask, look = plugin_alone(states, failed)
        monkeypatch.setattr(plugin, "query_job_status", States(ask, queued, lambda text: None).query)
        left = asyncio.run(look())
        assert ("failed" if failed else "left" if left else "lost") == expected, states
        assert executor._failed_nodes == set()


DOWN = [
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    "sbatch: error: Munge encode failed: Failed to access /run/munge/munge.socket.2",
    "slurm_load_partitions: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
]
FULL = [
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)",
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates …",
]
REFUSED = [
    "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
    "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    "sbatch: error: AssocMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)",
    "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
    "sbatch: error: Invalid account or account/partition combination specified",
]


class Submitting:
    """An executor whose `sbatch` fails with the given messages, then accepts the job; waiting advances the clock."""

    def __init__(self, monkeypatch, answers, queued=False, patience=1800, known=""):
        self.now, self.failed, self.submitted, self.waited, self.said = 0.0, [], [], [], []
        answers = list(answers)
        job = Member(
            is_group=lambda: False,
            name="sample_images",
            rule=SimpleNamespace(name="sample_images"),
            wildcards=["some", "0"],
        )

        def submit(executor, job):
            if answers:
                executor._report_job_error_threadsafe(
                    "info", f"SLURM sbatch failed. The error message was '{answers.pop(0)}'"
                )
            else:
                executor._report_job_submission_threadsafe(SimpleNamespace(external_jobid="7"))

        def wait(seconds):
            self.waited.append(seconds)
            self.now += seconds
            return False

        monkeypatch.setattr(plugin.Executor, "run_job", submit)
        monkeypatch.setattr(
            plugin.Executor, "_report_job_submission_threadsafe", lambda _, job: self.submitted.append(job)
        )
        monkeypatch.setattr(
            plugin.Executor, "_report_job_error_threadsafe", lambda _, info, msg: self.failed.append(msg)
        )
        monkeypatch.setattr(ours, "has_queued", lambda: queued if isinstance(queued, bool) else queued(self))
        monkeypatch.setattr(ours, "ask", lambda command: Answer(tuple(known.splitlines())))
        monkeypatch.setattr(ours, "print_note", self.said.append)
        monkeypatch.setattr(ours, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(ours, "NO_RETRY", set())
        executor = object.__new__(ours.Executor)
        executor._current, executor._over = threading.local(), SimpleNamespace(wait=wait, is_set=lambda: False)
        executor._refused_since, executor._submitted, executor.patience = None, {"6": None}, patience
        executor.run_uuid, executor.slurm_logdir = "run", Path("logs")
        executor.run_job(job)
        self.hopeless = job in ours.NO_RETRY


@pytest.mark.parametrize("message", DOWN)
def test_a_submission_waits_for_slurm(monkeypatch, message):
    done = Submitting(monkeypatch, [message] * 20)
    assert (len(done.submitted), done.failed, done.hopeless) == (1, [], False)
    assert done.waited == sorted(done.waited)
    assert 5 <= min(done.waited) < max(done.waited) <= 60
    assert [text.split(" (")[0] for text in done.said] == ["SLURM does not answer", "SLURM takes jobs again"]


def test_a_submission_does_not_wait_forever(monkeypatch):
    done = Submitting(monkeypatch, DOWN * 1000)
    assert (done.submitted, len(done.failed), done.hopeless) == ([], 1, True)
    assert 1800 <= done.now <= 1860


@pytest.mark.parametrize("message", FULL)
def test_a_submission_waits_as_long_as_the_users_own_jobs_fill_the_queue(monkeypatch, message):
    done = Submitting(monkeypatch, [message] * 3000, queued=True)
    assert (len(done.submitted), done.failed) == (1, [])
    assert done.now > 100_000
    done = Submitting(monkeypatch, [message] * 3000, queued=False)
    assert (done.submitted, len(done.failed)) == ([], 1)


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("message", REFUSED)
def test_a_refused_job_is_not_retried(monkeypatch, message, queued):
    done = Submitting(monkeypatch, [message] * 3, queued=queued)
    assert (done.submitted, len(done.failed), done.hopeless, done.waited) == ([], 1, True, [])


def test_an_unnamed_limit_may_be_the_number_of_jobs(monkeypatch):
    message = (
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
    )
    message += "size and/or time limits)"
    left = Submitting(monkeypatch, [message] * 9, queued=lambda self: len(self.waited) < 3)
    assert (left.submitted, len(left.failed), len(left.waited)) == ([], 1, 3)
    taken = Submitting(monkeypatch, [message] * 2, queued=lambda self: len(self.waited) < 3)
    assert (len(taken.submitted), taken.failed) == (1, [])


def test_a_job_accepted_by_a_failing_sbatch_is_not_submitted_twice(monkeypatch):
    known = "5|rule_other\n6|rule_sample_images_wildcards_some_0\n8|rule_sample_images_wildcards_some_0\n"
    done = Submitting(monkeypatch, DOWN * 9, known=known)
    assert ([job.external_jobid for job in done.submitted], len(done.waited), done.failed) == (["8"], 1, [])


def failing(monkeypatch, tmp_path, rule, state, log, attempt=1, reason=None):
    """Fail a job; return whether it is excluded from retries, and whether it counts as killed."""
    job = Member(
        is_group=lambda: False,
        rule=SimpleNamespace(name=rule),
        log=[tmp_path / "log"],
        attempt=attempt,
        wildcards=["some", "0"],
    )
    if log is not None:
        (tmp_path / "log").write_text(log)
    killed = []
    monkeypatch.setattr(ours, "NO_RETRY", set())
    monkeypatch.setattr(ours, "print_note", lambda text: None)
    monkeypatch.setattr(plugin.Executor, "report_job_error", lambda *a, **b: None)
    executor = object.__new__(ours.Executor)
    executor.states = SimpleNamespace(last={"7": state} if state else {})
    executor.alike, executor.killed = lambda job, slurm: reason, killed.append
    executor.report_job_error(SimpleNamespace(job=job, external_jobid="7" if state else None))
    return job in ours.NO_RETRY, bool(killed)


@pytest.mark.parametrize(
    ("state", "log", "expected"),
    [
        ("OUT_OF_MEMORY", "", True),
        ("FAILED", "drawing images\n", True),
        ("FAILED", None, True),
        ("FAILED", "error: a.npz: not found\n", False),
        ("FAILED", "Traceback (most recent call last):\n", False),
        ("CANCELLED", "", False),
        ("TIMEOUT", "", False),
        (None, None, False),
        ("NODE_FAIL", "", False),
        ("PREEMPTED", "", False),
    ],
)
def test_memory_grows_only_after_a_job_that_began_and_was_killed(monkeypatch, tmp_path, state, log, expected):
    assert failing(monkeypatch, tmp_path, "sample_images", state, log) == (False, expected)


def test_a_training_that_failed_twice_alike_is_not_retried(monkeypatch, tmp_path):
    assert failing(monkeypatch, tmp_path, "train_model", "FAILED", "", 2, "disk full") == (True, False)
    assert failing(monkeypatch, tmp_path, "train_model", "FAILED", "", 1, "disk full") == (False, False)
    assert failing(monkeypatch, tmp_path, "train_model", "FAILED", "", 2, None) == (False, False)


def member(rule, local=False, experiment="some", **resources):
    wildcards = {"experiment": experiment, "seed": "0", "dataset": "digits", "iteration": "5", "kind": "swap"}
    asked = {"runtime": 10, "mem_mb": 1000, "cpus_per_task": 1, "nodes": 1, "slurm_account": "lab"} | resources
    return Member(rule=SimpleNamespace(name=rule), is_local=local, wildcards=wildcards, resources=asked)


def longest(partition):
    """Return the time limit in minutes."""
    return {"short": 30}.get(partition, 600)


def test_small_jobs_of_a_run_share_a_group():
    jobs = [member(rule) for rule in ("sample_images", "score_samples", "render_neighbours", *["explore_latents"] * 4)]
    alone = [member("train_model"), member("train_extractor"), member("sample_shard"), member("sample_shard")]
    others = [member("score_samples", experiment="other"), member("explore_latents", experiment="other")]
    found = groups.group_jobs([*jobs, *alone, *others], longest)
    assert {name: len(members) for name, members in found.items()} == {"run-some-0": 7, "run-other-0": 2}


def test_jobs_for_different_nodes_are_not_grouped():
    same = [member("sample_images"), member("explore_latents", mem_mb=9000, runtime=99, cpus_per_task=4)]
    for difference in ({"gpu": 1}, {"slurm_partition": "cpu"}, {"slurm_extra": "x"}, {"nodes": 2}):
        found = groups.group_jobs([*same, member("score_samples", **difference)], longest)
        assert [len(members) for members in found.values()] == [2], difference
    assert groups.group_jobs([member("sample_images"), member("score_samples", local=True)], longest) == {}


def test_a_group_requests_the_sum_of_times_and_the_maximum_of_the_rest():
    jobs = [
        member("sample_images", gpu=1, gpu_model="a100"),
        member("explore_latents", mem_mb=9000, cpus_per_task=4, gpu=1),
    ]
    expected = {"mem_mb": 9000, "cpus_per_task": 4, "gpu": 1, "gpu_model": "a100", "nodes": 1, "slurm_account": "lab"}
    assert groups.group_resources(jobs) == expected | {"runtime": 20, "_nodes": 1}


def test_a_group_fits_into_the_time_limit_of_its_partition():
    """Parts follow the order of dependencies, so that none waits for a later one."""
    rules = [
        "score_samples",
        "explore_latents",
        "sample_images",
        "render_neighbours",
        "explore_latents",
        "sample_chain",
    ]
    found = groups.group_jobs([member(rule, slurm_partition="short") for rule in rules], longest)
    parts = [{job.rule.name for job in members} for members in found.values()]
    assert parts == [
        {"sample_images", "sample_chain", "explore_latents"},
        {"explore_latents", "score_samples", "render_neighbours"},
    ]
    assert groups.group_jobs([member(rule, slurm_partition="short", runtime=29) for rule in rules], longest) == {}


@pytest.mark.slow
def test_members_of_a_group_take_turns(tmp_path):
    """The options of a job's Snakemake allow one job at a time, in spite of enough CPUs for more."""
    executor = object.__new__(ours.Executor)
    executor._current = SimpleNamespace(step=False)
    for name in ("config", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    sections = ("sampling", "scoring", "latents")
    targets = [f"resolve_section:experiment=digits-smoke,section={section},extractor=" for section in sections]
    options = ["--cores", "4", "--mode", "remote", "--force", "--nolock", *executor.additional_general_args().split()]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--target-jobs", *targets, *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Execute 1 jobs") == len(sections)
