"""Starlette's TestClient around `/ws`, as users test their own apps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.asking import app_of, bus_on

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette would like another HTTP client
    from fastapi.testclient import TestClient


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(app_of(bus_on(tmp_path))) as client:
        yield client


@pytest.mark.parametrize("subprotocols", [None, ["eventbus.v1"]])
@pytest.mark.parametrize("is_subscribed", [True, False])
def test_a_client_may_come_and_leave_many_times(
    client: TestClient, subprotocols: list[str] | None, is_subscribed: bool
) -> None:
    # It cancels the app in the same moment in which it leaves.
    for _ in range(20):
        with client.websocket_connect("/ws", subprotocols=subprotocols) as socket:
            if subprotocols:
                assert socket.receive_json()["type"] == "welcome"
            if is_subscribed:
                socket.send_json({"type": "subscribe", "id": 1, "pattern": "#"})
                assert socket.receive_json()["type"] == "ok"


def test_an_event_goes_round(client: TestClient) -> None:
    with client.websocket_connect("/ws") as socket:
        socket.send_json({"type": "subscribe", "id": 1, "pattern": "#"})
        assert socket.receive_json()["type"] == "ok"

        client.post("/publish", json={"topic": "a", "payload": "Hello"})

        assert socket.receive_json()["payload"] == "Hello"
