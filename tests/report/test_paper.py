"""The paper's tables: published next to measured scores, "not run", verdicts, protocols, bytes, bad input."""

import base64
import functools
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import dag
import jsonschema
import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from matplotlib.transforms import Bbox
from PIL import Image
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexGroupNode, LatexWalker
from scored import fid, results, sampled_run, save_samples

import udpm
from udpm.bench import measure
from udpm.cli import main
from udpm.config import load_experiment, resolve_run
from udpm.config.published_scores import PublishedTable, load_published, load_runtime, published_names, table_names
from udpm.config.schema import json_schema
from udpm.config.validation import validate
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.metrics.distances import nearest_images
from udpm.networks.inference import count_cost
from udpm.report.figures import tradeoff
from udpm.report.figures.style import LARGEST
from udpm.report.paper.entries import entries, verdict
from udpm.report.paper.study import StudyReport
from udpm.report.pictures import draw_strip
from udpm.report.scores import summarize_scores
from udpm.report.table import Table
from udpm.sampling.sample_set import first_samples, join_shards, load_samples

CONFIG = tiny.ROOT / "config"
SUFFIXES = (".csv", ".md", ".tex", ".html")


def table1(folder, **scores):
    """The row of UDPM in the csv of Table 1: by checkpoint."""
    StudyReport(results(folder, **scores), CONFIG).write("table1", folder / "t")
    rows = pd.read_csv(folder / "t.csv", keep_default_na=False)
    return {row["checkpoint"]: row for _, row in rows[rows["experiment"] == "cifar10"].iterrows()}


def test_published_numbers():
    """A and B as noted when they were read."""
    tables = {name: load_published(name, CONFIG) for name in published_names(CONFIG)}
    assert set(tables) == {"table1", "table2", "peers", "peers-dinov2", "peers-clip", "retraining", "digits"}
    ours = {
        row.dataset: row.value for name in ("table1", "table2") for row in tables[name].rows if row.method == "UDPM"
    }
    assert ours == {"cifar10": 6.86149, "ffhq64": 7.41065, "afhqv2": 7.10142}
    ours = {row.dataset: row.value for row in tables["peers"].rows if row.method == "UDPM"}
    assert ours == {"cifar10": 6.86149, "ffhq64": 7.41065, "afhqv2": 7.10142}
    assert [row.value for row in tables["digits"].rows] == [None]
    assert (load_runtime(CONFIG).step_cost("ffhq64"), load_runtime(CONFIG).step_cost("digits")) == (42.52, None)


@pytest.mark.parametrize("path", sorted((CONFIG / "published").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_files_fit_their_schemas(path):
    kind = "runtime" if path.stem == "runtime" else "published"
    jsonschema.Draft202012Validator(json_schema(kind)).validate(yaml.safe_load(path.read_text()))
    assert path.read_text().startswith(f"# yaml-language-server: $schema=../schema/{kind}.schema.json")


def test_the_study_of_the_paper_lists_its_experiments():
    study = yaml.safe_load((CONFIG / "paper.yaml").read_text())
    tables = [load_published(name, CONFIG) for name in ("table1", "table2")]
    assert study["experiments"] == [name for table in tables for name in table.experiments]


def test_nothing_measured_is_not_run_and_says_how_to(tmp_path):
    rows = table1(tmp_path)
    assert [row["state"] for row in rows.values()] == ["not run", "not run"]
    assert rows["last"]["to_fill"] == "`snakemake paper_tables --config experiments=cifar10`"
    markdown = (tmp_path / "t.md").read_text()
    ours = next(line for line in markdown.splitlines() if line.startswith("| UDPM"))
    assert ours.count("not run") == 3
    assert "] To fill: `snakemake paper_tables --config experiments=cifar10`." in markdown


@pytest.mark.parametrize(
    ("value", "expected"),
    [(6.86149, "reproduced"), (7.20, "reproduced"), (7.21, "not reproduced"), (6.52, "reproduced"), (6.51, "better")],
)
def test_the_verdict(tmp_path, value, expected):
    assert table1(tmp_path, seed0_best=fid(value))["best"]["verdict"] == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 10_000, "label": "FID-10k"}, "metric FID-10k, published FID; N 10000, published 50000"),
        ({"name": "another inception", "label": "FD"}, "extractor"),
        ({"selection": None}, "checkpoint last, published best"),
        ({"weights": "raw"}, "weights raw, published ema"),
        ({"classes": 0}, "class-conditional no, published yes"),
        ({"nfe": 4}, "NFE 4, published 3"),
        ({"guidance": 2.0}, "guidance 2"),
    ],
)
def test_another_protocol_is_never_compared(tmp_path, changes, reason):
    score = fid(1.0, **{key: value for key, value in changes.items() if key != "name"})
    if "name" in changes:
        score["protocol"]["extractor"]["name"] = changes["name"]
    rows = table1(tmp_path, seed0=score)
    row = rows["last" if "selection" in changes else "best"]
    assert row["verdict"] == "not comparable"
    assert reason in row["reason"]


def test_what_a_table_states_of_mode_and_reference_is_compared():
    table = load_published("table1", CONFIG)
    row = table.rows[-1]
    stated = table.protocol.model_copy(update={"preprocessing": "legacy", "split": "test"})
    score = fid() | {"experiment": "cifar10"}
    found = summarize_scores([score], "cifar10")[0]
    assert verdict(table, row, found)[0] == "reproduced"
    word, why = verdict(table.model_copy(update={"protocol": stated}), row, found)
    assert word == "not comparable"
    assert "preprocessing to 299×299, published legacy" in why
    assert "reference split train, published test" in why


def test_mean_and_spread_over_seeds_and_a_missing_one(tmp_path):
    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    path = config / "experiments/cifar10.yaml"
    path.write_text(path.read_text().replace("seeds: [0]", "seeds: [0, 1, 2]"))
    folder = results(tmp_path, seed0_best=fid(6.0), seed1_best=fid(8.0, seed=1), seed0=fid(7.0, selection=None))
    markdown = StudyReport(folder, config).write("table1", tmp_path / "t")
    ours = next(line for line in markdown.splitlines() if line.startswith("| UDPM"))
    assert "7.00 ± 1.41 (2 seeds)" in ours
    assert "best: reproduced" in ours
    assert "cifar10: no score of seed 2; to fill" in markdown
    assert "cifar10: no score of seed 1, 2; to fill" in markdown


def test_scores_of_two_protocols_share_no_mean(tmp_path):
    other = fid(20.0, seed=1, n=10_000, label="FID-10k")
    StudyReport(results(tmp_path, seed0_best=fid(), seed1_best=other), CONFIG).write("table1", tmp_path / "t")
    ours = [line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("| UDPM")]
    assert len(ours) == 2
    assert any("20.00 FID-10k" in line and "not comparable" in line for line in ours)


def test_given_weights_are_neither_last_nor_best():
    score = fid(selection=None, origin={"files": []}) | {"experiment": "cifar10"}
    score["subject"]["iteration"] = None
    table = load_published("table1", CONFIG)
    experiments = {"cifar10": load_experiment("cifar10", CONFIG)}
    line = next(entry for entry in entries(table, [score], experiments) if entry.experiment)
    assert (line.last.checkpoint, line.best) == ("given", None)
    assert "checkpoint given, published best" in verdict(table, line.row, line.last)[1]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every table, rendered twice, with one measured score and one measured speed."""
    folder = results(tmp_path_factory.mktemp("paper"), seed0_best=fid())
    # What the paper's networks cost is tested where it is counted; here it need not be counted twice.
    with pytest.MonkeyPatch.context() as patch:
        counted = functools.cache(lambda name: count_cost(resolve_run(name, 0, CONFIG)))
        patch.setattr("udpm.report.paper.study.count_cost", lambda run: counted(run.experiment))
        patch.setattr(measure, "LARGEST", 256)
        patch.setattr(measure, "COPIED_BYTES", 1 << 16)
        return rendered_twice(folder)


def rendered_twice(folder):
    tiny.call("bench", "sample", "digits", "--seconds", 0, "--batch", 2, "--output", folder / "speed/digits.json")
    for name in ("a", "b"):
        code = tiny.call(
            "paper", "--results", folder, "--config", CONFIG, "--experiment", "digits", "--output", folder / name
        )
        assert not code
    return folder


@pytest.mark.parametrize("name", table_names(CONFIG))
def test_same_scores_same_bytes_and_latex_that_parses(everything, name):
    for suffix in SUFFIXES:
        first, second = ((everything / part / f"{name}{suffix}").read_bytes() for part in "ab")
        assert first == second
    text = (everything / "a" / f"{name}.tex").read_text()
    nodes, _, length = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert length == len(text)
    groups = [node.nodelist for node in nodes if isinstance(node, LatexGroupNode)]
    found = [node.environmentname for group in groups for node in group if isinstance(node, LatexEnvironmentNode)]
    # A page does not hold all peers.
    assert found == ["longtable" if name == "peers" else "tabular"]
    assert "`" not in text
    assert not set("αβγλσ") & set(text.partition("\n")[2])


def test_set_ups_and_run_time(everything):
    generator = pd.read_csv(everything / "a/generator.csv", index_col=0, keep_default_na=False)
    assert generator.loc["parameters", ["cifar10", "ffhq64"]].tolist() == ["57.74 M", "65.41 M"]
    training = pd.read_csv(everything / "a/training.csv", index_col=0)
    assert training.loc["λa (adversarial)", "cifar10"] == "0.2, 0.5, 1"
    runtime = pd.read_csv(everything / "a/runtime.csv").set_index("what")
    assert runtime.loc["digits", "images_per_second"] > 0
    assert runtime.loc["cifar10", "state"] == "not run"
    assert "udpm bench sample cifar10 --output" in (everything / "a/runtime.md").read_text()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("value: 13.36", "value: many", "table1.yaml: rows[0].value: input should be a valid number, got 'many'"),
        ("value: 13.36", "valeu: 13.36", "table1.yaml: rows[0].valeu: unknown key; did you mean value?"),
        (
            "standing: B, source: udpm-baselines}",
            "standing: Z, source: udpm-baselines}",
            "rows[0].standing: input should be",
        ),
        ("value: 13.36, standing: B", "value: 13.36", "rows[0].value: 13.36 needs a standing"),
        ("source: edm,", "source: edn,", "rows[2].source: edn is not among the sources"),
    ],
)
def test_a_mistake_in_one_file_stops_its_table_alone(tmp_path, capsys, before, after, expected):
    shutil.copytree(CONFIG, tmp_path / "config")
    path = tmp_path / "config/published/table1.yaml"
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(SystemExit) as stop:
        main(["paper", "table1", "table2", "--config", str(tmp_path / "config"), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "out/table1.md").exists()
    assert (tmp_path / "out/table2.md").exists()


def test_a_mistake_in_published_costs_stops_the_run_time_alone(tmp_path, capsys):
    shutil.copytree(CONFIG, tmp_path / "config")
    path = tmp_path / "config/published/runtime.yaml"
    path.write_text(path.read_text().replace("image: 13.35", "image: many"))
    given = ("--results", tmp_path, "--config", tmp_path / "config", "--output", tmp_path / "out")
    assert tiny.call("paper", "runtime", "table1", *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runtime.yaml: costs[0].image: input should be a valid number, got 'many'" in line
    assert not (tmp_path / "out/runtime.md").exists()
    assert "not run" in (tmp_path / "out/table1.md").read_text()


def test_a_published_number_is_counted_or_read_but_not_both(everything):
    """The paper's own line of costs holds nothing that was counted elsewhere."""
    costs = pd.read_csv(everything / "a/runtime.csv").dropna(subset="standing").set_index(["what", "standing"])
    assert np.isnan(costs.loc[("published, 64×64", "A"), "generator_mega_parameters"])
    assert set(costs.loc[("published code, 64×64", "C"), "generator_mega_parameters"]) == {65.41}


def test_a_table_of_nothing_measured_here_has_no_columns_for_it(everything):
    text = (everything / "a/retraining.md").read_text()
    assert "measured" not in text.partition("\n\n- ")[0]
    assert "30.58 h of training, 1.88 s for a batch." in text
    assert " 98.61 |" in text


def test_bad_input(tmp_path, capsys):
    assert tiny.call("paper", "tabel1", "--config", CONFIG, "--output", tmp_path / "out") == 2
    assert "tabel1: no such table; there are: digits, peers" in capsys.readouterr().err
    path = results(tmp_path, seed0=fid()) / "scores/cifar10/seed0.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"seed0\.json: not a readable score"):
        StudyReport(tmp_path, CONFIG).write("table1", tmp_path / "t")


@pytest.fixture(scope="module")
def study(trained, digits, tmp_path_factory):
    """Results of one finished run: its folder as training left it, its samples and one score."""
    folder = tmp_path_factory.mktemp("study")
    made_by = sha256(sampled_run(folder, trained, 40) / "weights.safetensors")
    score = fid(18.0, "digits", selection=None, classes=10, label="FD (digits features)", n=40, weights_sha256=made_by)
    results(folder, seed0=score)
    return folder


def test_the_summary(study, tmp_path):
    for name in ("a", "b"):
        assert not tiny.call("summary", "digits", "--results", study, "--config", CONFIG, "--output", tmp_path / name)
    for name in ("summary.md", "overview.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a/summary.md").read_text()
    assert "| digits, seed 0 | digits" in text
    assert "18.00" in text
    assert "cifar10: is not in this study; `snakemake all --config experiments=cifar10`." in text
    assert "digits: the best checkpoint is not scored" in text
    page = (tmp_path / "a/overview.html").read_text()
    assert "What is missing" in page
    # The other experiments of the table have published scores, this one has none.
    assert "published" not in text.partition("## What ran")[0]
    assert "runs/digits/seed0/README.md)" in text
    assert re.search(r'<a href="[^"]*/figures/digits">figures</a>', page)
    shown = re.search(
        r'digits, seed 0: nothing was selected<br><img alt="[^"]*" src="data:image/png;base64,([^"]*)"', page
    )
    with Image.open(io.BytesIO(base64.b64decode(shown[1]))) as strip:
        first = load_samples(study / "samples/digits/seed0.npz").images[0]
        factor = 64 // len(first)
        assert strip.size == (12 * (factor * len(first) + 4) - 4, factor * len(first))
        assert (np.asarray(strip)[::factor, : factor * len(first) : factor] == first).all()


def test_the_first_samples_of_a_set_in_shards_are_read_without_the_others(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 80, 80, 3), dtype=np.uint8)
    parts = [tmp_path / f"{index}.npz" for index in (1, 2)]
    for index, path in enumerate(parts, 1):
        save_samples(path, images // index, np.zeros(6, int), {"shard": [index, 2], "classes": 0})
    join_shards(parts, tmp_path / "all.json")
    assert (first_samples(tmp_path / "all.json", 4) == images[:4]).all()
    assert len(first_samples(tmp_path / "all.json", 9)) == 6
    with Image.open(io.BytesIO(draw_strip(tmp_path / "all.json"))) as strip:
        assert strip.height == 64
    np.savez(parts[0], images=images / 255)
    with pytest.raises(UserError, match=r"1\.npz: images is float64 .*; expected uint8 \(n, h, w, 3\)"):
        first_samples(tmp_path / "all.json", 4)


def test_text_is_left_and_numbers_are_right():
    cells = {"name": ["1 a", "b"], "score": ["1.50 ± 0.1 (2 seeds)", "not run [1]"], "torch": ["2.13.0+cpu", "–"]}
    table = Table(pd.DataFrame(cells | {"share": ["7%", "–"], "verdict": ["–", "none"]}), [], "T")
    rule = table.markdown().splitlines()[1].split("|")[1:-1]
    assert ["right" if cell.endswith(":") else "left" for cell in rule] == ["left", "right", "left", "right", "left"]
    assert r"\begin{tabular}{lrlrl}" in table.latex()


def test_the_summary_holds_what_other_calls_scored(study, tmp_path):
    """Marked as such, whether its configuration is still there or not; points of sweeps are in their ranking."""
    for name, value in (("digits-plus", 9.25), ("gone", 8.75), ("sweep.point", 7.25)):
        results(study, seed0=fid(value, name, selection=None, classes=10, label="FD (digits features)", n=40))
    assert not tiny.call("summary", "digits", "--results", study, "--config", CONFIG, "--output", tmp_path)
    text = (tmp_path / "summary.md").read_text()
    headlines, _, rest = text.partition("## Scored by other calls")
    assert "18.00" in headlines
    assert "9.25" not in headlines
    others = rest.partition("## What ran")[0]
    assert "9.25" in others
    assert "8.75" in others
    assert "7.25" not in text
    assert "This call neither made nor checked their scores." in others
    assert "Scored by other calls" in (tmp_path / "overview.html").read_text()


def test_the_floor_in_the_summary_has_as_many_images_as_the_samples(tmp_path):
    for seed, value in ((0, 20.0), (1, 22.0)):
        score = fid(18.0, "digits", seed, selection=None, classes=10, n=1000)
        score["metrics"]["frechet_distance_matched"] = {"value": value, "label": "FID", "n": 500}
        results(tmp_path, **{f"seed{seed}": score})
    floor = fid(3.0, "digits", classes=10, n=800)
    floor["subject"] = {"kind": "heldout", "experiment": "digits"}
    floor["metrics"]["frechet_distance_matched"] = {"value": 5.5, "label": "FID", "n": 500}
    results(tmp_path, heldout=floor)
    assert not tiny.call("summary", "digits", "--results", tmp_path, "--config", CONFIG, "--output", tmp_path)
    text = " ".join((tmp_path / "summary.md").read_text().split())
    assert "| digits | last | FID | 18.00 ± 0.00 (2 seeds) | 1000 | 21.00 (500) | 5.50 (500) |" in text
    assert "| held-out images (floor), N = 800 |" in StudyReport(tmp_path, CONFIG).write("digits", tmp_path / "table")


def test_multiply_adds_of_peers():
    runtime, peers = load_runtime(CONFIG), load_published("peers", CONFIG)
    costs = {(row.method, row.dataset, row.nfe): runtime.image_cost(row) for row in peers.rows}
    assert costs["R3GAN", "cifar10", 1] == 7.02
    assert costs["Denoising diffusion GAN", "cifar10", 4] == pytest.approx(4 * 7.03)
    assert costs["EDM", "ffhq64", 79] == pytest.approx(79 * 42.52)
    assert costs["UDPM", "cifar10", 3] == 7.05
    assert costs["DDPM", "cifar10", 1000] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"giga_multiply_adds": 7.0}, "family: is missing; must be one of gan, scratch, distilled, sampler"),
        ({"step_network": True, "giga_multiply_adds": 7.0, "family": "gan"}, "step_network states the cost"),
        ({"family": "GAN"}, "family: "),
    ],
)
def test_a_peer_whose_cost_is_not_clear_is_refused(changes, expected):
    row = {"method": "A", "dataset": "cifar10", "nfe": 1, "value": 2.0, "standing": "A", "source": "own"} | changes
    with pytest.raises(UserError, match=re.escape(expected)):
        validate(PublishedTable, {"title": "t", "figure": True, "sources": {"own": "x"}, "rows": [row]}, "peers.yaml")


def test_the_tradeoff_has_guidance_at_twice_the_cost_and_no_chosen_classes(tmp_path):
    given = {"plain": fid(), "guided": fid(5.0, run_seed=1, guidance=2.0, nfe=6)}
    given["chosen"] = fid(4.0, run_seed=2, labels=[3, 5])
    tables = [load_published(name, CONFIG) for name in published_names(CONFIG)]
    scores = StudyReport(results(tmp_path, **given), CONFIG).scores()
    points = tradeoff.tradeoff_points(tables, load_runtime(CONFIG), scores)
    plain, guided = (points[points["fid"] == value].iloc[0] for value in (6.9, 5.0))
    assert guided["giga_multiply_adds"] == 2 * plain["giga_multiply_adds"]
    assert (plain["nfe"], guided["nfe"]) == (3, 6)
    assert 4.0 not in points["fid"][points["kind"] == "measured"].tolist()


def test_labels_of_the_tradeoff_hide_neither_marks_nor_each_other():
    frame, taken, size = Bbox.from_bounds(0, 0, 400, 300), [], 4.0
    points = [np.array([200.0 + dx, 150.0 + dy]) for dx in (0, 3) for dy in (0, 5, 30)] + [np.array([396.0, 296.0])]
    taken += [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in points]
    for point in points:
        box, _ = tradeoff._free_box(point, 60, 9, size, taken, frame)
        assert not any(tradeoff._overlap(box, other) for other in taken)
        assert tradeoff._overlap(box, frame) == pytest.approx(60 * 9)
        taken.append(box)


def test_a_summary_of_nothing(tmp_path):
    assert not tiny.call("summary", "digits", "--results", tmp_path, "--config", CONFIG, "--output", tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "Nothing has run to its end." in text
    assert "digits, seed 0: not trained to its end; `snakemake all --config experiments=digits`." in text


def test_the_card(study, tmp_path, capsys):
    run, score = study / "runs/digits/seed0", study / "scores/digits/seed0.json"
    assert not tiny.call("card", run, "--score", score, "--output", tmp_path / "README.md")
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["library_name"], values["datasets"]) == ("udpm", ["digits"])
    assert values["model-index"][0]["results"][0]["metrics"][0]["value"] == 18.0
    for part in (
        "## Data",
        "CC BY 4.0",
        "## Training",
        "## Scores",
        " of N = 40 images in features of ",
        "## Limits",
        "## Use",
    ):
        assert part in body
    assert not tiny.call("card", run, "--output", tmp_path / "plain.md")
    assert "Not run." in (tmp_path / "plain.md").read_text()
    capsys.readouterr()
    other = results(tmp_path, seed0=fid()) / "scores/cifar10/seed0.json"
    assert tiny.call("card", run, "--score", other, "--output", tmp_path / "no.md") == 2
    assert "not a score of run digits, seed 0" in capsys.readouterr().err


def test_a_run_is_exported_whole(study, tmp_path, capsys):
    target = tmp_path / "bundle"
    assert not tiny.call("export", study / "runs/digits/seed0", target)
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    samples = {"samples/seed0.npz", "samples/seed0.json", "samples.png"}
    assert (
        names
        == {"weights.safetensors", "config.json", "README.md", "bundle.json", "scores/seed0.json", ".udpm.json"}
        | samples
    )
    assert udpm.load(target / "weights.safetensors").sample(2, labels=0).shape == (2, 16, 16, 3)
    assert not tiny.call("export", study / "runs/digits/seed0", "--output", target)
    capsys.readouterr()
    for arguments, expected in (
        ((study / "runs/digits/seed0",), "give the folder or .zip to write to either"),
        ((study / "runs/digits/seed0", target, "--layout", "flat"), "--layout and --format are for sample sets"),
        ((study / "runs/digits", target), "record of a finished run not found"),
        ((study / "runs/digits/seed0", study / "runs"), "contains"),
    ):
        assert tiny.call("export", *arguments) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("made_by", ["0" * 64, None, "milestone"])
def test_samples_and_scores_of_earlier_weights_are_not_exported(study, tmp_path, capsys, made_by):
    """Samples of replaced weights are refused; those of a kept milestone belong to the run."""
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    run = folder / "runs/digits/seed0"
    score, samples = folder / "scores/digits/seed0.json", folder / "samples/digits/seed0.json"
    card, bundle = f"card {run} --score {score} --output {run}/README.md", f"export {run} {folder}/bundle"
    if made_by == "milestone":
        (run / "milestones").mkdir()
        (run / "milestones/000000008.safetensors").write_bytes(b"kept")
        made_by = sha256(run / "milestones/000000008.safetensors")
        expected = {}
    else:
        expected = dict.fromkeys((score, samples), "does not record" if made_by is None else "of other weights")
    for path in (score, samples):
        whole = path.read_text()
        values = json.loads(whole)
        values.pop("record_sha256", None)
        values.get("subject", values).update(weights_sha256=made_by, iteration=8)
        path.write_text(json.dumps(values))
        for command in (card, bundle) if path == score else (bundle,):
            if path in expected:
                tiny.assert_refused(folder, command, expected[path], capsys)
            else:
                assert not tiny.call(*command.split())
        path.write_text(whole)


@pytest.mark.slow
def test_figures(study, digits, tmp_path):
    results(tmp_path, seed0_best=fid(9.0))
    samples = study / "samples/digits/seed0.npz"
    for name in ("a", "b"):
        assert not tiny.call(
            "figure", "tradeoff", "--results", tmp_path, "--config", CONFIG, "--output", tmp_path / f"{name}t"
        )
        assert not tiny.call(
            "figure", "neighbours", samples, "--dataset", digits / "dataset", "--output", tmp_path / f"{name}n"
        )
    for suffix in (".svg", ".pdf", ".png", ".csv"):
        for kind in "tn":
            assert (tmp_path / f"a{kind}{suffix}").read_bytes() == (tmp_path / f"b{kind}{suffix}").read_bytes()
    points = pd.read_csv(tmp_path / "at.csv")
    ours = points[points["method"] == "UDPM"].set_index(["dataset", "kind"])
    assert ours.loc[("cifar10", "measured"), ["giga_multiply_adds", "fid"]].tolist() == [7.05, 9.0]
    assert ours.loc[("cifar10", "published"), "fid"] == 6.86149
    assert set(points["kind"]) == {"published", "measured"}
    assert points[points["method"] == "EDM"]["giga_multiply_adds"].tolist()[0] == pytest.approx(35 * 20.99)
    shown = pd.read_csv(tmp_path / "an.csv")
    assert (shown["kind"] == "sample").sum() == 40
    with Image.open(tmp_path / "at.png") as image:
        assert max(image.size) <= LARGEST


def test_nearest_images_are_the_nearest():
    draw = np.random.default_rng(0)
    bank, images = (draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8) for count in (30, 7))
    images[3] = bank[11]
    numbers, distances = nearest_images(images, bank)
    apart = np.sqrt((((images[:, None] / 255.0) - bank[None] / 255.0) ** 2).mean((2, 3, 4)))
    assert (numbers == apart.argmin(1)).all()
    np.testing.assert_allclose(distances, apart.min(1), atol=1e-12)
    assert (numbers[3], distances[3]) == (11, 0)


def dry_run(folder, command="snakemake paper_tables --config"):
    """The jobs of a dry run: (rule, its wildcards)."""
    _, *words = shlex.split(command)
    done = dag.snakemake("-n", *words, f"results={folder}/results")
    assert done.returncode == 0, done.stderr
    rules = re.findall(r"^(?:local)?rule (\w+):$(?:\n .*)*?\n    wildcards: (.*)$", done.stdout, re.MULTILINE)
    return [(rule, dict(part.split("=") for part in wildcards.split(", "))) for rule, wildcards in rules]


def trained(jobs):
    return [wildcards["experiment"] for rule, wildcards in jobs if rule == "train_model"]


def test_paper_tables_train_what_the_study_lists_and_nothing_else(tmp_path):
    jobs = dry_run(tmp_path)
    assert trained(jobs) == ["digits"]
    assert sorted(wildcards["table"] for rule, wildcards in jobs if rule == "render_paper_table") == sorted(
        table_names(CONFIG)
    )


def test_the_study_of_the_paper_trains_its_experiments(tmp_path):
    command = "snakemake paper_tables --configfile config/paper.yaml --config"
    assert sorted(trained(dry_run(tmp_path, command))) == ["afhqv2", "cifar10", "ffhq64"]


def test_the_command_in_a_cell_fills_it(tmp_path):
    jobs = dry_run(tmp_path, table1(tmp_path)["last"]["to_fill"].strip("`"))
    assert trained(jobs) == ["cifar10"]
    assert ("render_paper_table", {"table": "table1"}) in jobs
    assert ("score_samples", {"experiment": "cifar10", "seed": "0", "extractor": ""}) in jobs
