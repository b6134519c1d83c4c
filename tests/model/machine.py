"""The machine: does the same to the model and to a bus of one node or two, one step after another, and compares.

A step is one call of what users and nodes do: a publish, a commit, a claim, a crash, an hour that passes. Between two
steps nothing runs (`stopped`), so what a run finds, it finds again. After each step the log, what waits for it and the
groups must be what the model says; a reader, what it may be.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Concatenate, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import GroupConflict, NotFound, SlowConsumer
from eventbus_fastapi.events import Draft, Message
from eventbus_fastapi.pipeline.channel import Batch, Gap, Item
from eventbus_fastapi.pipeline.retention import Retention
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.store import Ack
from eventbus_fastapi.store.group import Again, Death, HeldRetry, OrderedBy, Settlement
from eventbus_fastapi.store.group import Group as StoredGroup
from tests.model import model
from tests.model.model import Sent, Settled, matches_any
from tests.model.stopped import EPOCH, StoppedClock, crash, make_bus, stages_standing_still, start

P = ParamSpec("P")
M = TypeVar("M", bound="Machine")

SECOND = 1_000_000
PATIENCE = 20
"""Turns of the event loop that a reader may take for what it has only to pick up."""
PAGE = 3
"""Events that nodes read at once: few, so that there are pages."""
BUFFER = 4
"""Events that a subscription may fall behind."""
MOST_TRANSACTIONS = 3
MOST_READERS = 4
BETWEEN_CRASHES = 5
"""Steps: they are slow, and where a transaction has the only writer, there is little else to draw."""

TOPICS = ("a", "a.b", "a.b.c", "b", "b.a")
PATTERNS = ("#", "a", "a.*", "a.#", "#.a", "*.b.#", "b")
GROUPS = ("one", "two")
RELAY = "relay"
"""The group that is ordered by the log."""
OWNERS = ("anne", "bob")
FAILED = {"type": "ValueError", "message": "no"}

some = st.integers(0, 1_000)
"""Picks one of what there is."""
patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2, unique=True)
durations = st.sampled_from([1, 5, 10, 30])
starts = st.one_of(st.sampled_from(["now", "earliest"]), st.integers(0, 25), st.floats(0, 1))
"""The last are a time, as a part of that which has passed."""


class Wish(NamedTuple):
    """An event that is to be published."""

    topic: str
    key: str | None
    ttl: int | None
    delay: int | None
    again: int | None
    """One of the few message_ids that are used again and again; None: a new one."""


wishes = st.builds(
    Wish,
    st.sampled_from(TOPICS),
    st.sampled_from([None, "x", "y"]),
    st.sampled_from([None, None, None, 10]),
    st.sampled_from([None, None, None, 5, 10]),
    st.one_of(st.none(), st.none(), st.integers(1, 4)),
)


class Declared(NamedTuple):
    """What is said of a group."""

    patterns: list[str]
    is_ordered: bool
    max_attempts: int
    max_in_flight: int | None


declarations = st.builds(
    Declared, patterns, st.booleans(), st.sampled_from([1, 2, 3, 5]), st.sampled_from([None, None, 2])
)
endings = st.lists(st.sampled_from(["ack", "ack", "retry", "retry", "release", "reject"]), min_size=1, max_size=4)
delays = st.sampled_from([0, 0, 5])
batches = st.lists(st.lists(wishes, min_size=1, max_size=3), min_size=1, max_size=3)


def step(
    method: Callable[Concatenate[M, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[M, P], None]:
    """Run it some time after the last step, and compare."""

    @functools.wraps(method)
    def run(self: M, /, *args: P.args, **drawn: P.kwargs) -> None:
        async def compared() -> None:
            await method(self, *args, **drawn)
            await self.compare()

        self.move_clock(1_000)
        self.steps += 1
        self.runner.run(compared())

    return run


@dataclass
class Transaction:
    """Somebody's transaction, with what it has inserted, by SAVEPOINT."""

    bus: EventBus
    work: AsyncSession | AsyncConnection
    frames: list[list[model.Waiting]]
    savepoints: list[Any]


@dataclass
class Reading:
    """A subscription, and what it may be given."""

    bus: EventBus
    subscription: Subscription
    may: model.Reader


class Out(NamedTuple):
    """An attempt that somebody makes."""

    attempt: int
    errors: list[dict[str, Any]]


@dataclass
class Holding:
    """What somebody holds of a group under a token, and what is left of it."""

    group: StoredGroup
    knows: model.Group
    token: UUID
    is_retry: bool
    left: dict[int, Out]
    was: dict[int, Out]


class Place(NamedTuple):
    """Where the examples are run, one after another."""

    clock: StoppedClock
    lend_tables: Callable[[ExitStack], dict[str, Any]]
    """Lends tables until the stack is closed; returns the settings that name them."""
    is_single_writer: bool
    """SQLite: nobody else writes while a transaction is open."""


class Machine(RuleBasedStateMachine):
    """See the module's docstring. A subclass has the place."""

    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.place.clock
        self.is_single_writer = self.place.is_single_writer
        self.stack = ExitStack()
        self.runner = self.stack.enter_context(asyncio.Runner(loop_factory=asyncio.new_event_loop))
        self.stack.enter_context(stages_standing_still())
        self.settings = {
            **self.place.lend_tables(self.stack),
            "sqlite_synchronous": "NORMAL",
            "page_size": PAGE,
            "buffer": BUFFER,
            "archive_age": None,
        }
        self.began = self.clock.now
        self.log = model.Log(self.clock.now)
        self.groups: dict[str, model.Group] = {}
        self.buses: list[EventBus] = []
        self.down: list[EventBus] = []
        self.transactions: list[Transaction] = []
        self.readings: list[Reading] = []
        self.holdings: list[Holding] = []
        self.known: dict[str, StoredGroup] = {}
        """How a group was when somebody looked last."""
        self.published = 0
        self.steps = 0
        self.crashed_at = 0
        """The step of the last crash."""

    @initialize(nodes=st.integers(1, 2), calls=batches, declared=declarations, chosen=patterns)
    def start(self, nodes: int, calls: list[list[Wish]], declared: Declared, chosen: list[str]) -> None:
        """Begin with what most steps need."""
        self.down = [make_bus(self.clock, **self.settings) for _ in range(nodes)]
        self.runner.run(self.start_nodes())
        self.declare(node=0, name=GROUPS[0], start="earliest", declared=declared)
        self.subscribe(node=1, chosen=chosen, start="now", includes_processed=True, overflow="catch_up")
        self.publish(node=0, calls=calls)

    def teardown(self) -> None:
        try:
            if self.buses:
                self.runner.run(self.end())
        finally:
            self.stack.close()

    async def end(self) -> None:
        try:
            for transaction in self.transactions:
                await transaction.work.rollback()
                await transaction.work.close()
            self.transactions.clear()
            for reading in self.readings:
                await self.read_to_the_end(reading)
        finally:
            for bus in self.buses:
                await crash(bus, [transaction.work for transaction in self.transactions if transaction.bus is bus])

    # --- what may be done ---

    @property
    def may_write(self) -> bool:
        return not (self.is_single_writer and self.transactions)

    @property
    def holders(self) -> list[Holding]:
        return [holding for holding in self.holdings if holding.left]

    def _groups(self, *, which: Callable[[model.Group], bool]) -> list[str]:
        return sorted(name for name, group in self.groups.items() if which(group))

    @property
    def behind(self) -> list[str]:
        """Groups with something to claim."""
        return self._groups(which=lambda group: group.cursor < self.log.last_seq)

    @property
    def retrying(self) -> list[str]:
        """Groups with something due, or else with something that waits."""
        due = self._groups(which=lambda group: any(each.due <= self.clock.now for each in group.retries.values()))
        return due or self._groups(which=lambda group: bool(group.retries))

    @property
    def holding(self) -> list[str]:
        return self._groups(which=lambda group: bool(group.leases))

    @property
    def mourning(self) -> list[str]:
        """Groups with dead letters."""
        return self._groups(which=lambda group: bool(group.dead))

    @property
    def hungry(self) -> list[Reading]:
        return [each for each in self.readings if not each.subscription.is_live or self._is_owed(each)]

    def move_clock(self, micros: int) -> None:
        self.clock.move(micros)
        self.log.now = self.clock.now

    async def start_nodes(self) -> None:
        """Start those that are down; on SQLite a node begins with a write."""
        while self.down and self.may_write:
            await start(self.down[0], self.clock)
            self.buses.append(self.down.pop(0))

    # --- publishing ---

    def make(self, bus: EventBus, wish: Wish) -> tuple[Draft, Sent]:
        self.published += 1
        message_id = UUID(int=(wish.again or 1_000 + self.published), version=4)
        draft = bus.draft(
            wish.topic, self.published, key=wish.key, ttl=wish.ttl, delay=wish.delay, message_id=message_id
        )
        sent = Sent(message_id, wish.topic, self.published, wish.key, _micros(wish.ttl), _micros(wish.delay))
        return draft, sent

    @precondition(lambda self: self.may_write)
    @rule(node=some, calls=batches)
    @step
    async def publish(self, node: int, calls: list[list[Wish]]) -> None:
        """Several calls that share a commit."""
        await self._publish(pick(self.buses, node), calls)

    @precondition(lambda self: self.may_write)
    @rule(node=some, wish=wishes)
    @step
    async def publish_one(self, node: int, wish: Wish) -> None:
        await self._publish(pick(self.buses, node), [[wish]])

    @precondition(lambda self: self.may_write)
    @rule(node=some, topics=st.lists(st.sampled_from(TOPICS), min_size=3, max_size=12))
    @step
    async def publish_much(self, node: int, topics: list[str]) -> None:
        await self._publish(pick(self.buses, node), [[Wish(topic, "x", None, None, None) for topic in topics]])

    async def _publish(self, bus: EventBus, calls: list[list[Wish]]) -> None:
        made = [[self.make(bus, wish) for wish in call] for call in calls]
        answers = [asyncio.ensure_future(bus.publish_many([draft for draft, _ in call])) for call in made]
        await asyncio.sleep(0)
        await bus.node.publisher.run_once()
        receipts = [receipt for answer in answers for receipt in await answer]
        sent = [sent for call in made for _, sent in call]
        assert [receipt.message_id for receipt in receipts] == [each.message_id for each in sent]
        assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == self.log.publish(sent)

    @precondition(lambda self: self.may_write and (self.log.outbox or self.log.scheduled))
    @rule(node=some, part=st.sampled_from(["promote", "sequence", "both"]))
    @step
    async def let_in(self, node: int, part: str) -> None:
        """What is due and what is committed goes on, as each node has it do all the time."""
        node_ = pick(self.buses, node).node
        if part == "promote":
            assert await node_.store.promote() == self.log.promote()
        elif part == "sequence":
            moved = self.log.sequence()
            assert await node_.store.sequence() == (moved, self.log.last_seq)
        else:
            await node_.sequencer.run_once()
            self.log.promote()
            self.log.sequence()

    # --- transactions ---

    @precondition(lambda self: self.may_write and len(self.transactions) < MOST_TRANSACTIONS)
    @rule(node=some, is_session=st.booleans(), inserted=st.lists(wishes, min_size=1, max_size=3))
    @step
    async def begin(self, node: int, is_session: bool, inserted: list[Wish]) -> None:
        bus = pick(self.buses, node)
        work = AsyncSession(bus.engine) if is_session else await bus.engine.connect()
        await work.begin()
        self.transactions.append(Transaction(bus, work, [[]], []))
        for wish in inserted:
            await self._publish_txn(self.transactions[-1], wish)

    @precondition(lambda self: self.may_write)
    @rule(node=some, inserted=st.lists(wishes, min_size=1, max_size=3), wish=wishes)
    @step
    async def publish_after_a_commit(self, node: int, inserted: list[Wish], wish: Wish) -> None:
        """What was committed first is first in the log, whichever way each was published."""
        bus = pick(self.buses, node)
        async with AsyncSession(bus.engine) as session:
            transaction = Transaction(bus, session, [[]], [])
            for each in inserted:
                await self._publish_txn(transaction, each)
            await session.commit()
        self.log.commit(transaction.frames[0])
        await self._publish(bus, [[wish]])

    @precondition(lambda self: self.transactions)
    @rule(which=some, wish=wishes, is_nested=st.booleans())
    @step
    async def publish_txn(self, which: int, wish: Wish, is_nested: bool) -> None:
        transaction = pick(self.transactions, which)
        if is_nested:
            transaction.savepoints.append(await transaction.work.begin_nested())
            transaction.frames.append([])
        await self._publish_txn(transaction, wish)

    async def _publish_txn(self, transaction: Transaction, wish: Wish) -> None:
        draft, sent = self.make(transaction.bus, wish)
        receipt = await transaction.bus.publish_txn(
            transaction.work,
            draft.topic,
            sent.payload,
            key=draft.key,
            message_id=draft.message_id,
            ttl=wish.ttl,
            delay=wish.delay,
        )
        assert receipt == (draft.message_id, None, False)
        transaction.frames[-1].append(self.log.insert(sent))

    @precondition(lambda self: any(transaction.savepoints for transaction in self.transactions))
    @rule(which=some, is_kept=st.booleans())
    @step
    async def end_savepoint(self, which: int, is_kept: bool) -> None:
        transaction = pick([each for each in self.transactions if each.savepoints], which)
        savepoint, inserted = transaction.savepoints.pop(), transaction.frames.pop()
        if is_kept:
            await savepoint.commit()
            transaction.frames[-1] += inserted
        else:
            await savepoint.rollback()

    @precondition(lambda self: self.transactions)
    @rule(which=some, is_kept=st.booleans())
    @step
    async def end_transaction(self, which: int, is_kept: bool) -> None:
        transaction = pick(self.transactions, which)
        self.transactions.remove(transaction)
        if is_kept:
            for savepoint in reversed(transaction.savepoints):
                await savepoint.commit()
            await transaction.work.commit()
            self.log.commit([waiting for frame in transaction.frames for waiting in frame])
        else:
            await transaction.work.rollback()
        await transaction.work.close()
        await self.start_nodes()

    # --- reading ---

    @rule(
        node=some,
        chosen=patterns,
        start=starts,
        includes_processed=st.booleans(),
        overflow=st.sampled_from(["catch_up", "drop_oldest", "disconnect"]),
    )
    @step
    async def subscribe(
        self, node: int, chosen: list[str], start: Any, includes_processed: bool, overflow: Any
    ) -> None:
        start = self._time(start) if isinstance(start, float) else start
        after = self._place(start, is_reader=True)
        bus = pick(self.buses, node)
        subscription = await bus.node.subscribe(chosen, start, include_processed=includes_processed, overflow=overflow)
        self.add(self._reading(bus, subscription, after))

    def add(self, reading: Reading) -> None:
        """There is one more; the oldest has to go."""
        if len(self.readings) == MOST_READERS:
            self.readings.pop(0).subscription.close()
        self.readings.append(reading)

    @precondition(lambda self: self.hungry)
    @rule(which=some, limit=st.integers(1, 4))
    @step
    async def read(self, which: int, limit: int) -> None:
        await self.read_some(pick(self.hungry, which), limit)

    @precondition(lambda self: self.hungry)
    @rule(node=some, which=some, is_processed=st.booleans())
    @step
    async def read_all(self, node: int, which: int, is_processed: bool) -> None:
        reading = pick(self.hungry, which)
        before = reading.may.told
        await self.read_to_the_end(reading)
        if is_processed and self.may_write:
            await self.process(node, before + 1)
            await self.process(node, reading.may.told)

    @precondition(lambda self: self.hungry)
    @rule(node=some)
    @step
    async def dispatch(self, node: int) -> None:
        """A node reads one page for all its subscriptions that are live."""
        await pick(self.buses, node).node.dispatcher.run_once()

    async def process(self, node: int, seq: int) -> None:
        bus = pick(self.buses, node)
        answer = asyncio.ensure_future(bus.node.acknowledge([Ack(seq)]))
        await asyncio.sleep(0)
        await bus.node.acknowledger.run_once()
        if self.log.process(seq):
            assert await answer == 1
        else:
            with pytest.raises(NotFound):
                await answer

    async def read_to_the_end(self, reading: Reading) -> None:
        while not reading.subscription.is_live or self._is_owed(reading):
            await self.read_some(reading, None)

    async def read_some(self, reading: Reading, limit: int | None) -> None:
        """Take once, if there is something to take: a reader that waits though it is owed something, hangs."""
        if reading.subscription.is_live and not self._is_owed(reading):
            return
        while await reading.bus.node.dispatcher.run_once() == 0:
            pass
        try:
            items = await self._take(reading.subscription, limit)
        except SlowConsumer:
            reading.may.pass_to(reading.subscription.position)
            await self.resume(reading, reading.bus)
            return
        for item in items:
            if isinstance(item, Batch):
                for message in item.messages:
                    assert _sent(message) == self._sent_at(message.seq)
                    reading.may.show(message.seq)
            elif isinstance(item, Gap) and item.reason == "overflow":
                reading.may.told = max(reading.may.told, item.last_seq)
            elif isinstance(item, Gap):
                assert item.reason == "retention"
                reading.may.skip(item.first_seq, item.last_seq)
            else:
                reading.may.pass_to(item.seq)

    async def _take(self, subscription: Subscription, limit: int | None) -> list[Item]:
        """Take; who is live does not wait for the database, so if it waits, it waits for what will not come."""
        taking = asyncio.ensure_future(subscription.take(limit))
        turns = 0
        while not taking.done():
            turns = turns + 1 if subscription.is_live else 0
            if turns > PATIENCE:
                taking.cancel()
                raise AssertionError(f"a reader of {subscription.patterns} hangs at {subscription.position}")
            await asyncio.wait([taking], timeout=0 if subscription.is_live else 1)
        return await taking

    async def resume(self, reading: Reading, bus: EventBus) -> None:
        """Go on after what was seen last, as a client does that has lost its connection."""
        old = reading.subscription
        subscription = await bus.node.subscribe(
            old.patterns,
            reading.may.told,
            include_processed=old.processed_before == 0,
            processed_before=old.processed_before or None,
            epoch=(await bus.node.head()).epoch,
            overflow=old._policy.overflow,
        )
        resumed = self._reading(bus, subscription, reading.may.told)
        reading.bus, reading.subscription, reading.may = resumed.bus, resumed.subscription, resumed.may

    def _reading(self, bus: EventBus, subscription: Subscription, after: int) -> Reading:
        began = subscription.processed_before or None
        chosen = subscription.patterns
        return Reading(bus, subscription, model.Reader(self.log, chosen, after, self.log.last_seq, began))

    def _is_owed(self, reading: Reading) -> bool:
        return any(reading.may.is_owed(seq) for seq in range(reading.may.told + 1, self.log.last_seq + 1))

    # --- groups ---

    @precondition(lambda self: self.may_write)
    @rule(node=some, name=st.sampled_from([*GROUPS, RELAY]), start=starts, declared=declarations)
    @step
    async def declare(self, node: int, name: str, start: Any, declared: Declared) -> None:
        await self._declare(node, name, start, declared)
        if name in self.behind:
            await self._claim(node, name, 2, 10, is_late=True)

    async def _declare(self, node: int, name: str, start: Any, declared: Declared) -> None:
        """Somebody has looked at it just before, if it was there."""
        bus: EventBus = pick(self.buses, node)
        if name in self.groups:
            self.known[name] = await bus.node.store.groups.get(name)
        start = min(start, self.log.last_seq) if isinstance(start, int) else start
        place = self._place(start)
        ordered_by: OrderedBy | None = "log" if name == RELAY else "key" if declared.is_ordered else None
        if ordered_by == "log":  # as a relay does when it begins
            await bus.node.store.groups.ensure(
                name,
                declared.patterns,
                after=place,
                ordered_by=ordered_by,
                max_attempts=declared.max_attempts,
                max_in_flight=declared.max_in_flight,
                is_declared=True,
            )
            with pytest.raises(GroupConflict):
                await bus.groups.declare(name, declared.patterns)
        else:
            await bus.groups.declare(
                name,
                declared.patterns,
                start=self._time(start) if isinstance(start, float) else start,
                ordered_by=ordered_by,
                max_attempts=declared.max_attempts,
                max_in_flight=declared.max_in_flight,
            )
        if name in self.groups:
            self.groups[name].declare(declared.patterns, ordered_by, declared.max_attempts, declared.max_in_flight)
        else:
            self.groups[name] = model.Group(
                self.log, place, declared.patterns, ordered_by, declared.max_attempts, declared.max_in_flight
            )

    @precondition(lambda self: self.may_write and self.behind)
    @rule(node=some, which=some, limit=st.integers(1, 4), lease=durations, is_late=st.booleans())
    @step
    async def claim(self, node: int, which: int, limit: int, lease: int, is_late: bool) -> None:
        """Somebody takes the next events, as the group is, or as he knows it from before."""
        await self._claim(node, pick(self.behind, which), limit, lease, is_late=is_late)

    @precondition(lambda self: self.may_write and self.behind)
    @rule(node=some, which=some, limit=st.integers(1, 4), outcomes=endings, delay=delays)
    @step
    async def handle(self, node: int, which: int, limit: int, outcomes: list[str], delay: int) -> None:
        """Somebody takes the next events, and is done with the first of them at once."""
        holding = await self._claim(node, pick(self.behind, which), limit, 10)
        if holding is not None:
            await self._settle(node, holding, outcomes, delay)

    async def _claim(self, node: int, name: str, limit: int, lease: int, *, is_late: bool = False) -> Holding | None:
        groups, store = pick(self.buses, node).node.store.groups, pick(self.buses, node).node.store
        group = self.groups[name]
        stored = await groups.get(name)
        if is_late and name in self.known:
            stored, now = self.known[name], stored
            is_late = stored._replace(lost=0, max_attempts=0) != now._replace(lost=0, max_attempts=0)
        else:
            is_late = False
            first_seq = (await store.head()).first_seq
            if first_seq > stored.cursor + 1:
                stored = await groups.pass_over(stored, first_seq)
                group.pass_over_gap()
            self.known[name] = stored
        messages, up_to = await self._next_of(store, stored, limit)
        claim = await groups.claim(stored, messages, up_to=up_to, owner=_owner(node), lease=lease)
        if is_late or group.is_paused:
            assert claim is None or claim[1:] == ((), stored.cursor)  # without room nobody looks where the group is
            return None
        assert claim is not None
        until = self.clock.now + lease * SECOND
        assert list(claim.seqs) == group.claim(limit, claim.token, _owner(node), until)
        assert claim.up_to == group.cursor
        for message in messages:
            assert _sent(message) == self._sent_at(message.seq)
        return self._hold(stored, group, claim.token, {seq: Out(1, []) for seq in claim.seqs}, is_retry=False)

    async def _next_of(self, store: Any, group: StoredGroup, limit: int) -> tuple[list[Message], int]:
        """Read on, as a consumer does; return what matches and how far that goes."""
        messages: list[Message] = []
        position = group.cursor
        while True:
            scan = await store.read(position, PAGE)
            messages += [each for each in scan.messages if matches_any(group.patterns, each.topic)]
            if len(messages) >= limit:
                return messages[:limit], messages[limit - 1].seq
            if scan.is_last:
                return messages, max(group.cursor, (await store.head()).last_seq)
            position = scan.scanned_to

    @precondition(lambda self: self.may_write and self.retrying)
    @rule(node=some, which=some, limit=st.integers(1, 4), lease=durations)
    @step
    async def hold_retries(self, node: int, which: int, limit: int, lease: int) -> None:
        await self._hold_retries(node, pick(self.retrying, which), limit, lease)

    @precondition(lambda self: self.may_write and self.retrying)
    @rule(node=some, which=some, limit=st.integers(1, 4), outcomes=endings, delay=delays)
    @step
    async def handle_retries(self, node: int, which: int, limit: int, outcomes: list[str], delay: int) -> None:
        holding = await self._hold_retries(node, pick(self.retrying, which), limit, 10)
        if holding is not None:
            await self._settle(node, holding, outcomes, delay)

    async def _hold_retries(self, node: int, name: str, limit: int, lease: int) -> Holding | None:
        groups, group = pick(self.buses, node).node.store.groups, self.groups[name]
        stored = await groups.get(name)
        held = await groups.hold_retries(stored, limit=limit, owner=_owner(node), lease=lease)
        out = {each.message.seq: Out(each.attempt, each.errors) for each in held}
        for each in held:
            assert _sent(each.message) == self._sent_at(each.message.seq)
        token = held[0].token if held else None
        named = {seq: (attempt, _types(errors)) for seq, (attempt, errors) in out.items()}
        group.hold(named, limit, token, _owner(node), self.clock.now + lease * SECOND)
        dead = [each.message.seq for each in await groups.dead_letters(stored)]
        waiting = [each.seq for each in await groups.retries(stored)]
        group.exhaust(dead, waiting)
        return None if token is None else self._hold(stored, group, token, out, is_retry=True)

    @precondition(lambda self: self.may_write and (self.behind or self.retrying))
    @rule(node=some, which=some, limit=st.integers(1, 4), outcomes=endings, delay=delays)
    @step
    async def serve(self, node: int, which: int, limit: int, outcomes: list[str], delay: int) -> None:
        """What a node does for a group: first what others have lost, then what is due, then what is new."""
        await self._rescue(node)
        name = pick(sorted({*self.behind, *self.retrying}), which)
        holding = await self._hold_retries(node, name, limit, 10) or await self._claim(node, name, limit, 10)
        if holding is not None:
            await self._settle(node, holding, outcomes, delay)

    @precondition(lambda self: self.may_write and self.holders)
    @rule(node=some, which=some, outcomes=endings, delay=delays)
    @step
    async def settle(self, node: int, which: int, outcomes: list[str], delay: int) -> None:
        """A holder says what has become of the first of what it holds, also where it holds it no more."""
        await self._settle(node, pick(self.holders, which), outcomes, delay)

    async def _settle(self, node: int, holding: Holding, outcomes: list[str], delay: int) -> None:
        settled: list[Settled] = []
        again: set[str] = set()
        for seq, outcome in zip(sorted(holding.left), outcomes, strict=False):
            key = self.log.ever[seq].sent.key
            settled.append(self._settled(seq, holding.left[seq], "release" if key in again else outcome, delay))
            if key is not None and settled[-1].outcome in ("retry", "release"):
                again.add(key)
        if holding.group.ordered_by == "key":  # nobody begins what is behind one that is to be tried again
            behind = sorted(holding.left)[len(settled) :]
            held_back = [seq for seq in behind if self.log.ever[seq].sent.key in again]
            settled += [self._settled(seq, holding.left[seq], "release", 0) for seq in held_back]
        left = {seq: out for seq, out in holding.left.items() if seq not in {each.seq for each in settled}}
        stale = await self._write(node, holding, settled, left)
        mine = holding.knows.settle_held if holding.is_retry else holding.knows.settle_claimed
        assert stale == {(holding.token, seq) for seq in mine(holding.token, settled)}
        holding.left = left

    @precondition(lambda self: self.may_write and any(not holding.left for holding in self.holdings))
    @rule(node=some, which=some, outcome=st.sampled_from(["ack", "retry", "reject"]))
    @step
    async def settle_again(self, node: int, which: int, outcome: str) -> None:
        """What has been settled is nobody's any more."""
        holding = pick([holding for holding in self.holdings if not holding.left], which)
        settled = [self._settled(seq, out, outcome, 0) for seq, out in holding.was.items()]
        assert await self._write(node, holding, settled, {}) == {(holding.token, seq) for seq in holding.was}

    def _settled(self, seq: int, out: Out, outcome: str, delay: int) -> Settled:
        attempt = out.attempt - (outcome == "release")
        errors = [*_types(out.errors), *(["ValueError"] if outcome in ("retry", "reject") else [])]
        return Settled(seq, outcome, attempt, errors, delay * SECOND)

    async def _write(
        self, node: int, holding: Holding, settled: Sequence[Settled], left: dict[int, Out]
    ) -> set[tuple[UUID, int]]:
        def errors(each: Settled) -> list[dict[str, Any]]:
            return [{**FAILED, "type": kind} for kind in each.errors]

        settlement = Settlement(
            holding.group.id,
            holding.token,
            done=[each.seq for each in settled if each.outcome == "ack"],
            again=[
                Again(each.seq, each.attempt, each.delay, errors(each))
                for each in settled
                if each.outcome in ("retry", "release")
            ],
            dead=[Death(each.seq, each.attempt, errors(each)) for each in settled if each.outcome == "reject"],
            pending=None if holding.is_retry else tuple(sorted(left)),
        )
        bus: EventBus = pick(self.buses, node)
        return await bus.node.store.groups.settle([settlement])

    @precondition(lambda self: self.may_write and self.holders)
    @rule(node=some, which=some, lease=durations)
    @step
    async def extend(self, node: int, which: int, lease: int) -> None:
        await self._extend(node, pick(self.holders, which), lease)

    async def _extend(self, node: int, holding: Holding, lease: int) -> None:
        until = self.clock.now + lease * SECOND
        tokens = [] if holding.is_retry else [holding.token]
        retries = [HeldRetry(holding.group.id, seq, holding.token) for seq in holding.left if holding.is_retry]
        lost = await pick(self.buses, node).node.store.groups.renew(tokens, retries, lease=lease)
        expected: set[UUID | HeldRetry] = set()
        for token in tokens:
            if token in holding.knows.leases:
                holding.knows.leases[token].until = until
            else:
                expected.add(token)
        for item in retries:
            retry = holding.knows.retries.get(item.seq)
            if retry is not None and retry.token == item.token:
                retry.due = until
            else:
                expected.add(item)
        assert lost == expected

    @precondition(lambda self: self.may_write and self.holding)
    @rule(node=some)
    @step
    async def rescue(self, node: int) -> None:
        await self._rescue(node)

    async def _rescue(self, node: int) -> None:
        groups = pick(self.buses, node).node.store.groups
        while await groups.rescue():
            pass
        for group in self.groups.values():
            group.rescue()

    @precondition(lambda self: self.may_write and self.groups)
    @rule(
        node=some,
        which=some,
        act=st.sampled_from(["pause", "resume", "resume", "reset", "reset", "delete"]),
        start=starts,
    )
    @step
    async def operate(self, node: int, which: int, act: str, start: Any) -> None:
        name, group = pick(sorted(self.groups.items()), which)
        steward = pick(self.buses, node).groups
        if act == "delete":
            await steward.delete(name)
            group.reset(0)  # whoever holds something of it, holds nothing
            del self.groups[name]
        elif act == "reset":
            await self._reset(node, name, start)
        else:
            await (steward.pause(name) if act == "pause" else steward.resume(name))
            group.is_paused = act == "pause"

    async def _reset(self, node: int, name: str, start: Any) -> None:
        start = min(start, self.log.last_seq) if isinstance(start, int) else start
        after = self._place(start)
        steward = pick(self.buses, node).groups
        assert await steward.reset(name, self._time(start) if isinstance(start, float) else start) == after
        self.groups[name].reset(after)

    @precondition(lambda self: self.may_write and self.mourning)
    @rule(node=some, which=some, is_retried=st.booleans(), is_all=st.booleans())
    @step
    async def bring_out_the_dead(self, node: int, which: int, is_retried: bool, is_all: bool) -> None:
        """Try dead letters again, or forget them."""
        name = pick(self.mourning, which)
        group = self.groups[name]
        chosen = list(group.dead) if is_all else [pick(sorted(group.dead), which)]
        steward = pick(self.buses, node).groups
        change = steward.retry if is_retried else steward.discard
        assert await change(name, [*chosen, 1_000]) == len(chosen)
        for seq in chosen:
            if is_retried:
                group.revive(seq)
            else:
                del group.dead[seq]

    def _hold(
        self, stored: StoredGroup, group: model.Group, token: UUID, out: dict[int, Out], *, is_retry: bool
    ) -> Holding | None:
        if not out:
            return None
        self.holdings.append(Holding(stored, group, token, is_retry, dict(out), out))
        return self.holdings[-1]

    # --- the world ---

    @rule(seconds=durations)
    @step
    async def wait(self, seconds: int) -> None:
        self.move_clock(seconds * SECOND)

    @precondition(lambda self: self.may_write and self.log.events)
    @rule(
        node=some,
        age=st.sampled_from([None, 5.0, 20.0]),
        count=st.sampled_from([None, 1, 3, 8]),
        group_limit=st.sampled_from([None, None, 10.0]),
        dead_age=st.sampled_from([None, None, 20.0]),
    )
    @step
    async def retain(
        self, node: int, age: float | None, count: int | None, group_limit: float | None, dead_age: float | None
    ) -> None:
        await self._retain(node, age, count, group_limit, dead_age)

    async def _retain(
        self, node: int, age: float | None, count: int | None, group_limit: float | None, dead_age: float | None
    ) -> None:
        bus = pick(self.buses, node)
        settings = bus.settings.replace(
            retention_age=age, retention_count=count, retention_group_limit=group_limit, dead_letter_age=dead_age
        )
        await Retention(bus.node.store, settings).run_once()
        self.log.remove_expired()
        self.log.trim(
            age=_micros(age),
            count=count,
            group_limit=_micros(group_limit),
            floor=min((group.needs for group in self.groups.values()), default=None),
        )
        if dead_age is not None:
            for group in self.groups.values():
                group.forget_dead(self.clock.now - int(dead_age * SECOND))

    @precondition(lambda self: self.steps >= self.crashed_at + BETWEEN_CRASHES)
    @rule(node=some)
    @step
    async def crash(self, node: int) -> None:
        """A node is gone with its transactions and readers; it comes back, and others go on with what was read."""
        self.crashed_at = self.steps
        bus = pick(self.buses, node)
        lost = [transaction for transaction in self.transactions if transaction.bus is bus]
        self.transactions = [transaction for transaction in self.transactions if transaction.bus is not bus]
        await crash(bus, [transaction.work for transaction in lost])
        self.buses.remove(bus)
        self.down.append(bus)
        await self.start_nodes()
        for reading in self.readings:
            if reading.bus is bus:
                await self.resume(reading, pick(self.buses, node))

    # --- comparing ---

    async def compare(self) -> None:
        store = self.buses[0].node.store
        head = await store.head()
        assert (head.last_seq, head.first_seq) == (self.log.last_seq, self.log.first_seq)
        found = [(each.seq, _sent(each), each.created_at) for each in (await store.read(0, 1_000)).messages]
        assert found == [(each.seq, self._sent_at(each.seq), each.created_at) for each in self.log.live()]
        seen = await store.peek()
        assert seen.has_outbox == bool(self.log.outbox)
        assert seen.next_due == min((each.due for each in self.log.scheduled), default=None)
        assert [group.name for group in await store.groups.all()] == sorted(self.groups)
        for name, group in self.groups.items():
            await self.compare_group(name, group)

    async def compare_group(self, name: str, group: model.Group) -> None:
        groups = self.buses[0].node.store.groups
        stored = await groups.get(name)
        assert (stored.cursor, stored.lost, stored.is_paused) == (group.cursor, group.lost, group.is_paused)
        figures = await groups.figures(stored)
        waiting = sum(retry.token is None for retry in group.retries.values())
        lag = self.log.last_seq - group.cursor
        assert (figures.lag, figures.in_flight) == (lag, group.in_flight)
        assert (figures.retries, figures.dead) == (waiting, len(group.dead))
        assert [
            (each.seq, each.attempt, each.run_at, each.is_held, _types(each.errors))
            for each in await groups.retries(stored)
        ] == [
            (seq, retry.attempt, retry.due, retry.token is not None, retry.errors)
            for seq, retry in sorted(group.retries.items())
        ]
        assert [
            (_sent(each.message), each.attempt, each.died_at, _types(each.errors))
            for each in sorted(await groups.dead_letters(stored), key=lambda letter: letter.message.seq)
        ] == [
            (self._sent_at(seq), letter.attempt, letter.died_at, letter.errors)
            for seq, letter in sorted(group.dead.items())
        ]

    def _sent_at(self, seq: int) -> tuple[Any, ...]:
        sent = self.log.ever[seq].sent
        return sent.message_id, sent.topic, sent.payload, sent.key

    def _time(self, part: float) -> Any:
        return EPOCH + timedelta(microseconds=self._micros_of(part))

    def _micros_of(self, part: float) -> int:
        return self.began + int((self.clock.now - self.began) * part)

    def _place(self, start: Any, *, is_reader: bool = False) -> int:
        """The seq after which one reads who starts there; for a reader, everything behind it is owed or told."""
        if start == "now":
            return self.log.last_seq
        if start == "earliest":
            return self.log.first_seq - 1
        if isinstance(start, int):
            return start
        time = self._micros_of(start) if isinstance(start, float) else _unix(start)
        after = self.log.seek(time)
        return 0 if is_reader and 0 < after < self.log.first_seq else after


def _owner(node: int) -> str:
    return OWNERS[node % len(OWNERS)]


def _unix(time: Any) -> int:
    return int(time.timestamp() * 1_000_000)


def _micros(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * SECOND)


def pick(choice: Sequence[Any], number: int) -> Any:
    return choice[number % len(choice)]


def _sent(message: Message) -> tuple[Any, ...]:
    return message.message_id, message.topic, message.payload, message.key


def _types(errors: Sequence[dict[str, Any]]) -> list[str]:
    return [str(error["type"]) for error in errors]
