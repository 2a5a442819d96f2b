"""Training whose passes are recorded as CUDA graphs: on a CPU by a recorder that repeats the call."""

import pytest
import tiny
import torch

from udpm.config import RunConfig
from udpm.config.load import validate
from udpm.core import devices
from udpm.core.errors import StoppedEarly, UserError
from udpm.training import trainer as training
from udpm.training.graphs import recorder_for
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


class Recorder:
    """Records calls as a GPU would: a replay reads the same inputs and writes over the same outputs."""

    def __init__(self):
        self.calls = 0

    def __call__(self, call, pool=None):
        self.calls += 1
        outputs = call()

        def replay():
            for held, value in zip(outputs, call(), strict=True):
                if held is not None:
                    held.copy_(value)

        return replay, outputs


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(training, "recorder_for", lambda config, device: made if config.training.cuda_graphs else None)
    return made


def trained_for(levels, iterations, first=0, **changes):
    """The state after some iterations, and all losses."""
    run, added = Trainer(tiny.run_config(**changes), levels, CPU), []
    run.state.iteration = first
    for _ in range(iterations):
        run.iterate(StepLog(added))
    return run.state.tensors(), added


class StepLog:
    """Metrics that keep every step's losses."""

    def __init__(self, added):
        self.added = added

    def add(self, player, level, losses):
        self.added.append((player, level, losses))


R1 = {"losses__r1_gamma": 0.5}
SLOW = pytest.mark.slow
CASES = [
    # The first iteration, their number, and recordings that are made anew.
    pytest.param(0, 8, 0, {"discriminator__dropout": [0.3, 0.0, 0.3], "training__level_probabilities": None}, id="all"),
    pytest.param(0, 5, 0, {"training__accumulate": 2, "generator__dropout": 0.2}, id="parts of a batch"),
    # In every other step of the discriminator, which has two recordings for a level.
    pytest.param(0, 8, 0, R1 | {"losses__r1_every": 2, "training__discriminator_every": 2}, id="lazy R1"),
    pytest.param(996, 8, 1, R1 | {"losses__r1_decay_per_1000": 0.5}, id="R1 whose weight falls", marks=SLOW),
    pytest.param(0, 8, 3, {"losses__adversarial_start": 4}, id="an adversary that comes late", marks=SLOW),
    pytest.param(0, 4, 0, {"generator__label_dropout": 0.5, "generator__dropout": 0.1}, id="no labels", marks=SLOW),
    pytest.param(
        0,
        4,
        0,
        {"training__level_probabilities": [0, 1, 0], "training__channels_last": True, "training__workers": 2},
        id="channels last",
        marks=SLOW,
    ),
    pytest.param(0, 5, 0, {"losses__adversarial_weight": 0.0}, id="no discriminator", marks=SLOW),
    pytest.param(
        0,
        6,
        0,
        {
            "generator__latent_channels": 1,
            "losses__energy_weight": [0.0, 1.0, 1.0],
            "losses__energy_redraw": True,
            "training__level_probabilities": None,
        },
        id="energy score",
        marks=SLOW,
    ),
    pytest.param(0, 4, 0, tiny.ALIVE | {"losses__r1_gamma": 0.0, "losses__r1_every": 2}, id="all of an adversary's"),
    pytest.param(
        0, 4, 0, tiny.ALL | {"training__noise": "counter", "training__accumulate": 2}, id="noise of a counter"
    ),
]


@pytest.mark.parametrize(("first", "iterations", "anew", "changes"), CASES)
def test_recorded_training_is_the_eager_one(levels, recorder, first, iterations, anew, changes):
    eager, added = trained_for(levels, iterations, first, **changes)
    assert recorder.calls == 0
    found, again = trained_for(levels, iterations, first, **changes, training__cuda_graphs=True)
    kinds = {(player, level, bool({"r1", "r2"} & losses.keys())) for player, level, losses in added}
    assert recorder.calls == len(kinds) + anew
    if changes.get("training__level_probabilities", ()) is None:
        assert len(kinds) == 6
    assert found.keys() == eager.keys()
    assert all(torch.equal(found[name], eager[name]) for name in eager)
    # Losses of earlier steps are still what they were.
    for (player, level, losses), (other, same, expected) in zip(again, added, strict=True):
        assert (player, level, losses.keys()) == (other, same, expected.keys())
        assert all(torch.equal(losses[name], expected[name]) for name in losses)


def test_recorded_training_resumes_exactly(levels, trained, tmp_path, recorder):
    config = tiny.run_config(training__cuda_graphs=True)
    with pytest.raises(StoppedEarly):
        train(config, levels, tmp_path / "run", tiny.StopAfter(5))
    first = recorder.calls
    train(config, levels, tmp_path / "run", stop=False)
    assert 0 < first < recorder.calls
    tiny.assert_same_weights(tmp_path / "run", trained)


@pytest.mark.slow
def test_a_run_may_resume_with_or_without_graphs(levels, trained, tmp_path, recorder):
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(), levels, tmp_path / "run", tiny.StopAfter(6))
    train(tiny.run_config(training__cuda_graphs=True), levels, tmp_path / "run", stop=False)
    assert recorder.calls
    tiny.assert_same_weights(tmp_path / "run", trained)


def test_graphs_have_no_effect_on_a_cpu():
    assert recorder_for(tiny.run_config(training__cuda_graphs=True), CPU) is None


def test_one_way_of_calling():
    values = tiny.run_config().model_dump()
    values["training"] |= {"compile": True, "cuda_graphs": True}
    with pytest.raises(UserError, match=r"training.cuda_graphs: cannot record compiled networks; leave compile or"):
        validate(RunConfig, values, "tiny")


def test_recording_leaves_the_random_state_alone(levels, recorder):
    run = Trainer(tiny.run_config(training__cuda_graphs=True, generator__dropout=0.5), levels, CPU)
    before = []
    record = run.graphs._record

    def kept(call, pool):
        before.append(torch.get_rng_state())
        return record(call, pool)

    run.graphs._record = kept
    batch, terms = run.batches("generator", 1), run.loss_weights[0].at(1)
    torch.manual_seed(5)
    first = run.graphs("generator", batch, terms)["total"]
    torch.manual_seed(5)
    assert torch.equal(run.graphs("generator", batch, terms)["total"], first)
    assert len(before) == 1


@pytest.mark.parametrize(
    ("changes", "seeds"),
    [({"discriminator__dropout": 0.0}, 0), ({"discriminator__dropout": 0.3}, 2), ({"generator__dropout": 0.1}, 2)],
)
def test_seeds_are_set_only_where_something_drops_out(levels, monkeypatch, changes, seeds):
    asked = []
    monkeypatch.setattr(training, "seed_dropout", lambda *_: asked.append(1))
    run = Trainer(tiny.run_config(**({"discriminator__dropout": 0.0} | changes)), levels, CPU)
    for _ in range(2):
        run.iterate()
    assert len(asked) == seeds


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_on_a_gpu_train_as_eager_kernels_do(levels, precision):
    device, found = devices.configure("cuda", 1), []
    changes = {"training__device": "cuda", "training__precision": precision, "training__workers": 2} | R1
    for graphs in (False, True):
        config = tiny.run_config(**changes, training__cuda_graphs=graphs, generator__dropout=0.1)
        run = Trainer(config, levels, device)
        for _ in range(12):
            run.iterate()
        found.append({name: value.clone() for name, value in run.state.tensors().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value.float(), rtol=1e-4, atol=1e-6, msg=name)
