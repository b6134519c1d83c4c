"""What a principal may do, over HTTP and on an open socket; the attacks from outside are in test_attacks."""

from __future__ import annotations

import httpx
import pytest
from openapi_spec_validator import validate

from tests.security.guarded import ADMIN, ALICE, BOB, bearer
from tests.server.asking import assert_problem
from tests.server.sockets import ServedBus


def asking_as(served: ServedBus, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.served.http, headers=bearer(token), trust_env=False)


async def test_a_principal_publishes_and_reads_what_is_granted(guarded: ServedBus) -> None:
    async with asking_as(guarded, ALICE) as http:
        assert (await http.post("/publish", json={"topic": "a.x", "payload": 1})).status_code == 201
        page = (await http.get("/events", params={"pattern": "a.*"})).json()
        assert [event["topic"] for event in page["events"]] == ["a.x"]
        assert (await http.get("/events/1")).json()["topic"] == "a.x"


async def test_a_batch_with_one_forbidden_event_publishes_nothing(guarded: ServedBus) -> None:
    events = [{"topic": "a.x", "payload": 1}, {"topic": "b.x", "payload": 2}]
    async with asking_as(guarded, ALICE) as http:
        assert_problem(await http.post("/publish", json=events), 403, "auth.forbidden", "b.x")
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        assert (await alice.ask("publish_batch", id=1, messages=events))["error"]["code"] == "auth.forbidden"
    assert (await guarded.bus.node.head()).last_seq == 0


async def test_what_may_not_be_read_is_not_there(guarded: ServedBus) -> None:
    await guarded.bus.publish("b.secret", 1)
    async with asking_as(guarded, ALICE) as http:
        hidden, absent = await http.get("/events/1"), await http.get("/events/2")
        assert_problem(hidden, 404, "event.not_found")
        assert hidden.json()["message"].replace("1", "2") == absent.json()["message"]
        assert (await http.get("/events")).json()["events"] == [], "without a pattern: what may be read"


async def test_an_ack_of_what_may_not_be_read_is_refused_and_changes_nothing(guarded: ServedBus) -> None:
    await guarded.bus.publish("b.secret", 1)
    await guarded.bus.publish("a.mine", 1)
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        assert (await alice.ask("ack", id=1, seq=1))["error"]["code"] == "event.not_found"
        assert (await alice.ask("ack", id=2, seq=2))["acked"] == 1
    assert (await guarded.bus.node.get(1)).status == "pending"
    assert (await guarded.bus.node.get(2)).status == "processed"


@pytest.mark.parametrize("start", [{}, {"from": "earliest"}, {"after": 0}, {"starting_seq": 1}])
async def test_a_pattern_beyond_the_grant_is_refused_live_and_for_replay(
    guarded: ServedBus, start: dict[str, object]
) -> None:
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        refused = await alice.ask("subscribe", id=1, patterns=["a.x", "#"], **start)
        assert refused["error"]["code"] == "auth.forbidden"
        assert (await alice.ask("subscribe", id=2, pattern="a.#", **start))["type"] == "ok"


async def test_the_groups_of_others_are_closed(guarded: ServedBus) -> None:
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        for number, group in enumerate(("b.jobs", "other")):
            answer = await alice.ask("subscribe", id=number, pattern="a.x", group=group)
            assert answer["error"]["code"] == "auth.forbidden"
        assert (await alice.ask("subscribe", id=7, pattern="a.x", group="a.jobs"))["created"] is True


async def test_a_group_that_reads_more_than_is_granted_cannot_be_joined(guarded: ServedBus) -> None:
    await guarded.bus.groups.declare("a.wide", ["#"])
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        refused = await alice.ask("subscribe", id=1, pattern="a.x", group="a.wide")
        assert refused["error"]["code"] == "auth.forbidden"


async def test_a_group_that_reads_more_than_is_granted_by_now_ends_for_its_member(guarded: ServedBus) -> None:
    async with guarded.v1(additional_headers=bearer(ALICE)) as alice:
        await alice.next_of("welcome")
        await alice.ask("subscribe", id=1, sub=1, pattern="a.x", group="a.jobs")
        await guarded.bus.groups.declare("a.jobs", ["b.#", "a.x"])
        await guarded.bus.publish("b.secret", 1)
        closed = await alice.next_of("closed")
        assert (closed["sub"], closed["error"]["code"]) == (1, "auth.forbidden")

    async with guarded.v1(additional_headers=bearer(ADMIN)) as admin:
        await admin.next_of("welcome")
        await admin.ask("subscribe", id=1, sub=1, pattern="#", group="a.jobs")
        event = await admin.next_of("event")
        assert (event["topic"], event["attempt"]) == ("b.secret", 1), "it was given back as it was never sent"


@pytest.mark.parametrize(
    "path",
    ["/groups", "/queues", "/workers", "/dead-letters", "/archive", "/recurring", "/rate-limits", "/groups/a.jobs"],
)
async def test_what_looks_after_the_bus_is_for_admins(guarded: ServedBus, path: str) -> None:
    async with asking_as(guarded, BOB) as http:
        assert_problem(await http.get(path), 403, "auth.forbidden", "admins")
    async with asking_as(guarded, ADMIN) as http:
        assert (await http.get(path)).status_code in (200, 404)


async def test_openapi_says_that_a_token_is_wanted_where_one_is(guarded: ServedBus) -> None:
    async with httpx.AsyncClient(base_url=guarded.served.http, trust_env=False) as http:
        document = (await http.get("/openapi.json")).json()
    validate(document)
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, routes in document["paths"].items():
        is_open = path in ("/healthz", "/readyz")
        for route in routes.values():
            assert ("security" not in route) is is_open
            assert ({"401", "403"} <= route["responses"].keys()) is not is_open


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_for_everybody(guarded: ServedBus, path: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.served.http, trust_env=False) as http:
        assert (await http.get(path)).status_code == 200
