"""The DAG with Inception: fetched or found, in all three modes, without a network."""

import json
import shutil

import inception
import pytest
import yaml
from test_workflow import SOURCES, snakemake
from tiny import ROOT

from udpm.core.files import sha256

MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")


@pytest.fixture
def study(tmp_path):
    """A copy of the project's sources with an experiment for each mode and a stand-in for Inception."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    digest = sha256(inception.write(tmp_path / "weights"))
    scoring = {"extractor": "inception", "inception_folder": "weights", "inception_sha256": digest, "download": False}
    for mode in MODES:
        values = {"extends": "digits-smoke", "scoring": scoring | {"inception_mode": mode, "kernel_subsets": 3}}
        (tmp_path / f"config/experiments/{mode}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.mark.slow
def test_inception_runs_offline_in_all_modes(study):
    given = ("--config", f"experiments=[{','.join(MODES)}]")
    targets = [f"results/scores/{mode}/noise.json" for mode in MODES]
    done = snakemake(*targets, *given, cwd=study)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [json.loads((study / target).read_text()) for target in targets]
    assert len({score["protocol"]["preprocessing"] for score in scores}) == 3
    assert all(score["metrics"]["inception_score"]["value"] >= 1 for score in scores)
    assert "FID" not in scores[0]["metrics"]["frechet_distance"]["label"]
    assert list((study / "results/features").glob("*.npy"))
    again = snakemake("-n", *targets, *given, cwd=study)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_missing_weights_are_fetched_before_anything_needs_them(study):
    (study / "weights/inception-2015-12-05.pt").unlink()
    done = snakemake("-n", "results/scores/clean/noise.json", "--config", "experiments=clean", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "fetch_inception" in done.stdout
