"""What the forms do: the same as the routes of HTTP, or nothing and a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.settings import Settings
from tests.browser.seeded import add_group, fill_log
from tests.dashboard.browsing import Browser, Page, browsing
from tests.server.asking import app_of
from tests.tables import log_at


async def done(browser: Browser, answer: httpx.Response) -> Page:
    """Return the page that a form leads to once it was done."""
    assert answer.status_code == 303, answer.text
    page = await browser.http.get(answer.headers["location"])
    assert page.status_code == 200
    assert 'class="notice good"' in page.text
    return Page(page.text)


def refused(answer: httpx.Response, *words: str, status: int = 422) -> Page:
    assert answer.status_code == status, answer.text
    page = Page(answer.text)
    assert "Nothing was changed." in page.text
    for word in words:
        assert word in page.text
    return page


# --- publishing ---


async def test_an_event_is_published_as_it_was_typed(eventbus: EventBus, browser: Browser) -> None:
    message_id = str(uuid4())
    typed = {
        "topic": " user.created ",
        "kind": "json",
        "payload": '{"b": 1.0,\r\n "a": 1e2}\r\n',
        "key": "k",
        "metadata": '{"by": "hand"}',
        "tags": "vip new",
        "ttl": "3600",
        "message_id": message_id,
    }

    page = await done(browser, await browser.post("publish", typed))
    again = await browser.post("publish", typed)

    message = (await eventbus.get(1)).message
    assert (message.topic, message.key, str(message.message_id)) == ("user.created", "k", message_id)
    assert message.body == b'{"b": 1.0,\n "a": 1e2}'
    assert message.metadata == {"by": "hand", "tags": ["vip", "new"]}
    assert message.expires_at == message.created_at + 3_600_000_000
    assert "It has seq 1." in page.text
    assert "published before" in (await done(browser, again)).text
    assert (await eventbus.head()).last_seq == 1


async def test_an_event_by_hand_is_a_publish_for_the_rate_of_who_does_it(tmp_path: Path) -> None:
    settings = Settings(database_url=log_at(tmp_path / "slow.db"), publish_rate=0.01, publish_burst=1)
    async with EventBus(settings=settings) as eventbus, browsing(app_of(eventbus)) as browser:
        await done(browser, await browser.post("publish", {"topic": "a", "payload": "1"}))
        refused = await browser.post("publish", {"topic": "a", "payload": "2"})
    assert refused.status_code == 429
    assert "EVENTBUS_PUBLISH_RATE" in refused.text


async def test_text_is_published_with_the_lines_that_it_has(eventbus: EventBus, browser: Browser) -> None:
    await done(browser, await browser.post("publish", {"topic": "a", "kind": "text", "payload": "  one\r\ntwo "}))
    await done(browser, await browser.post("publish", {"topic": "a", "kind": "text", "payload": ""}))

    assert [(await eventbus.get(seq)).message.payload for seq in (1, 2)] == ["  one\ntwo ", ""]


async def test_an_event_may_wait_or_go_to_who_is_live(eventbus: EventBus, browser: Browser) -> None:
    async with eventbus.subscribe("a") as subscription:
        waits = await browser.post("publish", {"topic": "a", "payload": "1", "delay": "3600"})
        live = await browser.post("publish", {"topic": "a", "payload": "2", "live": "yes"})
        message = await anext(subscription)

    assert "its time" in (await done(browser, waits)).text
    assert "not stored" in (await done(browser, live)).text
    assert (message.seq, message.payload) == (0, 2)
    assert (await eventbus.head()).last_seq == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"topic": ""}, "'topic' is empty"),
        ({"topic": "a..b"}, "segment 2 is empty"),
        ({"topic": "a.*"}, "wildcard"),
        ({"payload": ""}, "'payload' is empty"),
        ({"payload": "{"}, "payload"),
        ({"payload": "NaN"}, "payload"),
        ({"payload": '{"a":1,"a":2}'}, "twice"),
        ({"payload": "[" * 100 + "]" * 100}, "payload"),
        ({"payload": "x" * 300_000, "kind": "text"}, "262,144"),
        ({"kind": "xml"}, "'json' or 'text'"),
        ({"key": "k" * 256}, "key"),
        ({"key": "a\x00b"}, "control character"),
        ({"metadata": "[1]"}, "JSON object"),
        ({"metadata": "{"}, "metadata"),
        ({"metadata": '{"timestamp": 1}'}, "timestamp"),
        ({"tags": "same same"}, "same"),
        ({"ttl": "-1"}, "'ttl'"),
        ({"ttl": "0"}, "ttl"),
        ({"ttl": "soon"}, "'ttl'"),
        ({"ttl": "nan"}, "'ttl'"),
        ({"ttl": "1e300"}, "'ttl'"),
        ({"delay": "inf"}, "'delay'"),
        ({"message_id": "7"}, "message_id"),
        ({"live": "yes", "delay": "1"}, "durable"),
        ({"color": "red"}, "unknown field 'color'"),
        ({"topic": ["a", "b"]}, "given 2 times"),
    ],
)
async def test_an_event_that_cannot_be_published_says_why(
    eventbus: EventBus, browser: Browser, typed: dict[str, Any], said: str
) -> None:
    answer = await browser.post("publish", {"topic": "a", "payload": "1", **typed})

    assert 400 <= answer.status_code < 500
    refused(answer, said, status=answer.status_code)
    assert (await eventbus.head()).last_seq == 0


async def test_a_form_that_was_refused_is_shown_as_it_was_filled_in(browser: Browser) -> None:
    answer = await browser.post("publish", {"topic": "a b", "payload": '{"kept": 1}', "kind": "text", "key": "mine"})

    page = Page(answer.text)
    values = {given.get("name"): given.get("value") for tag, given in page.elements if tag == "input"}
    assert (values["topic"], values["key"]) == ("a b", "mine")
    assert '{"kept": 1}' in page.text
    assert [given["value"] for _, given in page.elements if given.get("name") == "kind" and "checked" in given] == [
        "text"
    ]


# --- groups ---


async def test_a_group_is_paused_and_resumed(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.declare("shop/mail", ["#"])

    paused = await done(browser, await browser.post("group/pause", {"name": "shop/mail"}))
    assert (await eventbus.groups.group("shop/mail")).group.is_paused
    await done(browser, await browser.post("group/resume", dict(paused.form("group/resume").fields)))
    assert not (await eventbus.groups.group("shop/mail")).group.is_paused


@pytest.mark.parametrize(
    ("typed", "after"),
    [
        ({"start": "now"}, 20),
        ({"start": "earliest"}, 0),
        ({"start": "seq", "seq": "7"}, 7),
        ({"start": "seq", "seq": "0"}, 0),
        ({"start": "time", "time": "2020-01-01T00:00"}, 0),
        ({"start": "time", "time": "2020-01-01T00:00:00+01:00"}, 0),
        ({"start": "now", "seq": "7", "time": ""}, 20),
    ],
)
async def test_a_group_is_reset(eventbus: EventBus, browser: Browser, typed: dict[str, str], after: int) -> None:
    await fill_log(eventbus, 20)
    await add_group(eventbus, "mail", ["#"], after=2, again=3, held=2)

    page = await done(browser, await browser.post("group/reset", {"name": "mail", "sure": "yes", **typed}))

    group, figures = await eventbus.groups.group("mail")
    assert (group.cursor, figures.retries, figures.in_flight) == (after, 0, 0)
    assert f"after seq {after}" in page.text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"start": "now", "sure": ""}, "check the box first"),
        ({"start": ""}, "choose where"),
        ({"start": "later"}, "expected 'now'"),
        ({"start": "seq"}, "'seq' is empty"),
        ({"start": "seq", "seq": "x"}, "expected an integer"),
        ({"start": "time"}, "'time' is empty"),
        ({"start": "time", "time": "noon"}, "expected a time"),
    ],
)
async def test_a_reset_that_cannot_be_meant_says_why(
    eventbus: EventBus, browser: Browser, typed: dict[str, str], said: str
) -> None:
    await fill_log(eventbus, 20)
    await add_group(eventbus, "mail", ["#"], after=2, again=3)
    before = await eventbus.groups.group("mail")

    page = refused(await browser.post("group/reset", {"name": "mail", "sure": "yes", **typed}), said)

    after = await eventbus.groups.group("mail")
    assert (after.group, after.figures[2:]) == (before.group, before.figures[2:])
    assert page.form("group/reset").method == "post"


async def test_a_reset_beyond_the_log_says_where_it_ends(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.declare("mail", ["#"])

    answer = await browser.post("group/reset", {"name": "mail", "sure": "yes", "start": "seq", "seq": "99"})

    refused(answer, "the log ends at 0", status=409)


async def test_a_group_that_is_gone_is_not_found(browser: Browser) -> None:
    for action, typed in (("pause", {}), ("resume", {}), ("reset", {"start": "now", "sure": "yes"})):
        answer = await browser.post(f"group/{action}", {"name": "gone", **typed})
        refused(answer, "no group 'gone'", status=404)


# --- queues, recurring events, limits ---


async def test_a_queue_is_paused_resumed_and_scaled(eventbus: EventBus, browser: Browser) -> None:
    await done(browser, await browser.post("queue/pause", {"name": "email"}))
    assert (await eventbus.queues.queue("email")).is_paused
    await done(browser, await browser.post("queue/scale", {"name": "email", "workers": "7"}))
    assert (await eventbus.queues.queue("email")).workers == 7
    await done(browser, await browser.post("queue/resume", {"name": "email"}))
    assert not (await eventbus.queues.queue("email")).is_paused
    await done(browser, await browser.post("queue/scale", {"name": "email", "workers": ""}))
    assert not (await eventbus.queues.queue("email")).is_scaled

    for workers in ("0", "1001", "-1", "many", "1.5"):
        refused(await browser.post("queue/scale", {"name": "email", "workers": workers}), "from 1 to 1,000")
    refused(await browser.post("queue/pause", {"name": "a b"}), "name of a queue")


async def test_a_recurring_event_is_paused_resumed_and_published(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.recurring.declare("report", "@daily", "report.wanted", {"a": 1})

    await done(browser, await browser.post("recurring/pause", {"name": "report"}))
    assert (await eventbus.recurring.get("report")).is_paused
    await done(browser, await browser.post("recurring/resume", {"name": "report"}))
    assert not (await eventbus.recurring.get("report")).is_paused
    page = await done(browser, await browser.post("recurring/run", {"name": "report"}))

    assert (await eventbus.get(1)).message.topic == "report.wanted"
    assert "It has seq 1." in page.text
    refused(await browser.post("recurring/run", {"name": "gone"}), status=404)


async def test_a_rate_limit_is_changed(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.set_rate_limit("mail", 1, 1)

    await done(browser, await browser.post("rate-limit/set", {"name": "mail", "permits": "50", "per": "0.5"}))

    (limit,) = await eventbus.groups.rate_limits()
    assert (limit.permits, limit.period) == (50, 500_000)
    for typed in ({"permits": ""}, {"permits": "0"}, {"per": "0"}, {"per": "x"}, {"name": "a b"}):
        refused(await browser.post("rate-limit/set", {"name": "mail", "permits": "5", "per": "1", **typed}))
    assert await eventbus.groups.rate_limits() == [limit]


# --- dead letters ---


async def dead(eventbus: EventBus) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for group, letter in (await eventbus.groups.dead_letters()).entries:
        found.setdefault(group, []).append(letter.seq)
    return found


@pytest.fixture
async def letters(eventbus: EventBus) -> None:
    await fill_log(eventbus, 20)
    await add_group(eventbus, "a", ["#"], after=0, dead=4)
    await add_group(eventbus, "b", ["#"], after=0, dead=2)


@pytest.mark.usefixtures("letters")
async def test_dead_letters_that_were_chosen_are_tried_again(eventbus: EventBus, browser: Browser) -> None:
    page = await done(browser, await browser.post("dead-letters/retry", {"of": ["1@a", "3@a", "2@b"]}))

    assert "To be tried again at once: 3." in page.text
    assert await dead(eventbus) == {"a": [2, 4], "b": [1]}
    assert (await eventbus.groups.group("a")).figures.retries == 2


@pytest.mark.usefixtures("letters")
async def test_dead_letters_that_were_chosen_are_discarded_by_who_is_sure(eventbus: EventBus, browser: Browser) -> None:
    refused(await browser.post("dead-letters/discard", {"of": ["1@a"]}), "check the box first")
    assert await dead(eventbus) == {"a": [1, 2, 3, 4], "b": [1, 2]}

    await done(browser, await browser.post("dead-letters/discard", {"of": ["1@a", "2@b"], "sure": "yes"}))

    assert await dead(eventbus) == {"a": [2, 3, 4], "b": [1]}
    assert (await eventbus.groups.group("a")).figures.retries == 0


@pytest.mark.usefixtures("letters")
async def test_all_dead_letters_that_a_filter_means_are_tried_again_or_discarded(
    eventbus: EventBus, browser: Browser
) -> None:
    page = await browser.see("dead-letters?group=a&error=ValueError")
    fields = dict(page.form("dead-letters/retry-all").fields)
    answer = await browser.post("dead-letters/retry-all", fields)
    assert parse_qs(urlsplit(answer.headers["location"]).query)["count"] == ["1"]
    assert await dead(eventbus) == {"a": [1, 3, 4], "b": [1, 2]}

    refused(await browser.post("dead-letters/discard-all", {"group": "a"}), "check the box first")
    await done(browser, await browser.post("dead-letters/discard-all", {"group": "a", "sure": "yes"}))
    assert await dead(eventbus) == {"b": [1, 2]}


@pytest.mark.usefixtures("letters")
async def test_what_one_look_does_not_reach_is_gone_on_with(
    eventbus: EventBus, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eventbus_fastapi.store import pages

    monkeypatch.setattr(pages, "PAGE", 1)
    monkeypatch.setattr(pages, "PAGES", 1)

    answer = await browser.post("dead-letters/discard-all", {"group": "a", "sure": "yes"})
    assert answer.status_code == 200
    page = Page(answer.text)
    assert "1 were discarded" in page.text
    assert await dead(eventbus) == {"a": [2]}  # as far as one look goes
    (going_on,) = [form for form in page.forms if any(name == "after" for name, _ in form.fields)]
    await browser.post("dead-letters/discard-all", dict(going_on.fields))
    monkeypatch.undo()

    assert await dead(eventbus) == {"a": [3, 4], "b": [1, 2]}


@pytest.mark.parametrize(
    ("action", "typed", "said"),
    [
        ("retry", {}, "choose at least one"),
        ("retry", {"of": "1"}, "expected a seq and a group"),
        ("retry", {"of": "x@a"}, "expected a seq and a group"),
        ("retry", {"of": "0@a"}, "expected a seq and a group"),
        ("retry", {"of": "9" * 30 + "@a"}, "expected a seq and a group"),
        ("retry", {"of": "1" * 30 + "@a"}, "expected a seq and a group"),
        ("retry", {"of": "1@a b"}, "name of a group"),
        ("retry-all", {}, "choose a group first"),
        ("retry-all", {"group": "a", "pattern": "a..b"}, "segment 2 is empty"),
        ("retry-all", {"group": "a", "attempts": "x"}, "expected an integer"),
        ("retry-all", {"group": "a", "died_after": "x"}, "expected a time"),
        ("retry-all", {"group": "a", "tag": "x" * 65}, "tag"),
        ("discard-all", {"group": "a", "sure": "yes", "patern": "mail.*"}, "unknown field 'patern'"),
        ("discard-all", {"group": "a", "sure": "no"}, "check the box first"),
    ],
)
@pytest.mark.usefixtures("letters")
async def test_a_choice_that_cannot_be_meant_says_why_and_touches_none(
    eventbus: EventBus, browser: Browser, action: str, typed: dict[str, str], said: str
) -> None:
    refused(await browser.post(f"dead-letters/{action}", typed), said)

    assert await dead(eventbus) == {"a": [1, 2, 3, 4], "b": [1, 2]}


@pytest.mark.usefixtures("letters")
async def test_a_choice_with_a_group_that_is_gone_touches_none(eventbus: EventBus, browser: Browser) -> None:
    refused(await browser.post("dead-letters/retry", {"of": ["1@a", "1@gone"]}), "no group 'gone'", status=404)

    assert await dead(eventbus) == {"a": [1, 2, 3, 4], "b": [1, 2]}


async def test_a_bus_that_is_stopped_is_a_page_that_says_so(eventbus: EventBus, browser: Browser) -> None:
    token = await browser.token()
    await eventbus.stop()

    assert (await browser.get("log")).status_code == 503
    refused(await browser.post("publish", {"topic": "a", "payload": "1", "token": token}), status=503)
    refused(await browser.post("queue/pause", {"name": "a", "token": token}), status=503)


async def test_a_form_that_the_server_failed_at_says_that_it_may_have_been_done(
    eventbus: EventBus, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a database that does not answer in time, then the page does not say that nothing was changed."""
    token = await browser.token()
    monkeypatch.setattr(eventbus.node.store, "settings", eventbus.settings.replace(statement_timeout=1e-9))

    answer = await browser.post("queue/pause", {"name": "a", "token": token})

    assert answer.status_code == 503
    assert "It is not known whether it was done" in answer.text
    assert "Nothing was changed" not in answer.text
