"""`eventbus tail`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from pathlib import Path

import pytest

from eventbus_fastapi import EventBusClient
from eventbus_fastapi.cli.terminal import visible
from tests.cli.command_line import Command, Server
from tests.processes import EVENTBUS, Process
from tests.server.asking import app_of, bus_on
from tests.serving import serving


async def test_each_event_is_one_line_with_seq_time_topic_and_payload(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("chat.user1", "Hello"), ("user.created", {"id": 1}), ("image", b"\x00\x01")])

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "3", "--url", server.url)

    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "TIME", line) for line in lines] == [
        "1  TIME  chat.user1  Hello",
        '2  TIME  user.created  {"id":1}',
        "3  TIME  image  <2 bytes of application/octet-stream>",
    ]


async def test_acknowledged_events_are_shown_too(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a", "acknowledged"), ("a", "new")])
    url = server.url.replace("http", "ws") + "/ws"
    async with EventBusClient(url) as client, client.subscribe("a", start="earliest") as messages:
        await (await anext(messages)).ack()

    done = await asyncio.to_thread(eventbus, "tail", "a", "--from", "earliest", "-n", "2", "--url", server.url)

    assert [line.split()[-1] for line in done.out.splitlines()] == ["acknowledged", "new"]


async def test_each_event_is_one_line_of_json(eventbus: Command, server: Server) -> None:
    payload = "two\nlines \x1b[31m \x7f \x9b \u2028 \u202e ☃"
    receipt = await server.bus.publish("a", payload, key="k")

    done = await asyncio.to_thread(
        eventbus, "tail", "a", "--from", "earliest", "-n", "1", "--json", "--url", server.url
    )

    [line] = done.out.splitlines()
    assert line.isprintable()
    event = json.loads(line)
    assert (event["seq"], event["message_id"], event["key"]) == (1, str(receipt.message_id), "k")
    assert event["payload"] == payload


async def test_what_strangers_wrote_is_neither_obeyed_nor_read_as_markup(eventbus: Command, server: Server) -> None:
    await server.bus.publish("a", "[bold]x[/bold] :smile: \x1b]0;title\x07 \x9b31m \r\n 7  forged  line \u202eabc")

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "1", "--url", server.url)

    [line] = done.out.splitlines()
    assert line.isprintable()
    assert r"[bold]x[/bold] :smile: \x1b]0;title\x07 \x9b31m \r\n 7  forged  line \u202eabc" in line


async def test_a_terminal_gets_colours_for_the_columns_and_the_payload_as_it_is(
    eventbus: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    payload = "[bold]x[/bold] :smile: \x1b[31m http://example.org " + "y" * 300
    await server.bus.publish("chat.user1", payload)

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "1", "--url", server.url)

    [line] = done.out.splitlines()
    assert line.startswith("\x1b[1m1\x1b[0m  \x1b[2m")
    assert line.endswith("  \x1b[36mchat.user1\x1b[0m  " + visible(payload))


async def test_it_starts_after_a_seq_or_at_a_time_and_shows_what_matches(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a.x", 1), ("b.x", 2), ("a.y", 3)])

    async def shown(*arguments: str) -> list[str]:
        done = await asyncio.to_thread(eventbus, "tail", *arguments, "--url", server.url)
        return [line.split()[0] for line in done.out.splitlines()]

    assert await shown("a.*", "--from", "0", "-n", "2") == ["1", "3"]
    assert await shown("#", "--from", "1", "-n", "2") == ["2", "3"]
    assert await shown("#", "--from", "2020-01-01T00:00:00Z", "-n", "1") == ["1"]
    assert await shown("#", "--from", "2020-01-01", "-n", "1") == ["1"]


async def test_a_gap_is_told_and_the_rest_is_shown(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a", number) for number in range(5)])
    await server.bus.node.store.trim(before=None, keep=2)

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "2", "--url", server.url)

    assert [line.split()[0] for line in done.out.splitlines()] == ["4", "5"]
    assert done.err == "warning: events 1 to 3 are not available (retention)\n"


@pytest.mark.parametrize("pattern", ["a..b", "a*"])
async def test_a_bad_pattern_is_one_line(eventbus: Command, server: Server, pattern: str) -> None:
    done = await asyncio.to_thread(eventbus, "tail", pattern, "--url", server.url)

    assert done.code == 1
    assert f"invalid pattern '{pattern}'" in done.error


async def test_a_tail_goes_on_when_the_server_comes_back(tmp_path: Path) -> None:
    bus = bus_on(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(app_of(bus)) as first:
            command = [*EVENTBUS, "tail", "#", "--from", "0", "--url", first.http]
            await bus.publish("a", "before")
            tail = await stack.enter_async_context(Process.running(command, cwd=tmp_path))
            await tail.line("before")

        async with serving(app_of(bus), port=first.port):
            await bus.publish("a", "after")
            await tail.line("after")

    assert "Traceback" not in tail.output
