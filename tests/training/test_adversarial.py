"""Options that keep a discriminator alive: closed forms, what the players are shown, refusals."""

import pytest
import tiny
import torch

from udpm.core.errors import UserError
from udpm.networks.discriminator import Discriminator, DiscriminatorShape, batch_deviation


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- minibatch deviation ---------------------------------------------------------------------------------------------


def test_the_mean_deviation_is_the_sum_over_their_number():
    h = 3 * normal(0, 8, 5, 4, 4)
    torch.testing.assert_close(batch_deviation(h, mean=True), batch_deviation(h) / (5 * 4 * 4))
    assert batch_deviation(h, mean=True).mean().item() == pytest.approx(3, rel=0.3)


@torch.no_grad()
@pytest.mark.parametrize("deviation", ["sum", "mean", "none"])
def test_only_without_the_map_an_image_is_judged_alone(deviation):
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorShape(8, 2, 8, deviation=deviation)).eval()
    images = normal(0, 4, 3, 8, 8)
    others = torch.cat([images[:1], normal(1, 3, 3, 8, 8)])
    ours, theirs = (network(given, 0.5)[0] for given in (images, others))
    assert (deviation == "none") == torch.allclose(ours, theirs, atol=1e-6)
    assert network.final.in_channels == network.blocks[-1].conv_out.out_channels + (deviation != "none")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"discriminator__minibatch_deviation": "average"}, "discriminator.minibatch_deviation: input should be "),
    ],
)
def test_what_cannot_be(changes, expected):
    with pytest.raises(UserError) as refusal:
        tiny.run_config(**changes)
    (line,) = str(refusal.value).splitlines()
    assert expected in line
