"""Keys of --set that have no effect: what is said about them is true."""

import pytest
import tiny
import torch

from udpm.config.idle import idle_notes
from udpm.training.trainer import Trainer

ITERATIONS = 4
NO_ADVERSARY = {"losses.adversarial_weight": 0.0}
NO_PENALTY = {"losses.r1_gamma": 0.0, "losses.r2_gamma": 0.0}
DIFFUSION = {"losses.discriminator_noise.kind": "diffusion"}
NO_AVERAGE = {"training.ema_decay": 0.0}
ONE_LEVEL = {"losses.adversarial_weight": [0.1, 0.1, 0.0]}
IDLE = [
    (NO_ADVERSARY, "losses.r1_gamma", 3.0, "adversarial_weight is 0, so no discriminator is trained"),
    (NO_ADVERSARY, "losses.adversarial", "relativistic", "adversarial_weight is 0"),
    (NO_ADVERSARY, "losses.adversarial_start", 2, "adversarial_weight is 0"),
    (NO_ADVERSARY, "losses.augmentation.flip", True, "adversarial_weight is 0"),
    (NO_ADVERSARY, "losses.upsample_discriminator_input", True, "adversarial_weight is 0"),
    (NO_ADVERSARY, "discriminator.channels", 8, "adversarial_weight is 0"),
    (NO_ADVERSARY, "training.discriminator_every", 2, "adversarial_weight is 0"),
    (NO_ADVERSARY, "training.discriminator_learning_rate", 0.5, "adversarial_weight is 0"),
    (NO_PENALTY, "losses.r1_every", 2, "losses.r1_gamma and losses.r2_gamma are 0"),
    (NO_PENALTY, "losses.r1_decay_per_1000", 0.1, "losses.r1_gamma and losses.r2_gamma are 0"),
    (DIFFUSION, "losses.discriminator_noise.std", 0.7, "losses.discriminator_noise.kind is not noisy"),
    (DIFFUSION, "losses.discriminator_noise.decay_per_1000", 0.1, "losses.discriminator_noise.kind is not noisy"),
    ({}, "losses.augmentation.probability", 0.5, "losses.augmentation has no transform"),
    ({}, "losses.energy_draws", 5, "losses.energy_weight is 0"),
    ({}, "losses.energy_patch", 4, "losses.energy_weight is 0"),
    ({}, "losses.lpips_exponent", 1.0, "losses.lpips_weight is 0"),
    (NO_AVERAGE, "training.ema_warmup", True, "training.ema_decay is 0"),
    ({}, "training.tf32", False, "training.device is cpu"),
    ({}, "training.backend", "gloo", "there is one process"),
    (ONE_LEVEL, "losses.r1_gamma[3]", 3.0, "losses.adversarial_weight is 0 at level 3"),
]
GAMMAS = [0.5, 0.5, 0.5]


def config(values):
    return tiny.run_config(**{key.replace(".", "__"): value for key, value in values.items()})


def weights(run, levels):
    trainer = Trainer(run, levels, torch.device("cpu"))
    for _ in range(ITERATIONS):
        trainer.iterate()
    return torch.cat([value.detach().flatten() for value in trainer.state.networks["generator"].parameters()])


@pytest.fixture(scope="module")
def trained(levels):
    """Weights of a configuration, trained once."""
    known = {}

    def of(values):
        if repr(values) not in known:
            known[repr(values)] = weights(config(values), levels)
        return known[repr(values)]

    return of


@pytest.mark.parametrize(("others", "key", "value", "why"), IDLE)
def test_a_key_that_is_called_idle_changes_no_weights(levels, trained, others, key, value, why):
    others = {"losses.r1_gamma": GAMMAS, "training.warmup": 0} | others
    name, _, level = key.partition("[")
    changed = config(others | {name: [*GAMMAS[:2], value] if level else value})
    (note,) = idle_notes(changed, [key])
    assert note.startswith(f"note: --set {key}: has no effect: ")
    assert why in note
    assert torch.equal(trained(others), weights(changed, levels))


@pytest.mark.parametrize(
    ("others", "key"),
    [
        ({}, "losses.r1_gamma"),
        (ONE_LEVEL, "losses.r1_gamma"),
        (ONE_LEVEL, "losses.r1_gamma[2]"),
        (NO_PENALTY, "losses.r1_gamma"),
        (NO_ADVERSARY, "losses.reconstruction"),
        (NO_ADVERSARY, "losses.adversarial_weight"),
        ({"losses.discriminator_noise.kind": "noisy"}, "losses.discriminator_noise.std"),
        ({"losses.augmentation.flip": True}, "losses.augmentation.ramp"),
        ({"training.ema_decay": 0.0, "training.more_ema_decays": [0.9]}, "training.ema_warmup"),
        ({}, "training.batch"),
    ],
)
def test_a_key_with_an_effect_has_no_note(others, key):
    assert list(idle_notes(config(others), [key])) == []


def test_commands_print_the_note(tmp_path, capsys):
    settings = ["--set", "losses.adversarial_weight=0", "--set", "losses.r1_gamma=0.1"]
    why = "losses.adversarial_weight is 0, so no discriminator is trained"
    note = f"note: --set losses.r1_gamma: has no effect: {why}\n"
    output = tmp_path / "run.json"
    assert tiny.call("resolve", "digits-paper", *settings, "--output", output) == 0
    assert capsys.readouterr().err == note
    assert tiny.call("train", output, "--dry-run", *settings[2:]) == 0
    assert capsys.readouterr().err == note
