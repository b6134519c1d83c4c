"""Which web pages may use a browser's credentials."""

from __future__ import annotations

import pytest

from eventbus_fastapi.auth.origins import check_origin, check_origins
from eventbus_fastapi.errors import OriginForbidden, SettingsError
from tests.auth.connections import Header, handshake, request

ALLOWED = check_origins(["https://app.example"])
COOKIE = ("cookie", "session=1")
TOKEN = ("authorization", "Bearer x")


def origin(value: str) -> Header:
    return ("origin", value)


@pytest.mark.parametrize("value", ["https://bus.example", "https://app.example"])
@pytest.mark.parametrize("credentials", [COOKIE, TOKEN])
def test_pages_of_our_own_and_those_that_are_named_may(value: str, credentials: Header) -> None:
    check_origin(handshake(origin(value), credentials), ALLOWED)
    check_origin(request(origin(value), credentials, method="POST"), ALLOWED)


@pytest.mark.parametrize(
    "value",
    [
        "https://evil.example",
        "https://app.example.evil.com",
        "https://evil-app.example",
        "https://bus.example.evil.com",
        "http://app.example",
        "http://bus.example",
        "https://app.example:8443",
        "https://bus.example:443",
        "https://APP.example",
        "HTTPS://app.example",
        "https://app.example/",
        "https://app.example.",
        "https://user@app.example",
        "app.example",
        "null",
        "",
        "*",
        "file://",
        " https://app.example",
        "https://app.example https://evil.example",
    ],
)
@pytest.mark.parametrize("credentials", [COOKIE, TOKEN])
def test_any_other_page_may_not(value: str, credentials: Header) -> None:
    with pytest.raises(OriginForbidden):
        check_origin(handshake(origin(value), credentials), ALLOWED)
    with pytest.raises(OriginForbidden):
        check_origin(request(origin(value), COOKIE, method="POST"), ALLOWED)


def test_two_origins_are_none() -> None:
    with pytest.raises(OriginForbidden):
        check_origin(handshake(origin("https://app.example"), origin("https://app.example")), ALLOWED)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("credentials", [COOKIE, ("authorization", "Basic x"), ("authorization", "Negotiate x")])
def test_what_a_browser_sends_by_itself_is_not_enough_without_an_origin(method: str, credentials: Header) -> None:
    for connection in (handshake(credentials), request(credentials, method=method)):
        with pytest.raises(OriginForbidden, match="must say its Origin"):
            check_origin(connection, ALLOWED)


@pytest.mark.parametrize("credentials", [[TOKEN], [("x-api-key", "x")], [], [TOKEN, COOKIE]])
def test_programs_need_not_say_an_origin(credentials: list[Header]) -> None:
    check_origin(handshake(*credentials), ALLOWED)
    check_origin(request(*credentials, method="POST"), ALLOWED)


def test_reading_over_http_is_left_to_the_rules_of_browsers() -> None:
    check_origin(request(COOKIE), ALLOWED)
    check_origin(request(COOKIE, origin("https://evil.example")), ALLOWED)


@pytest.mark.parametrize(
    ("host", "scheme", "own"),
    [
        ("bus.example:8443", "wss", "https://bus.example:8443"),
        ("bus.example:443", "wss", "https://bus.example"),
        ("bus.example:80", "ws", "http://bus.example"),
        ("BUS.example", "ws", "http://bus.example"),
        ("[::1]:3000", "ws", "http://[::1]:3000"),
    ],
)
def test_our_own_origin_is_that_of_the_request(host: str, scheme: str, own: str) -> None:
    check_origin(handshake(("host", host), origin(own), scheme=scheme), ())


def test_a_request_with_two_hosts_has_no_origin_of_its_own() -> None:
    with pytest.raises(OriginForbidden):
        check_origin(handshake(("host", "bus.example"), ("host", "evil"), origin("https://bus.example")), ())


@pytest.mark.parametrize(
    "given", ["*", "https://*.example", "app.example", "https://App.example", "https://a.example/", "https://a:443", ""]
)
def test_an_origin_that_browsers_write_in_another_way_is_refused_at_once(given: str) -> None:
    with pytest.raises(SettingsError, match="allowed_origins"):
        check_origins([given])
