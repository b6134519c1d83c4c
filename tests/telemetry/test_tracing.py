"""Tracing: one trace from who publishes to who handles, over every way; and nothing at all where nobody looks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from eventbus_fastapi import BusSession, Discard, Event, EventBusClient, GroupMessage, Unique
from tests.server.asking import app_of, asking, bus_on
from tests.serving import serving
from tests.waiting import eventually


class UserCreated(Event, topic="user.created"):
    id: int


FOREIGN = "00-11111111111111111111111111111111-2222222222222222-01"


class Spans:
    """What the program's exporter has."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        """Wait for the one span of this name."""
        (span,) = await eventually(lambda: self.named(name))
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def trace_of(span: Any) -> int:
    return int(span.get_span_context().trace_id)


def is_child(span: ReadableSpan, parent: Any) -> bool:
    return span.parent is not None and span.parent.span_id == parent.get_span_context().span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- one trace -----------------------------------------------------------------------------------


async def test_one_trace_from_an_http_request_over_the_outbox_to_a_worker_and_a_websocket_consumer(
    tmp_path: Path, spans: Spans
) -> None:
    """Given a request with a trace of its own, whose endpoint publishes in its transaction, when a worker of another
    process's bus and a consumer over WebSocket handle the event, then all is one trace, each below the publish.
    """
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    worker = bus_on(tmp_path, tracer_provider=spans.provider)

    @worker.handler(UserCreated, group="worker")
    async def welcome(event: UserCreated) -> None:
        get_current_span().add_event("welcomed")

    app = app_of(bus)

    @app.post("/users")
    async def create_user(request: Request) -> None:
        # What OpenTelemetry's instrumentation of FastAPI does around each request.
        context = TraceContextTextMapPropagator().extract(dict(request.headers))
        with spans.tracer.start_as_current_span("POST /users", context=context, kind=SpanKind.SERVER):
            async with AsyncSession(bus.engine) as session, session.begin():
                await bus.publish_txn(session, UserCreated(id=1))

    async def consume(message: GroupMessage) -> None:
        assert message.metadata["traceparent"].split("-")[1] == FOREIGN.split("-")[1]

    async with (
        serving(app) as served,
        worker,
        EventBusClient(served.ws, tracer_provider=spans.provider) as client,
        client.consume(consume, "user.*", group="consumer"),
        httpx.AsyncClient(base_url=served.http, trust_env=False) as http,
    ):
        await worker.workers.start()
        await http.post("/users", headers={"traceparent": FOREIGN})
        request = await spans.one("POST /users")
        publish = await spans.one("publish user.created")
        by_worker = await spans.one("handle user.created")
        by_consumer = await spans.one("handle user.*")
        deliver = await spans.one("deliver consumer")
    assert {f"{trace_of(span):032x}" for span in spans.all} == {FOREIGN.split("-")[1]}
    assert is_child(publish, request)
    assert is_child(by_worker, publish)
    assert is_child(by_consumer, publish)
    assert is_child(deliver, publish)
    assert [event.name for event in by_worker.events] == ["welcomed"]
    assert attributes(deliver)["eventbus.outcome"] == "acked"


async def test_the_spans_say_what_the_conventions_for_messaging_ask_for(tmp_path: Path, spans: Spans) -> None:
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:

        @bus.handler("user.*", group="all", queue="email")
        async def handle(event: Any) -> None: ...

        await bus.workers.start()
        receipt = await bus.publish(UserCreated(id=1))
        publish, handle_span = await spans.one("publish user.created"), await spans.one("handle user.*")
        await bus.workers.join(1)
    shared = {
        "messaging.system": "eventbus",
        "messaging.destination.name": "user.created",
        "messaging.message.id": str(receipt.message_id),
        "messaging.message.body.size": 8,
    }
    assert publish.kind == SpanKind.PRODUCER
    assert attributes(publish) == {
        **shared,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    assert handle_span.kind == SpanKind.CONSUMER
    assert attributes(handle_span) == {
        **shared,
        "messaging.operation.name": "handle",
        "messaging.operation.type": "process",
        "messaging.destination.template": "user.*",
        "messaging.consumer.group.name": "all",
        "eventbus.seq": 1,
        "eventbus.attempt": 1,
        "eventbus.queue": "email",
        "eventbus.outcome": "acked",
    }


async def test_what_a_handler_publishes_goes_on_in_the_trace(tmp_path: Path, spans: Spans) -> None:
    """Given an async and a sync handler that publish, then their events are below the span of the handler."""
    bus = bus_on(tmp_path, tracer_provider=spans.provider)

    @bus.handler("first", group="first")
    async def first(event: int) -> None:
        await bus.publish("second", event)

    @bus.handler("second", group="second")
    def second(event: int) -> None:
        get_current_span().set_attribute("seen", True)

    async with bus:
        await bus.workers.start()
        await bus.publish("first", 1)
        last = await spans.one("handle second")
        await bus.workers.join(1)
    assert len({trace_of(span) for span in spans.all}) == 1
    assert attributes(last)["seen"] is True


async def test_a_publish_over_http_is_below_the_request_that_is_traced(tmp_path: Path, spans: Spans) -> None:
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    app = FastAPI()

    @app.middleware("http")
    async def trace(request: Request, call_next: Any) -> Any:
        with spans.tracer.start_as_current_span("request"):
            return await call_next(request)

    app.include_router(bus.router())
    async with bus, asking(app) as http:
        await http.post("/publish", json={"topic": "a", "payload": 1})
        message = (await bus.get(1)).message
    assert is_child(await spans.one("publish"), await spans.one("request"))
    assert message.metadata["traceparent"].split("-")[1] == f"{trace_of(spans.named('publish')[0]):032x}"


@pytest.mark.parametrize("way", ["publish", "many", "txn", "sync", "live", "client", "client_many"])
async def test_every_way_of_publishing_brings_the_context_along(tmp_path: Path, spans: Spans, way: str) -> None:
    """Given a reader, when something is published each way, then it has the context beside what was given."""
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    metadata = {"source": "test"}
    async with (
        serving(app_of(bus)) as served,
        EventBusClient(served.ws, tracer_provider=spans.provider) as client,
        bus.subscribe("#") as subscription,
    ):
        match way:
            case "publish":
                await bus.publish("a", 1, metadata=metadata)
            case "many":
                await bus.publish_many([("a", 1)], metadata=metadata)
            case "txn":
                async with AsyncSession(bus.engine) as session, session.begin():
                    await bus.publish_txn(session, "a", 1, metadata=metadata)
            case "sync":
                async with bus.engine.begin() as connection:
                    await connection.run_sync(
                        lambda sync: bus.publish_txn_sync(Session(bind=sync), "a", 1, metadata=metadata)
                    )
            case "live":
                await bus.publish("a", 1, metadata=metadata, durable=False)
            case "client":
                await client.publish("a", 1, metadata=metadata)
            case "client_many":
                await client.publish_many([{"topic": "a", "payload": 1, "metadata": metadata}])
        message = await anext(subscription)
    (publish,) = spans.named("publish")
    context = publish.get_span_context()
    assert context is not None
    assert message.metadata.keys() == {"source", "traceparent"}
    assert message.metadata["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


# --- batches, and what others say ----------------------------------------------------------------


async def test_a_batch_is_one_span_and_refers_to_the_contexts_that_it_was_given(tmp_path: Path, spans: Spans) -> None:
    """Given a batch in which one event has a context of its own, then that one keeps it, the span links to it, and the
    others have the span's.
    """
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:
        own = bus.draft("a", 1, metadata={"traceparent": FOREIGN})
        await bus.publish_many([own, ("a", 2), ("b", 3)])
        messages = [(await bus.get(seq)).message for seq in (1, 2, 3)]
    (span,) = spans.all
    assert attributes(span)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes(span)
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [FOREIGN.split("-")[1]]
    assert messages[0].metadata == {"traceparent": FOREIGN}
    assert messages[1].metadata == messages[2].metadata != {"traceparent": FOREIGN}


@pytest.mark.parametrize("given", [{"traceparent": FOREIGN}, {"tracestate": "a=b"}, {"traceparent": 7}])
async def test_what_a_publisher_supplies_wins(tmp_path: Path, spans: Spans, given: dict[str, Any]) -> None:
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:
        await bus.publish("a", 1, metadata=given)
        assert (await bus.get(1)).message.metadata == given


async def test_a_state_of_the_trace_travels_too(tmp_path: Path, spans: Spans) -> None:
    state = {"traceparent": FOREIGN, "tracestate": "vendor=value"}
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:
        context = TraceContextTextMapPropagator().extract(state)
        with spans.tracer.start_as_current_span("outer", context=context):
            await bus.publish("a", 1)
        assert (await bus.get(1)).message.metadata["tracestate"] == "vendor=value"


@pytest.mark.parametrize(
    "metadata",
    [{f"key{number}": 1 for number in range(64)}, {"text": "x" * 16_370}],
    ids=["keys", "bytes"],
)
async def test_metadata_without_room_for_the_context_stays_as_it_is(
    tmp_path: Path, spans: Spans, metadata: dict[str, Any]
) -> None:
    """Given metadata at its limit, then tracing makes no event too large; also not for a server that checks it."""
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    async with serving(app_of(bus)) as served, EventBusClient(served.ws, tracer_provider=spans.provider) as client:
        await bus.publish("a", 1, metadata=metadata)
        await client.publish("a", 1, metadata=metadata)
        assert [(await bus.get(seq)).message.metadata for seq in (1, 2)] == [metadata, metadata]


async def test_the_context_makes_no_two_events_different_that_are_the_same(tmp_path: Path, spans: Spans) -> None:
    """Given two publishes that are unique by their metadata, each with a context of its own, then one is stored."""
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:
        unique = Unique(within=60)
        first = await bus.publish("a", 1, unique=unique)
        second = await bus.publish("a", 1, unique=unique)
        assert (second.duplicate, second.seq) == (True, first.seq)


@pytest.mark.parametrize(
    "traceparent",
    ["", "garbage", "00-" + "0" * 32 + "-2222222222222222-01", "ff" + FOREIGN[2:], FOREIGN * 100, 7, None, [FOREIGN]],
)
async def test_a_context_that_is_none_begins_a_new_trace(tmp_path: Path, spans: Spans, traceparent: Any) -> None:
    """Given an event whose publisher wrote something else there, then it is handled all the same."""
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:

        @bus.handler("a", group="a")
        async def handle(event: int) -> None: ...

        await bus.workers.start()
        await bus.publish("a", 1, metadata={"traceparent": traceparent})
        handled = await spans.one("handle a")
        await bus.workers.join(1)
    assert handled.parent is None
    assert attributes(handled)["eventbus.outcome"] == "acked"


@pytest.mark.parametrize(
    "state", ["=", "a", "a=b\n2026-01-01 ERROR forged", "a=1,a=2", "A=1", ",".join(f"k{n}=v" for n in range(33))]
)
async def test_a_state_that_is_none_is_left_out_and_nothing_is_logged_of_it(
    tmp_path: Path, spans: Spans, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:

        @bus.handler("a", group="a")
        async def handle(event: int) -> None: ...

        await bus.workers.start()
        await bus.publish("a", 1, metadata={"traceparent": FOREIGN, "tracestate": state})
        handled = await spans.one("handle a")
        await bus.workers.join(1)
    assert handled.parent is not None
    assert not handled.parent.trace_state
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


# --- how it ended --------------------------------------------------------------------------------


async def test_how_an_attempt_ended_is_in_its_span_and_no_message_of_an_error(tmp_path: Path, spans: Spans) -> None:
    """Given a handler that fails and then succeeds, then each attempt has a span; the first tells the type only."""
    async with bus_on(tmp_path, tracer_provider=spans.provider) as bus:

        @bus.handler("a", group="a", backoff=lambda attempt: 0.001)
        async def handle(event: int, session: BusSession) -> Discard | None:
            if not spans.named("handle a"):
                raise ValueError("the secret is 42")
            return Discard("no")

        await bus.workers.start()
        await bus.publish("a", 1)
        first, second = await eventually(lambda: two(spans.named("handle a")))
        await bus.workers.join(1)
    assert attributes(first)["eventbus.outcome"] == "retried"
    assert attributes(first)["error.type"] == "ValueError"
    assert first.status.status_code is StatusCode.ERROR
    assert (attributes(second)["eventbus.outcome"], attributes(second)["eventbus.attempt"]) == ("discarded", 2)
    assert second.status.status_code is StatusCode.UNSET
    assert "secret" not in "".join(span.to_json() for span in spans.all)


def two(found: Sequence[ReadableSpan]) -> tuple[ReadableSpan, ReadableSpan]:
    first, second = found
    return first, second


async def test_a_client_whose_handler_fails_has_that_in_its_span(tmp_path: Path, spans: Spans) -> None:
    bus = bus_on(tmp_path)
    once = asyncio.Event()

    async def handle(message: GroupMessage) -> None:
        if not once.is_set():
            once.set()
            raise KeyError("secret")

    async with (
        serving(app_of(bus)) as served,
        EventBusClient(served.ws, tracer_provider=spans.provider) as client,
        client.consume(handle, "#", group="g"),
    ):
        await bus.publish("a", 1)
        first, second = await eventually(lambda: two(spans.named("handle #")))
    assert (attributes(first)["error.type"], attributes(first)["eventbus.outcome"]) == ("KeyError", "retried")
    assert attributes(second)["eventbus.outcome"] == "acked"


async def test_a_delivery_ends_with_its_connection(tmp_path: Path, spans: Spans) -> None:
    """Given a member that leaves with an event in its hands, then the delivery's span says that it is tried again."""
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    async with serving(app_of(bus)) as served:
        client = EventBusClient(served.ws)
        async with client.subscribe("#", group="g") as member:
            await bus.publish("a", 1)
            await anext(member)
        await client.close()
        deliver = await spans.one("deliver g")
    assert attributes(deliver)["eventbus.outcome"] == "retried"


async def test_a_publish_that_fails_is_an_error(tmp_path: Path, spans: Spans) -> None:
    bus = bus_on(tmp_path, tracer_provider=spans.provider)
    with pytest.raises(Exception, match="not running"):
        await bus.publish("a", 1)
    (span,) = spans.all
    assert attributes(span)["error.type"] == "eventbus_fastapi.errors.NotRunning"


# --- nobody looks --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tracer_provider": NoOpTracerProvider()}, {"tracing": False}])
async def test_where_nobody_looks_there_is_no_span_and_no_context(
    tmp_path: Path, spans: Spans, options: dict[str, Any]
) -> None:
    """Given no provider, one that does nothing, or the setting, then events stay as they are, also within a span."""
    if "tracing" in options:
        options["tracer_provider"] = spans.provider
    async with bus_on(tmp_path, **options) as bus:
        with spans.tracer.start_as_current_span("outer"):
            await bus.publish("a", 1)
        assert (await bus.get(1)).message.metadata == {}
    assert [span.name for span in spans.all] == ["outer"]


GLOBAL = """
import asyncio, json, sys
from eventbus_fastapi import EventBus

async def main():
    async with EventBus("sqlite+aiosqlite:///:memory:") as bus:
        await bus.publish("before", 1)
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from eventbus_fastapi.telemetry import tracing
        trace.set_tracer_provider(TracerProvider())
        await asyncio.sleep(tracing.LOOK_EVERY * 1.1)
        await bus.publish("after", 1)
        print(json.dumps([sorted((await bus.get(seq)).message.metadata) for seq in (1, 2)]))

asyncio.run(main())
"""


def test_the_provider_of_the_program_is_found_once_it_is_there() -> None:
    """Given a program that sets its provider while the bus runs, then events have a context from about then on."""
    done = subprocess.run([sys.executable, "-c", GLOBAL], capture_output=True, text=True, check=True, timeout=50)
    assert json.loads(done.stdout) == [[], ["traceparent"]]


WITHOUT = """
import sys
from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import SettingsError

for extra in ("opentelemetry", "prometheus_client"):
    sys.modules[extra] = None  # as if it were not installed
bus = EventBus("sqlite+aiosqlite:///:memory:", metrics=True)
assert bus.node.tracing.spans() is None
try:
    bus.router()
except SettingsError as exc:
    print(exc)
"""


def test_without_the_extras_nothing_is_traced_and_metrics_say_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == (
        "prometheus-client is not installed; metrics need: pip install 'eventbus-fastapi[prometheus]'\n"
    )
