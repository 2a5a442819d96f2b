"""Several processes train one model, the same under every launcher."""

import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
import torch

from udpm.config import RunConfig
from udpm.config.load import validate
from udpm.core.distributed import RankInfo, detect_ranks
from udpm.core.errors import UserError
from udpm.training.checkpoint import checkpoints
from udpm.training.state import State
from udpm.training.trainer import Trainer

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
}


def test_the_rank_of_a_process():
    assert detect_ranks(2, TORCHRUN) == RankInfo(1, 2, 1)
    assert detect_ranks(4, SRUN) == RankInfo(3, 4, 1, "12-0-0")
    assert detect_ranks(4, SRUN | {"SLURM_RESTART_COUNT": "2"}).rendezvous_id == "12-0-2"


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, {}])
def test_a_single_process_ignores_the_environment(environment):
    assert detect_ranks(1, environment) == RankInfo()


@pytest.mark.parametrize(
    ("world", "environment", "expected"),
    [
        (4, {}, "torchrun --standalone --nproc-per-node 4 -m -- udpm train"),
        (4, TORCHRUN, "4 in all are configured, but 2 were started"),
        (2, SRUN, "2 in all are configured, but 4 were started"),
    ],
)
def test_the_number_of_processes_must_be_the_configured_one(world, environment, expected):
    with pytest.raises(UserError, match=expected):
        detect_ranks(world, environment)


@pytest.mark.parametrize(("processes", "accumulate", "near"), [(3, 1, "6 or 9"), (2, 3, "6 or 12"), (16, 1, "16")])
def test_a_batch_that_cannot_be_shared(processes, accumulate, near):
    values = tiny.run_config().model_dump()
    values["training"] |= {"batch": 8, "processes_per_node": processes, "accumulate": accumulate}
    with pytest.raises(UserError, match=f"batch: cannot split 8 images .*; use {near}"):
        validate(RunConfig, values, "x")


def command(digits, config, run, *more):
    return ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run, *more]


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC"))}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def torchrun(*arguments):
    return subprocess.Popen(
        [*tiny.TORCHRUN, *map(str, arguments)], cwd=tiny.ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )


def srun(*arguments, job="7", program=("-m", "udpm")):
    """Two tasks with the variables that srun gives them."""
    tasks = []
    for rank in range(2):
        given = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        tasks.append(
            subprocess.Popen(
                [sys.executable, *map(str, program), *map(str, arguments)],
                cwd=tiny.ROOT,
                env=environment(SLURM_STEP_NUM_TASKS="2", **given),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return tasks


def ended(process, seconds=550):
    _, output = process.communicate(timeout=seconds)
    return process.returncode, output


def closeness(run, other):
    """The largest difference of two runs' weights, relative to the largest weight of each tensor."""
    found, expected = tiny.weights(run), tiny.weights(other)
    scales = {key: expected[key].abs().max().clamp(min=1e-3) for key in expected}
    return max(((found[key] - expected[key]).abs().max() / scales[key]).item() for key in expected)


@pytest.fixture(scope="module")
def shared(digits, tmp_path_factory):
    """A run of 20 iterations by two processes, started by torchrun."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny.write_config(folder, training__iterations=20, training__processes_per_node=2, training__warmup=0)
    code, output = ended(torchrun(*command(digits, config, folder / "run")))
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_two_processes_are_one_that_accumulates(digits, shared, tmp_path):
    config = tiny.write_config(tmp_path, training__iterations=20, training__accumulate=2, training__warmup=0)
    tiny.udpm(*command(digits, config, tmp_path / "run"))
    assert closeness(tmp_path / "run", shared / "run") < 1e-5
    for ours, theirs in zip(tiny.metrics(tmp_path / "run"), tiny.metrics(shared / "run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["host", "counter"])
def test_two_processes_with_every_option_of_the_adversary(digits, tmp_path, noise):
    """Each has its own part of the batch's transforms and noise."""
    changes = tiny.ALIVE | {"training__iterations": 8, "training__warmup": 0, "training__noise": noise}
    for name, parts in (("two", {"training__processes_per_node": 2}), ("one", {"training__accumulate": 2})):
        (tmp_path / name).mkdir()
        config = tiny.write_config(tmp_path / name, **changes, **parts)
        arguments = command(digits, config, tmp_path / name / "run")
        code, output = ended(torchrun(*arguments)) if name == "two" else (tiny.udpm(*arguments).returncode, "")
        assert code == 0, output
    assert closeness(tmp_path / "one/run", tmp_path / "two/run") < 1e-5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_drop_what_one_that_accumulates_drops(levels, monkeypatch, accumulate):
    monkeypatch.setattr("udpm.training.trainer.all_reduce_mean", lambda gradients, ranks: None)

    def seeds(ranks, **parts):
        trainer = Trainer(tiny.run_config(generator__dropout=0.3, **parts), levels, torch.device("cpu"), ranks)
        found = []
        trainer.state.generator.register_forward_pre_hook(lambda *_: found.append(torch.initial_seed()))
        trainer.train_step("generator", 0)
        return found

    given = {"training__processes_per_node": 2, "training__accumulate": accumulate}
    two = [seed for rank in range(2) for seed in seeds(RankInfo(rank, 2, rank), **given)]
    assert two == seeds(RankInfo(), training__accumulate=2 * accumulate)
    assert len(set(two)) == 2 * accumulate


def test_a_bit_in_weights_or_averages_shows(levels):
    config = tiny.run_config(training__posthoc_average=True)
    first, second = (State.fresh(config, torch.device("cpu")) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    for network in (second.generator, second.discriminator, *(each.module for each in second.averages.values())):
        weight = next(network.parameters()).data.view(-1)
        kept = weight[0].clone()
        weight[0] = torch.nextafter(kept, torch.tensor(9.0))
        assert first.fingerprint() != second.fingerprint()
        weight[0] = kept
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.slow
def test_processes_that_drift_apart_stop(digits, tmp_path):
    """One process whose arithmetic is off: neither saves what came of it."""
    config = tiny.write_config(tmp_path, training__iterations=20, training__processes_per_node=2, training__warmup=0)
    script = tmp_path / "off.py"
    script.write_text(
        "import os, sys\n"
        "from udpm.training.state import State\n"
        "plain = State.update_ema\n"
        "def update_ema(state):\n"
        "    plain(state)\n"
        "    if os.environ['SLURM_PROCID'] == '1':\n"
        "        next(state.ema_models['ema'].module.parameters()).data.add_(1e-3)\n"
        "State.update_ema = update_ema\n"
        "from udpm.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    tasks = srun(*command(digits, config, tmp_path / "run"), job="11", program=[script])
    output = [ended(task) for task in tasks]
    assert [code for code, _ in output] == [2, 2]
    assert "the processes' weights differ after iteration 4" in output[0][1]
    assert not checkpoints(tmp_path / "run/checkpoints")


@pytest.mark.slow
def test_srun_and_torchrun_start_the_same_training(digits, shared):
    tasks = srun(*command(digits, shared / "run.json", shared / "srun"))
    for task in tasks:
        code, output = ended(task)
        assert code == 0, output
    tiny.assert_same_weights(shared / "srun", shared / "run")
    assert json.loads((shared / "srun/complete.json").read_text())["processes"] == [
        {"from_iteration": 0, "processes": 2}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.soak), signal.SIGTERM])
def test_two_processes_resume_exactly(digits, shared, tmp_path, number):
    run = tmp_path / "run"
    held = tiny.Held.before_iteration(tmp_path, 6)
    tasks = srun(*command(digits, shared / "run.json", run), job="8", program=held.program)
    held.wait(*tasks)
    for task in tasks:
        task.send_signal(number)
    held.release()
    codes = [ended(task)[0] for task in tasks]
    assert codes in ([75, 75], [-number, -number])
    for task in srun(*command(digits, shared / "run.json", run), job="9"):
        code, output = ended(task)
        assert code == 0, output
    tiny.assert_same_weights(run, shared / "run")


@pytest.mark.slow
def test_another_number_of_processes_is_refused_or_noted(digits, shared, tmp_path):
    config = tiny.write_config(tmp_path, training__iterations=20, training__accumulate=2, training__warmup=0)
    run = tmp_path / "run"
    done = tiny.udpm(*command(digits, shared / "run.json", run, "--max-minutes", 0), check=False)
    assert done.returncode == 2
    assert "torchrun --standalone" in done.stderr
    tasks = srun(*command(digits, shared / "run.json", run, "--max-minutes", 0), job="10")
    assert [ended(task)[0] for task in tasks] == [75, 75]
    done = tiny.udpm(*command(digits, config, run), check=False)
    assert done.returncode == 2
    assert "training.processes_per_node was 2, is 1" in done.stderr
    assert "--allow-world-size-change" in done.stderr
    tiny.udpm(*command(digits, config, run, "--allow-world-size-change"))
    record = json.loads((run / "complete.json").read_text())
    assert record["processes"] == [{"from_iteration": 0, "processes": 2}, {"from_iteration": 1, "processes": 1}]
    assert closeness(run, shared / "run") < 1e-4
