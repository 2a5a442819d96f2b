"""Runs mutated inputs in a process of their own: each within five seconds and a GiB, whatever becomes of it."""

import json
import os
import random
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.readers import make_inputs, registry
from udpm.core.errors import UserError

SECONDS = 5.0
"""Of the processor: a machine may be busy with something else."""
SILENT = 60.0
"""Seconds after which a process that waits, or that no signal reaches, is killed."""
GIB = 2**30


@dataclass
class Result:
    """What became of a reader's inputs.

    Attributes:
        accepted, refused: how many were.
        slowest: seconds of the slowest.
        grown: bytes by which the process grew at most during one reader's inputs.
        findings: by what they are, the first input's file.
        counts: by what they are, how many.
    """

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    grown: int = 0
    findings: dict[str, str] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    @property
    def inputs(self):
        return self.accepted + self.refused + sum(self.counts.values())

    def add(self, told):
        """Add what a process wrote."""
        self.accepted += told["accepted"]
        self.refused += told["refused"]
        self.slowest = max(self.slowest, told["slowest"])
        self.grown = max(self.grown, told["grown"])
        for what, path in told["findings"].items():
            self.findings.setdefault(what, path)
        self.counts.update(told["counts"])


class Late(BaseException):
    """An input took too long; no reader catches it."""


def fuzz(names, inputs, seed, kept, folder):
    """Names of readers and their results, one after the other.

    Args:
        names: of the readers; none for all.
        inputs: for each reader whose share is 1.
        seed: of the mutations: the same inputs again.
        kept: folder for inputs that find something.
        folder: of valid files, which are made if it is not there.
    """
    kept = Path(kept).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    folder = Path(folder).resolve()
    if not folder.exists():
        folder.mkdir(parents=True)
        make_inputs(folder)
    readers = {reader.name: reader for reader in registry(folder)}
    unknown = set(names) - set(readers)
    if unknown:
        raise SystemExit(f"no such reader: {', '.join(unknown)}; there are: {', '.join(readers)}")
    # What cannot be read as it was made would find nothing; and libraries are loaded here, once.
    for name in names or readers:
        readers[name].call(folder)
    for name in names or readers:
        result = Result()
        _run(folder, readers[name], max(20, int(inputs * readers[name].share)), seed, kept, result)
        yield name, result


def _run(folder, reader, count, seed, kept, result):
    """All inputs of one reader, in as many processes as it takes."""
    original = (folder / reader.file).read_bytes()
    first = 0
    while first < count:
        said, mark = folder / "said", folder / "place"
        for path in (said, mark):
            path.unlink(missing_ok=True)
        # A copy of this process has all libraries loaded; to start one takes seconds.
        process = os.fork()
        if not process:
            _work(folder, reader, range(first, count), seed, kept, said, mark)
        why = _watched(process, mark)
        for line in said.read_text().splitlines():
            result.add(json.loads(line))
        (folder / reader.file).write_bytes(original)
        if why is None:
            return
        place = int(mark.read_text() or first)
        name = f"{reader.name.replace('/', '-')}-{place}"
        (kept / name).write_bytes(_input(reader, original, seed, place))
        result.findings.setdefault(why, name)
        result.counts[why] += 1
        first = place + 1


def _watched(process, mark):
    """Wait for a process; why it did not end well, or None."""
    seen, since = None, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else f"the process ended with {code}"
        time.sleep(0.02)
        now = mark.read_text() if mark.exists() else ""
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > SILENT:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return f"no answer for {SILENT:g} s"


def _input(reader, original, seed, number):
    return reader.mutate(random.Random(f"{seed}/{reader.name}/{number}"), original)


def _work(folder, reader, numbers, seed, kept, said, mark):
    """A process of its own: call a reader with inputs of so many numbers; does not return."""
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        with open(said, "w") as out:
            _call_all(folder, reader, numbers, seed, kept, out, mark)
        os._exit(0)
    finally:
        os._exit(1)


def _call_all(folder, reader, numbers, seed, kept, out, mark):
    os.chdir(folder)
    path = folder / reader.file
    original = path.read_bytes()
    signal.signal(signal.SIGPROF, _late)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * GIB, hard))
    Path("/proc/self/clear_refs").write_text("5")
    before, place = _memory("VmRSS"), os.open(mark, os.O_WRONLY | os.O_CREAT)
    told = _nothing()
    for number in numbers:
        os.pwrite(place, str(number).encode(), 0)
        data = _input(reader, original, seed, number)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        began, what = time.process_time(), None
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader.call(folder)
            told["accepted"] += 1
        except UserError as error:
            told["refused"] += 1
            if not str(error).strip():
                what = "a refusal without a word"
        except OSError:
            # What the system refuses, such as a name too long, every command ends on in one line.
            told["refused"] += 1
        except Late:
            what = f"more than {SECONDS:g} s"
        except BaseException as error:
            what = _where(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        told["slowest"] = max(told["slowest"], time.process_time() - began)
        grown = _memory("VmHWM") - before
        if grown > GIB and told["grown"] <= GIB:
            what = what or "more than 1 GiB"
        told["grown"] = max(told["grown"], grown)
        if what is not None:
            if what not in told["findings"]:
                name = f"{reader.name.replace('/', '-')}-{number}"
                (kept / name).write_bytes(data)
                told["findings"][what] = name
            told["counts"][what] = told["counts"].get(what, 0) + 1
        if number % 500 == 499:
            print(json.dumps(told), file=out, flush=True)
            told = _nothing() | {"grown": told["grown"]}
    print(json.dumps(told), file=out, flush=True)


def _nothing():
    return {"accepted": 0, "refused": 0, "slowest": 0.0, "grown": 0, "findings": {}, "counts": {}}


def _late(number, frame):
    raise Late


def _where(error):
    """An exception and the line of the program that it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/udpm/" in frame.filename]
    at = f" at {frames[-1].filename.rpartition('/udpm/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}: {str(error)[:80]}" if not at else f"{type(error).__name__}{at}"


def _memory(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


HEAD = "| reader | inputs | accepted | refused | slowest (s) | grown (MiB) | findings |\n|---|--:|--:|--:|--:|--:|---|"


def row(name, result):
    """A line of markdown."""
    found = "; ".join(f"{what} ({result.counts[what]}×, {path})" for what, path in result.findings.items())
    return (
        f"| {name} | {result.inputs} | {result.accepted} | {result.refused} | {result.slowest:.2f} | "
        f"{max(0, result.grown) / 2**20:.0f} | {found or 'none'} |"
    )
