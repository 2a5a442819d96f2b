"""An output never replaces an input or a user's file, and folders are replaced atomically."""

import io
import json
import os
import re
import shutil
import signal
import stat
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scored import save_samples

from udpm.cli import VERBS, main, udpm
from udpm.cli.options import InputPath, OutputFile, OutputFolder, OutputPath, OutputStem, SharedFolder, Verb
from udpm.config import DatasetConfig, Latents, Sampling, Scoring, to_json
from udpm.core import folders, kinds
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256, write_json
from udpm.core.outputs import Input, Output, guard
from udpm.data.levels import write_cache
from udpm.data.prepare import prepare
from udpm.metrics.score import FORMAT as SCORE_FORMAT
from udpm.networks.weights import read_tensors, write_tensors
from udpm.report import card
from udpm.report.card import bundle_run
from udpm.sampling.networks_export import export_networks
from udpm.sampling.sample_set import export_images, load_samples
from udpm.training import checkpoint
from udpm.training.state import State


def commands():
    """Return every command by the words that call it."""
    found = {}
    for verb in VERBS:
        command = udpm.get_command(None, verb)
        if isinstance(command, click.Group):
            found |= {f"{verb} {name}": part for name, part in command.commands.items()}
        else:
            found[verb] = command
    return found


COMMANDS = commands()
WRITTEN = ("output", "sheet", "table", "best", "features", "run", "chain", "folder", "docs", "usage")
"""Names of parameters that name an output."""
READ = {("card", "run"), ("push", "run"), ("average", "run"), ("diagnose", "run")}
"""Exceptions, which are inputs."""


# --- the command tree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS)
def test_every_path_is_declared_as_input_or_output(words):
    command = COMMANDS[words]
    assert isinstance(command, Verb)
    for param in (*command.params, *udpm.params):
        if isinstance(param.type, click.Path):
            assert isinstance(param.type, InputPath | OutputPath), param.name
        if param.name in WRITTEN and (words, param.name) not in READ:
            assert isinstance(param.type, OutputPath), param.name


# Every command with existing inputs; {} marks outputs.
FORMS = {
    "init": "{}",
    "run": "photos --output {}",
    "resolve": "digits --config config --output {}",
    "schema": "--config {} --docs {}",
    "fetch": "cifar10 --folder {}",
    "prepare": "set.json --output {}",
    "cache": "dataset --output {}",
    "train": "run.json --dataset dataset --cache cache --run {}",
    "average": "run --width=0.1 --output {}",
    "sample": "run/weights.safetensors --config sampling.json --noise noise.npz --output {} --chain {}",
    "join": "s.npz --output {}",
    "export": "s.npz --output {}",
    "latents perturb": "run/weights.safetensors --config latents.json --output {}",
    "latents swap": "run/weights.safetensors --config latents.json --output {}",
    "latents interpolate": "run/weights.safetensors --config latents.json --output {}",
    "latents pca": "run/weights.safetensors --config latents.json --output {}",
    "extractor": "dataset --output {}",
    "reference": "photos --extractor x.pt --config scoring.json --features {} --output {}",
    "score": "--samples s.npz --reference r.npz --extractor x.pt --dataset dataset --config scoring.json "
    "--features {} --output {}",
    "select": "score.json --output {} --table {}",
    "diagnose": "run --dataset dataset --reference r.npz --extractor x.pt --config scoring.json --features {} "
    "--output {} --table {}",
    "table": "score.json --output {}",
    "paper": "table1 --config config --output {}",
    "summary": "digits --config config --output {}",
    "compare": "run s.npz --output {}",
    "card": "run --score score.json --output {}",
    "push": "run owner/name --dry-run {}",
    "figure samples": "s.npz --output {}",
    "figure chain": "s.npz --output {}",
    "figure curves": "run/metrics.jsonl --output {}",
    "figure selection": "score.json --output {}",
    "figure diagnosis": "score.json --output {}",
    "figure schedule": "run.json --output {}",
    "figure forward": "run.json --dataset dataset --output {}",
    "figure latents": "s.npz --output {}",
    "figure tradeoff": "--config config --output {}",
    "figure neighbours": "s.npz --dataset dataset --output {}",
    "schedule": "digits --config config --dataset dataset --output {}",
    "sweep plan": "schedules-digits --config config --output {}",
    "sweep rank": "schedules-digits --config config --output {} --best {}",
    "sweep heat": "schedules-digits start --config config --output {}",
    "sweep strip": "schedules-digits --config config --output {}",
    "cost": "digits --config config --output {}",
    "import": "run/weights.safetensors --output {}",
    "bench data": "photos --output {}",
    "bench train": "run.json --dataset dataset --cache cache --output {}",
    "bench score": "scoring.json --extractor x.pt --output {}",
    "bench sample": "digits --config config --output {}",
    "info": "dataset --sheet {}",
}
WITHOUT = {"status", "clean", "sweep status", "doctor"}
"""Commands that write nothing."""


def test_all_commands_that_write_are_covered():
    writing = {
        words for words, command in COMMANDS.items() if any(isinstance(p.type, OutputPath) for p in command.params)
    }
    assert writing == set(FORMS)
    assert set(COMMANDS) - writing == WITHOUT


@pytest.fixture(scope="module")
def project(digits, trained, tmp_path_factory):
    """A folder with inputs of all kinds."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny.ROOT / "config", folder / "config")
    (folder / "config/sweeps/one.yaml").write_text("base: digits\npoints: {base: {}}\n")
    shutil.copytree(trained, folder / "run")
    # One loss, so that a figure of it is drawn fast.
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    kept = ("iteration", "seconds", "images_per_second", "generator/reconstruction/l1")
    lines = [json.dumps({key: line[key] for key in kept if key in line}) + "\n" for line in lines]
    (folder / "run/metrics.jsonl").write_text("".join(lines))
    for name in ("dataset", "cache"):
        shutil.copytree(digits / name, folder / name)
    photographs(folder / "photos")
    (folder / "set.json").write_text(to_json(DatasetConfig(source="folder", path="photos", side=8)))
    tiny.write_config(folder)
    for name, section in (
        ("sampling", Sampling(count=4)),
        ("scoring", Scoring(extractor="x.pt")),
        ("latents", Latents()),
    ):
        (folder / f"{name}.json").write_text(to_json(section))
    save_samples(folder / "s.npz", np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), {"classes": 0, "nfe": 3})
    for name in ("r.npz", "noise.npz"):
        np.savez(folder / name, mu=np.zeros(3))
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 8, 8)), str(folder / "x.pt"))
    write_json(folder / "score.json", {"format": SCORE_FORMAT, "metrics": {}})
    write_json(folder / "bench.json", {"format": "udpm-bench/1"})
    return folder


def photographs(folder, count=3):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"IMG_{number}.png")


def outputs_of(words):
    """Return the parameters that `{}` marks in a command, in order."""
    command = COMMANDS[words]
    kinds_of = {option: param.type for param in command.params for option in param.opts}
    options = [
        word
        for word, following in zip(FORMS[words].split(), FORMS[words].split()[1:], strict=False)
        if following == "{}"
    ]
    return [kinds_of[option] for option in options]


def harmless(kind, number, folder):
    suffix = (kind.suffixes or (".out",))[0] if isinstance(kind, OutputFile) else ""
    return folder / f"new{number}{suffix}"


PAIRS = [
    (words, number, word)
    for words, form in FORMS.items()
    for number, kind in enumerate(outputs_of(words))
    if not isinstance(kind, SharedFolder)
    for word in form.split()
    if (Path(word).suffix or word in ("photos", "dataset", "cache", "run", "config")) and not word.startswith("-")
]


def test_enough_pairs_are_covered():
    assert len(PAIRS) >= 60


WHY = (
    "the input of",
    "must end in",
    "is a directory",
    "is a folder",
    "is a file",
    "is or contains the working directory",
    "already exists, not a",
    "other files",
)


def harmful_paths(kind, source, links):
    """Yield output paths of a kind that would harm `source`."""
    stem = isinstance(kind, OutputStem)
    suffix = next(iter(kind.kinds)) if stem else (getattr(kind, "suffixes", ()) or (source.suffix,))[0]
    (links / f"link{suffix}").symlink_to(source)
    yield links / ("link" if stem else f"link{suffix}")
    if source.is_file():
        os.link(source, links / f"hard{suffix}")
        yield links / ("hard" if stem else f"hard{suffix}")
        if isinstance(kind, OutputFolder):
            yield source.parent
    else:
        yield source / ("new" if stem else f"new{suffix}")
        yield source / "deep/new"
    if not stem or source.suffix in kind.kinds:
        yield source.relative_to(Path.cwd())


@pytest.mark.parametrize(("words", "number", "read"), PAIRS)
def test_an_input_is_never_an_output(project, tmp_path, monkeypatch, capsys, words, number, read):
    """Nor may an output be in its folder, link to it, be a hard link of it, or be the folder around it."""
    monkeypatch.chdir(project)
    written = outputs_of(words)
    (tmp_path / "links").mkdir()
    for path in harmful_paths(written[number], project / read, tmp_path / "links"):
        given = [harmless(kind, index, tmp_path) for index, kind in enumerate(written)]
        given[number] = path
        arguments = FORMS[words].split()
        for value in given:
            arguments[arguments.index("{}")] = str(value)
        before = tiny.snapshot(project), tiny.snapshot(tmp_path)
        assert tiny.call(*words.split(), *arguments) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert any(word in line for word in WHY), line
        assert (tiny.snapshot(project), tiny.snapshot(tmp_path)) == before, arguments


def test_files_named_by_a_configuration_are_inputs(project, tmp_path, capsys):
    """A data set's path, an extractor and noise are refused as outputs, as if they were options."""
    shutil.copytree(project, tmp_path / "copy")
    here = tmp_path / "copy"
    photos, extractor = here / "photos", here / "x.pt"
    (here / "set.json").write_text(to_json(DatasetConfig(source="folder", path=str(photos), side=8)))
    (here / "scoring.json").write_text(to_json(Scoring(extractor=str(extractor))))
    (here / "sampling.json").write_text(to_json(Sampling(count=4, noise=str(here / "noise.npz"))))
    weights = here / "run/weights.safetensors"
    (here / "labels.csv").write_text("file_name,label\na.png,cat\n")
    labelled = DatasetConfig(source="folder", path=str(photos), side=8, classes=2, labels=str(here / "labels.csv"))
    (here / "labelled.json").write_text(to_json(labelled))
    imported = tiny.run_config().model_copy(update={"training": "imported", "weights": str(weights)})
    (here / "imported.json").write_text(to_json(imported))
    before = tiny.snapshot(here)
    for command, expected in (
        (("prepare", here / "set.json", "--output", photos), "contains other files"),
        (("prepare", here / "labelled.json", "--output", here / "labels.csv"), "is a file|which labels reads"),
        (("import", "--run-config", here / "imported.json", "--run", here / "run"), "holds a trained run"),
        (("prepare", here / "set.json", "--output", photos / "store"), "the input of path; choose another path"),
        (("reference", photos, "--config", here / "scoring.json", "--output", extractor), "not a reference that"),
        (
            ("sample", weights, "--config", here / "sampling.json", "--output", here / "noise.npz"),
            "not a sample set that",
        ),
        (("sample", weights, "--noise", here / "noise.npz", "--output", here / "noise.npz"), "not a sample set that"),
    ):
        assert tiny.call(*command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert any(part in line for part in expected.split("|")), line
        assert tiny.snapshot(here) == before


# --- users' files ----------------------------------------------------------------------------------------------------

FILES = [
    *("SAMPLES", "SAMPLE_RECORD", "JOINED", "CHAIN", "LATENTS", "REFERENCE", "SCORE", "SELECTION", "BENCH"),
    *("IMAGE_ZIP", "EXTRACTOR", "EXTRACTOR_RECORD", "AVERAGE", "IMPORTED", "USAGE", "CARD", "EXPERIMENT", "SHEET"),
    "GRID",
]
KINDS = {name: getattr(kinds, name) for name in FILES}
KINDS |= {f"{name} {suffix}": kind for name in ("FIGURE", "TABLE") for suffix, kind in getattr(kinds, name).items()}
KINDS |= {f"PAGE {name}": kind for name, kind in kinds.PAGE.items()}


def users_files(folder):
    """Make files of many kinds that udpm did not write."""
    arrays = {"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.zeros(2, np.int64)}
    np.savez(folder / "own.npz", **arrays)
    np.savez(folder / "record.npz", record=np.array('{"format": "mine/1"}'), **arrays)
    (folder / "own.json").write_text('{"name": "mine"}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "count.json").write_text('{\n  "count": 4\n}\n')
    (folder / "own.csv").write_text("experiment,seed\ndigits,0\n")
    (folder / "own.md").write_text("# My notes\n\nudpm is here\n")
    (folder / "own.html").write_text("<!doctype html><title>Mine</title>")
    (folder / "own.tex").write_text("\\documentclass{article}")
    (folder / "own.yaml").write_text("extends: digits\n")
    (folder / "own.jsonl").write_text('{"verb": 1}\n'.replace(" ", ""))
    Image.new("RGB", (4, 4)).save(folder / "own.png")
    Image.new("RGB", (4, 4)).save(folder / "own.jpg")
    (folder / "own.svg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "own.pdf").write_bytes(b"%PDF-1.4\n1 0 obj\n<< /Subject (my notes) >>\nendobj\n%%EOF\n")
    write_tensors(folder / "other.safetensors", {"a": torch.zeros(1)}, {"format": "mine/1"})
    torch.save({"a": torch.zeros(1)}, folder / "own.pt")
    torch.jit.save(torch.jit.script(torch.nn.Flatten()), str(folder / "scripted.pt"))
    with zipfile.ZipFile(folder / "own.zip", "w") as archive:
        archive.write(folder / "own.png", "00000/img00000000.png")
    (folder / "random").write_bytes(bytes(range(256)) * 8)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_never_recognizes_a_users_file_as_its_own(tmp_path, name):
    for path in users_files(tmp_path):
        assert not KINDS[name].made(path), path
        with pytest.raises(UserError, match=f"--output: .*already exists, not a {KINDS[name].what}"):
            guard([Output("--output", path, KINDS[name])], [])


MARKED = {
    "cost": (kinds.TABLE, "cost digits --config config --output {}/made"),
    "paper": (kinds.TABLE, "paper table1 --config config --results {0} --output {0}", "table1"),
    "curves": (kinds.FIGURE, "figure curves run/metrics.jsonl --output {}/made"),
    "card": ({"README.md": kinds.CARD}, "card run --output {}/README.md"),
    "summary": (kinds.PAGE, "summary digits --config config --results {0} --output {0}"),
    "sheet": ({"sheet.png": kinds.SHEET}, "info dataset --sheet {}/sheet.png"),
    "grid": ({"grid.png": kinds.GRID}, "sample run --count 4 --output {}/grid.png"),
    "jpeg sheet": ({"sheet.jpg": kinds.SHEET}, "info dataset --sheet {}/sheet.jpg"),
}
"""Kinds of the files, the command, and the stem of its files' names."""
MARKED_OUTPUTS = [
    (name, kind_name) for name, (marked, *_) in MARKED.items() for kind_name in marked if kind_name != ".csv"
]


@pytest.fixture(scope="module")
def marked(project, tmp_path_factory):
    """Files of all commands that mark theirs: paths by the names of command and kind."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for name, (marked, command, *stem) in MARKED.items():
            folder = tmp_path_factory.mktemp("marked")
            assert not tiny.call(*command.format(folder).split())
            for kind_name in marked:
                known = f"{(stem or ['made'])[0]}{kind_name}" if kind_name.startswith(".") else kind_name
                found[name, kind_name] = folder / known
    return found


def annotated(data):
    """Change a pixel of a picture, and save it with its text chunks."""
    picture = Image.open(io.BytesIO(data))
    text, comment = PngInfo(), picture.info.get("comment")
    for key, value in getattr(picture, "text", {}).items():
        text.add_text(key, value)
    picture.putpixel((3, 3), tuple(0 for _ in picture.getbands()))
    drawn = io.BytesIO()
    picture.save(drawn, format=picture.format, **({"comment": comment} if comment else {"pnginfo": text}))
    return drawn.getvalue()


EDITS = {
    "added at the end": lambda data: data + b"\nMy conclusions.\n",
    "added at the beginning": lambda data: b"# My notes\n\n" + data,
    "pasted into notes": lambda data: b"# My notes\n\n" + data + b"\nMy conclusions.\n",
    "changed in the middle": lambda data: data[: len(data) // 2] + b"!" + data[len(data) // 2 :],
    "cut": lambda data: data[: -len(data) // 3],
    "drawn on": lambda data: annotated(data) if data.startswith((b"\x89PNG", b"\xff\xd8")) else data + b" ",
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(("name", "kind_name"), MARKED_OUTPUTS)
def test_keeps_edited_files(marked, tmp_path, name, kind_name, edit):
    path, kind = marked[name, kind_name], MARKED[name][0][kind_name]
    assert kind.made(path)
    edited = tmp_path / f"edited{path.suffix}"
    edited.write_bytes(EDITS[edit](path.read_bytes()))
    with pytest.raises(UserError, match=f"edited.*already exists, not a {kind.what} that udpm wrote"):
        guard([Output("--output", edited, kind)], [])


ONLY_NEW = {
    "README.md": rb"# udpm; [^\n]*\n",
    "summary.md": rb"\n<!-- udpm; [^\n]*\n",
    "overview.html": rb'<meta name="generator"[^>]*>',
    "sheet.png": rb"udpm; file SHA-256 [0-9a-f]{64}",
    "sheet.jpg": rb"\nudpm; file SHA-256 [0-9a-f]{64}",
}
"""Marks that earlier versions did not write: in tables and figures, the file's own digest."""


@pytest.mark.parametrize(("name", "kind_name"), [pair for pair in MARKED_OUTPUTS if pair[0] != "grid"])
def test_replaces_files_of_earlier_versions(marked, tmp_path, name, kind_name):
    path, kind = marked[name, kind_name], MARKED[name][0][kind_name]
    older = tmp_path / f"older{path.suffix}"
    data = re.sub(ONLY_NEW.get(kind_name, rb"; file SHA-256 [0-9a-f]{64}"), b"", path.read_bytes(), count=1)
    older.write_bytes(data)
    assert b"file SHA-256" not in data
    assert kind.made(older)
    if path.suffix == ".md":
        older.write_bytes(data + b"\n## My notes\n\nMine.\n")
        assert not kind.made(older)
        older.write_bytes(b"# My notes\n\n" + data)
        assert not kind.made(older)


def test_keeps_edited_data_of_a_figure(project, marked, tmp_path, capsys):
    shutil.copytree(marked["curves", ".png"].parent, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "made.csv", "a") as file:
        file.write("my,notes\n")
    before = tiny.snapshot(tmp_path)
    assert tiny.call("figure", "curves", project / "run/metrics.jsonl", "--output", tmp_path / "made") == 2
    assert "made.csv: already exists, not a figure's data that udpm wrote" in capsys.readouterr().err
    assert tiny.snapshot(tmp_path) == before


def test_keeps_notes_that_contain_a_table(project, marked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    (tmp_path / "notes.md").write_text(f"# My notes\n\n{marked['cost', '.md'].read_text()}\nMy conclusions\n")
    (tmp_path / "README.md").write_text(marked["card", "README.md"].read_text() + "\n## My notes\n")
    before = tiny.snapshot(tmp_path)
    for command, what in (
        (f"cost digits --config config --output {tmp_path}/notes", "notes.md: already exists, not a table"),
        (f"card run --output {tmp_path}/README.md", "README.md: already exists, not a model card"),
    ):
        assert tiny.call(*command.split()) == 2
        assert what in capsys.readouterr().err
        assert tiny.snapshot(tmp_path) == before


def test_marked_pictures_are_valid(marked):
    """The checksums of a PNG's chunks are right after the digest is filled in."""
    for name, kind_name in (("curves", ".png"), ("sheet", "sheet.png"), ("jpeg sheet", "sheet.jpg")):
        with Image.open(marked[name, kind_name]) as picture:
            picture.verify()
        with Image.open(marked[name, kind_name]) as picture:
            picture.load()


def test_never_replaces_the_configuration_of_a_run(project, tmp_path, capsys):
    """Unless it is equal, byte for byte: samples and scores would record another configuration than the run's."""
    given = "resolve", "digits", "--config", project / "config", "--output"
    text = None
    for name in ("complete.json", "checkpoints", "owner.json", "attempts.jsonl", "weights.safetensors", "bundle.json"):
        run = tmp_path / name
        run.mkdir()
        assert not tiny.call(*given, run / "config.json")
        text = text or (run / "config.json").read_bytes()
        # It may be changed until the run exists.
        assert not tiny.call(*given, run / "config.json", "--seed", 5)
        assert not tiny.call(*given, run / "config.json")
        (run / name).mkdir() if name == "checkpoints" else (run / name).write_text("{}")
        assert not tiny.call(*given, run / "config.json")
        (tmp_path / f"{name}.link").symlink_to(run / "config.json")
        capsys.readouterr()
        for path in (run / "config.json", tmp_path / f"{name}.link"):
            assert tiny.call(*given, path, "--seed", 5) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"the configuration of the run in this folder (next to {name})" in line
            assert (run / "config.json").read_bytes() == text
        assert not tiny.call(*given, run / "other.json", "--seed", 5)


TWICE = {
    "resolve": "resolve digits --config config --output {}/run.json",
    "resolve a section": "resolve digits --part scoring --config config --output {}/scoring.json",
    "resolve a data set": "resolve --dataset digits --config config --output {}/set.json",
    "prepare": "prepare set.json --output {}/dataset",
    "cache": "cache dataset --output {}/cache",
    "sample": "sample run/weights.safetensors --config sampling.json --output {0}/s.npz --chain {0}/c.npz",
    "export": "export s.npz --output {}/images",
    "export a run": "export run {}/bundle",
    "push": "push run owner/name --dry-run {}/bundle",
    "export networks": "export run --format torchscript --output {}/networks",
    "latents": "latents swap run/weights.safetensors --labels 3 --output {}/l.npz",
    "reference": "reference dataset --extractor x.pt --config scoring.json --features {0}/features --output {0}/r.npz",
    "summary": "summary digits --config config --results {0} --output {0}",
    "paper": "paper table1 --config config --results {0} --output {0}/paper",
    "card": "card run --output {}/README.md",
    "curves": "figure curves run/metrics.jsonl --output {}/curves",
    "schedule": "schedule digits --config config --output {}/schedule",
    "plan": "sweep plan one --config config --output {}/plan",
    "cost": "cost digits --config config --output {}/cost",
    "import": "import run/weights.safetensors --output {}/w.safetensors",
    "sheet": "info dataset --sheet {}/sheet.png",
    "jpeg sheet": "info dataset --sheet {}/sheet.jpg",
    "usage": "--usage {0}/usage.jsonl resolve digits --config config --output {0}/run.json",
}


@pytest.mark.parametrize("name", TWICE)
def test_every_command_runs_twice(project, tmp_path, monkeypatch, name):
    """The second run replaces the first one's files, leaves no others, and changes no input."""
    monkeypatch.chdir(project)
    before = tiny.snapshot(project)
    for _ in range(2):
        assert not tiny.call(*TWICE[name].format(tmp_path).split())
        found = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
        hidden = {path for path in found if path.name.startswith(".") and path.name != folders.CONTENTS}
        assert found
        assert not hidden
    assert tiny.snapshot(project) == before


def test_replaces_an_extractor_and_its_record(project, tmp_path):
    from udpm.data.store import open_store
    from udpm.metrics import extractor_networks

    store = open_store(project / "dataset")
    network = extractor_networks.Classifier(store.side, store.classes)
    for _ in range(2):
        guard([Output("--output", tmp_path / "e.pt", kinds.EXTRACTOR)], [])
        guard([Output("--output", tmp_path / "e.json", kinds.EXTRACTOR_RECORD)], [])
        extractor_networks._write(network, store, 0, 0.5, 3, tmp_path / "e.pt")


def test_an_extractor_of_an_earlier_version_is_replaced(tmp_path):
    with zipfile.ZipFile(tmp_path / "e.pt", "w") as archive:
        archive.writestr("archive/code/__torch__/udpm/scoring/classifier.py", "")
    guard([Output("--output", tmp_path / "e.pt", kinds.EXTRACTOR)], [])


# --- folders ---------------------------------------------------------------------------------------------------------


def test_refuses_a_folder_of_photographs(project, tmp_path, capsys):
    photographs(tmp_path / "photos")
    photographs(tmp_path / "more")
    (tmp_path / "set.json").write_text(to_json(DatasetConfig(source="folder", path=str(tmp_path / "photos"), side=8)))
    before = tiny.snapshot(tmp_path)
    for command in (
        ("prepare", tmp_path / "set.json"),
        ("cache", project / "dataset"),
        ("export", project / "s.npz"),
        ("export", project / "run"),
        ("export", project / "run", "--format", "torchscript"),
        ("train", project / "run.json", "--dataset", project / "dataset", "--cache", project / "cache"),
        (
            "score",
            "--heldout",
            "--reference",
            project / "r.npz",
            "--dataset",
            project / "dataset",
            "--config",
            "c.json",
        ),
    ):
        option = {"train": "--run", "score": "--features"}.get(command[0], "--output")
        rest = ("--output", tmp_path / "score.json") if command[0] == "score" else ()
        for folder in ("photos", "more"):
            assert tiny.call(*command, option, tmp_path / folder, *rest) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: {option}: {tmp_path / folder}: ")
            assert tiny.snapshot(tmp_path) == before


MADE = {
    "data set": (kinds.DATASET, lambda folder: prepare(tiny.run_config().dataset, folder)),
    "level cache": (kinds.CACHE, lambda folder: write_cache(Path("dataset"), folder)),
    "images": (kinds.IMAGES, lambda folder: export_images(Path("s.npz"), folder, "flat", "png")),
    "bundle": (kinds.BUNDLE, lambda folder: bundle_run(Path("run"), folder)),
}
NETWORKS = {"networks": (kinds.NETWORKS, lambda folder: export_networks(Path("run"), folder, "torchscript"))}
"""Made by PyTorch: takes seconds, and is not possible in a forked process."""
SPOILT = {
    "notes": lambda folder: (folder / "notes.txt").write_text("mine"),
    "a hidden file": lambda folder: (folder / ".mine").write_text("mine"),
    "a folder": lambda folder: ((folder / "deep/er").mkdir(parents=True), (folder / "deep/er/x").write_text("mine")),
    "a link": lambda folder: (folder / "link").symlink_to("nowhere"),
    "a link for a file of ours": lambda folder: replaced_by_link(folder),
}


def replaced_by_link(folder):
    path = max(folder.glob("*.*"))
    path.rename(folder.with_suffix(".moved"))
    path.symlink_to(folder.with_suffix(".moved"))


@pytest.mark.parametrize("made", MADE | NETWORKS)
def test_replaces_a_folder_without_users_files(project, tmp_path, monkeypatch, made):
    monkeypatch.chdir(project)
    kind, make = (MADE | NETWORKS)[made]
    make(tmp_path / "out")
    (tmp_path / "out/.snakemake_timestamp").touch()
    make(tmp_path / "out")
    for name, spoil in SPOILT.items():
        shutil.copytree(tmp_path / "out", tmp_path / name)
        spoil(tmp_path / name)
        before = tiny.snapshot(tmp_path)
        with pytest.raises(UserError, match="contains files besides the"):
            make(tmp_path / name)
        assert tiny.snapshot(tmp_path) == before
    changed = max((tmp_path / "out").rglob("*.*"), key=lambda path: (path.suffix == ".png", path.name == "README.md"))
    changed.write_bytes(changed.read_bytes() + b" ")
    if kind.exact:
        with pytest.raises(UserError, match="its files were changed"):
            make(tmp_path / "out")
    else:
        make(tmp_path / "out")


@pytest.mark.parametrize("made", MADE)
def test_keeps_a_users_folder_with_the_same_names(project, tmp_path, monkeypatch, made):
    monkeypatch.chdir(project)
    kind, make = MADE[made]
    for name in (kind.record, "level_1.npy", "images.npy", folders.CONTENTS):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text('{"format": "mine"}')
        before = tiny.snapshot(tmp_path)
        with pytest.raises(UserError, match="contains other files"):
            make(tmp_path / name)
        assert tiny.snapshot(tmp_path) == before


@pytest.mark.parametrize("made", ["data set", "level cache"])
def test_replaces_a_folder_of_an_earlier_version(project, tmp_path, monkeypatch, made):
    monkeypatch.chdir(project)
    _, make = MADE[made]
    make(tmp_path / "out")
    (tmp_path / "out" / folders.CONTENTS).unlink()
    if made == "data set":
        tiny.flip_byte(tmp_path / "out/images.npy", 9999)
    make(tmp_path / "out")
    assert (tmp_path / "out" / folders.CONTENTS).exists()
    (tmp_path / "out" / folders.CONTENTS).unlink()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains files besides the .* \(notes.txt\)"):
        make(tmp_path / "out")


@pytest.mark.parametrize("hidden", [".out.work", ".out.partial", ".out.lock"])
def test_keeps_users_hidden_files_and_folders(project, tmp_path, monkeypatch, hidden):
    monkeypatch.chdir(project)
    for made, (_, make) in MADE.items():
        if (hidden, made == "data set") in ((".out.work", True), (".out.partial", False)):
            continue
        if hidden == ".out.lock":
            (tmp_path / hidden).write_text("mine")
        else:
            (tmp_path / hidden).mkdir(exist_ok=True)
            (tmp_path / hidden / "rows.npy").write_text("mine")
        before = tiny.snapshot(tmp_path)
        with pytest.raises(UserError, match=hidden):
            make(tmp_path / "out")
        assert tiny.snapshot(tmp_path) == before


@pytest.mark.parametrize("made", MADE)
def test_keeps_the_link_to_a_folder(project, tmp_path, monkeypatch, made):
    monkeypatch.chdir(project)
    _, make = MADE[made]
    (tmp_path / "disk").mkdir()
    for target in (tmp_path / "disk/out", tmp_path / "disk/absent"):
        link = tmp_path / target.name
        link.symlink_to(target)
        if target.name == "out":
            target.mkdir()
        for _ in range(2):
            make(link)
            assert link.is_symlink()
            assert (target / folders.CONTENTS).is_file()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [folders.CONTENTS] * 2


# --- kills -----------------------------------------------------------------------------------------------------------


def renames_until_killed(work, number, after):
    """Do `work` in a child, killed before or after its n-th rename; return whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def wrapped(rename):
            def killing(*arguments, **options):
                nonlocal count
                count += 1
                if count == number and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = rename(*arguments, **options)
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return killing

        os.rename, os.replace, folders.exchange = map(wrapped, (os.rename, os.replace, folders.exchange))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the work failed"
    return status == signal.SIGKILL


def wholeness(folder):
    return {name: content for name, content in tiny.snapshot(folder).items() if not name.name.endswith(".json")}


@pytest.mark.parametrize(
    "exchanges",
    [pytest.param(True, id="exchange"), pytest.param(False, id="two renames", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("made", MADE)
def test_a_kill_at_any_rename_leaves_one_whole_version(project, tmp_path, monkeypatch, made, exchanges):
    """The old or the new one if folders can be exchanged; after the next run, only the new one."""
    monkeypatch.chdir(project)
    if not exchanges:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    kind, make = MADE[made]
    out, old = tmp_path / "out", tmp_path / "old"
    if kind is kinds.BUNDLE:
        # A fork does not have its parent's threads, so a network would wait for them for ever.
        drawn = card._draw(Path("run/weights.safetensors"))
        monkeypatch.setattr(card, "_draw", lambda weights: drawn)
    make(old)
    expected = wholeness(old)
    if not kind.exact:
        # Damage it, so that it is made again.
        tiny.flip_byte(max(old.glob("*.npy")), 500)
    killed, number = True, 0
    while killed:
        number += 1
        for after in (False, True):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(old, out)
            killed = renames_until_killed(lambda: make(out), number, after)
            if exchanges:
                assert wholeness(out) in (expected, wholeness(old))
            make(out)
            assert wholeness(out) == expected
            assert {path.name for path in tmp_path.iterdir()} == {"out", "old"}
    assert number > 2


@pytest.mark.parametrize("name", ["tensors", "samples", "figure", "table"])
def test_a_kill_at_any_rename_of_a_save_leaves_whole_files(project, tmp_path, monkeypatch, name):
    import pandas as pd

    from udpm.report.figures import style
    from udpm.report.table import Table

    def save(value):
        frame = pd.DataFrame({"a": [value]})
        if name == "tensors":
            write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3) * value}, {"format": "udpm-weights/2"})
        elif name == "samples":
            images = np.full((2, 8, 8, 3), value, np.uint8)
            save_samples(tmp_path / "a.npz", images, np.zeros(2, np.int64), {"classes": 0})
        elif name == "figure":
            style.save(style.plt.figure(figsize=(1, 1)), tmp_path / "a", frame)
        else:
            Table(frame.astype(str), [], "Title", frame).write(tmp_path / "a")

    def outputs():
        suffixes = {"figure": kinds.FIGURE, "table": kinds.TABLE}.get(name)
        suffixes = suffixes or {".npz": kinds.SAMPLES, ".json": kinds.SAMPLE_RECORD, ".safetensors": kinds.IMPORTED}
        return [Output("--output", tmp_path / f"a{suffix}", kind) for suffix, kind in suffixes.items()]

    save(1)
    versions = [tiny.snapshot(tmp_path)]
    save(2)
    versions.append(tiny.snapshot(tmp_path))
    killed, number = True, 0
    while killed:
        number += 1
        for after in (False, True):
            save(1)
            killed = renames_until_killed(lambda: save(2), number, after)
            found = {path: content for path, content in tiny.snapshot(tmp_path).items() if ".tmp-" not in path.name}
            assert found.keys() == versions[0].keys()
            for path, content in found.items():
                assert content in (versions[0][path], versions[1][path])
            if name == "tensors":
                read_tensors(tmp_path / "a.safetensors", "udpm-weights/2")
            if name == "samples":
                assert load_samples(tmp_path / "a.npz").images.max() in ((1, 2) if killed else (2,))
            guard(outputs(), [])
            save(2)
            for temporary in tmp_path.glob(".*.tmp-*"):
                temporary.unlink()
            assert tiny.snapshot(tmp_path) == versions[1]


def test_a_kill_at_any_rename_of_a_checkpoint_leaves_one_to_resume_from(tmp_path):
    state = State.fresh(tiny.run_config(), torch.device("cpu"))

    def save(iteration):
        state.iteration = iteration
        record = {"dataset_sha256": "0" * 64, "processes": [], "origin": None, "run": {}}
        checkpoint.save_checkpoint(tmp_path, state, record)

    killed, number = True, 0
    while killed:
        number += 1
        for after in (False, True):
            for path in tmp_path.iterdir():
                path.unlink()
            save(1)
            killed = renames_until_killed(lambda: save(2), number, after)
            manifests = [json.loads(path.read_text()) for path in tmp_path.glob("0*.json")]
            files = {one["iteration"]: tmp_path / f"{one['iteration']:09d}.safetensors" for one in manifests}
            assert all(one["sha256"] == sha256(files[one["iteration"]]) for one in manifests)
            assert max(files) in ((1, 2) if killed else (2,))
    assert number > 2


# --- paths that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_special_files_are_refused(project, tmp_path, capsys, kind):
    command = ("export", project / "s.npz") if kind == "folder" else ("resolve", "digits")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "file").write_text("mine")
    names = {
        "/dev/null": "device",
        tmp_path / "pipe": "pipe",
        tmp_path / "loop": "points to itself",
        tmp_path / "one": "points to itself",
        tmp_path / "file/under": "is a file",
        tmp_path / ("x" * 250): "too long",
    }
    names |= {tmp_path: "is a folder"} if kind == "file" else {tmp_path / "file": "is a file"}
    before = sorted(tmp_path.iterdir())
    for path, expected in names.items():
        assert tiny.call(*command, "--output", path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line or (kind == "folder" and ("no folder" in line or "is a file" in line)), line
        assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_reports_a_removed_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (
        "resolve digits --output x.json",
        "prepare set.json --output x",
        f"cost digits --output {tmp_path}/c",
    ):
        assert tiny.call(*command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "error: the working directory no longer exists; change to one that does"


def test_follows_a_link_to_a_file(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk/there").write_text("old")
    for name in ("there", "absent"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name).read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(project, tmp_path, monkeypatch, mask):
    monkeypatch.chdir(project)
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"format": "udpm-weights/2"})
        write_json(tmp_path / "a.json", {})
        os.chmod(project / "run/weights.safetensors", 0o600)
        for made, (_, make) in (MADE | NETWORKS).items():
            make(tmp_path / made)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


# --- side files, two outputs, usage ----------------------------------------------------------------------------------


def test_side_files_are_outputs_too(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    shutil.copy("sampling.json", tmp_path / "a.json")
    for name in ("notes.json", "stem.csv", "stem2.md"):
        (tmp_path / name).write_text('{"mine": 1}')
    weights = "run/weights.safetensors"
    for command, expected in (
        (
            f"sample {weights} --count 4 --output {{}}/notes.npz",
            "notes.json: already exists, not a sample set's record",
        ),
        (f"sample {weights} --config {{0}}/a.json --output {{0}}/a.npz", "a.json: is also the input of --config"),
        ("extractor dataset --output {}/notes.pt", "notes.json: already exists, not a extractor's record"),
        ("figure samples s.npz --output {}/stem", "stem.csv: already exists, not a figure's data"),
        ("cost digits --config config --output {}/stem2", "stem2.md: already exists, not a table"),
        (f"sample {weights} --output {{0}}/b.npz --chain {{0}}/b.npz", "is also the output of --output"),
        ("--usage {0}/u.json resolve digits --config config --output {0}/u.json", "is also the output of"),
        ("--usage {0}/ex/u.jsonl export s.npz --output {0}/ex", "or contains it"),
        (
            "--usage run/weights.safetensors export s.npz --output {0}/ex",
            "weights.safetensors: already exists, not a file of",
        ),
        ("--usage set.json prepare set.json --output {0}/ex", "--usage: set.json: is also the input of SOURCE"),
        ("--usage photos/u.jsonl bench data photos", "--usage: photos/u.jsonl: is inside photos"),
        ("select score.json --output {0}/x.csv --table {0}/x", "is also the output of"),
    ):
        before = tiny.snapshot(project), tiny.snapshot(tmp_path)
        assert tiny.call(*command.format(tmp_path).split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
        assert (tiny.snapshot(project), tiny.snapshot(tmp_path)) == before


def test_appends_to_a_file_of_usage(tmp_path):
    """A full disk may have cut the last line."""
    used = tmp_path / "u.jsonl"
    used.write_text('{"verb": "tr')
    for count in (1, 2):
        assert not tiny.call("--usage", used, "resolve", "digits", "--output", tmp_path / "r.json")
        torn, *lines = used.read_text().splitlines()
        assert [json.loads(line)["verb"] for line in lines] == ["resolve"] * count
    assert torn == '{"verb": "tr'


def test_outputs_may_be_next_to_inputs(tmp_path):
    """Folders of results and runs also contain cards, tables and figures; files that are read in them are kept."""
    results = tmp_path / "results"
    (results / "runs/digits/seed0").mkdir(parents=True)
    assert not tiny.call("summary", "digits", "--results", results, "--output", results)
    assert tiny.call("summary", "digits", "--results", results, "--output", results / "runs/digits") == 2
    guard([Output("--output", tmp_path / "a.json", kinds.SCORE)], [Input("--samples", tmp_path / "b.json")])
    run = results / "runs/digits/seed0"
    tiny.write_config(run).rename(run / "config.json")
    guard([Output("--run", run, kinds.RUN)], [Input("CONFIG", run / "config.json")])


def test_writes_schemas_only_into_a_configuration_folder(tmp_path, capsys):
    photographs(tmp_path / "photos")
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    shutil.copytree(tiny.ROOT / "docs", tmp_path / "docs")
    harmful_paths = {"--config": tmp_path / "config", "--docs": tmp_path / "docs"}
    assert not tiny.call("schema", *(word for pair in harmful_paths.items() for word in pair))
    (tmp_path / "README").write_text("mine")
    before = tiny.snapshot(tmp_path)
    for option in harmful_paths:
        given = harmful_paths | {option: tmp_path / "photos"}
        assert tiny.call("schema", *(word for pair in given.items() for word in pair)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "photos" in line
        assert tiny.snapshot(tmp_path) == before
    path = tmp_path / "config/schema/sweep.schema.json"
    draft = "https://json-schema.org/draft/2020-12/schema"
    begun = {"$schema": draft, "title": "Sweep"}
    others = {"mine": 1}, [], {"$schema": draft}, begun | {"title": "mine"}, begun | {"title": []}, begun
    for schema in (*others, begun | {"properties": {"broom": {"type": "string"}}}):
        write_json(path, schema)
        before = tiny.snapshot(tmp_path)
        assert tiny.call("schema", *(word for pair in harmful_paths.items() for word in pair)) == 2
        assert "sweep.schema.json: already exists, not a JSON schema that udpm wrote" in capsys.readouterr().err
        assert tiny.snapshot(tmp_path) == before


def test_help_checks_no_outputs(capsys):
    with pytest.raises(SystemExit) as done:
        main(["prepare", "--help"])
    assert not done.value.code
    assert "Folder of the data set" in capsys.readouterr().out
