"""`udpm run`: from a folder of images to samples, in one call that can be interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tiny
from pictures import encoded, noise, zipped
from PIL import Image

from udpm.config import load_dataset, load_experiment, resolve_run
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.work import StopRequest
from udpm.data.prepare import prepare
from udpm.study import budget, pictures, run, workflow
from udpm.study.budget import LEAST, MARGIN, Speed, iterations_in, length_of, seconds_after_training
from udpm.study.pictures import Asked, look_at, name_of

SPEED = Speed(before=0.2, after=0.8, image=0.01, features=0.01, job=2.0)


def photographs(folder, count, side=32, classes=("",)):
    for number in range(count):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        noise(side, seed=number).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 120 images of side 32 without labels."""
    return photographs(tmp_path_factory.mktemp("images") / "garden", 120)


def call(*words, output):
    return tiny.call("run", *words, "--output", output, "--device", "cpu")


# --- minutes and iterations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-5.0, 3.0, 100.0, 799.0, 801.0, 3600.0, 1e6])
def test_a_training_fills_its_time(seconds):
    count = iterations_in(seconds, SPEED)
    start = length_of(count, SPEED.after).adversarial_start

    def taken(count, start):
        return MARGIN * (start * SPEED.before + (count - start) * SPEED.after)

    assert count == LEAST if seconds < 10 else taken(count, start) <= seconds + MARGIN * SPEED.after
    longer = length_of(count + 4)
    assert taken(longer.iterations, longer.adversarial_start) > seconds


@pytest.mark.parametrize("iterations", [*range(1, 60), 500, 1599, 1600, 1601, 5000, 10**6])
def test_every_length_is_a_valid_training(photos, tmp_path, iterations):
    found = look_at(photos, None, "auto", on_gpu=False)
    record = record_of(found)
    for length in (length_of(iterations), length_of(iterations, 0.3)):
        (tmp_path / "config/experiments").mkdir(parents=True, exist_ok=True)
        (tmp_path / "config/datasets").mkdir(exist_ok=True)
        (tmp_path / "config/datasets/garden.yaml").write_text(pictures.dataset_text(found))
        (tmp_path / "config/experiments/garden.yaml").write_text(pictures.experiment_text(record, length))
        training = resolve_run("garden", 0, tmp_path / "config").training
        assert training.iterations == iterations
        assert 1 <= training.preview_every <= max(1, iterations)


def record_of(found):
    asked = Asked(source=found.source, side=None, classes="auto", minutes=10, iterations=None, device="cpu")
    return {
        "name": "garden", "asked": asked.model_dump(), "device": "cpu", "extractor": "lite0",
        "found": found.model_dump(), "measured": SPEED.rounded(), "iterations": None,
    }  # fmt: skip


def test_a_long_training_has_the_shipped_values():
    shipped, length = load_experiment("photos32"), length_of(load_experiment("photos32").training.iterations)
    assert length.adversarial_start == shipped.losses.adversarial_start
    assert (length.decay_iterations, length.warmup) == (shipped.training.decay_iterations, shipped.training.warmup)


def test_more_images_leave_less_time():
    assert seconds_after_training(SPEED, 100, 1000) < seconds_after_training(SPEED, 200, 1000)
    assert seconds_after_training(SPEED, 100, 1000) < seconds_after_training(SPEED, 100, 2000)


def test_the_speed_is_measured_at_every_level(digits, monkeypatch):
    """With a clock that counts its calls, every iteration takes one second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("udpm.bench.measure.now", lambda device: float(next(ticks)))
    speed = budget.measure(tiny.run_config(), digits / "dataset", digits / "cache", 1.5, None)
    assert (speed.before, speed.after, speed.features, speed.job) == (1.0, 1.0, 0.0, 1.5)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_classes_come_from_folders_that_are_full_enough(tmp_path):
    labelled = photographs(tmp_path / "two", 120, classes=("cat", "dog"))
    assert look_at(labelled, None, "auto", on_gpu=False).classes == 2
    assert look_at(labelled, None, "0", on_gpu=False).classes == 0
    many = photographs(tmp_path / "many", 120, classes=[f"c{number}" for number in range(40)])
    found = look_at(many, None, "auto", on_gpu=False)
    assert found.classes == 0
    assert "40 were found" in found.describe()
    assert look_at(many, None, "40", on_gpu=False).classes == 40


def test_the_side_follows_images_and_device(photos, tmp_path):
    large = photographs(tmp_path / "large", 100, side=70)
    assert [look_at(large, None, "auto", on_gpu=gpu).side for gpu in (False, True)] == [32, 64]
    assert look_at(photos, None, "auto", on_gpu=True).side == 32
    found = look_at(large, 64, "auto", on_gpu=False)
    assert (found.side, found.holdout, found.size) == (64, 10, "70×70")


def test_small_and_broken_images_are_left_out_if_enough_remain(photos, tmp_path):
    """Every 15th is looked at."""
    mixed = shutil.copytree(photos, tmp_path / "mixed")
    (mixed / "0.png").write_bytes(b"broken")
    noise(20, seed=1).save(sorted(mixed.iterdir())[15])
    (mixed / "notes.txt").touch()
    found = look_at(mixed, None, "auto", on_gpu=False)
    assert (found.images, found.side, found.holdout, found.others) == (120, 32, 10, "1 .txt")
    assert "of about 20-32×20-32 pixels" in found.describe()
    assert found.describe().endswith("; other files are left out: 1 .txt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flowers", "flowers"),
        ("my pictures!", "my-pictures"),
        ("digits", "my-digits"),
        ("ü", "pictures"),
        ("a.zip", "a"),
    ],
)
def test_names_are_valid_and_free(name, expected):
    assert name_of(Path(name)) == expected


@pytest.mark.parametrize("odd", ["with space", 'quote" and $HOME', "-dash # hash: {brace}"])
def test_a_study_of_any_path_is_valid(photos, tmp_path, monkeypatch, odd):
    shutil.copytree(photos, tmp_path / odd)
    monkeypatch.setattr(run, "snakemake", stopping())
    assert call(tmp_path / odd, output=tmp_path / "study") == 75
    name = name_of(tmp_path / odd)
    config = tmp_path / "study/config"
    assert load_dataset(name, config).path == str(tmp_path / odd)
    assert load_experiment(name, config).scoring is not None


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("empty", "", "empty: no images; looked for .png"),
        ("heic", "", "found 120 .heic"),
        ("three", "", "holds 3 images; training needs 100 or more"),
        ("mixed", "--side 64", "about 60 of 120 images have at least 64×64 pixels; training needs 100"),
        ("small", "", "about 0 of 100 images have at least 32×32 pixels"),
        ("zips.zip", "", "found 2 .zip; unpack the archives in it"),
        ("three/0.png", "", "is an image, not images; give a folder"),
        ("gone", "", "gone: no such file or folder"),
        ("many", "--minutes 0", "--minutes"),
        ("many", "--minutes 100001", "100001 is not in the range 1<=x<=100000"),
        ("many", "--minutes 1.5", "'1.5' is not a valid integer"),
        ("many", "--minutes 5 --iterations 5", "either --minutes or --iterations"),
        ("many", "--side 40", "must be a multiple of 32"),
        ("many", "--side 512", "must be a multiple of 32 up to 256"),
        ("many", "--classes 3", "--classes 3, but 0 classes were found"),
        ("many", "--classes some", "neither auto nor a number"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, photos, source, words, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("heic").mkdir()
    for number in range(120):
        Path("heic", f"{number}.HEIC").touch()
    photographs(tmp_path / "three", 3)
    photographs(tmp_path / "small", 100, side=20)
    photographs(photographs(tmp_path / "mixed", 60, side=70) / "more", 60, side=40)
    shutil.copytree(photos, "many")
    inner = zipped(tmp_path / "inner.zip", {"a.png": encoded(noise())}).read_bytes()
    zipped(tmp_path / "zips.zip", {"one.zip": inner, "two.zip": inner})
    before = tiny.snapshot(tmp_path)
    assert call(source, *words.split(), output="study") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert tiny.snapshot(tmp_path) == before


def test_a_full_disk_is_noticed_before_anything_is_written(photos, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert call(photos, output=tmp_path / "study") == 2
    assert "are free in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebodys_is_left_alone(photos, tmp_path, capsys):
    (tmp_path / "study.json").write_text('{"format": "other/1"}')
    (tmp_path / "notes.txt").write_text("mine")
    before = tiny.snapshot(tmp_path)
    assert call(photos, output=tmp_path) == 2
    assert "contains other files (notes.txt, study.json)" in capsys.readouterr().err
    assert tiny.snapshot(tmp_path) == before


# --- interrupted and continued ---------------------------------------------------------------------------------------


def stopping(after=0):
    """Return a stand-in for Snakemake that stops, after a number of calls, and that prepares images before."""
    calls = []

    def snakemake(study, targets, stop, watch=lambda: None):
        calls.append(targets)
        if len(calls) > after:
            raise StoppedEarly("stopped")
        for target in targets:
            if target.endswith("/dataset.json"):
                dataset = study / Path(target).parent
                prepare(load_dataset(dataset.name, study / "config"), dataset)

    snakemake.calls = calls
    return snakemake


def test_minutes_are_measured_once_and_written_to_the_study(photos, tmp_path, monkeypatch, capsys):
    study, measured = tmp_path / "study", []
    monkeypatch.setattr(run, "measure", lambda *arguments: measured.append(arguments) or SPEED)
    monkeypatch.setattr(run, "snakemake", stopping())
    assert call(photos, "--minutes", "20", output=study) == 75
    assert measured == []
    assert load_experiment("garden", study / "config").training.iterations == 5000
    monkeypatch.setattr(run, "snakemake", stopping(after=1))
    assert call(photos, "--minutes", "20", output=study) == 75
    assert len(measured) == 1
    written = load_experiment("garden", study / "config")
    assert 1000 < written.training.iterations < 2500
    assert "Measured: 0.2 s an iteration, 0.8 s with" in (study / "config/experiments/garden.yaml").read_text()
    before = tiny.snapshot(study)
    monkeypatch.setattr(run, "snakemake", stopping())
    assert call(photos, "--minutes", "20", output=study) == 75
    assert len(measured) == 1
    assert tiny.snapshot(study) == before
    capsys.readouterr()
    assert call(photos, "--minutes", "30", output=study) == 2
    assert "was begun with --minutes 20, not with --minutes 30; choose" in capsys.readouterr().err
    assert call(photos, "--iterations", "30", output=study) == 2
    assert "was begun with --minutes 20, not with --iterations 30; choose" in capsys.readouterr().err
    assert call(photos, "--minutes", "20", "--side", "32", output=study) == 2
    assert "was begun without --side, not with --side 32; choose" in capsys.readouterr().err
    assert call(photographs(tmp_path / "other", 100), "--minutes", "20", output=study) == 2
    assert f"was begun with the images of {photos}; choose another --output" in capsys.readouterr().err


def test_too_few_minutes_train_all_the_same_and_say_so(photos, tmp_path, monkeypatch, capsys):
    slow = Speed(before=2, after=8, image=0.1, features=0.1, job=2)
    monkeypatch.setattr(run, "measure", lambda *arguments: slow)
    monkeypatch.setattr(run, "snakemake", stopping(after=1))
    assert call(photos, "--minutes", "1", output=tmp_path / "study") == 75
    assert f"60 s is too short, so only {LEAST} iterations; the rest takes" in "".join(capsys.readouterr())


@pytest.mark.parametrize("damage", ['"name": 3,', '"name": "garden", "found": {},', "{"])
def test_a_damaged_record_is_one_line(photos, tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(run, "snakemake", stopping())
    assert call(photos, output=tmp_path / "study") == 75
    record = tmp_path / "study/study.json"
    record.write_text(record.read_text().replace('"name": "garden",', damage))
    capsys.readouterr()
    assert call(photos, output=tmp_path / "study") == 2
    assert capsys.readouterr().err.startswith(f"error: {record}: ")


def test_an_experiment_that_was_edited_stays(photos, tmp_path, monkeypatch):
    study = tmp_path / "study"
    monkeypatch.setattr(run, "measure", lambda *arguments: SPEED)
    monkeypatch.setattr(run, "snakemake", stopping())
    assert call(photos, output=study) == 75
    monkeypatch.setattr(run, "measure", None)
    own = study / "config/experiments/garden.yaml"
    own.write_text(own.read_text() + "seeds: [0]\n")
    monkeypatch.setattr(run, "snakemake", stopping(after=1))
    assert call(photos, output=study) == 75
    assert own.read_text().endswith("seeds: [0]\n")
    own.write_text(own.read_text().partition("scoring:")[0] + "scoring: null\n")
    fake = stopping(after=1)
    monkeypatch.setattr(run, "snakemake", fake)
    assert call(photos, output=study) == 75
    assert [target for target in fake.calls[-1] if "scores" in target] == []


def test_images_that_are_left_out_are_named(photos, tmp_path, monkeypatch, capsys):
    mixed, study = shutil.copytree(photos, tmp_path / "mixed"), tmp_path / "study"
    for number in range(4):
        (mixed / f"{number}.png").write_bytes(b"broken")
    monkeypatch.setattr(run, "snakemake", stopping(after=1))
    assert call(mixed, "--iterations", "8", output=study) == 75
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert re.fullmatch(r"4 images are left out \(0.png: not .*; 1.png: .*; …\); all are in .*/dataset.json", line)


def test_too_few_images_that_are_left_are_an_error(photos, tmp_path, monkeypatch, capsys):
    """Every 15th is looked at, and those can be read."""
    mixed = shutil.copytree(photos, tmp_path / "mixed")
    for name in [path.name for number, path in enumerate(sorted(mixed.iterdir())) if number % 15]:
        (mixed / name).write_bytes(b"broken")
    monkeypatch.setattr(run, "snakemake", stopping(after=1))
    assert call(mixed, "--iterations", "8", output=tmp_path / "study") == 2
    assert "mixed: 8 images are left, training needs 100 or more; 112 images are left out (" in capsys.readouterr().err


def test_without_an_extractor_nothing_is_scored(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "extractor", lambda: None)
    fake = stopping(after=2)
    monkeypatch.setattr(run, "snakemake", fake)
    assert call(photos, "--iterations", "8", output=tmp_path / "study") == 75
    assert load_experiment("garden", tmp_path / "study/config").scoring is None
    assert fake.calls[-1] == [
        "results/figures/garden/seed0/samples.png", "results/figures/garden/seed0/curves.png", "results/overview.html"
    ]  # fmt: skip


# --- Snakemake -------------------------------------------------------------------------------------------------------


POPEN = subprocess.Popen


def fake_snakemake(monkeypatch, code):
    """Let a program take the place of Snakemake."""

    def start(command, **options):
        return POPEN([sys.executable, "-c", code], **options)

    monkeypatch.setattr(workflow.subprocess, "Popen", start)


def test_the_error_of_a_job_is_the_error(tmp_path, monkeypatch):
    fake_snakemake(monkeypatch, "print('job failed'); print('    error: photos: broken'); raise SystemExit(1)")
    with pytest.raises(UserError, match=r"photos: broken \(see .*snakemake.log\)"):
        workflow.snakemake(tmp_path, ["all"], StopRequest())
    fake_snakemake(monkeypatch, "raise SystemExit(1)")
    with pytest.raises(UserError, match="a job of the workflow failed"):
        workflow.snakemake(tmp_path, ["all"], StopRequest())


def test_a_signal_reaches_the_jobs(tmp_path, monkeypatch):
    code = "import time; from pathlib import Path\ntry:\n    Path('began').touch(); time.sleep(600)\n"
    code += "except KeyboardInterrupt: Path('saved').touch()"
    fake_snakemake(monkeypatch, code)
    stop = StopRequest()

    def watch():
        if (tmp_path / "began").exists():
            stop._received = signal.SIGTERM

    with pytest.raises(StoppedEarly, match="stopped by SIGTERM; the same command continues"):
        workflow.snakemake(tmp_path, ["all"], stop, watch)
    assert (tmp_path / "saved").exists()


def test_only_a_lock_of_its_own_dead_process_is_removed(tmp_path, monkeypatch):
    fake_snakemake(monkeypatch, "pass")
    locks, mark = tmp_path / workflow.LOCKS, tmp_path / workflow.PROCESS
    locks.mkdir(parents=True)
    (locks / "0.output.lock").touch()
    with pytest.raises(UserError, match="another snakemake works here"):
        workflow.snakemake(tmp_path, ["all"], StopRequest())
    monkeypatch.setattr(workflow, "LOOKS", 1)
    mark.write_text(f"{os.getpgid(0)}\n")
    with pytest.raises(UserError, match="an earlier udpm run still work here"):
        workflow.snakemake(tmp_path, ["all"], StopRequest())
    ended = POPEN(["true"], start_new_session=True)
    ended.wait()
    mark.write_text(f"{ended.pid}\n")
    workflow.snakemake(tmp_path, ["all"], StopRequest())
    assert list(locks.iterdir()) == []
    assert not mark.exists()


def test_jobs_end_with_a_run_that_is_killed(tmp_path):
    """A job gets one SIGINT, although the killed process has many threads, so that it can save its state."""
    (tmp_path / "snakemake").mkdir()
    (tmp_path / "snakemake/__init__.py").touch()
    job = "import time\nfrom pathlib import Path\ntry:\n    Path('began').touch(); time.sleep(600)\n"
    job += "except KeyboardInterrupt: time.sleep(0.5); Path('saved').touch()"
    (tmp_path / "snakemake/__main__.py").write_text(
        f"import subprocess, sys\njob = subprocess.Popen([sys.executable, '-c', {job!r}])\n"
        "while job.poll() is None:\n    try: job.wait()\n    except KeyboardInterrupt: pass"
    )
    code = "import threading, time\nfrom pathlib import Path\nfrom udpm.core.work import StopRequest\n"
    code += "from udpm.study import workflow\n"
    code += "for _ in range(8): threading.Thread(target=time.sleep, args=(600,)).start()\n"
    code += "workflow.snakemake(Path(), ['all'], StopRequest())"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{tiny.ROOT}"}
    first = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    while not (tmp_path / "began").exists():
        assert first.poll() is None
        time.sleep(0.1)
    group = int((tmp_path / workflow.PROCESS).read_text())
    first.kill()
    first.wait()
    while alive(group):
        time.sleep(0.1)
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_killed_run_continues_to_its_samples(photos, tmp_path):
    """Killed without warning while it trains, the same command ends with samples, scores and a table."""
    study = tmp_path / "study"
    command = [sys.executable, "-m", "udpm", "run", photos, "--output", study, "--iterations", "6", "--device", "cpu"]
    first = subprocess.Popen(list(map(str, command)), cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True)
    metrics = study / "results/runs/garden/seed0/metrics.jsonl"
    while not metrics.exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    group = int((study / workflow.PROCESS).read_text())
    while alive(group):
        time.sleep(0.1)
    done = subprocess.run(list(map(str, command)), cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues" in done.stdout
    assert re.search(r"^\| garden +\| UDPM, seed 0 ", done.stdout, re.M)
    assert Image.open(study / "results/figures/garden/seed0/samples.png").size[0] > 100
    with np.load(study / "results/samples/garden/seed0.npz") as samples:
        assert samples["images"].shape == (64, 32, 32, 3)
    assert json.loads((study / "results/runs/garden/seed0/complete.json").read_text())["iterations"] == 6
    again = subprocess.run(list(map(str, command)), cwd=tiny.ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
