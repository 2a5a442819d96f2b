"""A finished run as a folder to hand on: weights, configuration, model card, samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from udpm.config.load import to_json
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json, write_text
from udpm.core.folders import atomic_folder
from udpm.core.kinds import BUNDLE
from udpm.data.samples import load_samples
from udpm.reporting.card import check_of_run, model_card, results_of, run_config
from udpm.training.records import read_complete

FORMAT = "udpm-bundle/1"
RECORD = "bundle.json"
WEIGHTS = "weights.safetensors"


def bundle_run(run: Path, folder: Path) -> list[str]:
    """Gather what belongs to a finished run.

    Its samples and scores are found beside it, in the results it lies in (RESULTS/runs/EXPERIMENT/seedN); what is not
    there is left out.

    Args:
        run: its folder.
        folder: where to; an unchanged bundle is replaced once the new one is whole, anything else is refused.

    Returns:
        Names of the files.

    Raises:
        UserError: the run is not finished, its weights are not those of its record, samples or scores are of other
            weights, or `folder` holds something else.
    """
    run = run.resolve()
    record = read_complete(run)
    if sha256(run / WEIGHTS) != record["weights_sha256"]:
        raise UserError(f"{run / WEIGHTS}: not the weights that complete.json records; train or import them again")
    results, place = results_of(run), Path(run.parent.name) / run.name
    scores = sorted((results / "scores" / place.parent).glob(f"{place.name}*.json"))
    scores = [path for path in scores if path.stem in (place.name, f"{place.name}_best")]
    with atomic_folder(folder, BUNDLE) as building:
        shutil.copyfile(run / WEIGHTS, building / WEIGHTS)
        write_text(building / "config.json", to_json(run_config(run)))
        write_text(building / "README.md", model_card(run, scores))
        for path in scores:
            (building / "scores").mkdir(exist_ok=True)
            shutil.copyfile(path, building / "scores" / path.name)
        _copy_samples(results / "samples" / place, building / "samples", run, record)
        names = sorted(str(path.relative_to(building)) for path in building.rglob("*") if path.is_file())
        write_json(building / RECORD, {"format": FORMAT, "run": record, "files": names})
    return [*names, RECORD]


def _copy_samples(stem: Path, folder: Path, run: Path, complete: dict[str, Any]) -> None:
    """The run's sample set and its record, once they are seen to belong together; shards keep their names."""
    record = stem.with_suffix(".json")
    if not record.exists():
        return
    told = load_samples(record).record
    check_of_run(record, "a sample set", told, run, complete)
    folder.mkdir()
    shards = [stem.parent / part["file"] for part in told.get("shards") or []]
    for path in [record, *(shards or [stem.with_suffix(".npz")])]:
        for file in {path, path.with_suffix(".json")}:
            shutil.copyfile(file, folder / file.name)
