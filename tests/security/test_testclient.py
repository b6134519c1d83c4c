"""FastAPI's TestClient around a bus that asks who comes, as users test their own apps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from eventbus_fastapi import EventBus
from tests.security.attacks import encoded
from tests.security.guarded import ALICE, bearer, by_token
from tests.tables import log_at

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette would like another HTTP client
    from fastapi.testclient import TestClient
    from starlette.testclient import WebSocketDenialResponse


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(EventBus(log_at(tmp_path / "bus.db")).router(authenticate=by_token), prefix="/bus")
    with TestClient(app) as client:
        yield client


def test_http_and_websocket_ask_who_comes(client: TestClient) -> None:
    event = {"topic": "a.x", "payload": 1}
    assert client.post("/bus/publish", json=event).status_code == 401
    assert client.post("/bus/publish", json=event, headers=bearer(ALICE)).status_code == 201
    with client.websocket_connect("/bus/ws", ["eventbus.v1"], headers=bearer(ALICE)) as socket:
        assert socket.receive_json()["principal"] == "alice"
    with client.websocket_connect("/bus/ws", ["eventbus.v1", encoded(ALICE)]) as socket:
        assert str(socket.accepted_subprotocol) == "eventbus.v1"
        assert socket.receive_json()["principal"] == "alice"


def test_a_handshake_is_denied_with_an_answer_of_http(client: TestClient) -> None:
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/bus/ws"):
        pass
    assert denied.value.status_code == 401
    assert denied.value.headers["www-authenticate"] == 'Bearer realm="eventbus"'
    assert denied.value.json()["code"] == "auth.unauthenticated"


def test_an_app_may_answer_a_handshake_in_its_own_words(tmp_path: Path) -> None:
    def authenticate(connection: HTTPConnection) -> None:
        raise HTTPException(402, {"pay": "first"}, {"X-Price": "5"})

    app = FastAPI()
    app.include_router(EventBus(log_at(tmp_path / "bus.db"), authenticate=authenticate).router())
    with TestClient(app) as client:
        assert client.get("/events").json() == {"detail": {"pay": "first"}}
        with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws"):
            pass
        assert (denied.value.status_code, denied.value.headers["x-price"]) == (402, "5")
        assert denied.value.json() == {"detail": {"pay": "first"}}


def test_a_page_of_another_origin_is_denied(client: TestClient) -> None:
    headers = {**bearer(ALICE), "Origin": "https://evil.example"}
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/bus/ws", headers=headers):
        pass
    assert (denied.value.status_code, denied.value.json()["code"]) == (403, "origin.forbidden")
    headers["Origin"] = "http://testserver"
    with client.websocket_connect("/bus/ws", ["eventbus.v1"], headers=headers) as socket:
        assert socket.receive_json()["type"] == "welcome"


def test_the_first_frame_may_bring_the_token(client: TestClient) -> None:
    with client.websocket_connect("/bus/ws?auth=frame", ["eventbus.v1"]) as socket:
        socket.send_json({"type": "auth", "token": ALICE, "id": 1})
        assert socket.receive_json()["principal"] == "alice"
        assert socket.receive_json()["type"] == "ok"
    with client.websocket_connect("/bus/ws?auth=frame", ["eventbus.v1"]) as socket:
        socket.send_json({"type": "subscribe", "pattern": "#"})
        assert socket.receive_json()["type"] == "bye"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 4401
