"""Who may see the dashboard: admins, or, where nobody is asked who they are, browsers on the same machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import SettingsError
from tests.dashboard.browsing import browsing
from tests.server.asking import app_of, bus_on

LOOPBACK = ("127.0.0.1", 50_000)


# --- without authentication ---


@pytest.mark.parametrize("client", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1:3000", "localhost:3000", "LOCALHOST", "bus.localhost", "[::1]:3000", "[::1]"]
)
async def test_a_browser_on_the_same_machine_sees_it(eventbus: EventBus, client: str, host: str) -> None:
    async with browsing(app_of(eventbus), client=(client, 50_000)) as browser:
        answer = await browser.get(headers={"host": host})

    assert answer.status_code == 200
    assert "<h1>Overview</h1>" in answer.text


@pytest.mark.parametrize("client", ["192.0.2.1", "10.0.0.1", "::2", "::ffff:192.0.2.1", "testclient", ""])
async def test_a_browser_on_another_machine_does_not(eventbus: EventBus, client: str) -> None:
    async with browsing(app_of(eventbus), client=(client, 50_000)) as browser:
        for page in ("", "log", "live", "static/dashboard.css", "nowhere"):
            answer = await browser.get(page)
            assert answer.status_code == 403
            assert "on its own machine" in answer.text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:localhost",
        "192.0.2.1:3000",
        "127.0.0.1@evil.example",
        "[::1].evil.example",
        "[::2]:3000",
        "::1",
        "127.0.0.1:3000:3000",
        "",
    ],
)
async def test_a_name_that_was_made_to_lead_here_does_not(eventbus: EventBus, host: str) -> None:
    """Given a page of somebody else whose name now leads to this machine, then it is not answered."""
    async with browsing(app_of(eventbus)) as browser:
        answer = await browser.get(headers={"host": host})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    "header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
)
async def test_what_a_proxy_hands_on_does_not(eventbus: EventBus, header: str) -> None:
    async with browsing(app_of(eventbus)) as browser:
        answer = await browser.get(headers={header: "127.0.0.1"})

    assert answer.status_code == 403
    assert "proxy" in answer.text


# --- settings ---


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with bus_on(tmp_path, dashboard="off") as eventbus, browsing(app_of(eventbus)) as browser:
        assert (await browser.get()).status_code == 404
        assert (await browser.get("log")).status_code == 404


async def test_without_jinja_it_is_off_and_cannot_be_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("eventbus_fastapi.dashboard.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("eventbus_fastapi.dashboard.find_spec", lambda name: None)

    async with bus_on(tmp_path) as eventbus, browsing(app_of(eventbus)) as browser:
        assert (await browser.get()).status_code == 404
    with pytest.raises(SettingsError, match=r"pip install 'eventbus-fastapi\[dashboard\]'"):
        bus_on(tmp_path, dashboard="on").router()


# --- where it is ---


async def test_it_is_below_the_path_of_its_router_and_of_its_app(eventbus: EventBus) -> None:
    """Given a router with a prefix in an app below a path, then the pages link to themselves there."""
    from fastapi import FastAPI

    inner = FastAPI()
    inner.include_router(eventbus.router(), prefix="/bus")
    outer = FastAPI()
    outer.mount("/inner", inner)
    await eventbus.publish("a", 1)

    async with browsing(outer, base="/inner/bus/dashboard") as browser:
        page = await browser.see("log")
        sent = await browser.post("publish", {"topic": "b", "payload": "2"})

    inside = [link for link in page.links if not link.startswith("#")]
    assert inside
    assert all(link.startswith("/inner/bus/dashboard") for link in inside)
    assert sent.status_code == 303
    assert sent.headers["location"].startswith("/inner/bus/dashboard/event?")


async def test_no_documentation_shows_it(eventbus: EventBus) -> None:
    async with browsing(app_of(eventbus)) as browser:
        document = (await browser.http.get("/openapi.json")).json()

    assert not [path for path in document["paths"] if "dashboard" in path]
