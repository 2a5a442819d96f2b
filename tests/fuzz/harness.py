"""Run mutated inputs in child processes; each input may take five seconds and a GiB."""

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
"""CPU time, which does not depend on the load of the machine."""
SILENT = 60.0
"""Seconds after which a process that waits, or that no signal reaches, is killed."""
GIB = 2**30


@dataclass
class Result:
    """The outcomes of a reader's inputs.

    Attributes:
        accepted, refused: numbers of inputs.
        slowest: seconds of the slowest.
        grown: largest growth of the process in bytes.
        findings: the file of the first input, by kind of finding.
        counts: the number of findings by kind.
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

    def add(self, outcome):
        """Add the outcome that a process wrote."""
        self.accepted += outcome["accepted"]
        self.refused += outcome["refused"]
        self.slowest = max(self.slowest, outcome["slowest"])
        self.grown = max(self.grown, outcome["grown"])
        for what, path in outcome["findings"].items():
            self.findings.setdefault(what, path)
        self.counts.update(outcome["counts"])


class Late(BaseException):
    """Raised if an input takes too long; no reader catches it."""


def fuzz(names, inputs, seed, kept, folder):
    """Yield names of readers and their results.

    Args:
        names: of the readers; empty: all.
        inputs: number for each reader whose share is 1.
        seed: of the mutations; the same seed gives the same inputs.
        kept: folder for inputs with findings.
        folder: of valid files; made if it does not exist.
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
    # Check that valid files can be read. This also loads libraries once.
    for name in names or readers:
        readers[name].call(folder)
    for name in names or readers:
        result = Result()
        _run(folder, readers[name], max(20, int(inputs * readers[name].share)), seed, kept, result)
        yield name, result


def _run(folder, reader, count, seed, kept, result):
    """Run all inputs of one reader, in a new process after each crash."""
    original = (folder / reader.file).read_bytes()
    first = 0
    while first < count:
        said, mark = folder / "said", folder / "place"
        for path in (said, mark):
            path.unlink(missing_ok=True)
        # A fork has all libraries loaded; a new process would take seconds.
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
    """Wait for a process; return why it failed, or None."""
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
    """In a child process: call a reader with inputs of these numbers. Does not return."""
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
    outcome = _nothing()
    for number in numbers:
        os.pwrite(place, str(number).encode(), 0)
        data = _input(reader, original, seed, number)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        began, what = time.process_time(), None
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader.call(folder)
            outcome["accepted"] += 1
        except UserError as error:
            outcome["refused"] += 1
            if not str(error).strip():
                what = "a refusal without a word"
        except OSError:
            # Commands report errors of the system, such as a name too long, in one line.
            outcome["refused"] += 1
        except Late:
            what = f"more than {SECONDS:g} s"
        except BaseException as error:
            what = _where(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        outcome["slowest"] = max(outcome["slowest"], time.process_time() - began)
        grown = _memory("VmHWM") - before
        if grown > GIB and outcome["grown"] <= GIB:
            what = what or "more than 1 GiB"
        outcome["grown"] = max(outcome["grown"], grown)
        if what is not None:
            if what not in outcome["findings"]:
                name = f"{reader.name.replace('/', '-')}-{number}"
                (kept / name).write_bytes(data)
                outcome["findings"][what] = name
            outcome["counts"][what] = outcome["counts"].get(what, 0) + 1
        if number % 500 == 499:
            print(json.dumps(outcome), file=out, flush=True)
            outcome = _nothing() | {"grown": outcome["grown"]}
    print(json.dumps(outcome), file=out, flush=True)


def _nothing():
    return {"accepted": 0, "refused": 0, "slowest": 0.0, "grown": 0, "findings": {}, "counts": {}}


def _late(number, frame):
    raise Late


def _where(error):
    """Describe an exception and the last line of the program that it passed through."""
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
    """Return a line of markdown."""
    found = "; ".join(f"{what} ({result.counts[what]}×, {path})" for what, path in result.findings.items())
    return (
        f"| {name} | {result.inputs} | {result.accepted} | {result.refused} | {result.slowest:.2f} | "
        f"{max(0, result.grown) / 2**20:.0f} | {found or 'none'} |"
    )
