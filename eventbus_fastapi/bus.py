"""`EventBus`: the bus as an application uses it.

It turns what users write (typed events, topics with payloads, keyword options) into drafts and hands them on; what runs
is its `Node`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.auth import Authenticate, Gate
from eventbus_fastapi.auth.way import Way
from eventbus_fastapi.dashboard import open_dashboard
from eventbus_fastapi.errors import InvalidEvent, InvalidRelay, SettingsError, SlowConsumer, SubscriptionClosed, quote
from eventbus_fastapi.events import UNSET, Draft, Event, Message, Options, Receipt, make_draft
from eventbus_fastapi.outbox import Forwarding, Outbox
from eventbus_fastapi.pipeline.catalog import Catalog
from eventbus_fastapi.pipeline.channel import Gap
from eventbus_fastapi.pipeline.handlers import HandlerGroup, HandlerOptions
from eventbus_fastapi.pipeline.listeners import Listeners
from eventbus_fastapi.pipeline.node import Node, Start
from eventbus_fastapi.pipeline.patterns import pattern_of
from eventbus_fastapi.pipeline.queue import Queue
from eventbus_fastapi.pipeline.queue_steward import QueueSteward
from eventbus_fastapi.pipeline.recurring import Recurring
from eventbus_fastapi.pipeline.steward import Steward
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.pipeline.workers import Workers
from eventbus_fastapi.relay.fanout import open_fanout
from eventbus_fastapi.relay.ingest import Ingest, IngestOptions
from eventbus_fastapi.relay.opening import Broker, RelayOptions, open_relay
from eventbus_fastapi.relay.relay import Relay
from eventbus_fastapi.server.limits import Limits
from eventbus_fastapi.server.router import build_router
from eventbus_fastapi.settings import ArchiveMode, Overflow, Settings
from eventbus_fastapi.store import (
    AsyncTransaction,
    Head,
    StoredEvent,
    SyncTransaction,
    close_engine,
    create_session_engine,
)
from eventbus_fastapi.store.limits import RateLimit, limit_period
from eventbus_fastapi.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from eventbus_fastapi.server.metrics import Metrics
    from eventbus_fastapi.server.metrics_port import MetricsPort

F = TypeVar("F", bound=Callable[..., Any])


class EventBus:
    """A durable event bus on one database.

        eventbus = EventBus("sqlite+aiosqlite:///eventbus.db")
        app.include_router(eventbus.router())          # inside an app: starts and stops with it
        async with eventbus: ...                       # outside of one

    Args:
        database: an SQLAlchemy URL with an async driver, an `AsyncEngine` to share (it is never disposed here), or
            `Settings`. None: the settings' `database_url`, which defaults to the file eventbus.db.
        settings: everything else; defaults to the environment (`EVENTBUS_*`).
        workers: serve the handlers in this process, from start to stop of the bus. Defaults to False.
        events: Event classes for the AsyncAPI document and `eventbus schema`, beside those that handlers name; see
            `declare`.
        outboxes: other databases in whose transactions is published, too: an engine or URL of each, or an `Outbox`. The
            bus carries their events to its log; see docs/outboxes.md.
        authenticate: says who asks over HTTP and WebSocket: it gets Starlette's `HTTPConnection` and returns a
            `Principal`, or raises; see docs/security.md. None: everybody may do everything, and the app guards the
            router itself.
        tracer_provider: OpenTelemetry's, for the spans of events; None: the program's own, once it has set one.
        overrides: single settings by name, such as `poll_interval=0.05`.

    Raises:
        SettingsError: a setting or the URL cannot be used.
        InvalidEvent: one of `events` is no Event class with a topic.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine | Settings | None = None,
        *,
        settings: Settings | None = None,
        workers: bool = False,
        events: Iterable[type[Event]] = (),
        outboxes: Iterable[Outbox | str | URL | AsyncEngine] = (),
        authenticate: Authenticate | None = None,
        tracer_provider: TracerProvider | None = None,
        **overrides: Any,
    ) -> None:
        engine = database if isinstance(database, AsyncEngine) else None
        if isinstance(database, Settings):
            if settings is not None:
                raise SettingsError("got Settings twice: as database and as settings")
            settings = database
        elif isinstance(database, URL):
            overrides["database_url"] = database.render_as_string(hide_password=False)
        elif isinstance(database, str):
            overrides["database_url"] = database
        elif database is not None and engine is None:
            raise SettingsError(
                f"expected a database URL, an AsyncEngine or Settings, got {type(database).__name__}: {quote(database)}"
            )
        if settings is None:
            settings = Settings(**overrides)
        elif overrides:
            settings = settings.replace(**overrides)
        self.settings = settings
        tracing = Tracing(tracer_provider, is_wanted=settings.tracing)
        self.node = Node(settings, engine, tracing=tracing, stream=open_fanout(settings))
        # Of a SQLite engine the bus takes the URL only; see `open_store`.
        self._session_engine = None if engine is None or engine.dialect.name == "sqlite" else engine
        self._blocks = 0
        self._owns_session_engine = self._session_engine is None
        self._forwarding = Forwarding(outboxes, self.node)
        self._outbox = self._forwarding.writer(self.node.store.sql, self._expect_commit)
        self.handlers = HandlerGroup()
        """Every handler that is registered."""
        self.catalog = Catalog(self.handlers)
        """Every Event class that is known: those of `events` and `declare`, and those that handlers name."""
        self.catalog.declare(*events)
        self.workers = Workers(self.node, self.handlers, lambda: self.engine)
        self.starts_workers = workers
        """Whether the workers start and stop with the bus."""
        self.ingests: list[Ingest] = []
        """What takes messages of brokers in, see `ingest`; starts and stops with the bus."""
        self._listeners = Listeners()
        self._limits = Limits(settings)
        self._authenticate = authenticate
        self._gate(authenticate)  # what is wrong with it is said now
        self._metrics: Metrics | None = None
        self._metrics_port: MetricsPort | None = None

    def _expect_commit(self) -> None:
        self.node.sequencer.expect()  # looked up at each commit: a started node has a new one

    @property
    def outboxes(self) -> tuple[Outbox, ...]:
        """The outboxes in other databases, as they were given: how they are, and what the bus has refused of them."""
        return self._forwarding.outboxes

    @property
    def engine(self) -> AsyncEngine:
        """An engine on the bus's database for sessions of yours: the one you gave, or one with a pool of its own.

        On SQLite its connections wait for the write lock, are durable as the bus's, and begin transactions with the
        lock, so that they may read first and write later. Sessions that only read leave the lock to others with
        `engine.execution_options(eventbus_begin="DEFERRED")`.
        """
        if self._session_engine is None:
            self._session_engine = create_session_engine(self.node.store.engine.url, self.settings)
        return self._session_engine

    # --- life ---

    async def start(self) -> None:
        """Connect and start. Starting twice is once.

        Raises:
            SchemaOutdated: the tables, or those of an outbox, are missing or of another version; the message names the
                command to run.
            StoreUnavailable: the database cannot be reached. One of an outbox is waited for.
            SourceNotFound: a broker has nothing of the name that is to be ingested; see `ingest`.
        """
        await self._forwarding.open()
        await self.node.start()
        self._forwarding.run()
        self._open_metrics_port()
        await self._start_ingests_and_workers()

    async def _start_ingests_and_workers(self) -> None:
        """Have messages and events be taken, now that they can be; where one cannot, nothing is left running."""
        try:
            for ingest in self.ingests:
                await ingest.start()
            if self.starts_workers:
                await self.workers.start()
        except BaseException:
            await self.stop()
            raise

    def _open_metrics_port(self) -> None:
        settings = self.settings
        if settings.metrics_port is not None and self._metrics_port is None:
            metrics = self.metrics  # first: it says what is missing
            from eventbus_fastapi.server.metrics_port import MetricsPort

            self._metrics_port = MetricsPort(metrics, settings.metrics_host, settings.metrics_port)

    async def stop(self) -> None:
        """Let handlers end, store what was taken, end subscriptions, disconnect. Stopping twice is once."""
        for ingest in self.ingests:
            await ingest.stop()
        self.workers.shutdown()
        await self.workers.join(self.settings.worker_grace)
        if self._metrics_port is not None:
            await self._metrics_port.close()
            self._metrics_port = None
        await self._forwarding.stop()
        await self.node.stop()
        if self._owns_session_engine and self._session_engine is not None:
            await close_engine(self._session_engine)

    async def __aenter__(self) -> Self:
        """Start, unless it runs. Blocks may be nested, as in an app and its lifespan: the outermost stops the bus."""
        await self.start()
        self._blocks += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            await self.stop()

    def router(self, *, authenticate: Authenticate | None = None) -> APIRouter:
        """Return the routes of the bus (`/ws`, `/publish`, `/events`, `/dashboard`, …) for `app.include_router`.

        Start and stop come along in the router's lifespan. `authenticate` is in place of the bus's own.

        Raises:
            SettingsError: `authenticate` is not what it must be.
        """
        gate = self._gate(self._authenticate if authenticate is None else authenticate)
        dashboard = open_dashboard(self.node, gate, self._limits)

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            async with self:
                if dashboard is not None:
                    dashboard.start()
                yield

        metrics = self.metrics if self.settings.metrics else None
        router = build_router(self.node, gate, self._limits, self.catalog, lifespan=lifespan, metrics=metrics)
        if dashboard is not None:
            dashboard.add_to(router)
        return router

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways in which those who connect may say who they are; none: they are not asked."""
        return self._gate(self._authenticate).ways

    def _gate(self, authenticate: Authenticate | None) -> Gate:
        settings = self.settings
        return Gate(authenticate, allowed_origins=settings.allowed_origins, tickets=settings.tickets)

    @property
    def metrics(self) -> Metrics:
        """The numbers of this bus for Prometheus, in a registry of its own.

        Raises:
            SettingsError: the extra `prometheus` is not installed.
        """
        if self._metrics is None:
            try:
                from eventbus_fastapi.server.metrics import Metrics
            except ModuleNotFoundError as exc:
                raise SettingsError(
                    "prometheus-client is not installed; metrics need: pip install 'eventbus-fastapi[prometheus]'"
                ) from exc
            self._metrics = Metrics(self.node, self.workers)
        return self._metrics

    # --- publishing ---

    def draft(self, event: Event | str, payload: Any = UNSET, **options: Unpack[Options]) -> Draft:
        """Check and encode an event without publishing it, for `publish_many`.

        Args:
            event: an `Event`, or a topic with any payload beside it.
            payload: str is text, bytes are bytes, anything else becomes JSON.
            options: see `Options`.

        Raises:
            InvalidInput: one of InvalidTopic, InvalidPayload, PayloadTooLarge, InvalidEvent.
        """
        return make_draft(
            event, payload, max_payload=self.settings.max_payload, max_depth=self.settings.max_depth, **options
        )

    async def publish(
        self, event: Event | str, payload: Any = UNSET, *, durable: bool = True, **options: Unpack[Options]
    ) -> Receipt:
        """Publish an event; when this returns it is committed and has its seq.

        Concurrent calls share a commit and each learns its own result. Options are those of `draft`.
        `durable=False` stores nothing: the event reaches the subscriptions that are live on this node now, and nobody
        else ever; the receipt has no seq. With `unique` it has a transaction of its own, which waits for others that
        publish the same; calls made meanwhile overtake it.

        Raises:
            InvalidInput: see `draft`; nothing was published.
            StoreUnavailable: it is not known whether the event was stored; publish it again with the same
                `message_id`.
            NotRunning: the bus is not started.
        """
        drafts = (self.draft(event, payload, **options),)
        return (await self.node.publish(drafts, name=_name_of(event), is_live=not durable))[0]

    async def publish_many(
        self, events: Iterable[Event | Draft | tuple[str, Any]], **options: Unpack[Options]
    ) -> list[Receipt]:
        """Publish events in one commit, all or none, in their order; return their receipts.

        Each is an `Event`, a `(topic, payload)` or a `draft(…)`. Options are those of `draft`, except `message_id`,
        and apply to all that are not drafts already.

        Raises:
            InvalidInput, StoreUnavailable, NotRunning: as `publish`; nothing, or not known whether all was stored.
        """
        if "message_id" in options:
            raise InvalidEvent("one message_id cannot name many events; use draft(…, message_id=…)")
        # A text, a mapping, a model and a draft can be iterated as well, and their parts taken for events.
        if isinstance(events, str | bytes | Mapping | BaseModel | Draft) or not isinstance(events, Iterable):
            raise InvalidEvent(f"expected an iterable of events, got {_shown(events)}")
        return await self.node.publish([self._draft_of(event, options) for event in events])

    def _draft_of(self, event: object, options: Options) -> Draft:
        if isinstance(event, Draft):
            return event
        if isinstance(event, Event):
            return self.draft(event, **options)
        if isinstance(event, tuple | list) and len(event) == 2 and isinstance(event[0], str):
            return self.draft(event[0], event[1], **options)
        raise InvalidEvent(f"expected an Event, a (topic, payload) or a draft, got {_shown(event)}")

    async def publish_txn(
        self, transaction: AsyncTransaction, event: Event | str, payload: Any = UNSET, **options: Unpack[Options]
    ) -> Receipt:
        """Add an event to the caller's transaction.

        It becomes visible if and only if the transaction commits, also with SAVEPOINTs. Nothing is committed or
        flushed here, and only the event's own row is locked; with `unique`, those who publish the same wait for the end
        of the transaction. Works on an `AsyncSession` or `AsyncConnection` of any
        driver, whether or not the bus is started in this process; the database must be the bus's, or one of `outboxes`
        (there `Outbox.publish_txn` says what differs). Options are those of `draft`. The receipt has no seq: the event
        gets it after the commit. Of a duplicate it is the first one's.

        Raises:
            InvalidInput: see `draft`; the transaction is untouched.
            SchemaOutdated: the transaction's database is neither.
            StoreError: the database refused the row; the transaction is as its database leaves it.
        """
        draft = self.draft(event, payload, **options)
        if (spans := self.node.tracing.spans()) is None:
            return self._noted(draft, await self._outbox.add(transaction, draft))
        with spans.publishing((draft,), _name_of(event)) as (draft,):
            return self._noted(draft, await self._outbox.add(transaction, draft))

    def publish_txn_sync(
        self, transaction: SyncTransaction, event: Event | str, payload: Any = UNSET, **options: Unpack[Options]
    ) -> Receipt:
        """Add an event to the caller's transaction: `publish_txn` for a sync `Session` or `Connection`."""
        draft = self.draft(event, payload, **options)
        if (spans := self.node.tracing.spans()) is None:
            return self._noted(draft, self._outbox.add_sync(transaction, draft))
        with spans.publishing((draft,), _name_of(event)) as (draft,):
            return self._noted(draft, self._outbox.add_sync(transaction, draft))

    def _noted(self, draft: Draft, receipt: Receipt) -> Receipt:
        """Count what was handed to a transaction."""
        if not receipt.duplicate:
            self.node.meters.note_published("outbox", (draft,))
        return receipt

    def ingest(self, broker: Any, source: str, **options: Unpack[IngestOptions]) -> Ingest:
        """Have each message of a broker become one event, from the bus's next start on; see docs/ingest.md.

            eventbus.ingest(RabbitBroker("amqp://…"), "orders", topic_template="shop.{subject}")

        Args:
            broker: FastStream's NatsBroker, RabbitBroker, RedisBroker or KafkaBroker; it is connected where it is not,
                and never disconnected.
            source: the queue (RabbitMQ), stream (JetStream, Redis) or topic (Kafka).
            options: see `IngestOptions`.

        Raises:
            SettingsError: something of it cannot be used.
        """
        ingest = Ingest(self.node, broker, source, **options)
        if any(each.name == ingest.name for each in self.ingests):
            raise SettingsError(f"there is an ingest {quote(ingest.name)} already; give another name")
        self.ingests.append(ingest)
        return ingest

    # --- handling ---

    def handler(self, *patterns: str | type[Event], **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Register the function or class below as a handler of events; see `HandlerGroup.handler`."""
        return self.handlers.handler(*patterns, **options)

    def declare(self, *events: type[Event]) -> None:
        """Have the AsyncAPI document and `eventbus schema` know these Event classes, beside those that handlers name.

            eventbus.declare(OrderPaid, OrderShipped)

        It changes nothing else: any event may be published.

        Raises:
            InvalidEvent: one of them is no Event class, or has no topic; none was taken.
        """
        self.catalog.declare(*events)

    def include(self, group: HandlerGroup) -> None:
        """Take the handlers of a group that another module has made, also those that it gets later.

        Raises:
            InvalidHandler: two handlers have the same name; nothing was taken.
        """
        self.handlers.include(group)

    def queue(
        self,
        name: str,
        *,
        workers: int = 10,
        batch_size: int = 100,
        poll_interval: float = 1.0,
        archive: ArchiveMode = "none",
    ) -> None:
        """Say how a queue is served by the workers of this process, from their next start on.

        What the settings say about it (`Settings.queues`) replaces what is said here, field by field.

        Args:
            name: the handlers' `queue`.
            workers: events that it handles at the same time. Defaults to 10.
            batch_size: events that are taken from the log at once, at most. Defaults to 100.
            poll_interval: seconds between two looks for what no bell tells of: retries that other nodes wrote, leases
                that ended, groups that were changed elsewhere. New events do not wait for it. Defaults to 1.
            archive: which endings of its events are kept in the archive. Defaults to none.

        Raises:
            InvalidHandler: a value is out of its range.
        """
        self.workers.describe(Queue(name, workers, batch_size, poll_interval, archive))

    def rate_limit(self, name: str, permits: int, *, per: float | timedelta) -> None:
        """Say how often attempts of the handlers with `rate_limit=name` may begin, over all processes.

        In no period, wherever it begins, more than `permits` attempts are taken; those that may not begin yet stay
        where they are, and cost no attempt. The limit is kept in the store from the workers' next start on; where two
        programs say something else, what was said last holds.

        Args:
            permits: attempts in a period, from 1 to 1,000,000.
            per: the period, seconds or a timedelta.

        Raises:
            InvalidGroup: it cannot be a limit.
        """
        self.workers.limit(RateLimit(name, permits, limit_period(name, per)))

    # --- existing brokers ---

    def relay(self, to: str | Broker, *patterns: str | type[Event], **options: Unpack[RelayOptions]) -> Relay:
        """Hand events on to an existing broker, in the order of the log: NATS JetStream, RabbitMQ, Redis or Kafka.

            eventbus.relay("nats://127.0.0.1:4222", "user.#", stream="users", create_stream=True)

        It begins and ends with the workers, where these serve all queues; or by itself, with `start()` and `join()`.
        Any number of processes may have it: one works, the others take over. See docs/relay.md.

        Args:
            to: the broker's URL, or a broker of FastStream's; see docs/relay.md.
            patterns: patterns, or `Event` classes for their topics. Defaults to all events.
            options: see `RelayOptions`.

        Raises:
            InvalidRelay: the broker cannot have it so, or a relay has this name already.
            SettingsError: it is no broker, or the extra `relay` is not installed.
        """
        relay = open_relay(self.node, to, [pattern_of(pattern) for pattern in patterns] or ["#"], options)
        if relay.name in {each.name for each in self.workers.companions}:
            raise InvalidRelay(f"this bus has a relay {quote(relay.name)} already; give it another name")
        self.workers.companions.append(relay)
        return relay

    def listener(self, *wanted: str | type[Event]) -> Callable[[F], F]:
        """Register the function below to be called by `emit`, in this process; see `Listeners.listener`."""
        return self._listeners.listener(*wanted)

    async def emit(self, event: Event) -> None:
        """Call the listeners of an event, one after the other; nothing is stored.

        Raises:
            ExceptionGroup: some of them failed; the others have run all the same.
        """
        await self._listeners.emit(event)

    # --- reading ---

    def subscribe(
        self,
        *patterns: str | type[Event],
        after: int | None = None,
        start: Start = "now",
        include_processed: bool = False,
        overflow: Overflow | None = None,
        buffer: int | None = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> Subscribing:
        """Read events in this process: every match after a position, once and in order, then live.

            async for message in eventbus.subscribe("user.*", after=seq): ...
            async with eventbus.subscribe(UserCreated) as subscription: ...      # in place from here on
            subscription = await eventbus.subscribe("#")                         # close() it yourself

        Args:
            patterns: patterns, or `Event` classes for their topics.
            after: read the events after this seq. Not together with `start`.
            start: `now`, `earliest`, a seq (as `after`) or an aware datetime.
            include_processed: also replay events that were acknowledged.
            overflow: what happens to a reader that falls behind; defaults to the setting.
            buffer: how many events that is; defaults to the setting.
            on_gap: called with what cannot be delivered; None: iterating raises LogGap. A subscription opened with
                `async with` or `await` may be iterated again after that, and goes on behind the gap.

        Raises, when it is opened:
            InvalidPattern, InvalidEvent: a pattern or start cannot be used.
            NotRunning, StoreUnavailable: the bus is not started, or the database cannot be reached.
        """
        if after is not None and start != "now":
            raise InvalidEvent(f"give after or start, not both: got after={after} and start={quote(start)}")
        if not patterns:
            raise InvalidEvent("give at least one pattern or Event class to subscribe to")
        return Subscribing(
            lambda: self.node.subscribe(
                [pattern_of(pattern) for pattern in patterns],
                start if after is None else after,
                include_processed=include_processed,
                overflow=overflow,
                buffer=buffer,
                on_gap=on_gap,
            )
        )

    async def get(self, seq: int) -> StoredEvent:
        """Return one event of the log with its status.

        Raises:
            NotFound: no event has this seq.
        """
        return await self.node.get(seq)

    @property
    def groups(self) -> Steward:
        """What looks after groups: how they are, what waits and what died; declare, pause, reset, retry, discard."""
        return self.node.steward

    @property
    def queues(self) -> QueueSteward:
        """What looks after queues while they are served, in whichever process: how they are and who serves them; pause,
        resume, scale.
        """
        return self.node.queues

    @property
    def recurring(self) -> Recurring:
        """Declares events that are published by a schedule, and what looks after them.

        eventbus.recurring("nightly-report", "0 3 * * *", MakeReport(kind="sales"), timezone="Europe/Berlin")
        await eventbus.recurring.pause("nightly-report")
        """
        return self.node.recurring

    async def head(self) -> Head:
        """Return the newest seq, the oldest kept, and the log's epoch."""
        return await self.node.head()


def _name_of(event: Event | str) -> str:
    """Return what a trace is named after: a topic that the program declares. Others may be as many as users."""
    return event.__topic__ if isinstance(event, Event) else ""


def _shown(value: object) -> str:
    """Name what came instead of an event; never its value, which may be private."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, tuple | list) and not isinstance(value, Draft):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


class Subscribing:
    """A subscription that is about to be opened: by `async for`, `async with` or `await`."""

    def __init__(self, open_subscription: Callable[[], Coroutine[Any, Any, Subscription]]) -> None:
        self._open = open_subscription
        self._subscription: Subscription | None = None

    def __await__(self) -> Generator[Any, None, Subscription]:
        return self._open().__await__()

    async def __aiter__(self) -> AsyncIterator[Message]:
        async with await self as subscription:
            while True:
                try:
                    messages = await subscription.next_messages()
                except SlowConsumer:
                    raise
                except SubscriptionClosed:
                    return
                for message in messages:
                    yield message

    async def __aenter__(self) -> Subscription:
        self._subscription = await self
        return self._subscription

    async def __aexit__(self, *exc: object) -> None:
        if self._subscription is not None:
            self._subscription.close()
