"""A run small enough for tests: real digits, all stages, seconds."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from udpm.cli import main
from udpm.config import RunConfig
from udpm.config.load import resolve_run, to_json, validate
from udpm.core import devices
from udpm.networks.unet import build_generator
from udpm.networks.weights import save_weights

PROVENANCE = {"versions": {"udpm": "1"}, "commit": None, "machine": "x"}
FINISHED = {"format": "udpm-run/1", "experiment": "a", "seed": 0, "iterations": 9, "weights_sha256": "0" * 64}
FINISHED |= {"provenance": PROVENANCE}
ROOT = Path(__file__).parents[2]
# Two processes that train one model. torchrun would parse --run as an abbreviated option, hence "--".
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc-per-node", "2", "-m", "--", "udpm"]

SMALL = {
    "generator.channels": 8,
    "discriminator.channels": 8,
    "training.iterations": 12,
    "training.warmup": 4,
    "training.batch": 8,
    "training.checkpoint_every": 4,
    "training.log_every": 2,
    "training.threads": 1,
    "training.flip": True,
}

ANY_LEVELS = {
    "losses__reconstruction_weight": 1.0,
    "losses__adversarial_weight": 0.5,
    "losses__r1_gamma": 0.5,
    "training__level_probabilities": None,
}
"""One value where the digits have one for each of their three levels."""

ALIVE = {
    "discriminator__minibatch_deviation": "mean",
    "losses__adversarial": "relativistic",
    "losses__r2_gamma": 0.3,
    "losses__discriminator_noise": {"kind": "diffusion", "std": 0.0, "decay_per_1000": 1.0},
    "discriminator__sees_state": True,
    "losses__augmentation": {
        "flip": True,
        "translation": 0.125,
        "cutout": 0.5,
        "colour": 0.0,
        "probability": 0.9,
        "ramp": 2,
    },
}
"""All options of the adversarial loss that are not the paper's, together."""

ALL = ALIVE | {
    "generator__latent_channels": 2,
    "losses__energy_weight": [0.0, 1.0, 1.0],
    "losses__energy_redraw": True,
    "losses__energy_draws": 3,
    "losses__energy_patch": 2,
    "training__learning_rate_end": 0.1,
    "training__ema_decay": None,
    "training__ema_halflife": 100.0,
    "training__ema_rampup": 0.2,
    "training__posthoc_average": True,
}
"""All options of training that are not the paper's, together."""


def run_config(**changes):
    """Return the published losses on the digits, made small; changes are dotted keys with "__" for the dots."""
    values = resolve_run("digits-paper", 0, ROOT / "config").model_dump() | {"experiment": "digits"}
    for key, value in (SMALL | {key.replace("__", "."): value for key, value in changes.items()}).items():
        section = values
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    return validate(RunConfig, values, "tiny")


def write_config(folder, **changes):
    path = folder / "run.json"
    path.write_text(to_json(run_config(**changes)))
    return path


def udpm(*arguments, check=True, **options):
    """Run a udpm command as a user would."""
    command = [sys.executable, "-m", "udpm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    if check and done.returncode:
        raise AssertionError(f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def call(*arguments):
    """Run a udpm command in this process and return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def drawn(weights, output, *options):
    """Sample six images to a file with `udpm sample`, and return them."""
    assert not call("sample", weights, "--count", 6, "--threads", 1, "--output", output, *options)
    return np.load(output)["images"]


def start(*arguments, program=("-m", "udpm"), **options):
    """Start a udpm command and return its process."""
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **options
    )


class Held:
    """A udpm that waits before a call, so that a test can act at that point on any machine.

    Args:
        folder: for its files.
        method: before which it waits, "module:Class.name".
        when: Python that says before which call, of `self` and `calls`, the number of earlier ones.

    Attributes:
        program: to start instead of ``-m udpm``.
    """

    def __init__(self, folder, method, when):
        self.folder, self.program = folder, [folder / "held.py"]
        module, _, names = method.partition(":")
        owner, name = names.split(".")
        self.program[0].write_text(
            "import os, sys, time\n"
            "from pathlib import Path\n"
            # Spawned workers import this file too.
            "if __name__ == '__main__':\n"
            f"    from {module} import {owner}\n"
            f"    plain, folder, calls = {owner}.{name}, Path({str(folder)!r}), 0\n"
            "    def held(self, *rest):\n"
            "        global calls\n"
            f"        if {when}:\n"
            "            (folder / f'held-{os.getpid()}').touch()\n"
            "            while not (folder / 'go-on').exists():\n"
            "                time.sleep(0.01)\n"
            "        calls += 1\n"
            "        return plain(self, *rest)\n"
            f"    {owner}.{name} = held\n"
            "    from udpm.cli import main\n"
            "    main(sys.argv[1:])\n"
        )

    @classmethod
    def before_iteration(cls, folder, iteration):
        """Return a training that waits before an iteration, counted from 0."""
        return cls(folder, "udpm.training.trainer:Trainer.iterate", f"self.state.iteration == {iteration}")

    def wait(self, *processes):
        """Wait until all processes have reached the call."""
        wait_for(lambda: all((self.folder / f"held-{process.pid}").exists() for process in processes), *processes)

    def release(self):
        """Let the processes continue."""
        (self.folder / "go-on").touch()


def wait_for(condition, *processes, seconds=550):
    """Wait until a condition holds; fail if one of the processes ends before, or after a long time."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


CLOCKS = {"seconds", "cpu_seconds", "images_per_second", "memory_gib"}


def metrics(run):
    """Return the lines of metrics.jsonl without values that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def snapshot(folder, but=()):
    """Return the bytes of every file below a folder, except files of some names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in but]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def assert_refused(folder, command, expected, capsys, mistakes=1):
    """Check that a udpm command ends with code 2 and a line for each mistake, and changes no byte of a folder."""
    before = snapshot(folder)
    capsys.readouterr()
    assert call(*command.split()) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == mistakes, errors
    assert expected in errors
    assert snapshot(folder) == before


def flip_byte(path, where):
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(where)
        byte = file.read(1)
        file.seek(where)
        file.write(bytes([byte[0] ^ 0x5A]))


def cut(path):
    """Keep the first half of a file."""
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


class StopAfter:
    """A stop request after a number of iterations."""

    def __init__(self, iterations):
        self.left = iterations

    def __bool__(self):
        self.left -= 1
        return self.left <= 0

    def __str__(self):
        return "test"


def save_random_weights(path, **changes):
    """Save weights of the tiny model at random; unlike new ones, the last layers are not near zero, so inputs show."""
    devices.configure("cpu", 1)
    config = run_config(**changes).model
    torch.manual_seed(0)
    generator = build_generator(config)
    for module in generator.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.xavier_normal_(module.weight)
    save_weights(path, config, {"ema": generator.state_dict()}, {"iteration": 0})
    return path


def weights(run):
    return tensors(run / "weights.safetensors")


def tensors(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def assert_same_weights(run, other):
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def as_published(model):
    """Return a generator's weights under the published names, with the filters that the published code stores."""
    from udpm.interop.architecture import generator_names
    from udpm.networks.unet import build_generator

    network = build_generator(model)
    names = generator_names(network.shape)
    state = {}
    for name, value in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"{names[module]}.{'freqs' if kind == 'frequencies' else kind}"] = value
    state["net.enc.4x4_down.conv0.resample_filter"] = torch.ones(1, 1, 4, 4) / 16
    return state
