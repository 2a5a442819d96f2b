"""Fixtures and hooks for all tests."""

import os

import cores  # noqa: F401
import pytest
import tiny
import torch
from hypothesis import HealthCheck, settings
from photos import picture

from udpm.config import DatasetConfig
from udpm.core import devices
from udpm.data.levels import open_levels, write_cache
from udpm.data.prepare import prepare
from udpm.runs import lock
from udpm.training.trainer import train

# No deadline, since the machine may be busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ON_GPU = "gpu"
"""The value of `pytest -m` that runs the tests that need a GPU."""


def pytest_configure(config):
    """Hide GPUs from tests that do not need one, since only CPUs guarantee the same bytes after a restart."""
    if config.option.markexpr != ON_GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item):
    """Skip tests that need a GPU if none is visible."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU and `pytest -m gpu`")


@pytest.fixture(scope="session", autouse=True)
def no_waiting():
    """Do not wait for other trainers, of which there are none, nor for the disk, since nothing cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "SETTLE", 0.01)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with the prepared digits (dataset/) and their cache (cache/)."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(tiny.run_config().dataset, folder / "dataset")
    write_cache(folder / "dataset", folder / "cache")
    return folder


@pytest.fixture(scope="session")
def levels(digits):
    """The digits at three levels."""
    return open_levels(digits / "dataset", digits / "cache", 3)


@pytest.fixture(scope="session")
def trained(levels, tmp_path_factory):
    """A finished tiny run."""
    devices.configure("cpu", 1)
    run = tmp_path_factory.mktemp("trained") / "run"
    train(tiny.run_config(), levels, run, stop=False)
    return run


@pytest.fixture
def photographs(tmp_path):
    """Six images of two classes, prepared: (source, store, configuration)."""
    source = tmp_path / "photographs"
    for number in range(6):
        picture(source / "ab"[number % 2] / f"{number}.png", 40 * number)
    config = DatasetConfig(source="folder", path=str(source), side=16, classes=2)
    prepare(config, tmp_path / "store")
    return source, tmp_path / "store", config
