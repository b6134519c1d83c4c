"""`eventbus publish`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
from fastapi import Depends, FastAPI

from tests.cli.command_line import Command, Done, Server, url_in
from tests.server.asking import bus_on
from tests.serving import serving

ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"


@pytest.mark.parametrize(
    ("arguments", "stdin", "payload", "content_type"),
    [
        (["Hello"], b"", "Hello", "text/plain"),
        (['{"id": 1}'], b"", {"id": 1}, "application/json"),
        (["42"], b"", 42, "application/json"),
        (["null"], b"", None, "application/json"),
        (['"Hello"'], b"", "Hello", "application/json"),
        (["42", "--text"], b"", "42", "text/plain"),
        (["42", "--json"], b"", 42, "application/json"),
        (["NaN"], b"", "NaN", "text/plain"),
        ([""], b"", "", "text/plain"),
        (["é ☃"], b"", "é ☃", "text/plain"),
        (["-"], b'[1, "\xc3\xa9"]\n', [1, "é"], "application/json"),
        (["-"], b"two\nlines\n", "two\nlines\n", "text/plain"),
        (["--", "-5"], b"", -5, "application/json"),
    ],
)
async def test_a_payload_that_parses_as_json_is_json_else_text(
    eventbus: Command, server: Server, arguments: list[str], stdin: bytes, payload: object, content_type: str
) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "--url", server.url, "a", *arguments, stdin=stdin)

    assert done.code == 0, done.err
    [message] = await server.log()
    assert (message.payload, message.content_type) == (payload, content_type)
    assert done == Done(0, f"seq=1 message_id={message.message_id}\n", "")


async def test_an_event_is_published_with_everything_that_it_carries(eventbus: Command, server: Server) -> None:
    command = ["publish", "a.b", "1", "--key", "k", "--message-id", ID, "--ttl", "60", "--url", server.url]

    first = await asyncio.to_thread(eventbus, *command)
    again = await asyncio.to_thread(eventbus, *command)

    assert first.out == f"seq=1 message_id={ID}\n"
    assert again.out == f"seq=1 message_id={ID} duplicate=true\n"
    [message] = await server.log()
    assert (message.topic, message.key, message.message_id) == ("a.b", "k", UUID(ID))
    assert message.expires_at == message.created_at + 60_000_000


async def test_the_url_may_be_that_of_the_websocket(eventbus: Command, server: Server) -> None:
    url = server.url.replace("http", "ws") + "/ws"

    assert (await asyncio.to_thread(eventbus, "publish", "a", "1", "--url", url)).code == 0


async def test_the_query_of_the_url_goes_along(eventbus: Command, tmp_path: Path) -> None:
    app, tokens = FastAPI(), list[str]()

    def guard(token: str) -> None:
        tokens.append(token)

    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])
    async with serving(app) as served:
        for url in (f"{served.http}/?token=1", f"{served.ws}?token=2"):
            assert (await asyncio.to_thread(eventbus, "publish", "a", "1", "--url", url)).code == 0
    assert tokens == ["1", "2"]


async def test_an_event_goes_straight_into_a_database(eventbus: Command, tmp_path: Path) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "a", "Hello", "--database-url", url_in(tmp_path))

    async with bus_on(tmp_path) as bus:
        message = (await bus.get(1)).message
    assert done == Done(0, f"seq=1 message_id={message.message_id}\n", "")
    assert message.payload == "Hello"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a..b", "1"], ["invalid topic 'a..b'"]),
        (["a\x1b[31m", "1"], [r"a\x1b[31m"]),
        (["a", "{", "--json"], ["not JSON"]),
        (["a", "1", "--message-id", "1"], ["message_id", "UUID"]),
        (["a", "1", "--ttl", "-1"], ["ttl"]),
        (["a", "1", "--key", ""], ["key"]),
    ],
)
async def test_an_event_that_cannot_be_published_is_one_line_and_exit_code_1(
    eventbus: Command, server: Server, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    remote = await asyncio.to_thread(eventbus, "publish", *arguments, "--url", server.url)
    local = await asyncio.to_thread(eventbus, "publish", *arguments, "--database-url", url_in(tmp_path))

    for done in (remote, local):
        assert done.code == 1
        for word in words:
            assert word in done.error
    assert await server.log() == []


async def test_text_that_is_not_utf_8_is_refused(eventbus: Command, server: Server) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "a", "-", "--url", server.url, stdin=b"\xff")

    assert done.code == 1
    assert "UTF-8" in done.error
