"""`paper_tables`, `sweep` and `figures` on a live SLURM: submitted jobs, and every file that they make."""

import re
from collections import Counter

import numpy as np
import pandas as pd
from conftest import rules_of

from udpm.config import load_experiment, load_sweep
from udpm.config.published_scores import table_names

IMAGE = ("png", "svg", "pdf", "csv")
TABLE = ("csv", "md", "tex", "html")


def submitted(study, command):
    """Run a command; return the number of submitted jobs by rule, alone or in a group."""
    known = {job for job, _ in study.states()}
    done = study.shell(command)
    assert done.returncode == 0, done.stderr[-6000:] + study.training_log()
    rows = [line.split("|") for line in study.cluster.ask("sacct", "-nPX", "-o", "jobid,comment,state").splitlines()]
    new = [(comment, state) for job, comment, state in rows if job not in known]
    assert {state for _, state in new} <= {"COMPLETED"}
    assert len(new) == done.stderr.count("has been submitted with SLURM jobid")
    jobs = Counter(re.findall(r"^ *rule (\w+):$", done.stderr, re.MULTILINE))
    assert set().union(*(rules_of(comment, set(jobs)) for comment, _ in new)) == set(jobs)
    return jobs


def complete(folder, stem, kinds):
    """Return whether a table or figure exists in all its formats."""
    return all((folder / f"{stem}.{kind}").stat().st_size for kind in kinds)


def test_paper_tables(shared_study):
    jobs = submitted(shared_study, "snakemake --profile slurm paper_tables")
    assert jobs["train_model"] == jobs["measure_speed"] == 1
    folder = shared_study.folder / "results/tables/paper"
    for name in table_names(shared_study.folder / "config"):
        assert complete(folder, name, TABLE), name
    for table, names in (("table1", ["cifar10"]), ("table2", ["ffhq64", "afhqv2"])):
        ours = pd.read_csv(folder / f"{table}.csv").dropna(subset="experiment")
        assert ours["experiment"].tolist() == [name for name in names for _ in ("last", "best")]
        assert set(ours["state"]) == {"not run"}
        for name in names:
            command = f"snakemake paper_tables --config experiments={name}"
            assert (ours["experiment"] == name).equals(ours["to_fill"].str.endswith(f"`{command}`"))
            assert f"To fill: `{command}`." in (folder / f"{table}.md").read_text()
        for kind in ("md", "tex"):
            assert (folder / f"{table}.{kind}").read_text().count("not run [") == 2 * len(names)
    # The digits keep no milestones to select from.
    assert pd.read_csv(folder / "digits.csv").dropna(subset="experiment")["state"].tolist() == ["not run", "none"]
    runtime = pd.read_csv(folder / "runtime.csv").set_index("what")
    assert runtime.loc["smoke", "images_per_second"] > 0
    assert runtime.loc["cifar10", "state"] == "not run"
    assert "As it ran (resolved configuration of the run): smoke." in (folder / "training.md").read_text()


def test_sweep(shared_study):
    jobs = submitted(shared_study, "snakemake --profile slurm sweep --config sweep=schedules-smoke")
    config = shared_study.folder / "config"
    points = [point.point.name for point in load_sweep("schedules-smoke", config).points.values()]
    assert jobs["sample_images"] == jobs["score_samples"] == len(points)
    # The point that differs in sampling alone shares a training.
    assert jobs["train_model"] == len(points) - 1
    folder = shared_study.folder / "results/sweeps/schedules-smoke"
    for stem, kinds in (("plan", TABLE), ("ranking", TABLE), ("heat_end", IMAGE), ("strip", IMAGE)):
        assert complete(folder, stem, kinds), stem
    tables = {stem: pd.read_csv(folder / f"{stem}.csv") for stem in ("plan", "ranking", "heat_end", "strip")}
    for stem, expected in (("plan", points), ("ranking", points), ("heat_end", points[1:]), ("strip", points)):
        assert sorted(tables[stem]["point"]) == sorted(expected)
        column = "device_hours" if stem == "plan" else "frechet_distance"
        assert np.isfinite(tables[stem][column]).all()
    assert tables["ranking"]["rank"].tolist() == [1, 2, 3]
    (config / "experiments/best.yaml").write_text((folder / "best.yaml").read_text())
    assert (
        load_experiment("best", config).training.iterations
        == load_experiment("digits-paper", config).training.iterations
    )


def test_figures(shared_study):
    jobs = submitted(shared_study, "snakemake --profile slurm figures")
    assert jobs["explore_latents"] == 4
    folder = shared_study.folder / "results/figures"
    latents = [f"latents_{kind}" for kind in ("perturb", "swap", "interpolate", "pca")]
    run = [f"smoke/seed0/{kind}" for kind in ("samples", "chain", "neighbours", "curves", "diagnosis", *latents)]
    expected = ["smoke/schedule", "smoke/forward", *run, "paper/tradeoff"]
    # Figures of the study's experiments; points of a sweep have their strip.
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == sorted(
        f"{x}.png" for x in expected
    )
    for stem in expected:
        assert complete(folder, stem, IMAGE), stem
