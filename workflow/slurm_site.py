"""Read the limits of this site from SLURM's commands, once and in bounded time."""

from __future__ import annotations

import getpass
import math
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

from udpm.core.commands import Answer, ask

NEEDED = ("sbatch", "sinfo", "squeue")
"""Commands that submit and watch jobs."""
NOT_CONFIGURED = re.compile(r"resolve_ctls_from_dns_srv|slurm\.conf")
"""Matches errors of SLURM's commands on a machine of no cluster."""
# Prints one line for each kind of node of each partition: --exact does not merge nodes whose values differ, and fields
# without a width are not truncated.
SINFO = ("sinfo", "--all", "--exact", "--noheader", "--format=%P|%a|%l|%s|%D|%c|%m|%G")
ASSOCIATIONS = "cluster,account,partition,maxsubmitjobs,grpsubmitjobs,qos,defaultqos"
QUALITIES = "name,maxsubmitjobsperuser,grpsubmitjobs"


@dataclass(frozen=True)
class Nodes:
    """Identical nodes of a partition, in any state.

    Attributes:
        count: number of nodes.
        cpus: of each.
        memory_mb: of each, in SLURM's megabytes (RealMemory).
        gpus: of each, by type; "" for GPUs without a type.
    """

    count: int
    cpus: int
    memory_mb: int
    gpus: dict[str, int] = field(default_factory=dict)

    def gpus_of(self, model: str | None) -> int:
        """Return the number of GPUs of a type on each node; None: of all types."""
        return sum(self.gpus.values()) if model is None else self.gpus.get(model, 0)


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        minutes: time limit of a job; may be infinite.
        max_nodes: of one job; may be infinite.
        is_default: whether jobs without a partition go there.
        state: up, down, drain or inact.
    """

    name: str
    minutes: float = math.inf
    max_nodes: float = math.inf
    is_default: bool = False
    state: str = "up"
    nodes: tuple[Nodes, ...] = ()

    def has(self, minutes: float = 0, memory_mb: float = 0, cpus: int = 1, gpus: int = 0, model=None, nodes: int = 1):
        """Return whether a job can run here. Memory, CPUs and GPUs are for each of its nodes."""
        if minutes > self.minutes or nodes > self.max_nodes:
            return False
        return not self.nodes or nodes <= sum(
            kind.count
            for kind in self.nodes
            if memory_mb <= kind.memory_mb and cpus <= kind.cpus and gpus <= kind.gpus_of(model if gpus else None)
        )


class Site:
    """The limits of this site. Commands run when an answer is first needed, and only once."""

    @cached_property
    def missing(self) -> list[str]:
        """Commands of `NEEDED` that are not in PATH."""
        return [name for name in NEEDED if shutil.which(name) is None]

    @property
    def absence(self) -> str | None:
        """The reason, in one line, why this machine has no SLURM; None if it has one."""
        if self.missing:
            return f"SLURM's commands ({', '.join(self.missing)}) not found in PATH"
        trouble = self.trouble
        return f"SLURM is not configured here ({trouble})" if trouble and NOT_CONFIGURED.search(trouble) else None

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
        """The reason, in one line, why partitions are unknown; None if they are known."""
        if self.partitions:
            return None
        return self._answers["nodes"].trouble or "sinfo names no partition"

    @property
    def accounting_trouble(self) -> str | None:
        """The reason why sacct does not report how jobs ended; None if it does."""
        return self._answers["accounting"].trouble

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        """All partitions by name."""
        return read_partitions(self._answers["nodes"].lines, self._answers["partitions"].lines)

    def candidates(self, names: str | None, any_partition: bool = False) -> list[Partition]:
        """Return the partitions that a job may go to.

        Args:
            names: the job's partition, or several with commas; None: it has none.
            any_partition: whether a job without a partition may go to any, not only to the site's default.
        """
        if names:
            return [self.partitions[name] for name in names.split(",") if name in self.partitions]
        partitions = [partition for partition in self.partitions.values() if partition.nodes]
        default = [partition for partition in partitions if partition.is_default and not any_partition]
        return default or partitions or list(self.partitions.values())

    def max_memory(self, names: str | None) -> float:
        """Return the memory of a partition's largest node in MB; infinite if unknown."""
        kinds = [kind for partition in self.candidates(names) for kind in partition.nodes]
        return max((kind.memory_mb for kind in kinds), default=math.inf)

    @cached_property
    def settings(self) -> dict[str, str]:
        """SLURM's configuration; empty if unknown."""
        pairs = (line.partition("=") for line in self._answers["settings"].lines)
        return {key.strip(): value.strip() for key, sign, value in pairs if sign}

    @cached_property
    def accounts(self) -> list[str]:
        """The user's accounts; empty if unknown."""
        return sorted({row[1] for row in self._associations if row[1]})

    @cached_property
    def _associations(self) -> list[list[str]]:
        rows = [line.split("|") for line in self._answers["associations"].lines]
        rows = [row for row in rows if len(row) == len(ASSOCIATIONS.split(","))]
        # One database may keep the accounts of several clusters.
        here = self.settings.get("ClusterName")
        return [row for row in rows if row[0] == here] or rows

    def max_jobs(self, account: str | None = None, partition: str | None = None, qos: str | None = None) -> int | None:
        """Return how many jobs the user may have in the queue, waiting and running; None if unlimited.

        No account means any of the user's, no partition the site's default, no `qos` the default of both.
        """
        enforced = self.settings.get("AccountingStorageEnforce")
        if enforced is not None and not re.search(r"\b(limits|safe|all)\b", enforced, re.IGNORECASE):
            return None
        rows = [row for row in self._associations if account is None or row[1].lower() == account.lower()]
        rows = [row for row in rows if row[2] in ("", partition)] or rows
        limits = [_limit(text) for row in rows for text in row[3:5]]
        names: set[str | None] = {qos} if qos else {_quality(row[5], row[6]) for row in rows}
        settings = read_settings(self._answers["partitions"].lines)
        names |= {settings.get(found.name, {}).get("QoS") for found in self.candidates(partition)[:1]}
        for line in self._answers["qualities"].lines:
            name, *numbers = line.split("|")
            if name in names:
                limits += map(_limit, numbers)
        smallest = min(limits, default=math.inf)
        return None if smallest == math.inf else int(smallest)


def read_partitions(sinfo: Iterable[str], scontrol: Iterable[str] = ()) -> dict[str, Partition]:
    """Parse partitions and their nodes.

    Args:
        sinfo: output of `SINFO`.
        scontrol: output of ``scontrol --oneliner show partition``, for limits that sinfo does not print.
    """
    settings = read_settings(scontrol)
    found: dict[str, Partition] = {}
    for line in sinfo:
        words = [word.strip() for word in line.split("|")]
        if len(words) != SINFO[-1].count("|") + 1 or not words[0]:
            continue
        name, state, time, sizes, *of_nodes = words
        is_default, name = name.endswith("*"), name.removesuffix("*")
        limits = settings.get(name, {})
        nodes = _nodes(of_nodes, limits)
        if earlier := found.get(name):
            found[name] = replace(earlier, nodes=earlier.nodes + nodes)
            continue
        max_nodes = min(_limit(sizes.rpartition("-")[2]), _limit(limits.get("MaxNodes", "")))
        found[name] = Partition(name, minutes_of(time), max_nodes, is_default, state, nodes)
    return found


def read_settings(scontrol: Iterable[str]) -> dict[str, dict[str, str]]:
    """Parse the output of ``scontrol --oneliner show partition``: settings by partition."""
    found = {}
    for line in scontrol:
        pairs = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if name := pairs.get("PartitionName"):
            found[name] = pairs
    return found


def _nodes(words: list[str], limits: dict[str, str]) -> tuple[Nodes, ...]:
    """Parse number of nodes, CPUs, memory and generic resources of a line; empty for a partition without nodes."""
    count, cpus, memory, gres = words
    # A "+" means that some nodes have more. The partition may grant less than its nodes have.
    most = min(_limit(cpus.rstrip("+")), _limit(limits.get("MaxCPUsPerNode", "")))
    memory_mb = min(_limit(memory.rstrip("+")), _limit(limits.get("MaxMemPerNode", "")))
    number = _limit(count)
    if math.inf in (number, most, memory_mb) or not number:
        return ()
    return (Nodes(int(number), int(most), int(memory_mb), gpus_in(gres)),)


def gpus_in(gres: str) -> dict[str, int]:
    """Parse the GPUs of a node by type, from its generic resources: ``gpu:a100:4(S:0-1),shard:8``."""
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
    """Parse a time limit: [days-]hours:minutes:seconds, minutes:seconds or minutes; anything else is infinite."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if match is None:
        return math.inf
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        return days * 1440 + first * 60 + second + third // 60
    return first + second // 60


def _limit(text: str) -> float:
    """Parse a limit; infinite if it is missing, "n/a" or UNLIMITED."""
    return int(text) if text.strip().isdecimal() else math.inf


def _quality(listed: str, default: str) -> str:
    """Return the quality of service of jobs that name none."""
    return default or (listed if listed and "," not in listed else "normal")
