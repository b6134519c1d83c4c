"""The token of a client: shown to its server alone, renewed in good time, and no reason to come back for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from eventbus_fastapi import ClientConfig, EventBusClient
from eventbus_fastapi.auth import Principal, bearer_token
from eventbus_fastapi.errors import ConnectionRefused, SettingsError
from tests.security.guarded import serving_guarded
from tests.server.sockets import ServedBus
from tests.waiting import eventually

SECRET = "tok-secret-1234567890"


class Issuer:
    """Gives tokens, and knows them for as long as they last: from their first use on, as a slow machine comes late."""

    def __init__(self, lifetime: float = 3_600) -> None:
        self.lifetime = lifetime
        self.given: list[str] = []
        self.seen: list[str] = []
        self._lifetimes: dict[str, float] = {}
        self._ends: dict[str, datetime] = {}

    def token(self) -> str:
        token = f"{SECRET}-{len(self.given)}"
        self.given.append(token)
        self._lifetimes[token] = self.lifetime
        return token

    async def authenticate(self, connection: HTTPConnection) -> Principal | None:
        token = bearer_token(connection) or ""
        self.seen.append(token)
        if token not in self._lifetimes:
            return None
        end = datetime.now(UTC) + timedelta(seconds=self._lifetimes[token])
        return Principal("shop", publish=["#"], subscribe=["#"], expires_at=self._ends.setdefault(token, end))


def config(served: ServedBus, **options: Any) -> ClientConfig:
    return ClientConfig(url=served.served.ws, reconnect_interval=0.01, **options)


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def served(tmp_path: Path, issuer: Issuer) -> AsyncIterator[ServedBus]:
    async with serving_guarded(tmp_path, issuer.authenticate, recheck_interval=3_600) as served:
        yield served


def sync_source(issuer: Issuer) -> Any:
    return issuer.token


def async_source(issuer: Issuer) -> Any:
    async def token() -> str:
        return issuer.token()

    return token


def text_source(issuer: Issuer) -> Any:
    return issuer.token()


@pytest.mark.parametrize("source", [text_source, sync_source, async_source])
async def test_a_client_shows_its_token(served: ServedBus, issuer: Issuer, source: Callable[[Issuer], Any]) -> None:
    async with EventBusClient(config(served), token=source(issuer)) as client:
        await client.publish("a", 1)
    assert issuer.seen == issuer.given


async def test_a_callable_is_asked_for_each_connection(served: ServedBus, issuer: Issuer) -> None:
    for _ in range(2):
        async with EventBusClient(config(served, token=issuer.token)) as client:
            await client.wait_connected()
    assert len(issuer.seen) == len(set(issuer.seen)) == 2


async def test_a_token_is_renewed_before_its_end_without_a_new_connection(served: ServedBus, issuer: Issuer) -> None:
    issuer.lifetime = 2.0
    async with EventBusClient(config(served, token=issuer.token)) as client:
        await client.wait_connected()
        connection = client._connection
        async with client.subscribe("a") as messages:
            await eventually(lambda: len(issuer.seen) >= 3)
            await client.publish("a", 1)
            assert (await asyncio.wait_for(anext(messages), 10)).payload == 1
        assert client._connection is connection


async def test_a_client_that_was_away_when_its_token_ended_comes_back_with_another(
    served: ServedBus, issuer: Issuer
) -> None:
    issuer.lifetime = 0.4  # over before the shortest renewal
    async with (
        EventBusClient(config(served, token=issuer.token)) as client,
        client.subscribe("a", start="earliest") as messages,
    ):
        await eventually(lambda: len(issuer.given) >= 2)
        issuer.lifetime = 3_600
        await client.publish("a", 1)
        assert (await asyncio.wait_for(anext(messages), 10)).payload == 1


@pytest.mark.parametrize("is_callable", [False, True])
async def test_a_token_that_the_server_does_not_know_ends_the_client(
    served: ServedBus, issuer: Issuer, is_callable: bool
) -> None:
    token: Any = (lambda: "wrong-token") if is_callable else "wrong-token"
    async with EventBusClient(config(served, token=token)) as client:
        with pytest.raises(ConnectionRefused) as refused:
            await client.publish("a", 1)
    assert "401" in str(refused.value)
    assert "wrong-token" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert len(issuer.seen) == (2 if is_callable else 1), "once more with a fresh one, where there may be one"


async def test_a_text_that_has_expired_ends_the_client(served: ServedBus, issuer: Issuer) -> None:
    issuer.lifetime = 0.5
    async with EventBusClient(config(served, token=issuer.token())) as client:
        with pytest.raises(ConnectionRefused, match="4401"):
            async for _ in client.subscribe("a"):
                pass
    assert len(issuer.seen) == 1


async def test_a_callable_that_fails_is_asked_again(
    served: ServedBus, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    failures: Iterator[ValueError | str] = iter([ValueError(SECRET), "no token, as it has spaces"])

    def token() -> str:
        failure = next(failures, None)
        if isinstance(failure, ValueError):
            raise failure
        return failure or issuer.token()

    with caplog.at_level(logging.DEBUG, logger="eventbus_fastapi.client"):
        async with EventBusClient(config(served, token=token)) as client:
            await client.publish("a", 1)
    assert "there is no token: ValueError" in caplog.text
    assert SECRET not in caplog.text
    assert "spaces" not in caplog.text


async def test_a_token_is_not_shown_to_where_the_server_redirects(issuer: Issuer) -> None:
    seen: list[str | None] = []

    async def ignore(socket: ServerConnection) -> None:
        await socket.wait_closed()

    def note(connection: ServerConnection, request: Request) -> None:
        seen.append(request.headers.get("Authorization"))

    async with serve(ignore, "127.0.0.1", 0, process_request=note) as other:
        port = other.sockets[0].getsockname()[1]

        def redirect(connection: ServerConnection, request: Request) -> Response:
            answer = connection.respond(307, "")
            answer.headers["Location"] = f"ws://127.0.0.1:{port}/ws"
            return answer

        async with serve(ignore, "127.0.0.1", 0, process_request=redirect) as first:
            url = f"ws://127.0.0.1:{first.sockets[0].getsockname()[1]}/ws"
            async with EventBusClient(url, token=SECRET) as client:
                with pytest.raises(ConnectionRefused, match="redirects to another one"):
                    await client.wait_connected()
    assert seen == []


@pytest.mark.parametrize("url", ["ws://bus.example/ws", "ws://10.0.0.1/ws", "ws://127.0.0.1.evil.example/ws"])
def test_a_token_goes_over_the_net_encrypted_unless_told_otherwise(url: str) -> None:
    with pytest.raises(SettingsError, match="allow_insecure=True") as refused:
        EventBusClient(url, token=SECRET)
    assert SECRET not in str(refused.value)
    EventBusClient(ClientConfig(url=url, token=SECRET, allow_insecure=True))
    EventBusClient(url.replace("ws:", "wss:"), token=SECRET)


@pytest.mark.parametrize("url", ["ws://127.0.0.1:3000/ws", "ws://localhost/ws", "ws://[::1]:3000/ws"])
def test_nobody_is_on_the_way_to_this_machine(url: str) -> None:
    EventBusClient(url, token=SECRET)


@pytest.mark.parametrize("token", ["", "two words", "t\n", "tök", 5, b"x", "x" * 9_000])
def test_what_can_be_no_token_is_refused_and_not_quoted(token: Any) -> None:
    with pytest.raises(SettingsError, match="token: expected") as refused:
        ClientConfig(token=token)
    assert not token or repr(token) not in str(refused.value)


def test_a_token_is_not_shown() -> None:
    configured = ClientConfig(token=SECRET)
    assert SECRET not in repr(configured) + str(configured) + repr(EventBusClient(configured))


def test_a_token_and_a_header_that_says_another_are_refused() -> None:
    with pytest.raises(SettingsError, match="got both"):
        ClientConfig(token=SECRET, headers={"authorization": "Bearer other"})
