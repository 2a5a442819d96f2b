"""Where libraries keep what they compile and render, inside a cluster's job."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import MutableMapping

VARIABLES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def keep_private(environment: MutableMapping[str, str] = os.environ) -> None:
    """In a SLURM job, give this process a cache folder of its own on the node's disk, removed at its end.

    The libraries' own places are the home, which nodes often cannot write, and names in /tmp that another user's job on
    the same node may already own. What the environment already says stays, but for a TMPDIR that leaked from the login
    node and is not here.

    Args:
        environment: variables, changed in place.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    # Looks at TMPDIR and passes over what cannot be written.
    tempfile.tempdir = None
    environment["TMPDIR"] = tempfile.gettempdir()
    missing = [name for name in VARIABLES if name not in environment]
    if not missing:
        return
    folder = tempfile.mkdtemp(prefix=f"udpm-{environment['SLURM_JOB_ID']}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:
        environment[name] = os.path.join(folder, name.lower())
