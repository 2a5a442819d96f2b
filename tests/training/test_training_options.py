"""Training's options: discriminator, decay, starts and ends, workers, milestones, labels, LPIPS, starting weights."""

import json
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from udpm.config import Experiment
from udpm.config.load import validate
from udpm.config.validation import read_yaml
from udpm.core import devices
from udpm.core.errors import StoppedEarly, UserError
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import batch_deviation
from udpm.networks.layers import NO_LABEL, one_hot
from udpm.networks.unet import UNet, UNetShape
from udpm.networks.weights import load_model
from udpm.sampling.sample_set import load_samples
from udpm.training.batch import draw_level, draw_noise
from udpm.training.losses import TrainingBatch, discriminator_losses, generator_losses, loss_weights
from udpm.training.perceptual import load_lpips
from udpm.training.state import State
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")
NO_NOISE = {"kind": "none", "std": 0.0, "decay_per_1000": 1.0}
DIFFUSION = {"kind": "diffusion", "std": 0.0, "decay_per_1000": 0.5}
FAMILIES = {
    "ncsnpp": UNetShape("ncsnpp", 8, 8, (1, 2), 1, classes=3, label_dropout=True),
    "ddpmpp": UNetShape("ddpmpp", 8, 8, (1, 2), 1, classes=3, label_dropout=True),
    "adm": UNetShape("adm", 8, 32, (2, 2), 1, classes=3, label_dropout=True),
}


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


def trainer(levels, **changes):
    return Trainer(tiny.run_config(**changes), levels, CPU)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same_tensors(network, state):
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


# --- what the discriminator sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_diffusion_noise_is_the_forward_process(normalize):
    finest, *coarser = loss_weights(tiny.run_config(losses__discriminator_noise=DIFFUSION, losses__normalize=normalize))
    assert (finest.scale, finest.noise) == (1, 0)
    image, noise = normal(0, 2, 8)
    closed_forms = [(2, 0.5, 0.1), (4, 0.1, math.sqrt(0.2**2 * 0.1**2 + 0.2**2))]
    for terms, (scale, alpha_bar, sigma_tilde) in zip(coarser, closed_forms, strict=True):
        divisor = scale if normalize else 1
        expected = (alpha_bar * divisor * image + sigma_tilde * noise) / divisor
        torch.testing.assert_close(terms.scale * image + terms.noise * noise, expected)
        assert terms.at(5000).noise == terms.noise


def test_the_discriminators_loss_under_diffusion_noise():
    config = tiny.run_config(losses__discriminator_noise=DIFFUSION, losses__r1_gamma=0.3, training__batch=4)
    terms, schedule = loss_weights(config)[1], Schedule.from_config(config.process)
    target, output, weight = normal(0, 4, 3, 8, 8), normal(1, 4, 3, 8, 8), normal(2, 3, 8, 8) / 10
    draw, unit = (draw_noise(config, "discriminator", 7, 2, target, torch.arange(4), std) for std in (terms.noise, 1.0))

    def judge(image, *_):
        return (weight * image**2).sum(dim=(1, 2, 3))[:, None]

    losses = discriminator_losses(lambda *_: output, judge, schedule, terms, draw)
    fake, real = (0.5 * output + 0.1 * unit.fake_noise) / 2, (0.5 * target + 0.1 * unit.real_noise) / 2
    loss = (F.softplus(judge(fake)).mean() + F.softplus(-judge(real)).mean()) / 2
    r1 = (2 * weight * real).square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(losses["total"], loss + 0.15 * r1)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_enlarged_input_is_bilinear_and_r1_is_of_the_small_one(level):
    config = tiny.run_config(losses__upsample_discriminator_input=True, losses__discriminator_noise=NO_NOISE)
    terms, schedule = loss_weights(config)[level - 1], Schedule.from_config(config.process)
    side, scale = 16 >> (level - 1), 2 ** (level - 1)
    target, output, weight = normal(0, 2, 3, side, side), normal(1, 2, 3, side, side), normal(2, 3, 16, 16)
    draw, seen = TrainingBatch(level, target, torch.arange(2), normal(3, 2, 3, side // 2, side // 2)), []

    def judge(image, *_):
        seen.append(image)
        return (weight * image).sum(dim=(1, 2, 3))[:, None]

    def enlarge(image):
        return F.interpolate(image, size=(16, 16), mode="bilinear", align_corners=False)

    losses = discriminator_losses(lambda *_: output, judge, schedule, terms, draw)
    generator_losses(lambda *_: output, judge, None, schedule, terms, draw)
    for image, expected in zip(seen, (output, target, output), strict=True):
        torch.testing.assert_close(image, enlarge(expected / scale))
    _, gradient = torch.autograd.functional.vjp(enlarge, target, weight.expand(2, -1, -1, -1))
    torch.testing.assert_close(losses["r1"], gradient.square().sum(dim=(1, 2, 3)).mean())


@pytest.mark.parametrize(("upsample", "expected"), [(True, {16}), (False, {4, 8, 16})])
def test_every_level_is_shown_at_its_side(levels, upsample, expected):
    run, sides = trainer(levels, losses__upsample_discriminator_input=upsample), set()
    run.state.discriminator.register_forward_pre_hook(lambda _, inputs: sides.add(inputs[0].shape[-1]))
    for _ in range(6):
        run.iterate()
    assert sides == expected


# --- schedules of the loss terms -------------------------------------------------------------------------------------


def test_decay_goes_in_steps_of_1000(levels):
    changes = {"losses__r1_gamma": 0.4, "losses__r1_decay_per_1000": 0.5}
    noise = {"kind": "noisy", "std": 0.8, "decay_per_1000": 0.9}
    run = trainer(levels, **changes, losses__discriminator_noise=noise)
    found = [run.loss_weights[0].at(iteration) for iteration in (0, 999, 1000, 1999, 2000)]
    assert [terms.r1 for terms in found] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])
    assert [terms.noise for terms in found] == pytest.approx([0.8, 0.8, 0.72, 0.72, 0.648])
    steady = trainer(levels, **changes, losses__discriminator_noise=noise | {"decay_per_1000": 1.0})
    for iteration, factor in ((999, 1), (1000, 0.9), (2000, 0.81)):
        drawn, undecayed = (each.batches("discriminator", iteration).real_noise for each in (run, steady))
        torch.testing.assert_close(drawn, factor * undecayed)


def adversarial_iterations(levels, folder, **changes):
    """Iterations, counted from 0, with a discriminator step, and those with an adversarial term."""
    train(tiny.run_config(training__log_every=1, **changes), levels, folder, False)
    found = {"discriminator/loss/": [], "generator/adversarial/": []}
    for line in tiny.metrics(folder):
        for prefix, iterations in found.items():
            if any(key.startswith(prefix) for key in line):
                iterations.append(line["iteration"] - 1)
    return tuple(found.values())


def test_nothing_is_adversarial_before_its_start(levels, tmp_path):
    found = adversarial_iterations(levels, tmp_path, training__iterations=6, losses__adversarial_start=4)
    assert found == ([4, 5], [4, 5])


def test_the_discriminator_takes_every_third_step(levels, tmp_path):
    found = adversarial_iterations(levels, tmp_path, training__iterations=8, training__discriminator_every=3)
    assert found == ([0, 3, 6], list(range(8)))


def test_a_level_of_no_probability_is_never_drawn(monkeypatch):
    config = tiny.run_config(training__level_probabilities=[0.5, 0.4999992, 0.0])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.9999999, dtype=torch.float64))
    assert draw_level(config, "generator", 0) == 2


# --- ends and averages -----------------------------------------------------------------------------------------------


def test_epochs_end_training_early(levels, tmp_path):
    coarsest = [0.0, 0.0, 1.0]
    config = tiny.run_config(training__epochs=2, training__batch=500, training__level_probabilities=coarsest)
    train(config, levels, tmp_path, False)
    assert json.loads((tmp_path / "complete.json").read_text())["iterations"] == 2 * 1297 // 500 == 5
    assert trainer(levels, training__epochs=2).iterations == 12


def test_epochs_without_a_whole_batch_are_refused(levels, tmp_path):
    config = tiny.run_config(training__epochs=1, training__batch=1298)
    with pytest.raises(UserError, match=r"training\.epochs: 1 of data set digits have less than one batch of 1298"):
        train(config, levels, tmp_path, False)
    assert not (tmp_path / "weights.safetensors").exists()


def test_without_an_average_there_are_raw_weights_only(levels, tmp_path):
    config = tiny.run_config(training__ema_decay=0.0, training__iterations=4, training__keep_every=2)
    train(config, levels, tmp_path / "whole", False)
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path / "parts", tiny.StopAfter(3))
    train(config, levels, tmp_path / "parts", False)
    tiny.assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    assert {key.split("/")[0] for key in tiny.weights(tmp_path / "whole")} == {"raw"}
    assert load_model(tmp_path / "whole/milestones/000000002.safetensors", "raw").record["iteration"] == 2
    with pytest.raises(UserError, match="no ema weights, only raw; use those"):
        load_model(tmp_path / "whole/weights.safetensors", "ema")


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [[], [5, 3]])
def test_workers_do_not_change_the_weights(levels, trained, tmp_path, stops):
    config = tiny.run_config(training__workers=2)
    for after in stops:
        with pytest.raises(StoppedEarly):
            train(config, levels, tmp_path, tiny.StopAfter(after))
    train(config, levels, tmp_path, False)
    tiny.assert_same_weights(tmp_path, trained)


# --- milestones ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(levels, tmp_path_factory):
    """A finished run that kept weights every 4 iterations."""
    run = tmp_path_factory.mktemp("kept") / "run"
    train(tiny.run_config(training__iterations=10, training__keep_every=4), levels, run, False)
    return run


def test_milestones_are_the_averages_of_their_iterations(levels, kept):
    assert sorted(path.name for path in (kept / "milestones").iterdir()) == [
        "000000004.safetensors",
        "000000008.safetensors",
    ]
    run = trainer(levels)
    for iteration in (4, 8):
        while run.state.iteration < iteration:
            run.iterate()
        model = load_model(kept / f"milestones/{iteration:09d}.safetensors")
        assert_same_tensors(model.generator, run.state.ema_models["ema"].module.state_dict())
        assert model.record["iteration"] == iteration


def test_a_milestone_is_sampled(kept, tmp_path):
    final = kept / "weights.safetensors"
    sources = {"kept": (final, "--iteration", 4), "file": (kept / "milestones/000000004.safetensors",), "end": (final,)}
    for name, source in sources.items():
        assert tiny.call("sample", *source, "--count", 8, "--threads", 1, "--output", tmp_path / f"{name}.npz") == 0
    found, expected, end = (load_samples(tmp_path / f"{name}.npz") for name in sources)
    assert (found.images == expected.images).all()
    assert found.record == expected.record | {"sha256": found.record["sha256"]}
    assert found.record["iteration"] == 4
    assert (found.images != end.images).any()


def test_refuses_an_iteration_without_a_milestone(kept, trained, tmp_path, capsys):
    output = tmp_path / "a.npz"
    assert tiny.call("sample", kept / "weights.safetensors", "--iteration", 5, "--output", output) == 2
    assert tiny.call("sample", trained / "weights.safetensors", "--iteration", 5, "--output", output) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no weights of iteration 5; kept are 4, 8; take one of those" in first
    assert "no weights of iteration 5; none are kept (training.keep_every); take one" in second
    assert not any(tmp_path.iterdir())


# --- label dropout ---------------------------------------------------------------------------------------------------


def test_labels_are_hidden_with_their_probability(levels):
    run = trainer(levels, generator__label_dropout=0.3, training__batch=16)
    hidden = torch.stack([run.batches("generator", iteration).dropped_labels for iteration in range(100)])
    assert abs(hidden.float().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1600)
    assert hidden.unique(dim=0).shape[0] > 90
    again, other = (trainer(levels, generator__label_dropout=0.3, training__batch=16, seed=seed) for seed in (0, 1))
    assert torch.equal(again.batches("generator", 61).dropped_labels, hidden[61])
    assert any(
        (other.batches("generator", iteration).dropped_labels != hidden[iteration]).any() for iteration in range(3)
    )


def test_labels_are_hidden_in_the_generators_step_only(levels):
    run = trainer(levels, generator__label_dropout=0.3)
    assert run.batches("discriminator", 0).dropped_labels is None
    assert trainer(levels).batches("generator", 0).dropped_labels is None


def test_the_discriminator_sees_hidden_labels():
    config = tiny.run_config(generator__label_dropout=0.3, losses__discriminator_noise=NO_NOISE)
    hidden, seen = torch.tensor([True, False, False, True]), {}
    draw = TrainingBatch(1, normal(0, 4, 3, 16, 16), torch.arange(4), normal(1, 4, 3, 8, 8), dropped_labels=hidden)

    def generator(state, time, labels):
        seen["generator"] = labels.tolist()
        return torch.zeros_like(draw.target)

    def discriminator(image, time, labels, *_):
        seen["discriminator"] = labels.tolist()
        return torch.zeros(4, 1)

    schedule = Schedule.from_config(config.process)
    generator_losses(generator, discriminator, None, schedule, loss_weights(config)[0], draw)
    assert seen == {"generator": [NO_LABEL, 1, 2, NO_LABEL], "discriminator": [0, 1, 2, 3]}


def test_no_label_is_a_row_of_zeros():
    assert one_hot(torch.tensor([NO_LABEL, 1]), 3).tolist() == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_hidden_label_is_a_zero_one_hot(family):
    torch.manual_seed(0)
    network = UNet(FAMILIES[family]).eval()
    for parameter in network.parameters():
        parameter.normal_(std=0.2)
    assert network.embedding.label.in_features == 4
    state, labels = normal(0, 3, 3, 8, 8), torch.arange(3)
    with_labels, hidden = (network(state, 0.5, each) for each in (labels, torch.full_like(labels, NO_LABEL)))
    network.embedding.label.weight.zero_()
    without = network(state, 0.5, labels)
    torch.testing.assert_close(hidden, without)
    assert (with_labels - without).abs().amax(dim=(1, 2, 3)).min() > 1e-3


# --- LPIPS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lpips():
    """LPIPS with exponents 2 and 3 and the same untrained features."""
    torch.manual_seed(0)
    usual, other = (load_lpips("vgg-random", exponent, CPU) for exponent in (2.0, 3.0))
    other.lpips.load_state_dict(usual.lpips.state_dict())
    return usual, other


@torch.no_grad()
def test_lpips_of_exponent_2_is_the_packages(lpips):
    first, second = normal(0, 2, 2, 3, 32, 32).tanh()
    torch.testing.assert_close(lpips[0](first, second), lpips[0].lpips(first, second).flatten())


@torch.no_grad()
def test_lpips_of_another_exponent(lpips):
    first, second = normal(0, 2, 2, 3, 32, 32).tanh()
    package = lpips[1].lpips
    expected = torch.zeros(2)
    both = (package.net(package.scaling_layer(image)) for image in (first, second))
    for a, b, layer in zip(*both, package.lins, strict=True):
        a, b = (feature / (feature.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for feature in (a, b))
        weight = layer.model[-1].weight.flatten()
        expected += torch.einsum("c,bcij->bij", weight, (a - b).abs() ** 3).mean(dim=(1, 2))
    torch.testing.assert_close(lpips[1](first, second), expected)


@pytest.mark.parametrize("index", [0, 1])
def test_lpips_has_a_gradient_with_respect_to_the_output_only(lpips, index):
    first, second = (image.clone().requires_grad_() for image in normal(0, 2, 1, 3, 32, 32).tanh())
    lpips[index](first, second).sum().backward()
    assert second.grad is None
    assert first.grad.isfinite().all()
    assert first.grad.abs().max() > 0


def test_lpips_exponents_without_a_gradient_are_refused():
    with pytest.raises(UserError, match=r"losses\.lpips_exponent: input should be greater than or equal to 1"):
        tiny.run_config(losses__lpips_exponent=0.5)


# --- how weights start -----------------------------------------------------------------------------------------------


def layers(network):
    """Layers by whether they are a block's, the attention's or the network's last, without the label's."""
    found = {False: [], True: []}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not network.embedding.label:
            found[name == "head" or name.endswith((".conv_out", ".attention.proj"))].append((name, module))
    return found[False], found[True]


def assert_uniform(values, bound):
    assert values.abs().max() <= bound
    if values.numel() >= 100:
        assert values.abs().max() > 0.9 * bound
        assert values.mean().abs() < bound * 4 / math.sqrt(3 * values.numel())


def test_adm_starts_uniform_by_fan_in_with_zero_last_layers():
    torch.manual_seed(0)
    network = UNet(FAMILIES["adm"])
    others, last = layers(network)
    for _, layer in others:
        for values in (layer.weight, layer.bias):
            assert_uniform(values, layer.weight[0].numel() ** -0.5)
            assert values.abs().max() > 0
    assert len(last) == 1 + 10 + 1
    assert not any(values.any() for _, layer in last for values in (layer.weight, layer.bias))
    label = network.embedding.label
    assert label.bias is None
    assert label.weight.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * label.weight.numel()))


@pytest.mark.parametrize("family", ["ncsnpp", "ddpmpp"])
def test_the_others_start_xavier_with_last_layers_near_zero(family):
    torch.manual_seed(0)
    network = UNet(FAMILIES[family])
    others, last = layers(network)
    factors = [(layer, math.sqrt(0.2) if name.endswith(".qkv") else 1) for name, layer in others]
    factors += [(layer, 1e-5) for _, layer in last] + [(network.embedding.label, 1)]
    for layer, factor in factors:
        fans = layer.weight[0].numel() + layer.weight[:, 0].numel()
        assert_uniform(layer.weight, factor * math.sqrt(6 / fans))
        assert layer.weight.abs().max() > 0
        assert not layer.bias.any()
    assert any(name.endswith(".qkv") for name, _ in others)


@pytest.mark.parametrize(("family", "width"), [("ncsnpp", 8), ("ddpmpp", 8), ("adm", 64)])
def test_adms_stem_is_as_wide_as_its_first_level(family, width):
    assert UNet(FAMILIES[family]).stem.out_channels == width


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(levels, family):
    adm = {"generator__channels": 64, "generator__channel_multipliers": [1], "generator__attention": []}
    changes = adm if family == "adm" else {}
    run = trainer(levels, generator__family=family, training__warmup=0, training__batch=4, **changes)
    before = {name: value.clone() for name, value in run.state.generator.named_parameters()}
    run.iterate()
    after = dict(run.state.generator.named_parameters())
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert all(value.isfinite().all() for value in after.values())


# --- starting from weights -------------------------------------------------------------------------------------------


def test_training_starts_from_given_weights(trained):
    path = trained / "weights.safetensors"
    found, fresh = (State.fresh(tiny.run_config(), CPU) for _ in range(2))
    origin = found.start_from(tiny.run_config(weights=str(path)))
    assert origin["files"][0]["name"] == "weights.safetensors"
    assert_same_tensors(found.generator, load_model(path, "raw").generator.state_dict())
    assert_same_tensors(found.ema_models["ema"].module, load_model(path, "ema").generator.state_dict())
    assert_same_tensors(found.discriminator, fresh.discriminator.state_dict())
    assert found.iteration == 0
    assert not torch.equal(found.generator.head.weight, fresh.generator.head.weight)


def test_training_starts_from_a_given_discriminator(monkeypatch):
    config = tiny.run_config(weights="given.safetensors")
    given, found = State.fresh(tiny.run_config(seed=1), CPU), State.fresh(config, CPU)
    weights = {"raw": given.generator.state_dict(), "discriminator": given.discriminator.state_dict()}
    monkeypatch.setattr("udpm.training.state.load_pretrained", lambda _: (weights, {}))
    found.start_from(config)
    assert_same_tensors(found.discriminator, given.discriminator.state_dict())
    weights["discriminator"] = given.generator.state_dict()
    with pytest.raises(UserError, match=r"^given\.safetensors: its discriminator is not this experiment's: .*size m"):
        found.start_from(config)

    def fails(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(found.discriminator, "load_state_dict", fails)
    with pytest.raises(torch.OutOfMemoryError):
        found.start_from(config)


def test_averaged_weights_alone_start_both(kept):
    path = kept / "milestones/000000004.safetensors"
    found = State.fresh(tiny.run_config(), CPU)
    found.start_from(tiny.run_config(weights=str(path)))
    for network in (found.generator, found.ema_models["ema"].module):
        assert_same_tensors(network, load_model(path).generator.state_dict())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"generator__channels": 16}, "cannot start experiment digits: generator.channels is 8, not 16"),
        ({"generator__label_dropout": 0.1}, "digits: generator.label_dropout is False, not True"),
        (
            {"weights": "nowhere.safetensors"},
            "nowhere.safetensors: no such file; name the weights to start training from, or null",
        ),
    ],
)
def test_weights_that_cannot_start_a_run(digits, trained, tmp_path, capsys, changes, expected):
    config = tiny.write_config(tmp_path, **{"weights": str(trained / "weights.safetensors")} | changes)
    folders = ("--dataset", digits / "dataset", "--cache", digits / "cache", "--run", tmp_path / "run")
    assert tiny.call("train", config, *folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(expected)
    assert not (tmp_path / "run/weights.safetensors").exists()


# --- minibatch standard deviation of any batch -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 7])
def test_a_batch_without_divisors_has_no_deviation(batch):
    found = batch_deviation(normal(0, batch, 6, 4, 4))
    torch.testing.assert_close(found, torch.full((batch, 1, 4, 4), math.sqrt(1e-8) * 6 * 4 * 4))


def test_a_batch_of_six_has_groups_of_three():
    h = normal(0, 6, 5, 4, 4)
    found = batch_deviation(h)
    for members in ([0, 2, 4], [1, 3, 5]):
        variance = (h[members] - h[members].mean(dim=0)).square().mean(dim=0)
        expected = (variance + 1e-8).sqrt().sum()
        torch.testing.assert_close(found[members], expected.expand(3, 1, 4, 4))


@pytest.mark.parametrize("batch", [1, 5, 7])
def test_any_batch_trains(levels, batch):
    run = trainer(levels, training__batch=batch, training__warmup=0)
    run.iterate()
    run.iterate()
    assert all(value.isfinite().all() for player in run.state.networks.values() for value in player.parameters())


# --- a discriminator that sees the state -----------------------------------------------------------------------------


def test_a_discriminator_that_sees_the_state(levels):
    run = trainer(levels, discriminator__sees_state=True, training__warmup=0)
    plain = trainer(levels, training__warmup=0)
    assert run.state.discriminator.stem.in_channels == 6
    assert plain.state.discriminator.stem.in_channels == 3
    for _ in range(4):
        run.iterate()
    image, state = normal(0, 2, 3, 8, 8), normal(1, 2, 3, 4, 4)
    with torch.no_grad():
        judged = [run.state.discriminator(image, 0.5, torch.arange(2), 0.0, seen) for seen in (state, -state)]
    assert not torch.equal(*judged)
    with pytest.raises(ValueError, match="needs it"):
        run.state.discriminator(image, 0.5, torch.arange(2))


def test_both_players_show_it_the_state_that_the_image_was_made_from():
    config = tiny.run_config(losses__discriminator_noise=NO_NOISE, training__batch=2)
    terms, schedule = loss_weights(config)[1], Schedule.from_config(config.process)
    draw = draw_noise(config, "discriminator", 3, 2, normal(0, 2, 3, 8, 8), torch.arange(2), 0.0)
    expected, seen = [], []

    def generate(state, *_):
        expected.append(state)
        return normal(1, 2, 3, 8, 8)

    def judge(image, _time, _labels, _dropout, state):
        seen.append(state)
        return image.mean(dim=(1, 2, 3))[:, None]

    discriminator_losses(generate, judge, schedule, terms, draw)
    generator_losses(generate, judge, None, schedule, terms, draw)
    assert [torch.equal(state, expected[0]) for state in seen] == [True, True, True]


# --- several averages ------------------------------------------------------------------------------------------------


def test_several_averages_in_one_run(levels, tmp_path):
    config = tiny.run_config(training__more_ema_decays=[0.5], training__ema_decay=0.9, training__warmup=0)
    train(config, levels, tmp_path, False)
    alone = tmp_path / "alone"
    train(tiny.run_config(training__ema_decay=0.5, training__warmup=0), levels, alone, False)
    states = {kind: load_model(tmp_path / "weights.safetensors", kind).generator for kind in ("ema", "ema-0.5", "raw")}
    assert_same_tensors(states["ema-0.5"], load_model(alone / "weights.safetensors").generator.state_dict())
    assert not torch.equal(states["ema"].head.weight, states["ema-0.5"].head.weight)
    with pytest.raises(UserError, match=r"no ema-0\.9 weights, only ema and ema-0\.5 and raw"):
        load_model(tmp_path / "weights.safetensors", "ema-0.9")


def test_averages_may_warm_up(levels):
    run = trainer(levels, training__ema_warmup=True, training__ema_decay=0.9, training__warmup=0)
    average = run.state.ema_models["ema"].module
    expected = average.head.weight.detach().clone()
    for iteration in range(3):
        run.iterate()
        decay = (1 + iteration) / (10 + iteration)
        expected = decay * expected + (1 - decay) * run.state.generator.head.weight.detach()
    torch.testing.assert_close(average.head.weight, expected)


def test_weights_that_training_does_not_keep_are_found_before_it(tmp_path):
    values = read_yaml(tiny.ROOT / "config/experiments/digits-paper.yaml")
    values["sampling"]["weights"] = "ema-0.5"
    with pytest.raises(UserError, match=r"sampling\.weights: ema-0\.5 is not kept; training keeps ema, raw"):
        validate(Experiment, values, "x")


# --- switches of speed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["channels_last", "bfloat16"])
def test_switches_change_results_only_by_rounding(levels, switch):
    changes = {"training__channels_last": True} if switch == "channels_last" else {"training__precision": "bfloat16"}
    plain, switched = trainer(levels), trainer(levels, **changes)
    for run in (plain, switched):
        for _ in range(3):
            run.iterate()
    ours, theirs = (run.state.generator.state_dict() for run in (plain, switched))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0.05, atol=5e-3)
    assert theirs["head.weight"].dtype == torch.float32
