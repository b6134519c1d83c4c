"""Fan-out: what one node has appended reaches the other nodes over a stream, and they need not read the log for it.

    append ──▶ commit ──▶ run ──▶ stream ──▶ seam ──▶ dispatcher        on every node
                           ▲                   │ a gap that stays
                           └──── the log ◀─────┘

There is no leader. The node that has appended events knows them, so it pushes them right after its commit, as a run,
without reading; nobody else reads for it. Every node hears every run, its own too, in whatever order they come: seq
decides. The seam puts them in line. What comes twice is dropped, and what leaves a gap waits: the run in between is
on its way, as a rule, so no node waits for another before it pushes, and no push is ever refused.

What nobody pushed (what SQL moved from the outbox; what a node appended that died before its push, or has lost the
stream) shows as a gap, or as a head of the log that is ahead of the line. A node that has appended it itself reads it
at once; else whoever is first to lose its patience, which is random, reads it. It pushes what it has read, so that the
others need not. Two that do are harmless.

The stream is never needed. While it is away the dispatcher reads the log, as without it, and says so; it comes back by
itself. Nothing is read from its past: a node begins with what comes, and the log has what came before.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import UUID

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import EventBusError, quote
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.pipeline.run import RUN_BYTES, Run, cut_runs
from eventbus_fastapi.pipeline.seam import Seam
from eventbus_fastapi.store import Scan, Store
from eventbus_fastapi.telemetry.meters import Meters

logger = logging.getLogger(__name__)

TURN = 0.025
"""Seconds between two looks at what is missing."""
PATIENCE = (4, 12)
"""Looks in a row, at least and at most, at which it must be missing before the log is read for it. They are counted,
not timed: a node that was busy has not looked, and what it misses may have come meanwhile."""
MOST_AHEAD = 8_388_608
"""Bytes of runs beyond a gap with which patience ends at once."""
MOST_WAITING = 67_108_864
"""Bytes of runs beyond a gap, or not pushed yet, with which the stream counts as lost. Nothing else bounds them while
it takes less than is appended, or the log cannot be read for what is missing."""
KEPT_BYTES = 4_194_304
"""Encoded bytes of runs that are kept for a dispatcher which still reads what was before them."""
NOTIFIES_EVERY = 1.0
"""Seconds between two appends of which the database tells other nodes, while the stream does it. That is for those who
do not hear the stream; what they are not told of, they find by polling."""
PUSH_GRACE = 1.0
"""Seconds that a stop waits until what was appended last is pushed."""


class StreamUnavailable(EventBusError):
    """The stream cannot be reached, or does not do its work. The log can be read all the same."""

    code = "fanout.unavailable"
    status = 503
    retry = True


class StreamReader(Protocol):
    """What a stream calls, in the event loop; none of it waits."""

    def hear(self, encoded: bytes) -> None:
        """Take what somebody pushed."""

    def note_pushed(self, is_new: bool) -> None:
        """A push has been stored; not new: the stream had it already."""

    def note_lost(self, reason: str) -> None:
        """Nothing is heard any more: the stream must be opened again."""


class Stream(Protocol):
    """What carries runs to all nodes, those of the same epoch and no others.

    It may lose, repeat and reorder them: seq decides. Once it has called `note_lost` it calls nothing more.
    """

    name: str
    """Where it is, for the log; no secret is in it."""
    most_bytes: int
    """Bytes that one push may have. Known once it is open."""

    @property
    def is_idle(self) -> bool:
        """True while nothing is on its way: the next push, unless it is large, then waits for nothing."""

    async def open(self, epoch: UUID, reader: StreamReader) -> None:
        """Connect; when this returns, whatever is pushed from now on is heard. Raises StreamUnavailable."""

    async def push(self, encoded: bytes, push_id: str | None = None) -> None:
        """Hand over a run; return before it is stored. Of pushes with the same id the later ones may be left out.

        It waits while too many are not stored yet. Raises StreamUnavailable.
        """

    async def close(self) -> None:
        """Disconnect, after what was pushed is stored, if that takes no longer than a moment. Never raises."""


class Line(Protocol):
    """What it feeds: the dispatcher."""

    position: int
    bell: Bell
    on_read: Callable[[], None] | None

    @property
    def has_readers(self) -> bool:
        """True if somebody reads live."""

    def accept(self, messages: Sequence[Message], last_seq: int | None = None) -> None:
        """Take what follows `position`, up to a seq."""

    def feed_to(self, last_seq: int | None) -> None:
        """Read up to this seq, no further; None: read all."""


class Fanout:
    """See the module's docstring. `on_append` is called with how far the log is by what has come."""

    name = "fanout"

    def __init__(
        self,
        store: Store,
        line: Line,
        stream: Stream,
        *,
        page_size: int,
        meters: Meters,
        on_append: Callable[[int], None] = lambda last_seq: None,
    ) -> None:
        self.bell = Bell()
        self.is_alive = False
        """True while the node hears the stream; else it reads the log."""
        self.problem = "it was not opened yet"
        """Why it is not alive."""
        self._store = store
        self._line = line
        self._on_append = on_append
        self._stream = stream
        self._page_size = page_size
        self._meters = meters
        self._epoch = UUID(int=0)
        self._seam = Seam()
        self._outgoing: deque[Run] = deque()
        self._outgoing_bytes = 0
        self._kept: deque[Run] = deque()
        self._kept_bytes = 0
        self._head = 0  # how far the log is, as far as it was heard
        self._own_head = 0  # how far it is by what this node has appended and does not know
        self._missed_at = -1  # the front when something was found missing
        self._turns = 0
        self._next_turn = 0.0
        self._patience = 0
        self._failures = 0
        self._pauses = FullJitter(base=0.1, cap=2.0)
        line.on_read = self._feed

    # --- what the node tells ---

    async def append(self, messages: Sequence[Message]) -> None:
        """This node has appended events. They are pushed here where that waits for nothing: to wake a task for it would
        be a part of the time that an event takes.
        """
        if not self.is_alive:
            return
        if self._outgoing_bytes > MOST_WAITING:
            self.note_lost("it takes less than is appended")
            return
        for run in cut_runs(messages):
            self._outgoing.append(run)
            self._outgoing_bytes += run.size
            self._take(run)
        if self._outgoing_bytes < RUN_BYTES and self._stream.is_idle:
            try:
                await self._push()
            except StreamUnavailable as exc:
                self.note_lost(str(exc))
        if self._outgoing:
            self.bell.ring()

    def tell(self, last_seq: int, *, is_own: bool = False) -> None:
        """The log has reached a seq. Own: this node has appended that, and does not know what it is."""
        self._head = max(self._head, last_seq)
        if is_own:
            self._own_head = max(self._own_head, last_seq)
        if self.is_alive and self._head > self._seam.front and (is_own or self._missed_at < 0):
            self.bell.ring()

    # --- what the stream tells ---

    def hear(self, encoded: bytes) -> None:
        """See `StreamReader`."""
        run = Run.decode(encoded, self._epoch)
        if run is None:
            self._meters.fanout_runs["foreign"] += 1
        elif run.last <= self._seam.front:
            return  # its own, as a rule
        else:
            self._meters.fanout_runs["heard"] += 1
            self._take(run)
            if self._seam.waiting_bytes > MOST_WAITING:
                self._seam = Seam(self._seam.front)
                if self.is_alive:
                    self.note_lost("what is missing between its runs could not be read in time")
            elif self._seam.waiting and self._missed_at < 0:
                self.bell.ring()

    def note_pushed(self, is_new: bool) -> None:
        """See `StreamReader`."""
        self._meters.fanout_runs["pushed" if is_new else "duplicate"] += 1

    def note_lost(self, reason: str) -> None:
        """See `StreamReader`."""
        self._lose(reason)
        self.bell.ring()

    # --- life ---

    async def run_once(self) -> float | None:
        """Push what waits, and look for what is missing; or open the stream."""
        if not self.is_alive:
            return await self._open()
        try:
            await self._push()
        except StreamUnavailable as exc:
            self._lose(str(exc))
            return 0
        return await self._mend()

    async def close(self) -> None:
        """Push what waits, if that takes no longer than a moment, and disconnect."""
        try:
            async with asyncio.timeout(PUSH_GRACE):
                if self.is_alive:
                    await self._push()
        except (StreamUnavailable, TimeoutError):
            pass  # others read it
        self.is_alive = False
        self._store.notifies_every = 0.0
        self._line.feed_to(None)
        await self._stream.close()

    async def _open(self) -> float:
        """Open the stream. The log is looked at once everything new is heard, so nothing is missed between."""
        await self._stream.close()
        try:
            self._epoch = (await self._store.head()).epoch
            self._seam = Seam()
            self.problem = ""
            await self._stream.open(self._epoch, self)
        except StreamUnavailable as exc:
            self._lose(str(exc))
            return self._pauses.delay(self._failures)
        head = await self._store.head()
        if self.problem:  # lost meanwhile
            return self._pauses.delay(self._failures)
        if self._failures:
            logger.info("fan-out over %s is back after %d failures", self._stream.name, self._failures)
        self._failures = 0
        self.is_alive = True
        self._store.notifies_every = NOTIFIES_EVERY
        self._give(self._seam.move_to(head.last_seq))
        return 0

    def _lose(self, reason: str) -> None:
        """Have the dispatcher read the log from here on."""
        if self._failures == 0:
            logger.warning(
                "fan-out over %s is away, live events are read from the database: %s", self._stream.name, quote(reason)
            )
        self._failures += 1
        self._meters.fanout_failures += 1
        self.is_alive = False
        self.problem = reason or "it is away"
        self._store.notifies_every = 0.0
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._forget_kept()
        self._missed_at = -1
        self._line.feed_to(None)

    # --- the line ---

    def _take(self, run: Run) -> None:
        joined = self._seam.add(run)
        if self.is_alive:
            self._give(joined)

    def _give(self, runs: Sequence[Run]) -> None:
        """Give the dispatcher what is next in line."""
        if self._line.has_readers:
            for run in runs:
                self._kept.append(run)
                self._kept_bytes += run.size
            self._feed()
        else:
            self._forget_kept()
        self._line.feed_to(self._seam.front)
        self._on_append(self._seam.front)

    def _feed(self) -> None:
        """Give what is kept to the dispatcher, if it has come that far. It reads what was before by itself."""
        while self._kept:
            run = self._kept[0]
            if run.last > self._line.position:
                if run.first > self._line.position + 1:
                    break
                messages = run.after(self._line.position)
                if messages is None:
                    break
                self._line.accept(messages, run.last)
                self._meters.fanout_given += len(messages)
            self._kept.popleft()
            self._kept_bytes -= run.size
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popleft().size

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0

    # --- pushing ---

    async def _push(self) -> None:
        while self._outgoing and self.is_alive:
            run = self._next_run()
            await self._stream.push(run.encode(self._epoch, self._stream.most_bytes))

    def _next_run(self) -> Run:
        """Take what waits, as one run as far as it is consecutive and fits."""
        first = run = self._outgoing.popleft()
        messages = list(first.messages or ())
        size = first.size
        while self._outgoing and self._outgoing[0].first == run.last + 1 and size < RUN_BYTES:
            run = self._outgoing.popleft()
            messages += run.messages or ()
            size += run.size
        self._outgoing_bytes -= size
        return first if run is first else Run(first.first, run.last, messages)

    # --- what is missing ---

    @property
    def _missing_to(self) -> int:
        """The last seq that is missing next in line; the front, if nothing is."""
        gap_to = self._seam.gap_to
        return max(self._head, self._seam.front) if gap_to is None else gap_to

    async def _mend(self) -> float | None:
        """Read from the log what is missing, once patience is over, and push it."""
        front, missing_to = self._seam.front, self._missing_to
        if missing_to == front:
            self._missed_at = -1
            return None
        if front >= self._own_head and self._seam.waiting_bytes < MOST_AHEAD and self._is_patient(front):
            return TURN
        self._missed_at = -1
        scan = await self._store.read(front, self._page_size)
        if scan.first != front + 1 and (first_seq := (await self._store.head()).first_seq) > front + 1:
            if self.is_alive:
                self._give(self._seam.move_to(first_seq - 1))  # retention was faster: the dispatcher will see that
            return 0
        if self.is_alive:
            # At the end of the log everything up to its head was looked at, also what a TTL has removed.
            await self._add(scan, max(scan.scanned_to, missing_to) if scan.is_last else scan.scanned_to)
        return 0

    def _is_patient(self, front: int) -> bool:
        """Count a look; say whether to look again before the log is read."""
        now = asyncio.get_running_loop().time()
        if front != self._missed_at:  # it moves: what is missing is on its way
            self._missed_at, self._turns, self._next_turn = front, 0, now + TURN
            self._patience = random.randint(*PATIENCE)  # noqa: S311 - nobody gains by guessing it
        elif now >= self._next_turn:
            self._turns, self._next_turn = self._turns + 1, now + TURN
        return self._turns < self._patience

    async def _add(self, scan: Scan, last: int) -> None:
        """Take what was read, up to a seq, and push it; without what has come meanwhile."""
        front = self._seam.front
        if self._seam.gap_to is not None:
            last = min(last, self._seam.gap_to)
        if last <= front:
            return
        messages = [message for message in scan.messages if front < message.seq <= last]
        self._meters.fanout_mended += len(messages)
        for run in cut_runs(messages, front + 1, last):
            self._take(run)
            push_id = f"{run.first}-{run.last}"
            try:
                await self._stream.push(run.encode(self._epoch, self._stream.most_bytes), push_id)
            except StreamUnavailable as exc:
                self._lose(str(exc))
                return
