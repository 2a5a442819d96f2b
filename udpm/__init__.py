"""Upsampling Diffusion Probabilistic Models: train, sample, score and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from udpm.sampling.sampler import Sampler

__version__ = "0.1.0"


def load(path: str | Path, weights: str = "ema", device: str = "cpu") -> Sampler:
    """Load trained weights, ready to sample: ``udpm.load("weights.safetensors").sample(16, labels="cat")``.

    Args:
        path: a run's ``weights.safetensors``.
        weights: "ema" (averaged) or "raw".
        device: a torch device. On a GPU, PyTorch's own switches (torch.backends) say whether float32 may be TF32.

    Raises:
        UserError: missing or damaged.
    """
    from udpm.core.errors import UserError
    from udpm.core.identify import with_kind
    from udpm.networks.weights import load_model
    from udpm.sampling.sampler import Sampler

    try:
        return Sampler(load_model(path, weights, device))
    except UserError as error:
        raise UserError(*map(with_kind, error.mistakes)) from None
