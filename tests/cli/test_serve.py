"""`eventbus serve`."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.command_line import Command, url_in
from tests.processes import EVENTBUS, Process, environment


def test_a_port_that_is_taken_is_one_line(eventbus: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = eventbus("serve", "--port", str(port), "--database-url", url_in(tmp_path))

    assert done.code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.error


@pytest.mark.databases("postgresql", "mysql")
def test_a_database_without_tables_is_one_line_with_the_command_to_run(eventbus: Command, database_url: str) -> None:
    done = eventbus("serve", "--port", "0", "--database-url", database_url)

    assert done.code == 1
    assert "eventbus migrate upgrade" in done.error


def test_a_database_in_memory_serves_one_worker_only(eventbus: Command) -> None:
    done = eventbus("serve", "--workers", "2", "--database-url", "sqlite+aiosqlite://")

    assert done.code == 1
    assert "--workers 1" in done.error


@contextlib.asynccontextmanager
async def served(directory: Path, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """Run `eventbus serve` on a free port; give the process and its URL."""
    env = environment(EVENTBUS_DATABASE_URL=url_in(directory))
    async with Process.running([*EVENTBUS, "serve", "--port", "0", *arguments], cwd=directory, env=env) as process:
        line = await process.line(" serves http://")
        await process.line("/docs")
        yield process, line.split()[3]


def suggested(process: Process, word: str) -> str:
    """Return the command with this word that the server told to try next."""
    [line] = [line.strip() for line in process.lines if line.startswith("  ") and word in line]
    return line


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_what_serve_tells_to_try_next_works_as_it_stands(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, url):
        async with Process.running(["sh", "-c", f"exec {suggested(server, 'tail')}"], cwd=tmp_path) as tail:
            await server.line("connection open")
            for number, command in enumerate((suggested(server, "curl"), suggested(server, "publish chat"))):
                async with Process.running(["sh", "-c", command], cwd=tmp_path) as publisher:
                    assert await publisher.end() == 0, publisher.output
                assert "seq" in publisher.output, number
            await tail.line("2  ")
            shown = [line.split("  ")[2:] for line in tail.lines]
            assert await tail.interrupt(signal.SIGINT) == 130

        assert shown[-1] == ["chat.user1", "Hello"]
        assert "Traceback" not in tail.output
        assert f"{url}/docs" in server.output
        assert await server.interrupt(signal.SIGTERM) == 0
    assert "Traceback" not in server.output


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_with_an_open_socket_ends_in_time(tmp_path: Path, workers: str, number: signal.Signals) -> None:
    async with (
        served(tmp_path, "--workers", workers) as (server, url),
        Process.running([*EVENTBUS, "tail", "#", "--url", url], cwd=tmp_path),
    ):
        await server.line("connection open")

        assert await server.interrupt(number) == 0

    assert "Traceback" not in server.output
