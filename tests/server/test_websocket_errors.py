"""What a client does wrong gets an error frame, and costs nobody anything else."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from eventbus_fastapi.app import create_app
from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.settings import Settings
from tests.server.sockets import IMPLEMENTATIONS, Peer, ServedBus, peer, serving_bus
from tests.serving import serving


@pytest.fixture
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[ServedBus]:
    server = {"ws": getattr(request, "param", "auto"), "ws_max_size": 200_000}
    async with serving_bus(
        tmp_path, server=server, max_frame=100_000, max_payload=50_000, max_batch=10, max_subscriptions=2
    ) as served:
        yield served


@pytest.fixture
async def client(served: ServedBus) -> AsyncIterator[Peer]:
    async with served.v1() as client:
        await client.next_of("welcome")
        yield client


whatever_speaks_websocket = pytest.mark.parametrize("served", IMPLEMENTATIONS, indirect=True)

EVENT = {"topic": "a", "payload": 1}


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("nonsense", "frame.bad"),
        ("[" * 10_000, "frame.bad"),
        ('{"type":"publish","data":{"topic":"a","payload":NaN}}', "frame.bad"),
        ({"type": "ack", "seq": "abc"}, "frame.bad"),
        ({"type": "drop_tables"}, "frame.unknown_type"),
        (b'{"type":"ping"}', "frame.binary"),
        ("x" * 100_001, "frame.too_large"),
        ({"type": "publish", "data": {**EVENT, "topic": "orders."}}, "topic.invalid"),
        ({"type": "subscribe", "pattern": "a..b"}, "pattern.invalid"),
        ({"type": "publish", "data": {**EVENT, "content_type": "?"}}, "payload.invalid"),
        ({"type": "publish", "data": {**EVENT, "message_id": "17"}}, "event.invalid"),
        ({"type": "publish", "data": {**EVENT, "payload": "x" * 50_001}}, "payload.too_large"),
        ({"type": "publish_batch", "messages": [EVENT] * 11}, "batch.too_large"),
        ({"type": "unsubscribe", "sub": 5}, "subscription.unknown"),
        ({"type": "credit", "sub": 5, "credit": 1}, "subscription.unknown"),
        ({"type": "ack", "sub": 5, "up_to": 1}, "subscription.unknown"),
        ({"type": "ack", "seq": 1_000}, "event.not_found"),
        ({"type": "nack", "sub": 5, "seq": 1}, "subscription.unknown"),
        ({"type": "extend", "seq": 1}, "feature.unsupported"),
    ],
)
@pytest.mark.parametrize("dialect", ["plain", "v1"])
@whatever_speaks_websocket
async def test_a_bad_frame_is_answered_and_the_connection_kept(
    served: ServedBus, dialect: str, frame: Any, code: str
) -> None:
    async with served.plain() if dialect == "plain" else served.v1() as client:
        await client.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)
        error = await client.next_of("error")

        assert error["error"]["code"] == code
        assert error["error"]["retry"] is False
        assert "id" not in error
        assert (await client.ask("publish", id=1, data=EVENT))["seq"] == 1


async def test_an_error_names_the_frame_that_it_answers(client: Peer) -> None:
    error = await client.ask("subscribe", id=7, sub="s", pattern="")

    assert (error["type"], error["id"], error["sub"]) == ("error", 7, "s")


async def test_a_subscription_id_is_used_once(client: Peer) -> None:
    await client.ask("subscribe", id=1, sub="s", pattern="a")

    await client.send("subscribe", id=2, sub="s", pattern="a")

    assert (await client.next_of("error"))["error"]["code"] == "subscription.exists"


async def test_the_number_of_subscriptions_is_limited(client: Peer) -> None:
    for _ in range(3):
        await client.send("subscribe", pattern="a")

    error = (await client.next_of("error"))["error"]
    assert error["code"] == "subscription.too_many"
    assert error["message"].endswith("2 subscriptions, which is the limit (EVENTBUS_MAX_SUBSCRIPTIONS)")


@whatever_speaks_websocket
async def test_a_hundred_bad_frames_in_a_row_end_the_connection(client: Peer) -> None:
    for _ in range(100):
        await client.socket.send("{")

    frames, code = await client.rest()

    assert code == 4400
    assert (frames[-1]["type"], frames[-1]["reconnect"]) == ("bye", False)
    assert frames[-1]["error"]["code"] == "frame.bad"


async def test_a_good_frame_between_bad_ones_keeps_the_connection(client: Peer) -> None:
    for _ in range(3):
        for _ in range(99):
            await client.socket.send("{")
        await client.send("ping")

    for _ in range(3):
        await client.next_of("pong")


@pytest.mark.parametrize("event", [{**EVENT, "topic": ""}, {**EVENT, "payload": "x" * 50_001}], ids=["topic", "size"])
async def test_events_that_break_the_rules_are_no_bad_frames(client: Peer, event: dict[str, Any]) -> None:
    """A program that publishes too much is told so each time, and not sent away for good."""
    for _ in range(150):
        await client.send("publish", data=event)
    await client.send("ping")

    await client.next_of("pong")


@whatever_speaks_websocket
async def test_a_frame_far_beyond_the_limit_is_closed_by_the_server(served: ServedBus) -> None:
    async with served.plain() as client:
        await client.socket.send("x" * 200_001)

        assert (await client.rest())[1] == 1009


@whatever_speaks_websocket
async def test_invalid_utf8_is_closed_by_the_server(served: ServedBus) -> None:
    async with served.plain() as client:
        await client.socket.send(b"\xff\xfe", text=True)

        assert (await client.rest())[1] == 1007


async def test_invalid_utf8_is_no_error_in_the_log_of_the_standalone_app(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In an app of somebody else's, uvicorn logs an error with a traceback: that log is not ours to arrange.
    app = create_app(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    caplog.set_level(logging.INFO)

    async with serving(app) as served, peer(served.ws) as client:
        await client.socket.send(b"\xff\xfe", text=True)
        assert (await client.rest())[1] == 1007

    [record] = [record for record in caplog.records if "UTF-8" in record.getMessage()]
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- the handshake -------------------------------------------------------------------------------


@whatever_speaks_websocket
async def test_only_unknown_subprotocols_are_refused(served: ServedBus) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with served.plain(subprotocols=[Subprotocol("eventbus.v9"), Subprotocol("mqtt")]):
            pass

    response = refused.value.response
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(response.body or b"")
    assert problem["code"] == "subprotocol.unknown"
    expected = "expected none, 'eventbus.v1' or 'cloudevents.json'"
    assert problem["detail"] == f"unknown subprotocol 'eventbus.v9', 'mqtt'; {expected}"


async def test_the_known_subprotocol_is_found_among_others(served: ServedBus) -> None:
    async with served.plain(subprotocols=[Subprotocol("mqtt"), Subprotocol("eventbus.v1")]) as client:
        assert client.socket.subprotocol == "eventbus.v1"
        assert (await client.next())["type"] == "welcome"


@whatever_speaks_websocket
async def test_a_bus_that_does_not_run_refuses_the_handshake(served: ServedBus) -> None:
    await served.bus.stop()

    with pytest.raises(InvalidStatus) as refused:
        async with served.v1():
            pass

    assert refused.value.response.status_code == 503


async def test_an_http_request_to_the_socket_is_not_served(served: ServedBus) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{served.served.http}/ws")).status_code == 404


# --- faults of the server ------------------------------------------------------------------------


async def test_an_unreachable_database_is_an_error_to_retry_and_the_connection_is_kept(
    served: ServedBus, client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("the database cannot be reached")

    with monkeypatch.context() as context:
        context.setattr(served.bus.node.store, "append", away)
        refused = await client.ask("publish", id=1, data=EVENT)
    stored = await client.ask("publish", id=2, data=EVENT)

    assert refused["id"] == 1
    assert (refused["error"]["code"], refused["error"]["retry"]) == ("store.unavailable", True)
    assert refused["error"]["retry_after"] == 1.0
    assert stored["seq"] == 1


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "publish", "data": EVENT},
        {"type": "publish", "data": {**EVENT, "durable": False}},
        {"type": "subscribe", "pattern": "a"},
        {"type": "ack", "seq": 1},
    ],
)
async def test_a_fault_of_the_server_stays_in_its_log(
    client: Peer, frame: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the server")

    with monkeypatch.context() as context:
        for method in ("submit", "publish_live", "subscribe", "acknowledge"):
            context.setattr(Node, method, fail)
        await client.socket.send(json.dumps({**frame, "id": 1}))
        refused = await client.next()

    assert refused["error"] == {
        "code": "server.internal",
        "status": 500,
        "message": "the server failed; its log has the details",
        "retry": False,
    }
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "secret" not in record.getMessage()
    assert (await client.ask("ping"))["type"] == "pong"


async def test_nothing_that_a_client_sends_is_logged(
    served: ServedBus, client: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    evil = "x\nERROR forged line"

    await client.send("publish", data={"topic": evil, "payload": evil}, id=1)
    await client.next()
    await client.send("subscribe", pattern=evil, sub=evil)
    await client.next()
    await client.send(evil)
    await client.next()
    await client.socket.close(1000, "forged")

    assert not [record for record in caplog.records if "forged" in record.getMessage()]


async def test_a_subscription_ends_when_the_bus_stops(served: ServedBus, client: Peer) -> None:
    await client.send("subscribe", id=1, sub="s", pattern="a")
    await client.next_of("caught_up")
    async with served.plain() as plain:
        assert (await plain.ask("subscribe", id=1, pattern="a"))["type"] == "ok"

        await served.bus.stop()

        closed = await client.next()
        assert (closed["type"], closed["sub"], closed["error"]["code"]) == ("closed", "s", "subscription.closed")
        assert (await client.ask("publish", id=2, data=EVENT))["error"]["code"] == "server.not_running"
        with pytest.raises(ConnectionClosed) as ended:
            await plain.next()
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 4000
