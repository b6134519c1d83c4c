"""Where reading begins, as a user says it, and as the seq after which it is."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from eventbus_fastapi.errors import InvalidEvent, quote
from eventbus_fastapi.store import Head, Store

Start = Literal["now", "earliest"] | int | datetime
"""Where a reader begins: `now`, `earliest`, after a seq (exclusive), or at a time (aware datetime)."""


async def resolve_start(store: Store, start: Start, head: Head | None = None) -> int:
    """Return the seq after which a reader that begins there reads.

    Raises:
        InvalidEvent: it is none of `Start`.
    """
    match start:
        case "now":
            return (head or await store.head()).last_seq
        case "earliest":
            return (head or await store.head()).first_seq - 1
        case datetime():
            if start.tzinfo is None:
                raise InvalidEvent(f"start {start.isoformat()} has no time zone; expected an aware datetime")
            return await store.seek(int(start.timestamp() * 1_000_000))
        case int() if not isinstance(start, bool) and start >= 0:
            return start
        case _:
            raise InvalidEvent(f"start must be 'now', 'earliest', a seq ≥ 0 or an aware datetime, got {quote(start)}")
