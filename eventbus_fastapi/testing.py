"""For the test suites of applications: a bus in memory whose handlers run when the test says so.

    pytest_plugins = ["eventbus_fastapi.testing"]      # in conftest.py: the fixtures `eventbus` and `bus`

    async def test_a_user_is_welcomed(bus):
        async with bus:                                # or the app's lifespan, as in a TestClient
            await bus.eventbus.publish(UserCreated(id=1, username="alice"))
            await bus.assert_published(UserCreated, username="alice")
            await bus.drain()

A `BusTester` puts an `EventBus` on a database in memory, with the log, the outbox, the groups, the retries and the dead
letters of the real one. No workers run: `drain` claims, calls and settles as they do, one event after the other. It
never sleeps: what is due later becomes due when the test moves the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Self, TypeVar, cast, overload

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import InvalidEvent, quote
from eventbus_fastapi.events import Draft, Event, Message
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import Delivery, Release, Settled
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.pipeline.outcome import Outcome
from eventbus_fastapi.pipeline.patterns import pattern_of
from eventbus_fastapi.pipeline.worker import Worker
from eventbus_fastapi.store import Outbox, create_engine, create_session_engine
from eventbus_fastapi.store.group import Group
from eventbus_fastapi.store.sqlite import SQLiteStore

E = TypeVar("E", bound=Event)

IN_MEMORY = "sqlite+aiosqlite://"
MOST_ATTEMPTS = 1_000
"""Attempts after which a drain takes it that its handlers will never be done."""
LEASE = 3_600.0
"""Seconds that a drain may hold an event; nobody renews it."""
SHOWN = 10
"""Events that a failed assertion shows, the newest."""
NOW = "julianday('now')"
"""How the statements ask SQLite for the time."""


class Clock:
    """The clock of the bus's database: it goes on by itself, and a test moves it forward.

    With it moves everything that the bus reads from its database's clock: retries, scheduled events, TTLs, leases and
    the timestamps of events. What Python reads does not: `datetime.now()` and `sleep` are as ever.
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + self._ahead, UTC)

    def move(self, duration: float | timedelta) -> None:
        """Move forward, by seconds or a timedelta. What is due then is handled by the next `drain`.

        Raises:
            ValueError: it would go back.
        """
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a clock moves forward, by 0 seconds or more, got {quote(duration)}")
        self._ahead += seconds

    def _drive(self, engine: AsyncEngine) -> None:
        """Have all statements of an engine see this clock."""

        @sqlalchemy_event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
        def see_this_clock(
            connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
        ) -> tuple[str, Any]:
            return statement.replace(NOW, f"julianday('now', '+{self._ahead:.3f} seconds')"), parameters


class Handled(NamedTuple):
    """An attempt that `drain` has made."""

    group: str
    """The handler's name."""
    message: Message
    attempt: int
    """Counted from 1."""
    outcome: Outcome
    """What became of it: Ack, Retry, Snooze, Discard or Dead."""
    error: Exception | None
    """What the handler raised."""


class BusTester:
    """See the module's docstring. Made by `swap`, or by the fixture `bus`.

    All that awaits does so in the event loop in which the bus was started.
    """

    def __init__(self, eventbus: EventBus) -> None:
        self.eventbus = eventbus
        self.clock = Clock()

    async def __aenter__(self) -> Self:
        """Start the bus, where no lifespan of an app does. Each start begins with an empty database."""
        await self.eventbus.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.eventbus.__aexit__(*exc)

    # --- what was published ---

    @overload
    async def published(self, wanted: type[E], **match: Any) -> list[E]: ...
    @overload
    async def published(self, wanted: str = "#", **match: Any) -> list[Message]: ...
    async def published(self, wanted: type[E] | str = "#", **match: Any) -> list[E] | list[Message]:
        """Return the events of the log, in its order: of an `Event` class as such, of a pattern as messages.

        What was rolled back is not there, and a scheduled event is not before it is due.

        Args:
            wanted: an `Event` class or a pattern.
            match: fields of the payload, by name, and what they must be equal to.

        Raises:
            InvalidPattern, InvalidEvent: there cannot be such events.
            InvalidPayload: a payload is none of the class.
            NotRunning: the bus is not started.
        """
        matcher = Matcher([pattern_of(wanted)])
        messages = [message for message in await self._log() if matcher.matches(message.topic)]
        if isinstance(wanted, str):
            return [message for message in messages if _has(message.payload, match)]
        for name in match:
            if name not in wanted.model_fields:
                raise InvalidEvent(f"{wanted.__name__} has no field {quote(name)}")
        events = [message.decode(wanted) for message in messages]
        return [event for event in events if all(getattr(event, name) == match[name] for name in match)]

    async def assert_published(self, wanted: type[Event] | str, **match: Any) -> None:
        """Fail unless at least one such event was published; see `published`."""
        if not await self.published(wanted, **match):
            pytest.fail(f"expected {_described(wanted, match)}, but {await self._shown()}", pytrace=False)

    async def refute_published(self, wanted: type[Event] | str, **match: Any) -> None:
        """Fail if such an event was published; see `published`."""
        if await self.published(wanted, **match):
            pytest.fail(f"expected no {_described(wanted, match)}, but {await self._shown()}", pytrace=False)

    # --- handling ---

    async def drain(self, *, errors: Literal["raise", "record"] = "raise") -> list[Handled]:
        """Handle events until none is due, also those that handlers publish; return the attempts, in their order.

        Retries that are due by the clock are among them. A failed attempt is settled as in production: it waits for
        the next one, or is a dead letter.

        Args:
            errors: `raise`: raise what a handler raises, when it is settled; the next drain goes on from there.
                `record`: go on at once, and return the errors with the attempts.

        Raises:
            Exception: what a handler raised.
            RuntimeError: after 1,000 attempts there is still something due.
        """
        if errors not in ("raise", "record"):
            raise ValueError(f"errors must be 'raise' or 'record', got {quote(errors)}")
        handled: list[Handled] = []
        drain = _Drain(self.eventbus)
        try:
            while (attempt := await drain.step()) is not None:
                handled.append(attempt)
                if attempt.error is not None and errors == "raise":
                    raise attempt.error
                if len(handled) == MOST_ATTEMPTS:
                    raise RuntimeError(f"after {MOST_ATTEMPTS:,} attempts there is still something due")
        finally:
            drain.close()
        return handled

    # --- parts ---

    async def _log(self) -> list[Message]:
        await _sequence(self.eventbus)
        messages: list[Message] = []
        after, is_last = 0, False
        while not is_last:
            scan = await self.eventbus.node.store.read(after, 1_000)
            messages += scan.messages
            after, is_last = scan.scanned_to, scan.is_last
        return messages

    async def _shown(self) -> str:
        lines = [f"  {message.seq} {message.topic} {message.payload!r}" for message in await self._log()]
        look = await self.eventbus.node.store.peek()
        if look.next_due is not None:
            lines.append(f"  (the next scheduled event is due in {(look.next_due - look.now) / 1_000_000:.1f} s)")
        return "\n".join(["the log has:", *lines[-SHOWN:]]) if lines else "nothing was published"


@contextmanager
def swap(eventbus: EventBus) -> Iterator[BusTester]:
    """Put a bus that is not started on a database in memory, without workers, until the end of the block.

    Its settings, handlers, routes and listeners stay. `eventbus.engine` is on the database in memory, too.

    Raises:
        RuntimeError: the bus is started already; or still is at the end, and stays where it is.
    """
    _refuse_started(eventbus, "start it inside of swap")
    tester = BusTester(eventbus)
    node = eventbus.node
    before = eventbus.settings, node.store, eventbus.starts_workers
    engines = eventbus._session_engine, eventbus._owns_session_engine, eventbus._outbox
    settings = eventbus.settings.replace(database_url=IN_MEMORY, db_schema=None)
    store = _Store(create_engine(settings), settings, owns_engine=True)
    sessions = create_session_engine(store.engine.url, settings)
    for engine in (store.engine, sessions):
        tester.clock._drive(engine)
    eventbus.settings = node.settings = settings
    node.store, eventbus.starts_workers = store, False
    eventbus._session_engine, eventbus._owns_session_engine = sessions, True
    eventbus._outbox = Outbox(store.sql, eventbus._expect_commit)
    node._build()
    try:
        yield tester
    finally:
        _refuse_started(eventbus, "stop it inside of swap")
        eventbus.settings, node.store, eventbus.starts_workers = before
        node.settings = eventbus.settings
        eventbus._session_engine, eventbus._owns_session_engine, eventbus._outbox = engines
        node._build()


@pytest.fixture
def eventbus() -> EventBus:
    """The bus under test: an empty one. Override it to return your app's, wherever its database is."""
    return EventBus(IN_MEMORY)


@pytest.fixture
def bus(eventbus: EventBus) -> Iterator[BusTester]:
    """The bus of the fixture `eventbus`, in memory; see `BusTester`. It is not started."""
    with swap(eventbus) as tester:
        yield tester


# --- draining ------------------------------------------------------------------------------------


class _Drain:
    """One run through what is due."""

    def __init__(self, eventbus: EventBus) -> None:
        self._eventbus = eventbus
        self._node = eventbus.node
        self._groups = eventbus.node.store.groups
        self._owner = eventbus.node.consumers.owner
        self._executor = _Executor(eventbus.settings, node=self._owner, overrides=eventbus.workers.dependency_overrides)
        self._worker = Worker(self._node, self._executor, eventbus.engine)

    def close(self) -> None:
        self._executor.close()

    async def step(self) -> Handled | None:
        """Make one attempt; None: nothing is due."""
        await _sequence(self._eventbus)
        await self._groups.rescue()
        for handler in sorted(self._eventbus.handlers, key=lambda handler: -handler.priority):
            delivery = await self._take(handler)
            if delivery is not None:
                return await self._handle(handler, delivery)
        return None

    async def _take(self, handler: Handler) -> Delivery | None:
        """Hold one event: what is to be tried again comes before what is new."""
        matcher = Matcher(handler.patterns)
        while True:
            group = await self._groups.ensure(
                handler.group,
                handler.patterns,
                after=0,
                ordered_by=handler.ordered_by,
                max_attempts=handler.max_attempts,
                is_declared=True,
            )
            if group.is_paused:
                return None
            if (due := await self._due(group)) is not None:
                return due
            message, up_to = await self._next(group, matcher)
            if up_to == group.cursor:
                return None
            claimed = await self._claim(group, [] if message is None else [message], up_to)
            if claimed is not None:
                return claimed

    async def _due(self, group: Group) -> Delivery | None:
        for held in await self._groups.hold_retries(group, limit=1, owner=self._owner, lease=LEASE):
            return Delivery(
                held.message,
                group_id=group.id,
                token=held.token,
                attempt=held.attempt,
                errors=held.errors,
                is_retry=True,
            )
        return None

    async def _next(self, group: Group, matcher: Matcher) -> tuple[Message | None, int]:
        """Return the next new event of a group, if there is one, and how far the log was read."""
        scan = await self._node.store.read(group.cursor, 1_000)
        for message in scan.messages:
            if matcher.matches(message.topic):
                return message, message.seq
        return None, scan.scanned_to

    async def _claim(self, group: Group, messages: Sequence[Message], up_to: int) -> Delivery | None:
        claim = await self._groups.claim(group, messages, up_to=up_to, owner=self._owner, lease=LEASE)
        if claim is None or not claim.seqs:
            return None
        return Delivery(messages[0], group_id=group.id, token=claim.token)

    async def _handle(self, handler: Handler, delivery: Delivery) -> Handled:
        """Have it handled as a worker does, and write the outcome at once."""
        ending = _Ending()
        try:
            await self._worker.run(handler, cast(Consumer, ending), delivery)
        except BaseException:  # not the handler's, such as pytest.fail or a cancellation
            await self._settle(delivery, Release())
            raise
        assert ending.settled is not None, "nobody else can have taken it"
        if not ending.is_written:
            await self._settle(delivery, ending.settled)
        error = self._executor.take_raised()
        if error is not None:
            message = delivery.message
            error.add_note(f"handler {handler.group}, attempt {delivery.attempt}, of {message.topic} at {message.seq}")
        return Handled(handler.group, delivery.message, delivery.attempt, ending.settled, error)

    async def _settle(self, delivery: Delivery, settled: Settled) -> None:
        await self._groups.settle([self._node.consumers.settler.settlement(delivery, settled)])


class _Ending:
    """What a worker tells the consumer of a delivery."""

    def __init__(self) -> None:
        self.settled: Outcome | None = None
        self.is_written = False

    def settle(self, delivery: Delivery, settled: Outcome) -> None:
        self.settled = settled

    def forget(self, delivery: Delivery, settled: Outcome) -> None:
        self.settled, self.is_written = settled, True


class _Executor(Executor):
    """Keeps what a handler raised."""

    _raised: Exception | None = None

    def decide(self, handler: Handler, result: object, attempt: int) -> Outcome:
        self._raised = result if isinstance(result, Exception) else None
        return super().decide(handler, result, attempt)

    def take_raised(self) -> Exception | None:
        raised, self._raised = self._raised, None
        return raised


class _Store(SQLiteStore):
    """Appends through the engine, whose statements see the test's clock."""

    async def _append_alone(self, drafts: Sequence[Draft]) -> None:
        return None


async def _sequence(eventbus: EventBus) -> None:
    """Let in what is due, and give all that is committed its place in the log."""
    eventbus.node._require_running()
    store = eventbus.node.store
    await eventbus.node.recurrer.publish_due()
    while True:
        look = await store.peek()
        is_due = look.next_due is not None and look.next_due <= look.now
        if is_due:
            await store.promote()
        if not is_due and not look.has_outbox:
            return
        _, last_seq = await store.sequence()
        eventbus.node._tell(last_seq)


def _refuse_started(eventbus: EventBus, remedy: str) -> None:
    if eventbus.node.is_running:
        raise RuntimeError(f"the bus is running; {remedy}")


def _has(payload: object, match: dict[str, Any]) -> bool:
    if not match:
        return True
    return isinstance(payload, dict) and all(name in payload and payload[name] == match[name] for name in match)


def _described(wanted: type[Event] | str, match: dict[str, Any]) -> str:
    name = wanted if isinstance(wanted, str) else wanted.__name__
    return " with ".join([name, *([", ".join(f"{key}={value!r}" for key, value in match.items())] if match else [])])
