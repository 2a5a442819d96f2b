"""The training loop: exact resume, refusals, what its files say."""

import json
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

import udpm
from udpm.core import devices
from udpm.core.errors import StoppedEarly, UserError
from udpm.networks.weights import load_model
from udpm.runs.attempts import ATTEMPTS
from udpm.training.batch import TrainingBatch
from udpm.training.checkpoint import checkpoints
from udpm.training.trainer import Trainer, train

PACKAGE = Path(udpm.__file__).parent


def test_the_record_describes_the_run(trained):
    record = json.loads((trained / "complete.json").read_text())
    assert record["iterations"] == 12
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert len(checkpoints(trained / "checkpoints")) == 2
    assert [line["iteration"] for line in tiny.metrics(trained)] == [2, 4, 6, 8, 10, 12]
    model = load_model(trained / "weights.safetensors")
    assert model.config == tiny.run_config().model
    assert model.record["weights_sha256"] == record["weights_sha256"]


def test_training_moves_the_weights(trained):
    found = tiny.weights(trained)
    raw = {key.removeprefix("raw/"): value for key, value in found.items() if key.startswith("raw/")}
    averaged = {key.removeprefix("ema/"): value for key, value in found.items() if key.startswith("ema/")}
    assert raw.keys() == averaged.keys()
    assert not torch.equal(raw["head.weight"], averaged["head.weight"])


@pytest.mark.parametrize("stopped_after", [1, 4, 5, 11])
def test_stop_and_resume_is_exact(levels, trained, tmp_path, stopped_after):
    config = tiny.run_config()
    with pytest.raises(StoppedEarly, match=r"state saved: run the same command again"):
        train(config, levels, tmp_path, tiny.StopAfter(stopped_after))
    assert not (tmp_path / "complete.json").exists()
    train(config, levels, tmp_path, False)
    tiny.assert_same_weights(tmp_path, trained)


def test_dropout_resumes_exactly(levels, tmp_path):
    config = tiny.run_config(generator__dropout=0.2, discriminator__dropout=[0.4, 0.2, 0.0], training__iterations=6)
    train(config, levels, tmp_path / "whole", False)
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path / "parts", tiny.StopAfter(2))
    train(config, levels, tmp_path / "parts", False)
    tiny.assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_the_average_is_the_configured_one(levels):
    devices.configure("cpu", 1)
    config = tiny.run_config(training__ema_decay=0.9, training__warmup=0)
    trainer = Trainer(config, levels, torch.device("cpu"))
    expected = trainer.state.generator.head.weight.detach().clone()
    for _ in range(3):
        trainer.iterate()
        expected = 0.9 * expected + 0.1 * trainer.state.generator.head.weight.detach()
    torch.testing.assert_close(trainer.state.ema_models["ema"].module.head.weight, expected)


def test_warm_up_starts_at_zero(levels):
    trainer = Trainer(tiny.run_config(training__warmup=4, training__learning_rate=1e-2), levels, torch.device("cpu"))
    assert [trainer.learning_rate(i) for i in range(6)] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01, 0.01])
    before = trainer.state.generator.head.weight.detach().clone()
    trainer.iterate()
    assert torch.equal(trainer.state.generator.head.weight, before)


@pytest.mark.parametrize("change", [{"losses__reconstruction": "l2"}, {"losses__adversarial_weight": 0.0}])
def test_other_losses_train(levels, tmp_path, change):
    train(tiny.run_config(training__iterations=3, **change), levels, tmp_path, False)
    keys = set().union(*tiny.metrics(tmp_path))
    assert any(key.startswith("discriminator/") for key in keys) == ("losses__adversarial_weight" not in change)


def test_without_instance_noise_the_discriminator_sees_the_images_as_they_are(levels):
    none = {"kind": "none", "std": 0.0, "decay_per_1000": 1.0}
    device = torch.device("cpu")
    noisy, zeroed = (Trainer(tiny.run_config(), levels, device) for _ in range(2))
    without = Trainer(tiny.run_config(losses__discriminator_noise=none), levels, device)
    batch = without.batches("discriminator", 0)
    assert batch.fake_noise is None
    assert batch.real_noise is None
    zeros = torch.zeros_like(batch.target)
    zeroed.batches = lambda player, iteration: replace(batch, fake_noise=zeros, real_noise=zeros)
    found = [trainer.train_step("discriminator", 0)[1]["loss"].item() for trainer in (without, zeroed, noisy)]
    assert found[0] == found[1] != found[2]


def test_a_step_with_lpips(levels):
    """The real lpips package, with untrained features because its weights are a download."""
    config = tiny.run_config(
        losses__lpips_weight=[4.0, 0.0, 0.0],
        losses__lpips_network="vgg-random",
        training__level_probabilities=[1.0, 0.0, 0.0],
        training__batch=2,
    )
    trainer = Trainer(config, levels, torch.device("cpu"))
    level, losses = trainer.train_step("generator", 1)
    assert level == 1
    assert losses["lpips"] > 0
    rest = losses["reconstruction"] + 0.5 * losses["adversarial"]
    torch.testing.assert_close(losses["total"].detach(), rest + 4 * losses["lpips"])
    assert not any(parameter.requires_grad for parameter in trainer.perceptual.parameters())


def test_a_complete_run_is_left_alone(levels, trained, capsys):
    before = tiny.snapshot(trained)
    train(tiny.run_config(), levels, trained, False)
    assert "complete already" in capsys.readouterr().out
    assert tiny.snapshot(trained) == before


def test_another_configuration_is_refused(levels, trained):
    before = tiny.snapshot(trained)
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.001, is 0\.5"):
        train(tiny.run_config(training__learning_rate=0.5), levels, trained, False)
    assert tiny.snapshot(trained) == before


def test_bookkeeping_of_a_finished_run_may_change(levels, trained):
    before = tiny.snapshot(trained)
    train(tiny.run_config(training__log_every=5, training__device="auto"), levels, trained, False)
    assert tiny.snapshot(trained) == before


def test_bookkeeping_may_change_on_the_way(levels, trained, tmp_path):
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(), levels, tmp_path, tiny.StopAfter(6))
    train(tiny.run_config(training__log_every=3, training__checkpoint_every=5), levels, tmp_path, False)
    assert [line["iteration"] for line in tiny.metrics(tmp_path)] == [2, 4, 6, 9, 10, 12]
    assert json.loads((tmp_path / "config.json").read_text())["training"]["log_every"] == 3
    tiny.assert_same_weights(tmp_path, trained)


def test_an_unreadable_checkpoint_is_skipped(levels, trained, tmp_path, capsys):
    config = tiny.run_config()
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path, tiny.StopAfter(9))
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config, levels, tmp_path, False)
    assert "skipped" in capsys.readouterr().err
    tiny.assert_same_weights(tmp_path, trained)


def test_without_any_readable_checkpoint_it_stops(levels, tmp_path):
    config = tiny.run_config()
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path, tiny.StopAfter(2))
    for path in checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"rubbish")
    before = tiny.snapshot(tmp_path, but=[ATTEMPTS])
    with pytest.raises(UserError, match="none of its 1 checkpoints can be read"):
        train(config, levels, tmp_path, False)
    assert tiny.snapshot(tmp_path, but=[ATTEMPTS]) == before


def test_a_loss_that_is_not_finite_stops_the_run(levels, tmp_path):
    config = tiny.run_config(training__learning_rate=1e30, training__warmup=0)
    with pytest.raises(UserError, match="is not finite"):
        train(config, levels, tmp_path, False)


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """A training command, and the run that it makes undisturbed, with every option; its adversary comes late."""
    folder = tmp_path_factory.mktemp("undisturbed")
    changes = {"losses__adversarial_start": 15, "training__iterations": 60, "training__keep_every": 10}
    config = tiny.write_config(folder, **tiny.ALL, **changes, training__checkpoint_every=7)
    command = ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run"]
    tiny.udpm(*command, folder / "run")
    return command, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGKILL, 9), pytest.param(signal.SIGKILL, 35, marks=pytest.mark.soak), (signal.SIGTERM, 19)],
)
def test_a_killed_process_resumes_exactly(undisturbed, tmp_path, number, after):
    """Through the command line, compared with an undisturbed run."""
    (command, expected), run = undisturbed, tmp_path / "run"
    held = tiny.Held.before_iteration(tmp_path, after)
    process = tiny.start(*command, run, program=held.program)
    held.wait(process)
    process.send_signal(number)
    held.release()
    _, errors = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert "run the same command again" in errors.splitlines()[-1]
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (run / "complete.json").exists()
    assert "resumed at iteration" in tiny.udpm(*command, run).stderr
    tiny.assert_same_weights(run, expected)


def test_few_calls_lead_from_the_command_to_the_loss(digits, tmp_path, monkeypatch):
    """At most six functions in four files lead to the loss."""
    calls = []

    def looked_at(self, schedule):
        calls.extend(frame for frame in traceback.extract_stack() if frame.filename.startswith(f"{PACKAGE}/"))
        raise UserError("seen")

    monkeypatch.setattr(TrainingBatch, "state", looked_at)
    config = tiny.write_config(tmp_path)
    folders = ("--dataset", digits / "dataset", "--cache", digits / "cache", "--run", tmp_path / "run")
    assert tiny.call("train", config, *folders) == 2
    assert calls[-1].name == "discriminator_losses"
    assert len(calls) <= 6, calls
    assert len({frame.filename for frame in calls}) <= 4, calls
