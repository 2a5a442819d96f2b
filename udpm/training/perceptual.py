"""LPIPS, from the lpips package."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from udpm.core import vision
from udpm.core.errors import UserError


def load_lpips(network: str, device: torch.device) -> nn.Module:
    """LPIPS over VGG-16, frozen, in eval mode; called with two (B, 3, h, w) images in [-1, 1].

    Args:
        network: "vgg" (ImageNet weights, which torchvision keeps under TORCH_HOME) or "vgg-random" (untrained).
        device: where it runs.

    Raises:
        UserError: the lpips extra is not installed, or the weights can neither be found nor downloaded.
    """
    vision.enable()
    try:
        import lpips
    except ImportError:
        raise UserError("losses.lpips_weight: above 0 needs the lpips extra: pip install 'udpm[lpips]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = lpips.LPIPS(net="vgg", pnet_rand=network == "vgg-random", verbose=False)
    except OSError as error:
        raise UserError(
            f"losses.lpips_weight: VGG-16's weights cannot be downloaded ({error}); put vgg16-397923af.pth into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from None
    return model.requires_grad_(False).eval().to(device)
