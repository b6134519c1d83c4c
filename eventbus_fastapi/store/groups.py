"""The groups of a log: how far each has read, what of it is in flight, what waits for another attempt, what is dead.

A group is a cursor. To claim, a node moves the cursor from where it believes it to be to the last event that it takes,
and writes one lease with the seqs that match; whoever finds the cursor elsewhere takes nothing. So no two nodes ever
hold the same event, nothing is written per event, and publishing is not touched.

    claimed ──▶ lease ──settle──▶ gone (acked or discarded)
                  │ expires, or an event of it is to be tried again
                  ▼
                retry ──hold──▶ held ──settle──▶ gone | retry again | dead letter
                  ▲               │ expires: the attempt was lost
                  └───────────────┘

A lease carries a token, and a retry that is held does; whoever settles or renews names it. Once somebody else has taken
over, the token is another, and the old one changes nothing. An attempt is counted when it begins, so an event that
kills its process ends as a dead letter, too. All times are the database's.

In a group that is ordered by key, an event whose key is in flight or waits goes to the retries with no attempt begun,
and of each key only the first that is not settled is handed out.

In a group that is ordered by the log, all that is in flight is one owner's, who may claim further ranges meanwhile.
Another takes over once nothing is left of that: the lease was settled or given back, or has ended and was rescued. What
waits among the retries comes first, in the order of the log, and nothing new is claimed before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import LeaseLost, NotFound, quote
from eventbus_fastapi.events import Message
from eventbus_fastapi.store.database import AnyRow
from eventbus_fastapi.store.group import (
    Again,
    Claim,
    DeadLetter,
    Death,
    Ending,
    Group,
    Held,
    HeldRetry,
    Settlement,
    errors_text,
)
from eventbus_fastapi.store.group_registry import GroupRegistry, group_of, patterns_text
from eventbus_fastapi.store.group_statements import MESSAGE_FIELDS
from eventbus_fastapi.store.limits import Limits, Room
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.seqs import decode_seqs, encode_seqs
from eventbus_fastapi.store.statements import Query

RESCUED = 10
"""Expired leases that one transaction turns into retries."""
MOST_LOSSES = 2
"""After so many attempts in a row that ended without a word, an event is handed out alone: it may be what kills those
who hold it, and its neighbours' attempts would be counted with its own."""


class Groups(GroupRegistry):
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        super().__init__(store)
        self.limits = Limits(store)
        self.given_up = 0
        """Events that became dead letters here because their last attempts ended without a word."""

    # --- claiming ---

    async def claim(
        self, group: Group, messages: Sequence[Message], *, up_to: int, owner: str, lease: float
    ) -> Claim | None:
        """Move the cursor from where `group` has it to `up_to`, and hold what matches in between.

        Returns the claim; of a group ordered by key, without what has to wait; of one with a limit, as far as that
        goes; of one ordered by the log, nothing while another has the turn or retries come first. None: the cursor is
        elsewhere, the group reads other patterns than `group` says, in another order or with other limits, is paused
        or gone; nothing has changed.
        """
        token = uuid4()

        async def work(connection: AsyncConnection) -> Claim | None:
            reached = up_to
            claimed = messages
            is_log = group.ordered_by == "log"
            if (group.is_limited or is_log) and messages:
                # Before anything is looked at: what another node claims at the same time counts, too.
                await connection.execute(self.sql.lock_group, {"group_id": group.id})
            if is_log and messages and any(await self._log_is_taken(connection, group.id, owner)):
                return Claim(token, (), group.cursor)
            if group.is_limited and messages:
                room = await self.limits.room(connection, group, len(messages))
                if room.events == 0:
                    return Claim(token, (), group.cursor)
                if room.events < len(messages):
                    claimed = messages[: room.events]
                    reached = claimed[-1].seq
            parameters = {**expected(group), "cursor": reached}
            if (await connection.execute(self.sql.move_cursor, parameters)).rowcount != 1:
                return None
            if group.ordered_by == "key":
                claimed = await self._hold_back(connection, group, claimed)
            seqs = tuple(message.seq for message in claimed)
            await self.limits.grant(connection, group, len(seqs))
            if seqs:
                await connection.execute(
                    self.sql.add_lease,
                    {
                        "token": token,
                        "group_id": group.id,
                        "owner": owner,
                        "first_seq": seqs[0],
                        "pending": encode_seqs(seqs),
                        "key_seqs": _keys(claimed) if group.ordered_by == "key" else None,
                        "duration": micros(lease),
                    },
                )
            return Claim(token, seqs, reached)

        return await self._store.transact(work)

    async def _hold_back(
        self, connection: AsyncConnection, group: Group, messages: Sequence[Message]
    ) -> Sequence[Message]:
        """Put those whose key is taken among the retries; return the others. The group's row is locked.

        In a group with a limit one of them takes its key: what waits for it here would have been counted as begun.
        """
        blocked = await self._keys_in_flight(connection, group.id)
        blocked |= set((await connection.execute(self.sql.keys_of_retries, {"group_id": group.id})).scalars())
        waiting: list[Message] = []
        free: list[Message] = []
        for message in messages:
            if message.key in blocked:
                waiting.append(message)
                continue
            free.append(message)
            if group.is_limited and message.key is not None:
                blocked.add(message.key)
        if waiting:
            await self._add_retries(
                connection, group.id, [Again(message.seq, 0, 0, []) for message in waiting], losses=0
            )
        return free

    async def _log_is_taken(self, connection: AsyncConnection, group_id: int, owner: str) -> tuple[bool, bool]:
        """Return whether another owner has a lease or holds a retry, and whether there are retries that this one does
        not hold.
        """
        row = (await connection.execute(self.sql.log_is_taken, {"group_id": group_id, "me": owner})).one()
        return bool(row.is_others), bool(row.is_waiting)

    async def _keys_in_flight(self, connection: AsyncConnection, group_id: int) -> set[str]:
        keys: set[str] = set()
        for pending, held in await connection.execute(self.sql.keys_of_leases, {"group_id": group_id}):
            left = set(decode_seqs(pending))
            keys.update(key for key, seqs in json.loads(held).items() if not left.isdisjoint(seqs))
        return keys

    async def hold_retries(self, group: Group, *, limit: int, owner: str, lease: float) -> list[Held]:
        """Hold up to `limit` events whose next attempt is due. What has no attempt left becomes a dead letter.

        None are returned only where none are due, a limit of the group leaves no room, or another has the turn in one
        that is ordered by the log.
        """
        token = uuid4()

        given_up = 0

        async def work(connection: AsyncConnection) -> tuple[list[Held], bool]:
            nonlocal given_up
            given_up = 0
            parameters: dict[str, Any] = {"group_id": group.id}
            row = None
            if group.ordered_by is None and not group.is_limited:
                row = (await connection.execute(self.sql.read_group_by_id, parameters)).first()
            if row is None or group_of(row).is_limited:  # since the holder looked, perhaps
                row = (await connection.execute(self.sql.lock_group, parameters)).first()
            if row is None or row.name != group.name or row.paused_at is not None:
                return [], False
            known = group_of(row)
            room = await self.limits.room(connection, known, limit)
            if room.events == 0:
                return [], False
            is_log = known.ordered_by == "log"
            if is_log and (await self._log_is_taken(connection, group.id, owner))[0]:
                return [], False
            # First the keys: what fails between the two statements goes from the leases to the retries, never back.
            taken = await self._keys_in_flight(connection, group.id) if known.ordered_by == "key" else set()
            # Each key that is taken may have a head that is due: they shall not hide those of other keys.
            parameters |= {"limit": limit + len(taken), "me": owner}
            statement = {"key": self.sql.due_heads, "log": self.sql.first_retries}.get(
                known.ordered_by or "", self.sql.due_retries
            )
            rows = (await connection.execute(statement, parameters)).all()
            held: list[_Candidate] = []
            dead: list[Death] = []
            ended: list[Ending] = []
            gone: list[int] = []
            archive = row.archive
            for row in rows:
                if len(held) == room.events or (is_log and row.run_at > row[-1]):
                    break  # in the log what follows waits for it
                if row.key in taken and row.key is not None:
                    continue
                candidate = _Candidate(row)
                if candidate.has_expired:
                    gone.append(row.seq)
                elif candidate.attempt >= group.max_attempts:
                    dead.append(Death(row.seq, candidate.attempt, candidate.errors))
                    ended.append(candidate.ending(owner))
                elif candidate.losses >= MOST_LOSSES and held and not is_log:
                    continue
                else:
                    held.append(candidate)
                    if candidate.losses >= MOST_LOSSES and not is_log:
                        break
            given_up = len(dead)
            await self._bury(connection, group.id, dead, is_retry=True)
            await self._remove_retries(connection, group.id, [*gone, *(death.seq for death in dead)])
            await self.limits.grant(connection, known, len(held))
            if archive in ("all", "failed"):
                await self._archive.add(connection, group.id, ended)
            if held:
                await connection.execute(
                    self.sql.hold_retry,
                    [
                        {
                            "of_group": group.id,
                            "of_seq": candidate.message.seq,
                            "held": token,
                            "holder": owner,
                            "duration": micros(lease),
                            "attempt": candidate.attempt + 1,
                            "losses": candidate.losses,
                            "errors": json.dumps(candidate.errors),
                        }
                        for candidate in held
                    ],
                )
            return [Held(item.message, item.attempt + 1, token, item.errors) for item in held], bool(gone or dead)

        held, may_be_more = await self._store.transact(work)
        self.given_up += given_up
        while may_be_more and not held:
            held, may_be_more = await self._store.transact(work)
            self.given_up += given_up
        return held

    async def next_retry(self, group: Group) -> float | None:
        """Return in how many seconds something is due that is not yet; None: nothing is."""
        async with self._store._translated(), self._store._reader() as connection:
            wait = (await connection.execute(self.sql.next_retry, {"group_id": group.id})).scalar_one()
        return None if wait is None else max(0, wait) / 1_000_000

    async def room(self, group: Group, most: int) -> Room:
        """Return how many events the limits of a group let one take now, up to `most`, seen without a lock."""
        async with self._store._translated(), self._store._reader() as connection:
            return await self.limits.room(connection, group, most, is_locked=False)

    # --- settling ---

    async def settle(self, settlements: Sequence[Settlement]) -> set[tuple[UUID, int]]:
        """Write what has become of events, in one commit; return the (token, seq) that were no longer the holder's.

        Nothing is changed for those.
        """
        ordered = sorted(settlements, key=lambda item: item.token)

        async def work(connection: AsyncConnection) -> set[tuple[UUID, int]]:
            stale = await self._settle_claims(connection, [item for item in ordered if item.pending is not None])
            for item in ordered:
                if item.pending is None:
                    stale |= await self._settle_held(connection, item)
            return stale

        return await self._store.transact(work, retry_on_integrity=True)  # one of them was revived just now

    async def settle_in(self, connection: AsyncConnection, settlement: Settlement) -> None:
        """Write it in a transaction of the caller's, with whatever else that does.

        Raises:
            LeaseLost: the events are no longer the holder's; the caller must roll back.
        """
        stale = (
            await self._settle_held(connection, settlement)
            if settlement.pending is None
            else await self._settle_claims(connection, [settlement])
        )
        if stale:
            raise LeaseLost([seq for _, seq in stale])

    async def _settle_claims(
        self, connection: AsyncConnection, settlements: Sequence[Settlement]
    ) -> set[tuple[UUID, int]]:
        if not settlements:
            return set()
        tokens = [item.token for item in settlements]
        alive = set((await connection.execute(self.sql.lock_leases, {"tokens": tokens})).scalars())
        live = [item for item in settlements if item.token in alive]
        finished = [item.token for item in live if not item.pending]
        shrunk = [
            {"held": item.token, "left": encode_seqs(item.pending), "first": min(item.pending)}
            for item in live
            if item.pending
        ]
        if finished:
            await connection.execute(self.sql.remove_leases, {"tokens": finished})
        if shrunk:
            await connection.execute(self.sql.shrink_lease, shrunk)
        for item in live:
            await self._add_retries(connection, item.group_id, item.again, losses=0)
            await self._bury(connection, item.group_id, item.dead, is_retry=False)
            await self._archive.add(connection, item.group_id, item.endings)
        return {(item.token, seq) for item in settlements if item.token not in alive for seq in item.seqs}

    async def _settle_held(self, connection: AsyncConnection, item: Settlement) -> set[tuple[UUID, int]]:
        seqs = item.seqs
        rows = await connection.execute(self.sql.lock_retries, {"group_id": item.group_id, "seqs": seqs})
        mine = {seq for seq, token in rows if token == item.token}
        dead = [death for death in item.dead if death.seq in mine]
        await self._bury(connection, item.group_id, dead, is_retry=True)
        await self._remove_retries(
            connection,
            item.group_id,
            [*(seq for seq in item.done if seq in mine), *(death.seq for death in dead)],
        )
        back = [again for again in item.again if again.seq in mine]
        if back:
            await connection.execute(
                self.sql.put_back_retry,
                [
                    {
                        "of_group": item.group_id,
                        "of_seq": again.seq,
                        "held": item.token,
                        "attempt": again.attempt,
                        "delay": again.delay,
                        "errors": errors_text(again.errors),
                    }
                    for again in back
                ],
            )
        ended = [ending for ending in item.endings if ending.message.seq in mine]
        await self._archive.add(connection, item.group_id, ended)
        return {(item.token, seq) for seq in seqs if seq not in mine}

    async def renew(self, tokens: Sequence[UUID], held: Sequence[HeldRetry], *, lease: float) -> set[UUID | HeldRetry]:
        """Hold claims (by token) and retries (by group, seq and token) for `lease` seconds from now on; return what was
        lost.
        """
        duration = micros(lease)

        async def work(connection: AsyncConnection) -> set[UUID | HeldRetry]:
            alive: set[UUID | HeldRetry] = set()
            if tokens:
                await connection.execute(self.sql.renew_leases, {"tokens": list(tokens), "duration": duration})
                alive.update((await connection.execute(self.sql.leases_alive, {"tokens": list(tokens)})).scalars())
            if held:
                await connection.execute(
                    self.sql.renew_retry,
                    [
                        {"of_group": group_id, "of_seq": seq, "held": token, "duration": duration}
                        for group_id, seq, token in sorted(held)
                    ],
                )
                for group_id in {item.group_id for item in held}:
                    seqs = [item.seq for item in held if item.group_id == group_id]
                    rows = await connection.execute(self.sql.retries_alive, {"group_id": group_id, "seqs": seqs})
                    alive.update(HeldRetry(group_id, seq, token) for seq, token in rows)
            asked: list[UUID | HeldRetry] = [*tokens, *held]
            return {item for item in asked if item not in alive}

        return await self._store.transact(work)

    # --- what was lost ---

    async def rescue(self) -> set[int]:
        """Turn what expired leases hold into retries that are due, of any group; return the groups' ids.

        The attempt that was lost counts, and its loss is on record.
        """

        async def work(connection: AsyncConnection) -> set[int]:
            rows = (await connection.execute(self.sql.expired_leases, {"limit": RESCUED})).all()
            now = int((await connection.execute(self._store.sql.now)).scalar_one()) if rows else 0
            for _, group_id, pending, owner in rows:
                lost = [Again(seq, 1, 0, [_loss(1, owner, now)]) for seq in decode_seqs(pending)]
                await self._add_retries(connection, group_id, lost, losses=1)
            if rows:
                await connection.execute(self.sql.remove_leases, {"tokens": [row.token for row in rows]})
            return {row.group_id for row in rows}

        return await self._store.transact(work, retry_on_integrity=True)

    async def pass_over(self, group: Group, first_seq: int) -> Group:
        """Move a group that has not read all that retention removed to what is left, and count what it lost."""
        count = max(0, first_seq - 1 - group.cursor)
        parameters = {"group_id": group.id, "expected": group.cursor, "cursor": first_seq - 1, "count": count}
        if count:
            await self._execute(self.sql.count_lost, parameters)
        return await self.get_by_id(group.id)

    # --- dead letters ---

    async def dead_letters(self, group: Group, *, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters in the order in which they died, those with an id after `after`."""
        parameters = {"group_id": group.id, "after": after, "limit": limit}
        async with self._store._translated(), self._store._reader() as connection:
            return [_letter(row) for row in await connection.execute(self.sql.read_dead, parameters)]

    async def dead_letter(self, group: Group, seq: int) -> DeadLetter:
        """Return one dead letter.

        Raises:
            NotFound: the group has none of this seq.
        """
        async with self._store._translated(), self._store._reader() as connection:
            row = (await connection.execute(self.sql.read_dead_at, {"group_id": group.id, "seq": seq})).first()
        if row is None:
            raise NotFound(f"no dead letter of group {quote(group.name)} at seq {seq}")
        return _letter(row)

    async def revive(self, group: Group, seqs: Sequence[int]) -> int:
        """Have dead letters tried again at once, with all their attempts and without their TTL; return how many there
        were.
        """

        async def work(connection: AsyncConnection) -> int:
            parameters: dict[str, Any] = {"group_id": group.id, "seqs": list(seqs)}
            # First the lock that a deletion takes: a retry written behind it would be nobody's.
            await connection.execute(self.sql.lock_group, parameters)
            dead = (await connection.execute(self.sql.lock_dead, parameters)).scalars().all()
            if not dead:
                return 0
            parameters["seqs"] = dead
            await self._remove_retries(connection, group.id, dead)  # of the time after a reset
            await connection.execute(self.sql.revive, parameters)
            await connection.execute(self.sql.remove_dead, parameters)
            return len(dead)

        return await self._store.transact(work)

    async def discard(self, group: Group, seqs: Sequence[int]) -> int:
        """Forget dead letters; return how many there were."""
        return await self._execute(self.sql.remove_dead, {"group_id": group.id, "seqs": list(seqs)})

    # --- parts ---

    async def _add_retries(
        self, connection: AsyncConnection, group_id: int, items: Sequence[Again], *, losses: int
    ) -> None:
        rows = [
            {
                "group_id": group_id,
                "seq": item.seq,
                "attempt": item.attempt,
                "losses": losses,
                "delay": item.delay,
                "errors": errors_text(item.errors),
            }
            for item in items
        ]
        if rows:
            await connection.execute(self.sql.add_retry, rows)
            seqs = [item.seq for item in items]
            await self._count_overtaken(connection, group_id, seqs, copied=self.sql.retries_alive)

    async def _count_overtaken(
        self, connection: AsyncConnection, group_id: int, seqs: Sequence[int], *, copied: Query
    ) -> None:
        """Count those as lost that retention removed while the group had them in flight, so that they could not be
        copied. What a TTL removed is no loss.
        """
        head = (await connection.execute(self._store.sql.read_head)).one()
        gone = {seq for seq in seqs if seq < head.first_seq}
        if gone:
            parameters = {"group_id": group_id, "seqs": sorted(gone)}
            gone -= set((await connection.execute(copied, parameters)).scalars())
        if gone:
            await connection.execute(self.sql.add_lost, {"group_id": group_id, "count": len(gone)})

    async def _remove_retries(self, connection: AsyncConnection, group_id: int, seqs: Sequence[int]) -> None:
        if seqs:
            await connection.execute(self.sql.remove_retries, {"group_id": group_id, "seqs": list(seqs)})

    async def _bury(
        self, connection: AsyncConnection, group_id: int, deaths: Sequence[Death], *, is_retry: bool
    ) -> None:
        """Write dead letters; one of an earlier life of the group is replaced."""
        if not deaths:
            return
        seqs = [death.seq for death in deaths]
        await connection.execute(self.sql.remove_dead, {"group_id": group_id, "seqs": seqs})
        await connection.execute(
            self.sql.bury_retry if is_retry else self.sql.bury_event,
            [
                {
                    "group_id": group_id,
                    "seq": death.seq,
                    "attempt": death.attempt,
                    "errors": errors_text(death.errors),
                }
                for death in deaths
            ],
        )
        if not is_retry:
            await self._count_overtaken(connection, group_id, seqs, copied=self.sql.dead_of_seqs)


class _Candidate:
    """A retry that is due, and what its last holder has left of it."""

    def __init__(self, row: AnyRow) -> None:
        size = len(MESSAGE_FIELDS)
        now = row[-1]
        self.message = Message(*row[:size])
        self.has_expired = row.expires_at is not None and row.expires_at <= now
        self.attempt: int = row.attempt
        self.losses: int = row.losses
        self.errors: list[dict[str, Any]] = json.loads(row.errors)
        if row.token is not None:
            self.losses += 1
            self.errors.append(_loss(self.attempt, row.owner, now))

    def ending(self, finder: str) -> Ending:
        """Return its end as a dead letter: its attempts are used up, which nobody but `finder` was there to see."""
        owner = str(self.errors[-1].get("node") or finder) if self.errors else finder
        return Ending(self.message, "dead", self.attempt, None, owner, self.errors)


def _loss(attempt: int, owner: str, now: int) -> dict[str, Any]:
    """Return the record of an attempt whose holder was not heard of again."""
    message = "the lease ended before the event was settled"
    return {"attempt": attempt, "type": "LeaseLost", "message": message, "time": now, "node": owner}


def _letter(row: AnyRow) -> DeadLetter:
    size = 1 + len(MESSAGE_FIELDS)
    return DeadLetter(row[0], Message(*row[1:size]), row.attempt, json.loads(row.errors), row.died_at)


def expected(group: Group) -> dict[str, Any]:
    """Return what a claim compares a group with, as parameters: what it takes was chosen by that."""
    return {
        "group_id": group.id,
        "expected": group.cursor,
        "expected_patterns": patterns_text(group.patterns),
        "expected_order": group.ordered_by or "",
        "expected_in_flight": group.max_in_flight or 0,
        "expected_rate": group.rate_limit or "",
        "expected_name": group.name,  # SQLite gives the id of a group that was deleted to the next
    }


def _keys(messages: Sequence[Message]) -> str:
    keys: dict[str, list[int]] = {}
    for message in messages:
        if message.key is not None:
            keys.setdefault(message.key, []).append(message.seq)
    return json.dumps(keys)


def micros(seconds: float) -> int:
    """Return seconds as microseconds."""
    return round(seconds * 1_000_000)
