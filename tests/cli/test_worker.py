"""`eventbus worker`: serves the handlers of an app in processes of their own."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.cli import alive
from eventbus_fastapi.cli.alive import WatchedFile
from tests.cli.command_line import Command
from tests.processes import EVENTBUS, Process, environment
from tests.waiting import eventually

APP = """\
import gc
import os
from eventbus_fastapi import Event, EventBus

class Made(Event, topic="thing.made"):
    number: int

eventbus = EventBus()

@eventbus.handler(Made, queue="email")
async def handle(event: Made) -> None:
    print("handled", event.number, os.getpid(), flush=True)

@eventbus.handler("#", queue="audit")
async def audit(payload: object) -> None:
    print("audited", "frozen" if gc.get_freeze_count() else "", flush=True)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with an app."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def variables(shop: Path) -> dict[str, str]:
    return environment(EVENTBUS_DATABASE_URL=f"sqlite+aiosqlite:///{shop}/bus.db")


async def publish(shop: Path, *numbers: int) -> None:
    async with EventBus(f"sqlite+aiosqlite:///{shop}/bus.db") as bus:
        await bus.publish_many([("thing.made", {"number": number}) for number in numbers])


async def fails(shop: Path, *arguments: str) -> str:
    async with Process.running([*EVENTBUS, "worker", *arguments], cwd=shop, env=variables(shop)) as process:
        assert await process.end() in (1, 2)
        return process.output


async def test_the_queues_that_are_asked_for_are_served_until_sigterm(shop: Path) -> None:
    command = [*EVENTBUS, "worker", "shop:eventbus", "--queue", "email"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await process.line("serving shop.handle")
        await publish(shop, 1, 2)
        await process.line("handled 1")
        await process.line("handled 2")
        assert await process.interrupt(signal.SIGTERM) == 0
        assert "audited" not in process.output


async def test_a_worker_process_that_dies_is_replaced_and_its_end_is_that_of_all(shop: Path) -> None:
    command = [*EVENTBUS, "worker", "shop:eventbus", "--processes", "2"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await _lines(process, "serving shop.handle, shop.audit", 2)
        first, second = psutil.Process(process.pid).children()
        first.kill()
        await process.line("a worker process ended with -9; it is replaced")
        await _lines(process, "serving shop.handle, shop.audit", 3)
        await publish(shop, 1)
        found = re.search(r"handled 1 (\d+)", await process.line("handled 1"))
        assert found is not None
        assert int(found[1]) != first.pid
        children = psutil.Process(process.pid).children()
        assert await process.interrupt(signal.SIGTERM, timeout=30) == 0
        assert [child for child in children if child.is_running()] == []
        assert not second.is_running()


async def _lines(process: Process, text: str, count: int) -> None:
    await eventually(lambda: process.output.count(text) >= count, timeout=30)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("shop", "expected module:name, as in myapp.main:eventbus, got 'shop'"),
        ("nowhere:eventbus", "there is no module 'nowhere' in "),
        ("shop:Made", "expected an EventBus at shop:Made, got ModelMetaclass"),
        ("shop:nothing", "expected an EventBus at shop:nothing, got NoneType"),
    ],
)
async def test_what_is_no_bus_is_an_error_of_one_line(shop: Path, target: str, reason: str) -> None:
    output = await fails(shop, target)
    assert reason in output
    assert "Traceback" not in output


async def test_a_queue_that_no_handler_is_of_is_named(shop: Path) -> None:
    assert "no handler is of the queue 'nix'; there are: audit, email" in await fails(
        shop, "shop:eventbus", "--queue", "nix"
    )


async def test_the_alive_file_is_touched_while_the_worker_works(shop: Path) -> None:
    file = shop / "alive"
    file.touch()  # of another process, before this one
    command = [*EVENTBUS, "worker", "shop:eventbus", "--alive-file", "alive"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await process.line("serving shop.handle")
        first = await eventually(lambda: file.stat().st_mtime_ns)
        await eventually(lambda: file.stat().st_mtime_ns > first)
        assert await process.interrupt(signal.SIGTERM) == 0
    assert not file.exists()


async def test_with_several_processes_the_alive_file_is_there_when_all_serve(shop: Path) -> None:
    file = shop / "alive"
    command = [*EVENTBUS, "worker", "shop:eventbus", "--processes", "2", "--alive-file", "alive"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await eventually(file.exists, timeout=30)
        assert process.output.count("serving shop.handle, shop.audit") == 2
        assert await process.interrupt(signal.SIGTERM, timeout=30) == 0
    assert not file.exists()


def test_the_file_of_a_process_is_fresh_for_some_seconds_after_each_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = WatchedFile(tmp_path / "alive")
    assert not file.is_fresh()
    file.path.touch()
    assert file.is_fresh()
    monkeypatch.setattr(alive, "FRESH_FOR", -1.0)
    assert not file.is_fresh()
    monkeypatch.undo()
    os.utime(file.path, ns=(0, 0))  # a clock that was set back
    assert file.is_fresh()


async def test_worker_processes_end_when_their_supervisor_is_killed(shop: Path) -> None:
    command = [*EVENTBUS, "worker", "shop:eventbus", "--processes", "2"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await _lines(process, "serving shop.handle, shop.audit", 2)
        children = psutil.Process(process.pid).children()
        assert await process.interrupt(signal.SIGKILL) == -9
        await eventually(lambda: not any(child.is_running() for child in children))
        assert process.output.count("the supervisor is gone; the worker ends") == 2


@pytest.mark.parametrize("grace", ["nan", "inf", "-1"])
async def test_a_grace_time_that_cannot_be_is_a_wrong_call(shop: Path, eventbus: Command, grace: str) -> None:
    done = eventbus("worker", "shop:eventbus", "--grace", grace)
    assert (done.code, "Invalid value for '--grace'" in done.error) == (2, True)


async def test_an_alive_file_that_cannot_be_written_is_one_line(shop: Path, eventbus: Command) -> None:
    done = eventbus("worker", "shop:eventbus", "--alive-file", str(shop / "nowhere" / "alive"))
    assert (done.code, "cannot write the alive file" in done.error) == (1, True)


async def test_the_garbage_collector_never_looks_at_what_was_imported(shop: Path) -> None:
    """A full collection took 0.2 s with the modules of an app, about every second under load."""
    command = [*EVENTBUS, "worker", "shop:eventbus", "--queue", "audit"]
    async with Process.running(command, cwd=shop, env=variables(shop)) as process:
        await process.line("serving")
        await publish(shop, 1)
        await process.line("audited frozen")
