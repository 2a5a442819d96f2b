"""Only one file spells paths below the folder of results."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from tiny import ROOT

from udpm.runs import layout
from udpm.runs.layout import FURTHER, Layout, milestone, results_of, suffix_of

FOLDERS = (
    *(folder for folder in layout.READ if folder != "content"),
    *("benchmarks", "figures", "logs", "milestones", "snapshots", "sweeps", "tables"),
)
SPELLED = re.compile(rf"(?:^|/)(?:{'|'.join(FOLDERS)})/")
OTHERS = {
    # Samples and scores in a bundle, and files of the configuration.
    "udpm/report/card.py": {"building / 'scores'", "building / 'samples'"},
    "udpm/config/load.py": {"Path(config) / 'sweeps'", "Path(config) / 'datasets'"},
    "udpm/interop/convert.py": {"folder / 'datasets'"},
}
"""Folders with these names outside the folder of results."""


def spelled(tree):
    """Find expressions of a module that build such a path, except examples in help and documentation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            if isinstance(node.right.value, str) and SPELLED.search(f"{node.right.value}/"):
                yield ast.unparse(node)
        elif isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            if not ast.unparse(node).startswith("f'{CONFIG}") and re.match(rf"\{{\}}/(?:{'|'.join(FOLDERS)})/", text):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").endswith("glob"):
            yield from (ast.unparse(node) for given in node.args if SPELLED.match(str(getattr(given, "value", ""))))


def test_no_other_module_spells_a_path_of_results():
    found = {}
    for path in [*(ROOT / "udpm").rglob("*.py"), *(ROOT / "workflow").glob("*.py")]:
        name = str(path.relative_to(ROOT))
        here = set(spelled(ast.parse(path.read_text()))) - OTHERS.get(name, set())
        if here and name != "udpm/runs/layout.py":
            found[name] = here
    assert found == {}


@pytest.mark.parametrize(
    "text",
    ["results / 'runs' / name", "f'{results}/scores/{name}.json'", "results.glob('runs/*')", "run / 'milestones'"],
)
def test_finds_a_spelled_path(text):
    assert list(spelled(ast.parse(text)))


def test_no_rule_spells_a_path_of_results():
    for path in [ROOT / "workflow/Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        lines = [line for line in path.read_text().splitlines() if "RESULTS}" in line or re.search(SPELLED, line)]
        paths = [line for line in lines if not re.search(r"LAYOUT\.(log|benchmark|usage|figure|table|sweep)\(", line)]
        assert [line for line in paths if "rules/" not in line and not line.lstrip().startswith(("#", '"""'))] == []


def test_patterns_match_the_paths_they_describe(tmp_path):
    results = Layout("some [where]*")
    assert results.weights() == "some [where]*/runs/{experiment}/seed{seed}/weights.safetensors"
    assert results.samples("_1of3.npz", "two", 5) == "some [where]*/samples/two/seed5_1of3.npz"
    for name, member in inspect.getmembers(results):
        if name[0] != "_" and name not in ("results", "found"):
            path = member if isinstance(member, str) else member(*["x"] * (name in first_arguments()))
            assert path.startswith("some [where]*/"), name
    here = Layout(tmp_path / "a [b]* {c}")
    for name, seed in (("two", 1), ("two", 0), ("three", 0)):
        Path(here.run(name, seed)).mkdir(parents=True)
        Path(here.completion(name, seed)).touch()
    assert here.found(here.completion("two", "*")) == [Path(here.completion("two", seed)) for seed in (0, 1)]
    assert len(here.found(here.run("*", "*"))) == 3
    run = Path(here.run("two", 0))
    assert results_of(run) == Path(here.results).resolve()
    assert milestone(run, 20) == run / "milestones/000000020.safetensors"


def test_every_extractor_has_files_with_another_name(tmp_path):
    extractors = [
        "dinov2",
        "dinov2.pt",
        "a/x.pt",
        "b/x.pt",
        "x",
        " $(touch PWNED)<name>\t.pt",
        "/",
        "\u540d.pt",
        "y" * 300,
    ]
    suffixes = [suffix_of(name) for name in extractors]
    assert len(set(suffixes)) == len(extractors)
    assert all(re.fullmatch(r"@[A-Za-z0-9-]{1,50}", suffix) for suffix in suffixes)
    here = Layout(tmp_path)
    paths = [
        here.scores(*given) for given in (("seed1", "x"), ("seed1", "x", "@a"), ("seed10", "x"), ("seed1_best", "x"))
    ]
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    assert here.found(here.scores("seed1", "x", FURTHER)) == [Path(paths[1])]


def first_arguments():
    """Return the methods whose first argument has no default."""
    methods = inspect.getmembers(Layout, inspect.isfunction)
    return {
        name
        for name, method in methods
        if any(p.default is p.empty for p in list(inspect.signature(method).parameters.values())[1:])
    }
