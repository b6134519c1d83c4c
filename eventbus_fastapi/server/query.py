"""What the query of a URL says about a subscription: `pattern`, `after` and `from`."""

from __future__ import annotations

from typing import cast

from starlette.datastructures import QueryParams

from eventbus_fastapi.errors import BadFrame, InvalidRequest, quote
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.commands import MAX_PATTERNS, Start, Subscribe
from eventbus_fastapi.topics import check_pattern


def subscription_of(query: QueryParams) -> Subscribe | None:
    """Return the subscription that a query asks for; None: it has no `pattern`. What was acknowledged is part of it.

    Raises:
        InvalidPattern, InvalidRequest: it cannot be meant.
    """
    patterns = query.getlist("pattern")
    if not patterns:
        return None
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"query parameter 'pattern': expected at most {MAX_PATTERNS}, got {len(patterns):,}")
    after = query.get("after")
    if after is not None and seq_of(after) is None:
        raise InvalidRequest(f"query parameter 'after': expected an integer ≥ 0, got {quote(after)}")
    start = start_of(None if after is None else seq_of(after), query.get("from"))
    wanted = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))
    return Subscribe(wanted, start=start, include_processed=True)


def start_of(after: int | None, start: str | None) -> Start:
    """Return where reading begins; both may be absent, not both be there."""
    if start is None:
        return "now" if after is None else after
    if after is not None:
        raise InvalidRequest("query parameters 'after' and 'from': expected at most one of them, got both")
    if start in ("now", "earliest"):
        return cast(Start, start)
    if (seq := seq_of(start)) is not None:
        return seq
    try:
        return fields.time(start, "from")
    except BadFrame:
        raise InvalidRequest(
            "query parameter 'from': expected 'now', 'earliest', an integer ≥ 0 or an RFC 3339 time, "
            f"got {quote(start)}"
        ) from None


def seq_of(text: str) -> int | None:
    """Return the seq that a text is; None: it is something else."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(fields.MAX_SEQ)):
        return None
    return seq if (seq := int(text)) <= fields.MAX_SEQ else None
