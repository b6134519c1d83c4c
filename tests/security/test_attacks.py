"""One line per attack on who may do what: what is sent, and what has to come back.

Alice may publish to and read `a.#`, read `shared.*`, and join the groups `a.*`; the log has an event of hers (seq 1)
and one of Bob's (seq 2). No answer is a 500, and no token comes back or gets into a log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import AnyOf, ApiKeyAuth, BearerAuth, CookieAuth, JWTAuth, Principal
from tests.auth.test_jwt import HMAC, PRIVATE_PEM, SECRET, claims, forged_with_the_public_key, part, signed
from tests.security.attacks import LET_IN, Attack, encoded, frames, http, shake
from tests.security.guarded import bearer, serving_guarded
from tests.server.sockets import ServedBus

KEY = "q9hJ2mXv7RtLw3cY5bNz8sKp"
ADMIN = "Zk4vB8nQ1xWe6rTy3uIo9pAs"
EXPIRED = "Hd7gF2kL5mN8bV1cX4zQ0wEr"
ALICE = Principal("alice", publish=["a.#"], subscribe=["a.#", "shared.*"], groups=["a.*"])
KEYS = {
    KEY: ALICE,
    ADMIN: Principal("admin", is_admin=True),
    EXPIRED: ALICE.until(datetime.now(UTC) - timedelta(seconds=1)),
}
APP = "https://app.example"
COOKIE = {"Cookie": "user=alice"}
EVENT = {"topic": "a.x", "payload": 1}
HELLO = "?auth=frame"


def from_cookie(connection: HTTPConnection) -> Principal | None:
    return ALICE if connection.cookies.get("user") == "alice" else None


def origin(value: str, *others: dict[str, str]) -> dict[str, str]:
    return {"Origin": value, **{name: text for each in others for name, text in each.items()}}


def subscribe(pattern: str, **more: object) -> dict[str, object]:
    return {"type": "subscribe", "id": 1, "pattern": pattern, **more}


A = bearer(KEY)
"""Alice's token, as a header."""

HANDSHAKES = [
    # --- credentials ---
    shake("a good token", LET_IN, A),
    shake("a good API key", LET_IN, {"X-API-Key": KEY}),
    shake("a good JWT", LET_IN, bearer(signed())),
    shake("no credentials", 401),
    shake("no credentials, plain", 401, subprotocols=()),
    shake("an empty token", 401, {"Authorization": "Bearer "}),
    shake("a garbage token", 401, bearer("garbage")),
    shake("a token that begins as a good one", 401, bearer(KEY[:-1])),
    shake("a token with more behind it", 401, bearer(KEY + "x")),
    shake("a token in another case", 401, bearer(KEY.swapcase())),
    shake("an expired token", 401, bearer(EXPIRED)),
    shake("a token in the scheme Basic, which browsers send by themselves", 403, {"Authorization": f"Basic {KEY}"}),
    shake("a token in two headers", 401, [*A.items(), *A.items()]),
    shake("an API key in two headers", 401, [("X-API-Key", KEY), ("X-API-Key", KEY)]),
    shake("an API key that is not known", 401, {"X-API-Key": "x" * 30}),
    shake("a token of 5,000 characters", 401, bearer("x" * 5_000)),
    shake("SQL as a token", 401, bearer("'or'1'='1")),
    shake("alg=none", 401, bearer(f"{part({'alg': 'none'})}.{part(claims())}.")),
    shake("alg=None", 401, bearer(f"{part({'alg': 'None'})}.{part(claims())}.")),
    shake("HS256 with the public key", 401, bearer(forged_with_the_public_key())),
    shake("RS256 where HS256 is asked", 401, bearer(signed(PRIVATE_PEM, "RS256"))),
    shake("a JWT of another audience", 401, bearer(signed(aud="other"))),
    shake("a JWT of another issuer", 401, bearer(signed(iss="https://evil.example"))),
    shake("a JWT without an end", 401, bearer(signed(exp=None))),
    shake("an expired JWT", 401, bearer(signed(exp=1))),
    shake("a JWT signed by somebody", 401, bearer(signed("x" * 64))),
    # --- in the URL ---
    shake("a token in the URL", 401, query=f"?token={KEY}"),
    shake("a token in the URL, by another name", 401, query=f"?access_token={KEY}"),
    shake("a token as a ticket", 401, query=f"?ticket={KEY}"),
    shake("an empty ticket", 401, query="?ticket="),
    # --- as a subprotocol ---
    shake("a good token as a subprotocol", LET_IN, subprotocols=("eventbus.v1", encoded(KEY))),
    shake("the same in front", LET_IN, subprotocols=(encoded(KEY), "eventbus.v1")),
    shake("a garbage token as a subprotocol", 401, subprotocols=("eventbus.v1", encoded("garbage"))),
    shake("a subprotocol that is no base64", 401, subprotocols=("eventbus.v1", "bearer.a*b")),
    shake("an empty one", 401, subprotocols=("eventbus.v1", "bearer.")),
    shake("a token that is not encoded", 401, subprotocols=("eventbus.v1", f"bearer.{KEY}")),
    shake("two tokens as subprotocols", 401, subprotocols=("eventbus.v1", encoded(KEY), encoded(KEY))),
    shake("a token as header and subprotocol", 401, A, subprotocols=("eventbus.v1", encoded(KEY))),
    shake("a token and no dialect", 400, subprotocols=(encoded(KEY),)),
    # --- origins ---
    shake("a page of the app with a cookie", LET_IN, origin(APP, COOKIE)),
    shake("an evil page with a cookie", 403, origin("https://evil.example", COOKIE)),
    shake("an evil page with a token", 403, origin("https://evil.example", A)),
    shake("an evil page that begins as the app", 403, origin("https://app.example.evil.com", COOKIE)),
    shake("an evil page that ends as the app", 403, origin("https://evilapp.example", COOKIE)),
    shake("the app over http", 403, origin("http://app.example", COOKIE)),
    shake("the app on another port", 403, origin("https://app.example:8443", COOKIE)),
    shake("the app in upper case", 403, origin("https://APP.example", COOKIE)),
    shake("the app with a path", 403, origin("https://app.example/", COOKIE)),
    shake("origin null", 403, origin("null", COOKIE)),
    shake("an empty origin", 403, origin("", COOKIE)),
    # uvicorn itself refuses it, as no request
    shake("two origins", 400, [("Origin", APP), ("Origin", APP), *COOKIE.items()]),
    shake("two origins in one header", 403, origin(f"{APP}, https://evil.example", COOKIE)),
    shake("a cookie without an origin", 403, COOKIE),
    shake("an evil page that will send a token", 403, origin("https://evil.example"), query=HELLO),
    shake("a cookie that is not known", 401, origin(APP, {"Cookie": "user=mallory"})),
    # --- the first frame ---
    frames("a good token in the first frame", LET_IN, {}, [{"type": "auth", "token": KEY, "id": 1}], query=HELLO),
    frames("the same, plain", LET_IN, {}, [{"type": "auth", "token": KEY, "id": 1}], query=HELLO, subprotocols=()),
    frames("a garbage token in it", 4401, {}, [{"type": "auth", "token": "garbage"}], query=HELLO),
    frames("an expired token in it", 4401, {}, [{"type": "auth", "token": EXPIRED}], query=HELLO),
    frames("no token in it", 4401, {}, [{"type": "auth"}], query=HELLO),
    frames("a number as a token", 4401, {}, [{"type": "auth", "token": 5}], query=HELLO),
    frames("a subscribe before the token", 4401, {}, [subscribe("#"), {"type": "auth", "token": KEY}], query=HELLO),
    frames("a publish before it", 4401, {}, [{"type": "publish", "data": EVENT}], query=HELLO),
    frames("a ping before it", 4401, {}, [{"type": "ping"}], query=HELLO, subprotocols=()),
    frames("garbage before it", 4401, {}, ["{"], query=HELLO),
    frames("bytes before it", 4401, {}, [b"\x00"], query=HELLO),
    frames("an array of it", 4401, {}, ['[{"type":"auth","token":"' + KEY + '"}]'], query=HELLO),
    frames("much before it", 4401, {}, [{"type": "auth", "token": "x" * 20_000}], query=HELLO),
    frames("silence", 4401, {}, [], query=HELLO),
    frames("silence, plain", 4401, {}, [], query=HELLO, subprotocols=()),
]

REQUESTS = [
    http("reading without credentials", 401, "GET", "/events"),
    http("one event without credentials", 401, "GET", "/events/1"),
    http("a bad seq without credentials", 401, "GET", "/events/x"),
    http("a stream without credentials", 401, "GET", "/events/stream"),
    http("publishing without credentials", 401, "POST", "/publish", body=EVENT),
    http("garbage without credentials", 401, "POST", "/publish", body=b"\xff"),
    http("the groups without credentials", 401, "GET", "/groups"),
    http("a ticket without credentials", 401, "POST", "/tickets"),
    http("a ticket for a ticket", 401, "POST", "/tickets?ticket=x"),
    http("publishing with a garbage token", 401, "POST", "/publish", bearer("garbage"), EVENT),
    http("publishing with an expired token", 401, "POST", "/publish", bearer(EXPIRED), EVENT),
    http("a token in the URL of a stream", 401, "GET", f"/events/stream?token={KEY}"),
    http("a form of another site", 403, "POST", "/publish", origin("https://evil.example", COOKIE), EVENT),
    http("a form of origin null", 403, "POST", "/publish", origin("null", COOKIE), EVENT),
    http("a change with a cookie and no origin", 403, "POST", "/publish", COOKIE, EVENT),
    http("a delete with a cookie and no origin", 403, "DELETE", "/groups/a.x", COOKIE),
    http("a ticket for an evil page", 403, "POST", "/tickets", origin("https://evil.example", COOKIE)),
    http(
        "text instead of JSON from the app",
        415,
        "POST",
        "/publish",
        {**origin(APP, COOKIE), "content-type": "text/plain"},
        EVENT,
    ),
    http("publishing beyond the grant", 403, "POST", "/publish", A, {"topic": "b.x", "payload": 1}),
    http("publishing to another case of it", 403, "POST", "/publish", A, {"topic": "A.x", "payload": 1}),
    http("publishing to the shared ones", 403, "POST", "/publish", A, {"topic": "shared.x", "payload": 1}),
    http("one forbidden event of a list", 403, "POST", "/publish", A, [EVENT, {"topic": "b.x", "payload": 1}]),
    http("one that is not stored", 403, "POST", "/publish", A, {"topic": "b.x", "payload": 1, "durable": False}),
    http("one that is delayed", 403, "POST", "/publish", A, {"topic": "b.x", "payload": 1, "delay": 60}),
    http("a topic with NUL", 422, "POST", "/publish", A, {"topic": "a.\0", "payload": 1}),
    http("a topic in full width", 422, "POST", "/publish", A, {"topic": "\uff41.x", "payload": 1}),
    http("a topic with a dot behind it", 422, "POST", "/publish", A, {"topic": "a.x.", "payload": 1}),
    http("a topic that is a pattern", 422, "POST", "/publish", A, {"topic": "a.#", "payload": 1}),
    http("reading everything", 403, "GET", "/events?pattern=%23", A),
    http("reading everything by stars", 403, "GET", "/events?pattern=*.*", A),
    http("reading it beside what is granted", 403, "GET", "/events?pattern=a.x&pattern=b.x", A),
    http("reading in another case", 403, "GET", "/events?pattern=A.x", A),
    http("reading with an escape that is escaped", 422, "GET", "/events?pattern=a.%2523", A),
    http("streaming everything", 403, "GET", "/events/stream?pattern=%23", A),
    http("streaming history beyond the grant", 403, "GET", "/events/stream?pattern=b.x&after=0", A),
    http("streaming with the id of somebody", 403, "GET", "/events/stream?pattern=b.x", {**A, "Last-Event-ID": "1"}),
    http("an event of somebody else", 404, "GET", "/events/2", A),
    http("an event that is not there", 404, "GET", "/events/99", A),
    http("the groups", 403, "GET", "/groups", A),
    http("one's own group", 403, "GET", "/groups/a.jobs", A),
    http("making a group", 403, "PUT", "/groups/a.jobs", A, {"patterns": ["#"]}),
    http("resetting a group", 403, "POST", "/groups/a.jobs/reset", A, {"start": "earliest"}),
    http("deleting a group", 403, "DELETE", "/groups/a.jobs", A),
    http("the dead letters", 403, "GET", "/dead-letters", A),
    http("one dead letter", 403, "GET", "/dead-letters/a.jobs/1", A),
    http("retrying dead letters", 403, "POST", "/dead-letters/retry", A, {"group": "a.jobs", "filter": {}}),
    http("discarding dead letters", 403, "POST", "/dead-letters/discard", A, {"group": "a.jobs", "filter": {}}),
    http("the archive", 403, "GET", "/archive", A),
    http("one of the archive", 403, "GET", "/archive/1", A),
    http("the queues", 403, "GET", "/queues", A),
    http("pausing a queue", 403, "POST", "/queues/email/pause", A, {}),
    http("the workers", 403, "GET", "/workers", A),
    http("the rate limits", 403, "GET", "/rate-limits", A),
    http("a rate limit", 403, "PUT", "/rate-limits/mail", A, {"permits": 1, "per": 1}),
    http("what recurs", 403, "GET", "/recurring", A),
    http("making something recur", 403, "PUT", "/recurring/x", A, {"cron": "* * * * *", **EVENT}),
    http("the same as an admin", 200, "GET", "/groups", bearer(ADMIN)),
]

FRAMES = [
    frames("subscribing to everything", "auth.forbidden", A, [subscribe("#")]),
    frames("subscribing beyond the grant by #", "auth.forbidden", A, [subscribe("#.x")]),
    frames("subscribing beyond the grant by *", "auth.forbidden", A, [subscribe("*.x")]),
    frames("subscribing above the grant", "auth.forbidden", A, [subscribe("shared.#")]),
    frames("subscribing in another case", "auth.forbidden", A, [subscribe("A.x")]),
    frames("subscribing to somebody's", "auth.forbidden", A, [subscribe("b.x")]),
    frames("one of several patterns", "auth.forbidden", A, [{"type": "subscribe", "patterns": ["a.x", "b.x"]}]),
    frames("replaying somebody's", "auth.forbidden", A, [subscribe("b.x", starting_seq=1)]),
    frames("replaying it plain", "auth.forbidden", A, [subscribe("b.x", starting_seq=1)], subprotocols=()),
    frames("a pattern with an escape", "pattern.invalid", A, [subscribe("a.%23")]),
    frames("a pattern with NUL", "pattern.invalid", A, [subscribe("a.\0")]),
    frames("a pattern in full width", "pattern.invalid", A, [subscribe("\uff41.x")]),
    frames("what is granted", LET_IN, A, [subscribe("a.*.#")]),
    frames(
        "publishing to somebody's", "auth.forbidden", A, [{"type": "publish", "data": {"topic": "b.x", "payload": 1}}]
    ),
    frames(
        "publishing it unstored",
        "auth.forbidden",
        A,
        [{"type": "publish", "data": {"topic": "b.x", "payload": 1, "durable": False}}],
    ),
    frames(
        "one forbidden of a batch",
        "auth.forbidden",
        A,
        [{"type": "publish_batch", "messages": [EVENT, {"topic": "b.x", "payload": 1}]}],
    ),
    frames("acknowledging somebody's", "event.not_found", A, [{"type": "ack", "seq": 2}]),
    frames("acknowledging it in a list", "event.not_found", A, [{"type": "ack", "seqs": [1, 2]}]),
    frames("joining somebody's group", "auth.forbidden", A, [subscribe("a.x", group="b.jobs")]),
    frames("joining one's own group for more", "auth.forbidden", A, [subscribe("#", group="a.jobs")]),
    frames("joining a group by a pattern", "auth.forbidden", A, [subscribe("a.x", group="*")]),
    frames("settling what is somebody's", "subscription.unknown", A, [{"type": "nack", "sub": 9, "seq": 1}]),
    frames("renewing with a garbage token", "auth.unauthenticated", A, [{"type": "auth", "token": "garbage"}]),
    frames("renewing with an expired token", "auth.expired", A, [{"type": "auth", "token": EXPIRED}]),
    frames("becoming somebody else", "auth.forbidden", A, [{"type": "auth", "token": ADMIN}]),
    frames("renewing without a token", "frame.bad", A, [{"type": "auth"}]),
]


@pytest.fixture
async def attacked(tmp_path: Path, attack: Attack) -> AsyncIterator[ServedBus]:
    """A bus that asks who comes in every way that there is."""
    ways = AnyOf(BearerAuth(KEYS), ApiKeyAuth(KEYS), JWTAuth(SECRET, **HMAC), CookieAuth(from_cookie))
    patience = 0.3 if "silence" in attack.name else 10.0
    async with serving_guarded(tmp_path, ways, allowed_origins=(APP,), tickets=True, hello_timeout=patience) as served:
        await served.bus.publish("a.x", "Alice's")
        await served.bus.publish("b.x", "Bob's")
        yield served


@pytest.mark.parametrize("attack", [*HANDSHAKES, *REQUESTS, *FRAMES], ids=str)
async def test_an_attack_is_answered_as_the_table_says(
    attack: Attack, attacked: ServedBus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="eventbus_fastapi"):
        assert await attack.send(attacked) == attack.expected
    assert KEY not in caplog.text
    assert "Traceback" not in caplog.text


def test_no_two_lines_have_a_name_in_common() -> None:
    names = [attack.name for attack in (*HANDSHAKES, *REQUESTS, *FRAMES)]
    assert len(names) == len(set(names)) >= 60
