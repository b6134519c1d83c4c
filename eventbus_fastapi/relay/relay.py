"""A relay: a group whose events go to a broker, in the order of the log.

    consumer ─▶ batch ─▶ parcels ─▶ destination ─▶ outcomes ─▶ consumer
                  ▲                                   │
                  └── resend in place ◀── away, full, confirm lost

Its group is ordered by the log, so one relay of a name works, and the others wait to take over. While a batch is on
its way the next one is claimed; it is sent when all of the first is settled.

A broker that is away or full stops it: it keeps what it holds, and sends it again in place, with pauses. What the
broker can never have becomes a dead letter. Where a confirm was lost, the next copy says so: its attempt is counted
up, and the error is on the event's record, which the group's archive keeps (`failed`). That holds for a process that
dies, too: its lease ends, and who takes over finds its events with that on record.

Before each batch it looks whether its lease stands. If anything of it was lost, all is given back, and it begins anew
from what the store hands out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import (
    BrokerUnavailable,
    EventBusError,
    GroupNotFound,
    InvalidRelay,
    NotRunning,
    StoreUnavailable,
    quote,
)
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import RELEASE, Delivery
from eventbus_fastapi.pipeline.error_record import ErrorRecord
from eventbus_fastapi.pipeline.node import Node, Start
from eventbus_fastapi.pipeline.outcome import ACK, Dead, Retry
from eventbus_fastapi.relay.destination import Destination, Outcome, unknown
from eventbus_fastapi.relay.parcel import Form, Packer
from eventbus_fastapi.relay.subject import SubjectTemplate
from eventbus_fastapi.settings import LARGEST_CLAIM
from eventbus_fastapi.store.group import MOST_ERRORS

logger = logging.getLogger(__name__)

QUEUE = "relay"
"""What its outcomes are counted under."""
BATCH_BYTES = 1_048_576
"""Bytes of payloads after which a batch ends; the last event may exceed them."""
MAX_ATTEMPTS = 2**31 - 1
"""A lost confirm never makes a dead letter."""
LOOK_EVERY = 0.5
"""Seconds between two looks of a relay that waits whether it has the turn."""
LATE = 0.05
"""Seconds between two looks whether the lease stands, after it could not be renewed in time."""
LOST = frozenset({"LeaseLost", "ConfirmLost"})
"""Types of errors after which an event may have arrived; any other is that of a dead letter that is tried again."""


class Relay:
    """See the module's docstring. Made by `EventBus.relay`; it may be started again after a `join`."""

    def __init__(
        self,
        node: Node,
        destination: Destination,
        patterns: Sequence[str],
        *,
        name: str,
        template: str = "{topic}",
        start: Start = "now",
        cloudevents: Form | None = None,
    ) -> None:
        self.name = name
        """That of its group, too."""
        self.patterns = tuple(patterns)
        self._node = node
        self._destination = destination
        self._template = SubjectTemplate(template, write_key=destination.write_key)
        destination.prepare(name, "", self._template.text, self.patterns)
        self._start = start
        if cloudevents not in (None, *get_args(Form)):
            raise InvalidRelay(f"cloudevents must be {' or '.join(get_args(Form))}, got {quote(cloudevents)}")
        self._cloudevents = cloudevents
        self._packer: Packer
        self._consumer: Consumer
        self._ended = asyncio.Event()
        self._starting = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._ahead: asyncio.Task[list[Delivery]] | None = None
        self._batch: list[Delivery] = []
        self._pauses = FullJitter(base=0.1, cap=2.0)

    # --- life ---

    @property
    def is_alive(self) -> bool:
        """True while it works, or waits for the broker, the database or its turn."""
        return self._running is not None and not self._running.done()

    @property
    def is_broker_up(self) -> bool:
        return self._node.meters.brokers.get(self.name, False)

    async def start(self) -> None:
        """Declare the group and begin. Starting twice is once; what has ended as its group was deleted begins anew.
        A broker that is away is waited for.

        Raises:
            InvalidRelay: the broker cannot be used as it was said.
            GroupConflict: a group of this name is not a relay's.
            NotRunning, StoreUnavailable: the bus is not started, or the database is away.
        """
        async with self._starting:
            if self._running is not None and self._running.done():
                await self.join(0)
            if self._running is None:
                await self._begin()

    async def _begin(self) -> None:
        self._ended.clear()
        epoch = str((await self._node.head()).epoch)
        self._destination.prepare(self.name, epoch, self._template.text, self.patterns)
        self._packer = Packer(
            self._template,
            relay=self.name,
            epoch=epoch,
            cloudevents=self._cloudevents,
            prefix=self._destination.prefix,
            source=self._node.settings.cloudevents_source,
        )
        self._note_broker(is_up=False)
        try:
            await self._connect_first()
            self._consumer = await self._node.consume(
                self.name,
                self.patterns,
                start=self._start,
                ordered_by="log",
                max_attempts=MAX_ATTEMPTS,
                archive="failed",
                is_declared=True,
                poll_interval=LOOK_EVERY,
                queue=QUEUE,
            )
        except BaseException:
            self._node.meters.brokers.pop(self.name, None)
            await self._destination.close()
            raise
        self._running = asyncio.create_task(self._run(), name=f"eventbus-relay-{self.name}")

    async def _connect_first(self) -> None:
        try:
            await self._destination.connect()
            self._note_broker(is_up=True)
        except BrokerUnavailable as exc:
            logger.warning("relay %s waits: %s", self.name, exc)

    def shutdown(self) -> None:
        """Send nothing more after what is on its way; see `join`."""
        self._ended.set()

    async def join(self, timeout: float) -> bool:
        """Wait for the end after a `shutdown`; what has no outcome after `timeout` seconds is given back. Return
        whether all had.
        """
        running, self._running = self._running, None
        if running is None:
            return True
        self._ended.set()
        await asyncio.wait([running], timeout=timeout)
        is_done = running.done() and not self._batch
        running.cancel()
        await asyncio.wait([running])
        with suppress(EventBusError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._give_back()
        await self._node.consumers.close(self._consumer)
        await self._destination.close()
        self._node.meters.brokers.pop(self.name, None)
        return is_done

    # --- the loop ---

    async def _run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            try:
                await self._step()
                failures = 0
            except GroupNotFound:
                logger.error("relay %s ended: its group was deleted", self.name)
                return
            except NotRunning:
                return
            except StoreUnavailable as exc:
                if failures == 0:
                    logger.warning("relay %s paused: %s", self.name, exc)
                failures += 1
                await self._pause(failures)
            except Exception:
                logger.exception("relay %s failed", self.name)
                failures += 1
                await self._pause(failures)

    async def _step(self) -> None:
        """Relay the next batch, with the broker there."""
        await self._reach_broker()
        if not self._batch:
            self._batch = await self._next_batch()
        await self._deliver()
        if self._batch:  # the end has come, or the lease was lost
            await self._give_back()

    async def _reach_broker(self) -> None:
        failures = 0
        while not self._ended.is_set():
            try:
                await self._destination.connect()
            except (BrokerUnavailable, InvalidRelay) as exc:
                if self.is_broker_up or failures == 0:
                    logger.warning("relay %s waits: %s", self.name, exc)
                self._note_broker(is_up=False)
                failures += 1
                await self._pause(failures)
            else:
                return

    async def _next_batch(self) -> list[Delivery]:
        """Take what comes next, or nothing at the end."""
        ahead = self._look_ahead()
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([ahead, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
        if not ahead.done():
            return []
        self._ahead = None
        return ahead.result()

    def _look_ahead(self) -> asyncio.Task[list[Delivery]]:
        if self._ahead is None:
            self._ahead = asyncio.create_task(
                self._consumer.take(LARGEST_CLAIM), name=f"eventbus-relay-{self.name}-take"
            )
        return self._ahead

    async def _deliver(self) -> None:
        """Send the batch until each of it has an outcome; leave what has none at the end, or if the lease was lost."""
        failures = 0
        while self._batch and await self._may_send():
            self._look_ahead()
            chunk = self._batch[: _fitting(self._batch)]
            outcomes = await self._send(chunk)
            left = [each for each, outcome in zip(chunk, outcomes, strict=True) if self._is_left(each, outcome)]
            self._batch = left + self._batch[len(chunk) :]
            if len(left) < len(chunk):
                failures = 0
            if not left:
                self._note_broker(is_up=True)
                continue
            reason = next(outcome.reason for outcome in outcomes if outcome.verdict in ("unsent", "unknown"))
            if failures == 0:
                logger.warning("relay %s sends %d events again: %s", self.name, len(left), reason)
            failures += 1
            self._note_broker(is_up=len(left) < len(chunk))
            await self._pause(failures)
            await self._reach_broker()

    async def _may_send(self) -> bool:
        """Whether all that is held is this relay's, and the end has not come."""
        settler = self._node.consumers.settler
        while settler.may_be_late and not self._ended.is_set():
            settler.bell.ring()
            await asyncio.sleep(LATE)
        return not self._ended.is_set() and not any(delivery.is_lost for delivery in self._batch)

    async def _send(self, chunk: Sequence[Delivery]) -> list[Outcome]:
        """Send events as their attempts, and see to it that those count unless they were not sent."""
        doubts: dict[int, Retry] = {}
        parcels = []
        for delivery in chunk:
            attempt = delivery.attempt
            if attempt not in doubts:
                doubts[attempt] = Retry(0, error=self._error("ConfirmLost", "the broker may have it", attempt))
            delivery.given_back = doubts[attempt]
            is_revived = bool(delivery.errors) and any(error.get("type") not in LOST for error in delivery.errors)
            parcels.append(self._packer.pack(delivery.message, attempt, is_revived=is_revived))
        try:
            return await self._destination.send(parcels)
        except Exception as exc:
            logger.exception("relay %s failed to send", self.name)
            return [unknown(exc)] * len(chunk)

    def _is_left(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Settle a delivery by what has become of it; return whether it has to be sent again."""
        counts = self._node.meters.relayed
        match outcome.verdict:
            case "confirmed":
                counts[self.name, "confirmed"] += 1
                self._consumer.settle(delivery, ACK)
                return False
            case "refused":
                counts[self.name, "refused"] += 1
                error = self._error("Refused", outcome.reason, delivery.attempt)
                self._consumer.settle(delivery, Dead(error))
                logger.error("relay %s cannot send seq %d: %s", self.name, delivery.message.seq, outcome.reason)
                return False
            case "unsent":
                delivery.given_back = RELEASE
            case "unknown":
                counts[self.name, "resent"] += 1
                record = self._record("ConfirmLost", outcome.reason, delivery.attempt)
                delivery.errors = _with_record(delivery.errors, record)
                delivery.attempt += 1
                delivery.given_back = RELEASE
        return True

    async def _give_back(self) -> None:
        """Give back all that is held, what was claimed ahead, too, and wait until the store has it."""
        given, self._batch = self._batch, []
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled() and ahead.exception() is None:
                given = given + ahead.result()
        self._consumer.give_back()
        answers = [self._consumer.settle_and_tell(delivery, delivery.given_back) for delivery in given]
        await asyncio.gather(*answers, return_exceptions=True)

    # --- parts ---

    def _note_broker(self, *, is_up: bool) -> None:
        if is_up and not self.is_broker_up:
            logger.info("relay %s has its broker", self.name)
        self._node.meters.brokers[self.name] = is_up

    async def _pause(self, failures: int) -> None:
        """Wait before the next try, or until the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pauses.delay(failures)):
                await self._ended.wait()

    def _error(self, kind: str, reason: str, attempt: int) -> ErrorRecord:
        owner = self._node.consumers.owner
        return ErrorRecord(kind, reason, time=time.time_ns() // 1_000, node=owner, attempt=attempt)

    def _record(self, kind: str, reason: str, attempt: int) -> dict[str, Any]:
        error = self._error(kind, reason, attempt)
        return {"attempt": attempt, "type": kind, "message": error.message, "time": error.time, "node": error.node}


def _with_record(errors: Sequence[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the errors of an event with one more, however long its broker confirms nothing: the oldest lost confirm
    goes, never what says that it is a dead letter that is tried again. The store adds one where the lease is lost.
    """
    kept = list(errors)
    while len(kept) > MOST_ERRORS - 2:
        del kept[next((place for place, error in enumerate(kept) if error.get("type") in LOST), 0)]
    return [*kept, record]


def _fitting(batch: Sequence[Delivery]) -> int:
    """Return how many of the first make a batch."""
    size = 0
    for place, delivery in enumerate(batch, start=1):
        size += len(delivery.message.body)
        if size >= BATCH_BYTES:
            return place
    return len(batch)
