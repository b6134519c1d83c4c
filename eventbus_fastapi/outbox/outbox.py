"""`Outbox`: publish in transactions of a database that is not the bus's.

    async with Outbox("postgresql+asyncpg://…/orders") as outbox:
        async with AsyncSession(outbox.engine) as session, session.begin():
            session.add(order)
            await outbox.publish_txn(session, OrderPaid(id=order.id))

It needs no bus. Its events are kept in that database until a forwarder has carried them to one: a bus that can reach
the database (`EventBus(…, outboxes=[engine])`), or `OutboxForwarder` or `eventbus forward` beside the program, over
WebSocket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack
from weakref import WeakSet

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.events import UNSET, Draft, Event, Options, Receipt, make_draft
from eventbus_fastapi.pipeline.forwarder import Deliver, Forwarder
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import close_engine, create_session_engine
from eventbus_fastapi.store.forward_store import OutboxStore, Refused, open_outbox
from eventbus_fastapi.store.outbox import AsyncTransaction, OutboxWriter, SyncTransaction
from eventbus_fastapi.telemetry.meters import Backlog, Meters
from eventbus_fastapi.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


class Outbox:
    """The outbox of a database that is not the bus's; see the module's docstring.

    Started with `async with` (or `start()`), it has its tables made on SQLite, and checked elsewhere, where `eventbus
    migrate upgrade --outbox URL` makes them. `publish_txn` works without.

    Args:
        database: an SQLAlchemy URL with an async driver, or an `AsyncEngine` to share (it is never disposed here).
        settings: for the names of the tables, limits and timeouts; defaults to the environment (`EVENTBUS_*`).
        name: for logs and metrics. Defaults to the database's.
        tracer_provider: OpenTelemetry's, for the spans of events; None: the program's own, once it has set one.
        overrides: single settings by name, such as `table_prefix="orders_"`.

    Raises:
        SettingsError: a setting or the URL cannot be used.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine,
        *,
        settings: Settings | None = None,
        name: str | None = None,
        tracer_provider: TracerProvider | None = None,
        **overrides: Any,
    ) -> None:
        engine = database if isinstance(database, AsyncEngine) else None
        if isinstance(database, URL):
            overrides["database_url"] = database.render_as_string(hide_password=False)
        elif isinstance(database, str):
            overrides["database_url"] = database
        elif engine is None:
            raise SettingsError(
                f"expected a database URL or an AsyncEngine, got {type(database).__name__}: {quote(database)}"
            )
        if settings is None:
            settings = Settings(**overrides)
        elif overrides:
            settings = settings.replace(**overrides)
        self.settings = settings
        self.store: OutboxStore = open_outbox(settings, engine)
        self.name = name or _name_of(self.store.engine.url)
        """What logs and metrics call it."""
        self._session_engine = engine
        self._owns_session_engine = engine is None
        self._tracing = Tracing(tracer_provider, is_wanted=settings.tracing)
        self._forwarders: WeakSet[Forwarder] = WeakSet()
        self._writer = OutboxWriter(self.store.sql, self.ring)

    @property
    def engine(self) -> AsyncEngine:
        """An engine on the database for sessions of yours: the one you gave, or one with a pool of its own, which on
        SQLite begins transactions as `EventBus.engine` does.
        """
        if self._session_engine is None:
            self._session_engine = create_session_engine(self.store.engine.url, self.settings)
        return self._session_engine

    # --- life ---

    async def start(self) -> None:
        """Make the tables on SQLite; check them elsewhere.

        Raises:
            SchemaOutdated: the tables are missing or of another version; the message names the command to run.
            StoreUnavailable: the database cannot be reached.
        """
        await self.store.start()

    async def stop(self) -> None:
        """Disconnect what was not given."""
        await self.store.stop()
        if self._owns_session_engine and self._session_engine is not None:
            await close_engine(self._session_engine)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # --- publishing ---

    async def publish_txn(
        self, transaction: AsyncTransaction, event: Event | str, payload: Any = UNSET, **options: Unpack[Options]
    ) -> Receipt:
        """Add an event to the caller's transaction; as `EventBus.publish_txn`, with the same options.

        It is in the bus's log once the transaction has committed and a forwarder has carried it there. A `delay` counts
        from now, by this database's clock. What `unique` makes a duplicate of another is found out by the bus, when it
        gets there; the receipt does not say so.

        Raises:
            InvalidInput: the event cannot be used; the transaction is untouched.
            StoreError: the database refused the row; the transaction is as its database leaves it.
        """
        draft = self._draft(event, payload, options)
        if (spans := self._tracing.spans()) is None:
            return await self._writer.add(transaction, draft)
        with spans.publishing((draft,), _topic_of(event)) as (draft,):
            return await self._writer.add(transaction, draft)

    def publish_txn_sync(
        self, transaction: SyncTransaction, event: Event | str, payload: Any = UNSET, **options: Unpack[Options]
    ) -> Receipt:
        """Add an event to the caller's transaction: `publish_txn` for a sync `Session` or `Connection`."""
        draft = self._draft(event, payload, options)
        if (spans := self._tracing.spans()) is None:
            return self._writer.add_sync(transaction, draft)
        with spans.publishing((draft,), _topic_of(event)) as (draft,):
            return self._writer.add_sync(transaction, draft)

    def _draft(self, event: Event | str, payload: Any, options: Options) -> Draft:
        settings = self.settings
        return make_draft(event, payload, max_payload=settings.max_payload, max_depth=settings.max_depth, **options)

    # --- forwarding ---

    def forwarder(self, deliver: Deliver, *, meters: Meters | None = None) -> Forwarder:
        """Return what carries the events to a bus, woken by each commit of this process."""
        forwarder = Forwarder(
            self.store, deliver, name=self.name, poll_interval=self.settings.poll_interval, meters=meters
        )
        self._forwarders.add(forwarder)
        return forwarder

    def ring(self) -> None:
        """Tell those who forward that something was committed."""
        for forwarder in tuple(self._forwarders):
            forwarder.expect()

    # --- looking after it ---

    async def figures(self) -> Backlog:
        """Return how many events wait, for how long the oldest has, and how many were refused.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        return Backlog(*await self.store.figures())

    async def refused(self, *, after: int = 0, limit: int = 100) -> list[Refused]:
        """Return events that the bus has refused for good, such as one that is too large there: the oldest refusal
        first, behind the one with the id `after`.
        """
        return await self.store.refused(after, limit)

    async def retry(self, ids: Sequence[int]) -> int:
        """Put refused events back, by their ids, behind all that wait; return how many there were."""
        count = await self.store.retry(ids)
        self.ring()
        return count

    async def discard(self, ids: Sequence[int]) -> int:
        """Forget refused events for good, by their ids; return how many there were."""
        return await self.store.discard(ids)


def _name_of(url: URL) -> str:
    """Return the last part of a database's name, without what may be a suffix of a file."""
    return (url.database or "").replace("\\", "/").rpartition("/")[2].partition(".")[0] or url.get_backend_name()


def _topic_of(event: Event | str) -> str:
    return event.__topic__ if isinstance(event, Event) else ""
