"""Terms and statistics of the adversarial losses: gradient penalty, separation, share of the gradient."""

from __future__ import annotations

import torch

from udpm.networks.layers import without_autocast


def gradient_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Compute the mean of ‖∇ΣD‖² over images, differentiable."""
    # Autocast would choose other types for some gradients than their operations had.
    with without_autocast(images.device):
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean()


def separation(on_real: torch.Tensor, on_fake: torch.Tensor, *, paired: bool = False) -> torch.Tensor:
    """Return the share of pairs of a real and a generated image that D's outputs, (n, 1) and (m, 1), order correctly.

    Over all pairs this is the area under the ROC curve: 1 if D separates all, ½ if it separates nothing. `paired`
    counts only each generated image with its own target, n = m. The relativistic loss compares no others: its D may
    add anything to both, so that over all pairs a D that orders every own pair correctly can be near ½.
    """
    return 0.5 + 0.5 * torch.sign(on_real - (on_fake if paired else on_fake.T)).mean()


def gradient_share(output: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Return a scalar that the backward pass fills: ‖g‖ / (‖g‖ + ‖g'‖), 0 until then and where a norm is not finite.

    g is the part of the loss's gradient with respect to the network's output that comes through `branch`, g' the rest.

    Args:
        output: (m·B, 3, H, W).
        branch: a view of its first B images, which one term of the loss uses alone.
    """
    share = output.new_zeros(())
    if not output.requires_grad:
        return share
    parts: list[torch.Tensor] = []
    branch.register_hook(parts.append)

    def fill(gradient: torch.Tensor) -> None:
        rest, part = gradient.clone(), parts.pop()
        rest[: len(part)] -= part
        norms = torch.stack([torch.linalg.vector_norm(part), torch.linalg.vector_norm(rest)])
        share.copy_(torch.nan_to_num(norms[0] / norms.sum()))

    output.register_hook(fill)
    return share
