"""`eventbus queues` and `eventbus workers`, beside a bus on the same database."""

from __future__ import annotations

import json

import pytest

from eventbus_fastapi.store.roster import Serving
from tests.cli.command_line import Beside, Done


async def serve(beside: Beside) -> None:
    """Have a process on the roster that serves a queue."""
    served = {"email": Serving(5, 3, False, ("mail",))}
    await beside.bus.node.store.roster.see("web-1-4711", served, host="web-1", pid=4711, age=60)


@pytest.mark.databases("sqlite")
async def test_queues_are_shown_and_changed_while_they_are_served(beside: Beside) -> None:
    assert await beside.run("queues") == Done(0, "no queues\n", "")
    await serve(beside)
    assert await beside.run("queues", "pause", "email") == Done(0, "queue 'email' is paused\n", "")
    scaled = await beside.run("queues", "scale", "email", "10")
    assert scaled == Done(0, "queue 'email' has 10 workers in each process\n", "")

    header, row = (await beside.run("queues")).out.splitlines()
    assert header.split() == ["queue", "workers", "processes", "busy", "groups"]
    assert row.split() == ["email", "10", "1", "3", "mail", "scaled", "paused"]
    (line,) = (await beside.run("queues", "--json")).out.splitlines()
    assert json.loads(line) == {
        "name": "email",
        "workers": 10,
        "scaled": True,
        "paused": True,
        "processes": 1,
        "busy": 3,
        "groups": ["mail"],
    }

    assert await beside.run("queues", "resume", "email") == Done(0, "queue 'email' goes on\n", "")
    default = await beside.run("queues", "scale", "email", "default")
    assert default.out == "queue 'email' has as many workers as its program says in each process\n"
    assert (await beside.bus.queues.queue("email"))[1:4] == (5, False, False)


@pytest.mark.databases("sqlite")
async def test_a_queue_that_no_process_serves_is_changed_with_a_warning(beside: Beside) -> None:
    done = await beside.run("queues", "pause", "emial")
    assert done == Done(0, "queue 'emial' is paused\n", "warning: no process serves queue 'emial' now\n")


@pytest.mark.databases("sqlite")
async def test_a_queue_that_cannot_be_is_one_line(beside: Beside) -> None:
    done = await beside.run("queues", "pause", "a b")
    assert (done.code, "the name of a queue must be 1 to 255 bytes" in done.error) == (1, True)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("count", ["0", "1001", "many", "9" * 5_000])
async def test_a_number_of_workers_that_cannot_be_is_a_wrong_call(beside: Beside, count: str) -> None:
    done = await beside.run("queues", "scale", "email", count)
    assert done.code == 2
    assert "expected 1 to 1,000 or default" in done.error


@pytest.mark.databases("sqlite")
async def test_workers_are_shown_with_their_age(beside: Beside) -> None:
    assert await beside.run("workers") == Done(0, "no workers\n", "")
    await serve(beside)
    header, row = (await beside.run("workers")).out.splitlines()
    assert header.split() == ["worker", "started", "seen", "queues"]
    assert row.split() == ["web-1-4711", "60", "s", "ago", "0", "s", "ago", "email", "3/5"]
    (line,) = (await beside.run("workers", "--json")).out.splitlines()
    worker = json.loads(line)
    assert (worker["id"], worker["alive"], worker["queues"]["email"]["busy"]) == ("web-1-4711", True, 3)
