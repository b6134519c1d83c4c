"""An ingest: takes messages from a queue or stream of a broker, and makes each an event, exactly once.

    take ──▶ drafts ──▶ one commit ──▶ ack          while one batch is stored, the next is taken
                │
                └─ refused ──▶ dead letter ──▶ ack

The broker has its ack after our commit, never before. So whatever ends, a process, a connection, the database, the
broker, what was not acknowledged comes again; and as the same message always has the same message_id, what was stored
before is not stored twice. While the database is away nothing is acknowledged, and no more taken than the prefetch;
while the broker is away, it is tried again and again. Neither needs a restart.

A single ingest keeps the order of its source, but for what the broker delivers again. Several of one source share its
messages.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Any, TypedDict, get_args

from eventbus_fastapi import codec
from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import (
    BrokerError,
    BrokerUnavailable,
    EventBusError,
    InvalidGroup,
    InvalidInput,
    NotRunning,
    SettingsError,
    StoreUnavailable,
    quote,
)
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.relay.brokers import kind_of
from eventbus_fastapi.relay.foreign import Foreign, Identity, Rules, check_template, drafts_of
from eventbus_fastapi.relay.refusals import Refusal, Refusals
from eventbus_fastapi.relay.source import Reading, open_source
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.topics import check_topic

logger = logging.getLogger(__name__)

STOP_GRACE = 10.0
"""Seconds that a stop waits for the batch that is being stored."""
RETRY_EVERY = 1.0
"""Seconds between two looks for dead letters that are to be tried again."""
_UNFIT = re.compile(r"[^A-Za-z0-9_.:@-]+")


class IngestOptions(TypedDict, total=False):
    """How messages become events, and how they are taken."""

    name: str | None
    """Of the ingest: its group of dead letters, its durable consumer at the broker, its metrics. Defaults to `ingest.`
    and the source."""
    topic: str | None
    """Of all events; None: see `topic_template`."""
    topic_template: str | None
    """`shop.{subject}`, of `{subject}`, `{source}` and `{header:NAME}`; None: the subject, routing key or stream."""
    content_type: str | None
    """Of messages that say none; None: application/octet-stream."""
    identity: Identity
    """What a message is known by that has no id of its own, as in RabbitMQ: `given` (none: it becomes a dead letter),
    `content` (equal messages are one event) or `delivery` (one that is redelivered may be two). Defaults to given."""
    subjects: str | None
    """Of a JetStream stream: only what matches this; None: all of it."""
    field: str | None
    """Of an entry of a Redis stream: the field that is the payload; None: `payload`, `data` or `body`, else all."""
    batch: int
    """Messages in one commit, at most 1,000. Defaults to 500."""
    prefetch: int | None
    """Messages that the broker gives out before it has acks; None: twice the batch."""
    claim_after: float
    """Seconds after which JetStream and Redis give a message to others that nobody has acknowledged. Defaults to 60."""


class Ingest:
    """See the module's docstring. Made by `EventBus.ingest`, it starts and stops with the bus."""

    def __init__(
        self,
        node: Node,
        broker: Any,
        source: str,
        *,
        name: str | None = None,
        topic: str | None = None,
        topic_template: str | None = None,
        content_type: str | None = None,
        identity: Identity = "given",
        subjects: str | None = None,
        field: str | None = None,
        batch: int = 500,
        prefetch: int | None = None,
        claim_after: float = 60.0,
    ) -> None:
        if not source:
            raise SettingsError(f"an ingest needs the name of a queue, stream or topic, got {quote(source)}")
        if type(batch) is not int or not 1 <= batch <= 1_000:
            raise SettingsError(f"batch must be an int from 1 to 1,000, got {quote(batch)}")
        prefetch = 2 * batch if prefetch is None else prefetch
        if type(prefetch) is not int or not batch <= prefetch <= 65_535:
            raise SettingsError(f"prefetch must be an int from batch ({batch}) to 65,535, got {quote(prefetch)}")
        if not claim_after >= 1:
            raise SettingsError(f"claim_after must be 1 second or more, got {quote(claim_after)}")
        self.name = _checked_name(name, source)
        self.rules = _checked(Rules(kind_of(broker), source, topic, topic_template, content_type, identity))
        self._node = node
        reading = Reading(source, self.name, batch, prefetch, subjects, field, claim_after)
        self._source = open_source(broker, reading)
        self._refusals = Refusals(node, self.name, self.rules)
        self._tasks: list[asyncio.Task[None]] = []
        self._taking: asyncio.Task[list[Foreign]] | None = None
        self._ending = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Ingest {self.name} from {self.rules.kind}:{self.rules.source}>"

    # --- life ---

    @property
    def is_connected(self) -> bool:
        """Whether it has its broker now."""
        return self._node.meters.ingesting.get(self.name, False)

    async def start(self) -> None:
        """Begin to take messages. A broker that is away is waited for; what it does not have is said now.

        Raises:
            SourceNotFound: the broker has no such queue, stream or topic.
            GroupConflict: a group of the ingest's name reads the log.
            NotRunning: the bus is not started.
        """
        if self._tasks:
            return
        self._ending.clear()
        await self._refusals.open()
        is_open = False
        try:
            await self._source.open()
            is_open = True
        except BrokerUnavailable as exc:
            logger.warning("%s waits for its broker: %s", self.name, exc)
        except BaseException:
            await self._source.close()
            raise
        self._note_connected(is_open)
        self._tasks = [
            asyncio.create_task(self._run(is_open), name=f"eventbus-{self.name}"),
            asyncio.create_task(self._try_again(), name=f"eventbus-{self.name}-retries"),
        ]

    async def stop(self, grace: float = STOP_GRACE) -> None:
        """Store and acknowledge the batch that is at hand, give the others back. Stopping twice is once."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        running, retrying = tasks
        self._ending.set()
        retrying.cancel()
        if self._taking is not None:
            self._taking.cancel()
        await asyncio.wait([running], timeout=grace)
        running.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.close()
        self._note_connected(False)

    # --- taking ---

    async def _run(self, is_open: bool) -> None:
        pauses = FullJitter(base=0.2, cap=5.0)
        failures = 0 if is_open else 1  # of which was told
        while not self._ending.is_set():
            try:
                if not is_open:
                    await self._source.open()
                    self._note_connected(True)
                    logger.info("%s takes messages again", self.name)
                is_open = False
                failures = 0
                await self._pump()
                return
            except NotRunning:
                return
            except EventBusError as exc:
                if failures == 0 or not isinstance(exc, BrokerError):
                    logger.warning("%s paused: %s", self.name, exc)
            except Exception:
                logger.exception("%s failed", self.name)
            failures += 1
            self._node.meters.failures[self.name] += 1
            self._note_connected(False)
            await self._source.close()
            await asyncio.sleep(pauses.delay(failures))

    async def _pump(self) -> None:
        """Take, store and acknowledge until the end, or until something fails."""
        self._taking = asyncio.create_task(self._source.take())
        try:
            while not self._ending.is_set():
                try:
                    batch = await self._taking
                except asyncio.CancelledError:
                    if self._ending.is_set() and not _is_cancelled():
                        return
                    raise
                if not self._ending.is_set():
                    self._taking = asyncio.create_task(self._source.take())
                if batch:
                    await self._store(batch)
                    await self._source.ack(batch)
        finally:
            taking, self._taking = self._taking, None
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    # --- storing ---

    async def _store(self, batch: Sequence[Foreign]) -> None:
        """Have a batch in the log or among the dead letters, however long the database is away."""
        drafts, refusals = self._draft(batch)
        pauses = FullJitter(base=0.1, cap=5.0)
        failures = 0
        while True:
            try:
                receipts = await self._publish(drafts, refusals)
                await self._refusals.bury(refusals)
                break
            except StoreUnavailable as exc:
                if not self._node.is_running:
                    raise NotRunning("the bus stopped before the messages were stored") from exc
                if failures == 0:
                    logger.warning("%s waits for the database: %s", self.name, exc)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
        if failures:
            logger.info("%s goes on after %d failures of the database", self.name, failures)
        self._note_stored(receipts, refusals)

    def _draft(self, batch: Sequence[Foreign]) -> tuple[list[tuple[Foreign, list[Draft]]], list[Refusal]]:
        drafts: list[tuple[Foreign, list[Draft]]] = []
        refusals: list[Refusal] = []
        for foreign in batch:
            try:
                drafts.append((foreign, drafts_of(foreign, self.rules, self._node.settings)))
            except InvalidInput as exc:
                refusals.append(Refusal(foreign, exc))
        return drafts, refusals

    async def _publish(self, drafts: list[tuple[Foreign, list[Draft]]], refusals: list[Refusal]) -> list[Receipt]:
        """Publish what the messages are in one commit; where the database refuses that, message by message."""
        together = [draft for _, each in drafts for draft in each]
        try:
            return await self._node.publish(together)
        except (StoreUnavailable, NotRunning):
            raise
        except EventBusError:
            logger.warning(
                "%s stores %d messages one by one: the database refused them together", self.name, len(drafts)
            )
        receipts: list[Receipt] = []
        for item in tuple(drafts):
            try:
                receipts += await self._node.publish(item[1])
            except (StoreUnavailable, NotRunning):
                raise
            except EventBusError as exc:
                drafts.remove(item)
                refusals.append(Refusal(item[0], exc))
        return receipts

    # --- dead letters ---

    async def _try_again(self) -> None:
        while True:
            await asyncio.sleep(RETRY_EVERY)
            try:
                count = await self._refusals.try_again(self._publish_again)
            except EventBusError as exc:
                logger.debug("%s could not look for dead letters to try again: %s", self.name, type(exc).__name__)
            except Exception:
                logger.exception("%s failed to try dead letters again", self.name)
            else:
                if count:
                    logger.info("%s tried %d dead letters again", self.name, count)

    async def _publish_again(self, drafts: Sequence[Draft]) -> None:
        self._note_stored(await self._node.publish(drafts), ())

    # --- what there is to tell ---

    def _note_stored(self, receipts: Sequence[Receipt], refusals: Sequence[Refusal]) -> None:
        ingested = self._node.meters.ingested
        duplicates = sum(receipt.duplicate for receipt in receipts)
        ingested[self.name, "stored"] += len(receipts) - duplicates
        ingested[self.name, "duplicate"] += duplicates
        ingested[self.name, "refused"] += len(refusals)
        if refusals:
            kinds = sorted({type(refusal.reason).__name__ for refusal in refusals})
            logger.warning("%s refused %d messages: %s", self.name, len(refusals), ", ".join(kinds))

    def _note_connected(self, is_connected: bool) -> None:
        self._node.meters.ingesting[self.name] = is_connected


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _checked_name(name: str | None, source: str) -> str:
    if name is None:
        return f"ingest.{_UNFIT.sub('-', source)}"[:255]
    try:
        return check_group_name(name, "group of an ingest")
    except InvalidGroup as exc:
        raise SettingsError(str(exc)) from exc


def _checked(rules: Rules) -> Rules:
    """Refuse rules that no message could follow."""
    if rules.topic is not None and rules.topic_template is not None:
        raise SettingsError("give topic or topic_template, not both")
    if rules.identity not in get_args(Identity):
        raise SettingsError(f"identity must be one of {', '.join(get_args(Identity))}, got {quote(rules.identity)}")
    try:
        if rules.topic is not None:
            check_topic(rules.topic)
        if rules.topic_template is not None:
            check_template(rules.topic_template)
        if rules.content_type is not None:
            codec.check_content_type(rules.content_type)
    except InvalidInput as exc:
        raise SettingsError(str(exc)) from exc
    return rules
