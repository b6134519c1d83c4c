"""What no page lets happen: forms of others, changes by a GET, and strangers' text as anything but text."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.dashboard.site import CHANGES, PAGES
from tests.browser.seeded import add_group, fill_log, show_off
from tests.dashboard.browsing import FORM, ORIGIN, Browser, Page, browsing
from tests.server.asking import app_of

EVIL = "<script>alert(1)</script>'\"&<img src=x onerror=alert(1)>"
TURNED = "invoice\u202excod.exe"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SHOWN = {"event": "event?seq=1", "payload": "payload?seq=1", "group": "group?name=shop.charge", "ending": "ending?id=1"}


async def places(eventbus: EventBus) -> dict[str, str]:
    """Return an address of every page, of a bus that has something to show."""
    await show_off(eventbus, events=1_500)
    (group, letter), *_ = (await eventbus.groups.dead_letters()).entries
    dead = f"dead-letter?{urlencode({'group': group, 'seq': letter.seq})}"
    return {page: {**SHOWN, "dead-letter": dead}.get(page, page) for page in PAGES if page != "live"}


async def test_every_page_is_shown_and_says_what_a_browser_may_do_with_it(eventbus: EventBus, browser: Browser) -> None:
    addresses = [*(await places(eventbus)).values(), "nowhere", "event?seq=0", "static/dashboard.js", "static/x"]

    for address in addresses:
        answer = await browser.get(address)
        assert answer.status_code == 200 or address in ("nowhere", "event?seq=0", "static/x"), address
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "no-store" in answer.headers["cache-control"] or address == "static/dashboard.js"


async def test_no_page_has_what_the_policy_forbids(eventbus: EventBus, browser: Browser) -> None:
    """No style, no script and no handler of events is in the HTML itself."""
    for page, address in (await places(eventbus)).items():
        if page == "payload":
            continue
        for tag, attributes in (await browser.see(address)).elements:
            assert tag not in {"style", "iframe", "object", "embed", "base"}
            assert tag != "script" or attributes["src"].startswith("/dashboard/static/")
            assert not [name for name in attributes if name.startswith("on") or name == "style"]


async def test_a_get_changes_nothing(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.declare("g", ["#"])
    token = await browser.token()

    for page in CHANGES:
        if page not in PAGES:
            answer = await browser.get(
                f"{page}?{urlencode({'token': token, 'name': 'g', 'start': 'now', 'sure': 'yes'})}"
            )
            assert answer.status_code == 404
    await browser.get(f"publish?{urlencode({'token': token, 'topic': 'a', 'payload': '1'})}")

    assert (await eventbus.head()).last_seq == 0
    assert not (await eventbus.groups.group("g")).group.is_paused


# --- forms of others ---

FIELDS = {
    "publish": {"topic": "a", "payload": "1"},
    "group/pause": {"name": "g"},
    "group/resume": {"name": "g"},
    "group/reset": {"name": "g", "start": "earliest", "sure": "yes"},
    "queue/pause": {"name": "q"},
    "queue/resume": {"name": "q"},
    "queue/scale": {"name": "q", "workers": "3"},
    "dead-letters/retry": {"of": "1@g"},
    "dead-letters/discard": {"of": "1@g", "sure": "yes"},
    "dead-letters/retry-all": {"group": "g"},
    "dead-letters/discard-all": {"group": "g", "sure": "yes"},
    "recurring/pause": {"name": "r"},
    "recurring/resume": {"name": "r"},
    "recurring/run": {"name": "r"},
    "rate-limit/set": {"name": "l", "permits": "1", "per": "1"},
    "logout": {},
}


def test_every_form_is_among_them() -> None:
    assert FIELDS.keys() == {*CHANGES, "logout"}


async def state_of(eventbus: EventBus) -> object:
    groups, limits = await eventbus.groups.groups(), await eventbus.groups.rate_limits()
    recurring, queues = await eventbus.recurring.all(), await eventbus.queues.queues()
    dead = await eventbus.groups.dead_letters()
    return (
        [each.group for each in groups], limits, [each.is_paused for each in recurring], queues, dead,
        (await eventbus.head()).last_seq,
    )  # fmt: skip


async def with_something_of_each(eventbus: EventBus) -> None:
    await fill_log(eventbus, 20)
    await add_group(eventbus, "g", ["#"], after=0, dead=2, again=1)
    await eventbus.recurring.declare("r", "@daily", "tick", None)
    await eventbus.groups.set_rate_limit("l", 9, 9)


FORGED: tuple[tuple[str | None, dict[str, str]], ...] = (
    (None, {"origin": ORIGIN}),
    ("", {"origin": ORIGIN}),
    ("0" * 64, {"origin": ORIGIN}),
    ("é", {"origin": ORIGIN}),
    ("own", {"origin": "https://evil.example"}),
    ("own", {"origin": "null"}),
    ("own", {"origin": "http://127.0.0.1:3001"}),
    ("own", {"origin": "https://127.0.0.1:3000"}),
    ("own", {"origin": ORIGIN, "sec-fetch-site": "cross-site"}),
    ("own", {"origin": ORIGIN, "sec-fetch-site": "same-site"}),
    ("own", {"origin": ORIGIN, "sec-fetch-site": "none"}),
    ("own", {}),
)
"""Tokens and headers of forms that are not ours; `own` is the browser's own token."""


@pytest.mark.parametrize("action", FIELDS)
async def test_a_form_that_is_not_ours_changes_nothing(eventbus: EventBus, browser: Browser, action: str) -> None:
    await with_something_of_each(eventbus)
    before = await state_of(eventbus)
    own = await browser.token()

    for token, headers in FORGED:
        fields = {**FIELDS[action], **({} if token is None else {"token": own if token == "own" else token})}
        body = urlencode(fields)
        answer = await browser.http.post(f"/dashboard/{action}", content=body, headers={**FORM, **headers})
        assert answer.status_code == 403, (token, headers)

    assert await state_of(eventbus) == before


async def test_a_token_of_another_browser_is_none_of_this_one(eventbus: EventBus, browser: Browser) -> None:
    async with browsing(app_of(eventbus)) as other:
        stolen = await other.token()
    await browser.token()

    answer = await browser.post("publish", {"topic": "a", "payload": "1", "token": stolen})

    assert answer.status_code == 403
    assert (await eventbus.head()).last_seq == 0


async def test_a_browser_that_says_where_the_form_is_from_in_one_way_is_enough(
    eventbus: EventBus, browser: Browser
) -> None:
    fields = {"topic": "a", "payload": "1", "token": await browser.token()}

    for headers in ({"origin": ORIGIN}, {"sec-fetch-site": "same-origin"}):
        answer = await browser.http.post("/dashboard/publish", content=urlencode(fields), headers={**FORM, **headers})
        assert answer.status_code == 303

    assert (await eventbus.head()).last_seq == 2


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"content-type": "application/json"}, 415),
        (b"token=%ff", FORM, 422),
        (b"token=x&" + b"a=1&" * 2_000, FORM, 422),
        (b"token=" + b"x" * 1_048_577, FORM, 413),
        (b"\xff\xfe", FORM, 422),
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    browser: Browser, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await browser.http.post("/dashboard/publish", content=content, headers={**headers, "origin": ORIGIN})

    assert answer.status_code == status
    assert "Nothing was changed." in answer.text


# --- what strangers wrote ---


def assert_harmless(answer: httpx.Response) -> None:
    """It has no element that a stranger wrote, and no character that turns a line around."""
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00]", answer.text)


async def test_payloads_keys_and_metadata_are_shown_as_text(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.publish("a", {"note": EVIL, TURNED: "</pre></script>"}, key=TURNED + EVIL, metadata={EVIL: TURNED})
    await eventbus.publish("a", f"{EVIL}{TURNED}\x00\x1b[31m")
    await eventbus.publish("a", EVIL.encode(), content_type="text/html")
    await eventbus.publish("a", b"\xff\xfe" + EVIL.encode())
    await eventbus.publish("a", EVIL.encode(), content_type="image/svg+xml")

    for page in ("log", *(f"event?seq={seq}" for seq in range(1, 6))):
        assert_harmless(await browser.get(page))
    first = Page((await browser.get("event?seq=1")).text)
    assert '"note": ' in first.text
    assert "alert(1)" in first.text
    assert "U+202E" in first.text


async def test_a_payload_is_downloaded_and_never_shown_by_the_browser(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.publish("a", EVIL, content_type="text/html")

    answer = await browser.get("payload?seq=1")

    assert answer.content == EVIL.encode()
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="event-1.bin"'


async def test_errors_and_names_are_shown_as_text(eventbus: EventBus, browser: Browser) -> None:
    """Given a group, a queue, a schedule, a limit and errors whose names are markup, then pages show them as text."""
    from eventbus_fastapi.store.group import Again, Death, Settlement
    from eventbus_fastapi.store.roster import Serving

    name = "<script>alert(1)</script>"
    error = {"type": EVIL, "message": TURNED + EVIL, "traceback": EVIL, "node": EVIL, "attempt": EVIL, "time": EVIL}
    await eventbus.publish_many([("a", 1), ("b", 2)], key=EVIL, tags=[EVIL[:60]])
    store = eventbus.node.store
    group = await store.groups.ensure(name.replace("</", "<"), ["#"], after=0, archive="all")
    messages = (await store.read(0, 10)).messages
    claimed = await store.groups.claim(group, messages, up_to=2, owner="one", lease=60)
    assert claimed is not None
    dead, again = [Death(1, 1, [error])], [Again(2, 1, 60_000_000, [error])]
    await store.groups.settle([Settlement(group.id, claimed.token, dead=dead, again=again, pending=())])
    await eventbus.queues.pause(name)
    await eventbus.groups.set_rate_limit(name.replace("</", "<"), 1, 1)
    await eventbus.recurring.declare("<img>", "@daily", "a", EVIL, key=EVIL)
    await store.roster.see(EVIL[:60], {name: Serving(1, 0, False, (name,))}, host=EVIL, pid=1, age=1)
    one = urlencode({"group": group.name, "seq": 1})

    of_one = (f"group?{urlencode({'name': group.name})}", f"dead-letter?{one}", f"dead-letters?{one}")
    lists = ("", "groups", "dead-letters", "queues", "recurring", "rate-limits", "archive", "nodes", "topics")
    for page in (*of_one, *lists):
        assert_harmless(await browser.get(page))


@pytest.mark.parametrize("page", ["log", "topics", "groups", "dead-letters", "archive", "publish", "group", "nowhere"])
async def test_what_stands_in_an_address_is_shown_as_text(browser: Browser, page: str) -> None:
    names = ("pattern", "name", "group", "error", "topic", "payload", "since", "before", "after", "done", "count")
    answer = await browser.get(f"{page}?{urlencode(dict.fromkeys(names, EVIL + TURNED))}")

    assert answer.status_code < 500
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text


async def test_an_address_cannot_have_a_page_say_something(browser: Browser) -> None:
    for query in ("done=Your+account+is+closed", "done=retried&count=Call+us", "done=retried", "done=reset&count=٣"):
        answer = await browser.get(f"dead-letters?{query}")
        assert answer.status_code == 200
        assert 'class="notice good"' not in answer.text


async def test_a_long_payload_is_cut_until_all_of_it_is_asked_for(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.publish("a", "x" * 200_000 + "end")

    cut, whole = await browser.get("event?seq=1"), await browser.get("event?seq=1&whole=1")

    assert "xxxend" not in cut.text
    assert "/dashboard/event?whole=1&amp;seq=1" in cut.text
    assert len(cut.text) < 100_000
    assert "xxxend" in whole.text


async def test_a_line_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    from tests.server.asking import bus_on

    async with bus_on(tmp_path, max_payload=4_000_000) as eventbus, browsing(app_of(eventbus)) as browser:
        await eventbus.publish("a", {"line": "<" * 1_048_576})
        log, event = await browser.get("log"), await browser.get("event?seq=1")

    assert len(log.text) < 20_000
    assert len(event.text) < 500_000
    assert "&lt;&lt;" in event.text
