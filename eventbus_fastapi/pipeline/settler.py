"""The settler: writes what has become of deliveries, many to one commit, and renews the leases of those still held.

A range that is settled as a whole costs one row's removal. One that is settled in parts is written once per tick, or at
once where somebody waits to know it. While the database is away, outcomes wait here; leases may end meanwhile, and what
was theirs is then told to be lost: the store refuses what comes late. A node that could not renew for the time of a
lease withdraws what it holds, as others may have it by now: handlers are cancelled, and what nobody has taken over is
given back once the database answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple, assert_never
from uuid import UUID

from eventbus_fastapi.errors import EventBusError, LeaseLost, StoreUnavailable
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.pipeline.delivery import Delivery, Release, Settled
from eventbus_fastapi.pipeline.ending import ending_of, with_error
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Retry, Snooze
from eventbus_fastapi.store.group import Again, Death, Ending, HeldRetry, Settlement
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.telemetry.meters import Meters

logger = logging.getLogger(__name__)

TICK = 0.05
"""Seconds that the outcomes of a range wait for the others of it."""
MOST = 2_000
"""Outcomes that one transaction writes."""


OUTCOMES: dict[type[Settled], str] = {
    Ack: "acked",
    Retry: "retried",
    Snooze: "snoozed",
    Discard: "discarded",
    Dead: "dead",
    Release: "released",
}
"""What each outcome is called where they are counted and traced."""
LOST = "lost"
"""The same where it came after the lease had ended: the event is another's."""


class Entry(NamedTuple):
    """An outcome that is not written yet."""

    delivery: Delivery
    settled: Settled
    answer: asyncio.Future[None] | None


class Settler:
    """See the module's docstring."""

    name = "settler"

    def __init__(self, groups: Groups, *, lease: float, owner: str, meters: Meters | None = None) -> None:
        self.bell = Bell()
        self._meters = meters or Meters()
        self._groups = groups
        self._owner = owner
        self._lease = lease
        self._held: dict[UUID, dict[int, Delivery]] = {}
        self._entries: dict[UUID, dict[int, Entry]] = {}
        self._urgent: set[UUID] = set()
        self._tick_at: float | None = None
        self._renew_at = 0.0
        self._ends_at = 0.0  # when the first lease of what is held may end

    @property
    def held(self) -> int:
        """Deliveries that are not settled, or whose outcome is not written yet."""
        return sum(map(len, self._held.values()))

    @property
    def may_be_late(self) -> bool:
        """Whether leases of what is held may have ended, as after a process was frozen; soon it is known."""
        return bool(self._held) and asyncio.get_running_loop().time() >= self._ends_at

    def hold(self, deliveries: Iterable[Delivery], *, since: float | None = None) -> None:
        """Renew the leases of deliveries from now on. They have begun at `since` or later, in the loop's time; None:
        now. To be on the safe side, that is before they were asked for: others take over as soon as they end.
        """
        if not self._held:
            self._note_renewed(asyncio.get_running_loop().time() if since is None else since)
        for delivery in deliveries:
            self._held.setdefault(delivery.token, {})[delivery.message.seq] = delivery
        self.bell.ring()

    def settle(self, delivery: Delivery, settled: Settled, *, is_urgent: bool = False) -> None:
        """Take an outcome, to be written soon, or at once. One for what is settled or lost changes nothing."""
        if not delivery.is_settled and not delivery.is_lost:
            if is_urgent:
                self._urgent.add(delivery.token)
            self._enter(Entry(delivery, settled, None))

    def settle_and_tell(self, delivery: Delivery, settled: Settled) -> asyncio.Future[None]:
        """Take an outcome, to be written at once; return a future that is set after the commit.

        It carries LeaseLost if the delivery was settled before, or is another's.
        """
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if delivery.is_settled or delivery.is_lost:
            answer.set_exception(LeaseLost([delivery.message.seq]))
        else:
            self._urgent.add(delivery.token)
            self._enter(Entry(delivery, settled, answer))
        return answer

    def settlement(self, delivery: Delivery, settled: Settled) -> Settlement:
        """Return what writes an outcome in a transaction of somebody else's, who then calls `forget`.

        The delivery must be the only one of its lease.
        """
        return _settlement([Entry(delivery, settled, None)], () if not delivery.is_retry else None, self._owner)

    def forget(self, delivery: Delivery, settled: Settled) -> None:
        """Somebody else has settled it, and committed that."""
        delivery.is_settled = True
        self._count(delivery, settled)
        self._drop(delivery)
        if delivery.on_written is not None:
            delivery.on_written()

    def lose(self, delivery: Delivery) -> None:
        """The lease is another's."""
        if delivery.is_lost:
            return
        delivery.is_lost = True
        if delivery.span is not None:
            delivery.span.end(LOST)
        self._drop(delivery)
        self._tell_lost(delivery)

    async def run_once(self) -> float | None:
        """Write what is ready; renew when it is time."""
        clock = asyncio.get_running_loop().time
        if self._held and clock() >= self._renew_at:
            await self._renew_or_withdraw()
        if self._entries:
            await self._write(self._choose(is_tick=self._tick_at is not None and clock() >= self._tick_at))
        return self._pause(clock())

    async def flush(self) -> None:
        """Write everything that was settled, before the end."""
        while self._entries:
            await self._write(self._choose(is_tick=True))

    # --- parts ---

    def _note_renewed(self, at: float) -> None:
        self._renew_at = at + self._lease / 3
        self._ends_at = at + self._lease

    async def _renew_or_withdraw(self) -> None:
        """Renew, also what has ended and nobody has taken over: a process may have been frozen, not cut off."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await self._renew()
        except StoreUnavailable:
            if clock() >= self._ends_at:
                self._withdraw()
            raise
        self._note_renewed(began)

    def _withdraw(self) -> None:
        """Have nobody go on with what is not settled: it may be another's by now."""
        deliveries = [each for held in self._held.values() for each in held.values() if not each.is_settled]
        for delivery in deliveries:
            self._enter(Entry(delivery, delivery.given_back, None))
            delivery.is_lost = True
            self._tell_lost(delivery)
        if deliveries:
            logger.warning("withdrew %d events: their leases could not be renewed in time", len(deliveries))

    def _enter(self, entry: Entry) -> None:
        delivery = entry.delivery
        delivery.is_settled = True
        if delivery.span is not None:
            delivery.span.end(OUTCOMES[type(entry.settled)])
        entries = self._entries.setdefault(delivery.token, {})
        entries[delivery.message.seq] = entry
        if self._tick_at is None:
            self._tick_at = asyncio.get_running_loop().time() + TICK
            self.bell.ring()
        elif len(entries) == len(self._held.get(delivery.token, ())) or (
            self._urgent and delivery.token in self._urgent
        ):
            self.bell.ring()

    def _tell_lost(self, delivery: Delivery) -> None:
        if delivery.on_gone is not None:
            delivery.on_gone(delivery)
        if delivery.on_lost is not None:
            delivery.on_lost()

    def _choose(self, *, is_tick: bool) -> list[Entry]:
        """Take the outcomes to write now: of tokens that are settled as a whole or awaited, at a tick of all."""
        chosen: list[Entry] = []
        for token in list(self._entries):
            entries = self._entries[token]
            if is_tick or token in self._urgent or len(entries) == len(self._held.get(token, ())):
                chosen += entries.values()
                del self._entries[token]
                self._urgent.discard(token)
            if len(chosen) >= MOST:
                break
        if not self._entries:
            self._tick_at = None
        elif is_tick:
            self._tick_at = asyncio.get_running_loop().time() + (0 if len(chosen) >= MOST else TICK)
        return chosen

    async def _write(self, entries: list[Entry]) -> None:
        if not entries:
            return
        by_token: dict[UUID, list[Entry]] = {}
        for entry in entries:
            by_token.setdefault(entry.delivery.token, []).append(entry)
        began = time.perf_counter()
        try:
            stale = await self._groups.settle([self._settlement(each) for each in by_token.values()])
        except StoreUnavailable:
            self._put_back(entries)
            raise
        except EventBusError as exc:
            if len(by_token) > 1:
                await self._write_one_by_one(list(by_token.values()))
            else:
                logger.exception("the store refused an outcome; its lease ends, and what it held is tried again")
                self._give_up(next(iter(by_token)), entries, exc)
            return
        self._meters.settle.observe(time.perf_counter() - began)
        for entry in entries:
            delivery = entry.delivery
            self._drop(delivery)
            is_stale = bool(stale) and (delivery.token, delivery.message.seq) in stale
            if is_stale:
                delivery.is_lost = True
                logger.info("an outcome came after the lease of seq %d had ended", delivery.message.seq)
            elif delivery.on_written is not None:
                delivery.on_written()
            self._count(delivery, None if is_stale else entry.settled)
            self._answer([entry], LeaseLost([delivery.message.seq]) if is_stale else None)

    def _count(self, delivery: Delivery, settled: Settled | None) -> None:
        """Count an outcome that is written; None: it came too late."""
        outcome = LOST if settled is None else OUTCOMES[type(settled)]
        self._meters.outcomes[delivery.queue, outcome] += 1
        if delivery.duration is not None:
            self._meters.note_attempt(delivery.queue, delivery.duration / 1_000_000)

    async def _write_one_by_one(self, parts: list[list[Entry]]) -> None:
        """Write the outcomes of each token alone: one that is refused fails none of the others."""
        while parts:
            part = parts.pop(0)
            try:
                await self._write(part)
            except StoreUnavailable:
                for each in parts:
                    self._put_back(each)
                raise

    def _put_back(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._entries.setdefault(entry.delivery.token, {})[entry.delivery.message.seq] = entry
        self._tick_at = 0.0

    def _give_up(self, token: UUID, entries: list[Entry], error: EventBusError) -> None:
        """Hold nothing of a token any more. What is settled of a range cannot be told apart from the rest later."""
        for delivery in list(self._held.get(token, {}).values()):
            self.lose(delivery)
        self._entries.pop(token, None)
        self._answer(entries, error)

    def _settlement(self, entries: list[Entry]) -> Settlement:
        first = entries[0].delivery
        if first.is_retry:
            return _settlement(entries, None, self._owner)
        settled = {entry.delivery.message.seq for entry in entries}
        pending = [seq for seq in self._held.get(first.token, ()) if seq not in settled]
        return _settlement(entries, pending, self._owner)

    async def _renew(self) -> None:
        tokens: list[UUID] = []
        retries: list[HeldRetry] = []
        for token, deliveries in self._held.items():
            for seq, delivery in deliveries.items():
                if not delivery.is_retry:
                    tokens.append(token)
                    break
                retries.append(HeldRetry(delivery.group_id, seq, token))
        lost = await self._groups.renew(tokens, retries, lease=self._lease)
        for item in lost:
            token = item.token if isinstance(item, HeldRetry) else item
            deliveries = self._held.get(token, {})
            of_seq = [deliveries[item.seq]] if isinstance(item, HeldRetry) and item.seq in deliveries else []
            for delivery in of_seq if isinstance(item, HeldRetry) else list(deliveries.values()):
                if not delivery.is_settled:
                    self.lose(delivery)
        if lost:
            logger.warning("lost %d leases that had ended", len(lost))

    def _drop(self, delivery: Delivery) -> None:
        deliveries = self._held.get(delivery.token)
        if deliveries is not None:
            deliveries.pop(delivery.message.seq, None)
            if not deliveries:
                del self._held[delivery.token]

    def _answer(self, entries: Iterable[Entry], error: EventBusError | None) -> None:
        for entry in entries:
            if entry.answer is None or entry.answer.done():
                continue
            if error is None:
                entry.answer.set_result(None)
            else:
                entry.answer.set_exception(error)

    def _pause(self, now: float) -> float | None:
        times = [] if self._tick_at is None else [self._tick_at]
        if self._held:
            times.append(self._renew_at)
        return max(0.0, min(times) - now) if times else None


def _settlement(entries: list[Entry], pending: Iterable[int] | None, owner: str) -> Settlement:
    done: list[int] = []
    again: list[Again] = []
    dead: list[Death] = []
    endings: list[Ending] = []
    for delivery, settled, _ in entries:
        seq, attempt = delivery.message.seq, delivery.attempt
        match settled:
            case Ack() | Discard():
                done.append(seq)
            case Retry():
                again.append(Again(seq, attempt, _micros(settled.after), with_error(delivery, settled.error)))
            case Snooze():
                again.append(Again(seq, attempt - 1, _micros(settled.after), delivery.errors))
            case Release():
                again.append(Again(seq, attempt - 1, 0, delivery.errors))
            case Dead():
                dead.append(Death(seq, attempt, with_error(delivery, settled.error)))
            case _:
                assert_never(settled)
        ending = ending_of(delivery, settled, owner)
        if ending is not None:
            endings.append(ending)
    first = entries[0].delivery
    held = None if pending is None else tuple(pending)
    return Settlement(first.group_id, first.token, done, again, dead, pending=held, endings=endings)


def _micros(seconds: float | None) -> int:
    return round((seconds or 0) * 1_000_000)
