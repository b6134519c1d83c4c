"""The ways to say who one is: tokens, API keys, cookies, and several side by side."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import AnyOf, ApiKeyAuth, BearerAuth, CookieAuth, Gate, Principal
from eventbus_fastapi.auth.keys import Keys
from eventbus_fastapi.errors import SettingsError, Unauthenticated
from tests.auth.connections import handshake, request

KEY = "q9hJ2mXv7RtLw3cY5bNz8sKp"
OTHER = "Zk4vB8nQ1xWe6rTy3uIo9pAs"
SHOP = Principal("shop", publish=["shop.#"])


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


async def test_a_token_is_known_wherever_it_comes_from() -> None:
    gate = Gate(BearerAuth({KEY: SHOP}))
    encoded = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")

    assert await gate.admit(request(bearer(KEY))) is SHOP
    assert await gate.admit(handshake(bearer(KEY))) is SHOP
    assert await gate.admit(handshake(subprotocols=["eventbus.v1", f"bearer.{encoded}"])) is SHOP
    assert await gate.identify(handshake(), KEY) is SHOP
    assert await gate.identify(handshake(bearer(OTHER)), KEY) is SHOP


@pytest.mark.parametrize(
    "connection",
    [
        request(),
        request(bearer(OTHER)),
        request(bearer("")),
        request(bearer(KEY + "x")),
        request(bearer("\xe4" * 30)),
        request(bearer("x" * 9_000)),
        request(("authorization", KEY)),
        request(("authorization", f"Basic {KEY}")),
        request(bearer(KEY), bearer(KEY)),
        request(query=f"token={KEY}"),
        request(query=f"ticket={KEY}"),
        handshake(subprotocols=["eventbus.v1", "bearer.!!!"]),
        handshake(subprotocols=["bearer.", "eventbus.v1"]),
        handshake(subprotocols=["eventbus.v1", f"bearer.{KEY}"]),
        handshake(bearer(KEY), subprotocols=["eventbus.v1", "bearer.eA"]),
        handshake(subprotocols=["bearer.eA", "bearer.eQ"]),
    ],
)
async def test_anything_else_is_nobody_and_is_not_quoted(connection: HTTPConnection) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await Gate(BearerAuth({KEY: SHOP})).admit(connection)
    assert KEY not in str(refused.value)
    assert refused.value.challenge.startswith("Bearer ")


async def test_a_token_may_be_given_by_its_hash() -> None:
    gate = Gate(BearerAuth({f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}": SHOP}))
    assert await gate.admit(request(bearer(KEY))) is SHOP


def sync_find(token: str) -> Principal | None:
    return SHOP if token == KEY else None


async def async_find(token: str) -> Principal | None:
    return sync_find(token)


@pytest.mark.parametrize("find", [sync_find, async_find])
async def test_a_token_may_be_looked_up_by_a_callable(find: Callable[[str], Any]) -> None:
    gate = Gate(BearerAuth(find))
    assert await gate.admit(request(bearer(KEY))) is SHOP
    with pytest.raises(Unauthenticated):
        await gate.admit(request(bearer(OTHER)))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "hunter2",
        "a" * 40,
        "0123456789abcdef",
        "abababababababababababababababab",
        "two words and some more",
        5,
    ],
)
def test_a_weak_key_is_refused_at_the_start_and_not_quoted(key: Any) -> None:
    for way in (BearerAuth, ApiKeyAuth):
        with pytest.raises(SettingsError) as refused:
            way({key: SHOP})
        assert not key or str(key) not in str(refused.value)


def test_no_key_at_all_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="nobody could come in"):
        BearerAuth({})


def test_one_key_is_that_of_one_principal() -> None:
    digest = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    with pytest.raises(SettingsError, match="is also that of"):
        Keys({KEY: SHOP, digest: Principal("other")})


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(Keys({KEY: SHOP})) + repr(BearerAuth({KEY: SHOP}).__dict__)


async def test_an_api_key_comes_in_its_header() -> None:
    gate = Gate(ApiKeyAuth({KEY: SHOP}))
    assert await gate.admit(request(("x-api-key", KEY))) is SHOP
    assert await gate.admit(handshake(("X-API-Key", KEY))) is SHOP
    for headers in (
        [("x-api-key", OTHER)],
        [("x-api-key", "")],
        [("x-api-key", KEY), ("x-api-key", KEY)],
        [bearer(KEY)],
    ):
        with pytest.raises(Unauthenticated) as refused:
            await gate.admit(request(*headers))
        assert refused.value.challenge.startswith("ApiKey ")


def from_cookie(connection: HTTPConnection) -> Principal | None:
    user = connection.cookies.get("user")
    return Principal(user) if user else None


async def test_a_cookie_is_read_by_the_app() -> None:
    gate = Gate(CookieAuth(from_cookie))
    alice = await gate.admit(handshake(("cookie", "user=alice"), ("origin", "https://bus.example")))
    assert alice.name == "alice"
    for headers in ([], [("cookie", "user=")], [("cookie", "user=alice"), bearer(KEY)]):
        with pytest.raises(Unauthenticated):
            await gate.admit(request(*headers))


async def test_ways_stand_side_by_side_and_wrong_credentials_are_not_taken_for_a_cookie() -> None:
    gate = Gate(AnyOf(BearerAuth({KEY: SHOP}), ApiKeyAuth({OTHER: SHOP}), CookieAuth(from_cookie)))
    assert await gate.admit(request(bearer(KEY))) is SHOP
    assert await gate.admit(request(("x-api-key", OTHER))) is SHOP
    assert (await gate.admit(request(("cookie", "user=alice")))).name == "alice"
    with pytest.raises(Unauthenticated, match="the token is not known"):
        await gate.admit(request(bearer(OTHER), ("cookie", "user=alice")))
    with pytest.raises(Unauthenticated) as refused:
        await gate.admit(request())
    assert refused.value.challenge.split(" realm")[0] == "Bearer"
