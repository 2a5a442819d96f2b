"""Upsampling Diffusion Probabilistic Models: train, sample, score and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from udpm.core.errors import StoppedEarly, UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from udpm.sampling.loaded import LoadedModel

__all__ = ["StoppedEarly", "UserError", "__version__", "load", "prepare", "score", "train"]
__version__ = "0.1.0"


def load(
    path: str | Path,
    weights: str = "ema",
    device: str | torch.device = "auto",
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    posterior: Literal["scalar", "exact"] = "scalar",
    guidance: float = 1.0,
    iteration: int | None = None,
    batch: int = 250,
    noise_kind: Literal["host", "counter"] = "host",
) -> LoadedModel:
    """Load trained weights, ready to sample: ``udpm.load("results/runs/digits/seed0").sample(16, labels="3")``.

    Images are those of `udpm sample` with the same settings, on a CPU with the same number of threads
    (torch.set_num_threads). On a GPU, PyTorch's own switches (torch.backends) say whether float32 may be TF32; `udpm
    sample` sets them.

    Args:
        path: a run's folder, a weight file, or hf://OWNER/NAME[@REVISION], a model on the Hugging Face Hub, as `udpm
            sample` takes it.
        weights: "ema" (averaged), "raw", or another average such as "ema-0.999".
        device: "auto" (a GPU if there is one, else the CPU), "cpu", "cuda", or one GPU such as "cuda:1". Of several
            GPUs, auto and cuda take the one that the fewest other processes of udpm use.
        precision: of the network; the chain stays float32.
        posterior: covariance of the steps, a number or the exact matrix.
        guidance: w of classifier-free guidance; 1 is none.
        iteration: of a milestone of the run; default: the end of training.
        batch: images per network call.
        noise_kind: generator of the noise from a seed: PyTorch's on the CPU, or a counter-based one on the device.

    Raises:
        UserError: weights missing or damaged, a device that is missing, or values that are not allowed.
    """
    from udpm.config.evaluation import Sampling
    from udpm.config.validation import validate
    from udpm.core.identify import with_kind
    from udpm.sampling.loaded import LoadedModel

    given = {"precision": precision, "posterior": posterior, "guidance": guidance, "iteration": iteration}
    sampling = validate(Sampling, {**given, "batch": batch, "noise_kind": noise_kind}, "udpm.load")
    try:
        return LoadedModel(path, weights, str(device), sampling)
    except UserError as error:
        raise UserError(*map(with_kind, error.mistakes)) from None


def prepare(
    source: str | Path,
    output: str | Path,
    *,
    side: int | None = None,
    classes: int | None = None,
    holdout: int | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Convert a source of images to a data set, as `udpm prepare` does; a finished one is left unchanged.

    Args:
        source: a data set's resolved configuration (udpm resolve --dataset NAME); with `side`, images: a folder or
            .zip, an .npz or .npy, or Parquet files.
        output: folder of the data set.
        side: of the prepared images, in pixels.
        classes: number of classes of images; default: unlabelled.
        holdout: number of images kept out of training, if they have no test split.
        workers: processes that decode and resize; default: one per core.

    Returns:
        The data set's record: number of images, side, classes, splits, digests.

    Raises:
        UserError: a mistake in the source or the options.
        StoppedEarly: interrupted; the same call resumes.
    """
    from udpm.cli import call
    from udpm.data.store import open_store

    call("prepare", source, output=output, side=side, classes=classes, holdout=holdout, workers=workers)
    return open_store(output).record


def train(
    config: str | Path,
    *,
    dataset: str | Path,
    cache: str | Path,
    run: str | Path,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Train a run, or resume it, as `udpm train` does: PyTorch's threads and switches are set for this process.

    Args:
        config: the run's resolved configuration (udpm resolve EXPERIMENT).
        dataset: the prepared data set.
        cache: its level cache (udpm cache).
        run: the run's folder, for `load`.
        max_minutes: save the state and raise `StoppedEarly` after this time.

    Returns:
        The record of the finished run: iterations, seconds, parameters, digest of the weights.

    Raises:
        UserError: a mistake in the configuration or its files.
        StoppedEarly: interrupted; the same call resumes.
    """
    from pathlib import Path

    from udpm.cli import call
    from udpm.runs.records import read_complete

    call("train", config, dataset=dataset, cache=cache, run=run, max_minutes=max_minutes)
    return read_complete(Path(run))


def score(
    output: str | Path,
    *,
    config: str | Path,
    reference: str | Path,
    samples: str | Path | None = None,
    images: str | Path | None = None,
    heldout: bool = False,
    noise: int | None = None,
    dataset: str | Path | None = None,
    extractor: str | Path | None = None,
    count: int | None = None,
    features: str | Path | None = None,
) -> dict[str, Any]:
    """Score exactly one of samples, images, heldout and noise against a reference, as `udpm score` does.

    Args:
        output: the score to write, .json.
        config: resolved scoring section (udpm resolve --part scoring).
        reference: .npz of `udpm reference`.
        samples: a sample set, .npz of `udpm sample`.
        images: a folder, .zip or .npz of images from another source.
        heldout: the data set's test split.
        noise: number of images of noise.
        dataset: the reference's prepared data set; optional with images.
        extractor: TorchScript file, executed as a program; default: the configuration's.
        count: number of samples or images to score; default: all.
        features: folder that keeps features for later calls.

    Returns:
        The score: `metrics` by name with `value` and `label`, `protocol`, `subject`, `provenance`.

    Raises:
        UserError: a mistake in the arguments or their files.
    """
    from udpm.cli import call
    from udpm.metrics.protocol import read_score

    subject = {"samples": samples, "images": images, "heldout": heldout, "noise": noise, "count": count}
    call(
        "score", **subject, config=config, reference=reference, dataset=dataset, extractor=extractor,
        features=features, output=output,
    )  # fmt: skip
    return read_score(output)
