"""A real Slurm on this machine: a controller and two nodes, started by a test and stopped after it.

Nothing outside of its folder is written, and it listens with a key of its own.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
_CPUS, _GPUS = 64, 8
NODES = ("node1", "node2")


@dataclass
class SlurmLab:
    """A running cluster."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What a user's shell on the login node has; nothing of a job that runs the tests."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        settings = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "LOG_DIR": str(self.folder / "logs"),
            "NPROC": "1",
            # The templates ask for GPUs; jobs of the tests are on the CPU.
            "SBATCH_GPUS_PER_NODE": "0",
        }
        return own | settings | more

    def command(
        self, *command: str, cwd: Path = REPOSITORY, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env=self.environment(**variables),
        )

    def submit(self, *arguments: str, **variables: str) -> int:
        """``sbatch`` from the repository's root; the job's number."""
        output = f"--output={self.folder}/%j.out"
        found = self.command("sbatch", "--parsable", output, *arguments, **variables)
        assert found.returncode == 0, found.stderr
        return int(found.stdout)

    def output(self, job: int) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def field(self, job: int | str, name: str) -> str:
        """One field of ``scontrol show job``; empty where there is no such job."""
        text = self.command("scontrol", "show", "job", str(job)).stdout
        words = [word for word in text.split() if word.startswith(f"{name}=")]
        return words[0].partition("=")[2] if words else ""

    def wait_for(self, condition: Callable[[], bool], *, job: int, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                text = self.command("scontrol", "show", "job", str(job)).stdout
                raise AssertionError(f"{text}\n{self.output(job)[-4000:]}")
            time.sleep(0.1)

    def finish(self, job: int, *, state: str = "COMPLETED", seconds: float = 240) -> None:
        """Waits until a job has ended; it must have ended in ``state``."""
        # The last is of a busy controller, which leaves a question without an answer.
        going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "")
        last = ""

        def has_ended() -> bool:
            nonlocal last
            last = self.field(job, "JobState")
            return last not in going

        self.wait_for(has_ended, job=job, seconds=seconds)
        assert last == state, self.output(job)[-4000:]


@contextmanager
def slurm_lab() -> Iterator[SlurmLab]:
    """Starts a cluster, and stops it; skips where this machine has no Slurm."""
    if missing := [name for name in _PROGRAMS if _find(name) is None]:
        pytest.skip(f"needs Slurm: {', '.join(missing)} are not installed")
    if os.geteuid() != 0:
        pytest.skip("needs root, for Slurm's daemons")
    host = socket.gethostname().split(".")[0]
    try:
        socket.gethostbyname(host)
    except OSError:
        pytest.skip(f"needs a machine that knows its own name, {host}")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make mount namespaces")
    daemons: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="latentwire-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        lab = SlurmLab(folder=folder)
        try:
            _start(folder, host, daemons)
            _wait_until_idle(lab)
            yield lab
        finally:
            with suppress(subprocess.TimeoutExpired):
                lab.command("scancel", "--user=root", "--signal=KILL", "--full")
                lab.command("scancel", "--user=root")
            _wait_until_empty(lab)
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in daemons:
                try:
                    daemon.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    daemon.kill()


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _start(folder: Path, host: str, daemons: list["subprocess.Popen[bytes]"]) -> None:
    """Daemons in the foreground, so that each is a child with a known number."""
    for part in ("controller", "munge", "run"):
        (folder / part).mkdir()
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = _free_ports(3)
    (folder / "slurm.conf").write_text(_configuration(folder, host, ports))
    version = subprocess.run([_find("slurmd") or "", "-V"], capture_output=True, text=True).stdout
    # "disabled" came with 24.05; before, a name of a plugin that nothing here uses.
    is_old = version.split()[-1] < "24.05"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if is_old else 'disabled'}\n")
    devices = []
    for number in range(_GPUS):
        device = folder / f"gpu{number}"
        os.mknod(device, 0o20666, os.makedev(1, 3))
        devices.append(device)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{_GPUS - 1}]\n")
    socket_path = folder / "run" / "munge"
    munge = [
        *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}"),
        *(f"--pid-file={folder}/run/munged.pid", f"--log-file={folder}/munge/log"),
        *(f"--seed-file={folder}/munge/seed", "--num-threads=1"),
    ]
    configuration = str(folder / "slurm.conf")
    _spawn(munge, folder, daemons)
    deadline = time.monotonic() + 60
    while not socket_path.exists():
        assert time.monotonic() < deadline, (folder / "munged.log").read_text()
        time.sleep(0.02)
    _spawn(["slurmctld", "-D", "-c", "-f", configuration], folder, daemons)
    # The nodes' names resolve for their jobs, as on any cluster; elsewhere nobody knows them.
    hosts = folder / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
    script = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    slurmd = _find("slurmd") or ""
    for node in NODES:
        command = [*inside, str(hosts), slurmd, "-D", "-f", configuration, "-N", node]
        _spawn(command, folder, daemons, name=node)


def _spawn(
    command: Sequence[str],
    folder: Path,
    daemons: list["subprocess.Popen[bytes]"],
    *,
    name: str = "",
) -> None:
    with (folder / f"{name or command[0]}.log").open("ab") as log:
        daemons.append(
            subprocess.Popen(
                [_find(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=SlurmLab(folder=folder).environment(),
            )
        )


def _free_ports(number: int) -> list[int]:
    """Not of those that the kernel hands out: the daemons take them a while later."""
    first = 21_000 + os.getpid() % 1000 * 10
    ports: list[int] = []
    for port in range(first, first + 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == number:
            return ports
    raise AssertionError(f"no {number} free ports from {first} on")


def _configuration(folder: Path, host: str, ports: Sequence[int]) -> str:
    lines = [
        "ClusterName=lab",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # Without it a job that is queued again waits for two minutes.
        f"AuthInfo=socket={folder}/run/munge,cred_expire=5",
        f"StateSaveLocation={folder}/controller",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/%n.pid",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldLogFile={folder}/controller.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0",
        "JobRequeue=1",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "ReturnToService=2",
        "KillWait=60",
        "SlurmdTimeout=60",
        "MinJobAge=600",
        "PropagateResourceLimits=NONE",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        # Clusters of several test processes share the machine, and a job's port comes from its id.
        f"FirstJobId={1000 + os.getpid() % 1000 * 20}",
        *(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={_CPUS} "
            f"RealMemory=256000 Gres=gpu:{_GPUS} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ),
        f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join(lines) + "\n"


def _wait_until_idle(lab: SlurmLab) -> None:
    deadline = time.monotonic() + 90
    while True:
        with suppress(subprocess.TimeoutExpired):
            found = lab.command("sinfo", "--noheader", "--states=idle", "--format=%D")
            if found.stdout.split() == ["2"]:
                return
        if time.monotonic() > deadline:
            logs = "".join(path.read_text()[-1500:] for path in lab.folder.glob("*.log"))
            raise AssertionError(f"the cluster did not come up\n{logs}")
        time.sleep(0.05)


def _wait_until_empty(lab: SlurmLab) -> None:
    deadline = time.monotonic() + 30
    with suppress(subprocess.TimeoutExpired):
        while lab.command("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.1)


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
