"""The JSON of groups, of what waits in them, died or ended: the same over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import to_json

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.filters import EPOCH
from eventbus_fastapi.pipeline.steward import BlockedKey, GroupStatus
from eventbus_fastapi.protocol.events import event_object
from eventbus_fastapi.store.archive import ArchivedEvent, ArchiveEntry
from eventbus_fastapi.store.dead_letters import DeadEntry
from eventbus_fastapi.store.group import DeadLetter, WaitingRetry
from eventbus_fastapi.store.limits import RateLimit

Object = dict[str, Any]


def group_object(status: GroupStatus) -> Object:
    """Return how a group is and how it is doing."""
    group, figures = status
    return {
        "name": group.name,
        "patterns": group.patterns,
        "ordered_by": group.ordered_by,
        "max_attempts": group.max_attempts,
        "max_in_flight": group.max_in_flight,
        "rate_limit": group.rate_limit,
        "archive": group.archive,
        "paused": group.is_paused,
        "cursor": group.cursor,
        **figures._asdict(),
        "lost": group.lost,
    }


def rate_limit_object(limit: RateLimit) -> Object:
    """Return how often something may begin."""
    return {"name": limit.name, "permits": limit.permits, "per": limit.period / 1_000_000}


def retry_object(item: WaitingRetry) -> Object:
    """Return what waits for another attempt."""
    return {
        "seq": item.seq,
        "message_id": str(item.message_id),
        "topic": item.topic,
        "key": item.key,
        "attempts": item.attempt,
        "run_at": time_text(item.run_at),
        "held": item.is_held,
        "error": last_error(item.errors),
    }


def key_object(item: BlockedKey) -> Object:
    """Return a key whose events wait for one of them."""
    return item._asdict()


def entry_object(group: str, entry: DeadEntry) -> Object:
    """Return a dead letter as it is listed."""
    return _listed(group, entry, {"attempts": entry.attempt, "died_at": time_text(entry.died_at)})


def ending_object(group: str, entry: ArchiveEntry) -> Object:
    """Return how an event has ended, as it is listed."""
    return _listed(group, entry, _ended(entry))


def archived_object(group: str, archived: ArchivedEvent) -> str:
    """Return the text of an ending as it is shown: the event, how it has ended, and all that went wrong."""
    entry = archived.entry
    return _shown(archived.message, {"id": entry.id, "group": group, **_ended(entry)}, entry.errors)


def _ended(entry: ArchiveEntry) -> Object:
    return {
        "outcome": entry.outcome,
        "attempts": entry.attempt,
        "duration": None if entry.duration is None else entry.duration / 1_000_000,
        "node": entry.owner,
        "finished_at": time_text(entry.finished_at),
    }


def _listed(group: str, entry: DeadEntry | ArchiveEntry, members: Object) -> Object:
    return {
        "id": entry.id,
        "group": group,
        "seq": entry.seq,
        "message_id": str(entry.message_id),
        "topic": entry.topic,
        "key": entry.key,
        **members,
        "tags": entry.tags,
        "error": last_error(entry.errors),
    }


def letter_object(group: str, letter: DeadLetter) -> str:
    """Return the text of a dead letter as it is shown: the event, and all that went wrong."""
    members = {
        "id": letter.id,
        "group": group,
        "attempts": letter.attempt,
        "died_at": time_text(letter.died_at),
    }
    return _shown(letter.message, members, letter.errors)


def _shown(message: Message, members: Object, errors: Sequence[Object]) -> str:
    said = to_json({**members, "errors": [error_object(error) for error in errors]}).decode()
    return f"{event_object(message)[:-1]},{said[1:]}"


def last_error(errors: Sequence[Object]) -> Object | None:
    """Return what went wrong last, without the traceback."""
    if not errors:
        return None
    return {name: value for name, value in error_object(errors[-1]).items() if name != "traceback"}


def error_object(error: Object) -> Object:
    """Return what went wrong in an attempt; the store has times in microseconds."""
    return {**error, "time": time_text(error["time"])} if type(error.get("time")) is int else error


def time_text(time: int) -> str:
    """Return unix microseconds as RFC 3339 has them."""
    return (EPOCH + timedelta(microseconds=time)).isoformat(timespec="microseconds").replace("+00:00", "Z")
