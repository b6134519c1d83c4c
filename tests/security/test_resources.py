"""Attacks on what a bus has and reads: each line is what is sent, and the status or code that answers it.

They go to `eventbus serve` with its default limits, byte by byte. After each the bus does its work; its log, looked at
after all of them, has no error and no traceback, and one line per record whatever was sent.
"""

from __future__ import annotations

import itertools
import json
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.faults.processes import Node
from tests.security.attacked import BODY_TIMEOUT
from tests.security.wire import (
    BINARY,
    CLOSE,
    CONTINUED,
    HANDSHAKE,
    PING,
    TEXT,
    V1,
    Socket,
    ask,
    chunks,
    fragments,
    frame,
    frame_length,
    request,
)

MIB = 1_048_576
DEEP = 100_000
SQL = "'; DROP TABLE bus_log; --"
LINES = "a\nERROR: made up\r\n\x1b[31m %s {0} ${jndi:ldap://x}"


def event(**fields: Any) -> bytes:
    return json.dumps({"topic": "a", "payload": 1, **fields}).encode()


def raw(payload: bytes) -> bytes:
    return b'{"topic":"a","payload":%s}' % payload


def padded(size: int) -> bytes:
    return event().ljust(size)


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


def publish(body: bytes, *headers: str, **options: Any) -> bytes:
    return request("POST", "/publish", body, *headers, **options)


def chunked(*bodies: bytes) -> bytes:
    return publish(b"", "Transfer-Encoding: chunked") + chunks(*bodies)


class Endless:
    """The same again and again, after something else; each time from the start."""

    def __init__(self, repeated: bytes, first: bytes = b"") -> None:
        self._repeated = repeated
        self._first = first

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain([self._first], itertools.repeat(self._repeated))


TOGETHER = b"GET /healthz HTTP/1.1\r\n\r\n"
"""A request that leaves the connection open for those that came with it."""


def offering(subprotocols: int) -> bytes:
    return b"Sec-WebSocket-Protocol: " + b",".join([b"a"] * subprotocols) + b"\r\n\r\n"


# --- HTTP ----------------------------------------------------------------------------------------

BODIES: list[tuple[str, bytes, int, str | None]] = [
    # what is sent, the bytes, the status, the code
    ("NaN", raw(b"NaN"), 422, "request.invalid"),
    ("infinity", raw(b"-Infinity"), 422, "request.invalid"),
    ("a number beyond a double", raw(b"1e400"), 422, "request.invalid"),
    ("an integer of 4,300 digits", raw(b"9" * 4_300), 201, None),
    ("an integer of 4,301 digits", raw(b"9" * 4_301), 422, "request.invalid"),
    ("an integer of a million digits", raw(b"9" * 1_000_000), 422, "request.invalid"),
    ("a name twice", b'{"topic":"a","topic":"b","payload":1}', 422, "request.invalid"),
    ("a name twice, once escaped", b'{"topic":"a","\\u0074opic":"b","payload":1}', 422, "request.invalid"),
    ("a name twice, deep inside", raw(b'[{"x":{"y":1,"y":2}}]'), 422, "request.invalid"),
    ("a lone surrogate", raw(b'"\\ud800"'), 422, "request.invalid"),
    ("a lone surrogate as a name", raw(b'{"\\udfff":1}'), 422, "request.invalid"),
    ("a lone surrogate in UTF-8", raw(b'"\xed\xa0\x80"'), 422, "request.invalid"),
    ("NUL in a payload", raw(b'"\\u0000"'), 201, None),
    ("NUL in a topic", event(topic="a\0b"), 422, "topic.invalid"),
    ("NUL in a key", event(key="a\0b"), 422, "event.invalid"),
    ("NUL in a name of the metadata", event(metadata={"\0": 1}), 201, None),
    ("a bare NUL", b"\0", 422, "request.invalid"),
    ("a control character in a string", raw(b'"\x01"'), 422, "request.invalid"),
    ("invalid UTF-8", raw(b'"\xff\xfe"'), 422, "request.invalid"),
    ("overlong UTF-8", raw(b'"\xc0\xaf"'), 422, "request.invalid"),
    ("a byte order mark", b"\xef\xbb\xbf" + event(), 422, "request.invalid"),
    ("UTF-16", event().decode().encode("utf-16"), 422, "request.invalid"),
    ("trailing garbage", event() + b"x", 422, "request.invalid"),
    ("two documents", event() * 2, 422, "request.invalid"),
    ("nothing", b"", 422, "request.invalid"),
    ("half a document", event()[:-1], 422, "request.invalid"),
    ("a comment", b"/* */" + event(), 422, "request.invalid"),
    ("a depth of 32", raw(nested(32)), 201, None),
    ("a depth of 33", raw(nested(33)), 422, "payload.invalid"),
    ("a depth of 100,000", raw(nested(DEEP)), 422, "request.invalid"),
    ("a depth of 100,000 in objects", raw(nested(DEEP, b'{"a":', b"}")), 422, "request.invalid"),
    ("a depth of 100,000 that never closes", b"[" * DEEP, 422, "request.invalid"),
    ("a string instead of an event", b'"event"', 422, "request.invalid"),
    ("an empty list", b"[]", 422, "request.invalid"),
    ("a batch of 1,000", b"[" + b",".join([event()] * 1_000) + b"]", 201, None),
    ("a batch of 1,001", b"[" + b",".join([event()] * 1_001) + b"]", 413, "batch.too_large"),
    ("a payload of 256 KiB", event(payload="x" * 262_144), 201, None),
    ("a payload of 256 KiB and a byte", event(payload="x" * 262_145), 413, "payload.too_large"),
    ("a body of 1 MiB", padded(MIB), 201, None),
    ("a body of 1 MiB and a byte", padded(MIB + 1), 413, "request.too_large"),
    ("a topic of 255 bytes", event(topic="x" * 255), 201, None),
    ("a topic of 256 bytes", event(topic="x" * 256), 422, "topic.invalid"),
    ("a topic of 16 segments", event(topic=".".join("x" * 16)), 201, None),
    ("a topic of 17 segments", event(topic=".".join("x" * 17)), 422, "topic.invalid"),
    ("a topic of a million segments", event(topic="x." * 500_000), 422, "topic.invalid"),
    ("a wildcard as a topic", event(topic="a.*"), 422, "topic.invalid"),
    ("a topic beyond ASCII", event(topic="ord\u00e9rs"), 422, "topic.invalid"),
    ("full-width letters as a topic", event(topic="\uff41"), 422, "topic.invalid"),
    ("SQL as a topic", event(topic=SQL), 422, "topic.invalid"),
    ("SQL as a key", event(key=SQL), 201, None),
    ("SQL as a payload", event(payload=SQL), 201, None),
    ("SQL in the metadata", event(metadata={SQL: SQL}), 201, None),
    ("SQL as a tag", event(tags=[SQL]), 201, None),
    ("SQL as a message_id", event(message_id=SQL), 422, "event.invalid"),
    ("SQL as a content type", event(content_type=SQL), 422, "payload.invalid"),
    ("lines for the log as a topic", event(topic=LINES), 422, "topic.invalid"),
    ("lines for the log as a key", event(key=LINES), 422, "event.invalid"),
    ("lines for the log as a name", event(**{LINES: 1}), 201, None),
    ("a ttl that is no number", event(ttl="1"), 422, "request.invalid"),
    ("a ttl of a million years", event(ttl=3e13), 422, "event.invalid"),
    ("a delay below 0", event(delay=-1), 422, "request.invalid"),
    ("true where a number is due", event(ttl=True), 422, "request.invalid"),
]


@pytest.mark.parametrize(("body", "status", "code"), [pytest.param(*line, id=name) for name, *line in BODIES])
def test_a_body_is_answered_with(attacked: Node, body: bytes, status: int, code: str | None) -> None:
    answer = ask(attacked.port, publish(body))

    assert (answer.status, answer.code) == (status, code), answer
    assert len(answer.body) < 200_000


Sent = bytes | Iterable[bytes]

REQUESTS: list[tuple[str, list[Sent], int, str | None]] = [
    (
        "gzip",
        [publish(zlib.compress(event(payload="x" * 50_000_000)), "Content-Encoding: gzip")],
        415,
        "request.media_type",
    ),
    ("brotli", [publish(event(), "Content-Encoding: br")], 415, "request.media_type"),
    ("plain text", [publish(event(), content_type="text/plain")], 415, "request.media_type"),
    ("a form", [publish(event(), content_type="application/x-www-form-urlencoded")], 415, "request.media_type"),
    ("no content type", [publish(event(), content_type="")], 415, "request.media_type"),
    ("another charset", [publish(event(), content_type="application/json; charset=utf-16")], 415, "request.media_type"),
    ("a body in chunks", [chunked(event()[:5], event()[5:])], 201, None),
    ("1 MiB in chunks", [chunked(*[b" " * 65_536] * 15, padded(65_536))], 201, None),
    ("1 MiB and a byte in chunks", [chunked(*[b" " * 65_536] * 15, padded(65_537))], 413, "request.too_large"),
    (
        "chunks without end",
        [publish(b"", "Transfer-Encoding: chunked"), Endless(chunks(b" " * 65_536, is_last=False))],
        413,
        "request.too_large",
    ),
    ("a declared gigabyte", [publish(b"[", length=2**30)], 413, "request.too_large"),
    ("a declared 10^400", [publish(b"[", length=10**400)], 400, None),
    ("a length below 0", [publish(b"[", length=-1)], 400, None),
    ("two lengths", [publish(event(), "Content-Length: 5")], 400, None),
    ("a length and chunks", [publish(event(), "Content-Length: 5", "Transfer-Encoding: chunked")], 400, None),
    ("a chunk of a size that is none", [publish(b"zz\r\n", "Transfer-Encoding: chunked")], 400, None),
    ("a body that never comes", [publish(b"", length=10)], 408, "request.timeout"),
    ("a head of 64 KiB", [request("GET", "/healthz", None, "X: " + "x" * 70_000)], 400, None),
    ("heads without end", [b"GET / HTTP/1.1\r\n", Endless(b"X: y\r\n" * 1_000)], 400, None),
    ("101 requests at once", [TOGETHER * 100 + request("GET", "/healthz")], 200, None),
    ("102 requests at once", [TOGETHER * 101 + request("GET", "/healthz")], 400, None),
    ("no HTTP", [b"\x16\x03\x01" + bytes(range(256))], 400, None),
    ("an HTTP to come", [b"GET /healthz HTTP/9.9\r\n\r\n"], 400, None),
    ("a method that is none", [request("STEAL", "/publish")], 400, None),
    ("another method", [request("DELETE", "/publish")], 405, "request.invalid"),
    ("TRACE", [request("TRACE", "/publish")], 405, "request.invalid"),
    ("a way out", [request("GET", "/events/../../etc/passwd")], 404, "request.invalid"),
    ("an escaped way out", [request("GET", "/client%2e%2e%2f%2e%2e%2fetc%2fpasswd")], 404, "request.invalid"),
    ("NUL in a path", [request("GET", "/events/%00")], 422, "request.invalid"),
    ("invalid UTF-8 in a path", [request("GET", "/groups/%ff")], 404, "group.not_found"),
    ("lines for the log in a path", [request("GET", "/x%0aERROR:%20made%20up%1b[31m")], 404, "request.invalid"),
    ("lines for the log as a client", [request("GET", "/healthz", None, "User-Agent: \x1b[31m%s")], 400, None),
    ("SQL as a pattern", [request("GET", "/events?pattern=';DROP%20TABLE%20bus_log--")], 422, "pattern.invalid"),
    ("SQL as a group", [request("GET", "/groups/'%3BDROP%20TABLE%20bus_log--")], 422, "group.invalid"),
    ("SQL as a seq", [request("GET", "/events/1%20OR%201=1")], 422, "request.invalid"),
    ("a pattern of 255 bytes", [request("GET", "/events?pattern=" + "x" * 255)], 200, None),
    ("a pattern of 256 bytes", [request("GET", "/events?pattern=" + "x" * 256)], 422, "pattern.invalid"),
    ("a pattern of 16 segments", [request("GET", "/events?pattern=" + ".".join("*" * 16))], 200, None),
    ("a pattern of 17 segments", [request("GET", "/events?pattern=" + ".".join("*" * 17))], 422, "pattern.invalid"),
    ("101 patterns", [request("GET", "/events?" + "&".join(["pattern=a"] * 101))], 422, "request.invalid"),
    ("a page of 1,000", [request("GET", "/events?pattern=none&limit=1000")], 200, None),
    ("a page of 1,001", [request("GET", "/events?limit=1001")], 422, "request.invalid"),
    ("a place that is no integer", [request("GET", "/events?after=1e3")], 422, "request.invalid"),
    ("a place below 0", [request("GET", "/events?after=-1")], 422, "request.invalid"),
    ("a place of 53 bits", [request("GET", f"/events?after={2**53 - 1}")], 200, None),
    ("a place beyond 53 bits", [request("GET", f"/events?after={2**53}")], 422, "request.invalid"),
    ("a place of 5,000 digits", [request("GET", "/events?after=" + "9" * 5_000)], 422, "request.invalid"),
    (
        "a handshake without a key",
        [b"GET /ws HTTP/1.1\r\nHost: b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
        400,
        None,
    ),
    ("a handshake of 100 subprotocols", [HANDSHAKE + offering(100)], 400, "subprotocol.unknown"),
    ("a handshake of 10,000 subprotocols", [HANDSHAKE + offering(10_000)], 400, None),
]


@pytest.mark.parametrize(("sent", "status", "code"), [pytest.param(*line, id=name) for name, *line in REQUESTS])
def test_a_request_is_answered_with(attacked: Node, sent: list[Sent], status: int, code: str | None) -> None:
    answer = ask(attacked.port, *sent)

    assert (answer.status, answer.code) == (status, code), answer
    assert ask(attacked.port, request("GET", "/healthz")).status == 200


def test_a_body_that_dribbles_is_answered_with_408_when_its_time_is_over(attacked: Node) -> None:
    def dribble() -> Iterator[bytes]:
        for byte in itertools.cycle(event()):
            yield bytes([byte])
            time.sleep(0.02)  # that is what it is about

    began = time.monotonic()
    answer = ask(attacked.port, publish(b"", length=10_000), dribble())

    assert (answer.status, answer.code) == (408, "request.timeout")
    assert b"connection: close" in answer.head.lower()
    assert time.monotonic() - began < BODY_TIMEOUT + 10


# --- WebSocket -----------------------------------------------------------------------------------


def said(**fields: Any) -> bytes:
    return frame(json.dumps(fields).encode())


def publishing(payload: bytes) -> bytes:
    return frame(b'{"type":"publish","id":1,"data":%s}' % raw(payload))


def piece(payload: bytes, opcode: int = CONTINUED) -> bytes:
    """A fragment that is not the last."""
    return frame(payload, opcode, fin=False)


def fitting(size: int) -> bytes:
    """The text of a ping of so many bytes."""
    return b'{"type":"ping","id":1}'.ljust(size)


def deflated(size: int) -> bytes:
    """A frame as permessage-deflate has it, of very few bytes for its size."""
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(b" " * size) + squeeze.flush(zlib.Z_SYNC_FLUSH)[:-4]


EVENT = {"topic": "a", "payload": 1}

FRAMES: list[tuple[str, bytes | Iterable[bytes], str | int]] = [
    # what is sent, the bytes, the code of the error or of the close
    ("a good frame", said(type="ping", id=1), "pong"),
    ("NaN", publishing(b"NaN"), "frame.bad"),
    ("a number beyond a double", publishing(b"-1e400"), "frame.bad"),
    ("an integer of a million digits", publishing(b"9" * 1_000_000), "frame.bad"),
    ("a name twice", frame(b'{"type":"ping","type":"publish"}'), "frame.bad"),
    ("a lone surrogate", publishing(b'"\\ud800"'), "frame.bad"),
    ("NUL in a payload", publishing(b'"\\u0000"'), "ok"),
    ("a bare NUL", frame(b"\0"), "frame.bad"),
    ("nothing", frame(b""), "frame.bad"),
    ("a byte order mark", frame(b'\xef\xbb\xbf{"type":"ping"}'), "frame.bad"),
    ("trailing garbage", frame(b'{"type":"ping"}x'), "frame.bad"),
    ("invalid UTF-8", frame(b"\xff\xfe"), 1007),
    ("invalid UTF-8 over two fragments", fragments(b"\xe2\x82", b"\x28"), 1007),
    ("a depth of 32", publishing(nested(32)), "ok"),
    ("a depth of 33", publishing(nested(33)), "payload.invalid"),
    ("a depth of 100,000", publishing(nested(DEEP)), "frame.bad"),
    ("a depth of 100,000 in objects", publishing(nested(DEEP, b'{"a":', b"}")), "frame.bad"),
    ("a binary frame", frame(b'{"type":"ping"}', BINARY), "frame.binary"),
    ("an unknown type", said(type="drop_tables"), "frame.unknown_type"),
    ("a type of a megabyte", said(type="x" * 1_000_000), "frame.unknown_type"),
    ("an id of a million digits", frame(b'{"type":"ping","id":%s}' % (b"9" * 1_000_000)), "frame.bad"),
    ("a frame of 1 MiB", frame(fitting(MIB)), "pong"),
    ("a frame of 1 MiB and a byte", frame(fitting(MIB + 1)), "frame.too_large"),
    ("a frame of 2 MiB and a byte", bytes([0x81]) + frame_length(2 * MIB + 1), 1009),
    ("a frame of 2^62 bytes", bytes([0x81]) + frame_length(2**62), 1009),
    ("a frame of 2^63 bytes", bytes([0x81]) + frame_length(2**63), 1009),
    ("1 MiB in fragments", fragments(fitting(MIB - 65_536), b" " * 65_536), "pong"),
    ("1 MiB and a byte in fragments", fragments(fitting(MIB - 65_535), b" " * 65_536), "frame.too_large"),
    ("beyond 2 MiB in fragments", [piece(b" " * MIB, TEXT), piece(b" " * MIB), frame(b" ", CONTINUED)], 1009),
    ("1,024 fragments", fragments(fitting(1_000), *[b""] * 1_023), "pong"),
    ("1,025 fragments", fragments(fitting(1_000), *[b""] * 1_024), 1009),
    ("empty fragments without end", Endless(piece(b"") * 1_000, first=piece(b"", TEXT)), 1009),
    ("fragments without end", Endless(piece(b"x" * 60_000), first=piece(b"", TEXT)), 1009),
    ("a continuation of nothing", frame(b"x", CONTINUED), 1002),
    ("a frame within a message", frame(b"x", fin=False) + frame(b"y"), 1002),
    ("a frame without a mask", frame(b'{"type":"ping"}', mask=False), 1002),
    ("a reserved bit", frame(b"x", reserved=2), 1002),
    ("a reserved opcode", frame(b"x", 0x3), 1002),
    ("a compressed frame that nobody agreed on", frame(deflated(50_000_000), reserved=4), 1002),
    ("a ping of 126 bytes", frame(b"x" * 126, PING), 1002),
    ("1,000 pings", frame(b"", PING) * 1_000 + said(type="ping", id=1), "pong"),
    ("1,001 pings", frame(b"", PING) * 1_001 + said(type="ping", id=1), 1008),
    ("a ping in fragments", frame(b"x", PING, fin=False), 1002),
    ("a close of one byte", frame(b"x", CLOSE), 1002),
    ("a close with a code that is none", frame(b"\x03\xed", CLOSE), 1002),
    ("101 patterns", said(type="subscribe", patterns=["a"] * 101), "frame.bad"),
    ("a pattern of 17 segments", said(type="subscribe", pattern=".".join("*" * 17)), "pattern.invalid"),
    ("a pattern of 256 bytes", said(type="subscribe", pattern="x" * 256), "pattern.invalid"),
    ("SQL as a pattern", said(type="subscribe", pattern=SQL), "pattern.invalid"),
    ("SQL as a sub", said(type="subscribe", id=1, pattern="none", sub=SQL), "ok"),
    ("SQL as a group", said(type="subscribe", id=1, pattern="none", group=SQL), "group.invalid"),
    ("a sub of 64 characters", said(type="subscribe", id=1, pattern="none", sub="x" * 64), "ok"),
    ("a sub of 65 characters", said(type="subscribe", pattern="none", sub="x" * 65), "frame.bad"),
    ("all credit there is", said(type="subscribe", id=1, pattern="none", credit=1_000_000), "ok"),
    ("more credit than there is", said(type="subscribe", pattern="none", credit=1_000_001), "frame.bad"),
    ("no credit", said(type="subscribe", pattern="none", credit=0), "frame.bad"),
    ("a batch of 1,000", said(type="publish_batch", id=1, messages=[EVENT] * 1_000), "ok"),
    ("a batch of 1,001", said(type="publish_batch", messages=[EVENT] * 1_001), "batch.too_large"),
    ("an array of 10,001 frames", frame(b"[" + b",".join([b'{"type":"ping"}'] * 10_001) + b"]"), "frame.bad"),
    ("an ack of somebody else's", said(type="ack", sub=7, seq=1), "subscription.unknown"),
    ("100 bad frames", frame(b"{") * 100, 4400),
    ("lines for the log as a topic", said(type="publish", data={"topic": LINES, "payload": 1}), "topic.invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "outcome"), [pytest.param(*line, id=name) for name, *line in FRAMES])
def test_a_frame_is_answered_with(attacked: Node, sent: bytes | Iterable[bytes], outcome: str | int) -> None:
    with Socket(attacked.port) as client, Socket(attacked.port) as other:
        client.send(sent)
        found = client.outcome()
        if outcome == 4400:
            while found == "frame.bad":
                found = client.outcome()

        assert found == outcome
        other.send(said(type="ping"))
        assert other.outcome() == "pong"


@pytest.mark.parametrize(
    "offer", [b"permessage-deflate", b"permessage-deflate; client_max_window_bits=15", b"x-webkit-deflate-frame"]
)
def test_no_compression_is_agreed_on(attacked: Node, offer: bytes) -> None:
    with Socket(attacked.port, V1 + b"Sec-WebSocket-Extensions: " + offer + b"\r\n") as client:
        assert b"101" in client.head
        assert b"sec-websocket-extensions" not in client.head.lower()


def test_the_hundred_and_first_subscription_is_refused_and_the_others_stay(attacked: Node) -> None:
    with Socket(attacked.port) as client:
        for number in range(100):
            client.send(said(type="subscribe", id=number, pattern=f"none.{number}"))
            assert client.outcome() == "ok"

        client.send(said(type="subscribe", id=100, pattern="none.100"))

        assert client.outcome() == "subscription.too_many"
        client.send(said(type="unsubscribe", id=101, sub=1) + said(type="subscribe", id=102, pattern="none.100"))
        assert [client.outcome(), client.outcome()] == ["ok", "ok"]


def test_what_was_stored_is_what_was_sent(attacked: Node) -> None:
    body = event(topic="stored.sql", key=SQL, payload={SQL: LINES}, metadata={SQL: SQL})
    assert ask(attacked.port, publish(body)).status == 201

    answer = ask(attacked.port, request("GET", "/events?pattern=stored.%23"))

    [stored] = json.loads(answer.body)["events"]
    assert (stored["key"], stored["payload"], stored["metadata"][SQL]) == (SQL, {SQL: LINES}, SQL)
