"""/groups and /dead-letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.store.group import Again, Claim, Death, Group, Settlement
from tests.server.asking import app_of, asking, assert_problem, bus_on

ERROR = {"attempt": 1, "type": "httpx.ConnectError", "message": "refused", "time": 1_767_225_600_000_000, "node": "n"}
SHOWN = {**ERROR, "time": "2026-01-01T00:00:00.000000Z"}
NEXT_YEAR = "2100-01-01T00:00:00+01:00"


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def claim(eventbus: EventBus, name: str, *topics: str, key: str | None = None) -> tuple[Group, Claim]:
    """Publish events of these topics, and hold them for a group."""
    await eventbus.publish_many([(topic, {"n": 1}) for topic in topics], key=key)
    groups, store = eventbus.node.store.groups, eventbus.node.store
    group = await groups.ensure(name, ["#"], after=0)
    messages = (await store.read(group.cursor, 1_000)).messages
    claimed = await groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=60)
    assert claimed is not None
    return group, claimed


async def kill(eventbus: EventBus, name: str, *topics: str) -> None:
    """Publish events of these topics, which die in a group at once."""
    group, claimed = await claim(eventbus, name, *topics)
    dead = [Death(seq, 1, [{**ERROR, "traceback": "…"}]) for seq in claimed.seqs]
    await eventbus.node.store.groups.settle([Settlement(group.id, claimed.token, dead=dead, pending=())])


def seqs(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [letter["seq"] for letter in answer.json()["dead_letters"]]


# --- groups --------------------------------------------------------------------------------------


async def test_a_group_tells_where_it_reads_and_how_it_is_doing(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    group, claimed = await claim(eventbus, "mail", "a", "b", "c", "d")
    again, dead = [Again(1, 1, 60_000_000, [ERROR])], [Death(2, 1, [ERROR])]
    settled = Settlement(group.id, claimed.token, again=again, dead=dead, pending=(3, 4))
    await eventbus.node.store.groups.settle([settled])
    await eventbus.publish("e", 1)

    answer = (await http.get("/groups/mail")).json()

    assert answer.pop("lag_seconds") >= 0
    assert answer == {
        "name": "mail",
        "patterns": ["#"],
        "ordered_by": None,
        "max_attempts": 10,
        "max_in_flight": None,
        "rate_limit": None,
        "archive": "none",
        "paused": False,
        "cursor": 4,
        "lag": 1,
        "in_flight": 2,
        "retries": 1,
        "dead": 1,
        "lost": 0,
    }


async def test_all_groups_are_listed_by_name(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    assert (await http.get("/groups")).json() == {"groups": []}
    for name in ("b", "a"):
        await http.put(f"/groups/{name}", json={"patterns": ["#"]})
    assert [group["name"] for group in (await http.get("/groups")).json()["groups"]] == ["a", "b"]


async def test_a_group_is_declared_and_then_keeps_its_place(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish_many([("a", 1), ("a", 2)])
    first = await http.put("/groups/mail", json={"patterns": ["user.*", "user.*"], "start": "earliest"})
    assert (first.status_code, first.json()["cursor"], first.json()["patterns"]) == (201, 0, ["user.*"])
    second = await http.put(
        "/groups/mail", json={"patterns": ["#"], "start": "now", "ordered_by": "key", "max_attempts": 3}
    )
    assert second.status_code == 200
    assert (second.json()["cursor"], second.json()["patterns"]) == (0, ["#"])
    assert (second.json()["ordered_by"], second.json()["max_attempts"]) == ("key", 3)


@pytest.mark.parametrize(
    ("position", "cursor"),
    [
        ({}, 3),
        ({"start": "now"}, 3),
        ({"start": "earliest"}, 0),
        ({"after": 2}, 2),
        ({"time": "2020-01-01T00:00:00Z"}, 0),
        ({"time": NEXT_YEAR}, 3),
    ],
)
async def test_a_new_group_reads_from_where_it_is_told(
    eventbus: EventBus, http: httpx.AsyncClient, position: dict[str, Any], cursor: int
) -> None:
    await eventbus.publish_many([("a", number) for number in range(3)])
    answer = await http.put("/groups/mail", json={"patterns": ["#"], **position})
    assert answer.json()["cursor"] == cursor


async def test_a_group_is_paused_and_resumed(http: httpx.AsyncClient) -> None:
    await http.put("/groups/mail", json={"patterns": ["#"]})
    assert (await http.post("/groups/mail/pause", json={})).json()["paused"] is True
    assert (await http.get("/groups/mail")).json()["paused"] is True
    resumed = await http.post("/groups/mail/resume", headers={"content-type": "application/json"})
    assert resumed.json()["paused"] is False


async def test_a_group_is_reset(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await claim(eventbus, "mail", "a", "b", "c")
    assert (await http.post("/groups/mail/reset", json={"after": 1})).json()["cursor"] == 1
    assert (await http.post("/groups/mail/reset", json={"start": "earliest"})).json()["cursor"] == 0
    assert (await http.post("/groups/mail/reset", json={"start": "now"})).json()["cursor"] == 3
    answer = (await http.post("/groups/mail/reset", json={"time": "2020-01-01T00:00:00Z"})).json()
    assert (answer["cursor"], answer["in_flight"]) == (0, 0)


async def test_a_deleted_group_is_gone_and_tells_how_it_was(http: httpx.AsyncClient) -> None:
    await http.put("/groups/mail", json={"patterns": ["#"]})
    assert (await http.delete("/groups/mail")).json()["name"] == "mail"
    assert_problem(await http.delete("/groups/mail"), 404, "group.not_found", "no group 'mail'")


@pytest.mark.parametrize("name", ["shop/mail", "größe", "a%2Fb", "retries", "?#&=", "shop.users:send", "日本"])
async def test_a_name_may_have_any_visible_character(http: httpx.AsyncClient, name: str) -> None:
    path = f"/groups/{quote(name, safe='')}"
    assert (await http.put(path, json={"patterns": ["#"]})).json()["name"] == name
    assert (await http.post(f"{path}/pause", json={})).json()["name"] == name
    assert (await http.get(f"{path}/retries")).json() == {"retries": [], "next": None}
    assert (await http.get("/dead-letters", params={"group": name})).json()["dead_letters"] == []
    assert_problem(await http.get(f"/dead-letters/{quote(name)}/1"), 404, "event.not_found", "no dead letter")
    assert (await http.delete(path)).json()["name"] == name


@pytest.mark.parametrize("name", ["a b", "a/", "a//b", "a/%2E%2E/b", "x" * 256, "a%09", "a%0Ab", ""])
async def test_a_name_that_cannot_be_one_is_refused(http: httpx.AsyncClient, name: str) -> None:
    assert_problem(await http.put(f"/groups/{name}", json={"patterns": ["#"]}), 422, "group.invalid", "name of a group")


async def test_another_method_is_told_which_there_are(http: httpx.AsyncClient) -> None:
    answer = await http.post("/groups/mail", json={})
    assert_problem(answer, 405, "request.invalid", "expected DELETE, GET, PUT")
    assert answer.headers["allow"] == "DELETE, GET, PUT"
    answer = await http.put("/groups/mail/pause", json={"patterns": ["#"]})
    assert_problem(answer, 405, "request.invalid", "expected POST")
    assert answer.headers["allow"] == "POST"
    assert (await http.put("/groups", json={})).headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("/groups/new", {}, "request.invalid", ["'patterns' is missing"]),
        ("/groups/new", {"patterns": []}, "request.invalid", ["'patterns' is missing"]),
        ("/groups/new", {"patterns": "#"}, "request.invalid", ["'patterns'", "a list"]),
        ("/groups/new", {"patterns": [7]}, "pattern.invalid", ["expected str"]),
        ("/groups/new", {"patterns": ["#"] * 101}, "request.invalid", ["at most 100"]),
        ("/groups/new", {"patterns": ["#"], "ordered_by": "topic"}, "request.invalid", ["'key'", "'topic'"]),
        ("/groups/new", {"patterns": ["#"], "max_attempts": 0}, "request.invalid", ["'max_attempts'"]),
        ("/groups/new", {"patterns": ["#"], "max_retries": 1}, "request.invalid", ["unknown field 'max_retries'"]),
        ("/groups/new", {"patterns": ["#"], "after": 1, "time": NEXT_YEAR}, "request.invalid", ["'after' and 'time'"]),
        ("/groups/new", {"patterns": ["#"], "after": 99}, "group.conflict", ["after seq 99", "ends at 0"]),
        ("/groups/new", {"patterns": ["#"], "start": 7}, "request.invalid", ["'start'"]),
        ("/groups/new", ["#"], "request.invalid", ["expected an object"]),
    ],
)
async def test_a_declaration_that_cannot_be_used_is_refused(
    http: httpx.AsyncClient, path: str, body: Any, code: str, words: list[str]
) -> None:
    assert_problem(await http.put(path, json=body), 409 if code == "group.conflict" else 422, code, *words)
    assert (await http.get("/groups")).json() == {"groups": []}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, "request.invalid", ["'start', 'after' and 'time'"]),
        ({"seq": 1}, "request.invalid", ["unknown field 'seq'"]),
        ({"after": -1}, "request.invalid", ["'after'"]),
        ({"time": "yesterday"}, "request.invalid", ["'time'", "RFC 3339"]),
        ({"start": "then"}, "request.invalid", ["'start'", "'earliest'"]),
        ({"after": 1, "start": "now"}, "request.invalid", ["'start' and 'after'"]),
        ({"after": 99}, "group.conflict", ["ends at 0"]),
    ],
)
async def test_a_reset_that_cannot_be_done_is_refused(
    http: httpx.AsyncClient, body: Any, code: str, words: list[str]
) -> None:
    await http.put("/groups/mail", json={"patterns": ["#"]})
    status = 409 if code == "group.conflict" else 422
    assert_problem(await http.post("/groups/mail/reset", json=body), status, code, *words)


# --- what waits ----------------------------------------------------------------------------------


async def test_what_waits_for_a_retry_is_listed_page_by_page(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    group, claimed = await claim(eventbus, "mail", "a", "b", key="k")
    again = [Again(1, 2, 3_600_000_000, [{**ERROR, "traceback": "…"}]), Again(2, 0, 3_600_000_000, [])]
    await eventbus.node.store.groups.settle([Settlement(group.id, claimed.token, again=again, pending=())])

    first = (await http.get("/groups/mail/retries", params={"limit": 1})).json()
    second = (await http.get("/groups/mail/retries", params={"after": first["next"]})).json()

    (item,) = first["retries"]
    assert item.pop("run_at") > "2026"
    assert len(item.pop("message_id")) == 36
    assert item == {"seq": 1, "topic": "a", "key": "k", "attempts": 2, "held": False, "error": SHOWN}
    assert [(each["seq"], each["error"]) for each in second["retries"]] == [(2, None)]
    assert second["next"] is None


async def test_keys_that_wait_are_listed(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await http.put("/groups/mail", json={"patterns": ["#"], "ordered_by": "key"})
    group, claimed = await claim(eventbus, "mail", "a", "b", key="k")
    again = [Again(1, 1, 3_600_000_000, []), Again(2, 0, 0, [])]
    await eventbus.node.store.groups.settle([Settlement(group.id, claimed.token, again=again, pending=())])

    answer = await http.get("/groups/mail/blocked-keys")

    assert answer.json() == {"keys": [{"key": "k", "first_seq": 1, "waiting": 2}]}


async def test_a_group_without_order_has_no_keys_that_wait(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    group, claimed = await claim(eventbus, "mail", "a", key="k")
    again = [Again(1, 1, 3_600_000_000, [])]
    await eventbus.node.store.groups.settle([Settlement(group.id, claimed.token, again=again, pending=())])
    assert (await http.get("/groups/mail/blocked-keys")).json() == {"keys": []}


# --- rate limits ---------------------------------------------------------------------------------


async def test_a_rate_limit_is_made_changed_and_listed(http: httpx.AsyncClient) -> None:
    made = await http.put("/rate-limits/mail", json={"permits": 100, "per": 60})
    assert (made.status_code, made.json()) == (200, {"name": "mail", "permits": 100, "per": 60.0})
    await http.put("/rate-limits/mail", json={"permits": 1, "per": 0.5})
    assert (await http.get("/rate-limits")).json() == {"rate_limits": [{"name": "mail", "permits": 1, "per": 0.5}]}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"permits": 0, "per": 60}, "request.invalid"),
        ({"permits": 1}, "request.invalid"),
        ({"permits": 1, "per": "60"}, "request.invalid"),
        ({"permits": 1, "per": 0}, "group.invalid"),
        ({"permits": 1, "per": 1e9}, "group.invalid"),
        ({"permits": 1, "per": 60, "burst": 2}, "request.invalid"),
    ],
)
async def test_what_cannot_be_a_rate_limit_is_refused(http: httpx.AsyncClient, body: Any, code: str) -> None:
    answer = await http.put("/rate-limits/mail", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert (await http.get("/rate-limits")).json() == {"rate_limits": []}


async def test_a_group_is_declared_with_limits(http: httpx.AsyncClient) -> None:
    await http.put("/rate-limits/mail", json={"permits": 1, "per": 60})
    body = {"patterns": ["#"], "max_in_flight": 3, "rate_limit": "mail"}
    group = (await http.put("/groups/g", json=body)).json()
    assert (group["max_in_flight"], group["rate_limit"]) == (3, "mail")
    group = (await http.put("/groups/g", json={"patterns": ["#"]})).json()
    assert (group["max_in_flight"], group["rate_limit"]) == (None, None)


async def test_a_group_with_a_limit_that_is_nowhere_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.put("/groups/g", json={"patterns": ["#"], "rate_limit": "mail"})
    assert (answer.json()["code"], answer.json()["message"]) == ("group.conflict", "there is no rate limit 'mail'")
    assert (await http.get("/groups")).json() == {"groups": []}


# --- dead letters --------------------------------------------------------------------------------


async def test_dead_letters_are_listed_with_their_last_error(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await kill(eventbus, "mail", "user.created")

    (letter,) = (await http.get("/dead-letters")).json()["dead_letters"]

    assert letter.pop("died_at") > "2026"
    assert len(letter.pop("message_id")) == 36
    expected = {"id": 1, "group": "mail", "seq": 1, "topic": "user.created", "key": None, "attempts": 1}
    assert letter == {**expected, "tags": [], "error": SHOWN}


async def test_dead_letters_are_filtered(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await kill(eventbus, "mail", "user.created", "order.placed")
    await kill(eventbus, "other", "user.deleted")

    async def found(**wanted: Any) -> list[int]:
        return seqs(await http.get("/dead-letters", params=wanted))

    assert await found() == [1, 2, 1, 2, 3]
    assert await found(group="mail") == [1, 2]
    assert await found(group="other", pattern=["user.deleted", "order.*"]) == [2, 3]
    assert await found(group="mail", error="ConnectError") == [1, 2]
    assert await found(group="mail", error="ValueError") == []
    assert await found(group="mail", attempts=2) == []
    assert await found(group="mail", died_after="2020-01-01T00:00:00Z") == [1, 2]
    assert await found(group="mail", died_before="2020-01-01T00:00:00Z") == []


async def test_pages_lead_through_all_dead_letters(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await kill(eventbus, "mail", *["a"] * 5)
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        answer = await http.get("/dead-letters", params={"group": "mail", "after": after, "limit": 2})
        found += seqs(answer)
        after = answer.json()["next"]
    assert found == [1, 2, 3, 4, 5]


async def test_a_dead_letter_is_shown_with_its_payload_and_all_errors(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    await kill(eventbus, "shop/mail", "user.created")

    letter = (await http.get("/dead-letters/shop/mail/1")).json()

    event = (await http.get("/events/1")).json()
    assert {name: letter[name] for name in event.keys() - {"status"}} == {
        name: value for name, value in event.items() if name != "status"
    }
    assert (letter["group"], letter["attempts"]) == ("shop/mail", 1)
    assert letter["errors"] == [{**SHOWN, "traceback": "…"}]
    assert letter["payload"] == {"n": 1}


async def test_dead_letters_are_retried_by_seq_and_by_filter(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await kill(eventbus, "mail", "a", "b", "a", "b")

    by_seq = await http.post("/dead-letters/retry", json={"group": "mail", "seqs": [1, 1, 99]})
    assert by_seq.json() == {"retried": 1, "next": None}
    by_filter = await http.post("/dead-letters/retry", json={"group": "mail", "filter": {"patterns": ["b"]}})
    assert by_filter.json() == {"retried": 2, "next": None}

    assert seqs(await http.get("/dead-letters")) == [3]
    assert [item["seq"] for item in (await http.get("/groups/mail/retries")).json()["retries"]] == [1, 2, 4]


async def test_dead_letters_are_discarded_by_seq_and_by_filter(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await kill(eventbus, "mail", "a", "b", "a", "b")

    by_seq = await http.post("/dead-letters/discard", json={"group": "mail", "seqs": [2]})
    assert by_seq.json() == {"discarded": 1, "next": None}
    all_of_them = await http.post("/dead-letters/discard", json={"group": "mail", "filter": {}})
    assert all_of_them.json() == {"discarded": 3, "next": None}

    assert seqs(await http.get("/dead-letters")) == []


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, "request.invalid", ["'group' is missing"]),
        ({"group": "mail"}, "request.invalid", ["'seqs' and 'filter'"]),
        ({"group": "mail", "seqs": [1], "filter": {}}, "request.invalid", ["'seqs' and 'filter'"]),
        ({"group": "mail", "seqs": []}, "request.invalid", ["'seqs'", "1 to 1,000", "a list of 0"]),
        ({"group": "mail", "seqs": list(range(1, 1_002))}, "request.invalid", ["a list of 1001"]),
        ({"group": "mail", "seqs": ["1"]}, "request.invalid", ["'seqs'", "'1'"]),
        ({"group": "mail", "filter": {"patern": "a"}}, "request.invalid", ["unknown field 'patern'", "patterns"]),
        ({"group": "mail", "filter": {"died_after": "1"}}, "request.invalid", ["field 'died_after'", "RFC 3339"]),
        ({"group": "mail", "filter": {"attempts": -1}}, "request.invalid", ["'attempts'"]),
        ({"group": "mail", "filter": {"patterns": ["a..b"]}}, "pattern.invalid", ["segment 2"]),
        ({"group": "mail", "fliter": {}}, "request.invalid", ["unknown field 'fliter'"]),
        ([], "request.invalid", ["expected an object"]),
    ],
)
async def test_a_choice_that_could_mean_more_than_was_meant_changes_nothing(
    eventbus: EventBus, http: httpx.AsyncClient, body: Any, code: str, words: list[str]
) -> None:
    await kill(eventbus, "mail", "a")
    for verb in ("retry", "discard"):
        assert_problem(await http.post(f"/dead-letters/{verb}", json=body), 422, code, *words)
    assert seqs(await http.get("/dead-letters")) == [1]


async def test_a_page_of_another_site_cannot_change_groups_without_asking(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    await kill(eventbus, "mail", "a")
    for path in ("/groups/mail/pause", "/groups/mail/reset", "/dead-letters/discard"):
        for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = await http.post(path, content=b"{}", headers={"content-type": content_type})
            assert_problem(answer, 415, "request.media_type")


async def test_times_of_filters_that_cannot_be_read_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("/dead-letters", params={"died_after": "yesterday"})
    assert_problem(answer, 422, "request.invalid", "query parameter 'died_after'", "RFC 3339", "'yesterday'")


async def test_answers_are_not_kept_by_caches(http: httpx.AsyncClient) -> None:
    for path in ("/groups", "/groups/nobody", "/dead-letters", "/dead-letters/nobody/1"):
        assert (await http.get(path)).headers["cache-control"] == "no-store"
