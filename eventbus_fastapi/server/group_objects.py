"""The JSON of groups, of what waits in them and of what died: the same over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import to_json

from eventbus_fastapi.pipeline.steward import EPOCH, BlockedKey, GroupStatus
from eventbus_fastapi.protocol.events import event_object
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
    return {
        "id": entry.id,
        "group": group,
        "seq": entry.seq,
        "message_id": str(entry.message_id),
        "topic": entry.topic,
        "key": entry.key,
        "attempts": entry.attempt,
        "died_at": time_text(entry.died_at),
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
        "errors": [error_object(error) for error in letter.errors],
    }
    return f"{event_object(letter.message)[:-1]},{to_json(members).decode()[1:]}"


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
