"""What several test files share."""

import pytest
import tiny

from udpm.core import runtime
from udpm.data.cache import open_levels, write_cache
from udpm.data.prepare import prepare
from udpm.training.loop import train


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
    runtime.configure("cpu", 1)
    run = tmp_path_factory.mktemp("trained") / "run"
    train(tiny.run_config(), levels, run, stop=False)
    return run
