"""Inference: compiled and recorded networks, prefetching, files written by several processes."""

import json
import time

import numpy as np
import pytest
import tiny
import torch
from scored import save_samples

from udpm.config import Experiment, Sampling
from udpm.config.load import validate
from udpm.config.validation import read_yaml
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.core.work import delay_by_one, prefetch
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import CUDAGraphRunner, compile_network, prepare_for_inference
from udpm.networks.unet import UNet, UNetShape
from udpm.networks.weights import load_model
from udpm.sampling import sample_set
from udpm.sampling.sample_set import load_samples, save_batches
from udpm.sampling.sampler import Sampler
from udpm.training.losses import loss_weights
from udpm.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


def network(**changes):
    """A network of a few layers, none of them at zero."""
    torch.manual_seed(0)
    made = UNet(UNetShape("ddpmpp", 8, 8, (1,), 1, classes=3, **changes)).eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.xavier_normal_(module.weight)
    return made


def inputs(side, seed=0, batch=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((batch, 3, side, side), generator=draw), torch.randint(0, 3, (batch,), generator=draw)


# --- recorded calls --------------------------------------------------------------------------------------------------


class Recorder:
    """Record a call once, like a GPU; a replay reads the same inputs and overwrites the same output."""

    def __init__(self):
        self.calls = 0

    def __call__(self, call):
        self.calls += 1
        output = call()
        return lambda: output.copy_(call()), output


@torch.inference_mode()
def test_one_recording_for_each_shape_serves_all_inputs():
    f, recorder = network(), Recorder()
    graphs = CUDAGraphRunner(f, recorder)
    cases = [(*inputs(side, seed), moment) for seed in range(3) for side, moment in ((2, 0.9), (4, 0.5), (8, 0.1))]
    found = [graphs(x, moment, labels) for x, labels, moment in cases]
    assert recorder.calls == 3
    # All outputs of earlier calls are still what they were.
    for (x, labels, moment), output in zip(cases, found, strict=True):
        assert torch.equal(output, f(x, moment, labels))


@torch.inference_mode()
def test_layout_and_labels_have_their_own_recordings():
    f, recorder = UNet(UNetShape("ddpmpp", 8, 8, (1,), 1)).eval(), Recorder()
    graphs, (x, labels) = CUDAGraphRunner(f, recorder), inputs(4)
    for given in ((x, 0.5), (x.to(memory_format=torch.channels_last), 0.5), (x, 0.5, labels), (x[:1], 0.5), (x, 0.2)):
        assert torch.equal(graphs(*given), f(*given))
    assert recorder.calls == 4


def test_recorded_chains_are_the_eager_ones(trained):
    eager, recorded = (Sampler(load_model(trained / "weights.safetensors"), batch=4) for _ in range(2))
    recorder = Recorder()
    recorded._network = CUDAGraphRunner(recorded._network, recorder)
    labels = eager.balanced_labels(10)
    expected, found = (list(sampler.chains(labels, 3)) for sampler in (eager, recorded))
    assert recorder.calls == 3
    for steps, others in zip(expected, found, strict=True):
        for step, other in zip(steps, others, strict=True):
            assert torch.equal(step.state, other.state)
            assert torch.equal(step.output, other.output)


def test_graphs_have_no_effect_on_a_cpu():
    f = network()
    assert prepare_for_inference(f, graphs=True) is f


def test_one_way_of_calling():
    values = read_yaml(tiny.ROOT / "config/experiments/digits-paper.yaml")
    values["sampling"] |= {"compile": True, "cuda_graphs": True}
    with pytest.raises(UserError, match=r"digits: sampling.cuda_graphs: compile already uses CUDA graphs; leave one"):
        validate(Experiment, values, "digits")


@pytest.mark.gpu
def test_a_graph_draws_the_eager_kernels_images(trained):
    device = devices.configure("cuda", 1)
    drawn = [
        Sampler(load_model(trained / "weights.safetensors", device=device), batch=4, graphs=graphs).sample(10)
        for graphs in (False, True)
    ]
    assert (drawn[0] == drawn[1]).all()


@pytest.mark.gpu
def test_training_does_not_wait_for_the_gpu(levels):
    device = devices.configure("cuda", 1)
    run = Trainer(tiny.run_config(training__device="cuda"), levels, device)
    run.iterate()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            run.iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- compiled calls --------------------------------------------------------------------------------------------------


@pytest.mark.soak
@torch.inference_mode()
def test_a_compiled_network_gives_the_eager_outputs():
    f = network()
    fast, kept = prepare_for_inference(f, compiles=True), []
    for side, moment in ((2, 0.75), (4, 0.25)):
        for seed in range(2):
            x, labels = inputs(side, seed)
            kept.append((fast(x, moment, labels), f(x, moment, labels)))
    for found, expected in kept:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_one_line_says_so(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    call = compile_network(lambda x: x.sin() * 2 + 1, "sampling.compile")
    with pytest.raises(UserError) as caught:
        call(torch.ones(64))
    assert str(caught.value) == (
        "sampling.compile: PyTorch cannot compile the network: no C++ compiler found; install g++, or leave the key out"
    )


# --- work ahead ------------------------------------------------------------------------------------------------------


def test_ahead_is_in_order_and_bounded():
    begun = []
    results = prefetch(lambda item: begun.append(item) or item**2, range(10), depth=2)
    assert begun == []
    for number, found in enumerate(results):
        assert found == number**2
        time.sleep(0.01)
        assert len(begun) <= number + 3
    assert begun == list(range(10))


def test_an_error_in_prefetching_is_raised_in_order():
    def fails_at_two(item):
        if item == 2:
            raise UserError("noise: two")
        return item

    results = prefetch(fails_at_two, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="noise: two"):
        next(results)


def test_one_behind():
    made = []
    items = (made.append(number) or number for number in range(3))
    assert [(number, len(made)) for number in delay_by_one(items)] == [(0, 2), (1, 3), (2, 3)]
    assert list(delay_by_one([])) == []


def test_noise_that_fails_ends_sampling(trained):
    sampler = Sampler(load_model(trained / "weights.safetensors"), batch=2)

    def source(numbers):
        if numbers.start == 4:
            raise UserError("noise.npz: torn")
        return sampler.noise_of(0)(numbers)

    with pytest.raises(UserError, match=r"noise\.npz: torn"):
        sampler.images(sampler.balanced_labels(8), source)


def test_images_are_those_of_the_chains(trained):
    sampler = Sampler(load_model(trained / "weights.safetensors"), batch=4)
    labels = sampler.balanced_labels(10)
    found = sampler.images(labels, 3, levels=(1, 3))
    outputs = torch.cat([steps[-1].output for steps in sampler.chains(labels, 3)])
    assert (found[1] == ((outputs + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).byte().numpy()).all()
    assert found[3].shape == (10, 16, 16, 3)
    assert (found[3][:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2) == found[3]).all()


def test_batches_make_the_file_of_the_whole_set(tmp_path):
    rng = np.random.default_rng(0)
    images, coarse = rng.integers(0, 256, (2, 70, 24, 16, 3), dtype=np.uint8)
    labels = np.arange(70) % 3
    batches = ({1: images[at : at + 32], 3: coarse[at : at + 32]} for at in range(0, 70, 32))
    save_batches(tmp_path / "batches.npz", batches, labels, {"classes": 3})
    save_samples(tmp_path / "whole.npz", images, labels, {"classes": 3}, {3: coarse})
    np.savez_compressed(tmp_path / "numpy.npz", images=images, labels=labels, output_3=coarse)
    made = (tmp_path / "batches.npz").read_bytes()
    assert made == (tmp_path / "whole.npz").read_bytes()
    # The rest is a comment, which tells sample sets from other archives.
    assert made.startswith((tmp_path / "numpy.npz").read_bytes()[:-2])
    assert (load_samples(tmp_path / "batches.npz").outputs[3] == coarse).all()


def test_a_failure_between_batches_leaves_no_file(tmp_path):
    def batches():
        yield {1: np.zeros((2, 8, 8, 3), np.uint8)}
        raise UserError("outputs are not finite")

    with pytest.raises(UserError, match="not finite"):
        save_batches(tmp_path / "a.npz", batches(), np.zeros(4, np.int64), {"classes": 0})
    assert list(tmp_path.iterdir()) == []


def test_the_record_says_what_was_compiled(trained, tmp_path, monkeypatch):
    # Compiling takes a minute, and what is recorded does not depend on it.
    monkeypatch.setattr("udpm.networks.inference.compile_network", lambda function, key, **options: function)
    for name, way in (("a", "--cuda-graphs"), ("b", "--compile")):
        assert tiny.call("sample", trained / "weights.safetensors", "--count", 2, way, "--threads", 1,
                         "--output", tmp_path / f"{name}.npz") == 0  # fmt: skip
    assert "compiled" not in json.loads((tmp_path / "a.json").read_text())
    assert json.loads((tmp_path / "b.json").read_text())["compiled"] is True
    assert Sampling().compile is Sampling().cuda_graphs is False


# --- files by several processes --------------------------------------------------------------------------------------


def exported(folder, monkeypatch, per_process):
    monkeypatch.setattr(sample_set, "PER_PROCESS", per_process)
    monkeypatch.setattr(sample_set, "AT_ONCE", 7)
    monkeypatch.setattr(sample_set.os, "sched_getaffinity", lambda _: {0, 1})
    target = folder / f"files-{per_process}"
    sample_set.export_images(folder / "a.npz", target, "classes", "png")
    return tiny.snapshot(target)


def test_several_processes_write_the_same_files(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    save_samples(tmp_path / "a.npz", images, np.arange(40) % 3, {"classes": 3})
    alone, together = (exported(tmp_path, monkeypatch, count) for count in (1000, 10))
    assert len(alone) == 42  # and the list of them
    assert together == alone
    assert len(load_samples(tmp_path / "a.npz").images) == 40


def test_what_another_process_cannot_write_is_one_line(tmp_path, monkeypatch):
    # A file name longer than any file system takes fails where it is written.
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    save_samples(tmp_path / "a.npz", images, np.zeros(40, np.int64), {"classes": 0})
    monkeypatch.setattr(sample_set, "PER_PROCESS", 10)
    monkeypatch.setattr(sample_set.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        sample_set.export_images(tmp_path / "a.npz", tmp_path / "files", "flat", f"{'x' * 300}.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.json"}


# --- training --------------------------------------------------------------------------------------------------------


def test_lazy_r1_is_rare_and_strong():
    config = tiny.run_config(losses__r1_gamma=0.3, losses__r1_every=4, training__discriminator_every=2)
    (terms, *_), (plain, *_) = loss_weights(config), loss_weights(tiny.run_config(losses__r1_gamma=0.3))
    assert [terms.at(iteration).r1 for iteration in (0, 2, 4, 6, 8)] == [4 * 0.3, 0, 0, 0, 4 * 0.3]
    assert [plain.at(iteration).r1 for iteration in range(3)] == [0.3] * 3


def test_lazy_r1_in_every_step_is_r1(levels):
    weights = []
    for changes in ({}, {"losses__r1_every": 1}, {"losses__r1_every": 3}):
        run = Trainer(tiny.run_config(losses__r1_gamma=0.5, training__warmup=0, **changes), levels, CPU)
        for _ in range(2):
            run.iterate()
        weights.append(torch.cat([value.flatten() for value in run.state.discriminator.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.soak
def test_compiled_training_with_r1(levels):
    """R1 differentiates twice, which a compiled network cannot, so it uses the eager discriminator."""
    changes = {"training__level_probabilities": [0, 0, 1], "training__batch": 4, "losses__r1_gamma": 0.5}
    changes |= {"generator__channel_multipliers": [1], "generator__attention": []}
    found = []
    for compiles in (False, True):
        run = Trainer(tiny.run_config(**changes, training__compile=compiles), levels, CPU)
        found.append(
            [run.train_step(player, index)[1] for index in range(2) for player in ("discriminator", "generator")]
        )
    for eager, fast in zip(*found, strict=True):
        assert eager.keys() == fast.keys()
        for name in eager:
            torch.testing.assert_close(fast[name], eager[name], rtol=2e-3, atol=2e-4)


def test_a_resumed_optimizer_counts_where_its_weights_are(levels):
    run = Trainer(tiny.run_config(), levels, CPU)
    run.iterate()
    again = Trainer(tiny.run_config(), levels, CPU)
    again.state.load({key: value.clone() for key, value in run.state.tensors().items()}, 1)
    for optimizer in again.state.optimizers.values():
        for parameter, moments in optimizer.state.items():
            assert {value.device for value in moments.values()} == {parameter.device}
    assert Schedule.from_config(run.config.process).levels == 3
