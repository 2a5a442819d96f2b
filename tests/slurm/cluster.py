"""A real SLURM on this host: two nodes of two fake GPUs each, accounting, everything in one folder and on free ports.

It does not touch /etc/slurm, so it may run next to a real SLURM. The daemons end with the process that started them,
even if that is killed. Run as a program, it keeps a cluster up until Ctrl-C, for experiments.
"""

from __future__ import annotations

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "setpriv")
COMMANDS = ("salloc", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sstat", "sprio")
CLUSTER = "udpmtest"
ACCOUNT = "lab"
NODES = ("n1", "n2")
WAIT = 300.0

SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
{accounting}JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=2,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=20
SlurmctldTimeout=10
KillWait=10
MinJobAge=300
MaxJobCount=10000
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=gpu Nodes=ALL Default=YES MaxTime=240 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=polite Nodes=ALL MaxTime=240 State=UP PriorityTier=5 GraceTime=60 PreemptMode=REQUEUE
PartitionName=rude Nodes=ALL MaxTime=240 State=UP PriorityTier=5 GraceTime=0 PreemptMode=REQUEUE
PartitionName=short Nodes=ALL MaxTime=30 State=UP PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={folder}/munge/socket
AccountingStoreFlags=job_comment
AccountingStorageEnforce=associations,limits
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database_port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


def missing() -> list[str]:
    """Return the programs of a cluster that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """A live SLURM; use as a context manager.

    Args:
        folder: a short path (sockets have a length limit); made and removed.
        accounting: whether to run a database for sacct.

    Attributes:
        environment: variables with which SLURM's commands reach this cluster.
    """

    def __init__(self, folder: Path | None = None, accounting: bool = True) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.accounting = accounting
        self._daemons: dict[str, subprocess.Popen] = {}
        self._claim: socket.socket | None = None
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def __enter__(self) -> Cluster:
        try:
            self._write()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self._wait("nodes to be idle", lambda: self.ask("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.SubprocessError, OSError):
            self.ask("scancel", "--full", "--signal=KILL", "-u", getpass.getuser())
        for name in reversed(list(self._daemons)):
            self.kill(name, signal.SIGTERM)
        self._kill_leftovers()
        if self._claim is not None:
            self._claim.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self.start(node, "slurmd", "-D", "-N", node)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon that ends with this process."""
        with open(self.folder / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a daemon by a signal and wait for its end; its jobs live on."""
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def ask(self, *command: str) -> str:
        """Return the output of a SLURM command.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def _write(self) -> None:
        for name in ("munge", "state", "spool", "db", "bin"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o755)
        self.folder.chmod(0o755)
        self._claim, (controller, database, node) = claim_ports()
        given = {
            "cluster": CLUSTER,
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "folder": self.folder,
            "controller_port": controller,
            "database_port": database,
            "node_ports": f"{node}-{node + len(NODES) - 1}",
        }
        gpus = []
        for number in range(2):
            gpu = self.folder / f"gpu{number}"
            gpu.touch()
            gpus.append(f"Name=gpu File={gpu}")
        texts = {
            "slurm.conf": SLURM_CONF.format(**given, accounting=ACCOUNTING.format(**given) if self.accounting else ""),
            "slurmdbd.conf": SLURMDBD_CONF.format(**given),
            "gres.conf": "AutoDetect=off\n" + "\n".join(gpus) + "\n",
            "cgroup.conf": "CgroupAutomount=no\n",
        }
        for name, text in texts.items():
            (self.folder / name).write_text(text)
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # Inside a job, Snakemake removes SLURM_* variables, so that commands would look in /etc/slurm.
        for name in COMMANDS:
            wrapper = self.folder / "bin" / name
            command = shutil.which(name, path=self.environment["PATH"])
            wrapper.write_text(f'#!/bin/sh\nexport SLURM_CONF={self.folder}/slurm.conf\nexec {command} "$@"\n')
            wrapper.chmod(0o755)

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        # --force: accept permissions of the parent folders that munge would refuse.
        self.start("munged", "munged", "--foreground", "--force", *options)
        self._wait("munge", (munge / "socket").exists)

    def _start_accounting(self) -> None:
        database, user = self.folder / "db", getpass.getuser()
        self.environment["MYSQL_UNIX_PORT"] = f"{database}/socket"
        # In a shared folder, a server would remove the temporary tables of others when it starts.
        (database / "tmp").mkdir()
        environment = self.environment | {"TMPDIR": f"{database}/tmp"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "timeout": 300}
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={database}/data", f"--user={user}"]
        subprocess.run([*install, "--auth-root-authentication-method=normal", "--skip-test-db"], check=True, **quiet)
        server = ["mariadbd", "--no-defaults", f"--datadir={database}/data", f"--user={user}", "--skip-networking"]
        server += [f"--socket={database}/socket", f"--pid-file={database}/pid", "--innodb-flush-log-at-trx-commit=0"]
        server += [f"--tmpdir={database}/tmp"]
        self.start("mariadbd", *server)
        make = f"CREATE USER IF NOT EXISTS '{user}'@'localhost'; GRANT ALL ON *.* TO '{user}'@'localhost';"
        grant = ["mariadb", "--no-defaults", "-u", "root", "-e", make]
        self._wait("the database", lambda: subprocess.run(grant, check=True, **quiet))
        self.start("slurmdbd", "slurmdbd", "-D")
        self._wait("accounting", lambda: self.ask("sacctmgr", "-n", "show", "cluster") is not None)
        self.ask("sacctmgr", "-i", "add", "cluster", CLUSTER)
        self.ask("sacctmgr", "-i", "add", "account", ACCOUNT, "description=lab", "organization=lab")
        self.ask("sacctmgr", "-i", "add", "user", user, f"account={ACCOUNT}")

    def _wait(self, what: str, ready) -> None:
        deadline = time.monotonic() + WAIT
        while True:
            with suppress(subprocess.SubprocessError):
                if ready():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {WAIT:g} s in vain for {what}:\n{self._told()}")
            time.sleep(0.2)

    def _told(self) -> str:
        """Return the ends of all logs."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs if log.stat().st_size)

    def _kill_leftovers(self) -> None:
        """Kill all processes with this cluster's configuration in their environment."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)


def claim_ports() -> tuple[socket.socket, tuple[int, int, int]]:
    """Reserve free ports; return the socket that holds them, and the ports of controller, database and first node.

    The port before them is bound and never used: while the socket is open, no other cluster gets any of these, even
    if its daemons start at the same moment.
    """
    needed = 1 + 2 + len(NODES)
    for first in random.sample(range(20_000, 30_000, needed), 100):
        claim = socket.socket()
        with ExitStack() as stack, suppress(OSError):
            claim.bind(("127.0.0.1", first))
            for port in range(first + 1, first + needed):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return claim, (first + 1, first + 2, first + 3)
        claim.close()
    raise OSError("no free ports between 20000 and 30000")


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    with Cluster() as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']} PATH={cluster.folder}/bin:$PATH", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
