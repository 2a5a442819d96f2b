"""A fake Inception: the name, interface and sizes of the TorchScript file, with a tiny network."""

import torch
import torch.nn.functional as F
from torch import nn


class Layers(nn.Module):
    """Map (N, 3, 299, 299) in [-1, 1] to (N, 2048), with weights from a seed."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 32, 5, stride=9)

    def forward(self, x):
        return F.adaptive_avg_pool2d(F.relu(self.mix(x)), 8).flatten(1)


class StandIn(nn.Module):
    """The interface of `inception-2015-12-05.pt`: `layers`, `output`, and resizing inside `forward`."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img, return_features: bool = False):
        # As in the published file: bilinear, with aligned corners of the first pixels (not centres).
        shift = [1 / img.shape[3] - 1 / 299, 1 / img.shape[2] - 1 / 299]
        place = torch.tensor([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]], dtype=img.dtype, device=img.device)
        grid = F.affine_grid(place.expand(len(img), 2, 3), [len(img), 3, 299, 299], align_corners=False)
        x = F.grid_sample(img, grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        return self.output(features).softmax(dim=1)


def write(folder):
    """Write the fake network into a weights folder and return its path."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(StandIn().eval()), str(path))
    return path
