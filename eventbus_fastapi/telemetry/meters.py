"""Meters: the numbers of one node. Its stages add to them; nothing here reads a clock, waits, or calls anybody.

Every label has few values, whatever clients send: ways of publishing and delivering, names of queues, outcomes, stages
and close codes are all the program's or the bus's own. Topics are counted only by the patterns that a setting names.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.topics import PatternIndex

Way = Literal["log", "outbox", "live"]
"""How an event was published: by the bus's own commit, in a transaction of the caller's, or without storage."""
VIA = ("websocket", "stream", "worker", "local")
"""How an event may be delivered: to a client, to a handler, or to a loop in this process."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of what is measured, seconds."""
ATTEMPT_BUCKETS = (*BUCKETS, 30.0, 60.0, 300.0, 1_800.0)
"""The same for handlers, which may take long."""
TOPICS_CACHED = 10_000


class Histogram:
    """How often something took how long."""

    def __init__(self, bounds: Sequence[float] = BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, not added up; the last is for what took longer than any bound."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Backlog(NamedTuple):
    """What an outbox in another database holds."""

    waiting: int
    """Events that are committed and not answered by the bus."""
    oldest: float
    """Seconds since the oldest of them was published; 0: none waits."""
    refused: int
    """Events that the bus has refused for good, and nobody has looked after."""


class Connected(Protocol):
    """A client's connection, as far as it is counted."""

    @property
    def kind(self) -> str:
        """`websocket` or `stream`."""

    @property
    def queued_bytes(self) -> int:
        """What was sent to the client and has not left the process yet."""


class Meters:
    """See the module's docstring.

    Args:
        topics: patterns by which published events are counted as well.
    """

    def __init__(self, topics: Iterable[str] = ()) -> None:
        self.published: Counter[Way] = Counter()
        self.published_by_topic: Counter[str] = Counter(dict.fromkeys(topics, 0))
        """By pattern; an event counts for each that it matches."""
        self.duplicates = 0
        """Events that were published again, so that nothing was stored."""
        self.publish_failures = 0
        """Events of which it is not known whether they were stored, or that the database refused."""
        self.delivered: Counter[str] = Counter()
        """Events, once for each reader, by one of `VIA`."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Deliveries of groups, by queue (empty: a member over WebSocket) and outcome, as they were written."""
        self.forwarded: Counter[str] = Counter()
        """Events that this process carried from an outbox in another database to the bus, by the outbox."""
        self.refused: Counter[str] = Counter()
        """Those of them that the bus refused for good."""
        self.backlogs: dict[str, Backlog] = {}
        """How those outboxes are that this process forwards, a few seconds ago; one whose database is away is not
        there."""
        self.claims = 0
        """Claims that took events, or moved a group over what it does not read."""
        self.missed_claims = 0
        """Claims that came too late: another node was faster."""
        self.fanout_runs: Counter[str] = Counter()
        """Runs of the fan-out: pushed, duplicate (the stream had it already), heard (of others), foreign (none of this
        log)."""
        self.fanout_given = 0
        """Events that live readers got from the fan-out, without a read of the log."""
        self.fanout_mended = 0
        """Events that this node read from the log for the fan-out, because nobody had pushed them."""
        self.fanout_failures = 0
        """How often the fan-out was lost, or could not be opened."""
        self.failures: Counter[str] = Counter()
        """Runs of a stage that failed, by its name; it went on after a pause."""
        self.ingested: Counter[tuple[str, str]] = Counter()
        """Messages of brokers, by their ingest and what became of them: `stored`, `duplicate`, `refused`."""
        self.ingesting: dict[str, bool] = {}
        """Whether an ingest has its broker, by its name."""
        self.connections: set[Connected] = set()
        """Open now."""
        self.ended: Counter[str] = Counter()
        """Connections by why they ended: a close code of the bus, or `left` where the client went."""
        self.commit = Histogram()
        """Commits of what was published."""
        self.sequence = Histogram()
        """Steps of the sequencer that moved something."""
        self.settle = Histogram()
        """Commits of outcomes."""
        self.attempts: dict[str, Histogram] = {}
        """Attempts of handlers, by queue."""
        self.relayed: Counter[tuple[str, str]] = Counter()
        """Events of relays, by relay and what became of them: `confirmed`, `refused` (dead letters), and `resent`: each
        time that one was sent again because its confirm was lost."""
        self.brokers: dict[str, bool] = {}
        """Whether the broker of each relay is there, by relay."""
        self._patterns: PatternIndex[str] = PatternIndex()
        for pattern in self.published_by_topic:
            self._patterns.add(pattern, pattern)
        self._by_topic: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def note_published(self, way: Way, drafts: Sequence[Draft]) -> None:
        """Count events. May be called in any thread."""
        with self._lock:
            self.published[way] += len(drafts)
            if self.published_by_topic:
                for draft in drafts:
                    self.published_by_topic.update(self._match(draft.topic))

    def note_stored(self, receipts: Sequence[Receipt], drafts: Sequence[Draft], *, is_all_new: bool) -> None:
        """Count what the bus's own commit has stored, given the receipt of each draft."""
        new = drafts
        if not is_all_new:
            new = [draft for draft, receipt in zip(drafts, receipts, strict=True) if not receipt.duplicate]
            self.duplicates += len(drafts) - len(new)
        self.note_published("log", new)

    def note_ended(self, connection: Connected, why: str) -> None:
        """Count a connection as ended, if it was open."""
        if connection in self.connections:
            self.connections.discard(connection)
            self.ended[why] += 1

    def note_attempt(self, queue: str, seconds: float) -> None:
        histogram = self.attempts.get(queue)
        if histogram is None:
            histogram = self.attempts[queue] = Histogram(ATTEMPT_BUCKETS)
        histogram.observe(seconds)

    def _match(self, topic: str) -> tuple[str, ...]:
        matched = self._by_topic.get(topic)
        if matched is None:
            if len(self._by_topic) >= TOPICS_CACHED:
                self._by_topic.clear()
            matched = self._by_topic[topic] = tuple(self._patterns.match(topic))
        return matched
