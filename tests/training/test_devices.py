"""Behaviour on a GPU, tested on a CPU: memory layouts, device failures, processes that end, precision."""

import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist

from udpm.config import load_experiment
from udpm.core import devices, distributed
from udpm.core.devices import describe_failure, is_device_failure
from udpm.core.distributed import Agreement, RankInfo, detect_ranks, process_group
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.work import prefetch
from udpm.diffusion.schedule import Schedule
from udpm.metrics.extractor import Extractor, extract
from udpm.metrics.protocol import comparable, sampling_words, used_tf32
from udpm.metrics.selection import select
from udpm.networks.discriminator import batch_deviation
from udpm.networks.inference import compile_network
from udpm.networks.layers import SelfAttention
from udpm.networks.weights import load_model
from udpm.sampling.sampler import Sampler
from udpm.training import checkpoint
from udpm.training.batch import Prefetcher
from udpm.training.losses import discriminator_losses
from udpm.training.perceptual import load_lpips
from udpm.training.state import State
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")
NO_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
    " Process 4711 has 77.90 GiB memory in use."
)
NO_HOST_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ILLEGAL = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
)
DUPLICATE = dist.DistBackendError(
    "NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.28\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
    "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1a000"
)
REMOTE = dist.DistBackendError(
    "NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited or there was a network error, NCCL version 2.28\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "channels_last", "changes"),
    [
        *((precision, layout, {}) for precision in ("float32", "bfloat16") for layout in (False, True)),
        ("bfloat16", False, tiny.ALIVE),
    ],
)
def test_resuming_changes_nothing(levels, channels_last, precision, changes):
    switches = {"training__channels_last": channels_last, "training__precision": precision}
    config = tiny.run_config(**switches, **changes, training__warmup=0, training__batch=4)
    whole = Trainer(config, levels, CPU)
    for _ in range(2):
        whole.iterate()
    parts = Trainer(config, levels, CPU)
    # As they come from a file.
    saved = {name: value.detach().contiguous().clone() for name, value in whole.state.tensors().items()}
    parts.state.load(saved, 2)
    for _ in range(3):
        whole.iterate()
        parts.iterate()
    found, expected = parts.state.tensors(), whole.state.tensors()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("channels_last", [False, True])
def test_averages_and_moments_have_the_layout_of_their_weights(levels, channels_last):
    run = Trainer(tiny.run_config(training__channels_last=channels_last), levels, CPU)
    run.iterate()
    run.state.load({name: value.clone() for name, value in run.state.tensors().items()}, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weights = list(run.state.generator.parameters())
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights if weight.ndim == 4)
    for average in run.state.ema_models.values():
        assert [value.stride() for value in average.module.parameters()] == [weight.stride() for weight in weights]
    for optimizer in run.state.optimizers.values():
        for weight, moments in optimizer.state.items():
            assert {moments[kind].stride() for kind in ("exp_avg", "exp_avg_sq")} == {weight.stride()}


def test_a_moment_of_another_shape_is_not_stretched(levels):
    run = Trainer(tiny.run_config(), levels, CPU)
    run.iterate()
    tensors = run.state.tensors()
    name = "adam/generator/exp_avg/head.weight"
    with pytest.raises(RuntimeError, match="a moment is "):
        run.state.load(tensors | {name: tensors[name][:1]}, 1)


# --- failures that are no other process's ----------------------------------------------------------------------------


class Group:
    """Replace a connected process group and record the calls to it, in order."""

    def __init__(self, monkeypatch):
        self.done, self.failure = [], None
        monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: self.done.append("init"))
        monkeypatch.setattr(dist, "new_group", lambda *_, **__: object())
        monkeypatch.setattr(dist, "is_initialized", lambda: "init" in self.done)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        monkeypatch.setattr(dist, "destroy_process_group", lambda: self.done.append("destroy"))
        monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=self))

    def all_reduce(self, value, *_, **__):
        if self.failure is not None:
            raise self.failure
        if value.dtype == torch.float32:
            value *= 2

    def abort(self):
        self.done.append("abort")


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(distributed, "detect_ranks", lambda world: RankInfo(1, world, 1))
    return Group(monkeypatch)


EXCHANGES = {
    "gradients": lambda: distributed.all_reduce_mean([torch.ones(3)], RankInfo(1, 2)),
    "the lowest": lambda: distributed.all_reduce_min(torch.tensor(3), RankInfo(1, 2)),
    "a wish": lambda: Agreement(RankInfo(1, 2)).any_rank(True),
    "a number": lambda: Agreement(RankInfo(1, 2)).all_equal(3),
}


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("failure", [NO_MEMORY, NO_HOST_MEMORY, ILLEGAL, DUPLICATE], ids=lambda error: str(error)[:20])
def test_a_processs_failure_is_not_mistaken_for_another_that_ended(group, exchange, failure):
    group.failure = failure
    with pytest.raises(RuntimeError) as caught:
        EXCHANGES[exchange]()
    assert caught.value is failure


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("failure", [CLOSED, REMOTE, dist.DistNetworkError("reset")], ids=["gloo", "NCCL", "network"])
def test_another_process_that_ended(group, exchange, failure):
    group.failure = failure
    with pytest.raises(StoppedEarly, match="another process of this training ended"):
        EXCHANGES[exchange]()


def test_unconnected_processes_are_reported_at_once(group, tmp_path):
    group.failure = DUPLICATE
    with pytest.raises(UserError) as caught, process_group(RankInfo(1, 2, 1), "gloo", tmp_path):
        raise AssertionError
    assert str(caught.value).startswith("the 2 processes could not connect by gloo: ")
    assert "Duplicate GPU detected : rank 1 and rank 0" in str(caught.value)
    assert group.done == ["init", "abort", "destroy"]


def train_by_two(digits, folder, capsys):
    """Train as one of two processes; return the exit code and stderr."""
    config = tiny.write_config(folder, training__processes_per_node=2, training__iterations=3)
    run = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", folder / "run"]
    code = tiny.call("train", config, *run)
    return code, capsys.readouterr().err


@pytest.fixture
def second_of_two(group, monkeypatch):
    monkeypatch.setattr("udpm.training.trainer.detect_ranks", lambda world: RankInfo(1, world, 1))
    return group


def fail_at_the_first_gradients(group, monkeypatch, failure):
    def gradients(*_):
        group.failure = failure
        raise failure

    monkeypatch.setattr(Trainer, "train_step", gradients)


def test_a_process_that_ended_is_not_waited_for(digits, second_of_two, tmp_path, monkeypatch, capsys):
    """Taking the connections down in the usual way would wait for what the other never sends."""
    plain = Trainer.iterate

    def iterate(*arguments):
        plain(*arguments)
        second_of_two.failure = CLOSED

    monkeypatch.setattr(Trainer, "iterate", iterate)
    code, output = train_by_two(digits, tmp_path, capsys)
    assert (code, second_of_two.done) == (75, ["init", "abort", "destroy"])
    assert output.splitlines()[-1].endswith("run the same command again")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NO_MEMORY, "out of memory on the GPU (tried to allocate 2.50 GiB): raise training.accumulate (is 1) or low"),
        (ILLEGAL, "the device or one of its libraries failed: CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_device_that_fails_is_no_reason_to_try_again(
    digits, second_of_two, tmp_path, monkeypatch, capsys, failure, expected
):
    fail_at_the_first_gradients(second_of_two, monkeypatch, failure)
    code, output = train_by_two(digits, tmp_path, capsys)
    assert (code, second_of_two.done) == (2, ["init", "abort", "destroy"])
    assert output.splitlines()[-1].startswith(f"error: {expected}")


# --- one line for each failure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NO_MEMORY, "out of memory on the GPU (tried to allocate 2.50 GiB): less"),
        (NO_HOST_MEMORY, "out of memory on the CPU (tried to allocate 400000000000 bytes): less"),
        (
            MemoryError("Unable to allocate 74.5 GiB for an array"),
            "out of memory on the CPU (tried to allocate 74.5 GiB)",
        ),
        (MemoryError(), "out of memory on the CPU: less"),
        (torch.AcceleratorError("CUDA error: out of memory\nmore"), "out of memory on the GPU: less"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
            "the device or one of its libraries failed: cuDNN",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out of memory on the GPU:"),
        (ILLEGAL, "the device or one of its libraries failed: CUDA error: an illegal memory access was encountered"),
        (DUPLICATE, "the device or one of its libraries failed: NCCL error in: "),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_device_failure_is_one_line(failure, expected):
    assert is_device_failure(failure)
    output = describe_failure(failure, "less")
    assert output.startswith(expected)
    assert "\n" not in output
    assert "4711" not in output


@pytest.mark.parametrize(
    "other",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("Error(s) in loading state_dict for UNet: size mismatch"),
        CLOSED,
        ValueError("out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_device_failures(other):
    assert not is_device_failure(other)


def test_a_checkpoint_is_not_to_blame_for_memory(trained, monkeypatch):
    state = State.fresh(tiny.run_config(), CPU)

    def load(*_):
        raise NO_MEMORY

    monkeypatch.setattr(State, "load", load)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.resume(trained / "checkpoints", state, 12, lambda *_: None)


@pytest.mark.parametrize("failure", [NO_MEMORY, RuntimeError(f"in the TorchScript interpreter\n{NO_MEMORY}")])
def test_an_extractor_is_not_to_blame_for_memory(tmp_path, failure):
    class Fails(torch.nn.Module):
        def forward(self, _):
            raise failure

    extractor = Extractor(tmp_path / "a.pt", "a", "0" * 64, Fails(), CPU, {})
    with pytest.raises(UserError) as caught:
        extractor.features(np.zeros((3, 8, 8, 3), np.uint8), 2)
    assert str(caught.value) == (
        f"{tmp_path / 'a.pt'}: out of memory on the GPU (tried to allocate 2.50 GiB): lower scoring.batch (these "
        "were 2 images)"
    )


def test_a_compiler_is_not_to_blame_for_memory(monkeypatch):
    class Failed(torch._dynamo.exc.TorchDynamoException):
        inner_exception = NO_MEMORY

    def fails(*_):
        raise Failed

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(torch.OutOfMemoryError):
        compile_network(torch.nn.Identity(), "sampling.compile")(torch.zeros(1))


@pytest.mark.parametrize("command", ["sample", "latents swap"])
@pytest.mark.parametrize("failure", [NO_MEMORY, NO_HOST_MEMORY, MemoryError()], ids=["GPU", "CPU", "NumPy"])
def test_running_out_of_memory_while_sampling_is_one_line(trained, tmp_path, monkeypatch, capsys, command, failure):
    def draw(*_, **__):
        raise failure

    monkeypatch.setattr("udpm.sampling.sampler.sample", draw)
    given = f"{command} {trained}/weights.safetensors --batch 16 --threads 1 --output {tmp_path}/a.npz"
    tiny.assert_refused(tmp_path, given, "lower --batch", capsys)


# --- which GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def visible(monkeypatch):
    """Sets how many GPUs a process sees; those chosen."""
    chosen, backends = [], (torch.backends.cuda.matmul, torch.backends.cudnn)
    kept = [backend.allow_tf32 for backend in backends]

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    yield see
    for backend, value in zip(backends, kept, strict=True):
        backend.allow_tf32 = value


TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (4, 1)])
def test_a_task_of_srun_may_have_a_gpu_of_its_own(visible, count, expected):
    chosen, place = visible(count), detect_ranks(4, TASK)
    assert place.by_srun
    assert devices.configure("auto", 1, place.local, own_gpu=place.by_srun) == torch.device("cuda", expected)
    assert chosen == [expected]


def test_training_as_a_task_with_a_gpu_of_its_own(levels, visible, monkeypatch, tmp_path):
    visible(1)
    monkeypatch.setattr("udpm.training.trainer.detect_ranks", lambda world: detect_ranks(world, TASK))
    config = tiny.run_config(training__device="cuda", training__processes_per_node=4, training__backend="nccl")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match="nccl is not available in this PyTorch"):
        train(config, levels, tmp_path, False)


def test_torchruns_processes_need_a_gpu_each(visible):
    visible(1)
    with pytest.raises(UserError, match="process 2 of this node sees 1 GPU; request a GPU for each process, or start"):
        devices.configure("cuda", 1, 1)


# --- numbers in bfloat16 and TF32 ------------------------------------------------------------------------------------


def test_lpips_is_float32_for_all_networks():
    """LPIPS of nearly equal images, as at the end of training, would be mostly rounding in bfloat16."""
    perceptual = load_lpips("vgg-random", 1.0, CPU)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((1, 3, 16, 16), generator=generator) * 2 - 1
    output = (target + 0.003 * torch.randn(target.shape, generator=generator)).requires_grad_()
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            distance = perceptual(output, target).mean()
        found.append((distance, torch.autograd.grad(distance, output)[0]))
    assert found[1][0].dtype == torch.float32
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_minibatch_deviation_is_float32(levels):
    discriminator = Trainer(tiny.run_config(), levels, CPU).state.discriminator
    seen = []
    discriminator.final.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(torch.randn(4, 3, 16, 16), 0.5, torch.arange(4))
    ((given, output),) = seen
    assert {given.dtype, output.dtype, logits.dtype} == {torch.float32}
    assert torch.equal(given[:, -1:], batch_deviation(given[:, :-1]))


def test_the_gradient_penalty_is_not_cast_again(levels):
    """Inside autocast each product of R1's gradient would be rounded to bfloat16, also of layers that are float32."""
    config = tiny.run_config(losses__r1_gamma=0.5, training__batch=4)
    run = Trainer(config, levels, CPU)
    run.state.generator.eval()
    draw, schedule = run.batches("discriminator", 0), Schedule.from_config(config.process)
    terms, kept = run.loss_weights[draw.level - 1], []

    def judge(image, *rest):
        kept.append((image, run.state.discriminator(image, *rest)))
        return kept[-1][1]

    with torch.autocast("cpu", torch.bfloat16):
        losses = discriminator_losses(run.state.generator, judge, schedule, terms, draw)
    image, logits = kept[1]
    # Other kernels compute a gradient that is not differentiated again.
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    assert torch.equal(losses["r1"], gradient.square().sum(dim=(1, 2, 3)).mean())


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_means_float32_unless_tf32_is_configured(visible, tf32):
    visible(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    device = devices.configure("cuda", 1, tf32=True) if tf32 else devices.configure("cuda", 1)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    assert devices.uses_tf32(device) is tf32
    assert devices.uses_tf32(CPU) is False


@pytest.fixture
def asked(monkeypatch):
    """Record the tf32 setting of each command, and run it on the CPU."""
    asked, plain = [], devices.configure

    def configure(device, threads, *rest, **options):
        asked.append(options.get("tf32", False))
        return plain("cpu", threads, *rest, **options)

    monkeypatch.setattr(devices, "configure", configure)
    return asked


@pytest.mark.parametrize("command", ["sample", "latents swap"])
@pytest.mark.parametrize("options", ["", "--tf32"])
def test_sampling_with_tf32_records_it(trained, tmp_path, asked, monkeypatch, command, options):
    output = tmp_path / "a.npz"
    monkeypatch.setattr(devices, "uses_tf32", lambda device: asked[-1])
    given = f"{command} {trained}/weights.safetensors --threads 1 --output {output} {options}"
    assert tiny.call(*given.split()) == 0
    with np.load(output) as arrays:
        record = json.loads(str(arrays["record"])) if "record" in arrays else None
    record = record or json.loads(output.with_suffix(".json").read_text())
    assert asked == [bool(options)]
    assert record["tf32"] is bool(options)


def test_an_experiment_says_whether_its_images_are_drawn_with_tf32():
    experiment = load_experiment("digits", tiny.ROOT / "config")
    assert experiment.sampling.tf32 is False
    assert experiment.training.tf32 is True


GPU = {"device": "NVIDIA H100 80GB HBM3"}


def a_score(subject, protocol):
    reference = {"sha256": "r"}
    measuring = {"n": 9, "extractor": {"sha256": "e", "preprocessing": "none"}, "reference": reference}
    metrics = {"frechet_distance": {"label": "FD", "value": 1.0}}
    return {"subject": {"kind": "samples"} | subject, "protocol": measuring | protocol, "metrics": metrics}


def test_scores_compare_tf32_only_where_they_may_differ():
    """Without the key, as it was before, a CPU's are float32 and a GPU's are TF32."""
    off, on, cpu = GPU | {"tf32": False}, GPU | {"tf32": True}, {"device": "cpu (2 threads)"}
    assert not any(map(used_tf32, (cpu, cpu | {"tf32": False}, off, {})))
    assert all(map(used_tf32, (on, GPU)))
    plain = comparable(a_score(cpu, cpu))
    assert comparable(a_score(off, off)) == comparable(a_score(cpu, off)) == plain
    assert len({plain, comparable(a_score(on, off)), comparable(a_score(off, on)), comparable(a_score(on, on))}) == 4
    assert comparable(a_score(GPU, GPU)) == comparable(a_score(on, on))
    assert sampling_words({"posterior": "scalar"} | on) == "scalar posterior, TF32"
    assert (
        sampling_words({"posterior": "scalar"} | off)
        == sampling_words({"posterior": "scalar"} | cpu)
        == "scalar posterior"
    )


def test_milestones_drawn_with_and_without_tf32_do_not_compare(tmp_path):
    paths = []
    for iteration, tf32 in ((1, False), (2, True)):
        score = a_score(GPU | {"iteration": iteration, "weights_sha256": "w", "tf32": tf32}, GPU | {"tf32": False})
        paths.append(tmp_path / f"{iteration}.json")
        paths[-1].write_text(json.dumps({"format": "udpm-score/1"} | score))
    with pytest.raises(UserError, match=r"2\.json: network tf32 differs from that of .*1\.json"):
        select(paths)


def test_features_of_a_gpu_with_tf32_are_not_taken_for_float32s(tmp_path, visible, monkeypatch):
    visible(1)
    images, calls = np.zeros((2, 8, 8, 3), np.uint8), []
    extractor = Extractor(tmp_path / "a.pt", "a", "0" * 64, torch.nn.Identity(), torch.device("cuda", 0), {})
    monkeypatch.setattr(Extractor, "features", lambda *_: calls.append(1) or np.zeros((2, 3), np.float32))
    for tf32 in (True, False, False, True):
        monkeypatch.setattr(devices, "uses_tf32", lambda device, tf32=tf32: tf32)
        extract(images, extractor, 2, tmp_path / "kept")
    assert len(calls) == 2


# --- threads and shapes ----------------------------------------------------------------------------------------------


def test_threads_take_their_process_gpu(visible):
    """A thread begins with the first GPU, and would open a context there."""
    chosen, names = visible(2), []
    device = torch.device("cuda", 1)
    Prefetcher(lambda *_: names.append(threading.current_thread()), lambda _: ["generator"], 1, 1, device)(
        "generator", 0
    )
    assert (chosen, len(names)) == ([device], 1)
    assert names[0] is not threading.main_thread()
    began = []
    made = prefetch(lambda item: item, range(3), begin=lambda: began.append(threading.current_thread()))
    assert list(made) == [0, 1, 2]
    assert len(began) == 1
    assert began[0] is not threading.main_thread()


@pytest.mark.parametrize("compiles", [False, True])
def test_latents_are_decoded_in_one_size_where_each_is_compiled(trained, monkeypatch, compiles):
    model, sizes = load_model(trained / "weights.safetensors"), []

    def network(x, *rest):
        sizes.append(len(x))
        return model.generator(x, *rest)

    # Compiling takes a minute, and the sizes do not depend on it.
    monkeypatch.setattr("udpm.sampling.sampler.prepare_for_inference", lambda *_, **__: network)
    sampler = Sampler(model, batch=4, compiles=compiles)
    latents = [sampler.latent(seed) for seed in range(6)]
    found = sampler.decode(latents, [0] * 6)
    assert set(sizes) == ({4} if compiles else {4, 2})
    alone = torch.cat([sampler.decode([latent], [0]) for latent in latents])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


# --- nothing here goes to a GPU --------------------------------------------------------------------------------------


def test_the_small_runs_stay_on_the_cpu(visible):
    visible(1)
    for name in ("digits", "digits-smoke"):
        experiment = load_experiment(name, tiny.ROOT / "config")
        assert {getattr(experiment, part).device for part in ("training", "sampling", "scoring")} == {"cpu"}
    assert tiny.run_config().training.device == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


class OnGpu(torch.Tensor):
    """A CPU's tensor that says it is on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_on_a_gpu_gets_maps_that_its_fused_kernels_take(monkeypatch, layout):
    torch.manual_seed(0)
    attention, given = SelfAttention(8, 2, 1e-6, 1.0), []
    x = torch.randn(2, 8, 4, 4).to(memory_format=layout)
    expected, plain = attention(x), torch.nn.functional.scaled_dot_product_attention

    def kernel(*parts):
        given.extend(part.is_contiguous() for part in parts)
        return plain(*parts)

    monkeypatch.setattr("udpm.networks.layers.F.scaled_dot_product_attention", kernel)
    torch.testing.assert_close(attention(x.as_subclass(OnGpu)).as_subclass(torch.Tensor), expected)
    assert given == [True, True, True]
