"""Sample sets and scores as the commands write them, and a run with samples."""

from __future__ import annotations

import json
import shutil

from udpm.config import Sampling
from udpm.sampling.generate import draw_samples
from udpm.sampling.sample_set import save_batches


def save_samples(path, images, labels, record, outputs=None):
    """Write a whole sample set; arrays are as in `SampleSet`."""
    save_batches(path, [{1: images, **(outputs or {})}], labels, record)


def sampled_run(folder, trained, count):
    """Copy a trained run into a folder of results, draw a set of its samples there, and return the run's folder."""
    run = folder / "runs/digits/seed0"
    shutil.copytree(trained, run)
    (folder / "samples/digits").mkdir(parents=True)
    draw_samples(run / "weights.safetensors", Sampling(count=count, threads=1), folder / "samples/digits/seed0.npz")
    return run


def fid(value=6.9, experiment="cifar10", seed=0, **changes):
    """Return a score as `udpm score` writes it, of the paper's protocol and the best milestone, with changed keys."""
    subject = {"kind": "samples", "experiment": experiment, "run_seed": seed, "iteration": 590_000, "weights": "ema"}
    subject |= {
        "seed": 0,
        "posterior": "scalar",
        "guidance": 1.0,
        "nfe": 3,
        "classes": 10 if experiment == "cifar10" else 0,
    }
    subject |= {"weights_sha256": "b" * 64, "selection": {"iterations": [580_000, 590_000], "n": 10_000, "seed": 1}}
    protocol = {"n": 50_000, "preprocessing": "to 299×299", "neighbours": 3}
    protocol["extractor"] = {"name": "inception", "sha256": "a" * 64}
    protocol["reference"] = {"dataset": experiment, "split": "train", "n": 50_000, "sha256": "c" * 64}
    metric = {"value": value, "label": "FID", "name": "fid"}
    for key, wanted in changes.items():
        part = next((part for part in (subject, protocol, metric, protocol["extractor"]) if key in part), subject)
        part[key] = wanted
    if subject["selection"] is None:
        del subject["selection"]
        subject["iteration"] = 600_000
    return {
        "format": "udpm-score/1",
        "subject": subject,
        "metrics": {"frechet_distance": metric},
        "protocol": protocol,
        "provenance": {"versions": {"udpm": "0.1.0", "torch": "2"}, "commit": None},
    }


def results(folder, **scores):
    for name, score in scores.items():
        path = folder / "scores" / score["subject"]["experiment"] / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(score))
    return folder
