"""`eventbus forward` and `eventbus outbox`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from eventbus_fastapi import Outbox
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.forward_schema import ForwardTables
from tests.cli.command_line import Command, Done
from tests.outbox.reading import payloads, publish, until_forwarded
from tests.processes import EVENTBUS, Process
from tests.server.asking import app_of, bus_on
from tests.serving import serving
from tests.waiting import eventually


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/service.db"


@pytest.fixture
async def outbox(url: str) -> AsyncIterator[Outbox]:
    async with Outbox(url) as outbox:
        yield outbox


async def test_the_command_forwards_until_it_is_told_to_end(tmp_path: Path, url: str, outbox: Outbox) -> None:
    bus = bus_on(tmp_path)
    await publish(outbox, 1, 2)
    async with serving(app_of(bus)) as served:
        command = [*EVENTBUS, "forward", "--outbox", url, "--to", served.http, "--metrics-port", "0"]
        async with Process.running(command, cwd=tmp_path) as process:
            port = (await process.line("serving metrics on 127.0.0.1 port")).rpartition(" ")[2]
            await process.line("forwarding the outbox service to ws://127.0.0.1:")
            await until_forwarded(outbox)
            await publish(outbox, 3)
            await until_forwarded(outbox)
            assert await payloads(bus) == [1, 2, 3]

            async def are_counted() -> bool:
                async with httpx.AsyncClient(trust_env=False) as client:
                    text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
                return 'eventbus_forwarded_total{outbox="service"} 3.0' in text and "eventbus_outbox_waiting" in text

            await eventually(are_counted)
            assert await process.interrupt(signal.SIGTERM) == 0
            assert "Traceback" not in process.output
    async with outbox.engine.connect() as connection:
        lease = (await connection.execute(outbox.store.tables.lease.select())).one()
    assert (lease.token, lease.until) == (None, 0)


async def test_it_ends_within_its_grace_while_the_bus_is_away(tmp_path: Path, url: str, outbox: Outbox) -> None:
    await publish(outbox, 1)
    token = tmp_path / "token"
    token.write_text("secret\n")
    command = [*EVENTBUS, "forward", "--outbox", url, "--to", "ws://127.0.0.1:1/ws", "--token-file", str(token)]
    async with Process.running(command, cwd=tmp_path) as process:
        await process.line("forwarder paused: the bus has not answered for 1 events")
        assert await process.interrupt(signal.SIGTERM) == 0
        assert process.output.count("forwarder paused") == 1
        assert "secret" not in process.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "nowhere"], "--to: expected http(s)://"),
        (["--to", "ws://user:secret@bus.example:x/ws?token=secret"], "--to: expected http(s)://"),
        (["--to", "ws://user:se/cret@bus.example/ws?token=secret#x"], "--to: expected http(s)://"),
        (["--to", "ws://user:secret@bus.example/ws?token=secret#x"], "--to: expected no fragment"),
        (["--to", "ws://127.0.0.1:1/ws", "--token-file", "/nowhere/token"], "cannot read the token in /nowhere/token"),
        (["--to", "ws://bus.example/ws", "--token-file", "TOKEN"], "anybody on the way to bus.example can read it"),
        (["--to", "ws://127.0.0.1:1/ws", "--outbox", "nope"], "database URL cannot be read"),
        ([], "--to"),
    ],
)
def test_a_wrong_call_is_one_line(
    eventbus: Command, tmp_path: Path, url: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "TOKEN").write_text("secret")
    arguments = [str(tmp_path / "TOKEN") if each == "TOKEN" else each for each in arguments]
    done = eventbus("forward", *([] if "--outbox" in arguments else ["--outbox", url]), *arguments)

    assert done.code in (1, 2)
    assert words in done.error
    assert "secret" not in done.error
    assert "cret@" not in done.error


# --- looking after it ----------------------------------------------------------------------------


async def test_an_outbox_is_looked_at_and_the_refused_are_tried_again(
    tmp_path: Path, url: str, outbox: Outbox, eventbus: Command
) -> None:
    async def run(*arguments: str) -> Done:
        return await asyncio.to_thread(eventbus, "outbox", *arguments, "--outbox", url)

    bus = bus_on(tmp_path, max_payload=100, outboxes=[outbox])
    await publish(outbox, "x" * 101, "y" * 101, "z" * 101)
    assert (await run("status")).out.startswith("waiting=3 oldest=")
    assert await run("refused") == Done(0, "no refused events\n", "")
    async with bus:
        await until_forwarded(outbox)
    assert await run("status") == Done(0, "waiting=0 oldest=0.0s refused=3\n", "")

    table = (await run("refused")).out.splitlines()
    assert table[0].split() == ["id", "topic", "message_id", "bytes", "refused", "code", "reason"]
    assert "payload is 101 bytes, limit is 100" in table[1]
    refused = [json.loads(line) for line in (await run("refused", "--json", "-n", "2")).out.splitlines()]
    assert [each["code"] for each in refused] == ["payload.too_large"] * 2

    assert await run("discard", str(refused[0]["id"])) == Done(0, "discarded 1\n", "")
    assert await run("retry", str(refused[0]["id"]), str(refused[1]["id"])) == Done(0, "retried 1\n", "")
    assert await run("retry", "--all") == Done(0, "retried 1\n", "")
    assert json.loads((await run("status", "--json")).out)["waiting"] == 2
    assert (await run("retry")).error == "error: give ids, or --all (see eventbus outbox retry --help)"


def test_an_outbox_that_is_not_there_is_not_made(eventbus: Command, tmp_path: Path, url: str) -> None:
    assert "there is no database at" in eventbus("outbox", "status", "--outbox", url).error
    assert list(tmp_path.iterdir()) == []


# --- its tables ----------------------------------------------------------------------------------


def test_the_tables_of_an_outbox_are_created_checked_and_removed(eventbus: Command, database_url: str) -> None:
    def migrate(*arguments: str) -> Done:
        return eventbus("migrate", *arguments, "--outbox", database_url)

    head = migrations.head_revision(ForwardTables.history)
    assert migrate("current") == Done(0, "base (no tables)\n", "")
    assert "run `eventbus migrate upgrade --outbox URL`" in migrate("check").error
    assert migrate("upgrade") == migrate("upgrade") == migrate("current") == Done(0, f"{head}\n", "")
    assert migrate("check") == Done(0, f"the tables are at revision {head}, as needed\n", "")
    assert eventbus("outbox", "status", "--outbox", database_url).code == 0
    assert eventbus("migrate", "current", "--database-url", database_url).out == "base (no tables)\n"
    assert migrate("downgrade", "base") == Done(0, "base (no tables)\n", "")


def test_the_sql_of_an_outbox_is_printed(eventbus: Command) -> None:
    up = eventbus("migrate", "upgrade", "--sql", "--outbox", "postgresql+asyncpg://nobody@127.0.0.1:1/nothing")

    assert (up.code, "CREATE TABLE bus_forward_outbox" in up.out, "bus_event" in up.out) == (0, True, False)


def test_an_outbox_and_a_bus_are_not_both_meant(eventbus: Command, url: str) -> None:
    both = eventbus("migrate", "current", "--outbox", url, "--database-url", url)
    assert "give --outbox or --database-url, not both" in both.error
