"""DINOv2 and CLIP: timm's vision transformers with the published weights, called as published scores do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from udpm.core.containers import check_archive
from udpm.core.devices import is_device_failure, patch_torchvision
from udpm.core.errors import UserError, first_line
from udpm.metrics.extractor_networks import Inputs

SIDE = 224
HEAD = 64
"""Channels of an attention head."""
OFFSET = 0.1
"""DINOv2 adds this to the number of patches when it resizes its position embeddings, so they shift a little."""

MEANS = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073)}
DEVIATIONS = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711)}

INPUTS = {
    # dgm-eval and clean-fid resize bytes to bytes.
    "dinov2": Inputs(SIDE, range="0..1", note="ImageNet's mean and deviation; as dgm-eval does", rounded=True),
    "clip": Inputs(SIDE, range="0..1", note="CLIP's mean and deviation; as clean-fid's CLIP features", rounded=True),
}
TITLES = {"dinov2": "DINOv2 ViT-L/14", "clip": "CLIP ViT-B/32"}
SIZES = {"dinov2": (14, 1024, 24), "clip": (32, 768, 12)}
"""Side of a patch, channels and number of blocks of the published networks."""


class VisionTransformer(nn.Module):
    """(N, 3, 224, 224) in [0, 1] to (N, d) features: DINOv2's class token, or CLIP's embedding of the image.

    Args:
        kind: "dinov2" or "clip".
        tensors: weights under their published names; they determine the network's size and device.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: tensors are missing or left over, or do not fit together.
        UserError: timm is not installed.
    """

    def __init__(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        patch_torchvision()
        try:
            from timm.models import vision_transformer as timm
        except ImportError:
            raise UserError(
                f"scoring.extractor: {kind} needs the features extra: pip install 'udpm[features]'"
            ) from None
        is_dinov2 = kind == "dinov2"
        blocks = "blocks." if is_dinov2 else "visual.transformer.resblocks."
        patches = tensors["patch_embed.proj.weight" if is_dinov2 else "visual.conv1.weight"]
        (width, _, _, patch), device = patches.shape, patches.device
        depth = len({name.removeprefix(blocks).split(".")[0] for name in tensors if name.startswith(blocks)})
        self.size = (patch, width, depth)
        options: dict[str, Any] = {"patch_size": patch, "embed_dim": width, "depth": depth}
        if is_dinov2:
            tensors = {**tensors, "pos_embed": resize_positions(tensors["pos_embed"], SIDE // patch)}
            options |= {"init_values": 1e-5, "num_classes": 0}
        else:
            options |= {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": "quick_gelu"}
            options |= {"num_classes": tensors["visual.proj"].shape[1]}
        with torch.device("meta"):
            self.network = timm.VisionTransformer(img_size=SIDE, num_heads=max(width // HEAD, 1), **options)
        # Files of CLIP contain half precision.
        whole = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.network.load_state_dict(timm.checkpoint_filter_fn(whole, self.network), assign=True)
        # timm adds a bias to CLIP's projection.
        self.network.to(device)
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.tensor(MEANS[kind], device=device)[:, None, None])
        self.register_buffer("deviation", torch.tensor(DEVIATIONS[kind], device=device)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize the images and return their features."""
        return self.network((images - self.mean) / self.deviation)


def resize_positions(embeddings: torch.Tensor, side: int) -> torch.Tensor:
    """Resize DINOv2's position embeddings as DINOv2 does: (1, 1 + n·n, d) to (1, 1 + side·side, d)."""
    first, grid = embeddings[:, :1], embeddings[:, 1:]
    n = math.isqrt(grid.shape[1])
    if n == side:
        return embeddings
    grid = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2).float()
    factor = (side + OFFSET) / n
    grid = F.interpolate(grid, mode="bicubic", scale_factor=(factor, factor))
    return torch.cat([first.float(), grid.flatten(2).transpose(1, 2)], dim=1)


def load_transformer(kind: str, path: Path) -> VisionTransformer:
    """Load DINOv2 (a file of tensors) or CLIP (a TorchScript file, of whose text network nothing is used).

    Raises:
        UserError: missing, damaged, or another network's file.
    """
    check_archive(path, f"file of {TITLES[kind]}")
    try:
        if kind == "dinov2":
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = torch.jit.load(str(path), map_location="cpu").state_dict()
        return VisionTransformer(kind, tensors).eval()
    except UserError:
        raise
    except Exception as error:
        if is_device_failure(error):
            raise
        raise UserError(f"{path}: not a file of {TITLES[kind]}: {first_line(error)}") from None
