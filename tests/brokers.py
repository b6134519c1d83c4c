"""Brokers for tests: those that the environment names, or a server of the test's own, which it may stop and start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import psutil

from tests.faults.processes import end_with_parent, free_port, stopped
from tests.unavailable import unavailable

Kind = Literal["nats", "redis", "rabbitmq"]
KINDS: tuple[Kind, ...] = ("nats", "redis", "rabbitmq")
PROGRAMS = {"nats": "nats-server", "redis": "redis-server", "rabbitmq": "rabbitmq-server"}
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
"""Debian has servers there, which is not on everybody's path."""
VARIABLES = {kind: f"EVENTBUS_TEST_{kind.upper()}_URL" for kind in KINDS}
START_TIMEOUT = 90.0
STOP_TIMEOUT = 30.0


class BrokerServer:
    """A server in a process of its own, which keeps its port and what is on disk over restarts."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.port = free_port()
        self._other_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.kind == "rabbitmq":
            return f"amqp://guest:guest@127.0.0.1:{self.port}/"
        return f"{self.kind}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command, variables = self._command()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, "PATH": PATH, **variables},
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} did not start:\n{(self.directory / 'log').read_text()[-3_000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Freeze it inside the block: connections stay, and nothing answers."""
        assert self._process is not None
        return stopped([psutil.Process(self._process.pid)])

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        for child in children:  # RabbitMQ's node is a session of its own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        psutil.wait_procs(children, STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        port, directory = str(self.port), str(self.directory)
        if self.kind == "nats":
            return ("nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd", directory), {}
        if self.kind == "redis":
            kept = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
            return ("redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", directory, *kept), {}
        (self.directory / "plugins").write_text("[].\n")
        (self.directory / "environment").write_text("")  # that of the machine's own server has the last word else
        (self.directory / "test.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
        return ("rabbitmq-server",), {
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "environment"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "test.conf"),
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": str(self._other_port),
            "RABBITMQ_MNESIA_BASE": directory,
            "RABBITMQ_LOG_BASE": directory,
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
        }

    def _answers(self) -> bool:
        greeting = {"nats": b"", "redis": b"PING\r\n", "rabbitmq": b"AMQP\x00\x00\x09\x01"}[self.kind]
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.settimeout(2.0)
                probe.sendall(greeting)
                answer = probe.recv(64)
        except OSError:
            return False
        return bool(answer) and not answer.startswith(b"-LOADING")


@contextlib.contextmanager
def own_broker(kind: Kind) -> Iterator[BrokerServer]:
    """A server of one's own, running; skip where its program is not installed."""
    if shutil.which(PROGRAMS[kind], path=PATH) is None:
        unavailable(f"{PROGRAMS[kind]} is not installed")
    with tempfile.TemporaryDirectory(prefix=f"bus-{kind}-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o777)  # RabbitMQ's program becomes a user of its own
        server = BrokerServer(kind, Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def any_broker(kind: Kind) -> Iterator[str]:
    """The URL of the server that the environment names, or of one of one's own."""
    named = os.environ.get(VARIABLES[kind])
    if named:
        yield named
        return
    with own_broker(kind) as server:
        yield server.url
