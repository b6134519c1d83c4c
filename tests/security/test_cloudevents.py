"""Attacks by CloudEvents, idempotency keys and requests for a stream: a line each, what is sent and answered."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tests.faults.processes import Node
from tests.security.guarded import ALICE, BOB, EXPIRED, bearer
from tests.security.wire import ask, request
from tests.server.asking import assert_problem
from tests.server.sockets import ServedBus, peer

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
LEAST: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/attacks", "type": "attacked"}
BINARY = ("ce-specversion: 1.0", "ce-id: 1", "ce-source: /attacks", "ce-type: attacked")
SQL = "'; DROP TABLE bus_log; --"


def structured(content_type: str = STRUCTURED, **attributes: Any) -> bytes:
    body = {name: value for name, value in {**LEAST, **attributes}.items() if value is not None}
    return request("POST", "/publish", json.dumps(body).encode(), content_type=content_type)


def binary(*headers: str, body: bytes = b"1") -> bytes:
    return request("POST", "/publish", body, *headers, content_type="")


def keyed(*keys: str) -> bytes:
    headers = (f"Idempotency-Key: {key}" for key in keys)
    return request("POST", "/publish", b'{"topic":"attacked","payload":1}', *headers)


def stream(query: str = "", *headers: str) -> bytes:
    return request("GET", f"/events/stream?{query}", None, *headers)


ATTACKS: list[tuple[str, bytes, int, str | None, str]] = [
    # what is sent, the bytes, the status, the code, words of the message
    ("a good CloudEvent", structured(), 201, None, ""),
    ("no id", structured(id=None), 400, "cloudevent.invalid", "'id'"),
    ("no source", structured(source=None), 400, "cloudevent.invalid", "'source'"),
    ("no type", structured(type=None), 400, "cloudevent.invalid", "'type'"),
    ("no specversion", structured(specversion=None), 400, "cloudevent.invalid", "'specversion'"),
    ("specversion 0.1", structured(specversion="0.1"), 400, "cloudevent.invalid", "'specversion'"),
    ("specversion 0.3", structured(specversion="0.3"), 400, "cloudevent.invalid", "'specversion'"),
    ("data twice", structured(data=1, data_base64="AA=="), 400, "cloudevent.invalid", "'data'"),
    ("no base64", structured(data_base64="AA=A"), 400, "cloudevent.invalid", "'data_base64'"),
    ("a malformed datacontenttype", structured(datacontenttype="x"), 415, "request.media_type", "'datacontenttype'"),
    ("another charset", structured(datacontenttype="text/plain;charset=utf-16"), 415, "request.media_type", "charset"),
    ("a topic of 17 segments", structured(type=".".join("a" * 17)), 422, "topic.invalid", "'type'"),
    ("a wildcard", structured(type="#"), 422, "topic.invalid", "'type'"),
    ("SQL as a type", structured(type=SQL), 422, "topic.invalid", "'type'"),
    ("SQL as an id", structured(id=SQL, source=SQL, subject=SQL), 201, None, ""),
    ("a line for the log", structured(id="1\nERROR: made up"), 400, "cloudevent.invalid", "'id'"),
    ("NUL", structured(subject="\0"), 400, "cloudevent.invalid", "'subject'"),
    ("a lone surrogate", structured(subject="\ud800"), 422, "request.invalid", "not JSON"),
    ("an object as an attribute", structured(x={"y": 1}), 400, "cloudevent.invalid", "'x'"),
    ("an attribute of 100 KB", structured(x="x" * 100_000), 422, "event.invalid", "metadata"),
    ("100 attributes", structured(**{f"x{number}": "y" for number in range(100)}), 422, "event.invalid", "metadata"),
    ("metadata that the bus sets", structured(eventbusmeta='{"timestamp":1}'), 422, "event.invalid", "timestamp"),
    ("metadata that is too deep", structured(eventbusmeta='{"a":' * 500 + "1" + "}" * 500), 400, None, "eventbusmeta"),
    (
        "an expiry that has passed",
        structured(expirytime="2020-01-01T00:00:00Z"),
        400,
        "cloudevent.invalid",
        "expirytime",
    ),
    ("a year that is none", structured(time="99999-01-01T00:00:00Z"), 400, "cloudevent.invalid", "'time'"),
    ("another format", structured("application/cloudevents+avro"), 415, "request.media_type", STRUCTURED),
    ("a batch that is none", structured(BATCH), 422, "request.invalid", "a list"),
    ("a batch of batches", request("POST", "/publish", b"[[]]", content_type=BATCH), 400, "cloudevent.invalid", "[0]"),
    ("a depth of 100,000", request("POST", "/publish", b"[" * 100_000, content_type=BATCH), 422, "request.invalid", ""),
    ("a good one in headers", binary(*BINARY), 201, None, ""),
    ("one header of it", binary("ce-id: 1"), 400, "cloudevent.invalid", "'specversion'"),
    ("CR and LF in a header", binary(*BINARY, "ce-subject: a%0D%0Ab"), 400, "cloudevent.invalid", "'subject'"),
    ("Latin-1 in a header", binary(*BINARY, "ce-subject: Gr\u00fc\u00dfe"), 400, "cloudevent.invalid", "'subject'"),
    ("a bad percent sign", binary(*BINARY, "ce-subject: %zz"), 400, "cloudevent.invalid", "'subject'"),
    ("no UTF-8 in a header", binary(*BINARY, "ce-subject: %c3%28"), 400, "cloudevent.invalid", "'subject'"),
    ("a header twice", binary(*BINARY, "ce-id: 2"), 400, "cloudevent.invalid", "'id'"),
    (
        "headers beside a body",
        request("POST", "/publish", b"{}", *BINARY, content_type=STRUCTURED),
        400,
        None,
        "body only",
    ),
    ("gzip in binary mode", binary(*BINARY, "Content-Encoding: gzip"), 415, "request.media_type", "encoding"),
    ("1 MiB and a byte in binary mode", binary(*BINARY, body=b"x" * (2**20 + 1)), 413, "request.too_large", ""),
    ("an empty key", keyed(""), 400, "idempotency.invalid", "1 to 255"),
    ("a key of 256 characters", keyed("x" * 256), 400, "idempotency.invalid", "1 to 255"),
    ("two keys", keyed("a", "b"), 400, "idempotency.invalid", "got 2"),
    ("a key in Latin-1", keyed("\u00e9"), 400, "idempotency.invalid", "ASCII"),
    ("an unfinished key", keyed('"a'), 400, "idempotency.invalid", "quotes"),
    ("a stream of a bad pattern", stream("pattern=a..b"), 422, "pattern.invalid", "segment 2"),
    ("a stream of 101 patterns", stream("&".join(["pattern=a"] * 101)), 422, "request.invalid", "pattern"),
    (
        "a stream after an id that is none",
        stream("", "Last-Event-ID: 1 OR 1=1"),
        422,
        "request.invalid",
        "Last-Event-ID",
    ),
    (
        "a stream after 5,000 digits",
        stream("", "Last-Event-ID: " + "9" * 5_000),
        422,
        "request.invalid",
        "Last-Event-ID",
    ),
    ("a stream of two beginnings", stream("after=1&from=now"), 422, "request.invalid", "at most one"),
    ("a stream that is posted", request("POST", "/events/stream", b"{}"), 405, "request.invalid", "GET"),
]


@pytest.mark.parametrize(("sent", "status", "code", "words"), [pytest.param(*line, id=name) for name, *line in ATTACKS])
def test_a_request_is_answered_with(attacked: Node, sent: bytes, status: int, code: str | None, words: str) -> None:
    answer = ask(attacked.port, sent)

    assert answer.status == status, answer
    if code is not None:
        assert answer.code == code, answer
    if status != 201:
        assert words in json.loads(answer.body)["message"]
    assert ask(attacked.port, request("GET", "/healthz")).status == 200


# --- who may ------------------------------------------------------------------------------------


async def test_a_cloudevent_goes_only_where_its_sender_may_publish(guarded: ServedBus) -> None:
    batch = [{**LEAST, "type": "a.x"}, {**LEAST, "id": "2", "type": "b.x"}]
    async with httpx.AsyncClient(base_url=guarded.served.http, headers=bearer(ALICE)) as http:
        answer = await http.post("/publish", json=batch, headers={"content-type": BATCH})
        assert_problem(answer, 403, "auth.forbidden", "b.x")
        headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/a", "ce-type": "b.x"}
        assert_problem(await http.post("/publish", headers=headers), 403, "auth.forbidden", "b.x")
    assert (await guarded.bus.node.head()).last_seq == 0


async def test_a_key_of_another_is_another_key(guarded: ServedBus) -> None:
    receipts = []
    for token, topic in ((ALICE, "a.x"), (BOB, "b.x")):
        headers = {**bearer(token), "Idempotency-Key": "1"}
        async with httpx.AsyncClient(base_url=guarded.served.http, headers=headers) as http:
            receipts.append((await http.post("/publish", json={"topic": topic, "payload": 1})).json())

    assert [(receipt["seq"], receipt["duplicate"]) for receipt in receipts] == [(1, False), (2, False)]


@pytest.mark.parametrize(
    ("token", "query", "status"), [(ALICE, "pattern=%23", 403), (ALICE, "pattern=b.x&after=0", 403), (EXPIRED, "", 401)]
)
async def test_a_socket_of_cloudevents_reads_only_what_is_granted(
    guarded: ServedBus, token: str, query: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with speaking(guarded, token, query):
            pass

    assert refused.value.response.status_code == status


async def test_a_socket_of_cloudevents_publishes_only_what_is_granted(guarded: ServedBus) -> None:
    async with speaking(guarded, ALICE, "pattern=a.%23") as alice:
        await alice.socket.send(json.dumps({**LEAST, "type": "b.x"}))
        await alice.socket.send(json.dumps({**LEAST, "type": "a.x"}))
        came = [await alice.next(), await alice.next()]

    assert {each["type"] for each in came} == {"eventbus.error", "a.x"}
    [refusal] = [each for each in came if each["type"] == "eventbus.error"]
    assert (refusal["subject"], refusal["data"]["code"]) == ("1", "auth.forbidden")


def speaking(served: ServedBus, token: str, query: str) -> Any:
    url = f"{served.served.ws}?{query}"
    return peer(url, subprotocols=[Subprotocol("cloudevents.json")], additional_headers=bearer(token))
