"""Imported before numpy and torch: several test processes share the cores, so no thread may spin while it waits."""

import os

for name, value in {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)
