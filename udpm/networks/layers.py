"""Layers and the residual block shared by the generator and the discriminator."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.model import ADM_HEAD_CHANNELS, normalized_groups

NO_LABEL = -1
"""Label value for "no label", an all-zero one-hot row; for networks trained with label dropout."""


class GroupNorm(nn.GroupNorm):
    """torch's group norm, which on a CPU normalizes channels-last bfloat16 maps in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to the same shape and type."""
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if last and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # Up to seven times faster than torch's own kernel for this case, even with both conversions.
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """Build a group norm with one group per 4 channels, at most 32 and at least 1."""
    return GroupNorm(normalized_groups(channels), channels, eps=eps)


class Resample(nn.Module):
    """Halve or double a map with the separable filter f⊗f / (Σf)².

    Down: depthwise convolution with stride 2. Up: its transpose, times 4.

    Args:
        direction: "down" or "up".
        taps: f; (1, 1) is the 2×2 average, (1, 3, 3, 1) NCSN++'s filter.
        padding: zeros on every side before filtering; default (len(f) - 1)//2, which keeps sides even.
    """

    def __init__(self, direction: str, taps: tuple[int, ...], padding: int | None = None) -> None:
        super().__init__()
        self.direction = direction
        self.padding = (len(taps) - 1) // 2 if padding is None else padding
        self.is_box = taps == (1, 1)
        line = torch.tensor(taps, dtype=torch.float32)
        self.kernel: torch.Tensor
        # A constant of the architecture, not a weight, so it is not part of the state dict.
        self.register_buffer("kernel", torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to (B, C, h/2, w/2) or (B, C, 2h, 2w)."""
        if self.is_box:
            return F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        if self.direction == "down":
            return F.conv2d(x, kernel, stride=2, padding=self.padding, groups=channels)
        return F.conv_transpose2d(x, kernel * 4, stride=2, padding=self.padding, groups=channels)


class SelfAttention(nn.Module):
    """Residual self-attention over all positions: (proj(attention(norm x)) + x) · gain; the heads divide C channels.

    The 3C channels of q, k, v are laid out with q/k/v fastest: head h, channel c at h·3C/heads + 3c + {0, 1, 2}.
    """

    def __init__(self, channels: int, heads: int, eps: float, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.gain = gain
        self.norm = group_norm(channels, eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to the same shape; softmax in float32."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).unbind(0)
        if x.is_cuda:
            # The fused kernels need contiguous inputs; others take a slow path.
            query, key, value = (part.contiguous() for part in (query, key, value))
        with without_autocast(x.device):
            mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        mixed = mixed.transpose(2, 3).reshape(batch, channels, height, width).to(x.dtype)
        return (self.proj(mixed) + x) * self.gain


class FourierFeatures(nn.Module):
    """(sin 2πwt, cos 2πwt) for C = `count` frequencies w ~ N(0, 16²), drawn once and saved with the weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.randn(count) * 16)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, 2C)."""
        phase = time[:, None].float() * (2 * math.pi * self.frequencies.float())
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Disable autocast on a device."""
    # The meta device, used for estimates, has no autocast; estimates use the CPU's switch instead.
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def sinusoids(time: torch.Tensor, count: int, *, endpoint: bool = False) -> torch.Tensor:
    """`count` sinusoids of t, (cos, sin), with frequencies 10000^(-i/(count/2)).

    Args:
        time: t, (B,).
        count: number of features, even.
        endpoint: make the lowest frequency exactly 1/10000, with exponents i/(count/2 - 1).

    Returns:
        (B, count) float32.
    """
    half = count // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / max(half - endpoint, 1)
    phase = time[:, None].float() * 10000.0**-exponent
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def one_hot(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Convert (B,) int64 to (B, width) float32; `NO_LABEL` becomes a row of zeros."""
    return (labels[:, None] == torch.arange(width, device=labels.device)).float()


def times_like(time: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Convert a number, (1,) or (B,) to (1,) or (B,) float32 on x's device."""
    if isinstance(time, torch.Tensor):
        return time.to(x.device, torch.float32).reshape(-1)
    # Fill on the device: copying a number to a GPU would synchronize.
    return torch.full((1,), time, dtype=torch.float32, device=x.device)


@dataclass(frozen=True)
class BlockStyle:
    """Differences between the blocks of the architectures.

    Attributes:
        taps: resampling filter.
        eps: ε of the normalizations.
        gain: factor on each residual sum.
        modulate: the embedding gives scale and shift after the second normalization (ADM), not an addend before it.
        project_resampled: a block that resamples has a 1×1 convolution in its skip even where channels stay.
        head_channels: channels of one attention head; 0 for a single head of any width.
    """

    taps: tuple[int, ...]
    eps: float
    gain: float
    modulate: bool
    project_resampled: bool
    head_channels: int

    def heads(self, channels: int) -> int:
        """Number of attention heads over this many channels."""
        return channels // self.head_channels if self.head_channels else 1


NCSNPP = BlockStyle(
    taps=(1, 3, 3, 1), eps=1e-6, gain=math.sqrt(0.5), modulate=False, project_resampled=True, head_channels=0
)
DDPMPP = replace(NCSNPP, taps=(1, 1))
ADM = BlockStyle(
    taps=(1, 1), eps=1e-5, gain=1.0, modulate=True, project_resampled=False, head_channels=ADM_HEAD_CHANNELS
)
STYLES = {"ncsnpp": NCSNPP, "ddpmpp": DDPMPP, "adm": ADM}
"""By the generator's family."""


class ResidualBlock(nn.Module):
    """Two normalized 3×3 convolutions with a skip, conditioned on an embedding; optional resampling and attention.

    Args:
        embedding: width of the embedding.
        resample: "down", "up" or None; happens before the first convolution and in the skip.
        dropout: probability, before the second convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        style: BlockStyle,
        *,
        resample: str | None = None,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.style = style
        self.dropout = dropout
        self.norm_in = group_norm(inputs, style.eps)
        self.resample = Resample(resample, style.taps) if resample else None
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.condition = nn.Linear(embedding, outputs * (2 if style.modulate else 1))
        self.norm_out = group_norm(outputs, style.eps)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        projected = inputs != outputs or (resample is not None and style.project_resampled)
        self.skip = nn.Conv2d(inputs, outputs, 1) if projected else None
        self.attention = None
        if attention:
            self.attention = SelfAttention(outputs, style.heads(outputs), style.eps, style.gain)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) and (B or 1, embedding) to (B, outputs, h', w')."""
        h = F.silu(self.norm_in(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self._conditioned(self.conv_in(h), self.condition(embedding)[:, :, None, None])
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        skip = x if self.skip is None else self.skip(x)
        h = (self.conv_out(h) + skip) * self.style.gain
        return h if self.attention is None else self.attention(h)

    def _conditioned(self, h: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        if not self.style.modulate:
            return F.silu(self.norm_out(h + condition))
        scale, shift = condition.chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, self.norm_out(h), scale + 1))
