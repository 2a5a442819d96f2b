"""LPIPS, with a free exponent."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from udpm.core.devices import patch_torchvision
from udpm.core.errors import UserError
from udpm.core.files import VGG, fetch
from udpm.networks.layers import without_autocast


class Perceptual(nn.Module):
    """LPIPS with a free exponent: Σ over layers of the mean over positions of w·|φ(a) - φ(b)|^p.

    φ are unit-normalized features, w ≥ 0 the package's learned weights; p = 2 is LPIPS (Zhang et al. 2018).
    """

    def __init__(self, lpips: nn.Module, exponent: float) -> None:
        super().__init__()
        # The package has no types.
        self.lpips: Any = lpips
        self.exponent = exponent

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map two (B, 3, h, w) images in [-1, 1] to (B,) float32 distances; gradients flow to `output` alone.

        Always in float32: in bfloat16, rounding would exceed the difference of two similar images.
        """
        output, target = output.float(), target.float()
        with without_autocast(output.device):
            with torch.no_grad():
                expected = self._features(target)
            layers = zip(self._features(output), expected, self.lpips.lins, strict=True)
            distances = [weigh((a - b).abs() ** self.exponent).mean(dim=(1, 2, 3)) for a, b, weigh in layers]
            return torch.stack(distances).sum(dim=0)

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        from lpips import normalize_tensor

        return [normalize_tensor(feature) for feature in self.lpips.net(self.lpips.scaling_layer(image))]


def load_lpips(network: str, exponent: float, device: torch.device) -> Perceptual:
    """Load LPIPS over VGG-16, frozen, in eval mode.

    Args:
        network: "vgg" (ImageNet weights, kept by torchvision under TORCH_HOME) or "vgg-random" (untrained).
        exponent: of the feature differences.
        device: of the network.

    Raises:
        UserError: the lpips extra is not installed, or the weights are missing and cannot be downloaded, or
            changed.
    """
    patch_torchvision()
    try:
        import lpips
    except ImportError:
        raise UserError("losses.lpips_weight: above 0 needs the lpips extra: pip install 'udpm[lpips]'") from None
    if network == "vgg":
        # Otherwise torchvision would download them, even with `OFFLINE`.
        try:
            fetch(VGG, Path(torch.hub.get_dir()) / "checkpoints")
        except UserError as error:
            raise UserError(f"losses.lpips_weight: {error}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = lpips.LPIPS(net="vgg", pnet_rand=network == "vgg-random", verbose=False)
    return Perceptual(model, exponent).requires_grad_(False).eval().to(device)
