"""The residual block of all networks, and the two styles of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.model import ADM_HEAD_CHANNELS
from udpm.networks.layers import Resample, SelfAttention, group_norm


@dataclass(frozen=True)
class BlockStyle:
    """What differs between the blocks of the architectures.

    Attributes:
        taps: the resampling filter.
        eps: of the normalisations.
        gain: factor on each residual sum.
        modulate: the embedding gives scale and shift after the second normalisation (ADM), not an addend before it.
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
    """Two normalised 3×3 convolutions beside a skip, conditioned on an embedding; optional resampling and attention.

    Args:
        inputs: channels in.
        outputs: channels out.
        embedding: width of the embedding.
        style: see `BlockStyle`.
        resample: "down", "up" or None; happens before the first convolution and in the skip.
        attention: whether self-attention follows.
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
