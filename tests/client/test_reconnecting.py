"""What happens when a connection ends, and when there is none to be had."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
from dataclasses import replace
from http import HTTPStatus
from uuid import UUID

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from eventbus_fastapi.client import EventBusClient
from eventbus_fastapi.errors import ConnectionLost, ConnectionRefused, LogGap, NotRunning, RemoteError
from tests.client.scripted import EPOCH, Peer, ScriptedServer, error, event, scripted_server
from tests.waiting import eventually

OTHER_EPOCH = UUID("00000000-0000-4000-8000-000000000002")


def bye(code: str, *, reconnect: bool, after: float = 0.0) -> dict[str, object]:
    return {"type": "bye", "error": error(code), "reconnect": reconnect, "after": after}


async def everything_arrived(client: EventBusClient, peer: Peer) -> None:
    """Wait until the client has read all that the peer has sent: frames are read in order."""
    publish = asyncio.create_task(client.publish("t", "are you there?"))
    await peer.published(await peer.expect("publish"), 1_000)
    await publish


# --- coming back ---


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000, 4099, 4100, 4101, 4500, 4599, None])
async def test_the_client_comes_back_after(server: ScriptedServer, client: EventBusClient, code: int | None) -> None:
    publish = asyncio.create_task(client.publish("t", 1))
    peer = await server.welcome()
    if code is None:
        peer.drop()
    else:
        await peer.close(code)
    peer = await server.welcome()
    await peer.published(await peer.expect("publish"), 1)
    assert (await publish).seq == 1


@pytest.mark.parametrize("code", [4400, 4401, 4403, 4413, 4429])
async def test_the_client_stays_away_after(server: ScriptedServer, client: EventBusClient, code: int) -> None:
    publish = asyncio.create_task(client.publish("t", 1))
    reading = asyncio.ensure_future(anext(client.subscribe("t")))
    peer = await server.welcome()
    await peer.close(code, "because")
    for waiting in (publish, reading):
        with pytest.raises(ConnectionRefused, match=f"{code} because"):
            await waiting
    with pytest.raises(ConnectionRefused):
        await client.publish("t", 2)
    assert server.accepted == 1


async def test_a_bye_may_ask_to_stay_away(server: ScriptedServer, client: EventBusClient) -> None:
    connecting = asyncio.create_task(client.publish("t", 1))
    peer = await server.welcome()
    await peer.send(bye("feature.unsupported", reconnect=False))
    await peer.close(1000)
    with pytest.raises(ConnectionRefused, match=r"feature\.unsupported"):
        await connecting


async def test_a_bye_may_ask_for_time(
    server: ScriptedServer, client: EventBusClient, caplog: pytest.LogCaptureFixture
) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome()
    await connecting
    await peer.send(bye("server.stopping", reconnect=True, after=3600))
    await peer.close(1012)
    await server.welcome()  # no later than max_reconnect_interval and its jitter, though
    assert "no connection to" in caplog.text


@pytest.mark.parametrize("after", ["NaN", "Infinity", "-Infinity", "-5"])
async def test_a_bye_that_asks_for_no_time_that_there_is_asks_for_none(server: ScriptedServer, after: str) -> None:
    config = server.config(reconnect_interval=0.001, max_reconnect_interval=3600)
    async with EventBusClient(config) as client:
        connecting = asyncio.create_task(client.wait_connected())
        peer = await server.welcome()
        await connecting
        frame = {"type": "bye", "error": error("server.stopping"), "reconnect": True}
        await peer.send_text(f'{json.dumps(frame)[:-1]}, "after": {after}}}')
        await peer.close(1012)
        async with asyncio.timeout(5):
            await server.welcome()


async def test_a_server_that_welcomes_and_closes_is_asked_ever_less_often(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def pauses() -> list[float]:
        return [record.args[-1] for record in caplog.records if "next attempt" in record.msg]  # type: ignore[index,misc]

    async with EventBusClient(server.config(reconnect_interval=0.001, max_reconnect_interval=0.1)) as client:
        subscription = client.subscribe("t")
        while not any(pause > 0.01 for pause in pauses()):
            await (await server.welcome()).close(1012)
        await subscription.aclose()
    assert pauses()[0] <= 0.001


# --- subscriptions ---


async def test_a_subscription_resumes_after_what_was_taken_not_what_arrived(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    assert (await peer.subscribed(after=5))["from"] == "now"
    await peer.send(event(6), event(7), event(9))
    assert (await anext(subscription)).seq == 6
    peer.drop()
    peer = await server.welcome()
    again = await peer.subscribed(after=6)
    assert (again["from"], again["epoch"], again["sub"]) == (6, str(EPOCH), 1)
    await peer.send(event(7), event(9), event(10))
    assert [(await anext(subscription)).seq for _ in range(3)] == [7, 9, 10]


async def test_before_any_event_it_resumes_after_the_first_ok(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=5)
    await subscription.wait_started()
    peer.drop()
    peer = await server.welcome()
    assert (await peer.expect("subscribe"))["from"] == 5


async def test_before_any_ok_it_asks_again_for_what_it_asked(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t", start="earliest")
    peer = await server.welcome()
    await peer.expect("subscribe")
    peer.drop()
    peer = await server.welcome()
    assert (await peer.subscribed(after=0))["from"] == "earliest"
    await subscription.aclose()


async def test_what_has_arrived_may_be_taken_while_there_is_no_connection(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=0)
    await peer.send(event(1), event(2))
    assert (await anext(subscription)).seq == 1
    await server.stop()
    await eventually(lambda: not client.connected)
    assert (await anext(subscription)).seq == 2
    await server.start()
    peer = await server.welcome()
    assert (await peer.expect("subscribe"))["from"] == 2


async def test_a_log_that_was_recreated_is_a_gap_and_read_from_its_beginning(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t", after=100)
    peer = await server.welcome()
    await peer.subscribed(after=100)
    await peer.send(event(101))
    await anext(subscription)
    peer.drop()
    for _ in range(2):  # the gap is reported again as long as the program has not seen it
        peer = await server.welcome(epoch=OTHER_EPOCH)
        again = await peer.subscribed(after=0)
        assert (again["from"], again["epoch"]) == (101, str(EPOCH))
        await peer.send({"type": "gap", "sub": 1, "first_seq": 102, "last_seq": 0, "reason": "epoch"}, event(1))
        if server.accepted == 2:
            await everything_arrived(client, peer)
            peer.drop()
    with pytest.raises(LogGap) as caught:
        await anext(subscription)
    assert caught.value.reason == "epoch"
    assert (subscription.position, subscription.epoch) == (0, OTHER_EPOCH)
    assert (await anext(subscription)).seq == 1
    peer.drop()
    peer = await server.welcome(epoch=OTHER_EPOCH)
    again = await peer.expect("subscribe")
    assert (again["from"], again["epoch"]) == (1, str(OTHER_EPOCH))


async def test_a_subscription_that_was_too_slow_begins_again(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=0)
    await peer.send(event(1), event(2), {"type": "closed", "sub": 1, "error": error("subscriber.slow", retry=True)})
    assert (await anext(subscription)).seq == 1
    again = await peer.subscribed(after=1)
    assert again["from"] in (1, 2)  # whether 2 was taken before it was asked for again is a race that nobody loses
    await peer.send(*(event(seq) for seq in range(again["from"] + 1, 4)))
    assert [(await anext(subscription)).seq for _ in range(2)] == [2, 3]


async def test_a_subscription_that_the_server_ended_for_good_raises(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=0)
    await peer.send(event(1), {"type": "closed", "sub": 1, "error": error("forbidden", status=403)})
    assert (await anext(subscription)).seq == 1
    for _ in range(2):
        with pytest.raises(RemoteError, match="this is forbidden"):
            await anext(subscription)
    publish = asyncio.create_task(client.publish("t", 1))
    await peer.published(await peer.expect("publish"), 1)
    await publish


async def test_an_ended_subscription_is_not_asked_for_again(server: ScriptedServer, client: EventBusClient) -> None:
    first, second = client.subscribe("a"), client.subscribe("b")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.subscribed()
    await first.aclose()
    await peer.expect("unsubscribe")
    peer.drop()
    peer = await server.welcome()
    assert (await peer.subscribed())["patterns"] == ["b"]
    await second.aclose()


# --- giving up ---


async def test_connecting_gives_up_after_max_retries() -> None:
    async with scripted_server() as server:
        config = server.config(max_retries=2)
    with pytest.raises(ConnectionLost, match="after 2 retries"):
        await EventBusClient.connect(config)


async def test_giving_up_is_raised_to_all_who_wait_and_the_next_call_tries_again() -> None:
    async with scripted_server() as server:
        config = server.config(max_retries=1)
    async with EventBusClient(config) as client:
        subscription = client.subscribe("t", after=3)
        waiting = [
            asyncio.ensure_future(anext(subscription)),
            asyncio.create_task(client.publish("t", 1)),
            asyncio.create_task(client.wait_connected()),
        ]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, ConnectionLost)
        await server.start()
        try:
            reading = asyncio.ensure_future(anext(subscription))
            peer = await server.welcome()
            assert (await peer.subscribed(after=3))["from"] == 3
            await peer.send(event(4))
            assert (await reading).seq == 4
        finally:
            await client.close()
            await server.stop()


async def test_a_connection_that_opened_starts_the_count_anew(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_retries=1)) as client:
        publish = asyncio.create_task(client.publish("t", 1))
        for _ in range(5):
            peer = await server.welcome()
            await peer.expect("publish")
            peer.drop()
        peer = await server.welcome()
        await peer.published(await peer.expect("publish"), 1)
        await publish


async def test_a_connection_that_ends_before_its_welcome_counts_as_failed(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_retries=1)) as client:
        connecting = asyncio.create_task(client.wait_connected())
        for _ in range(2):
            await (await server.accept()).close(1012)
        with pytest.raises(ConnectionLost):
            await connecting


async def test_connect_returns_a_client_that_is_connected(server: ScriptedServer) -> None:
    connecting = asyncio.create_task(EventBusClient.connect(server.config()))
    await server.welcome()
    client = await connecting
    assert client.connected
    assert repr(client) == f"<EventBusClient {server.url} connected>"
    await client.close()
    assert repr(client) == f"<EventBusClient {server.url} closed>"
    with pytest.raises(NotRunning):
        await client.wait_connected()


# --- servers that do not want us, or do not speak to us ---


async def test_a_server_without_the_subprotocol_is_refused_clearly() -> None:
    async with scripted_server(subprotocols=None) as server:
        with pytest.raises(ConnectionRefused, match=r"does not speak eventbus\.v1"):
            await EventBusClient.connect(server.config())


async def test_a_server_that_selects_another_subprotocol_is_refused() -> None:
    def select(connection: ServerConnection, offered: object) -> Subprotocol:
        return Subprotocol("eventbus.v9")

    async with scripted_server(select_subprotocol=select, subprotocols=["eventbus.v9"]) as server:
        with pytest.raises(ConnectionRefused):
            await EventBusClient.connect(server.config())


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_an_http_error_of_ours_ends_it(status: int) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(HTTPStatus(status), "no")

    async with scripted_server(process_request=refuse) as server:
        with pytest.raises(ConnectionRefused, match=f"HTTP {status}"):
            await EventBusClient.connect(server.config())


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_an_http_error_of_the_server_s_is_tried_again(status: int) -> None:
    statuses = [status, status]

    def refuse_twice(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(HTTPStatus(statuses.pop()), "later") if statuses else None

    async with scripted_server(process_request=refuse_twice) as server, EventBusClient(server.config()) as client:
        connecting = asyncio.create_task(client.wait_connected())
        await server.welcome()
        await connecting


async def test_a_proxy_that_cannot_be_used_ends_it_without_showing_its_password(server: ScriptedServer) -> None:
    with pytest.raises(ConnectionRefused, match="InvalidProxy") as caught:
        await EventBusClient.connect(server.config(proxy="http://user:secret@proxy/path"))
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no proxy, and no exception from one."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variable", "proxy", "said"),
    [
        pytest.param(
            "SOCKS_PROXY",
            "socks5://127.0.0.1:1",
            "requires python-socks",
            marks=pytest.mark.skipif(importlib.util.find_spec("python_socks") is not None, reason="it is installed"),
        ),
        ("WS_PROXY", "http://a..b:1", "label empty or too long"),
        ("WS_PROXY", f"http://{'a' * 64}:1", "label too long"),
        ("WS_PROXY", "http://host:port", "Port could not be cast"),
    ],
)
async def test_a_proxy_of_the_environment_that_cannot_be_used_ends_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str, said: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(ConnectionRefused, match=said):
        await EventBusClient.connect(server.config(proxy=True))


async def test_headers_reach_the_server() -> None:
    async with (
        scripted_server() as server,
        EventBusClient(server.config(headers={"Authorization": "Bearer x"})) as client,
    ):
        connecting = asyncio.create_task(client.wait_connected())
        peer = await server.welcome()
        await connecting
        assert peer.socket.request is not None
        assert peer.socket.request.headers["Authorization"] == "Bearer x"


# --- heartbeats ---


async def test_an_idle_client_pings(server: ScriptedServer, client: EventBusClient) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome(heartbeat=0.2)
    await connecting
    for _ in range(3):
        await peer.expect("ping")
        await peer.send({"type": "pong"})
    assert client.connected


async def test_a_silent_server_is_left(
    server: ScriptedServer, client: EventBusClient, caplog: pytest.LogCaptureFixture
) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    await server.welcome(heartbeat=0.05)
    await connecting
    await server.welcome()
    assert "silent for too long" in caplog.text


async def test_heartbeats_keep_a_connection(server: ScriptedServer, client: EventBusClient) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome(heartbeat=0.2)
    await connecting
    for _ in range(5):
        await peer.expect("ping")
        await peer.send({"type": "heartbeat", "head": 0})
    assert (client.connected, server.accepted) == (True, 1)


async def test_a_server_that_never_says_welcome_is_left(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(open_timeout=0.1)) as client:
        connecting = asyncio.create_task(client.wait_connected())
        await server.accept()
        client.config = replace(client.config, open_timeout=10.0)  # for the next one
        await server.welcome()
        await connecting


async def test_connecting_and_leaving_are_logged(
    server: ScriptedServer, client: EventBusClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "eventbus_fastapi.client")
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome()
    await connecting
    await peer.close(4100, "slow")
    await server.welcome()
    messages = [record.getMessage() for record in caplog.records if record.name == "eventbus_fastapi.client"]
    assert messages[0] == f"connected to {server.url}"
    assert messages[1].startswith(f"no connection to {server.url} (4100 slow), next attempt in 0.0")
