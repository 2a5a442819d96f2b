"""What the README says to type: its files resolve, its Python runs, its links lead somewhere."""

import re
import shutil

import pytest
import tiny
import yaml

README = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
PAGES = [tiny.ROOT / "README.md", *sorted((tiny.ROOT / "docs").glob("*.md")), tiny.ROOT / "config/README.md"]


def test_your_own_pictures_need_two_files(tmp_path):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    for kind, text in BLOCKS:
        if kind == "yaml":
            place = re.search(r"# (config/\w+/flowers\.yaml)", text).group(1)
            (tmp_path / place).write_text(text)
    dataset = yaml.safe_load((tmp_path / "config/datasets/flowers.yaml").read_text())
    assert tiny.call("resolve", "flowers", "--config", tmp_path / "config", "--output", tmp_path / "run.json") == 0
    run = yaml.safe_load((tmp_path / "run.json").read_text())
    assert run["dataset"]["path"] == dataset["path"]
    assert run["generator"]["class_conditional"]


def test_the_python_of_the_readme_runs(trained):
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    names = {}
    exec(re.sub(r'"results/.*?"', repr(str(trained / "weights.safetensors")), code), names)
    assert names["images"].shape == (16, 16, 16, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tiny.ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page}: {target}#{anchor}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130
