"""Copy the workflow and the shipped configurations into the wheel; everything else is in pyproject.toml.

An editable installation reads them from the clone: `udpm.config.shipped.shipped_folder`.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = runpy.run_path("udpm/config/shipped.py")


class BuildWithWorkflow(build_py):
    """Build the package, with the folders of the clone that belong to it."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED["SHIPPED"]:
            target = Path(self.build_lib, "udpm", SHIPPED["FOLDER"], name)
            # An earlier build may have left files that the clone no longer has.
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__", "*.sif"))


setup(cmdclass={"build_py": BuildWithWorkflow})
