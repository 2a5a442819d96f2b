"""docs/code.md names files and functions that exist, and says what each folder may import."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from tiny import ROOT

MAP = (ROOT / "docs/code.md").read_text()
PLACES = sorted(set(re.findall(r"`((?:udpm|workflow|config|benchmarks)/[\w./-]*)(?::([\w.]+))?`", MAP)))
TREES = {path: ast.parse(path.read_text()) for path in [*ROOT.glob("udpm/**/*.py"), *ROOT.glob("workflow/*.py")]}


FOLDERS = re.findall(r"^`(\w+)/` may import: (.*)\.$", MAP, re.M)
ORDER = [folder for folder, _ in FOLDERS]
NO_TORCH = [folder for folder, allowed in FOLDERS if allowed.endswith("; no torch")]


def module_of(path):
    """Return the dotted name of a file; modules of the workflow, imported by bare name, get the prefix `workflow.`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): tree for path, tree in TREES.items()}


def imported(nodes):
    """Yield the modules that import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def imports(module, *, lazy):
    """Return the imports of a module as names of `MODULES`; with `lazy`, also those in functions and annotations."""
    tree = MODULES[module]
    found = set(imported(ast.walk(tree) if lazy else at_import(tree.body)))
    if module.startswith("workflow."):
        found = {f"workflow.{name}" if f"workflow.{name}" in MODULES else name for name in found}
    return found - {module}


def at_import(body):
    """Yield the statements that run on import, without functions and blocks for type checkers."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            yield from at_import(getattr(node, part, []))


def folder_of(module):
    """Return the folder of docs/code.md that a module belongs to; None for the top of the package."""
    top, *rest = module.split(".")
    if top == "workflow":
        return top
    return rest[0] if top == "udpm" and rest and rest[0] in ORDER else None


def defined(body):
    """Yield the names of functions and classes, and of members with a dot."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{name}" for name in defined(node.body) if isinstance(node, ast.ClassDef))


def test_the_map_answers_many_questions():
    assert len([name for _, name in PLACES if name]) > 50


@pytest.mark.parametrize(("file", "name"), PLACES, ids=":".join)
def test_every_place_exists(file, name):
    path = ROOT / file
    assert path.exists()
    if name:
        assert not {name} - set(defined(TREES[path].body))


def test_every_folder_has_its_line_and_paragraph():
    found = {path.parent.name for path in ROOT.glob("udpm/*/__init__.py")}
    assert sorted(ORDER) == sorted(found | {"workflow"})
    for folder in ORDER:
        assert re.search(rf"^\*\*`(udpm/)?{folder}/`\*\* owns ", MAP, re.M), folder


@pytest.mark.parametrize(("folder", "allowed"), FOLDERS, ids=ORDER)
def test_imports_point_downwards(folder, allowed):
    below = ORDER[: ORDER.index(folder)]
    may = below if allowed.startswith("everything") else re.findall(r"`(\w+)`", allowed)
    assert set(may) <= set(below), "a folder may only import those that come before it"
    for module in filter(lambda name: folder_of(name) == folder, MODULES):
        for other in imports(module, lazy=True):
            assert folder_of(other) in {None, folder, *may}, f"{module} imports {other}"


def test_no_file_is_too_long_to_read():
    files = [
        *ROOT.glob("udpm/**/*.py"),
        *ROOT.glob("workflow/*.py"),
        *ROOT.glob("workflow/**/*.smk"),
        ROOT / "workflow/Snakefile",
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_module_imports_itself_through_others():
    graph = {module: imports(module, lazy=True) & MODULES.keys() for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", NO_TORCH)
def test_importing_it_imports_no_torch(folder):
    """It would cost `udpm --help`, planning and every rule seconds."""
    left = [module for module in MODULES if folder_of(module) == folder]
    seen = {module: [module] for module in left}
    while left:
        module = left.pop()
        for other in imports(module, lazy=False):
            assert other.split(".")[0] not in {"torch", "torchvision"}, " -> ".join([*seen[module], other])
            parents = [other.rsplit(".", count)[0] for count in range(other.count(".") + 1)]
            for name in parents:
                if name in MODULES and name not in seen:
                    seen[name] = [*seen[module], name]
                    left.append(name)
