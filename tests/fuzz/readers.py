"""Every kind of file that the program reads: a valid file, its mutation, and its reader."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import golden_vectors as golden
import numpy as np
import parquets
import pictures
import tiny
import torch
from PIL import Image

from fuzz import mutate
from udpm.bench.measure import read_benchmark
from udpm.cli.info import describe
from udpm.config import (
    DatasetConfig,
    Latents,
    RunConfig,
    Sampling,
    Scoring,
    Study,
    load_cluster,
    load_dataset,
    load_sweep,
    to_json,
)
from udpm.config.load import read_resolved, resolve_run, validate
from udpm.config.published_scores import load_published, load_runtime
from udpm.config.validation import read_yaml
from udpm.core import arrays, devices
from udpm.core.arrays import SEAL
from udpm.core.containers import read_header
from udpm.core.files import sha256
from udpm.data.cifar import Batches
from udpm.data.decode import ImageError, Preprocessing, fit, quiet_decoders, to_rgb
from udpm.data.fill import Journal
from udpm.data.levels import open_levels, write_cache
from udpm.data.npz import load_arrays, save_arrays
from udpm.data.open import open_images, open_source
from udpm.data.prepare import prepare
from udpm.data.store import open_store
from udpm.diagnosis.record import SEALED, read_diagnosis
from udpm.diffusion.schedule import Schedule
from udpm.interop.checkpoint import read_weights
from udpm.interop.command_line import parse_command
from udpm.interop.flags import read_flags, to_experiment
from udpm.metrics import extractor as extractors
from udpm.metrics import reference, selection
from udpm.metrics.extractor import load_extractor
from udpm.networks.weights import load_model
from udpm.report import scores as tables
from udpm.report.card import model_card
from udpm.report.figures.curves import milestone_table, read_metrics
from udpm.report.figures.diagnosis import diagnosis_table, plot_diagnosis
from udpm.report.figures.latents import plot_latents
from udpm.report.figures.samples import plot_chain
from udpm.runs.attempts import any_killed, failed_twice_identically
from udpm.runs.layout import snapshot
from udpm.runs.lock import read_owner
from udpm.runs.status import read_status, statuses_json
from udpm.sampling.generate import draw_samples
from udpm.sampling.latents import explore_latents
from udpm.sampling.sample_set import join_shards, load_samples
from udpm.sampling.sampler import read_noise
from udpm.training.checkpoint import checkpoints, resume
from udpm.training.metrics import Metrics
from udpm.training.posthoc import average_run
from udpm.training.state import State
from udpm.training.trainer import train

KEPT = 500
"""Images of the test split, whose features are kept in one file."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: of the kind.
        file: a valid one, below the folder of inputs.
        mutate: function of a random generator and the bytes that returns other bytes.
        call: function of the folder that reads and uses the file as commands do.
        share: fraction of the usual number of inputs; smaller for slow readers.
    """

    name: str
    file: str
    mutate: Callable
    call: Callable[[Path], object]
    share: float = 1.0


def make_inputs(folder):
    """Write valid files of every kind below one folder."""
    devices.configure("cpu", 1)
    shutil.copytree(tiny.ROOT / "config", folder / "config")
    prepare(tiny.run_config().dataset, folder / "dataset")
    write_cache(folder / "dataset", folder / "cache")
    config = tiny.run_config()
    run = folder / "runs/digits/seed0"
    train(config, open_levels(folder / "dataset", folder / "cache", 3), run, stop=False)
    averaged = tiny.run_config(training__posthoc_average=True, training__keep_every=1, training__iterations=2)
    train(averaged, open_levels(folder / "dataset", folder / "cache", 3), folder / "averaged", stop=False)
    (folder / "run.json").write_text(to_json(config))
    sampling = Sampling(count=20, threads=1, batch=10)
    (folder / "sampling.json").write_text(to_json(sampling))
    (folder / "scoring.json").write_text(to_json(Scoring(extractor="digits", threads=1)))
    weights = run / "weights.safetensors"
    draw_samples(weights, sampling, folder / "samples.npz", chain=folder / "chain.npz")
    # Drawing all ten images of the chain takes two seconds.
    arrays, record = load_arrays(folder / "chain.npz", "chain", "udpm sample --chain")
    save_arrays(folder / "chain2.npz", {name: value[:2] for name, value in arrays.items()}, record)
    shards = [folder / f"part{number}.npz" for number in (1, 2)]
    for number, shard in enumerate(shards, start=1):
        draw_samples(weights, sampling, shard, shard=(number, 2))
    join_shards(shards, folder / "whole.json")
    latents = Latents(strengths=2, grid=2, pca_images=4, pca_components=2, labels=[0, 1])
    explore_latents(weights, "swap", latents, sampling, folder / "latents.npz")
    _noise(folder / "noise.npz", config.dataset.side, config.process.levels)
    _scoring(folder)
    _images(folder)
    _texts(folder, run)
    return folder


def _noise(path, side, levels):
    rng = np.random.default_rng(0)
    sides = {"base": side} | {f"eps_{level}": side >> level for level in range(levels, 0, -1)}
    np.savez(path, **{name: rng.normal(size=(3, 3, size, size)).astype(np.float32) for name, size in sides.items()})


def _scoring(folder):
    store = open_store(folder / "dataset")
    module = torch.jit.trace(torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()), torch.zeros(2, 3, 16, 16))
    torch.jit.save(module, str(folder / "extractor.pt"))
    extractor = load_extractor(folder / "extractor.pt", CPU)
    cache = folder / "features"
    reference.write_reference(store, "test", extractor, 100, folder / "reference.npz", cache=cache)
    kept = min(cache.iterdir(), key=lambda path: path.stat().st_size)
    shutil.copy(kept, folder / f"kept{kept.suffix}")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100, 48))
    np.savez(folder / "statistics.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))


def _images(folder):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for suffix, options in (("png", {}), ("jpg", {"quality": 80}), ("webp", {}), ("bmp", {}), ("tif", {}), ("gif", {})):
        image.save(folder / f"image.{suffix}", **options)
    grey = Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16))
    grey.save(folder / "image16.png")
    members = {f"{name}/{number}.png": (folder / "image.png").read_bytes() for name in "ab" for number in range(3)}
    (folder / "images.zip").write_bytes(mutate.archive(members))
    _labelled(folder / "labelled", (folder / "image.png").read_bytes())
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    np.savez(folder / "set.npz", images=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), labels=np.arange(4) % 2)
    np.save(folder / "set.npy", rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    parquets.write(folder / "set.parquet", parquets.files(4, side=8), [0, 1, 0, 1], ["cat", "dog"])
    pictures.cifar(folder / "cifar", "python", count=2)
    pictures.cifar(folder / "cifar", "binary", count=2)


def _labelled(folder, image):
    """Write images with label files of every kind."""
    labels = {f"{number // 2:05d}/img{number:08d}.png": number % 2 for number in range(4)}
    for name in labels:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    (folder / "dataset.json").write_text(json.dumps({"labels": list(labels.items())}))
    lines = [json.dumps({"file_name": name, "label": f"class {label}"}) for name, label in labels.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{name},class {label}" for name, label in labels.items()]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")


COMMAND = (
    "torchrun --nproc_per_node=2 --nnodes 1 train.py --data_dir images --img_size 32 --diffusion_steps 3 "
    "--alphas 0.5 0.2 0.001 --sigmas 0.1 0.2 0.3 --net_type NCSN --channels_mult 1 2 --model_channels 32 "
    "--disc_weight 0.1 --lpips_weight 1 1 0 --use_amp true --seed 3 --training_steps 100 --EMA_weight 0.9999"
)


def _texts(folder, run):
    tensors, _ = golden.load("net_ncsn_cond")
    state = {f"module.{name}": value.float() for name, value in golden.part(tensors, "net/").items()}
    torch.save(state, folder / "published.pt")
    flags = {"img_size": 32, "alphas": [0.5, 0.2, 1e-3], "sigmas": [0.1, 0.2, 0.3], "net_type": "NCSN", "use_amp": True}
    flags |= {"l1_weight": [1.0], "channels_mult": [1, 2], "seed": 0, "classes_num": 10, "EMA_weight": 0.999}
    (folder / "published.json").write_text(json.dumps(flags))
    (folder / "command.txt").write_text(COMMAND)
    lines = [{"token": "a", "began": 1.0}, {"token": "a", "ended": "failed", "reason": "x", "time": 2.0}] * 2
    (run / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    working = folder / "working"
    working.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, working / name)
    owner = {"token": "t", "host": "n", "machine": "m", "pid": 1, "started": "9", "job": "7", "attempt": None}
    (working / "owner.json").write_text(json.dumps(owner | {"since": 1e9, "beat": 3, "time": 1e9}))
    chunk = {"number": 0, "inputs": "i", "sha256": "s", "refused": {"3": "why"}, "modes": {"L": 61}}
    header = {"format": "udpm-partial/1", "count": 70}
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, chunk)))
    (folder / "rows").touch()
    _scores(folder)


def _scores(folder):
    names = ("precision", "recall", "class_agreement", "nearest_distance_ratio")
    score = {
        "format": "udpm-score/1",
        "subject": {
            "kind": "samples",
            "experiment": "digits",
            "run_seed": 0,
            "iteration": 7,
            "weights": "ema",
            "seed": 3,
        }
        | {"weights_sha256": "b" * 64, "posterior": "scalar", "nfe": 3, "dataset_sha256": "e" * 64, "classes": 10},
        "metrics": {"frechet_distance": {"value": 12.5, "label": "FD (digits features)"}}
        | {name: {"value": 0.5, "label": name} for name in names},
        "protocol": {
            "n": 1000,
            "extractor": {"name": "digits", "sha256": "a" * 64, "preprocessing": "none", "heldout_accuracy": 0.99},
            "preprocessing": "none",
            "reference": {"dataset": "digits", "split": "train", "n": 1297, "sha256": "c" * 64, "dataset_sha256": None},
            "neighbours": 3,
            "ranges": 1,
            "device": "cpu",
        },
        "provenance": tiny.PROVENANCE,
        "request": {"samples": "a.npz", "scoring": {}},
    }
    (folder / "score.json").write_text(json.dumps(score))
    (folder / "selection.json").write_text(json.dumps(selection.select([folder / "score.json"])))
    (folder / "diagnosis.json").write_text(json.dumps(_diagnosis(score["protocol"])))
    spread = {"median": 1.0, "low": 0.5, "high": 2.0}
    record = {"format": "udpm-bench/1", "of": "sampling", "experiment": "digits", "batch": 8, "device": "cpu"}
    record |= {"ceilings": {"float32_flops": 1e9, "bfloat16_flops": 1e9, "copy_bytes": 1e9}}
    record["rows"] = [{"part": "image", "seconds": spread, "cpu_seconds": None, "images_per_second": spread}]
    (folder / "bench.json").write_text(json.dumps(record))


def _diagnosis(protocol):
    """A diagnosis of two levels."""
    starts = [{"start": 0, "frechet_distance": [7.0], "precision": [0.9], "recall": [0.9], "variance": [1.0]}]
    for start in (1, 2, "noise"):
        starts.append(starts[0] | {"start": start, "frechet_distance": [9.0, 9.5], "variance": [0.5, 0.4]})
    player = {"level": 1, "real": 0.1, "fake": 0.0, "auc": 0.6, "loss": 0.69, "r1": 0.1, "share": 0.1, "cosine": -0.1}
    found = {
        "format": "udpm-diagnosis/1",
        "subject": {"experiment": "digits", "run_seed": 0, "iteration": 7, "weights": "ema", "weights_sha256": "b" * 64}
        | {"posterior": "scalar", "guidance": 1.0, "precision": "float32", "nfe": 2},
        "protocol": protocol | {"draws": 2, "seed": 0, "label": "FD"},
        "chain": {
            "starts": starts,
            "levels": [{"level": level, "variance": [0.5, 0.4]} for level in (2, 1)],
            "bands": [{"below": 0.25, "variance": [0.5, 0.4]}, {"below": 0.5, "variance": [0.5, 0.4]}],
            "maps": [{"map": name, "share": [0.5, 0.4]} for name in ("eps_2", "z_2", "eps_1", "z_1")],
        },
        "discriminator": {
            "iteration": 7,
            "levels": [player | {"gradients": {"reconstruction": 1.0, "adversarial": 0.1}}],
            "reason": "",
        },
    }
    return arrays.sealed(found, SEALED)


def _described(path):
    """Describe a file as `udpm info` does."""
    return json.dumps(describe(path), indent=2, ensure_ascii=False, allow_nan=False).encode()


def _experiment(folder):
    resolve_run("digits-paper", 0, folder / "config")


def _study(folder):
    validate(Study, read_yaml(folder / "config/config.yaml"), "config.yaml")


def _store(folder):
    store = open_store(folder / "dataset")
    for name in store.record["splits"]:
        store.split(name)
    _described(folder / "dataset")


def _samples(folder, file="samples.npz"):
    found = load_samples(folder / file)
    json.dumps(found.record)
    return len(found.images), len(found.labels)


def _chain(folder):
    load_arrays(folder / "chain.npz", "chain", "udpm sample --chain")


def _latents(folder):
    load_arrays(folder / "latents.npz", "latent-space experiment", "udpm latents")


def _reference(folder):
    found = reference.load_reference(folder / "reference.npz")
    return found.preprocessing, found.record["extractor"]["sha256"], found.mu.shape


def _imported(folder):
    reference.import_reference(folder / "statistics.npz", _extractor(folder), folder / "imported.npz")


_extractors = {}


def _extractor(folder):
    if folder not in _extractors:
        _extractors[folder] = load_extractor(folder / "extractor.pt", CPU)
    return _extractors[folder]


def _noise_file(folder):
    config = tiny.run_config()
    source, _ = read_noise(folder / "noise.npz", Schedule.from_config(config.process), config.dataset.side, 3)
    source(range(0, 3))


def _score(folder):
    tables.score_table([folder / "score.json"])


def _selection(folder):
    found = selection.read_selection(folder / "selection.json")
    milestone_table(found)


def _weights(folder):
    load_model(folder / "runs/digits/seed0/weights.safetensors", "ema")


def _header(folder):
    read_header(folder / "runs/digits/seed0/weights.safetensors")
    _described(folder / "runs/digits/seed0/weights.safetensors")


@cache
def _run():
    """A small run's configuration and state; building them takes as long as reading a checkpoint."""
    config = tiny.run_config()
    return config, State.fresh(config, CPU)


def _checkpoint(folder):
    config, state = _run()
    resume(folder / RUN / "checkpoints", state, config.training.iterations, lambda path, reason: None)


def _forged(folder):
    """Read a checkpoint whose manifest has a matching digest."""
    _with_digest(checkpoints(folder / RUN / "checkpoints")[-1], lambda: _checkpoint(folder))


def _average(folder):
    average_run(folder / "averaged", 0.08, folder / "average.safetensors")


def _forged_snapshot(folder):
    """Read a snapshot whose manifest has a matching digest."""
    _with_digest(snapshot(folder / "averaged", 1), lambda: _average(folder))


def _forged_samples(folder):
    """Read a sample set whose record has a matching digest."""
    _with_digest(folder / "samples.npz", lambda: _samples(folder))


def _with_digest(path, call):
    record = path.with_suffix(".json")
    text = record.read_text()
    values = {key: value for key, value in json.loads(text).items() if key != SEAL}
    record.write_text(json.dumps(values | {"sha256": sha256(path)}))
    try:
        call()
    finally:
        record.write_text(text)


def _finished(folder):
    model_card(folder / "runs/digits/seed0", [])
    statuses_json([read_status(folder / "runs/digits/seed0")])
    _described(folder / "runs/digits/seed0")


def _metrics(folder):
    working = folder / "working"
    statuses_json([read_status(working)])
    text = (working / "metrics.jsonl").read_bytes()
    Metrics(working / "metrics.jsonl", 12)
    (working / "metrics.jsonl").write_bytes(text)
    read_metrics(working / "metrics.jsonl")


def _attempts(folder):
    failed_twice_identically(folder / "runs/digits/seed0")
    any_killed(folder / "runs/digits/seed0")
    failed = folder / "failed"
    failed.mkdir(exist_ok=True)
    shutil.copy(folder / "runs/digits/seed0/attempts.jsonl", failed)
    statuses_json([read_status(failed)])


def _owner(folder):
    read_owner(folder / "working")
    statuses_json([read_status(folder / "working")])


def _journal(folder):
    Journal(folder / "journal.jsonl", folder / "rows", {"format": "udpm-partial/1", "count": 70})


def _picture(folder, suffix):
    try:
        with quiet_decoders():
            fit(to_rgb((folder / f"image.{suffix}").read_bytes(), Preprocessing(8))[0], 8)
    except ImageError as refusal:
        return str(refusal)
    return "read"


def _pictures(folder, name):
    found = open_images(folder / name)
    found[0 : len(found)]


def _image_set(folder, name, classes):
    """Read all images of a set as `udpm prepare` does."""
    source = open_source(DatasetConfig(source="folder", path=str(folder / name), side=8, classes=classes))
    for image, key in zip(source.names, source.keys, strict=True):
        try:
            with quiet_decoders():
                to_rgb(source.reader.load(image, key), Preprocessing(8))
        except ImageError as refusal:
            str(refusal)


def _labels(folder, name):
    open_source(DatasetConfig(source="folder", path=str(folder / "labelled"), side=8, classes=2, labels=name))


def _flags(folder):
    flags, _ = read_flags(folder / "published.json")
    to_experiment(flags, "x", "published.json")


def _command(folder):
    flags, gpus = parse_command((folder / "command.txt").read_text(encoding="utf-8", errors="replace"))
    to_experiment(flags, "x", "the command", gpus=gpus)


def _batches(folder, kind, place, name):
    batches = Batches(kind, folder / "cifar" / place)
    return batches.parsed(name, batches.content(name))


RUN = "runs/digits/seed0"


def registry(folder):
    """Return all readers; the names of some valid files depend on the folder."""
    kept = next(folder.glob("kept.*"))
    checkpoint = checkpoints(folder / RUN / "checkpoints")[-1].relative_to(folder)
    snapshot_file = str(snapshot("averaged", 1))
    as_json, as_yaml, as_npz, as_npy, octets, sealed = (
        mutate.as_json,
        mutate.as_yaml,
        mutate.as_npz,
        mutate.as_npy,
        mutate.octets,
        mutate.as_sealed,
    )
    readers = [
        Reader("experiment.yaml", "config/experiments/digits-paper.yaml", as_yaml, _experiment),
        Reader("dataset.yaml", "config/datasets/digits.yaml", as_yaml, lambda f: load_dataset("digits", f / "config")),
        Reader(
            "sweep.yaml",
            "config/sweeps/schedules-digits.yaml",
            as_yaml,
            lambda f: load_sweep("schedules-digits", f / "config"),
            0.2,
        ),
        Reader("config.yaml", "config/config.yaml", as_yaml, _study),
        Reader("cluster.yaml", "config/cluster.yaml", as_yaml, lambda f: load_cluster(f / "config", {})),
        Reader(
            "published table", "config/published/table1.yaml", as_yaml, lambda f: load_published("table1", f / "config")
        ),
        Reader("published run times", "config/published/runtime.yaml", as_yaml, lambda f: load_runtime(f / "config")),
        Reader("resolved run", "run.json", as_json, lambda f: read_resolved(RunConfig, f / "run.json")),
        Reader("resolved sampling", "sampling.json", as_json, lambda f: read_resolved(Sampling, f / "sampling.json")),
        Reader("resolved scoring", "scoring.json", as_json, lambda f: read_resolved(Scoring, f / "scoring.json")),
        Reader("dataset.json", "dataset/dataset.json", sealed, _store, 0.2),
        Reader("labels.npy", "dataset/labels.npy", as_npy, _store, 0.2),
        Reader("images.npy", "dataset/images.npy", mutate.head, _store, 0.2),
        Reader("cache.json", "cache/cache.json", sealed, lambda f: open_levels(f / "dataset", f / "cache", 3), 0.2),
        Reader(
            "level_1.npy", "cache/level_1.npy", mutate.head, lambda f: open_levels(f / "dataset", f / "cache", 3), 0.2
        ),
        Reader("sample set", "samples.npz", as_npz, _forged_samples),
        Reader("sample set's record", "samples.json", sealed, _samples),
        Reader("shards' record", "whole.json", sealed, partial(_samples, file="whole.json")),
        Reader("chain", "chain.npz", as_npz, _chain),
        Reader("chain's figure", "chain2.npz", as_npz, lambda f: plot_chain(f / "chain2.npz", f / "figure"), 0.02),
        Reader("latents", "latents.npz", as_npz, _latents),
        Reader("latents' figure", "latents.npz", as_npz, lambda f: plot_latents(f / "latents.npz", f / "figure"), 0.02),
        Reader("reference", "reference.npz", as_npz, _reference),
        Reader("published statistics", "statistics.npz", as_npz, _imported, 0.5),
        Reader("noise file", "noise.npz", as_npz, _noise_file),
        Reader("images.npz", "images.npz", as_npz, partial(_pictures, name="images.npz")),
        Reader("set.npz", "set.npz", as_npz, partial(_image_set, name="set.npz", classes=2)),
        Reader("set.npy", "set.npy", as_npy, partial(_image_set, name="set.npy", classes=0)),
        Reader("set.parquet", "set.parquet", octets, partial(_image_set, name="set.parquet", classes=2)),
        Reader("features kept", kept.name, as_npz if kept.suffix == ".npz" else as_npy, lambda f: _kept(f, kept)),
        Reader("score", "score.json", as_json, _score, 0.2),
        Reader("selection", "selection.json", as_json, _selection),
        Reader(
            "milestones' table",
            "selection.json",
            as_json,
            lambda f: milestone_table(selection.read_selection(f / "selection.json")).write(f / "table"),
            0.01,
        ),
        Reader(
            "diagnosis",
            "diagnosis.json",
            sealed,
            lambda f: diagnosis_table(read_diagnosis(f / "diagnosis.json")).write(f / "table"),
            0.1,
        ),
        Reader(
            "diagnosis' figure",
            "diagnosis.json",
            sealed,
            lambda f: plot_diagnosis(f / "diagnosis.json", f / "figure"),
            0.01,
        ),
        Reader("benchmark", "bench.json", as_json, lambda f: read_benchmark(f / "bench.json")),
        Reader("weights", f"{RUN}/weights.safetensors", mutate.as_safetensors, _weights, 0.2),
        Reader("safetensors header", f"{RUN}/weights.safetensors", mutate.as_safetensors, _header),
        Reader("checkpoint", str(checkpoint), mutate.as_safetensors, _forged, 0.05),
        Reader("checkpoint's manifest", str(checkpoint.with_suffix(".json")), sealed, _checkpoint, 0.05),
        Reader("snapshot", snapshot_file, mutate.as_safetensors, _forged_snapshot, 0.05),
        Reader("snapshot's manifest", snapshot_file.replace("safetensors", "json"), sealed, _average, 0.05),
        Reader("complete.json", f"{RUN}/complete.json", sealed, _finished),
        Reader("run's config.json", f"{RUN}/config.json", as_json, _finished),
        Reader("metrics.jsonl", "working/metrics.jsonl", mutate.as_lines, _metrics, 0.2),
        Reader("attempts.jsonl", f"{RUN}/attempts.jsonl", mutate.as_lines, _attempts),
        Reader("owner.json", "working/owner.json", as_json, _owner),
        Reader("journal.jsonl", "journal.jsonl", mutate.as_lines, _journal),
        Reader("extractor", "extractor.pt", mutate.as_zip, lambda f: load_extractor(f / "extractor.pt", CPU), 0.05),
        Reader("zip of images", "images.zip", mutate.as_zip, partial(_pictures, name="images.zip"), 0.2),
        Reader(
            "published checkpoint", "published.pt", mutate.as_zip, lambda f: read_weights([f / "published.pt"]), 0.1
        ),
        Reader("label file .json", "labelled/dataset.json", as_json, partial(_labels, name="dataset.json")),
        Reader(
            "label file .jsonl", "labelled/metadata.jsonl", mutate.as_lines, partial(_labels, name="metadata.jsonl")
        ),
        Reader("label file .csv", "labelled/metadata.csv", mutate.text, partial(_labels, name="metadata.csv")),
        Reader("published config", "published.json", as_json, _flags),
        Reader("published command", "command.txt", mutate.as_words, _command),
        Reader(
            "CIFAR python",
            "cifar/cifar-10-batches-py/test_batch",
            octets,
            partial(_batches, kind="python", place="cifar-10-batches-py", name="test_batch"),
        ),
        Reader(
            "CIFAR binary",
            "cifar/cifar-10-batches-bin/test_batch.bin",
            octets,
            partial(_batches, kind="binary", place="cifar-10-batches-bin", name="test_batch.bin"),
        ),
    ]
    readers += [
        Reader(
            f".{suffix} image",
            f"image.{suffix}",
            mutate.head if suffix != "png" else octets,
            partial(_picture, suffix=suffix),
        )
        for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif")
    ]
    return readers


def _kept(folder, path):
    return extractors._kept(folder / path.name, KEPT)
