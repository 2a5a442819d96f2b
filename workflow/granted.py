"""What SLURM grants here: asked of its own commands, once, in bounded time."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

NEEDED = ("sbatch", "sinfo", "squeue")
"""Commands without which nothing can be submitted."""
PATIENCE = 20.0
"""Seconds that one command may take."""
MOST_OUTPUT = 64 * 1024**2
"""Bytes of a command's output that are read."""
# One line for each kind of node of each partition: --exact keeps nodes apart that differ in what is printed, and a
# format without widths cuts nothing off.
SINFO = ("sinfo", "--all", "--exact", "--noheader", "--format=%P|%a|%l|%s|%D|%c|%m|%G")
ASSOCIATIONS = "cluster,account,partition,maxsubmitjobs,grpsubmitjobs,qos,defaultqos"
QUALITIES = "name,maxsubmitjobsperuser,grpsubmitjobs"


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike, whatever their state.

    Attributes:
        count: how many there are.
        cpus: of each.
        memory_mb: of each, in SLURM's megabytes.
        gpus: of each, by type; "" is the type of GPUs whose type the site does not name.
    """

    count: int
    cpus: int
    memory_mb: int
    gpus: dict[str, int] = field(default_factory=dict)

    def gpus_of(self, model: str | None) -> int:
        """GPUs of a type on each node; of all types for None."""
        return sum(self.gpus.values()) if model is None else self.gpus.get(model, 0)


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        minutes: of its longest job; may be infinite.
        most_nodes: of one job; may be infinite.
        is_default: whether jobs that name none go there.
        state: up, down, drain or inact.
    """

    name: str
    minutes: float = math.inf
    most_nodes: float = math.inf
    is_default: bool = False
    state: str = "up"
    nodes: tuple[Nodes, ...] = ()

    def has(self, minutes: float = 0, memory_mb: float = 0, cpus: int = 1, gpus: int = 0, model=None, nodes: int = 1):
        """Whether a job may ever run: for so long, with so much on each of so many nodes."""
        if minutes > self.minutes or nodes > self.most_nodes:
            return False
        return not self.nodes or nodes <= sum(
            kind.count
            for kind in self.nodes
            if memory_mb <= kind.memory_mb and cpus <= kind.cpus and gpus <= kind.gpus_of(model if gpus else None)
        )


@dataclass(frozen=True)
class Answer:
    """What a command of SLURM's printed.

    Attributes:
        lines: of its output; none where it failed.
        trouble: why there is none, in one line; None where it answered.
    """

    lines: tuple[str, ...] = ()
    trouble: str | None = None


class Site:
    """What SLURM here grants. Nothing is asked before it is needed, and nothing twice."""

    @cached_property
    def missing(self) -> list[str]:
        """Commands of SLURM's that are not in PATH and without which nothing can be submitted."""
        return [name for name in NEEDED if shutil.which(name) is None]

    @cached_property
    def _answers(self) -> dict[str, Answer]:
        user = getpass.getuser()
        commands = {
            "nodes": SINFO,
            "partitions": ("scontrol", "--all", "--oneliner", "show", "partition"),
            "settings": ("scontrol", "show", "config"),
            "associations": ("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={ASSOCIATIONS}"),
            "qualities": ("sacctmgr", "-nP", "show", "qos", f"format={QUALITIES}"),
            "accounting": ("sacct", "--noheader", "--allocations", "--starttime=now", "--format=JobID"),
        }
        with ThreadPoolExecutor(len(commands)) as threads:
            return dict(zip(commands, threads.map(ask, commands.values()), strict=True))

    @property
    def trouble(self) -> str | None:
        """Why it is not known what the partitions grant; None where it is."""
        if self.partitions:
            return None
        return self._answers["nodes"].trouble or "sinfo names no partition"

    @property
    def accounting_trouble(self) -> str | None:
        """Why sacct, which tells how jobs ended, does not; None where it does."""
        return self._answers["accounting"].trouble

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        """All of them by name."""
        return read_partitions(self._answers["nodes"].lines, self._answers["partitions"].lines)

    def candidates(self, names: str | None, any_partition: bool = False) -> list[Partition]:
        """Partitions that a job may go to.

        Args:
            names: of its partition, or several with commas; None where it names none.
            any_partition: whether one of all is chosen for a job that names none, not the site's default.
        """
        if names:
            return [self.partitions[name] for name in names.split(",") if name in self.partitions]
        partitions = [partition for partition in self.partitions.values() if partition.nodes]
        default = [partition for partition in partitions if partition.is_default and not any_partition]
        return default or partitions or list(self.partitions.values())

    def fits(self, names: str | None, minutes: float = 0, **asked) -> bool:
        """Whether a partition takes a job of so many minutes; True where that is not known.

        Args:
            names: of the partition; None: the site's default.
            asked: more of it, as `Partition.has` takes it.
        """
        partitions = self.candidates(names)
        return not partitions or any(partition.has(minutes, **asked) for partition in partitions)

    def most_memory(self, names: str | None) -> float:
        """Megabytes of a partition's largest node; infinite where that is not known."""
        kinds = [kind for partition in self.candidates(names) for kind in partition.nodes]
        return max((kind.memory_mb for kind in kinds), default=math.inf)

    @cached_property
    def settings(self) -> dict[str, str]:
        """SLURM's configuration, as far as it tells it."""
        pairs = (line.partition("=") for line in self._answers["settings"].lines)
        return {key.strip(): value.strip() for key, sign, value in pairs if sign}

    @cached_property
    def accounts(self) -> list[str]:
        """The user's accounts; none where they are not known."""
        return sorted({row[1] for row in self._associations if row[1]})

    @cached_property
    def _associations(self) -> list[list[str]]:
        rows = [line.split("|") for line in self._answers["associations"].lines]
        rows = [row for row in rows if len(row) == len(ASSOCIATIONS.split(","))]
        # One database may keep the accounts of several clusters.
        here = self.settings.get("ClusterName")
        return [row for row in rows if row[0] == here] or rows

    def most_jobs(self, account: str | None = None, partition: str | None = None, qos: str | None = None) -> int | None:
        """Jobs that the user may have in the queue at a time, waiting and running; None where nothing limits them.

        Args:
            account: that is charged; None: any of the user's.
            partition: that they go to; None: the site's default.
            qos: quality of service that they ask for; None: the account's and the partition's.
        """
        enforced = self.settings.get("AccountingStorageEnforce")
        if enforced is not None and not re.search(r"\b(limits|safe|all)\b", enforced, re.IGNORECASE):
            return None
        rows = [row for row in self._associations if account is None or row[1].lower() == account.lower()]
        rows = [row for row in rows if row[2] in ("", partition)] or rows
        limits = [_count(text) for row in rows for text in row[3:5]]
        names = {qos} if qos else {_quality(row[5], row[6]) for row in rows}
        names |= {self._partition_settings.get(name.name, {}).get("QoS") for name in self.candidates(partition)[:1]}
        for line in self._answers["qualities"].lines:
            name, *numbers = line.split("|")
            if name in names:
                limits += [_count(text) for text in numbers]
        return min((limit for limit in limits if limit is not None), default=None)

    @cached_property
    def _partition_settings(self) -> dict[str, dict[str, str]]:
        return read_settings(self._answers["partitions"].lines)


def read_partitions(sinfo: Iterable[str], scontrol: Iterable[str] = ()) -> dict[str, Partition]:
    """The partitions that sinfo and scontrol tell of.

    Args:
        sinfo: lines that `SINFO` prints.
        scontrol: lines of ``scontrol --oneliner show partition``, for what sinfo does not tell.
    """
    settings = read_settings(scontrol)
    found: dict[str, Partition] = {}
    for line in sinfo:
        words = [word.strip() for word in line.split("|")]
        if len(words) != SINFO[-1].count("|") + 1 or not words[0]:
            continue
        name, state, time, sizes, *of_nodes = words
        is_default, name = name.endswith("*"), name.removesuffix("*")
        told = settings.get(name, {})
        nodes = _nodes(of_nodes, told)
        if earlier := found.get(name):
            found[name] = Partition(**{**vars(earlier), "nodes": earlier.nodes + nodes})
            continue
        most_nodes = min(_limit(sizes.rpartition("-")[2]), _limit(told.get("MaxNodes", "")))
        found[name] = Partition(name, minutes_of(time), most_nodes, is_default, state, nodes)
    return found


def read_settings(scontrol: Iterable[str]) -> dict[str, dict[str, str]]:
    """Keys of partitions, by the partition's name, from the lines of ``scontrol --oneliner show partition``."""
    found = {}
    for line in scontrol:
        pairs = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if name := pairs.get("PartitionName"):
            found[name] = pairs
    return found


def _nodes(words: list[str], told: dict[str, str]) -> tuple[Nodes, ...]:
    """A line's nodes, of the words for their number, CPUs, memory and generic resources; none where there are none."""
    count, cpus, memory, gres = words
    # A + after a number means that some have more; a limit of the partition may grant less than they have.
    most = min(_limit(cpus.rstrip("+")), _limit(told.get("MaxCPUsPerNode", "")))
    memory_mb = min(_limit(memory.rstrip("+")), _limit(told.get("MaxMemPerNode", "")))
    number = _limit(count)
    if math.inf in (number, most, memory_mb) or not number:
        return ()
    return (Nodes(int(number), int(most), int(memory_mb), gpus_in(gres)),)


def gpus_in(gres: str) -> dict[str, int]:
    """GPUs of a node by type, from its generic resources as sinfo prints them: ``gpu:a100:4(S:0-1),shard:8``."""
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *words = entry.strip().split(":")
        if name != "gpu":
            continue
        words = [word for word in words if word != "no_consume"]
        count = int(words.pop()) if words and words[-1].isdecimal() else 1
        model = ":".join(words)
        found[model] = found.get(model, 0) + count
    return {model: count for model, count in found.items() if count}


def minutes_of(time: str) -> float:
    """Minutes of a time limit as SLURM prints it: [days-]hours:minutes:seconds, minutes:seconds or minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if match is None:
        # infinite, UNLIMITED, n/a
        return math.inf
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None or third is not None:
        seconds = (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    else:
        seconds = first * 60 + (second or 0)
    return ((days or 0) * 86400 + seconds) // 60


def _limit(text: str) -> float:
    """A number that may be missing, "n/a" or UNLIMITED."""
    return int(text) if text.isdecimal() else math.inf


def _count(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _quality(listed: str, default: str) -> str:
    """The quality of service of jobs that ask for none."""
    return default or (listed if listed and "," not in listed else "normal")


def ask(command: tuple[str, ...], seconds: float = PATIENCE) -> Answer:
    """What a command of SLURM's answers, if it does so in time."""
    name = command[0]
    if shutil.which(name) is None:
        return Answer(trouble=f"{name} not found in PATH")
    # SINFO_PARTITION and the like would change what is printed.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SINFO_", "SACCT_"))}
    # Files, not pipes: a child that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(trouble=f"{name}: {error.strerror or error}")
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Answer(trouble=f"{name} did not answer in {seconds:g} s")
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read(MOST_OUTPUT).decode(errors="replace"))
    if code:
        said = next((line.strip() for line in "\n".join(reversed(texts)).splitlines() if line.strip()), f"code {code}")
        return Answer(trouble=said if said.startswith(f"{name}:") else f"{name}: {said}")
    return Answer(tuple(line for line in texts[0].splitlines() if line.strip()))
