"""benchmarks/gpu on a CPU: its checks run, and they find the faults that they are for."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from functools import cache
from importlib import metadata
from types import SimpleNamespace

import pytest
import tiny
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks, machine, numbers, processes, profiling, sampling, scoring, speed, training
from benchmarks.gpu.checks import GPU, TWO_GPUS, Check, Session, run_checks
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.report import Report
from udpm.core import devices
from udpm.networks.inference import prepare_for_inference
from udpm.training import state, trainer

EVERYTHING = [check for part in PARTS.values() for check in part]


@pytest.fixture
def session(tmp_path):
    return Session("cpu", tmp_path, Report(tmp_path / "gpu.json", {"name": "cpu"}), time.monotonic() + 1000)


LONG = {
    profiling._iteration: pytest.mark.slow,
    profiling._drawing: pytest.mark.slow,
    speed._sampling: pytest.mark.slow,
    speed._training: pytest.mark.slow,
    speed._bench: pytest.mark.soak,
    # Compiling takes minutes.
    speed._compiled: pytest.mark.soak,
    processes._together: pytest.mark.soak,
}


def one_of_each():
    """The first check that each function does."""
    found = {}
    for check in EVERYTHING:
        found.setdefault(getattr(check.run, "func", check.run), check)
    return [
        pytest.param(check, marks=LONG.get(run, ()), id=f"{check.part}: {check.name}") for run, check in found.items()
    ]


def outcomes(session):
    return {row["name"]: (row["outcome"], row["detail"]) for row in session.report.checks}


@pytest.mark.parametrize("check", one_of_each())
def test_a_check_passes(session, check, monkeypatch):
    monkeypatch.setattr("udpm.bench.measure.LONG_ENOUGH", 0)
    run_checks([check], session)
    wanted = "skipped" if {GPU, TWO_GPUS} & set(check.needs) else "passed"
    assert outcomes(session)[check.name][0] == wanted, session.report.checks


def test_the_program(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    assert program.main(["--output", str(output), "--device", "cpu", "--only", "scoring", "machine"]) == 0
    record = json.loads(output.read_text())
    assert record.keys() == {"format", "device", "versions", "commit", "machine", "checks", "timings", "profile"}
    assert [row["part"] for row in record["checks"]] == [*["machine"] * 3, *["scoring"] * 3]
    text = capsys.readouterr().out
    # Each as soon as it is known, then the table.
    assert text.count("density and coverage equal the CPU's") == 2
    assert re.search(r"\n5 passed, 0 failed, 1 skipped; \d+ s\n$", text)


def test_the_runs_of_a_gpu_are_valid(tmp_path):
    """On a CPU the checks train other ones."""
    session, seen = Session("cpu", tmp_path, Report(None, {}), time.monotonic(), full=True), 0
    for check in EVERYTHING:
        given = getattr(check.run, "keywords", {})
        changes = {key: value for key, value in given.items() if "__" in key}
        if changes:
            session.small_run(**changes)
            speed.measured_run(session, **changes)
            seen += 1
    assert seen > 10
    config, lacks = speed.measured_run(session)
    assert (config.training.batch, config.generator.channels, lacks) == (64, 128, "")
    assert config.losses.lpips_network == "vgg-random"


def test_names_differ():
    assert len({check.name for check in EVERYTHING}) == len(EVERYTHING)
    assert all(check.part == part for part, listed in PARTS.items() for check in listed)


def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert program.main(["--output", str(tmp_path / "gpu.json")]) == 2
    text = capsys.readouterr()
    assert [line.split()[2] for line in text.out.splitlines()] == list(PARTS)
    assert text.err == (
        "error: PyTorch sees no CUDA device here: nothing was measured; try the list with --device cpu\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "number"], "--only: number: no such part; there are machine, numbers, training"),
        (["--device", "cpu", "--output", "/proc/gpu.json"], "/proc/gpu.json: cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, expected):
    assert program.main(["--output", str(tmp_path / "gpu.json"), *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: {expected}")
    assert len(text.splitlines()) == 1


# --- running a list --------------------------------------------------------------------------------------------------


def check_of(outcome, needs=()):
    def run(session):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Check("part", f"{outcome!r} {needs}", run, needs)


def test_what_fails_stops_nothing_else(session, capsys):
    listed = [
        check_of(ValueError("first\nsecond")),
        check_of("found"),
        check_of(checks.Skipped("not here")),
        check_of("x", ("no_such_package",)),
        check_of("y", (GPU,)),
    ]
    run_checks(listed, session)
    record = json.loads((session.folder / "gpu.json").read_text())
    found = [(row["outcome"], row["detail"]) for row in record["checks"]]
    assert found == [
        ("failed", "ValueError: first"),
        ("passed", "found"),
        ("skipped", "not here"),
        ("skipped", "needs no_such_package"),
        ("skipped", "needs a GPU"),
    ]
    assert "second" in record["checks"][0]["traceback"]
    assert session.report.failed
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert "\n1 passed, 1 failed, 3 skipped; " in session.report.table()


def test_no_check_begins_after_its_time(session):
    session.ends = time.monotonic()
    run_checks([check_of("found")], session)
    assert outcomes(session) == {"'found' ()": ("skipped", "out of time")}


def test_a_gpu_that_failed_is_asked_nothing_more(session, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(session, "clean_up", lost)
    run_checks([check_of("found"), check_of("more")], session)
    assert outcomes(session)["'more' ()"] == ("skipped", "the GPU failed in: 'found' ()")


def test_what_is_known_is_in_the_file_when_the_rest_is_killed(tmp_path):
    report = Report(tmp_path / "gpu.json", {"name": "x"})
    report.timings.append({"rate": float("nan"), "spread": (1.0, float("inf"))})
    report.add("part", "name", "passed", "found", 1.234)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["format"] == "udpm-gpu/1"
    assert record["timings"] == [{"rate": "nan", "spread": [1.0, "inf"]}]
    assert record["checks"] == [
        {"part": "part", "name": "name", "outcome": "passed", "detail": "found", "seconds": 1.23}
    ]


# --- what the checks are to find -------------------------------------------------------------------------------------


def failed(session, listed, words):
    """The only check of these whose name has all the words fails."""
    (check,) = [check for check in listed if all(word in check.name for word in words)]
    run_checks([check], session)
    outcome, detail = outcomes(session)[check.name]
    assert outcome == "failed", detail
    return detail


def test_moments_in_another_layout_are_found(session, monkeypatch):
    monkeypatch.setattr(state, "_like", lambda parameter, value: value.clone())
    assert "of what changed" in failed(session, training.CHECKS, ["float32", "channels last", "resumed"])


def test_other_numbers_are_found(session, monkeypatch):
    def rounded(network, precision):
        exact = prepare_for_inference(network, precision)
        return lambda *inputs: exact(*inputs) * (1 + 1e-3)

    monkeypatch.setattr(numbers, "prepare_for_inference", rounded)
    assert "differ by 1.0e-03" in failed(session, numbers.CHECKS, ["ncsnpp", "float32"])


def test_other_losses_are_found(session, monkeypatch):
    plain, seen = training.Losses.add, []

    def add(losses, player, level, values):
        seen.append(player)
        plain(losses, player, level, {name: value * (1 + 0.05 * (len(seen) == 3)) for name, value in values.items()})

    monkeypatch.setattr(training.Losses, "add", add)
    assert "l=1 discriminator/" in failed(session, training.CHECKS, ["first losses", "float32"])


def test_recorded_passes_of_old_weights_are_found(session, monkeypatch):
    def stale(call, pool):
        outputs = call()
        return lambda: None, outputs

    monkeypatch.setattr(trainer, "recorder_for", lambda config, device: stale if config.training.cuda_graphs else None)
    monkeypatch.setattr(training, "RECORDED", {False: 6})
    assert "of what changed" in failed(session, training.CHECKS, ["recorded passes", "float32"])


def test_a_recording_of_old_inputs_is_found(session, monkeypatch):
    def stale(call):
        output = call()
        return lambda: None, output

    monkeypatch.setattr(sampling, "_rerun", stale)
    assert "of the bytes of level" in failed(session, sampling.CHECKS, ["recorded", "draw", "float32, guidance"])


def test_other_precision_and_recall_are_found(session, monkeypatch):
    monkeypatch.setattr(scoring, "prdc", lambda *rest: (0.5, 0.5 + (rest[3] == "cpu")))
    failed(session, scoring.CHECKS, ["precision"])


def test_switches_that_do_nothing_are_found(session, monkeypatch):
    session.on_gpu = True
    monkeypatch.setattr(session, "set_up", lambda tf32=False: torch.device("cpu"))
    monkeypatch.setattr(session, "clean_up", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    failed(session, machine.CHECKS, ["TF32 and cuDNN"])


# --- what only a GPU comes to ----------------------------------------------------------------------------------------


@pytest.fixture
def simulated(session, monkeypatch):
    """A session that takes the CPU for a GPU, and what it asked of CUDA, in order."""
    asked = []

    def stub(name, result=None):
        monkeypatch.setattr(torch.cuda, name, lambda *values: asked.append((name, *values)) or result)

    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"):
        stub(name)
    stub("set_per_process_memory_fraction")
    stub("device_count", 1)
    stub("max_memory_allocated", 1 << 30)
    properties = SimpleNamespace(name="GPU", total_memory=1 << 36, major=9, minor=0, multi_processor_count=132)
    stub("get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "nccl", SimpleNamespace(version=lambda: (2, 28, 9)))
    monkeypatch.setattr(devices, "configure", lambda *_, **__: torch.device("cpu"))
    session.on_gpu = True
    session.asked = asked
    return session


def test_the_machine_is_described(simulated):
    simulated.report.device = machine.describe_machine("cuda")
    run_checks(machine.CHECKS[:1], simulated)
    assert "name GPU" in simulated.report.checks[0]["detail"]
    assert {"capability", "cuda", "cudnn", "nccl", "memory_bytes"} <= simulated.report.device.keys()
    json.dumps(simulated.report.record())


def test_waiting_is_an_error_within_iterations_only(simulated):
    def waits(run, losses=None):
        modes.append([rest[0] for name, *rest in simulated.asked if name == "set_sync_debug_mode"][-1:])
        iterate(run, losses)

    modes, iterate = [], trainer.Trainer.iterate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "WARM_AND_WATCHED", {False: (1, 1)})
        patch.setattr(trainer.Trainer, "iterate", waits)
        run_checks([check for check in training.CHECKS if check.name.endswith("R1, workers 0")], simulated)
    assert simulated.report.checks[0]["outcome"] == "passed"
    assert modes == [["default"], ["error"]]
    assert [value for name, *value in simulated.asked if name == "set_sync_debug_mode"][-1] == ["default"]


@pytest.mark.parametrize("failure", ["CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 1 GiB free.", None])
def test_memory_that_runs_out_has_to_be_one_line(simulated, monkeypatch, failure):
    def iterate(run, losses=None):
        raise torch.OutOfMemoryError(failure) if failure else ValueError("shapes")

    monkeypatch.setattr(trainer.Trainer, "iterate", iterate)
    before = signal.getsignal(signal.SIGTERM)
    run_checks([check for check in training.CHECKS if "absurd" in check.name], simulated)
    (row,) = simulated.report.checks
    assert row["outcome"] == ("passed" if failure else "failed"), row
    assert row["detail"].startswith("exit code 2, error: out of memory on the GPU" if failure else "ValueError: shapes")
    assert [rest[0] for name, *rest in simulated.asked if name == "set_per_process_memory_fraction"] == [0.05, 1.0]
    assert signal.getsignal(signal.SIGTERM) == before


# --- a trace ---------------------------------------------------------------------------------------------------------


def event(category, name, start, duration):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


def test_a_trace_in_numbers():
    events = [
        event("cpu_op", "aten::conv2d", 0, 10),
        event("cuda_runtime", "cudaLaunchKernel", 2, 1),
        event("cuda_runtime", "cudaLaunchKernelExC", 4, 1),
        event("cuda_runtime", "cudaMemcpyAsync", 5, 1),
        event("cuda_runtime", "cudaStreamSynchronize", 6, 90),
        event("kernel", "gemm", 10, 30),
        # On another stream, at the same time.
        event("kernel", "nchwToNhwcKernel<float>", 20, 30),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 60, 20),
        event("kernel", "gemm", 90, 10),
        event("gpu_user_annotation", "Optimizer.step#Adam.step", 10, 90),
        {"ph": "M", "name": "process_name"},
    ]
    found = profiling.summarize(events, 2)
    assert (found["kernels"], found["launches"], found["operators"]) == (1.5, 1.5, 0.5)
    assert found["gpu_seconds"] == pytest.approx(70e-6 / 2)
    assert found["busy"] == pytest.approx(0.7)
    assert found["layout"] == pytest.approx(30 / 90)
    assert found["host_to_device"] == pytest.approx(20 / 90)
    assert [(each["name"], each["calls"]) for each in found["top"]] == [("gemm", 1), ("nchwToNhwcKernel<float>", 0.5)]
    assert profiling.summarize([], 1)["busy"] == 0


# --- what it needs ---------------------------------------------------------------------------------------------------


BARE = """
import sys
HIDDEN = set({hidden})
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
from benchmarks.gpu.__main__ import main
sys.exit(main(["--output", {output!r}, "--device", "cpu", "--only", "machine"]))
"""


def plain(package):
    return package.lower().replace("_", "-")


@cache
def needed_packages():
    """The project's required packages, those that they require, and so on."""
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = {"udpm"}, list(project["dependencies"])
    while waiting:
        package = plain(re.match(r"[\w.-]+", waiting.pop())[0])
        if package not in found:
            found.add(package)
            with suppress(metadata.PackageNotFoundError):
                waiting += [line for line in metadata.requires(package) or [] if "extra ==" not in line]
    return found


def test_little_has_to_be_installed(tmp_path):
    """Every package of this environment but a few is hidden, as where there is PyTorch and little else."""
    names = metadata.packages_distributions()
    hidden = sorted(name for name, packages in names.items() if not needed_packages() & set(map(plain, packages)))
    assert {"snakemake", "lpips", "cleanfid", "sklearn", "scipy", "torchvision", "pytest"} <= set(hidden)
    script = tmp_path / "bare.py"
    script.write_text(BARE.format(hidden=hidden, output=str(tmp_path / "gpu.json")))
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
