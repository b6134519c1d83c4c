"""The SQL statements of groups, built once per set of tables. Nothing here executes; see `statements`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query, now_micros

MESSAGE_FIELDS = ("seq", *EVENT_FIELDS, "created_at", "expires_at")
"""What makes a `Message`, in its order."""
NO_PATTERNS = "[]"
"""Of a group that reads nothing of the log: it has dead letters of what could not enter it."""
DECLARED = ("ordered_by", "max_attempts", "archive", "max_in_flight", "rate_limit")
"""What is said of a group besides its patterns."""


def _big(name: str) -> Any:
    return bindparam(name, type_=BigInteger)


class GroupStatements:
    """The statements over one set of tables. Parameters are named after the columns; durations are microseconds."""

    def __init__(self, tables: Tables) -> None:
        event, group, lease = tables.event, tables.group, tables.lease
        retry, dead, head, archive = tables.retry, tables.dead_letter, tables.head, tables.archive
        now = now_micros()

        # --- groups ---
        columns = [group.c[name] for name in ("id", "name", "patterns", "cursor", "paused_at", "lost", *DECLARED)]
        self.add_group: Insert = insert(group).values(lost=0, created_at=now).inline()
        self.read_groups: Query = select(*columns).order_by(group.c.name)
        self.read_group: Query = select(*columns).where(group.c.name == bindparam("name"))
        self.read_group_by_id: Query = select(*columns).where(group.c.id == _big("group_id"))
        self.lock_group: Query = self.read_group_by_id.with_for_update()
        self.declare_group: Update = (
            update(group)
            .where(group.c.id == _big("group_id"))
            .values(patterns=bindparam("patterns"), **{name: bindparam(name) for name in DECLARED})
        )
        self.pause_group: Update = (
            update(group).where(group.c.id == _big("group_id"), group.c.paused_at.is_(None)).values(paused_at=now)
        )
        self.resume_group: Update = update(group).where(group.c.id == _big("group_id")).values(paused_at=None)
        self.move_group: Update = update(group).where(group.c.id == _big("group_id")).values(cursor=_big("cursor"))
        self.count_lost: Update = (
            update(group)
            .where(group.c.id == _big("group_id"), group.c.cursor == _big("expected"))
            .values(cursor=_big("cursor"), lost=group.c.lost + _big("count"))
        )
        """The group passes over what is gone; parameters: group_id, expected, cursor, count."""
        self.add_lost: Update = (
            update(group).where(group.c.id == _big("group_id")).values(lost=group.c.lost + _big("count"))
        )
        """What the group had in flight is gone; parameters: group_id, count."""
        self.remove_group: tuple[Delete, ...] = (
            *(delete(table).where(table.c.group_id == _big("group_id")) for table in (lease, retry, dead, archive)),
            delete(group).where(group.c.id == _big("group_id")),
        )
        self.drop_leases: tuple[Delete, ...] = self.remove_group[:2]
        """What is in flight or waits for a retry; whoever holds some of it finds its token gone."""

        # --- figures ---
        def count(table: Any, *conditions: Any) -> Any:
            return (
                select(func.count())
                .select_from(table)
                .where(table.c.group_id == _big("group_id"), *conditions)
                .scalar_subquery()
            )

        waits_since = (
            select(event.c.created_at)
            .where(event.c.seq > group.c.cursor)
            .order_by(event.c.seq)
            .limit(1)
            .correlate(group)
            .scalar_subquery()
        )
        self.lag: Query = (
            select(head.c.last_seq - group.c.cursor, now - waits_since)
            .where(group.c.id == _big("group_id"))
            .select_from(group.join(head, head.c.id == 1))
        )
        """In events, and in time."""
        reads_nothing = group.c.patterns == NO_PATTERNS
        self.all_lags: Query = select(
            group.c.id,
            case((reads_nothing, head.c.last_seq), else_=group.c.cursor).label("cursor"),
            head.c.last_seq,
            now,
        ).select_from(group.join(head, head.c.id == 1))
        """By group: where it is, where the log ends, and now. How long its events wait is not part of it: MariaDB would
        read the log from its beginning for each group."""
        self.times_of: Query = select(event.c.seq, event.c.created_at).where(
            event.c.seq.in_(bindparam("seqs", expanding=True))
        )
        self.counts: Query = select(
            count(retry, retry.c.token.is_(None)), count(retry, retry.c.token.is_not(None)), count(dead)
        )
        """Retries that wait, retries that are held, dead letters."""
        self.pendings: Query = select(lease.c.pending).where(lease.c.group_id == _big("group_id"))
        self.all_pendings: Query = select(lease.c.group_id, lease.c.pending)
        self.all_retries: Query = select(retry.c.group_id, func.count(), func.count(retry.c.token)).group_by(
            retry.c.group_id
        )
        """By group: all retries, and those that are held."""
        self.all_dead: Query = select(dead.c.group_id, func.count()).group_by(dead.c.group_id)
        self.floor: Query = select(
            select(func.min(group.c.cursor) + 1).where(~reads_nothing).scalar_subquery(),
            select(func.min(lease.c.first_seq)).scalar_subquery(),
        )
        """The first seq that some group has not read, and the first that some group has in flight. A group without
        patterns reads nothing of the log."""
        self.look: Query = select(
            *columns,
            select(func.min(lease.c.until)).where(lease.c.group_id == group.c.id).scalar_subquery(),
            select(func.min(retry.c.run_at)).where(retry.c.group_id == group.c.id).scalar_subquery(),
            now,
        ).where(group.c.id.in_(bindparam("group_ids", expanding=True)))
        """By group: how it is, when its first lease ends and its first retry is due, and now."""

        # --- ranges ---
        self.move_cursor: Update = (
            update(group)
            .where(
                group.c.id == _big("group_id"),
                group.c.cursor == _big("expected"),
                group.c.patterns == bindparam("expected_patterns", type_=Text),
                func.coalesce(group.c.ordered_by, "") == bindparam("expected_order", type_=Text),
                func.coalesce(group.c.max_in_flight, 0) == bindparam("expected_in_flight", type_=Integer),
                func.coalesce(group.c.rate_limit, "") == bindparam("expected_rate", type_=Text),
                group.c.name == bindparam("expected_name", type_=Text),
                group.c.paused_at.is_(None),
            )
            .values(cursor=_big("cursor"))
        )
        self.add_lease: Insert = insert(lease).values(until=now + _big("duration")).inline()
        """Parameters: the columns without `until`, and duration."""
        self.lock_leases: Query = (
            select(lease.c.token)
            .where(lease.c.token.in_(bindparam("tokens", expanding=True)))
            .order_by(lease.c.token)
            .with_for_update()
        )
        self.leases_alive: Query = select(lease.c.token).where(lease.c.token.in_(bindparam("tokens", expanding=True)))
        self.shrink_lease: Update = (
            update(lease)
            .where(lease.c.token == bindparam("held"))
            .values(pending=bindparam("left"), first_seq=_big("first"))
        )
        """Parameters: held, left, first."""
        self.remove_leases: Delete = delete(lease).where(lease.c.token.in_(bindparam("tokens", expanding=True)))
        self.renew_leases: Update = (
            update(lease)
            .where(lease.c.token.in_(bindparam("tokens", expanding=True)))
            .values(until=now + _big("duration"))
        )
        self.expired_leases: Query = (
            select(lease.c.token, lease.c.group_id, lease.c.pending, lease.c.owner)
            .where(lease.c.until <= now)
            .order_by(lease.c.until)
            .limit(bindparam("limit"))
            .with_for_update(skip_locked=True)
        )
        self.keys_of_leases: Query = select(lease.c.pending, lease.c.key_seqs).where(
            lease.c.group_id == _big("group_id"), lease.c.key_seqs.is_not(None)
        )
        self.unkeyed_leases: Query = select(lease.c.token, lease.c.pending).where(
            lease.c.group_id == _big("group_id"), lease.c.key_seqs.is_(None)
        )
        self.keys_of_seqs: Query = select(event.c.key, event.c.seq).where(
            event.c.seq.in_(bindparam("seqs", expanding=True)), event.c.key.is_not(None)
        )
        self.key_lease: Update = (
            update(lease).where(lease.c.token == bindparam("held")).values(key_seqs=bindparam("keys", type_=Text))
        )
        """Parameters: held, keys."""
        self.keys_of_retries: Query = (
            select(retry.c.key).where(retry.c.group_id == _big("group_id"), retry.c.key.is_not(None)).distinct()
        )

        # --- retries ---
        copied = ["group_id", *MESSAGE_FIELDS, "attempt", "losses", "run_at", "errors"]
        waiting = retry.alias("waiting")
        self.add_retry: Insert = insert(retry).from_select(
            copied,
            select(
                _big("group_id"),
                *(event.c[name] for name in MESSAGE_FIELDS),
                bindparam("attempt", type_=Integer),
                bindparam("losses", type_=Integer),
                now + _big("delay"),
                bindparam("errors", type_=Text),
            ).where(
                event.c.seq == _big("seq"),
                ~select(waiting.c.seq)
                .where(waiting.c.group_id == _big("group_id"), waiting.c.seq == event.c.seq)
                .exists(),
            ),
        )
        """Parameters: group_id, seq, attempt, losses, delay, errors. One that waits already stays as it is: a dead
        letter that was revived in a group that reads it again.
        """
        self.lock_retries: Query = (
            select(retry.c.seq, retry.c.token)
            .where(retry.c.group_id == _big("group_id"), retry.c.seq.in_(bindparam("seqs", expanding=True)))
            .order_by(retry.c.seq)
            .with_for_update()
        )
        self.retries_alive: Query = select(retry.c.seq, retry.c.token).where(
            retry.c.group_id == _big("group_id"), retry.c.seq.in_(bindparam("seqs", expanding=True))
        )
        is_held = and_(
            retry.c.group_id == _big("of_group"), retry.c.seq == _big("of_seq"), retry.c.token == bindparam("held")
        )
        self.renew_retry: Update = update(retry).where(is_held).values(run_at=now + _big("duration"))
        """Parameters: of_group, of_seq, held, duration."""
        self.put_back_retry: Update = (
            update(retry)
            .where(is_held)
            .values(
                token=None,
                owner=None,
                losses=0,
                attempt=bindparam("attempt", type_=Integer),
                run_at=now + _big("delay"),
                errors=bindparam("errors", type_=Text),
            )
        )
        """Parameters: of_group, of_seq, held, attempt, delay, errors."""
        self.remove_retries: Delete = delete(retry).where(
            retry.c.group_id == _big("group_id"), retry.c.seq.in_(bindparam("seqs", expanding=True))
        )
        earlier = retry.alias("earlier")
        found: Query = (
            select(
                *(retry.c[name] for name in MESSAGE_FIELDS),
                *(retry.c[name] for name in ("attempt", "losses", "token", "owner", "errors", "run_at")),
                now,
            )
            .where(retry.c.group_id == _big("group_id"))
            .limit(bindparam("limit"))
        )
        due = (
            found.where(retry.c.run_at <= now)
            .order_by(retry.c.run_at, retry.c.seq)
            .with_for_update(skip_locked=True, of=retry)
        )
        self.due_retries: Query = due
        self.due_heads: Query = due.where(
            ~select(earlier.c.seq)
            .where(earlier.c.group_id == retry.c.group_id, earlier.c.key == retry.c.key, earlier.c.seq < retry.c.seq)
            .exists()
        )
        """Of each key only the first that is not settled."""
        is_out = and_(retry.c.token.is_not(None), retry.c.run_at > now)
        is_mine = and_(is_out, retry.c.owner == bindparam("me"))
        self.first_retries: Query = found.where(~is_mine).order_by(retry.c.seq).with_for_update(of=retry)
        """The first in the log, due or not, without those that `me` holds."""
        self.log_is_taken: Query = select(
            or_(
                select(lease.c.token)
                .where(lease.c.group_id == _big("group_id"), lease.c.owner != bindparam("me"))
                .exists(),
                select(retry.c.seq)
                .where(retry.c.group_id == _big("group_id"), is_out, retry.c.owner != bindparam("me"))
                .exists(),
            ).label("is_others"),
            select(retry.c.seq).where(retry.c.group_id == _big("group_id"), ~is_mine).exists().label("is_waiting"),
        )
        """Whether others than `me` have a lease, ended or not, or a retry; whether some retry is not held by `me`."""
        self.next_retry: Query = select(func.min(retry.c.run_at) - now).where(
            retry.c.group_id == _big("group_id"), retry.c.run_at > now
        )
        """Microseconds until the next is due of those that are not yet."""
        self.list_retries: Query = (
            select(
                *(retry.c[name] for name in ("seq", "message_id", "topic", "key", "attempt", "run_at")),
                retry.c.token.is_not(None).label("is_held"),
                retry.c.errors,
            )
            .where(retry.c.group_id == _big("group_id"), retry.c.seq > _big("after"))
            .order_by(retry.c.seq)
            .limit(bindparam("limit"))
        )
        self.hold_retry: Update = (
            update(retry)
            .where(retry.c.group_id == _big("of_group"), retry.c.seq == _big("of_seq"))
            .values(
                token=bindparam("held"),
                owner=bindparam("holder"),
                run_at=now + _big("duration"),
                attempt=bindparam("attempt", type_=Integer),
                losses=bindparam("losses", type_=Integer),
                errors=bindparam("errors", type_=Text),
            )
        )
        """Parameters: of_group, of_seq, held, holder, duration, attempt, losses, errors."""
        self.blocked_keys: Query = (
            select(retry.c.key, func.min(retry.c.seq), func.count())
            .where(retry.c.group_id == _big("group_id"), retry.c.key.is_not(None))
            .group_by(retry.c.key)
            .order_by(func.min(retry.c.seq))
            .limit(bindparam("limit"))
        )

        # --- dead letters ---
        dead_columns = ["group_id", *MESSAGE_FIELDS, "attempt", "errors", "died_at"]
        attempt, errors = bindparam("attempt", type_=Integer), bindparam("errors", type_=Text)
        self.bury_event: Insert = insert(dead).from_select(
            dead_columns,
            select(_big("group_id"), *(event.c[name] for name in MESSAGE_FIELDS), attempt, errors, now).where(
                event.c.seq == _big("seq")
            ),
        )
        """Parameters: group_id, seq, attempt, errors."""
        self.bury_retry: Insert = insert(dead).from_select(
            dead_columns,
            select(retry.c.group_id, *(retry.c[name] for name in MESSAGE_FIELDS), attempt, errors, now).where(
                retry.c.group_id == _big("group_id"), retry.c.seq == _big("seq")
            ),
        )
        """The same, of an event that has a row among the retries."""
        self.bury_foreign: Insert = insert(dead).values(created_at=now, died_at=now, attempt=1).inline()
        """What has no place in the log; parameters: group_id, seq, the fields of an event, errors."""
        self.remove_dead: Delete = delete(dead).where(
            dead.c.group_id == _big("group_id"), dead.c.seq.in_(bindparam("seqs", expanding=True))
        )
        self.dead_of_seqs: Query = select(dead.c.seq).where(
            dead.c.group_id == _big("group_id"), dead.c.seq.in_(bindparam("seqs", expanding=True))
        )
        self.lock_dead: Query = self.dead_of_seqs.order_by(dead.c.seq).with_for_update()
        self.revive: Insert = insert(retry).from_select(
            copied,
            select(
                dead.c.group_id,
                *(dead.c[name] for name in MESSAGE_FIELDS if name != "expires_at"),
                null(),
                literal(0),
                literal(0),
                now,
                dead.c.errors,
            ).where(dead.c.group_id == _big("group_id"), dead.c.seq.in_(bindparam("seqs", expanding=True))),
        )
        """A TTL that is over does not count against who wants an event to be tried again."""
        letter: list[ColumnElement[Any]] = [
            dead.c.id,
            *(dead.c[name] for name in MESSAGE_FIELDS),
            dead.c.attempt,
            dead.c.errors,
            dead.c.died_at,
        ]
        self.read_dead: Query = (
            select(*letter)
            .where(dead.c.group_id == _big("group_id"), dead.c.id > _big("after"))
            .order_by(dead.c.id)
            .limit(bindparam("limit"))
        )
        self.read_dead_at: Query = select(*letter).where(dead.c.group_id == _big("group_id"), dead.c.seq == _big("seq"))
        self.oldest_dead: Query = select(dead.c.id, dead.c.died_at).order_by(dead.c.id).limit(bindparam("limit"))
        self.remove_dead_ids: Delete = delete(dead).where(dead.c.id.in_(bindparam("ids", expanding=True)))
        self.newest_dead: Query = select(func.max(dead.c.id))
        listed: Query = (
            select(
                *(dead.c[name] for name in ("id", "group_id", "seq", "message_id", "topic", "key", "attempt")),
                dead.c.died_at,
                dead.c.metadata,
                dead.c.errors,
            )
            .where(
                dead.c.id > _big("after"),
                dead.c.died_at >= _big("since"),
                dead.c.died_at < _big("until"),
                dead.c.attempt >= bindparam("attempts", type_=Integer),
            )
            .order_by(dead.c.id)
            .limit(bindparam("limit"))
        )
        self.list_all_dead: Query = listed
        """Without payloads; parameters: after, since, until, attempts, limit."""
        self.list_dead: Query = listed.where(dead.c.group_id == _big("group_id"))
