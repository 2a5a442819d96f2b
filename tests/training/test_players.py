"""Statistics of generator and discriminator in training: separation, share of the gradient, and warnings."""

import math

import pytest
import tiny
import torch

from udpm.training.adversarial import gradient_share, separation
from udpm.training.metrics import SETTLES, WINDOW, Watch, verdict
from udpm.training.trainer import train


def test_auc_is_the_share_of_pairs_in_order():
    real, fake = torch.tensor([[3.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # 3 is above all; 1 is above 0, equal to 1, below 2.
    assert separation(real, fake).item() == pytest.approx((3 + 1 + 0.5) / 6)
    assert separation(fake, fake).item() == pytest.approx(0.5)
    assert separation(real + 10, fake).item() == 1


def test_separation_of_own_pairs():
    """What D adds to both images of a pair hides the difference over all pairs."""
    pairs = torch.tensor([[-40.0], [0.0], [30.0], [80.0]])
    assert separation(pairs + 1, pairs).item() < 0.7
    assert separation(pairs + 1, pairs, paired=True).item() == 1
    assert separation(pairs, pairs, paired=True).item() == 0.5


@pytest.mark.parametrize("draws", [1, 2])
def test_share_is_that_of_the_norms(draws):
    output = torch.zeros(2 * draws, 3, 2, 2, requires_grad=True) * 1.0
    branch = output[:2].view_as(output[:2])
    share = gradient_share(output, branch)
    assert share == 0
    others, alone = torch.randn(output.shape), torch.randn(branch.shape)
    (0.25 * ((output * others).sum() + 3 * (branch * alone).sum())).backward()
    first, second = (3 * alone).norm(), others.norm()
    assert share.item() == pytest.approx((first / (first + second)).item(), rel=1e-5)


def test_share_alone_is_one_and_none_is_zero():
    output = torch.zeros(2, 3, 2, 2, requires_grad=True) * 1.0
    branch = output.view_as(output)
    share = gradient_share(output, branch)
    branch.sum().backward()
    assert share == 1
    output = torch.zeros(2, 3, 2, 2, requires_grad=True) * 1.0
    branch = output.view_as(output)
    share = gradient_share(output, branch)
    (0 * branch.sum() + 0 * output.sum()).backward()
    assert share == 0


@pytest.mark.parametrize(
    ("auc", "share", "loss", "words"),
    [
        (0.605, 0.0099, 0.693, "l = 2 separates almost nothing: AUC 0.60 (0.5 is chance), and 1.0% of the generator's"),
        (0.5, None, math.log(2), "separates almost nothing: AUC 0.50 (0.5 is chance)"),
        (0.9, 0.01, 0.6, "hardly moves the generator: AUC 0.90, and 1.0%"),
        (1.0, 0.3, 0.001, "has won: AUC 1.00, loss 0.001"),
        (0.76, 0.3, 0.6, None),
        (0.76, None, 0.6, None),
    ],
)
def test_verdicts(auc, share, loss, words):
    found = verdict(2, auc, share, loss)
    assert found is None if words is None else words in found


def line(iteration, auc):
    return {
        "iteration": iteration,
        "discriminator/auc/l1": auc,
        "discriminator/loss/l1": 0.6,
        "generator/adversarial_share/l1": 0.3,
    }


def test_a_watch_waits_and_tells_once():
    watch = Watch(start=200)
    found = [watch.verdicts(line(iteration, 0.5), 3) for iteration in range(50, 3000, 50)]
    warned = [index for index, texts in enumerate(found) if texts]
    assert warned == [(200 + SETTLES) // 50 - 1]
    assert "l = 1 separates almost nothing" in found[warned[0]][0]


def test_a_watch_judges_the_last_iterations_only():
    watch = Watch(start=0)
    for iteration in range(50, SETTLES, 50):
        watch.verdicts(line(iteration, 0.5), 1)
    assert watch.verdicts(line(SETTLES + WINDOW, 0.9), 1) == []


def test_a_watch_takes_lines_without_a_discriminator():
    assert Watch(0).verdicts({"iteration": 5000, "generator/reconstruction/l1": 0.1}, 3) == []


def test_training_warns_of_a_discriminator_that_separates_nothing(levels, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("udpm.training.metrics.SETTLES", 4)
    monkeypatch.setattr("udpm.training.metrics.CHANCE", 1.1)
    train(tiny.run_config(), levels, tmp_path / "run", False)
    warnings = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning: the discriminator")]
    assert warnings
    assert len(warnings) == len({text.partition(":")[2].partition(":")[0] for text in warnings})
    assert all("`udpm diagnose`" in text for text in warnings)
    assert any("discriminator/auc/l1" in found for found in tiny.metrics(tmp_path / "run"))
