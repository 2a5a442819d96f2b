"""Call the workflow as a user does."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny import ROOT

BIN = Path(sys.executable).parent
SOURCES = ("config", "workflow", "slurm", "envs")


def run(*command, cwd=ROOT, **options):
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **options)


def snakemake(*arguments, cwd=ROOT):
    """Call Snakemake; if it starts no jobs, in a process that has already imported it, which takes most of the time."""
    if {"-n", "--lint"} & set(arguments):
        return _forked(tuple(map(str, arguments)), cwd)
    return run(BIN / "snakemake", *arguments, cwd=cwd)


def _forked(arguments, cwd):
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        given = {"arguments": arguments, "cwd": str(cwd), "environment": dict(os.environ), "folder": folder}
        server.stdin.write(json.dumps(given) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(["snakemake", *arguments], code, *texts)


@functools.cache
def _server():
    """Start the process, which forks for every call."""
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def _serve():
    for name in ("snakemake.cli", "snakemake_executor_plugin_slurm", "smart_open", "udpm.config", "udpm.runs.status"):
        importlib.import_module(name)
    # As for the program, whose folder is the first entry.
    sys.path[0] = str(BIN)
    # A collection in a child would copy all of this process's memory.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become_snakemake(**json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def _become_snakemake(arguments, cwd, environment, folder):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(Path(folder) / name, os.O_CREAT | os.O_WRONLY), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [str(BIN / "snakemake"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    _serve()
