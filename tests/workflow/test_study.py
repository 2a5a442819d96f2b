"""Studies outside of a clone: `udpm init`, shipped configurations by name, and the installed wheel."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tiny
from dag import snakemake
from pictures import noise

import udpm
from udpm.config import list_configs, load_dataset, load_experiment, load_sweep, source_file
from udpm.config.shipped import SHIPPED, shipped_folder
from udpm.core.errors import UserError
from udpm.core.identify import what_is
from udpm.study.template import template


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A new study, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    assert tiny.call("init", "my study") == 0
    monkeypatch.chdir(tmp_path / "my study")
    return tmp_path / "my study"


# --- a new study -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")], ids=["default", "slurm"])
def test_a_new_study_runs_the_workflow(study, profile):
    done = snakemake("-n", *profile, "--config", "experiments=[digits-smoke,pictures]", cwd=study)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(train_model|score_samples|summarize|all) +(\d+)$", done.stdout, re.M))
    assert counts == {"train_model": "2", "score_samples": "2", "summarize": "1", "all": "1"}
    assert "workflow specific profile profiles/default" in done.stderr


def test_sweeps_and_published_tables_are_found(study):
    for target, rule in (("sweep_plan", "plan_sweep"), ("paper_tables", "render_paper_table")):
        done = snakemake("-n", target, "--config", "sweep=schedules-smoke", cwd=study)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"^{rule} +\d+$", done.stdout, re.M)


def test_its_templates_are_valid_and_its_snakefile_is_short(study):
    experiment = load_experiment("pictures")
    assert experiment.losses == load_experiment("photos32").losses
    assert load_dataset(experiment.dataset).source == "folder"
    for path in (study / "config").glob("**/*.yaml"):
        (schema,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", path.read_text(), re.M)
        assert (path.parent / schema).is_file()
    assert len((study / "Snakefile").read_text().splitlines()) <= 10


@pytest.mark.parametrize(
    "words",
    ["resolve digits", "cost digits", "schedule digits", "sweep plan schedules-smoke", "paper table1 --output t",
     "summary digits --output s"],
)  # fmt: skip
def test_commands_take_shipped_names(study, words):
    assert tiny.call(*words.split()) == 0


# --- where names are looked up ---------------------------------------------------------------------------------------


def test_a_file_of_the_study_replaces_the_shipped_one(study):
    assert source_file("digits-smoke") == str(tiny.ROOT / "config/experiments/digits-smoke.yaml")
    own = Path("config/experiments/digits-smoke.yaml")
    own.write_text("extends: digits-paper\nseeds: [7]\n")
    assert source_file("digits-smoke") == str(own)
    assert load_experiment("digits-smoke").seeds == [7]
    Path("config/sweeps").mkdir()
    Path("config/sweeps/mine.yaml").write_text("base: digits-smoke\npoints: {a: {}}\n")
    assert load_sweep("mine").base.seeds == [7]


def test_a_mistyped_name_shows_the_shipped_ones(study):
    with pytest.raises(UserError, match=r"config/experiments/photo32.yaml: no such file; did you mean photos32\?"):
        load_experiment("photo32")


def test_it_is_recognized(study, capsys):
    (study / "results").mkdir()
    noise().save(study / "results/samples.png")
    assert str(what_is(study)) == "a study (snakemake runs it, in this folder)"
    assert tiny.call("info", study) == 0
    assert '"kind": "a study"' in capsys.readouterr().out
    # A clone has its Snakefile in workflow/, and figures of the docs and of results.
    assert what_is(tiny.ROOT) == what_is(study)


def test_lists_of_names_have_the_shipped_ones(study):
    assert {"pictures", "digits", "photos64"} <= set(list_configs("config/experiments"))
    assert list_configs("config/sweeps") == list_configs(tiny.ROOT / "config/sweeps")


def test_in_a_clone_the_shipped_folders_are_the_clones():
    assert shipped_folder() == tiny.ROOT == Path(udpm.__file__).parents[1]
    assert all((tiny.ROOT / name).is_dir() for name in SHIPPED)


# --- refused folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("full", "is not empty (note.txt); choose a new or an empty folder"),
        ("full/note.txt", "is a file"),
        ("full/note.txt/below", "is a file"),
        (".", "is or contains the working directory"),
        ("/proc/study", "cannot be written"),
        (str(tiny.ROOT / "udpm/study/new"), "is inside the installed udpm"),
    ],
)
def test_a_folder_is_refused_in_one_line(tmp_path, monkeypatch, capsys, folder, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    before = tiny.snapshot(tmp_path)
    assert tiny.call("init", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert tiny.snapshot(tmp_path) == before
    assert not Path(tiny.ROOT / "udpm/study/new").exists()


def test_an_empty_folder_is_filled_but_never_a_study_again(study, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert tiny.call("init", tmp_path / "empty") == 0
    assert {str(path.relative_to(study)) for path in study.rglob("*") if path.is_file()} == set(template())
    before = tiny.snapshot(study)
    os.chdir(tmp_path)
    capsys.readouterr()
    assert tiny.call("init", study) == 2
    assert "is not empty" in capsys.readouterr().err
    assert tiny.snapshot(study) == before


# --- the wheel -------------------------------------------------------------------------------------------------------

BUILT = (*SHIPPED, "udpm", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment with the built wheel; packages that udpm needs are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT:
        copy = shutil.copytree if (tiny.ROOT / name).is_dir() else shutil.copy
        copy(tiny.ROOT / name, folder / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=folder)
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.stat().st_size <= 1_000_000
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env/bin/python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth is searched, but its own .pth files, such as that of an editable udpm, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


@pytest.mark.soak
def test_the_wheel_runs_a_study_to_its_report(installed, tmp_path):
    where = run(installed, "-c", "import udpm; print(udpm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    program, study = installed.with_name("udpm"), tmp_path / "flowers"
    run(program, "init", study, cwd=tmp_path)
    (study / "config/config.yaml").write_text("experiments: [digits-smoke]\nresults: results\n")
    run(installed, "-m", "snakemake", cwd=study)
    run(installed, "-m", "snakemake", "--report", "results/report.html", cwd=study)
    for name in ("report.html", "tables/scores.md", "overview.html", "figures/digits-smoke/seed0/samples.png"):
        assert (study / "results" / name).stat().st_size > 0
    assert "Nothing to be done" in run(installed, "-m", "snakemake", "-n", cwd=study)
    run(installed, "-m", "snakemake", "sweep_plan", "--config", "sweep=schedules-smoke", cwd=study)
    for words in ("resolve pictures", "cost digits", "paper table1 --output t", "summary digits-smoke --output s"):
        run(program, *words.split(), cwd=study)
