"""`eventbus schema` prints what an app's events are made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.cli.command_line import Command

APP = """
from eventbus_fastapi import Event, EventBus

class UserCreated(Event, topic="user.created"):
    id: int

class OrderPaid(Event, topic="order.paid"):
    "An order is paid."
    user: UserCreated

eventbus = EventBus("sqlite+aiosqlite:///nowhere/at/all.db", events=[OrderPaid])

@eventbus.handler(UserCreated)
async def welcome(event: UserCreated) -> None: ...
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shop_events.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("shop_events", None)


def test_all_events_are_one_schema_with_a_property_for_each_topic(eventbus: Command) -> None:
    done = eventbus("schema", "shop_events:eventbus")

    document = json.loads(done.out)
    assert (done.code, list(document["properties"])) == (0, ["order.paid", "user.created"])
    validator = jsonschema.Draft202012Validator(document)
    assert validator.is_valid({"order.paid": {"user": {"id": 1}}, "user.created": {"id": 2}})
    assert not validator.is_valid({"order.paid": {"user": {}}})


def test_one_topic_is_the_schema_of_its_event(eventbus: Command) -> None:
    document = json.loads(eventbus("schema", "shop_events:eventbus", "order.paid").out)

    assert jsonschema.Draft202012Validator(document).is_valid({"user": {"id": 1}})
    assert not jsonschema.Draft202012Validator(document).is_valid({})


def test_an_unknown_topic_is_told_which_are_known(eventbus: Command) -> None:
    done = eventbus("schema", "shop_events:eventbus", "order.piad")

    assert done.code == 1
    assert "no event of topic 'order.piad'" in done.error
    assert "order.paid, user.created" in done.error


def test_the_asyncapi_document_is_printed_for_a_server_that_does_not_run(eventbus: Command) -> None:
    document = json.loads(eventbus("schema", "shop_events:eventbus", "--asyncapi", "--host", "bus.example").out)

    assert document["asyncapi"] == "3.0.0"
    assert document["servers"]["websocket"]["host"] == "bus.example"
    assert {"user.created", "order.paid"} <= document["channels"].keys()


def test_a_topic_and_the_asyncapi_document_are_not_printed_together(eventbus: Command) -> None:
    done = eventbus("schema", "shop_events:eventbus", "order.paid", "--asyncapi")

    assert done.code == 2
    assert "--asyncapi" in done.err
