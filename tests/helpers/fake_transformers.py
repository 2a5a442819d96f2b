"""Small networks in the places of DINOv2 and CLIP: the names of their tensors, and their arithmetic in torch alone."""

import math
import warnings
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, DEPTH = 64, 2


def published_shapes(kind):
    """Return the published tensors' names, with empty tensors of their shapes on the meta device."""
    if kind == "clip":
        with torch.device("meta"):
            return dict(Clip(32, 768, 12, 512).state_dict())
    return {name: torch.empty(shape, device="meta") for name, shape in dinov2_shapes(14, 1024, 24, 37).items()}


def dinov2_shapes(patch, width, depth, grid):
    """Return the shapes of DINOv2's tensors by name."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        for name, (outer, inner) in layers.items():
            shapes[f"blocks.{block}.{name}.weight"] = (outer, inner)
            shapes[f"blocks.{block}.{name}.bias"] = (outer,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return shapes


def dinov2(tensors, images):
    """Compute DINOv2's class token, (N, 3, 224, 224) to (N, width), from its tensors."""

    def layer(name, x):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    proj = "patch_embed.proj"
    x = F.conv2d(images, tensors[f"{proj}.weight"], tensors[f"{proj}.bias"], stride=tensors[f"{proj}.weight"].shape[-1])
    side, positions = x.shape[-1], tensors["pos_embed"]
    n = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, mode="bicubic", scale_factor=(side + 0.1) / n).flatten(2).transpose(1, 2)
    tokens = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = tokens + torch.cat([positions[:, :1], grid], dim=1)
    for block in range(sum(name.endswith("ls1.gamma") for name in tensors)):
        at = f"blocks.{block}"
        parts = layer(f"{at}.attn.qkv", norm(f"{at}.norm1", x)).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        attention = (query @ key.transpose(-1, -2) / math.sqrt(64)).softmax(dim=-1) @ value
        x = x + tensors[f"{at}.ls1.gamma"] * layer(f"{at}.attn.proj", attention.transpose(1, 2).flatten(2))
        hidden = F.gelu(layer(f"{at}.mlp.fc1", norm(f"{at}.norm2", x)))
        x = x + tensors[f"{at}.ls2.gamma"] * layer(f"{at}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


def write_dinov2(folder):
    """Write a small network under DINOv2's name and return its path."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) + name.endswith(("gamma", "norm1.weight"))
        for name, shape in dinov2_shapes(14, WIDTH, DEPTH, 37).items()
    }
    path = folder / "dinov2_vitl14_pretrain.pth"
    torch.save(tensors, path)
    return path


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A block of CLIP's image network, on tokens (T, N, width)."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Visual(nn.Module):
    """CLIP's image network: (N, 3, 224, 224) to (N, features)."""

    def __init__(self, patch, width, depth, features):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.positional_embedding = nn.Parameter(torch.randn((224 // patch) ** 2 + 1, width) / math.sqrt(width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, features) / math.sqrt(width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv1(images).flatten(2).permute(2, 0, 1)
        first = self.class_embedding.expand(1, x.shape[1], -1)
        x = self.ln_pre(torch.cat([first, x]) + self.positional_embedding[:, None])
        return self.ln_post(self.transformer.resblocks(x)[0]) @ self.proj


class Clip(nn.Module):
    """CLIP's image network, and one tensor of its text network."""

    def __init__(self, patch=32, width=WIDTH, depth=DEPTH, features=16):
        super().__init__()
        self.visual = Visual(patch, width, depth, features)
        self.positional_embedding = nn.Parameter(torch.zeros(77, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images)

    def load(self, path):
        self.load_state_dict(torch.jit.load(str(path)).state_dict())
        return self.eval()


def write_clip(folder):
    """Write a small network under CLIP's name, in half precision as published, and return its path."""
    torch.manual_seed(0)
    network = Clip().eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.zeros(1, 3, 224, 224), check_trace=False)
    path = folder / "ViT-B-32.pt"
    torch.jit.save(traced.half(), str(path))
    return path
