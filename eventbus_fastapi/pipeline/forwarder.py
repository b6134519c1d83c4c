"""A forwarder: carries the committed events of an outbox in another database to the bus.

    outbox ──▶ a batch, in its order ──▶ deliver ──▶ the bus has answered ──▶ removed
      ▲                                     │ away, busy: all of it again, a little later
      └─────────────────────────────────────┘ refused for good: kept apart, with the reason

It may be killed anywhere: what the bus has answered and is still in the outbox is sent once more, and its message_id
makes that a duplicate. One forwarder of an outbox works, who holds its lease; others wait, and one of them takes over
when the lease ends. It wakes by the bell that a commit in this process rings, and by polling.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from eventbus_fastapi import codec
from eventbus_fastapi.errors import EventBusError, InvalidEvent, NotForwarded, StoreUnavailable, quote
from eventbus_fastapi.events import Draft, Receipt, make_draft, make_unique
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store.forward_store import BATCH, OutboxStore, Refusal
from eventbus_fastapi.telemetry.meters import Backlog, Meters
from eventbus_fastapi.unique import Unique

T = TypeVar("T")
Deliver = Callable[[Sequence[Draft]], Awaitable[Sequence[Receipt]]]
"""Hands events to the bus, all or none, and returns when it has answered."""

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds that a forwarder may be silent before another one takes over."""
LOOK_EVERY = 5.0
"""Seconds between two looks at how many events wait."""
WAIT = 1.0
"""Seconds between two attempts of one that waits to take over."""
SHORTEST_POLL = 0.002
"""Seconds until the second look after something happened; doubles with each look that finds nothing."""
LONGEST_ADVICE = 60.0
"""Longest time that a bus which is asked too much may have it wait, seconds."""
LARGEST_PAYLOAD, DEEPEST = 16_000_000, 100
"""What no bus takes more than; the one that gets it may be stricter."""
LATEST = 4_611_686_018_427_387_904
"""Microseconds: half of what a column holds, so that a sum of two fits."""


class Waiting(NamedTuple):
    """An event that waits in the outbox, in this row of it."""

    row: int
    draft: Draft


class LeaseEnded(Exception):
    """Another forwarder works by now."""


class Forwarder:
    """See the module's docstring.

    Args:
        outbox: where it reads; it is started with the first run, and never stopped here.
        deliver: see `Deliver`.
        name: of the outbox, for logs and metrics.
        poll_interval: seconds between two looks for what no bell tells of.
        lease: seconds, see `LEASE`.
        meters: what it counts goes there.
    """

    name = "forwarder"

    def __init__(
        self,
        outbox: OutboxStore,
        deliver: Deliver,
        *,
        name: str,
        poll_interval: float,
        lease: float = LEASE,
        meters: Meters | None = None,
    ) -> None:
        self.bell = Bell()
        self.of = name
        self.outbox = outbox
        self.meters = meters or Meters()
        self._deliver = deliver
        self._poll_interval = poll_interval
        self._delay = poll_interval
        self._lease = lease
        self._token = uuid4()
        self._is_started = False
        self.holds = False
        """Whether it is the one who forwards, as far as it knows."""
        self._is_waiting = False
        self._next_look = 0.0
        self._next_hold = 0.0  # in the loop's time: when to renew the lease, or to try to get it

    def expect(self) -> None:
        """A transaction of this process commits about now: look at once, and soon again if it was too early."""
        self._delay = SHORTEST_POLL
        self.bell.ring()

    async def run_once(self) -> float | None:
        """Forward one batch.

        Raises:
            NotForwarded: the bus is away, or does not take events now; all stay in the outbox.
            StoreUnavailable: the outbox's database is away.
            SchemaOutdated: it has no outbox, or one of another version.
        """
        if not self._is_started:
            await self.outbox.start()
            self._is_started = True
        if not await self._hold():
            return self._next_hold - _now()
        await self._look()
        rows, is_all = await self.outbox.read(BATCH)
        if rows:
            try:
                await self._forward(rows)
            except LeaseEnded:
                self._note_lost()
                return 0
            self._delay = SHORTEST_POLL
            if not is_all:
                return 0
        delay, self._delay = self._delay, min(self._delay * 2, self._poll_interval)
        return delay

    async def close(self) -> None:
        """Let another one take over at once; what runs it has ended."""
        self.meters.backlogs.pop(self.of, None)
        if self.holds:
            self.holds = False
            try:
                await self.outbox.release(self._token)
            except StoreUnavailable as exc:
                logger.info("another forwarder of %s takes over after %g s: %s", self.of, self._lease, exc)

    # --- who forwards ---

    async def _hold(self) -> bool:
        """Return whether this one forwards now; get or renew the lease where it is time to."""
        if _now() < self._next_hold:
            return self.holds
        asked = _now()
        held = self.holds
        self.holds = await self.outbox.hold(self._token, self._lease)
        self._next_hold = asked + (self._lease / 3 if self.holds else min(WAIT, self._lease / 3))
        if self.holds and not held:
            logger.info("forwarding the outbox %s", self.of)
            self._is_waiting = False
        elif held and not self.holds:
            self._note_lost()
        elif not self.holds and not self._is_waiting:
            logger.info("another forwarder works on the outbox %s; waiting to take over", self.of)
            self._is_waiting = True
        return self.holds

    def _note_lost(self) -> None:
        logger.warning("another forwarder has taken over the outbox %s", self.of)
        self.holds, self._is_waiting = False, True
        self.meters.backlogs.pop(self.of, None)  # the other one tells

    async def _while_held(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that may take long, and keep the lease meanwhile.

        Raises:
            LeaseEnded: it could not be kept; the work was given up.
        """
        task = asyncio.create_task(work, name="eventbus-forwarding")
        try:
            while not task.done():
                await asyncio.wait([task], timeout=max(0.0, self._next_hold - _now()))
                if not task.done() and not await self._hold():
                    raise LeaseEnded
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    # --- how it is ---

    async def _look(self) -> None:
        """See how the outbox is, for whoever watches, unless that was a moment ago."""
        if _now() >= self._next_look:
            self.meters.backlogs.pop(self.of, None)  # while the database is away, nobody knows
            self.meters.backlogs[self.of] = Backlog(*await self.outbox.figures())
            self._next_look = _now() + LOOK_EVERY

    # --- forwarding ---

    async def _forward(self, rows: Sequence[Any]) -> None:
        waiting: list[Waiting] = []
        refusals: list[Refusal] = []
        for row in rows:
            try:
                waiting.append(Waiting(row[0], _draft_of(row)))
            except EventBusError as exc:  # other programs may have written it
                refusals.append(Refusal(row[0], exc.code, str(exc)))
        refusals += await self._while_held(self._hand_over(waiting))
        refused = {refusal.row for refusal in refusals}
        answered = [row for row, _ in waiting if row not in refused]
        if not await self.outbox.remove(self._token, self._lease, answered, refusals):
            raise LeaseEnded
        self._next_hold = _now() + self._lease / 3
        self.meters.forwarded[self.of] += len(answered)
        self.meters.refused[self.of] += len(refusals)
        if refusals:
            first = refusals[0]
            logger.warning(
                "the bus refused %d events of the outbox %s, which are kept apart; the first: %s (%s)",
                len(refusals),
                self.of,
                first.reason,
                first.code,
            )

    async def _hand_over(self, waiting: Sequence[Waiting]) -> list[Refusal]:
        """Deliver events in their order, by halves where one of them is refused; return those that were."""
        if not waiting:
            return []
        while True:
            try:
                await self._deliver([draft for _, draft in waiting])
            except EventBusError as exc:
                if exc.status == 429 and exc.retry:
                    await asyncio.sleep(min(exc.retry_after or WAIT, LONGEST_ADVICE))
                    continue
                if not _is_final(exc):
                    raise NotForwarded(len(waiting), str(exc)) from exc
                if len(waiting) == 1:
                    return [Refusal(waiting[0].row, exc.code, str(exc))]
            else:
                return []
            middle = len(waiting) // 2
            return [*await self._hand_over(waiting[:middle]), *await self._hand_over(waiting[middle:])]


def _is_final(exc: EventBusError) -> bool:
    """Whether the bus has refused the event itself, so that it will do so again."""
    return 400 <= exc.status < 500 and exc.status not in (401, 408, 429) and not exc.retry


def _draft_of(row: Sequence[Any]) -> Draft:
    """Return the event of a row of the outbox. A delay counts from when it was published there.

    Raises:
        InvalidInput: it is none that a bus would take.
    """
    _, message_id, topic, key, payload, content_type, metadata, ttl, publish_at, rule, now = row
    if isinstance(metadata, bytes):
        raise InvalidEvent("metadata must be text, got bytes")
    checked = make_draft(
        topic,
        bytes(payload),
        key=key,
        message_id=message_id,
        metadata=None if metadata is None else codec.load_object(metadata),
        content_type=content_type,
        max_payload=LARGEST_PAYLOAD,
        max_depth=DEEPEST,
    )
    for name, micros, least in (("ttl", ttl, 1), ("publish_at", publish_at, -LATEST)):  # SQLite stores what it is given
        if micros is not None and not (isinstance(micros, int) and least <= micros <= LATEST):
            raise InvalidEvent(f"{name} must be from {least:,} to {LATEST:,} microseconds, got {quote(micros)}")
    delay = None if publish_at is None or publish_at <= now else publish_at - now
    draft = checked._replace(metadata=metadata, ttl=ttl, delay=delay)
    return draft if rule is None else make_unique(draft, _rule_of(rule))


def _rule_of(text: str) -> Unique:
    try:
        return Unique(**json.loads(text))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"unique_rule cannot be read: {exc}") from exc


def _now() -> float:
    return asyncio.get_running_loop().time()
