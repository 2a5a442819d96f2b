"""Pages of documentation: their files resolve, their Python runs, their commands and links exist."""

import json
import re
import shlex
import shutil
import textwrap

import click
import pytest
import tiny
import yaml

from udpm.cli import VERBS, udpm
from udpm.runs.layout import Layout

README = (tiny.ROOT / "README.md").read_text()
INDEX, TUTORIAL = tiny.ROOT / "docs/README.md", tiny.ROOT / "docs/tutorial.md"
PAGES = [
    tiny.ROOT / "README.md",
    *sorted((tiny.ROOT / "docs").glob("*.md")),
    tiny.ROOT / "config/README.md",
    tiny.ROOT / "results/README.md",
]
COMMAND = re.compile(r"`(udpm [^`]+)`|^(?: {3,7}|: )(udpm [^#\n]+)", re.MULTILINE)


def blocks(page, language):
    return [textwrap.dedent(text) for text in re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.M | re.S)]


def named(page, config):
    """Write the files that a page shows with their names in a comment; return the names of the experiments."""
    experiments = []
    for text in blocks(page, "yaml"):
        if place := re.search(r"# config/((?:datasets|experiments)/(\S+)\.yaml)", text):
            (config / place[1]).write_text(text)
            experiments += [place[2]] * place[1].startswith("experiments")
    return experiments


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("docs/tutorial.md", 3), ("docs/data.md", 0)])
def test_the_files_that_a_page_shows_resolve(page, count, tmp_path):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    experiments = named((tiny.ROOT / page).read_text(), tmp_path / "config")
    assert len(experiments) == count
    for name in experiments:
        assert tiny.call("resolve", name, "--config", tmp_path / "config", "--output", tmp_path / "run.json") == 0
        run = yaml.safe_load((tmp_path / "run.json").read_text())
        assert run["dataset"]["side"] in (16, 32, 64)


def test_the_tutorials_pictures_may_have_classes(tmp_path):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    named(TUTORIAL.read_text(), tmp_path / "config")
    with (tmp_path / "config/datasets/photos.yaml").open("a") as file:
        file.write("classes: 3\n")
    experiment = tmp_path / "config/experiments/photos.yaml"
    text = experiment.read_text()
    assert text.count(", class_conditional: false") == 1
    text = text.replace(", class_conditional: false", "").replace("discriminator: {class_conditional: false}\n", "")
    experiment.write_text(re.sub("^scoring: .*\n", "", text, flags=re.M))
    assert tiny.call("resolve", "photos", "--config", tmp_path / "config", "--output", tmp_path / "run.json") == 0
    assert yaml.safe_load((tmp_path / "run.json").read_text())["generator"]["class_conditional"]


@pytest.mark.parametrize("page", ["README.md", "docs/sampling.md"])
def test_the_python_of_a_page_runs(page, trained, tmp_path, monkeypatch):
    code = "".join(blocks((tiny.ROOT / page).read_text(), "python"))
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r'"results/runs/digits/seed0"', repr(str(trained)), code), names)
    assert names["images"].shape == (16, 16, 16, 3)
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r'save\("(.*?)"\)', code))


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells run in order, with a model that has all options; it contains no outputs and is short."""
    notebook = json.loads((tiny.ROOT / "examples/tour.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(notebook["cells"]) <= 12
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    tiny.save_random_weights(tmp_path / "weights.safetensors", **tiny.ALL)
    monkeypatch.setenv("UDPM_RUN", str(tmp_path))
    names, shown = {}, []
    for cell in cells:
        *lines, last = cell["source"]
        exec("".join(lines), names)
        shown.append(eval(last, names))
    assert [names[name].shape[:-3] for name in ("images", "mixed", "perturbed", "swapped")] == [
        (16,),
        (6, 6),
        (6, 2, 5),
        (2, 8),
    ]
    sizes = [(4, 4), (8, 10), (6, 6), (5, 12), (8, 2)]
    assert [picture.size for picture in shown[1:]] == [tuple(count * 66 - 2 for count in size) for size in sizes]
    assert Layout("../results").run("digits", 0) in "".join(cells[0]["source"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tiny.ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tiny.ROOT)))
def test_commands_and_their_options_exist(page):
    for command in map("".join, COMMAND.findall(page.read_text())):
        words = shlex.split(command.replace("'", "").replace("\n", " "))[1:]
        known, options = udpm, {"--help", "--version", "--usage"}
        while isinstance(known, click.Group) and words and re.fullmatch("[a-z]+", words[0]):
            known = known.get_command(click.Context(known), words.pop(0))
            assert known, command
            options |= {option for given in known.params for option in (*given.opts, *given.secondary_opts)}
        if known is not udpm:
            asked = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--command"}
            assert "--command" in words or asked <= options, command


def test_the_list_of_commands_is_whole():
    rows = dict(re.findall(r"^\| `([a-z]+)` \| (.*?) \|", (tiny.ROOT / "docs/commands.md").read_text(), re.M))
    assert {name for name in rows if name in VERBS} == set(VERBS)
    for name in VERBS:
        command = udpm.get_command(click.Context(udpm), name)
        if isinstance(command, click.Group):
            assert set(re.findall("`([a-z]+)`", rows[name])) == set(command.list_commands(click.Context(command)))


def test_the_index_has_every_page():
    linked = {(INDEX.parent / target).resolve() for target in re.findall(r"\]\(([^)#:]*)\)", INDEX.read_text())}
    assert {page for page in PAGES if page not in (INDEX, PAGES[0])} <= linked


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130
