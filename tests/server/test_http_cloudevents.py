"""CloudEvents over HTTP: published in three modes, and answered to whom asks for them; with the SDK as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_http_event,
    from_structured_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from eventbus_fastapi import EventBus
from tests.documents import python_blocks, run
from tests.processes import CHECKOUT
from tests.server.asking import app_of, asking, assert_problem, bus_on
from tests.server.sockets import serving_bus
from tests.server.streams import streaming

DOCS = CHECKOUT / "docs" / "cloudevents.md"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
LEAST: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/orders", "type": "order.paid"}
HEADERS = {f"ce-{name}": value for name, value in LEAST.items()}


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def publish(http: httpx.AsyncClient, body: Any, content_type: str = STRUCTURED, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http.post("/publish", content=content, headers={"content-type": content_type, **headers})


async def sent(http: httpx.AsyncClient, message: HTTPMessage) -> dict[str, Any]:
    answer = await http.post("/publish", content=message.body, headers=message.headers)
    assert answer.status_code == 201, answer.text
    receipt: dict[str, Any] = answer.json()
    return receipt


async def read_back(http: httpx.AsyncClient, seq: int) -> Any:
    """Read an event as the SDK does."""
    answer = await http.get(f"/events/{seq}", headers={"accept": STRUCTURED})
    assert answer.status_code == 200, answer.text
    return from_structured_event(HTTPMessage(dict(answer.headers), answer.content))


# --- the SDK, unmodified -------------------------------------------------------------------------

EVENTS = [
    CloudEvent({"type": "order.paid", "source": "/orders", "id": "1"}, {"total": 9.5}),
    CloudEvent(
        {
            "type": "com.example.order.paid",
            "source": "https://example.com/orders?a=b%20c",
            "id": 'ü "quoted" 100%',
            "subject": "Bestellung 7",
            "time": datetime(2025, 12, 31, 23, 59, 59, 123_456, tzinfo=UTC),
            "datacontenttype": "application/json",
            "dataschema": "https://example.com/schema",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "rojo=00f067aa0ba902b7",
            "partitionkey": "7",
        },
        {"total": 9.5, "items": [1, None, "ü"]},
    ),
    CloudEvent({"type": "a", "source": "/s", "id": "2", "datacontenttype": "text/plain"}, "Grüße\nan alle"),
    CloudEvent({"type": "a", "source": "/s", "id": "3", "datacontenttype": "image/png"}, b"\x89PNG\x00\xff"),
    CloudEvent({"type": "a", "source": "/s", "id": "4"}),
]


@pytest.mark.parametrize("encode", [to_structured_event, to_binary_event])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.get_id())
async def test_what_the_sdk_sends_it_gets_back(http: httpx.AsyncClient, encode: Any, event: CloudEvent) -> None:
    receipt = await sent(http, encode(event))

    again = await read_back(http, receipt["seq"])

    assert again.get_data() == event.get_data()
    attributes = dict(again.get_attributes())
    assert attributes.pop("seq") == "1"
    if event.get_datacontenttype() is None:
        assert attributes.pop("datacontenttype") == "application/json"
    assert attributes == event.get_attributes()


async def test_what_the_sdk_sends_in_a_batch_it_gets_back(http: httpx.AsyncClient) -> None:
    """The SDK has no batches of its own: one is a list of what its format writes."""
    batch = b"[" + b",".join(JSONFormat().write(event) for event in EVENTS) + b"]"

    answer = await publish(http, batch, BATCH)

    assert answer.status_code == 201, answer.text
    assert [receipt["seq"] for receipt in answer.json()] == [1, 2, 3, 4, 5]
    page = await http.get("/events", headers={"accept": BATCH})
    assert page.headers["content-type"] == BATCH
    again = [JSONFormat().read(None, json.dumps(each)) for each in page.json()]
    assert [event.get_id() for event in again] == [event.get_id() for event in EVENTS]
    assert [event.get_data() for event in again] == [event.get_data() for event in EVENTS]


async def test_from_http_reads_an_answer(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    receipt = await eventbus.publish("user.created", {"id": 1}, key="user-1")
    answer = await http.get("/events/1", headers={"accept": STRUCTURED})

    event = from_http_event(HTTPMessage(dict(answer.headers), answer.content))

    assert (event.get_id(), event.get_source()) == (str(receipt.message_id), "/eventbus")
    assert (event.get_type(), event.get_subject(), event.get_data()) == ("user.created", "user-1", {"id": 1})


async def test_the_example_of_the_docs_works(tmp_path: Path) -> None:
    [block] = python_blocks(DOCS)
    async with serving_bus(tmp_path) as served:
        own = block._replace(text=block.text.replace("3000", str(served.served.port)))
        await asyncio.to_thread(asyncio.run, run(own, {}))

        assert (await served.bus.get(1)).message.topic == "order.paid"


# --- publishing ----------------------------------------------------------------------------------


async def test_a_cloudevent_that_is_sent_again_is_stored_once(http: httpx.AsyncClient) -> None:
    first = (await publish(http, {**LEAST, "data": 1})).json()
    structured = (await publish(http, {**LEAST, "data": 1})).json()
    binary = (await http.post("/publish", headers=HEADERS, content=b"1")).json()

    assert first == {"seq": 1, "message_id": first["message_id"], "duplicate": False}
    assert structured == binary == {**first, "duplicate": True}


async def test_a_batch_is_published_all_or_none(http: httpx.AsyncClient) -> None:
    answer = await publish(http, [LEAST, {**LEAST, "id": ""}], BATCH)

    assert_problem(answer, 400, "cloudevent.invalid", "events[1]: ", "'id'")
    assert (await http.get("/events")).json()["events"] == []


async def test_a_batch_may_be_empty(http: httpx.AsyncClient) -> None:
    answer = await publish(http, [], BATCH)

    assert (answer.status_code, answer.json()) == (201, [])


async def test_a_subscriber_of_the_bus_sees_a_cloudevent_as_an_event(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    subscription = await eventbus.node.subscribe(["order.*"], 0)
    await publish(http, {**LEAST, "subject": "7", "traceparent": "00-ab-cd-01", "data": {"total": 1}})

    message = await anext(subscription)

    assert (message.topic, message.key, message.payload) == ("order.paid", "7", {"total": 1})
    assert message.metadata["traceparent"] == "00-ab-cd-01"
    subscription.close()


async def test_an_expiry_is_kept_to(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await publish(http, {**LEAST, "expirytime": "2900-01-01T00:00:00Z"})
    await publish(http, {**LEAST, "id": "2", "expirytime": "2050-01-01T00:00:00Z"})
    messages = (await eventbus.node.store.read(0, 10)).messages

    assert [message.expires_at is None for message in messages] == [True, False]
    expires_at = messages[1].expires_at or 0
    assert abs(expires_at - datetime(2050, 1, 1, tzinfo=UTC).timestamp() * 1_000_000) < 60_000_000


@pytest.mark.parametrize(
    ("content_type", "body", "payload", "stored_as"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}, "application/json"),
        (None, b'{"a": 1}', {"a": 1}, "application/json"),
        (None, b"no json", "bm8ganNvbg==", "application/octet-stream"),
        (None, b"", None, "application/json"),
        ("text/plain; charset=utf-8", "Grüße".encode(), "Grüße", "text/plain; charset=utf-8"),
        ("image/png", b"\x89PNG", "iVBORw==", "image/png"),
        ("application/x-www-form-urlencoded", b"a=1", "YT0x", "application/x-www-form-urlencoded"),
    ],
)
async def test_the_body_of_binary_mode_is_the_payload(
    http: httpx.AsyncClient, content_type: str | None, body: bytes, payload: Any, stored_as: str
) -> None:
    headers = HEADERS if content_type is None else {**HEADERS, "content-type": content_type}
    answer = await http.post("/publish", headers=headers, content=body)
    assert answer.status_code == 201, answer.text

    event = (await http.get("/events/1")).json()

    assert event.get("payload", event.get("payload_base64")) == payload
    assert event["metadata"]["content_type"] == stored_as


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        ("plain", "plain"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ('"quoted \\"value\\" 100%25"', 'quoted "value" 100%'),
        ("%22kept%22", '"kept"'),
        ("a+b", "a+b"),
    ],
)
async def test_header_values_are_taken_out_of_quotes_and_percent_encoding(
    http: httpx.AsyncClient, value: str, decoded: str
) -> None:
    answer = await http.post("/publish", headers={**HEADERS, "ce-subject": value})

    assert answer.status_code == 201, answer.text
    assert (await http.get("/events/1")).json()["key"] == decoded


# --- refusals ------------------------------------------------------------------------------------

REFUSED_BODIES: list[tuple[Any, str, int, str, str]] = [
    ({**LEAST, "specversion": "0.1"}, STRUCTURED, 400, "cloudevent.invalid", "'specversion'"),
    ({"specversion": "1.0", "id": "1", "source": "/a"}, STRUCTURED, 400, "cloudevent.invalid", "'type'"),
    ({**LEAST, "data": 1, "data_base64": "AA=="}, STRUCTURED, 400, "cloudevent.invalid", "'data'"),
    ({**LEAST, "type": "a..b"}, STRUCTURED, 422, "topic.invalid", "'type'"),
    ({**LEAST, "datacontenttype": "x"}, STRUCTURED, 415, "request.media_type", "'datacontenttype'"),
    ([LEAST], STRUCTURED, 400, "cloudevent.invalid", "a list of 1"),
    (LEAST, BATCH, 422, "request.invalid", "expected a list of CloudEvents"),
    ([LEAST, 5], BATCH, 400, "cloudevent.invalid", "events[1]"),
    ([LEAST] * 1_001, BATCH, 413, "batch.too_large", "1,001"),
    (b"no json", STRUCTURED, 422, "request.invalid", "not JSON"),
    (b'{"id":"1","id":"2"}', STRUCTURED, 422, "request.invalid", "twice"),
    (b'{"data":NaN}', STRUCTURED, 422, "request.invalid", "not JSON"),
    (b"[" * 100_000, BATCH, 422, "request.invalid", "deeper"),
    (b"\xff", STRUCTURED, 422, "request.invalid", ""),
    (LEAST, "application/cloudevents+xml", 415, "request.media_type", "application/cloudevents+json"),
    (LEAST, "application/cloudevents", 415, "request.media_type", "application/cloudevents+json"),
    (LEAST, f"{STRUCTURED}; charset=latin-1", 415, "request.media_type", "UTF-8"),
    ({**LEAST, "data": "x" * 300_000}, STRUCTURED, 413, "payload.too_large", "262,144"),
    ({**LEAST, "data": "x" * 1_100_000}, STRUCTURED, 413, "request.too_large", ""),
]


@pytest.mark.parametrize(("body", "content_type", "status", "code", "words"), REFUSED_BODIES)
async def test_a_body_that_is_no_cloudevent_is_refused_and_stores_nothing(
    http: httpx.AsyncClient, body: Any, content_type: str, status: int, code: str, words: str
) -> None:
    answer = await publish(http, body, content_type)

    assert_problem(answer, status, code, words)
    assert (await http.get("/events")).json()["head"] == 0


REFUSED_HEADERS: list[tuple[dict[str, str | bytes], int, str]] = [
    ({"ce-id": "1"}, 400, "'specversion': it is missing"),
    ({**HEADERS, "ce-specversion": "0.3"}, 400, "'specversion'"),
    ({**HEADERS, "ce-id": ""}, 400, "'id'"),
    ({**HEADERS, "ce-id": "a%0D%0AX-Evil: 1"}, 400, "'id': expected a string without control characters"),
    ({**HEADERS, "ce-subject": "Grüße".encode()}, 400, "'subject': expected ASCII"),
    ({**HEADERS, "ce-subject": "50%"}, 400, "'subject': expected two hexadecimal digits"),
    ({**HEADERS, "ce-subject": "%ff"}, 400, "'subject': expected percent-encoded UTF-8"),
    ({**HEADERS, "ce-data": "x"}, 400, "'data': expected it as the body"),
    ({**HEADERS, "ce-datacontenttype": "text/plain"}, 400, "'datacontenttype'"),
    ({**HEADERS, "ce-a_b": "x"}, 400, "'a_b': a name is"),
    ({**HEADERS, "ce-": "x"}, 400, "''"),
    ({**HEADERS, "ce-time": "now"}, 400, "'time'"),
    ({**HEADERS, "content-type": "nonsense"}, 415, "'datacontenttype'"),
    ({**HEADERS, "content-encoding": "gzip"}, 415, "content encoding"),
    ({**HEADERS, "content-type": STRUCTURED}, 400, "'specversion': expected it in the body only"),
    ({"ce-id": "1", "content-type": BATCH}, 400, "'id': expected it in the body only"),
    ({**HEADERS, "content-type": "application/json"}, 422, "'data': payload is not JSON"),
]


@pytest.mark.parametrize(("headers", "status", "words"), REFUSED_HEADERS)
async def test_headers_that_are_no_cloudevent_are_refused_by_the_name_of_the_attribute(
    http: httpx.AsyncClient, headers: dict[str, Any], status: int, words: str
) -> None:
    answer = await http.post("/publish", headers=headers, content=b"{")

    code = {400: "cloudevent.invalid", 415: "request.media_type", 422: "payload.invalid"}[status]
    assert_problem(answer, status, code, words)
    assert (await http.get("/events")).json()["head"] == 0


async def test_an_attribute_that_is_a_header_twice_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", headers=[*HEADERS.items(), ("ce-id", "2")])

    assert_problem(answer, 400, "cloudevent.invalid", "'id': expected one header")


async def test_data_of_two_content_types_is_refused(http: httpx.AsyncClient) -> None:
    types = [("content-type", "text/plain"), ("content-type", "application/json")]
    answer = await http.post("/publish", content=b"1", headers=[*HEADERS.items(), *types])
    assert_problem(answer, 415, "request.media_type", "expected one header Content-Type, got 2")


# --- reading -------------------------------------------------------------------------------------


async def test_a_page_says_in_headers_where_it_goes_on_and_what_is_gone(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    await eventbus.publish_many([("a.b", number) for number in range(5)])

    seen, url = [], "/events?pattern=a.%23&limit=2"
    while url:
        page = await http.get(url, headers={"accept": BATCH})
        seen += [event["data"] for event in page.json()]
        assert (page.headers["eventbus-head"], page.headers["eventbus-first-seq"]) == ("5", "1")
        url = page.links["next"]["url"] if "next" in page.links else ""

    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (STRUCTURED, STRUCTURED),
        (f"{STRUCTURED}, */*;q=0.1", STRUCTURED),
        (f"application/json, {STRUCTURED};q=0.5", "application/json"),
        (f"application/json;q=0.5, {STRUCTURED}", STRUCTURED),
        (f"{STRUCTURED};q=0", "application/json"),
        (STRUCTURED.upper(), STRUCTURED),
        (f"{STRUCTURED};q=nonsense", STRUCTURED),
        (",;=;q=,", "application/json"),
    ],
)
async def test_who_asks_for_cloudevents_gets_them(
    eventbus: EventBus, http: httpx.AsyncClient, accept: str | None, content_type: str
) -> None:
    await eventbus.publish("a", 1)

    answer = await http.get("/events/1", headers={} if accept is None else {"accept": accept})

    assert answer.headers["content-type"] == content_type
    assert ("specversion" in answer.json()) == (content_type == STRUCTURED)


async def test_a_stream_is_of_cloudevents_where_they_are_asked_for(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, cloudevents_source="https://bus.example") as served:
        await served.bus.publish("a", b'{\n"x": 1}', content_type="application/json")
        base, accept = served.served.http, {"accept": f"text/event-stream, {STRUCTURED}"}
        async with streaming(base, after=0, headers=accept) as cloud, streaming(base, after=0) as own:
            block = await cloud.next_of("")
            assert (await own.events(1))[0]["topic"] == "a"
            await served.bus.publish("b", 2)
            live = [await cloud.next_of(""), await own.next_of("")]

    event = JSONFormat().read(None, json.dumps(block.data))
    assert (block.id, event.get_source(), event.get_type()) == ("1", "https://bus.example", "a")
    assert event.get_data() == {"x": 1}
    assert (live[0].data["type"], live[1].data["topic"]) == ("b", "b")
