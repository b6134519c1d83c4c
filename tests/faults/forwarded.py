"""Two services forward their outboxes into one bus while everything is killed: the log holds what was committed.

    python -m tests.faults.forwarded                     # 120 s of kills, the bus on every kind of database
    python -m tests.faults.forwarded --database sqlite --seconds 600

One service has its data in SQLite and forwards in its own process, the other has them in PostgreSQL (or MySQL, as
`--service` says) and two `eventbus forward` beside it, one of which works. The bus stands alone. Each of them is killed
with -9 at random and started again. At the end all are let finish: every committed event must be in the log, once, in
the order of its outbox, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from eventbus_fastapi import Outbox
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.forward_schema import ForwardTables
from tests.databases import open_factory
from tests.faults import command
from tests.faults.many_writers import read_log
from tests.faults.processes import Node, Process, Processes, prepare
from tests.faults.service import make_things, read_things
from tests.waiting import eventually


class Killed:
    """A program that is killed now and then, and started again."""

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self.process = start()
        self.kills = 0

    def kill(self) -> None:
        assert self.process.exit_code is None, f"it has ended by itself:\n{self.process.text()[-5_000:]}"
        self.process.kill()
        self.process = self._start()
        self.kills += 1


async def run(
    processes: Processes,
    database_url: str,
    own_url: str,
    directory: Path,
    *,
    seconds: float,
    kill_every: float = 1.0,
    pause: float = 0.01,
    timeout: float = 60.0,
) -> Mapping[str, Any]:
    """Run the case: the bus on `database_url`, one service on `own_url` and the other on SQLite.

    Raises:
        AssertionError: the log holds something else than what was committed, or in another order.
    """
    await prepare(database_url)
    bus = await processes.node(database_url, name="bus")
    with_sqlite = Outbox(f"sqlite+aiosqlite:///{directory}/service.db", busy_timeout=30)
    with_server = Outbox(own_url)
    outboxes = (with_sqlite, with_server)
    await migrations.run(Settings(database_url=own_url), ForwardTables(), migrations.upgrade)
    for outbox in outboxes:
        await outbox.start()
        await make_things(outbox)
    programs = _start(processes, bus, with_sqlite, with_server, pause)
    bus_kills = await _kill_at_random(bus, programs, seconds, kill_every)
    for name in ("service on SQLite", "service on a server"):
        programs[name].process.kill()
    # What the service on SQLite has not forwarded itself is forwarded beside it.
    rest = _forwarder(processes, "rest", str(with_sqlite.engine.url), bus)

    async def are_empty() -> bool:
        return not any([(await outbox.figures()).waiting for outbox in outboxes])

    began = time.monotonic()
    await eventually(are_empty, timeout)
    drained = time.monotonic() - began
    for forwarder in (programs["first forwarder"].process, programs["second forwarder"].process, rest):
        forwarder.kill()

    things = [await read_things(outbox) for outbox in outboxes]
    refused = [await outbox.refused() for outbox in outboxes]
    for outbox in outboxes:
        await outbox.stop()
    _check(await read_log(bus), things)
    assert refused == [[], []], f"the bus refused {refused}"
    return {
        "events committed (SQLite / server)": f"{len(things[0]):,} / {len(things[1]):,}",
        "events in the log": sum(map(len, things)),
        "kills of the bus": bus_kills,
        **{f"kills of the {name}": program.kills for name, program in programs.items()},
        "seconds until all was forwarded": drained,
    }


def _start(
    processes: Processes, bus: Node, with_sqlite: Outbox, with_server: Outbox, pause: float
) -> dict[str, Killed]:
    def service(name: str, outbox: Outbox, *forward: str) -> Callable[[], Process]:
        url = outbox.store.engine.url.render_as_string(hide_password=False)
        arguments = ["-m", "tests.faults.service", url, "--pause", str(pause), *forward]
        return lambda: processes.python(name, arguments)

    own_url = with_server.store.engine.url.render_as_string(hide_password=False)
    return {
        "service on SQLite": Killed(service("service-sqlite", with_sqlite, "--forward", bus.ws)),
        "service on a server": Killed(service("service-server", with_server)),
        "first forwarder": Killed(lambda: _forwarder(processes, "first", own_url, bus)),
        "second forwarder": Killed(lambda: _forwarder(processes, "second", own_url, bus)),
    }


def _forwarder(processes: Processes, name: str, url: str, bus: Node) -> Process:
    arguments = ["-m", "eventbus_fastapi.cli", "forward", "--outbox", url, "--to", bus.ws]
    return processes.python(f"forwarder-{name}", arguments)


async def _kill_at_random(bus: Node, programs: Mapping[str, Killed], seconds: float, every: float) -> int:
    """Kill one of them after the other, each soon after it was started at times; return how often it was the bus."""
    chance = random.Random()
    until = time.monotonic() + seconds
    bus_kills = 0
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0, 2 * every))
        chosen = chance.choice([None, *programs])
        if chosen is None:
            bus.kill()
            await asyncio.sleep(chance.uniform(0, every))  # it is away for some time
            await bus.start()
            bus_kills += 1
        else:
            programs[chosen].kill()
    return bus_kills


def _check(log: Sequence[tuple[int, str]], things: Sequence[list[UUID]]) -> None:
    assert [seq for seq, _ in log] == list(range(1, len(log) + 1)), "the seqs are not dense"
    places = {UUID(message_id): seq for seq, message_id in log}
    assert len(places) == len(log), "an event is in the log twice"
    committed = {thing for of_service in things for thing in of_service}
    assert not committed - places.keys(), f"{len(committed - places.keys())} committed events are missing"
    assert not places.keys() - committed, f"{len(places.keys() - committed)} events were never committed"
    for of_service in things:
        seqs = [places[thing] for thing in of_service]
        assert seqs == sorted(seqs), "the events of a service are not in the order of its transactions"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=120, help="how long things are killed")
    parser.add_argument("--kill-every", type=float, default=1.0, help="seconds between two kills, on average")
    parser.add_argument("--service", choices=("postgresql", "mysql"), default="postgresql", help="the second one's")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    with open_factory(options.service, processes.directory / "service") as factory:
        own_url = factory.create()
        try:
            return await run(
                processes,
                database_url,
                own_url,
                processes.directory,
                seconds=options.seconds,
                kill_every=options.kill_every,
                timeout=300,
            )
        finally:
            factory.drop(own_url)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
