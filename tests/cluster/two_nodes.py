"""Two nodes on one machine: network namespaces joined by a bridge, each with a name, an address, a
process table and a launcher of its own. The machine's own network is not touched."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import REPOSITORY

_NET = "10.77.0"
NODES = ("node1", "node2")


@dataclass
class TwoNodes:
    """The nodes, and what was started on them.

    Args:
        prefix: of the namespaces' names.
        folder: takes the nodes' ``/etc/hosts`` and their output.
    """

    prefix: str
    folder: Path
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    num_starts: int = 0

    def start(self, *arguments: str, **variables: str) -> None:
        """``launch/torchrun.sh`` with the same arguments on both nodes."""
        self.num_starts += 1
        environment = os.environ | {
            "LATENTWIRE_SKIP_SETUP": "1",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "NNODES": "2",
            "NPROC": "1",
            "HEAD_NODE": "node1",
            "SOCKET_IFNAME": "eth0",
            "CUDA_VISIBLE_DEVICES": "",
            "LOG_DIR": str(self.logs),
        }
        for node in NODES:
            with self.log(node).open("wb") as log:
                self.running[node] = subprocess.Popen(
                    [*self._inside(node), str(REPOSITORY / "launch/torchrun.sh"), *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment | variables,
                    start_new_session=True,
                )

    def _inside(self, node: str) -> list[str]:
        """Runs a command as a child of the node's first process: with that killed, the kernel ends
        all of the node at once, as a machine that loses power."""
        script = (
            'hostname "$1"; mount --bind "$2" /etc/hosts; mount -t proc proc /proc; '
            'shift 2; "$@"; exit $?'
        )
        unshare = "unshare --uts --mount --propagation private --pid --fork --kill-child=KILL"
        return [
            *("ip", "netns", "exec", f"{self.prefix}-{node}", *unshare.split()),
            *("sh", "-c", script, "sh", node, str(self.folder / "hosts")),
        ]

    @property
    def logs(self) -> Path:
        """Each rank's output of the last start."""
        return self.folder / f"logs-{self.num_starts}"

    def log(self, node: str) -> Path:
        """What a node of the last start prints."""
        return self.folder / f"{node}-{self.num_starts}.log"

    def text(self, node: str) -> str:
        return self.log(node).read_text(encoding="utf-8", errors="replace")

    def set_link(self, node: str, state: str) -> None:
        """``up`` or ``down``: the node's cable."""
        _ip("-n", f"{self.prefix}-net", "link", "set", f"to-{node}", state)

    def kill(self, node: str) -> None:
        """All of the node's processes end at once."""
        self.running[node].send_signal(signal.SIGKILL)
        self.running[node].wait(timeout=30)

    def wait(self, node: str, *, seconds: float) -> int:
        """The launcher's code, when it has ended."""
        return self.running[node].wait(timeout=seconds)

    def wait_for_step(self, run: Path, step: int, *, seconds: float = 240) -> None:
        """Until the run's rows tell of a step."""
        path = run / "diagnostics.jsonl"
        deadline = time.monotonic() + seconds
        while not (path.is_file() and f'"step":{step},' in path.read_text().replace(" ", "")):
            ended = [node for node, child in self.running.items() if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(
                    f"no step {step}; ended: {ended}\n{self.text('node1')[-3000:]}"
                )
            time.sleep(0.02)

    def close(self) -> None:
        for child in self.running.values():
            if child.poll() is None:
                child.kill()
            child.wait(timeout=30)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Brings the nodes up, and down again; skips where this machine does not allow it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    prefix = f"lw{os.getpid()}"
    spaces = [f"{prefix}-{name}" for name in ("net", *NODES)]
    with tempfile.TemporaryDirectory(prefix="latentwire-nodes-") as name:
        folder = Path(name)
        nodes = TwoNodes(prefix=prefix, folder=folder)
        try:
            _bring_up(prefix, folder)
        except subprocess.CalledProcessError as error:
            _take_down(spaces)
            pytest.skip(f"needs the right to make network namespaces: {error.stderr.decode()}")
        try:
            yield nodes
        finally:
            nodes.close()
            _take_down(spaces)


def _bring_up(prefix: str, folder: Path) -> None:
    lines = ["127.0.0.1 localhost"]
    lines += [f"{_NET}.{number} {node}" for number, node in enumerate(NODES, start=11)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    net = f"{prefix}-net"
    _ip("netns", "add", net)
    _ip("-n", net, "link", "add", "bridge", "type", "bridge")
    _ip("-n", net, "link", "set", "bridge", "up")
    for number, node in enumerate(NODES, start=11):
        own = f"{prefix}-{node}"
        _ip("netns", "add", own)
        veth = ["link", "add", f"to-{node}", "type", "veth"]
        _ip("-n", net, *veth, "peer", "name", "eth0", "netns", own)
        _ip("-n", net, "link", "set", f"to-{node}", "master", "bridge", "up")
        _ip("-n", own, "link", "set", "lo", "up")
        _ip("-n", own, "addr", "add", f"{_NET}.{number}/24", "dev", "eth0")
        _ip("-n", own, "link", "set", "eth0", "up")


def _take_down(spaces: list[str]) -> None:
    for space in spaces:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", space)
