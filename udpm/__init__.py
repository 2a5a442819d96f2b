"""Upsampling Diffusion Probabilistic Models: train, sample, score and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from udpm.core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from udpm.sampling.loaded import LoadedModel

__all__ = ["UserError", "__version__", "load"]
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
) -> LoadedModel:
    """Load trained weights, ready to sample: ``udpm.load("results/runs/digits/seed0").sample(16, labels="3")``.

    Images are those of `udpm sample` with the same settings, on a CPU with the same number of threads
    (torch.set_num_threads). On a GPU, PyTorch's own switches (torch.backends) say whether float32 may be TF32; `udpm
    sample` sets them.

    Args:
        path: a run's folder or a weight file, as `udpm sample` takes it.
        weights: "ema" (averaged), "raw", or another average such as "ema-0.999".
        device: "auto" (a GPU if there is one, else the CPU), "cpu", "cuda", or one GPU such as "cuda:1". Of several
            GPUs, auto and cuda take the one that the fewest other processes of udpm use.
        precision: of the network; the chain stays float32.
        posterior: covariance of the steps, a number or the exact matrix.
        guidance: w of classifier-free guidance; 1 is none.
        iteration: of a milestone of the run; default: the end of training.
        batch: images per network call.

    Raises:
        UserError: weights missing or damaged, a device that is not there, or values that are not allowed.
    """
    from pathlib import Path

    from udpm.config.evaluation import Sampling
    from udpm.config.validation import validate
    from udpm.core.identify import with_kind
    from udpm.sampling.loaded import LoadedModel

    given = {"precision": precision, "posterior": posterior, "guidance": guidance, "iteration": iteration}
    sampling = validate(Sampling, {**given, "batch": batch}, "udpm.load")
    try:
        return LoadedModel(Path(path), weights, str(device), sampling)
    except UserError as error:
        raise UserError(*map(with_kind, error.mistakes)) from None
