"""Processes that train one model together: ranks, rendezvous and collectives. Imports no torch at import."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from udpm.core.devices import describe_failure, is_device_failure, is_out_of_memory
from udpm.core.errors import StoppedEarly, UserError, first_line
from udpm.core.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch.distributed import TCPStore

    from udpm.core.work import StopRequest

RENDEZVOUS_SECONDS = 300.0


@dataclass(frozen=True)
class RankInfo:
    """Position of this process among all.

    Attributes:
        rank: 0..world - 1.
        world: number of processes.
        local: local rank on its node; the GPU it uses, unless it sees only one.
        rendezvous_id: name that the processes of this launch share, and no other launch; empty under torchrun, which
            arranges the rendezvous itself.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    rendezvous_id: str = ""

    @property
    def by_srun(self) -> bool:
        """True for a task of srun, which may have assigned it one GPU."""
        return bool(self.rendezvous_id)


def detect_ranks(world: int, environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Return this process's rank, from torchrun's variables or from those of an srun task.

    The configuration sets the number of processes. With one, the environment is ignored: variables may leak in from a
    login node or an enclosing job.

    Raises:
        UserError: started with another number of processes.
    """
    found = launched(world, environment)
    if found is None:
        raise UserError(
            f"training.processes: {world} in all are configured, but only one was started; start it with "
            f"torchrun --standalone --nproc-per-node {world} -m -- udpm train … or srun -n {world} udpm train …"
        )
    if found.world != world:
        raise UserError(f"training.processes: {world} in all are configured, but {found.world} were started")
    return found


def launched(world: int, environment: Mapping[str, str] = os.environ) -> RankInfo | None:
    """Return the rank that torchrun or srun assigned to this process; None if neither started it."""
    if world == 1:
        return RankInfo()
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return RankInfo(rank, size, local)
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        rendezvous_id = "-".join(environment.get(name, "0") for name in parts)
        rank, size, local = (int(environment.get(name, "0")) for name in names)
        return RankInfo(rank, size, local, rendezvous_id)
    return None


def start_of(ranks: RankInfo, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text that the processes of this launch share with no other launch; empty for a single process."""
    if ranks.world == 1 or ranks.rendezvous_id:
        return ranks.rendezvous_id
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return "-".join(environment.get(name, "") for name in names)


@contextmanager
def process_group(
    ranks: RankInfo, backend: str, folder: Path, stop: StopRequest | bool = False, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Connect all processes while the context is open; does nothing for a single one.

    Under srun rank 0 takes a free port, so that jobs on one node never collide, and writes it to a file in the run's
    folder, which is visible to all processes.

    Raises:
        UserError: the backend is missing or does not work, or the others did not connect.
        StoppedEarly: a signal came while waiting for them, or one of them ended.
    """
    if ranks.world == 1:
        yield
        return
    import torch.distributed as dist

    if not (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()):
        raise UserError(f"training.backend: {backend} is not available in this PyTorch; use auto")
    try:
        _connect(ranks, backend, folder, stop, device)
        yield
    except BaseException:
        if dist.group.WORLD is not None:
            # Report the first failure, not its consequences; do not wait for what a dead process cannot finish.
            with suppress(Exception):
                dist.group.WORLD.abort()
            with suppress(Exception):
                dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _connect(ranks: RankInfo, backend: str, folder: Path, stop: StopRequest | bool, device: torch.device | str) -> None:
    import torch.distributed as dist

    try:
        if ranks.rendezvous_id:
            store = _rendezvous(ranks, folder, stop)
            _wait_for_all(store, ranks, stop)
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world)
        else:
            dist.init_process_group(backend)
        _try_out(backend, device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = describe_failure(error) if is_device_failure(error) else first_line(error)
        raise UserError(f"the {ranks.world} processes could not connect by {backend}: {reason}") from None


def _try_out(backend: str, device: torch.device | str) -> None:
    """Sum one number over all processes: NCCL connects, and may fail, at its first collective."""
    import torch
    import torch.distributed as dist

    number = torch.ones(1, device=device)
    with _collective():
        dist.all_reduce(number)
        # Reading the result synchronizes with the GPU, where the collective may still fail.
        total = int(number.item())
    if total != dist.get_world_size():
        raise RuntimeError(f"{dist.get_world_size()} ones add up to {total}")


class Agreement:
    """Joint decisions of all processes, over a CPU connection so that no device has to synchronize."""

    def __init__(self, ranks: RankInfo) -> None:
        self._group = None
        if ranks.world > 1:
            import torch.distributed as dist

            # Rank 0 may wait for the run's folder for days.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=30))

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether any process sets it. Collective: all processes must call it."""
        if self._group is None:
            return flags
        import torch
        import torch.distributed as dist

        joint = torch.tensor(flags, dtype=torch.uint8)
        with _collective():
            dist.all_reduce(joint, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(value) for value in joint.tolist())

    def all_equal(self, value: int) -> bool:
        """Return whether all processes pass the same number. Collective: all processes must call it."""
        if self._group is None:
            return True
        import torch
        import torch.distributed as dist

        bounds = torch.tensor([value, -value])
        with _collective():
            dist.all_reduce(bounds, dist.ReduceOp.MAX, group=self._group)
        return bounds[0].item() == -bounds[1].item()


def all_reduce_mean(values: list[torch.Tensor], ranks: RankInfo) -> None:
    """Replace tensors by their means over all processes, in one message for each dtype."""
    if ranks.world == 1 or not values:
        return
    import torch
    import torch.distributed as dist

    for kind in dict.fromkeys(value.dtype for value in values):
        part = [value for value in values if value.dtype == kind]
        flat = torch.cat([value.reshape(-1) for value in part])
        with _collective():
            dist.all_reduce(flat)
        flat /= ranks.world
        for value, mean in zip(part, flat.split([value.numel() for value in part]), strict=True):
            value.copy_(mean.view_as(value))


def all_reduce_min(value: torch.Tensor, ranks: RankInfo) -> int:
    """Return the minimum of an integer over all processes. Collective: all processes must call it."""
    if ranks.world > 1:
        import torch.distributed as dist

        with _collective():
            dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value.item())


@contextmanager
def _collective() -> Iterator[None]:
    """Guard a collective operation, which fails if another process has ended.

    Raises:
        StoppedEarly: another process ended.
        RuntimeError: this process's device, memory or NCCL failed; unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        # NCCL: "A call failed possibly due to a network error or a remote process exiting prematurely".
        peer_ended = "ncclRemoteError" in str(error) or not is_device_failure(error)
        if is_out_of_memory(error) or not peer_ended:
            raise
        reason = first_line(error)
        raise StoppedEarly(f"another process of this training ended ({reason}): run the same command again") from None


def _rendezvous(ranks: RankInfo, folder: Path, stop: StopRequest | bool) -> TCPStore:
    from torch.distributed import TCPStore

    path = folder / "rendezvous" / ranks.rendezvous_id
    if ranks.rank == 0:
        path.unlink(missing_ok=True)
        host = socket.gethostname()
        store = TCPStore(host, 0, ranks.world, is_master=True, wait_for_workers=False)
        write_text(path, f"{host}:{store.port}\n")
        return store
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while time.monotonic() < deadline and not stop:
        try:
            host, _, port = path.read_text(encoding="utf-8").strip().rpartition(":")
            soon = timedelta(seconds=10)
            store = TCPStore(host, int(port), ranks.world, is_master=False, timeout=soon, wait_for_workers=False)
        except (OSError, ValueError, RuntimeError):
            time.sleep(0.2)
        else:
            store.set_timeout(timedelta(seconds=RENDEZVOUS_SECONDS))
            return store
    if stop:
        raise StoppedEarly(f"stopped on {stop} while waiting for the other processes")
    raise OSError(f"rank 0 wrote no address to {path} within {RENDEZVOUS_SECONDS:g} s")


def _wait_for_all(store: TCPStore, ranks: RankInfo, stop: StopRequest | bool) -> None:
    """Wait until all processes have connected. PyTorch's own waiting ignores signals."""
    store.set(f"here/{ranks.rank}", "")
    everyone = [f"here/{rank}" for rank in range(ranks.world)]
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not store.check(everyone):
        if stop:
            store.delete_key(f"here/{ranks.rank}")
            raise StoppedEarly(f"stopped on {stop} while waiting for the other processes")
        if time.monotonic() > deadline:
            raise OSError(f"not all of them connected within {RENDEZVOUS_SECONDS:g} s")
        time.sleep(0.1)
