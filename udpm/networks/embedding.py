"""Time and label to the vector that conditions a generator's blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from udpm.networks.layers import FourierFeatures, one_hot, sinusoids


class Embedding(nn.Module):
    """Time and label to one vector of width 4C.

    NCSN++ and DDPM++ add the label to the features of time; ADM adds it behind the two linear layers.

    Args:
        family: of the generator.
        channels: C.
        label_inputs: K, width of the one-hot label; 0 for an unconditional network.
    """

    def __init__(self, family: str, channels: int, label_inputs: int) -> None:
        super().__init__()
        self.family = family
        self.channels = channels
        self.label_inputs = label_inputs
        features = 2 * channels if family == "ncsnpp" else channels
        self.time = FourierFeatures(channels) if family == "ncsnpp" else None
        self.label = None
        if label_inputs:
            late = family == "adm"
            self.label = nn.Linear(label_inputs, 4 * channels if late else features, bias=not late)
        self.first = nn.Linear(features, 4 * channels)
        self.second = nn.Linear(4 * channels, 4 * channels)

    def forward(self, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """t, (B,) or (1,), and labels, (B,) int64, to (B or 1, 4C); a label below 0 is "no label"."""
        if self.label is not None and labels is None:
            raise ValueError("a class-conditional network needs labels")
        features = self._features(time)
        if self.family == "adm":
            vector = self.second(F.silu(self.first(features)))
            return F.silu(vector if self.label is None else vector + self.label(one_hot(labels, self.label_inputs)))
        if self.label is not None:
            features = features + self.label(one_hot(labels, self.label_inputs) * math.sqrt(self.label_inputs))
        return F.silu(self.second(F.silu(self.first(features))))

    def _features(self, time: torch.Tensor) -> torch.Tensor:
        if self.time is not None:
            return self.time(time)
        if self.family == "adm":
            return sinusoids(time, self.channels)
        # (sin, cos): the halves the other way round.
        return sinusoids(time, self.channels, endpoint=True).roll(self.channels // 2, dims=1)
