"""/archive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.store.group import Ended, Ending, Settlement
from tests.server.asking import app_of, asking, assert_problem, bus_on

ERROR = {"attempt": 1, "type": "httpx.ConnectError", "message": "refused", "time": 1_767_225_600_000_000, "node": "n"}
SHOWN = {**ERROR, "time": "2026-01-01T00:00:00.000000Z"}


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def finish(eventbus: EventBus, name: str, *topics: str, outcome: Ended = "acked") -> None:
    """Publish events of these topics, which end in a group after an error."""
    await eventbus.publish_many([(topic, {"n": 1}) for topic in topics], key="k", tags=["mail"])
    groups, store = eventbus.node.store.groups, eventbus.node.store
    group = await groups.ensure(name, ["#"], after=0)
    messages = (await store.read(group.cursor, 1_000)).messages
    claim = await groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=60)
    assert claim is not None
    errors = [{**ERROR, "traceback": "…"}]
    endings = [Ending(message, outcome, 2, 1_500, "web-1", errors) for message in messages]
    await groups.settle([Settlement(group.id, claim.token, done=claim.seqs, pending=(), endings=endings)])


async def test_endings_are_listed_without_payloads(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await finish(eventbus, "mail", "user.created")
    answer = await http.get("/archive")
    assert answer.status_code == 200
    (entry,) = answer.json()["archive"]
    assert answer.json()["next"] is None
    assert entry.pop("finished_at").endswith("Z")
    assert entry.pop("message_id") == str((await eventbus.get(1)).message.message_id)
    assert entry == {
        "id": 1,
        "group": "mail",
        "seq": 1,
        "topic": "user.created",
        "key": "k",
        "outcome": "acked",
        "attempts": 2,
        "duration": 0.0015,
        "node": "web-1",
        "tags": ["mail"],
        "error": SHOWN,
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [1, 2, 3]),
        ("?group=other", [3]),
        ("?pattern=user.*", [1]),
        ("?outcome=discarded", [3]),
        ("?error=ConnectError", [1, 2, 3]),
        ("?error=ValueError", []),
        ("?finished_after=2020-01-01T00:00:00Z", [1, 2, 3]),
        ("?finished_before=2020-01-01T00:00:00Z", []),
        ("?tag=mail", [1, 2, 3]),
        ("?tag=other", []),
        ("?after=1&limit=1", [2]),
    ],
)
async def test_a_list_may_be_filtered(
    eventbus: EventBus, http: httpx.AsyncClient, query: str, found: list[int]
) -> None:
    await finish(eventbus, "mail", "user.created", "order.placed")
    await eventbus.groups.declare("other", ["#"], start=2)
    await finish(eventbus, "other", "x", outcome="discarded")
    answer = (await http.get(f"/archive{query}")).json()
    assert [entry["seq"] for entry in answer["archive"]] == found
    assert answer["next"] == (2 if "limit" in query else None)


async def test_one_is_shown_with_its_payload_and_all_errors(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await finish(eventbus, "mail", "user.created")
    shown = (await http.get("/archive/1")).json()
    assert (shown["seq"], shown["topic"], shown["payload"]) == (1, "user.created", {"n": 1})
    assert (shown["id"], shown["group"], shown["outcome"], shown["duration"]) == (1, "mail", "acked", 0.0015)
    assert shown["errors"] == [{**SHOWN, "traceback": "…"}]


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/archive/4711", 404, "event.not_found", "nothing in the archive has the id 4711"),
        ("/archive?group=nobody", 404, "group.not_found", "no group 'nobody'"),
        ("/archive?outcome=lost", 422, "request.invalid", "query parameter 'outcome'"),
        ("/archive?finished_after=today", 422, "request.invalid", "query parameter 'finished_after'"),
        ("/archive?pattern=a..b", 422, "pattern.invalid", "invalid pattern"),
    ],
)
async def test_what_cannot_be_asked_is_said(
    http: httpx.AsyncClient, path: str, status: int, code: str, message: str
) -> None:
    assert_problem(await http.get(path), status, code, message)


async def test_a_group_is_declared_with_what_it_keeps(http: httpx.AsyncClient) -> None:
    answer = await http.put("/groups/mail", json={"patterns": ["#"], "archive": "failed"})
    assert answer.json()["archive"] == "failed"
    assert (await http.get("/groups/mail")).json()["archive"] == "failed"
    refused = await http.put("/groups/mail", json={"patterns": ["#"], "archive": "some"})
    assert_problem(refused, 422, "request.invalid", "archive")
