"""A node: the parts of one running process, put together.

    publish ──▶ publisher ──▶ log ◀── sequencer ◀── outbox (publish_txn)
                                │
                                ▼
                 notifier ─▶ dispatcher ──▶ channels ──▶ subscriptions
                                ▲
                             fanout, where there is a stream

It owns the tasks and the order of start and stop; it decides nothing about an event. Servers and the `EventBus` talk to
a node only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, get_args
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import EventBusError, InvalidEvent, NotRunning, quote
from eventbus_fastapi.events import Draft, Message, Receipt
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.acknowledger import Acknowledger
from eventbus_fastapi.pipeline.channel import Gap
from eventbus_fastapi.pipeline.consumer import POLL_INTERVAL, Consumer
from eventbus_fastapi.pipeline.consumers import Consumers
from eventbus_fastapi.pipeline.dispatcher import Dispatcher
from eventbus_fastapi.pipeline.fanout import Fanout, Stream
from eventbus_fastapi.pipeline.log_view import LogView
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.pipeline.notifier import Notifier
from eventbus_fastapi.pipeline.observer import Observer
from eventbus_fastapi.pipeline.publisher import Publisher
from eventbus_fastapi.pipeline.queue_steward import QueueSteward
from eventbus_fastapi.pipeline.recurrer import Recurrer
from eventbus_fastapi.pipeline.recurring import Recurring
from eventbus_fastapi.pipeline.retention import Retention
from eventbus_fastapi.pipeline.sequencer import Sequencer
from eventbus_fastapi.pipeline.start import Start as Start  # for whoever asks a node to read from somewhere
from eventbus_fastapi.pipeline.start import resolve_start
from eventbus_fastapi.pipeline.steward import DEFAULT_MAX_ATTEMPTS, Steward
from eventbus_fastapi.pipeline.subscription import Policy, Subscription
from eventbus_fastapi.pipeline.unique_publisher import UniquePublisher
from eventbus_fastapi.settings import ArchiveMode, Overflow, Settings
from eventbus_fastapi.store import Ack, Appended, Head, StoredEvent, open_store
from eventbus_fastapi.store.group import OrderedBy
from eventbus_fastapi.store.recurring import Declaration
from eventbus_fastapi.telemetry.meters import Meters
from eventbus_fastapi.telemetry.tracing import Tracing
from eventbus_fastapi.topics import check_pattern

logger = logging.getLogger(__name__)

READS = 2
"""Reads of history that a node does at the same time; others wait their turn without a connection."""
GROUP_PAGE = 250
"""Events of the log's past that a group reads at once: a thousand would hold the event loop up for milliseconds."""
SCAN_PAGES = 10
"""Pages of the log that one request for history looks through at most before it answers with what it has."""
HISTORY_BYTES = 1_048_576
"""Bytes of payloads after which an answer with history ends; the last event may exceed them."""
STOP_GRACE = 10.0
"""Seconds that a stop waits for publishes already taken."""


class HistoryPage(NamedTuple):
    """An answer from history."""

    messages: list[Message]
    next: int | None
    """The `after` of the next page; None: the end of the log was reached."""
    head: int
    first_seq: int
    """The oldest seq that retention has kept: what was asked for before it is gone."""


class Node:
    """See the module's docstring. It may be started again after a stop."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine | None = None,
        *,
        tracing: Tracing | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.settings = settings
        self._stream = stream
        self.meters = Meters(settings.metrics_topics)
        """What its stages have counted, over all starts."""
        self.tracing = tracing or Tracing(is_wanted=settings.tracing)
        """What follows its events through the program and beyond."""
        self.store = open_store(settings, engine)
        self._declared: dict[str, Declaration] = {}  # recurring events, over all starts
        self._running: dict[service.Stage, asyncio.Task[None]] = {}
        self._is_running = False
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where it runs, or has run last."""
        self._starting: asyncio.Task[None] | None = None
        self._starters = 0  # who waits for it
        self._stopping: asyncio.Task[None] | None = None
        self._build()

    def _build(self) -> None:
        settings, store, meters = self.settings, self.store, self.meters
        self.dispatcher = Dispatcher(store, page_size=settings.page_size, tail_bytes=settings.tail_bytes)
        self.publisher = Publisher(store, self._on_append, meters=meters)
        self.unique_publisher = UniquePublisher(store, self._on_own, meters=meters)
        self.sequencer = Sequencer(
            store, self._on_look, poll_interval=settings.poll_interval, is_told=self._has_fanout, meters=meters
        )
        self._sequenced = store.sequenced
        self.fanout: Fanout | None = None
        """None: the nodes have no stream."""
        if self._stream is not None:
            self.fanout = Fanout(
                store,
                self.dispatcher,
                self._stream,
                page_size=settings.page_size,
                meters=meters,
                on_append=self.sequencer.hear,
            )
        self.acknowledger = Acknowledger(store)
        self.retention = Retention(store, settings)
        self.notifier = Notifier(store, tell=self._tell, look=self.sequencer.bell.ring)
        self.consumers = Consumers(
            store.groups,
            open_subscription=self._open_for_group,
            lease=settings.lease,
            is_live_under_way=self.is_live_under_way,
            meters=meters,
        )
        self.steward = Steward(store, require=self._require_running)
        self.log_view = LogView(store, require=self._require_running)
        self.queues = QueueSteward(store, require=self._require_running)
        self.recurrer = Recurrer(store, self._declared, ring=self.sequencer.expect)
        self.recurring = Recurring(
            store, settings, self._declared, require=self._require_running, tell=self._on_recurring
        )
        self.observer = Observer(store)
        self._reads = asyncio.Semaphore(READS)
        self._subscriptions: set[Subscription] = set()

    # --- life ---

    @property
    def is_running(self) -> bool:
        return self._is_running

    async def start(self) -> None:
        """Connect, check the schema and start the stages. Starting twice is once; during a stop it waits for its end.

        Cancelled, it leaves nothing running, unless somebody else waits for the start, too.

        Raises:
            SchemaOutdated: the tables are missing or of another version; the message names the command to run.
            StoreUnavailable: the database cannot be reached.
            NotRunning: the bus was stopped meanwhile.
        """
        while self._stopping is not None:
            await asyncio.wait([self._stopping])
        if self._is_running:
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="eventbus-start")
            self._starting.add_done_callback(self._note_started)
        starting = self._starting
        self._starters += 1
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            if self._starters == 1:
                await self.stop()
            raise
        finally:
            self._starters -= 1
        if starting.cancelled():
            raise NotRunning("the bus was stopped while it started")
        starting.result()

    def _note_started(self, starting: asyncio.Task[None]) -> None:
        self._starting = None

    async def _start(self) -> None:
        self._build()
        try:
            await self.store.start()
            self.dispatcher.tell((await self.store.head()).last_seq)
            await self.recurrer.write_declared()
        except BaseException:
            await self.store.stop()
            raise
        stages: list[service.Stage] = [
            self.publisher,
            self.sequencer,
            self.dispatcher,
            self.acknowledger,
            self.retention,
            self.recurrer,
        ]
        if self.store.has_listener:
            stages.append(self.notifier)
        if self.fanout is not None:
            stages.append(self.fanout)
        self._running = {stage: service.start(stage, self.meters.failures) for stage in stages}
        self.publisher.open()
        self.unique_publisher.open()
        self._is_running = True
        self.loop = asyncio.get_running_loop()
        logger.info("started on %s", self.store.engine.dialect.name)

    async def stop(self) -> None:
        """Store what was taken, end subscriptions and stages, disconnect. Stopping twice is once.

        A start that is under way is given up. Cancelled, the stop goes on by itself.
        """
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._stopping is None and self._is_running:
            self._is_running = False
            self._stopping = asyncio.create_task(self._stop(), name="eventbus-stop")
            self._stopping.add_done_callback(self._note_stopped)
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    def _note_stopped(self, stopping: asyncio.Task[None]) -> None:
        self._stopping = None

    async def _stop(self) -> None:
        await asyncio.gather(self.publisher.close(STOP_GRACE), self.unique_publisher.close(STOP_GRACE))
        await self.consumers.stop()
        for subscription in tuple(self._subscriptions):
            subscription.close()
        if self.notifier in self._running:
            self._running[self.notifier].cancel()  # its work is to wait
        await service.end(self._running)
        self._running = {}
        if self.fanout is not None:
            await self.fanout.close()
        await self.observer.stop()
        self.acknowledger.fail_waiting(NotRunning("the bus stopped before the ack was stored"))
        await self.store.stop()
        logger.info("stopped")

    def run(self, stage: service.Stage) -> asyncio.Task[None]:
        """Run a stage of somebody else's beside the node's own, until it ends or the node stops.

        Raises:
            NotRunning: the node is not started.
        """
        self._require_running()
        task = self._running[stage] = service.start(stage, self.meters.failures)
        return task

    async def problems(self) -> list[str]:
        """Return why the node is not ready; empty when the database answers, the schema is current and LISTEN is
        alive.
        """
        if not self._is_running:
            return ["the bus is not running"]
        found = []
        try:
            await self.store.check()
        except EventBusError as exc:
            found.append(str(exc))
        if self.store.has_listener and not self.notifier.is_alive:
            found.append("the listening connection is lost; new events are found by polling")
        return found

    @property
    def remarks(self) -> list[str]:
        """What is not as it should be, though the node is ready and loses nothing."""
        if self.fanout is None or self.fanout.is_alive:
            return []
        return ["fan-out is away; live events are read from the database"]

    # --- publishing ---

    def submit(self, drafts: Sequence[Draft]) -> asyncio.Future[list[Receipt]]:
        """Hand over drafts, all or none; return a future of their receipts, set after the commit.

        The order of the calls is the order in the log; what has a unique event among it may be overtaken.

        Raises:
            NotRunning: the node is not started.
        """
        if any(draft.unique is not None for draft in drafts):
            return self.unique_publisher.submit(drafts)
        return self.publisher.submit(drafts)

    async def publish(self, drafts: Sequence[Draft], *, name: str = "", is_live: bool = False) -> list[Receipt]:
        """Publish for a caller who waits, within the caller's trace: `submit`, or `publish_live` of each.

        `name` is the topic where it is one of few; the trace is named after it.
        """
        if (spans := self.tracing.spans()) is not None:
            with spans.publishing(drafts, name) as traced:
                return [self.publish_live(each) for each in traced] if is_live else await self.submit(traced)
        return [self.publish_live(draft) for draft in drafts] if is_live else await self.submit(drafts)

    def publish_live(self, draft: Draft) -> Receipt:
        """Give an event to the live subscriptions of this node only, without storing it: it has no seq, no other node
        sees it, and whoever is not connected and live now never will.
        """
        self._require_running()
        if draft.is_scheduled:
            raise InvalidEvent("an event that is not stored cannot wait: delay and publish_at need durable=True")
        if draft.unique is not None:
            raise InvalidEvent("an event that is not stored cannot be unique: unique needs durable=True")
        now = int(datetime.now(UTC).timestamp() * 1_000_000)
        message = Message(0, *draft[:6], now)
        self.dispatcher.dispatch([message])
        self.meters.note_published("live", (draft,))
        return Receipt(draft.message_id, None)

    # --- reading ---

    async def subscribe(
        self,
        patterns: Sequence[str],
        start: Start = "now",
        *,
        include_processed: bool = False,
        overflow: Overflow | None = None,
        buffer: int | None = None,
        page_size: int | None = None,
        processed_before: int | None = None,
        epoch: UUID | None = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> Subscription:
        """Open a subscription; it is in place when this returns.

        A replay leaves out what was processed before the subscription began, unless `include_processed`. A reader that
        resumes gives the `processed_before` of its first subscription: what others have processed since is not left
        out. None: it begins now.

        Raises:
            InvalidPattern: a pattern does not follow the grammar.
            InvalidEvent: `start` is none of `Start`, or `overflow` or `buffer` cannot be used.
            StoreUnavailable: the log cannot be read now.
        """
        self._require_running()
        if overflow is not None and overflow not in get_args(Overflow):
            raise InvalidEvent(f"overflow must be one of {', '.join(get_args(Overflow))}, got {quote(overflow)}")
        if buffer is not None and (type(buffer) is not int or buffer < 1):
            raise InvalidEvent(f"buffer must be an integer ≥ 1, got {quote(buffer)}")
        chosen = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))
        head = await self.store.head()
        self.dispatcher.tell(head.last_seq)
        after = await resolve_start(self.store, start, head)
        gaps = []
        if epoch is not None and epoch != head.epoch:
            after = head.first_seq - 1
            processed_before = None
            gaps.append(Gap(0, 0, "epoch"))  # nothing of this log is missing
        elif after + 1 < head.first_seq and start != "earliest":
            gaps.append(Gap(after + 1, head.first_seq - 1, "retention"))
            after = head.first_seq - 1
        elif isinstance(start, datetime) and 0 < after < head.first_seq:
            # Everything that is left came later, so perhaps some of what is gone did, too.
            gaps.append(Gap(1, after, "retention"))
        if include_processed or after >= head.last_seq:
            processed_before = 0
        elif processed_before is None:
            processed_before = await self.store.moment()
        subscription = Subscription(
            chosen,
            after,
            store=self.store,
            live=self.dispatcher,
            reads=self._reads,
            policy=Policy(
                overflow or self.settings.overflow,
                min(buffer or self.settings.buffer, self.settings.buffer),
                min(page_size or self.settings.page_size, self.settings.page_size),
            ),
            head=head.last_seq,
            processed_before=processed_before,
            acknowledge=self._acknowledge_message,
            gaps=gaps,
            on_gap=on_gap,
            on_end=self._subscriptions.discard,
            meters=self.meters,
        )
        self._subscriptions.add(subscription)
        return subscription

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """Those that are open on this node, in no order."""
        return tuple(self._subscriptions)

    async def head(self) -> Head:
        """Return the state of the log."""
        self._require_running()
        return await self.store.head()

    async def get(self, seq: int) -> StoredEvent:
        """Return one event with its status.

        Raises:
            NotFound: no event has this seq.
        """
        self._require_running()
        return await self.store.get(seq)

    async def find(self, message_ids: Sequence[UUID]) -> dict[UUID, int | None]:
        """Return the seqs of those of these events that are stored; None: it has none yet."""
        self._require_running()
        return await self.store.find(message_ids)

    async def history(self, patterns: Sequence[str], after: int, limit: int) -> HistoryPage:
        """Return up to `limit` events after a seq that match any pattern, oldest first.

        A rare pattern may give fewer, or none, with a `next` to go on from: one call looks at a part of the log.
        """
        self._require_running()
        matcher = Matcher([check_pattern(pattern) for pattern in patterns])
        head = await self.store.head()
        found: list[Message] = []
        size = 0
        for _ in range(SCAN_PAGES):
            async with self._reads:
                scan = await self.store.read(after, self.settings.page_size)
            if scan.first != after + 1:
                # Retention may have been faster than we. `last_seq` stays: every match up to it will be looked at.
                head = head._replace(first_seq=(await self.store.head()).first_seq)
            for message in scan.messages:
                if not matcher.matches(message.topic):
                    continue
                found.append(message)
                size += len(message.body)
                if len(found) == limit or size >= HISTORY_BYTES:
                    is_end = scan.is_last and message is scan.messages[-1]
                    return HistoryPage(found, None if is_end else message.seq, head.last_seq, head.first_seq)
            after = scan.scanned_to
            if scan.is_last:
                return HistoryPage(found, None, head.last_seq, head.first_seq)
        return HistoryPage(found, after, head.last_seq, head.first_seq)

    # --- groups ---

    async def consume(
        self,
        name: str,
        patterns: Sequence[str],
        *,
        start: Start = "now",
        ordered_by: OrderedBy | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        max_in_flight: int | None = None,
        rate_limit: str | None = None,
        archive: ArchiveMode = "none",
        is_declared: bool = False,
        poll_interval: float = POLL_INTERVAL,
        queue: str = "",
    ) -> Consumer:
        """Serve a group on this node, for one more who takes from it; `consumers.close` ends that.

        A group that is not there is made, and reads from `start`; one that is keeps its place, and takes over the rest
        as given here if `is_declared`. What no bell tells of is looked for every `poll_interval` seconds. `queue` is
        what its outcomes are counted under.

        Raises:
            InvalidPattern: a pattern does not follow the grammar.
            StoreUnavailable: the database is away.
        """
        self._require_running()
        chosen = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))
        after = await resolve_start(self.store, start)
        group = await self.store.groups.ensure(
            name,
            chosen,
            after=after,
            ordered_by=ordered_by,
            max_attempts=max_attempts,
            max_in_flight=max_in_flight,
            rate_limit=rate_limit,
            archive=archive,
            is_declared=is_declared,
        )
        self._require_running()
        return self.consumers.open(group, poll_interval=poll_interval, queue=queue)

    async def _open_for_group(self, patterns: Sequence[str], after: int) -> Subscription:
        return await self.subscribe(patterns, after, include_processed=True, overflow="catch_up", page_size=GROUP_PAGE)

    def is_live_under_way(self) -> bool:
        """Whether an event is on its way to somebody who reads live: published, dispatched or claimed just now."""
        if not self.dispatcher.has_readers:
            return False
        return (
            self.publisher.is_busy
            or self.dispatcher.is_behind
            or any(consumer.is_live and consumer.is_claiming for consumer in self.consumers)
        )

    # --- acknowledging ---

    async def acknowledge(self, acks: Sequence[Ack]) -> int:
        """Mark events processed; return how many are, after the commit.

        Raises:
            NotFound: no event has this seq.
            AckMismatch: the event at this seq has another message_id.
        """
        self._require_running()
        return await self.acknowledger.submit(acks)

    async def _acknowledge_message(self, message: Message) -> None:
        if message.is_durable:
            await self.acknowledge([Ack(message.seq, message.message_id)])

    # --- parts ---

    async def _on_append(self, appended: Appended) -> None:
        """This node has appended. What nobody came before need not be read again."""
        if appended.created_at is None:
            self._on_own(appended.last_seq)
            return
        may_accept = self.dispatcher.may_accept(appended.last_seq - len(appended.drafts))
        if may_accept or self.fanout is not None:
            messages = appended.messages()
            if may_accept:
                self.dispatcher.accept(messages)
            if self.fanout is not None:
                await self.fanout.append(messages)
        self._tell(appended.last_seq, is_own=self._has_sequenced())

    def _on_own(self, last_seq: int) -> None:
        """This node has appended, and what that was must be read."""
        self._tell(last_seq, is_own=True)

    def _on_look(self, last_seq: int) -> None:
        """The sequencer has looked, and perhaps moved something."""
        self.dispatcher.tell(last_seq)
        if self.fanout is not None:
            self.fanout.tell(last_seq, is_own=self._has_sequenced())

    def _has_fanout(self) -> bool:
        return self.fanout is not None and self.fanout.is_alive

    def _has_sequenced(self) -> bool:
        """Say whether this node has moved something from the outbox since it was asked last."""
        before, self._sequenced = self._sequenced, self.store.sequenced
        return before != self._sequenced

    def _tell(self, last_seq: int, *, is_own: bool = False) -> None:
        """The log has grown."""
        self.sequencer.hear(last_seq)
        self.dispatcher.tell(last_seq)
        if self.fanout is not None:
            self.fanout.tell(last_seq, is_own=is_own)

    def _on_recurring(self) -> None:
        """Something was said about recurring events, or published of one."""
        self.recurrer.bell.ring()
        self.sequencer.expect()

    def _require_running(self) -> None:
        if not self._is_running:
            raise NotRunning("the bus is not running; use 'async with eventbus:' or mount its router")
