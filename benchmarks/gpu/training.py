"""Training on a GPU: losses against the CPU's, resuming, recorded passes, no synchronization, out of memory."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.checks import GPU, Check, Session, expect
from benchmarks.gpu.subjects import experiment, random_data, wake
from udpm.cli import main
from udpm.config import RunConfig
from udpm.config.load import to_json
from udpm.core.errors import EXIT_USER_ERROR
from udpm.data.levels import Levels
from udpm.training.trainer import Trainer

FAMILIES = ("ncsnpp", "ddpmpp", "adm")
NEAR = {"float32": (1e-2, 1e-4), "bfloat16": (0.4, 0.05)}
"""Relative and absolute tolerance of losses, by precision. In bfloat16, gradients of tiny maps differ most."""
GRADIENTS = 4.0
"""The same for the norm of gradients in bfloat16: at 4×4 maps rounding alone moves it to a multiple."""
NEARLY = 0.2
"""Largest difference of two runs that should be the same, relative to how far training moved their tensors. Some GPU
kernels sum in any order, and Adam amplifies the smallest gradients; moments in a wrong order differ by about 1."""
BEFORE_AND_AFTER = {True: (3, 3), False: (1, 1)}
"""Iterations before and after a run is saved, on a GPU and on a CPU."""
RECORDED = {True: 12, False: 2}
"""Iterations with and without recordings."""
WARM_AND_WATCHED = {True: (20, 12), False: (0, 1)}
"""Iterations before and while a synchronization is an error. The first ones reach every level, where passes may be
recorded."""
WIDE = 32
"""Channels that adm needs at least: its heads have 64, and it attends where there are twice as many."""
ABSURD = 1 << 17
SHARE = 0.05
"""Share of the GPU's memory that the absurd batch may use, so that it fails fast on a card of any size."""

Tensors = dict[str, torch.Tensor]


class Losses:
    """Keeps the losses of every step, as the metrics of a training do.

    Attributes:
        kept: by player and loss, on the device.
    """

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def add(self, player: str, level: int, losses: dict[str, torch.Tensor]) -> None:
        """Keep one step's losses."""
        self.kept |= {f"{player}/{name}": value for name, value in losses.items()}


def _data(session: Session, config: RunConfig) -> Levels:
    return random_data(session.folder / f"random-{config.dataset.side}", config)


def _awake(trainer: Trainer) -> Trainer:
    """Give the trainer a generator, and averages, whose outputs are not nearly zero."""
    for network in (trainer.state.generator, *(ema.module for ema in trainer.state.ema_models.values())):
        wake(network)
    return trainer


def _at_level(level: int) -> list[float]:
    return [float(other == level) for other in (1, 2, 3)]


def _first_losses(session: Session, family: str, precision: str) -> str:
    """Run one iteration at every level: all values finite, and losses near the CPU's."""
    relative, absolute = NEAR[precision]
    worst, where = 0.0, ""
    for level in (1, 2, 3):
        # With a tiny rate, the generator's step sees the same discriminator on both devices.
        changes = {"training__precision": precision, "training__learning_rate": 1e-6, "generator__family": family}
        changes |= {"generator__channels": WIDE} if family == "adm" else {}
        # A wide network would take minutes on the CPU in bfloat16.
        config = session.small_run(wide=False, **changes, training__level_probabilities=_at_level(level))
        levels, found = _data(session, config), []
        for device in (session.device, torch.device("cpu")):
            losses, run = Losses(), _awake(Trainer(config, levels, device))
            run.iterate(losses)
            found.append({name: value.item() for name, value in losses.kept.items()})
            broken = [name for name, value in run.state.tensors().items() if not torch.isfinite(value).all()]
            expect(not broken, f"l={level}: not finite: {', '.join(broken[:3])}")
        ours, theirs = found
        expect(ours.keys() == theirs.keys(), f"l={level}: losses {sorted(ours)} for {sorted(theirs)}")
        for name, value in ours.items():
            expected = theirs[name]
            allowed = absolute + relative * abs(expected)
            if precision == "bfloat16" and name.endswith("/gradient"):
                allowed = GRADIENTS * abs(expected)
            off = abs(value - expected) / allowed
            if not off <= worst:
                worst, where = off, f"l={level} {name}: {value:.6g} for {expected:.6g}"
    return expect(worst <= 1, f"largest difference: {where or 'none'} ({worst:.2g} of what is allowed)")


def _resume(session: Session, channels_last: bool, precision: str) -> str:
    """Save, load and continue, against a run that is not interrupted."""
    torch.backends.cudnn.deterministic = True
    config = session.small_run(training__channels_last=channels_last, training__precision=precision)
    levels = _data(session, config)
    whole, parts = (_awake(Trainer(config, levels, session.device)) for _ in range(2))
    before, after = BEFORE_AND_AFTER[session.full]
    for _ in range(before):
        whole.iterate()
    saved = _state(whole)
    parts.state.load({name: value.clone() for name, value in saved.items()}, before)
    for _ in range(after):
        whole.iterate()
        parts.iterate()
    return compared(saved, _state(parts), _state(whole))


def _of_change(saved: Tensors, found: Tensors, expected: Tensors) -> float:
    """The largest difference over kinds of tensors (weights, averages, moments), relative to their change since."""
    kinds: dict[str, list[str]] = {}
    for name in expected:
        parts = name.split("/")
        kinds.setdefault("/".join(parts[: 3 if parts[0] == "adam" else 1]), []).append(name)
    return max(
        _distance(found, expected, names) / max(_distance(expected, saved, names), 1e-12) for names in kinds.values()
    )


def _distance(one: Tensors, other: Tensors, names: list[str]) -> float:
    """‖one - other‖ over all tensors of these names; infinite where a value is not finite. One may lack some."""
    pairs = [(one[name].double(), other[name].double() if name in other else 0.0) for name in names]
    total = sum((value - before).square().sum().item() for value, before in pairs) ** 0.5
    return total if total < float("inf") else float("inf")


def _state(trainer: Trainer) -> Tensors:
    """A copy of a trainer's tensors on the CPU, contiguous as in a checkpoint."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in trainer.state.tensors().items()}


def compared(saved: Tensors, found: Tensors, expected: Tensors) -> str:
    """Compare two runs that should be the same.

    Args:
        saved: the state that both started from.
        found: the state of one.
        expected: the state of the other.

    Raises:
        AssertionError: they differ by more than the order of sums explains.
    """
    expect(found.keys() == expected.keys(), "tensors are missing")
    equal = sum(torch.equal(found[name], expected[name]) for name in expected)
    largest = max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)
    off = _of_change(saved, found, expected)
    text = f"{equal} of {len(expected)} tensors have the same bits; differ by {largest:.1e}, {off:.1e} of what changed"
    return expect(off <= NEARLY, f"{text} (at most {NEARLY:g})")


def _recorded(session: Session, precision: str) -> str:
    """Compare iterations with recorded passes to iterations launched kernel by kernel."""
    torch.backends.cudnn.deterministic = True
    changes = {"training__precision": precision, "training__workers": 2}
    changes |= {"generator__dropout": 0.1, "discriminator__dropout": 0.3}
    results = []
    for graphs in (False, True):
        config = session.small_run(**changes, training__cuda_graphs=graphs)
        run = _awake(Trainer(config, _data(session, config), session.device))
        saved = _state(run)
        for _ in range(RECORDED[session.full]):
            run.iterate()
        results.append(_state(run))
    return compared(saved, results[1], results[0])


def _undisturbed(session: Session, **changes: Any) -> str:
    """Run iterations in which any synchronization with the GPU raises."""
    config = session.small_run(**changes)
    run, losses = _awake(Trainer(config, _data(session, config), session.device)), Losses()
    warm, watched = WARM_AND_WATCHED[session.full]
    for _ in range(warm):
        run.iterate(losses)
    if session.on_gpu:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(watched):
            run.iterate(losses)
    finally:
        if session.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    values = {name: value.item() for name, value in losses.kept.items()}
    expect(all(abs(value) < float("inf") for value in values.values()), f"not finite: {values}")
    expect("discriminator/r1" in values, "R1 was not in it")
    return f"{watched} iterations, {len(values)} losses"


def _out_of_memory(session: Session) -> str:
    """`udpm train` with an absurd batch: one line on stderr, exit code 2."""
    config = experiment(
        "digits-paper", training__device=session.device.type, training__batch=ABSURD, training__iterations=2
    )
    path = session.folder / "absurd.json"
    path.write_text(to_json(config), encoding="utf-8")
    if session.on_gpu:
        torch.cuda.set_per_process_memory_fraction(SHARE)
    try:
        code, text = run_command("train", path, "--dataset", session.digits.dataset, "--cache", session.digits.cache,
                                 "--run", session.folder / "absurd")  # fmt: skip
    finally:
        if session.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    expect(code == EXIT_USER_ERROR, f"exit code {code}: {text}")
    expect(len(lines) == 1 and "Traceback" not in text, f"{len(lines)} lines: {text}")
    return expect("out of memory" in lines[0] and str(ABSURD) in lines[0], f"exit code {code}, {lines[0]}")


def run_command(*arguments: Any) -> tuple[int | None, str]:
    """Run a udpm command in this process; return its exit code and its stderr."""
    text = io.StringIO()
    with redirect_stderr(text), redirect_stdout(io.StringIO()), _signals_kept():
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code, text.getvalue()
    return None, text.getvalue()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the signal handlers that a training replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


LPIPS = {"losses__lpips_weight": [4, 0, 0], "losses__lpips_network": "vgg-random"}
WAYS = {
    "workers 0": {"training__workers": 0},
    "workers 2": {"training__workers": 2},
    "bfloat16, channels last, workers 2": {
        "training__workers": 2,
        "training__precision": "bfloat16",
        "training__channels_last": True,
        "discriminator__dropout": 0.4,
        "generator__label_dropout": 0.1,
    },
    "accumulation": {"training__accumulate": 2},
    "recorded passes": {"training__cuda_graphs": True, "training__workers": 2},
    "noise of a counter": {"training__cuda_graphs": True, "training__noise": "counter"},
}

CHECKS = [
    *(
        Check(
            "training",
            f"first losses of {family} in {precision} match the CPU's",
            partial(_first_losses, family=family, precision=precision),
        )
        for family in FAMILIES
        for precision in (("float32", "bfloat16") if family == "ncsnpp" else ("bfloat16",))
    ),
    *(
        Check(
            "training",
            f"a resumed run equals an uninterrupted one: {precision}, {'channels last' if last else 'NCHW'}",
            partial(_resume, channels_last=last, precision=precision),
        )
        for precision in ("float32", "bfloat16")
        for last in (False, True)
    ),
    *(
        Check(
            "training", f"recorded passes train like eager ones: {precision}", partial(_recorded, precision=precision)
        )
        for precision in ("float32", "bfloat16")
    ),
    *(
        Check("training", f"never waits for the GPU: R1, {name}", partial(_undisturbed, **changes))
        for name, changes in WAYS.items()
    ),
    Check("training", "never waits for the GPU: R1 and LPIPS", partial(_undisturbed, **LPIPS), ("lpips",)),
    Check("training", "an absurd batch ends in one line and exit code 2", _out_of_memory, (GPU, "sklearn")),
]
