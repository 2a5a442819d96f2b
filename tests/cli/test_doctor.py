"""`udpm doctor` says in bounded time what a machine lacks, and its advice works."""

import io
import json
import os
import re
import shlex
import sys
import tempfile
from functools import partial
from types import SimpleNamespace

import click
import pytest
import tiny
import torch

from udpm.cli import doctor, software, udpm
from udpm.core import devices
from udpm.core.commands import Answer
from udpm.core.errors import UserError
from udpm.core.files import PublishedFile

CPU = {"torch": "2.13.0+cpu", "cuda": None, "hip": None, "driver": None, "nccl": None}
CPU |= {"trouble": "Torch not compiled with CUDA enabled", "gpus": [], "hub": "/nowhere/hub"}
H100 = {"name": "NVIDIA H100", "memory": 80e9, "free": 79e9}
CUDA = CPU | {"torch": "2.13.0+cu130", "cuda": "13.0", "driver": 13000, "nccl": "2.27.3", "trouble": None}
PUBLISHED = PublishedFile("some.pt", "https://example.org/some.pt", "9" * 64)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without GPU, SLURM and variables, whose PyTorch need not be asked; the current folder is empty."""
    for name in [name for name in os.environ if name.startswith("UDPM_")]:
        monkeypatch.delenv(name)
    found = SimpleNamespace(torch=CPU)
    monkeypatch.setattr(software, "survey", lambda: found.torch)
    monkeypatch.setattr("udpm.core.gpus.visible", lambda: [])
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return found


def states(capsys, *arguments):
    """Call the command and return its exit code, its findings by check, and what it wrote to stderr."""
    code = tiny.call("doctor", "--json", *arguments)
    shown = capsys.readouterr()
    return code, {entry["check"]: entry for entry in json.loads(shown.out)}, shown.err


def test_the_whole_command_on_this_machine(tmp_path, monkeypatch):
    """PyTorch is asked in another process; nothing is left behind."""
    before = tiny.snapshot(tmp_path)
    process = tiny.start("doctor", "--results", tmp_path / "results", "--json")
    out, err = process.communicate()
    found = {entry["check"]: entry for entry in json.loads(out)}
    assert found["PyTorch"]["state"] == "ok"
    assert found["PyTorch"]["found"].startswith(torch.__version__)
    assert found["GPUs"]["state"] == "not here"
    assert (" checks, " in err) == (process.returncode == 2)
    assert process.returncode == (2 if "wrong" in {entry["state"] for entry in found.values()} else 0)
    assert tiny.snapshot(tmp_path) == before


def test_a_machine_that_has_nothing_optional_is_not_wrong(capsys, tmp_path):
    before = tiny.snapshot(tmp_path)
    code, found, err = states(capsys)
    assert {entry["state"] for entry in found.values()} <= {"ok", "warning", "not here"}
    assert (code, err) == (0, "")
    assert found["SLURM"]["state"] == found["weights inception"]["state"] == found["GPUs"]["state"] == "not here"
    assert tiny.snapshot(tmp_path) == before


INSTALLED = """\
Metadata-Version: 2.4
Name: udpm
Version: 0.1.0
Requires-Python: >=3.11
Requires-Dist: click>=8.1
Provides-Extra: scoring
Requires-Dist: scipy<99,>=1; extra == "scoring"
Provides-Extra: features
Requires-Dist: udpm[scoring]; extra == "features"
Requires-Dist: no-such-thing==0.1.0; extra == 'features'
Provides-Extra: all
Requires-Dist: udpm[features,scoring]; extra == "all"
"""
"""What pip writes."""


def test_outside_a_checkout_the_installation_is_read(monkeypatch, capsys, tmp_path):
    (tmp_path / "udpm-0.1.0.dist-info").mkdir()
    (tmp_path / "udpm-0.1.0.dist-info/METADATA").write_text(INSTALLED)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(software, "ROOT", tmp_path)
    extras = {"scoring": ["scipy<99,>=1"], "features": ["scipy<99,>=1", "no-such-thing==0.1.0"]}
    assert software.requirements() == software.Requirements(">=3.11", ["click>=8.1"], extras)
    code, found, _ = states(capsys)
    assert (code, found["tested versions"]["state"]) == (0, "not here")
    assert found["extras"]["advice"] == "pip install 'udpm[features]'"


def test_without_an_installation_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    assert doctor.run(software.check_extras).found == "udpm is not installed, and this is no checkout of it"


def test_the_table_has_a_line_for_each_check(capsys):
    assert tiny.call("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "state", "found;", "what", "to", "do"]
    assert len(lines) == len(doctor.checks(tiny.ROOT)) + 1
    assert all(re.search(r" (ok|warning|wrong|not here) +\S", line) for line in lines[1:])


def test_wrong_checks_are_counted_and_named(monkeypatch, capsys):
    def fail():
        raise UserError("one.yaml: is wrong")

    def crash():
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(software, "check_nccl", fail)
    monkeypatch.setattr(doctor, "check_slurm", crash)
    code, found, err = states(capsys)
    assert code == 2
    assert err == f"error: {len(found)} checks, 2 wrong: NCCL, SLURM\n"
    assert found["NCCL"]["found"] == "one.yaml: is wrong"
    assert found["SLURM"]["found"] == "the check failed: ZeroDivisionError: division"


def test_every_check_may_crash(monkeypatch):
    """Whatever a check calls fails."""
    for place in ("shutil.which", "pathlib.Path.exists", "tempfile.gettempdir", "platform.python_version"):
        monkeypatch.setattr(place, lambda *args: 1 / 0)
    monkeypatch.setattr(software, "survey", lambda: 1 / 0)
    monkeypatch.setattr(software, "requirements", lambda: 1 / 0)
    found = {name: doctor.run(check) for name, check in doctor.checks(tiny.ROOT).items()}
    wrong = {name for name, one in found.items() if one.state == "wrong"}
    assert set(found) - wrong == {"terminal", "variables"}
    assert all("division by zero" in found[name].found for name in wrong)


# --- Python and packages ---------------------------------------------------------------------------------------------


def needs(**changes):
    return lambda: software.Requirements(**{"python": ">=3.11", "packages": [], "extras": {}} | changes)


def test_another_python_is_wrong(monkeypatch):
    monkeypatch.setattr(software, "requirements", needs(python=">=3.99"))
    assert software.check_python().state == "wrong"
    assert software.check_python().advice == "udpm needs >=3.99"


def test_missing_and_old_packages(monkeypatch):
    monkeypatch.setattr(software, "requirements", needs(packages=["numpy>=99", "no-such-thing>=1", "click"]))
    found = software.check_packages()
    assert found.state == "wrong"
    assert re.fullmatch(r"numpy [\d.]+ is not >=99, no-such-thing is missing", found.found)


def test_missing_extras_come_with_a_command_that_names_them(monkeypatch):
    given = {"lpips": ["no-such-thing>=1"], "digits": ["numpy"], "workflow": ["neither"]}
    monkeypatch.setattr(software, "requirements", needs(extras=given))
    found = software.check_extras()
    assert found.state == "not here"
    assert found.found == "lpips: no-such-thing is missing; workflow: neither is missing"
    assert shlex.split(found.advice)[-1] == ".[lpips,workflow]"
    given["digits"] = ["numpy<1"]
    assert software.check_extras().state == "warning"


def test_the_pip_commands_name_extras_and_files_that_exist():
    extras = software.requirements().extras
    assert {"digits", "lpips", "scoring", "features", "reporting", "workflow"} <= set(extras)
    assert "clean-fid>=0.1.35" in extras["features"], "extras of extras are included"
    words = shlex.split(software.pip_command(*extras))
    assert (tiny.ROOT / words[words.index("-c") + 1]).is_file()
    known = set(re.findall(r"^(\w+) = \[", (tiny.ROOT / "pyproject.toml").read_text(), re.M))
    assert set(re.fullmatch(r"\.\[(.*)\]", words[-1])[1].split(",")) <= known
    assert "all" in known


def test_only_versions_that_differ_from_the_tested_ones_are_listed(monkeypatch):
    monkeypatch.setattr(software, "requirements", needs(packages=["click>=8", "torch>=2.9", "numpy"]))
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)", (tiny.ROOT / "envs/constraints.txt").read_text(), re.M))
    versions = {"click": "8.0.0", "torch": f"{tested['torch']}+cu130", "numpy": tested["numpy"]}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    found = software.check_versions()
    assert (found.state, found.found) == ("warning", f"click 8.0.0 (tested: {tested['click']})")
    versions["click"] = tested["click"]
    assert software.check_versions().found == "3 packages as in envs/constraints.txt"


# --- PyTorch and GPUs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ImportError('libcudart.so.12: cannot open\\nshared object')", "ImportError: libcudart.so.12: cannot"),
        ("import os; os.kill(os.getpid(), 11)", "code -11"),
        ("import time; time.sleep(60)", "did not answer in 0.2 s"),
        ("import sys; sys.exit(0)", "nothing was printed"),
    ],
)
def test_a_broken_pytorch_is_one_wrong_line(monkeypatch, capsys, tmp_path, program, reason):
    """Whether it raises, crashes, hangs or says nothing; the checks that need it say so."""
    monkeypatch.undo()
    (tmp_path / "broken.py").write_text(f"open({str(tmp_path / 'asked')!r}, 'a').write('once ')\n{program}")
    monkeypatch.setattr(
        software, "SURVEY", software.SURVEY.replace("from udpm.core.devices import survey", "import broken")
    )
    monkeypatch.setattr(software, "SECONDS", 0.2 if "sleep" in program else 60)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    software._answer.cache_clear()
    try:
        _, found, _ = states(capsys)
    finally:
        software._answer.cache_clear()
    assert found["PyTorch"]["state"] == "wrong"
    assert "sleep" in program or (tmp_path / "asked").read_text() == "once "
    assert reason in found["PyTorch"]["found"]
    for name in ("CUDA", "GPUs", "NCCL", "weights vgg"):
        assert (found[name]["state"], found[name]["found"]) == ("not here", "needs PyTorch")


def gpu_findings(machine, monkeypatch, answer, names=(), users=0):
    machine.torch = answer
    monkeypatch.setattr("udpm.core.gpus.visible", lambda: list(names))
    monkeypatch.setattr("udpm.core.gpus.users_of", lambda name: users)
    return software.check_cuda(), software.check_gpus(), software.check_nccl()


def test_gpus_in_order(machine, monkeypatch):
    cuda, gpus, nccl = gpu_findings(machine, monkeypatch, CUDA | {"gpus": [H100, H100]}, ["0", "1"], users=2)
    assert (cuda.state, gpus.state, nccl.state) == ("ok", "ok", "ok")
    assert cuda.found == "PyTorch has 13.0, the driver takes up to 13.0"
    assert gpus.found.startswith("0: NVIDIA H100, 79.0 of 80.0 GB free, used by 2 processes of udpm; 1: ")


@pytest.mark.parametrize("free", [1e9, None])
def test_a_gpu_that_is_in_use(machine, monkeypatch, free):
    found = gpu_findings(machine, monkeypatch, CUDA | {"gpus": [H100 | {"free": free}]}, ["0"])[1]
    assert found.state == "warning"
    assert "CUDA_VISIBLE_DEVICES" in found.advice


def test_a_driver_that_is_too_old(machine, monkeypatch):
    answer = CUDA | {"driver": 12080, "trouble": "The NVIDIA driver on your system is too old"}
    cuda, gpus, _ = gpu_findings(machine, monkeypatch, answer, ["0"])
    assert (cuda.state, gpus.state) == ("wrong", "wrong")
    assert cuda.found == "PyTorch has 13.0, the driver takes up to 12.8"
    assert gpus.found == "1 expected, but: The NVIDIA driver on your system is too old"
    # Of the same major version, it runs the build.
    assert gpu_findings(machine, monkeypatch, CUDA | {"cuda": "12.9", "driver": 12080})[0].state == "ok"


def test_gpus_that_are_hidden(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpu_findings(machine, monkeypatch, CUDA)[1]
    assert (found.state, found.advice) == ("not here", "unset CUDA_VISIBLE_DEVICES to use GPUs")


def test_what_pytorch_says_of_two_gpus_of_which_one_takes_no_process(monkeypatch):
    def free(index):
        if index:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")
        return 79, 80

    fake = {
        "init": lambda: None,
        "device_count": lambda: 2,
        "get_device_properties": lambda index: SimpleNamespace(name="NVIDIA H100", total_memory=80),
        "mem_get_info": free,
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    found = devices.survey()
    assert [gpu["free"] for gpu in found["gpus"]] == [79, None]
    assert (found["trouble"], found["nccl"]) == (None, "2.27.3")
    assert json.loads(json.dumps(found)) == found


def test_why_pytorch_sees_no_gpu(monkeypatch):
    def fail():
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "init", fail)
    found = devices.survey()
    assert (found["gpus"], found["trouble"]) == ([], "Found no NVIDIA driver on your system.")


@pytest.mark.gpu
def test_the_gpus_of_this_machine():
    found = devices.survey()
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["trouble"] is None
    assert found["driver"] >= 10_000
    assert all(0 < gpu["free"] <= gpu["memory"] for gpu in found["gpus"])


def test_several_gpus_without_nccl(machine, monkeypatch):
    answer = CUDA | {"gpus": [H100, H100], "nccl": None}
    assert gpu_findings(machine, monkeypatch, answer, ["0", "1"])[2].state == "warning"


# --- SLURM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A SLURM with two partitions and one account; a function that writes config/cluster.yaml."""
    answers = {"sinfo": Answer(("cpu", "gpu", "gpu")), "sacctmgr": Answer(("lab",)), "sacct": Answer()}

    def ask(command, seconds):
        assert seconds <= 10
        return answers[command[0]]

    def configured(text):
        (tmp_path / "config").mkdir(exist_ok=True)
        (tmp_path / "config/cluster.yaml").write_text(text)
        return doctor.run(doctor.check_cluster)

    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(doctor, "ask", ask)
    return SimpleNamespace(answers=answers, configured=configured)


def test_a_slurm_that_answers(slurm):
    assert doctor.check_slurm() == software.Finding("ok", "partitions: cpu, gpu")
    found = doctor.check_cluster()
    assert found == software.Finding("ok", "no account or partition is set; what is not set is the scheduler's choice")
    assert slurm.configured("{account: Lab, partition: gpu}").found == "account: Lab, partition: gpu"


@pytest.mark.parametrize(
    ("text", "found", "advice"),
    [
        ("partition: big", "config/cluster.yaml: partition: big not found", "set one of: cpu, gpu"),
        ("account: other", "config/cluster.yaml: account: other not found", "set one of: lab"),
        ("max_hours: never", "config/cluster.yaml: max_hours: input should be a valid number", ""),
    ],
)
def test_a_cluster_file_that_does_not_fit(slurm, text, found, advice):
    result = slurm.configured(text)
    assert result.state == "wrong"
    assert result.found.startswith(found)
    assert result.advice == advice


def test_the_variable_is_named_that_overrides_the_file(slurm, monkeypatch):
    monkeypatch.setenv("UDPM_PARTITION", "big")
    assert slurm.configured("partition: gpu").found == "environment variable UDPM_PARTITION: partition: big not found"


def test_a_slurm_that_does_not_answer_or_is_incomplete(slurm, monkeypatch):
    slurm.answers["sacct"] = Answer(trouble="sacct: accounting storage is disabled")
    found = doctor.check_slurm()
    assert (found.state, "slurm-status-command: squeue" in found.advice) == ("warning", True)
    assert "slurm-status-command: squeue" in (tiny.ROOT / "slurm/config.yaml").read_text()
    slurm.answers["sinfo"] = Answer(trouble="sinfo did not answer in 10 s")
    assert doctor.check_slurm().found == "sinfo did not answer in 10 s"
    assert slurm.configured("partition: anything").state == "ok"
    monkeypatch.setattr("shutil.which", lambda name: None if name == "sbatch" else name)
    assert (doctor.check_slurm().state, doctor.check_slurm().found) == ("wrong", "sbatch not in PATH")


# --- files and folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def some(monkeypatch, tmp_path):
    """A published file that `udpm fetch inception` and the checks take, in this folder."""
    monkeypatch.setitem(doctor.FILES, "inception", PUBLISHED)
    return tmp_path / PUBLISHED.name


def test_a_file_that_is_missing_damaged_or_large(some, monkeypatch):
    def look():
        return doctor.run(partial(doctor.check_file, "inception", some.parent))

    assert (look().state, look().advice.split(" downloads")[0]) == ("not here", "`udpm fetch inception`")
    some.write_bytes(b"x")
    assert look().state == "wrong"
    assert "expected" in look().found
    assert "remove it, and put" in look().found
    monkeypatch.setattr(doctor, "HASHED_BYTES", 0)
    assert look().state == "warning"
    some.unlink()
    some.symlink_to("/dev/zero")
    monkeypatch.setattr(doctor, "HASHED_BYTES", 1)
    assert doctor.run(look).state == "wrong"


def test_the_commands_that_it_advises_exist(some, machine, capsys, monkeypatch):
    """Each runs as far as it can without network: to the file that it does not find."""
    _, found, _ = states(capsys)
    advised = [command for one in found.values() for command in re.findall(r"`(udpm [^`]*)`", one["advice"])]
    assert len(advised) == 5
    some.write_bytes(b"x")
    monkeypatch.setattr(doctor, "HASHED_BYTES", 0)
    advised += re.findall(r"`(udpm [^`]*)`", doctor.check_file("inception", some.parent).advice)
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    for command in advised:
        words = shlex.split(command)[1:]
        assert udpm.get_command(click.Context(udpm), words[0])
        assert tiny.call(*dict.fromkeys([*words, "--offline"])) == 2
        assert "not found, and downloads are switched off" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    def refuse(path, flags, mode=0o777, **options):
        if flags & os.O_CREAT and "udpm" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, mode, **options)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    found = doctor.check_folder(tmp_path / "no/results", "name another folder")
    assert (found.state, found.advice) == ("wrong", "name another folder")
    assert found.found == f"{tmp_path}/no/results: cannot be written: Permission denied"
    code, _, err = states(capsys)
    assert code == 2
    assert err.endswith("checks, 2 wrong: results, temporary files\n")


@pytest.mark.parametrize(("free", "state"), [(1e12, "ok"), (1e9, "warning"), (1e6, "wrong")])
def test_little_space(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    assert doctor.check_folder(tmp_path, "name another folder").state == state
    assert list(tmp_path.iterdir()) == []


def test_no_folder_for_temporary_files(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    found = doctor.run(doctor.checks(tiny.ROOT)["temporary files"])
    assert found.state == "wrong"
    assert "No usable temporary directory" in found.found


def test_a_terminal_without_unicode_still_gets_the_table(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    assert doctor.check_terminal().state == "warning"
    assert tiny.call("doctor", "--results", "größe-α") == 0
    assert "größe-?: ".encode("latin-1") in raw.getvalue()
    assert b"output is encoded as latin-1" in raw.getvalue()


def test_variables_and_what_they_do(monkeypatch):
    assert doctor.check_variables().state == "ok"
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    monkeypatch.setenv("UDPM_MAX_HOURS", "4")
    found = doctor.check_variables()
    assert found.state == "ok"
    assert found.found == "UDPM_MAX_HOURS=4: max_hours of config/cluster.yaml; UDPM_OFFLINE=1: nothing is downloaded"
    monkeypatch.setenv("UDPM_OFLINE", "1")
    assert (doctor.check_variables().state, doctor.check_variables().advice) == (
        "warning",
        "did you mean UDPM_OFFLINE?",
    )
    monkeypatch.setenv("UDPM_GPUS", "mine")
    assert doctor.run(doctor.check_variables).found.startswith("environment variable UDPM_GPUS: must be exclusive or")


def test_the_manual_has_every_variable():
    from udpm.config.study import ClusterConfig

    manual = (tiny.ROOT / "docs/commands.md").read_text()
    public = [*doctor.VARIABLES, *(f"UDPM_{key.upper()}" for key in ClusterConfig.model_fields)]
    assert {name for name in public if f"`{name}" not in manual} == {"UDPM_SERIES"}


def test_checks_run_at_the_same_time(monkeypatch, capsys):
    """One that waits does not keep the others from ending."""
    from threading import Barrier

    together = Barrier(2, timeout=60)
    for name in ("check_slurm", "check_cluster"):
        monkeypatch.setattr(doctor, name, lambda: software.Finding("ok", str(together.wait() in (0, 1))))
    _, found, _ = states(capsys)
    assert found["SLURM"]["found"] == found["cluster.yaml"]["found"] == "True"
