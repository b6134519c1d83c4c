"""Draining: what workers do, one event after the other and when the test says so.

Events are claimed, handled and settled through the store and the worker of the real bus. The outcome is written at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import quote
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import Delivery, Release, Settled
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.pipeline.outcome import Outcome, Retry
from eventbus_fastapi.pipeline.worker import Worker
from eventbus_fastapi.store.group import Group

Errors = Literal["raise", "record"]
"""What becomes of what a handler raises."""

MOST_ATTEMPTS = 1_000
"""Attempts after which a drain takes it that its handlers will never be done."""
SHORTEST_PAGE, LONGEST_PAGE = 8, 1_000
"""Events that are read to find the next one: each step reads anew, so that it must not read all that is left."""
LEASE = 3_600.0
"""Seconds that a drain may hold an event; nobody renews it."""


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


def check_errors(errors: object) -> None:
    """Refuse what is none of `Errors`."""
    if errors not in ("raise", "record"):
        raise ValueError(f"errors must be 'raise' or 'record', got {quote(errors)}")


async def drain(eventbus: EventBus, handled: list[Handled], errors: Errors, *, retries_wait: bool) -> None:
    """Handle events until none is due, and append each attempt to `handled`; see `BusTester.drain`."""
    run = _Drain(eventbus, retries_wait=retries_wait)
    attempts = 0
    try:
        while (attempt := await run.step()) is not None:
            handled.append(attempt)
            attempts += 1
            if attempt.error is not None and errors == "raise":
                raise attempt.error
            if attempts > MOST_ATTEMPTS:
                raise RuntimeError(f"after {MOST_ATTEMPTS:,} attempts there is still something due")
    finally:
        run.close()


class _Drain:
    """One run through what is due."""

    def __init__(self, eventbus: EventBus, *, retries_wait: bool) -> None:
        self._eventbus = eventbus
        self._node = eventbus.node
        self._groups = eventbus.node.store.groups
        self._owner = eventbus.node.consumers.owner
        self._executor = _Executor(eventbus.settings, node=self._owner, overrides=eventbus.workers.dependency_overrides)
        self._executor.retries_wait = retries_wait
        self._worker = Worker(self._node, self._executor, eventbus.engine)

    def close(self) -> None:
        self._executor.close()

    async def step(self) -> Handled | None:
        """Make one attempt; None: nothing is due."""
        await sequence(self._eventbus)
        await self._groups.rescue()
        for handler in sorted(self._eventbus.handlers, key=lambda handler: -handler.priority):
            delivery = await self._take(handler)
            if delivery is not None:
                return await self._handle(handler, delivery)
        return None

    async def _take(self, handler: Handler) -> Delivery | None:
        """Hold one event: what is to be tried again comes before what is new."""
        matcher = Matcher(handler.patterns)
        page = SHORTEST_PAGE
        while True:
            group = await self._groups.ensure(
                handler.group,
                handler.patterns,
                after=0,
                ordered_by=handler.ordered_by,
                max_attempts=handler.max_attempts,
                archive=self._eventbus.workers.described(handler.queue).archive,
                is_declared=True,
            )
            if group.is_paused:
                return None
            if (due := await self._due(group)) is not None:
                due.archive = group.archive
                return due
            message, up_to = await self._next(group, matcher, page)
            page = min(page * 4, LONGEST_PAGE)
            if up_to == group.cursor:
                return None
            claimed = await self._claim(group, [] if message is None else [message], up_to)
            if claimed is not None:
                claimed.archive = group.archive
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

    async def _next(self, group: Group, matcher: Matcher, page: int) -> tuple[Message | None, int]:
        """Return the next new event of a group, if a page has one, and how far the log was read."""
        scan = await self._node.store.read(group.cursor, page)
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

    retries_wait = True
    _raised: Exception | None = None

    def decide(self, handler: Handler, result: object, attempt: int) -> Outcome:
        self._raised = result if isinstance(result, Exception) else None
        outcome = super().decide(handler, result, attempt)
        if isinstance(outcome, Retry) and not self.retries_wait:
            return Retry(0, outcome.reason, error=outcome.error)
        return outcome

    def take_raised(self) -> Exception | None:
        raised, self._raised = self._raised, None
        return raised


async def sequence(eventbus: EventBus) -> None:
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
