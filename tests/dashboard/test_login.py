"""Logging in: where the bus asks who somebody is, admins see the dashboard, with the token that programs use."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from eventbus_fastapi import EventBus, Settings
from eventbus_fastapi.app import create_app
from eventbus_fastapi.auth import Principal, bearer_token
from tests.dashboard.browsing import FORM, ORIGIN, Browser, Page, browsing
from tests.tables import log_at

FAR_AWAY = ("192.0.2.1", 50_000)
ADMIN, READER, EXPIRED = "admin-token", "reader-token", "expired-token"
LONG_AGO = datetime.now(UTC) - timedelta(hours=1)
PRINCIPALS = {
    ADMIN: Principal("root", is_admin=True),
    READER: Principal("reader", subscribe=["#"], publish=["#"], groups=["#"]),
    EXPIRED: Principal("old", is_admin=True, expires_at=LONG_AGO),
}


async def by_token(connection: HTTPConnection) -> Principal | None:
    return PRINCIPALS.get(bearer_token(connection) or "")


async def by_key(connection: HTTPConnection) -> Principal | None:
    return PRINCIPALS.get(connection.headers.get("x-api-key", ""))


async def by_cookie(connection: HTTPConnection) -> Principal | None:
    return PRINCIPALS.get(connection.cookies.get("session", ""))


@contextlib.asynccontextmanager
async def visiting(directory: Path, authenticate: Any = by_token, **options: Any) -> AsyncIterator[Browser]:
    app = FastAPI()
    async with EventBus(log_at(directory / "bus.db"), authenticate=authenticate) as eventbus:
        app.include_router(eventbus.router())
        async with browsing(app, client=FAR_AWAY, **options) as browser:
            yield browser


async def log_in(browser: Browser, key: str, page: str = "", **fields: str) -> Any:
    form = Page((await browser.get(page)).text).form("login")
    return await browser.post("login", {**dict(form.fields), "key": key, **fields})


async def test_without_a_login_every_page_is_the_form_for_it(tmp_path: Path) -> None:
    async with visiting(tmp_path) as browser:
        for page in ("", "log", "groups", "publish", "live", "payload?seq=1", "nowhere"):
            answer = await browser.get(page)
            assert answer.status_code == 401
            assert Page(answer.text).form("login").method == "post"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert (await browser.get("static/dashboard.css")).status_code == 200


@pytest.mark.parametrize("authenticate", [by_token, by_key])
async def test_an_admin_logs_in_comes_to_the_page_that_was_asked_for_and_logs_out(
    tmp_path: Path, authenticate: Any
) -> None:
    async with visiting(tmp_path, authenticate) as browser:
        answer = await log_in(browser, ADMIN, "log?pattern=a.*")

        assert answer.status_code == 303
        assert answer.headers["location"] == "/dashboard/log?pattern=a.*"
        page = await browser.see("log")
        assert "root" in page.text
        sent = await browser.post("publish", {"topic": "a", "payload": "1"})
        assert sent.status_code == 303
        left = await browser.post("logout", {})
        assert (left.status_code, left.headers["location"]) == (303, "/dashboard")
        assert (await browser.get("log")).status_code == 401


async def test_the_cookie_of_a_login_stays_in_the_browser_and_on_our_pages(tmp_path: Path) -> None:
    async with visiting(tmp_path) as browser:
        answer = await log_in(browser, ADMIN)
        (cookie,) = [each for each in answer.headers.get_list("set-cookie") if each.startswith("eventbus_dashboard=")]
    (tmp_path / "s").mkdir()
    async with visiting(tmp_path / "s", base_url="https://127.0.0.1:3000") as browser:
        form = Page((await browser.get()).text).form("login")
        headers = {"origin": "https://127.0.0.1:3000"}
        answer = await browser.post("login", {**dict(form.fields), "key": ADMIN}, **headers)
        (secure,) = [each for each in answer.headers.get_list("set-cookie") if each.startswith("eventbus_dashboard=")]

    for word in ("HttpOnly", "Path=/dashboard", "SameSite=strict"):
        assert word in cookie
        assert word in secure
    assert ADMIN not in cookie
    assert "Secure" in secure


@pytest.mark.parametrize(
    "key", ["wrong", EXPIRED, "", " ", "é", "a b", "x" * 3_000, "a\nb", "' OR 1=1 --", "<script>alert(1)</script>"]
)
async def test_a_key_that_is_not_good_is_refused(tmp_path: Path, key: str) -> None:
    async with visiting(tmp_path) as browser:
        answer = await log_in(browser, key)

        assert answer.status_code in (401, 422)
        assert 'role="alert"' in answer.text
        assert "<script>alert" not in answer.text
        assert not [each for each in answer.headers.get_list("set-cookie") if each.startswith("eventbus_dashboard=")]
        assert (await browser.get()).status_code == 401


async def test_who_is_no_admin_is_told_so(tmp_path: Path) -> None:
    async with visiting(tmp_path) as browser:
        answer = await log_in(browser, READER)
        assert answer.status_code == 403
        assert "is no admin" in answer.text
        assert (await browser.get(headers={"authorization": f"Bearer {READER}"})).status_code == 403


async def test_a_program_may_come_with_its_token(tmp_path: Path) -> None:
    async with visiting(tmp_path) as browser:
        answer = await browser.get("groups", headers={"authorization": f"Bearer {ADMIN}"})

    assert answer.status_code == 200


async def test_an_app_s_own_cookie_is_a_login_too(tmp_path: Path) -> None:
    async with visiting(tmp_path, by_cookie) as browser:
        browser.http.cookies.set("session", ADMIN)
        assert "root" in (await browser.see("log")).text
        assert (await browser.post("publish", {"topic": "a", "payload": "1"})).status_code == 303
        browser.http.cookies.set("session", READER)
        assert (await browser.get("log")).status_code == 403


@pytest.mark.parametrize(
    "cookie", ["", "%", "AAAA", "é", "x" * 5_000, "YWRtaW4tdG9rZW4K", "YQBi", "4pyT", "=", "a", "YWRtaW4tdG9rZW4=x"]
)
async def test_a_cookie_that_is_no_login_is_none(tmp_path: Path, cookie: str) -> None:
    async with visiting(tmp_path) as browser:
        answer = await browser.get(headers={"cookie": f"eventbus_dashboard={cookie}".encode()})

    assert answer.status_code == 401


@pytest.mark.parametrize(
    "then",
    [
        "https://evil.example",
        "//evil.example",
        "\\\\evil.example",
        "/\\evil.example",
        "../../evil",
        "@evil.example",
        "log\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "log?a=\r\nLocation: https://evil.example",
        "logout",
    ],
)
async def test_a_login_leads_to_a_page_of_ours(tmp_path: Path, then: str) -> None:
    async with visiting(tmp_path) as browser:
        answer = await log_in(browser, ADMIN, then=then)

    assert answer.status_code == 303
    assert answer.headers["location"] == "/dashboard"


async def test_nobody_is_logged_in_by_a_page_of_somebody_else(tmp_path: Path) -> None:
    async with visiting(tmp_path) as browser:
        form = dict(Page((await browser.get()).text).form("login").fields)
        forged = [
            await browser.post("login", {**form, "key": ADMIN}, origin="https://evil.example"),
            await browser.post("login", {**form, "key": ADMIN, "token": "0" * 64}),
            await browser.http.post(
                "/dashboard/login", content=f"key={ADMIN}&then=", headers={**FORM, "origin": ORIGIN}
            ),
        ]

    for answer in forged:
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


async def test_a_token_that_is_good_no_more_ends_the_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with visiting(tmp_path) as browser:
        await log_in(browser, ADMIN)
        token = await browser.token()
        monkeypatch.delitem(PRINCIPALS, ADMIN)

        assert (await browser.get("log")).status_code == 401
        sent = await browser.post("publish", {"topic": "a", "payload": "1", "token": token})
        assert sent.status_code == 401


async def test_a_form_of_one_admin_is_none_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRINCIPALS, "second-token", Principal("second", is_admin=True))
    async with visiting(tmp_path) as browser:
        await log_in(browser, ADMIN)
        token = await browser.token()
        await browser.post("logout", {})
        await log_in(browser, "second-token")

        assert (await browser.post("publish", {"topic": "a", "payload": "1", "token": token})).status_code == 403


@pytest.mark.parametrize(("raised", "status"), [(HTTPException(401), 401), (HTTPException(403, "not you"), 403)])
async def test_the_app_s_own_refusals_are_pages(tmp_path: Path, raised: HTTPException, status: int) -> None:
    async def refuse(connection: HTTPConnection) -> Principal:
        raise raised

    async with visiting(tmp_path, refuse) as browser:
        answer = await browser.get()

    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_an_authenticate_that_fails_is_a_page_that_tells_nothing(tmp_path: Path) -> None:
    async def fail(connection: HTTPConnection) -> Principal:
        raise RuntimeError("the secret of the vault")

    async with visiting(tmp_path, fail) as browser:
        answer = await browser.get()

    assert answer.status_code == 500
    assert "vault" not in answer.text


async def test_the_bus_alone_lets_the_admins_of_its_keys_in(tmp_path: Path) -> None:
    """Given keys and grants as the standalone bus takes them, then an admin's key is a login, and another's is not."""
    keys = """
        [[principals]]
        name = "shop"
        key = "shop-key-0123456789abcdef"
        subscribe = ["#"]
        [[principals]]
        name = "operator"
        key = "operator-key-0123456789abcdef"
        admin = true
    """
    app = create_app(Settings(database_url=log_at(tmp_path / "bus.db"), auth=keys))
    async with app.state.eventbus, browsing(app, client=FAR_AWAY) as browser:
        assert (await log_in(browser, "shop-key-0123456789abcdef")).status_code == 403
        assert (await log_in(browser, "operator-key-0123456789abcdef")).status_code == 303
        page = await browser.see("groups")
        sent = await browser.post("publish", {"topic": "a", "payload": "1"})

    assert "operator" in page.text
    assert sent.status_code == 303
