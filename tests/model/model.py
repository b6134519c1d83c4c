"""The bus as lists and dicts: what it promises, in the fewest words that run.

It has no database, no nodes and no tasks, and it does one thing after another. Times are unix microseconds, and `now`
is moved by whoever drives it. `machine` does the same to a real bus, and compares.

Where the bus has a choice, the model does not choose: it is told what the bus did and says whether that was allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple
from uuid import UUID

OUT_ALONE = 2
"""After so many attempts in a row whose holder was not heard of again, an event is handed out alone."""


class Sent(NamedTuple):
    """An event as somebody publishes it; durations are microseconds."""

    message_id: UUID
    topic: str
    payload: int
    key: str | None = None
    ttl: int | None = None
    delay: int | None = None


class Placed(NamedTuple):
    """An event with its place in the log."""

    seq: int
    sent: Sent
    created_at: int
    expires_at: int | None


class Waiting(NamedTuple):
    """An event that has no seq yet; `number` says who was inserted first."""

    due: int
    number: int
    sent: Sent


def matches(pattern: str, topic: str) -> bool:
    """Say whether a pattern matches: `*` is exactly one segment, `#` is zero or more."""
    return _match(pattern.split("."), topic.split("."))


def _match(pattern: list[str], topic: list[str]) -> bool:
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(_match(pattern[1:], topic[start:]) for start in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and _match(pattern[1:], topic[1:])


def matches_any(patterns: Iterable[str], topic: str) -> bool:
    return any(matches(pattern, topic) for pattern in patterns)


class Log:
    """What is committed: the log, and what waits for a place in it."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.last_seq = 0
        self.first_seq = 1
        self.events: dict[int, Placed] = {}
        self.ever: dict[int, Placed] = {}
        """Every event that has had a seq, also where it is gone by now."""
        self.processed: dict[int, int] = {}
        """When an event was marked processed, by seq."""
        self.outbox: list[Waiting] = []
        self.scheduled: list[Waiting] = []
        self._number = 0

    # --- publishing ---

    def publish(self, events: Sequence[Sent]) -> list[tuple[int | None, bool]]:
        """All of them in one commit, behind what the outbox holds; return for each its seq, and whether it is a
        duplicate. A delayed one waits, unless its message_id is in the log or waits already; the immediate go first.
        """
        self.sequence()
        answers: dict[int, tuple[int | None, bool]] = {
            place: self._place(sent) for place, sent in enumerate(events) if sent.delay is None
        }
        for place, sent in enumerate(events):
            if sent.delay is not None:
                answers[place] = self._schedule(sent)
        return [answers[place] for place in range(len(events))]

    def insert(self, sent: Sent) -> Waiting:
        """What a transaction inserts. It exists with the commit: see `commit`."""
        self._number += 1
        return Waiting(self.now + (sent.delay or 0), self._number, sent)

    def commit(self, inserted: Iterable[Waiting]) -> None:
        for waiting in inserted:
            (self.outbox if waiting.sent.delay is None else self.scheduled).append(waiting)

    def promote(self) -> int:
        """What is due enters the outbox, in the order of the times, and of the inserts where these are the same."""
        due = sorted(waiting for waiting in self.scheduled if waiting.due <= self.now)
        self.scheduled = [waiting for waiting in self.scheduled if waiting.due > self.now]
        for _, _, sent in due:
            self.outbox.append(self.insert(sent._replace(delay=None)))
        return len(due)

    def sequence(self) -> int:
        """The outbox enters the log, in the order of the inserts; what is there already is dropped."""
        moved = sorted(self.outbox, key=lambda waiting: waiting.number)
        self.outbox = []
        for waiting in moved:
            self._place(waiting.sent)
        return len(moved)

    def _place(self, sent: Sent) -> tuple[int, bool]:
        if (first := self.seq_of(sent.message_id)) is not None:
            return first, True
        self.last_seq += 1
        expires_at = None if sent.ttl is None else self.now + sent.ttl
        self.ever[self.last_seq] = self.events[self.last_seq] = Placed(self.last_seq, sent, self.now, expires_at)
        return self.last_seq, False

    def _schedule(self, sent: Sent) -> tuple[int | None, bool]:
        if (first := self.seq_of(sent.message_id)) is not None:
            return first, True
        if any(waiting.sent.message_id == sent.message_id for waiting in [*self.scheduled, *self.outbox]):
            return None, True
        self.scheduled.append(self.insert(sent))
        return None, False

    def seq_of(self, message_id: UUID) -> int | None:
        return next((seq for seq, placed in self.events.items() if placed.sent.message_id == message_id), None)

    # --- reading ---

    def has_expired(self, placed: Placed) -> bool:
        return placed.expires_at is not None and placed.expires_at <= self.now

    def live(self, after: int = 0, patterns: Sequence[str] = ("#",)) -> list[Placed]:
        """What a reader after a seq is to see, now."""
        return [
            placed
            for seq, placed in self.events.items()
            if seq > after and matches_any(patterns, placed.sent.topic) and not self.has_expired(placed)
        ]

    def seek(self, time: int) -> int:
        """The seq after which everything entered the log at this time or later."""
        earlier = [seq for seq, placed in self.events.items() if seq >= self.first_seq and placed.created_at < time]
        return max(earlier, default=self.first_seq - 1)

    def process(self, seq: int) -> bool:
        """Mark it processed; False: it is not in the log."""
        if seq in self.events:
            self.processed.setdefault(seq, self.now)
        return seq in self.events

    # --- removing ---

    def remove_expired(self) -> None:
        """A TTL leaves a hole, which is no gap."""
        for placed in list(self.events.values()):
            if self.has_expired(placed):
                self._remove(placed.seq)

    def trim(self, *, age: int | None, count: int | None, group_limit: int | None, floor: int | None) -> None:
        """The oldest go, and the log begins behind them; but not what a group needs (from `floor` on), unless it is
        older than the limit.
        """
        for seq, placed in sorted(self.events.items()):
            is_old = age is not None and placed.created_at < self.now - age
            is_one_too_many = count is not None and seq <= self.last_seq - count
            is_needed = floor is not None and seq >= floor
            is_overdue = group_limit is not None and placed.created_at < self.now - group_limit
            if not (is_old or is_one_too_many) or (is_needed and not is_overdue):
                break
            self._remove(seq)
            self.first_seq = seq + 1

    def _remove(self, seq: int) -> None:
        del self.events[seq]
        self.processed.pop(seq, None)


class Reader:
    """What a subscription may be given: every live event after a place that matches, once, in order, or a gap."""

    def __init__(self, log: Log, patterns: Sequence[str], after: int, replay_ends: int, began: int | None) -> None:
        self.log = log
        self.patterns = patterns
        self.told = after
        """Everything up to here was shown, or need not be."""
        self._replay_ends = replay_ends
        self._began = began  # what was processed before is left out of the replay; None: nothing is

    def show(self, seq: int) -> None:
        placed = self.log.ever[seq]
        assert matches_any(self.patterns, placed.sent.topic), f"{placed} does not match {self.patterns}"
        assert not self._is_processed(seq), f"{placed} was processed before"
        assert not self.log.has_expired(placed), f"{placed} has expired"
        self.pass_to(seq - 1)
        assert seq > self.told, f"seq {seq} came after {self.told} was told"
        self.told = seq

    def skip(self, first: int, last: int) -> None:
        """A gap: all of it is gone by retention, none of it was shown."""
        self.pass_to(first - 1)
        assert first > self.told, f"the gap from {first} came after {self.told} was told"
        assert first <= last < self.log.first_seq, f"a gap to {last}, and the log begins at {self.log.first_seq}"
        self.told = last

    def pass_to(self, seq: int) -> None:
        """Nothing up to here is left out silently."""
        missing = [each for each in range(self.told + 1, min(seq, self.log.last_seq) + 1) if self.is_owed(each)]
        assert not missing, f"nothing was said of {missing}, which match {self.patterns}"
        self.told = max(self.told, seq)

    def is_owed(self, seq: int) -> bool:
        placed = self.log.ever[seq]
        return (
            matches_any(self.patterns, placed.sent.topic)
            and not self.log.has_expired(placed)
            and not self._is_processed(seq)
        )

    def _is_processed(self, seq: int) -> bool:
        if self._began is None or seq > self._replay_ends:
            return False
        return seq in self.log.processed and self.log.processed[seq] < self._began


@dataclass
class Lease:
    """What somebody has claimed of the log and not settled."""

    token: UUID
    owner: str
    until: int
    pending: set[int]
    keyed: set[int] | None
    """Those whose keys it holds, too; None: the group was never ordered by key while it had this in flight."""


@dataclass
class Retry:
    """An event that waits for an attempt, or is out for it: then it has a token and an owner, and is due when the lease
    ends.
    """

    placed: Placed
    due: int
    attempt: int = 0
    errors: list[str] = field(default_factory=list)
    losses: int = 0
    token: UUID | None = None
    owner: str = ""


class Dead(NamedTuple):
    placed: Placed
    attempt: int
    errors: list[str]
    died_at: int


class Settled(NamedTuple):
    """What a holder says has become of an event."""

    seq: int
    outcome: str
    """ack, retry, release or reject."""
    attempt: int
    errors: list[str]
    delay: int = 0


@dataclass
class Group:
    """A durable reader. Each event that matches is at one of these: behind the cursor, in one lease, a retry, a dead
    letter, or done.
    """

    log: Log
    cursor: int
    patterns: list[str]
    ordered_by: str | None
    """key, log or None"""
    max_attempts: int
    max_in_flight: int | None
    is_paused: bool = False
    lost: int = 0
    leases: dict[UUID, Lease] = field(default_factory=dict)
    retries: dict[int, Retry] = field(default_factory=dict)
    dead: dict[int, Dead] = field(default_factory=dict)

    def declare(
        self, patterns: list[str], ordered_by: str | None, max_attempts: int, max_in_flight: int | None
    ) -> None:
        self.patterns, self.ordered_by = patterns, ordered_by
        self.max_attempts, self.max_in_flight = max_attempts, max_in_flight
        for lease in self.leases.values():
            if lease.keyed is None and ordered_by == "key":
                lease.keyed = lease.pending & self.log.events.keys()  # nobody knows the keys of what is gone

    # --- figures ---

    @property
    def needs(self) -> int:
        """The first seq that must stay in the log for it."""
        return min([self.cursor + 1, *(min(lease.pending) for lease in self.leases.values())])

    @property
    def in_flight(self) -> int:
        held = sum(retry.token is not None for retry in self.retries.values())
        return held + sum(len(lease.pending) for lease in self.leases.values())

    def room(self, most: int) -> int:
        """How many of so many may be taken: a lease that has ended holds nothing back."""
        if self.max_in_flight is None:
            return most
        leased = sum(len(lease.pending) for lease in self.leases.values() if lease.until > self.log.now)
        held = sum(self._is_out(retry) for retry in self.retries.values())
        return max(0, min(most, self.max_in_flight - leased - held))

    def _is_out(self, retry: Retry) -> bool:
        return retry.token is not None and retry.due > self.log.now

    def _is_with(self, owner: str, retry: Retry) -> bool:
        return self._is_out(retry) and retry.owner == owner

    def has_turn(self, owner: str) -> bool:
        """Where it is ordered by the log, all that is in flight is one owner's; a lease that has ended is, until it is
        rescued.
        """
        holders = {lease.owner for lease in self.leases.values()}
        holders |= {retry.owner for retry in self.retries.values() if self._is_out(retry)}
        return self.ordered_by != "log" or holders <= {owner}

    # --- handing out ---

    def pass_over_gap(self) -> None:
        """It counts what retention took before it had read it."""
        gone = max(0, self.log.first_seq - 1 - self.cursor)
        self.lost += gone
        self.cursor += gone

    def claim(self, limit: int, token: UUID, owner: str, until: int) -> list[int]:
        """The next events that match are somebody's; return their seqs. Where it is ordered by key, those whose key is
        taken wait instead, with no attempt begun; by the log, all wait for another who has the turn, and for retries.
        """
        found = self.log.live(self.cursor, self.patterns)
        is_first = self.has_turn(owner) and all(self._is_with(owner, retry) for retry in self.retries.values())
        if found and self.ordered_by == "log" and not is_first:
            return []
        room = self.room(min(limit, len(found)))
        if found and room == 0:
            return []
        is_all = len(found) < limit and room == len(found)
        taken = found[:room]
        self.cursor = self.log.last_seq if is_all else taken[-1].seq
        free: set[int] = set()
        blocked = self._keys_in_flight() | {retry.placed.sent.key for retry in self.retries.values()}
        for placed in taken:
            key = placed.sent.key
            if self.ordered_by == "key" and key is not None and key in blocked:
                self.retries.setdefault(placed.seq, Retry(placed, self.log.now))
                continue
            free.add(placed.seq)
            if self.max_in_flight is not None:
                blocked.add(key)
        if free:
            self.leases[token] = Lease(token, owner, until, free, set(free) if self.ordered_by == "key" else None)
        return sorted(free)

    def hold(
        self, held: dict[int, tuple[int, list[str]]], limit: int, token: UUID | None, owner: str, until: int
    ) -> None:
        """Somebody was given the retries `held` (seq: attempt and errors): were they due, in their turn, and all?

        What has no attempt left dies now or at a later look, and what has expired goes.
        """
        due = {seq: retry for seq, retry in self.retries.items() if retry.due <= self.log.now}
        ended = {seq for seq, retry in due.items() if self._has_ended(retry)}
        turns = [seq for seq in self._turns(owner) if seq not in ended]
        alive = [seq for seq in turns if self._is_free(seq, set())]
        freed = [seq for seq in turns if self._is_free(seq, ended)]  # the keys of what dies first are free then
        if not held.keys() <= set(alive) or not alive:
            alive = freed
        room = 0 if self.is_paused else self.room(limit)
        assert len(held) <= room, f"{len(held)} were held, with room for {room}"
        assert held.keys() <= set(alive), f"{sorted(held)} were held, due were {alive}"
        assert held or not alive or not room, f"none were held, due were {alive}"
        out_alone = [seq for seq in held if self._is_alone(due[seq])]
        assert not out_alone or len(held) == 1, f"{out_alone} were held with others"
        in_turn = [seq for seq in alive if not self._is_alone(due[seq])][: len(held)]
        is_in_turn = sorted(held) == sorted(in_turn) or alive is freed
        assert out_alone or is_in_turn, f"{sorted(held)} were held, and it was the turn of {in_turn}"
        for seq, (attempt, errors) in held.items():
            retry = due[seq]
            retry.losses = self._losses(retry)
            retry.errors = [*retry.errors, *(["LeaseLost"] if retry.token else [])]
            retry.attempt, retry.due, retry.token = retry.attempt + 1, until, token
            retry.owner = owner
            assert (attempt, errors) == (retry.attempt, retry.errors), f"seq {seq} came as attempt {attempt}: {errors}"

    def exhaust(self, dead: Iterable[int], waiting: Iterable[int]) -> None:
        """A look has found these retries dead, or still there; all others of them are as they were."""
        for seq in [seq for seq in dead if seq in self.retries and seq not in waiting]:
            retry = self.retries[seq]
            assert retry.due <= self.log.now, f"seq {seq} died before it was due"
            assert retry.attempt >= self.max_attempts, f"seq {seq} died with attempts left"
            errors = [*retry.errors, *(["LeaseLost"] if retry.token else [])]
            self.bury(self.retries.pop(seq).placed, retry.attempt, errors)
        for seq in self.retries.keys() - set(waiting):
            assert self.log.has_expired(self.retries[seq].placed), f"the retry of seq {seq} is gone"
            del self.retries[seq]

    def _turns(self, owner: str) -> list[int]:
        """What is due, in the order in which it is handed out. In the order of the log, what is not due holds up what
        is behind it.
        """
        if self.ordered_by != "log":
            return [
                seq for _, seq in sorted((retry.due, seq) for seq, retry in self.retries.items() if self._is_due(seq))
            ]
        waiting = sorted(seq for seq, retry in self.retries.items() if not self._is_with(owner, retry))
        return list(takewhile(self._is_due, waiting)) if self.has_turn(owner) else []

    def _is_due(self, seq: int) -> bool:
        return self.retries[seq].due <= self.log.now

    def _is_alone(self, retry: Retry) -> bool:
        return self.ordered_by != "log" and self._losses(retry) >= OUT_ALONE

    def _has_ended(self, retry: Retry) -> bool:
        return retry.attempt >= self.max_attempts or self.log.has_expired(retry.placed)

    def _losses(self, retry: Retry) -> int:
        return retry.losses + (retry.token is not None)

    def _is_free(self, seq: int, ended: set[int]) -> bool:
        """Whether its key lets it go: one event of a key is out at a time, in the order of the log."""
        key = self.retries[seq].placed.sent.key
        if self.ordered_by != "key" or key is None:
            return True
        earlier = {each for each, retry in self.retries.items() if each < seq and retry.placed.sent.key == key}
        return earlier <= ended and key not in self._keys_in_flight()

    def _keys_in_flight(self) -> set[str | None]:
        pending = [seq for lease in self.leases.values() for seq in lease.pending & (lease.keyed or set())]
        return {self.log.ever[seq].sent.key for seq in pending} - {None}

    # --- settling ---

    def settle_claimed(self, token: UUID, settled: Sequence[Settled]) -> set[int]:
        """Events of a range have ended; return those that were no longer the holder's, for whom nothing changed."""
        lease = self.leases.get(token)
        if lease is None:
            return {each.seq for each in settled}
        lease.pending -= {each.seq for each in settled}
        if not lease.pending:
            del self.leases[token]
        for each in settled:
            if each.outcome in ("retry", "release"):
                self._try_again(each.seq, each.attempt, each.errors, each.delay)
            elif each.outcome == "reject":
                self.bury(self._kept(each.seq), each.attempt, each.errors)
        return set()

    def settle_held(self, token: UUID, settled: Sequence[Settled]) -> set[int]:
        """The same, of retries."""
        mine = [each for each in settled if each.seq in self.retries and self.retries[each.seq].token == token]
        for each in mine:
            retry = self.retries[each.seq]
            if each.outcome in ("retry", "release"):
                due = self.log.now + each.delay
                self.retries[each.seq] = Retry(retry.placed, due, each.attempt, each.errors)
            else:
                del self.retries[each.seq]
                if each.outcome == "reject":
                    self.bury(retry.placed, each.attempt, each.errors)
        return {each.seq for each in settled} - {each.seq for each in mine}

    def bury(self, placed: Placed | None, attempt: int, errors: list[str]) -> None:
        if placed is not None:
            self.dead.pop(placed.seq, None)  # of an earlier life of the group
            self.dead[placed.seq] = Dead(placed, attempt, errors, self.log.now)

    def rescue(self) -> None:
        """What leases held that have ended is due again; the attempt counts."""
        for lease in [lease for lease in self.leases.values() if lease.until <= self.log.now]:
            del self.leases[lease.token]
            for seq in sorted(lease.pending):
                self._try_again(seq, 1, ["LeaseLost"], 0, losses=1)

    def _try_again(self, seq: int, attempt: int, errors: list[str], delay: int, *, losses: int = 0) -> None:
        if seq in self.retries:
            return  # it was a dead letter, and was revived while the group read it again
        if (placed := self._kept(seq)) is not None:
            self.retries[seq] = Retry(placed, self.log.now + delay, attempt, errors, losses)

    def _kept(self, seq: int) -> Placed | None:
        """Return the event as the log has it, or count it as lost. What a TTL took is no loss."""
        placed = self.log.events.get(seq)
        if placed is None and seq < self.log.first_seq:
            self.lost += 1
        return placed

    # --- what operators do ---

    def reset(self, after: int) -> None:
        self.cursor = after
        self.leases.clear()
        self.retries.clear()

    def revive(self, seq: int) -> bool:
        """A dead letter is tried again, with all its attempts and without its TTL."""
        if seq not in self.dead:
            return False
        letter = self.dead.pop(seq)
        placed = letter.placed._replace(expires_at=None)
        self.retries[seq] = Retry(placed, self.log.now, 0, letter.errors)
        return True

    def forget_dead(self, before: int) -> None:
        self.dead = {seq: letter for seq, letter in self.dead.items() if letter.died_at >= before}
