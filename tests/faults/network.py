"""A network of its own for a process, with a plug that can be pulled: what is sent then is lost, and nobody is told.

    here 10.x.y.1 ── veth ── bridge ── veth ── 10.x.y.2 the process

The two ends are never told that a link is down, as with a cable that is pulled behind the next switch. The bridge is in
a network namespace of a process that does nothing else, the other end in that of the process itself: namespaces and
links end with the processes, however those end. It takes root and Linux.

    python -m tests.faults.network                          # the process with the bridge
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator

from tests.faults.processes import Process, Processes
from tests.waiting import eventually

APART = "apart\n"
"""What a process prints when it has a network of its own."""
TOOLS = ("ip", "nsenter")
_CLONE_NEWNET = 0x4000_0000


def why_not() -> str | None:
    """Return why there can be no such network here; None: there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root makes networks"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no command {' and '.join(missing)}"
    try:
        probe = f"busprobe{os.getpid() % 10_000}"
        _run("ip", "link", "add", probe, "type", "bridge")
        _run("ip", "link", "delete", probe)
    except subprocess.CalledProcessError as exc:
        return f"no networks can be made: {exc.stderr.strip()}"
    return None


def set_apart() -> None:
    """Give this process a network of its own, without any link, and say so."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace")
    print(APART, end="", flush=True)  # noqa: T201


class Network:
    """The way from here to one process."""

    def __init__(self) -> None:
        subnet = f"10.{random.randint(200, 250)}.{random.randint(1, 254)}"
        self.here = f"{subnet}.1"
        """The address that the process finds us at."""
        self._there = f"{subnet}.2"
        self._name = f"bus{random.randrange(16**6):06x}"
        self._switch: Process

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, processes: Processes) -> AsyncIterator[Network]:
        """Make our half. The rest is there when a process is connected."""
        network = cls()
        network._switch = processes.python("switch", ["-m", "tests.faults.network"])
        try:
            await _until_apart(network._switch)
            network._make_our_half()
            yield network
        finally:
            network._switch.kill()  # its end of the link goes with it, and so does ours

    def _make_our_half(self) -> None:
        _run("ip", "link", "add", self._name, "type", "veth", "peer", "name", "here", "netns", str(self._switch.pid))
        _run("ip", "address", "add", f"{self.here}/24", "dev", self._name)
        _run("ip", "link", "set", self._name, "up")
        _in(self._switch, "ip", "link", "add", "bridge", "type", "bridge")
        _in(self._switch, "ip", "link", "set", "bridge", "up")
        _in(self._switch, "ip", "link", "set", "here", "up", "master", "bridge")

    async def connect(self, process: Process) -> None:
        """Plug a process in that is set apart, or will be soon."""
        await _until_apart(process)
        there = ["peer", "name", "eth0", "netns", str(process.pid)]
        _in(self._switch, "ip", "link", "add", "there", "type", "veth", *there)
        _in(process, "ip", "address", "add", f"{self._there}/24", "dev", "eth0")
        _in(process, "ip", "link", "set", "eth0", "up")
        _in(self._switch, "ip", "link", "set", "there", "up")
        self.plug()

    def plug(self) -> None:
        _in(self._switch, "ip", "link", "set", "there", "master", "bridge")

    def unplug(self) -> None:
        _in(self._switch, "ip", "link", "set", "there", "nomaster")


async def _until_apart(process: Process) -> None:
    await eventually(lambda: APART in process.text() or process.exit_code is not None, 30)
    assert process.exit_code is None, process.text()


def _in(process: Process, *command: str) -> None:
    _run("nsenter", f"--net=/proc/{process.pid}/ns/net", *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    set_apart()
    signal.pause()
