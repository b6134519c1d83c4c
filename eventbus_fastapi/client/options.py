"""What a program asks of a subscription, checked before anything is sent.

What the server would refuse whatever its settings are is refused here, at the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast, get_args
from uuid import UUID

from eventbus_fastapi.errors import InvalidInput, InvalidPattern, quote
from eventbus_fastapi.events import Event
from eventbus_fastapi.protocol.commands import (
    MAX_ACK_WAIT,
    MAX_ATTEMPTS,
    MAX_PATTERNS,
    MIN_ACK_WAIT,
    Start,
    Subscribe,
)
from eventbus_fastapi.protocol.fields import MAX_ID, MAX_SEQ
from eventbus_fastapi.settings import Overflow
from eventbus_fastapi.topics import check_pattern

MAX_CONCURRENCY = 5_000
"""Most handlers that one `consume` runs at the same time."""


def make_subscribe(
    patterns: Sequence[str | type[Event]],
    *,
    start: Start,
    after: int | None,
    epoch: UUID | None,
    include_processed: bool,
    overflow: Overflow | None,
    buffer: int | None,
) -> Subscribe:
    """Check the arguments of `EventBusClient.subscribe`, and return them as the command to send.

    Raises:
        InvalidPattern: a pattern does not follow the grammar.
        InvalidInput: anything else of them cannot be used.
    """
    chosen = tuple(dict.fromkeys(_pattern(pattern) for pattern in patterns))
    _expect(1 <= len(chosen) <= MAX_PATTERNS, "patterns", f"at least one and at most {MAX_PATTERNS}", len(chosen))
    _expect(epoch is None or isinstance(epoch, UUID), "epoch", "None or a UUID", epoch)
    _expect(isinstance(include_processed, bool), "include_processed", "True or False", include_processed)
    policies = get_args(Overflow)
    _expect(overflow is None or overflow in policies, "overflow", f"None or one of {', '.join(policies)}", overflow)
    _expect(buffer is None or _is_integer(buffer, 1, MAX_ID), "buffer", "None or an integer above 0", buffer)
    return Subscribe(
        chosen,
        start=_start(start, after),
        epoch=epoch,
        include_processed=include_processed,
        overflow=overflow,
        buffer=buffer,
    )


def make_join(
    patterns: Sequence[str | type[Event]],
    *,
    start: Start,
    after: int | None,
    group: str,
    credit: int | None,
    ack_wait: float | None,
    max_attempts: int | None,
) -> Subscribe:
    """Check the arguments of a subscription with a group, and return them as the command to send.

    Raises:
        InvalidPattern: a pattern does not follow the grammar.
        InvalidInput: anything else of them cannot be used.
    """
    chosen = tuple(dict.fromkeys(_pattern(pattern) for pattern in patterns))
    _expect(1 <= len(chosen) <= MAX_PATTERNS, "patterns", f"at least one and at most {MAX_PATTERNS}", len(chosen))
    _expect(isinstance(group, str), "group", "the name of a group", group)
    _expect(group != "", "group", "the name of a group", group)
    _expect(credit is None or _is_integer(credit, 1, MAX_ID), "credit", "None or an integer above 0", credit)
    _expect(
        ack_wait is None or _is_number(ack_wait, MIN_ACK_WAIT, MAX_ACK_WAIT),
        "ack_wait",
        f"None or {MIN_ACK_WAIT:g} to {MAX_ACK_WAIT:,g} seconds",
        ack_wait,
    )
    _expect(
        max_attempts is None or _is_integer(max_attempts, 1, MAX_ATTEMPTS),
        "max_attempts",
        f"None or an integer from 1 to {MAX_ATTEMPTS}",
        max_attempts,
    )
    return Subscribe(
        chosen, start=_start(start, after), credit=credit, group=group, ack_wait=ack_wait, max_attempts=max_attempts
    )


def check_concurrency(concurrency: object) -> None:
    """Check how many handlers run at the same time.

    Raises:
        InvalidInput: it is no number of them.
    """
    is_usable = _is_integer(concurrency, 1, MAX_CONCURRENCY)
    _expect(is_usable, "concurrency", f"an integer from 1 to {MAX_CONCURRENCY:,}", concurrency)


def _pattern(pattern: object) -> str:
    if isinstance(pattern, type) and issubclass(pattern, Event):
        if not pattern.__topic__:
            raise InvalidPattern(pattern, f'expected a class with a topic: class {pattern.__name__}(Event, topic="…")')
        return check_pattern(pattern.__topic__)
    if not isinstance(pattern, str):
        raise InvalidPattern(pattern, f"expected a str or an Event class, got {type(pattern).__name__}")
    return check_pattern(pattern)


def _start(start: object, after: object) -> Start:
    if after is not None:
        if start != "now":
            raise InvalidInput("give start or after, not both")
        _expect(_is_integer(after, 0, MAX_SEQ), "after", "a seq of 0 or more", after)
        return cast(int, after)
    if isinstance(start, datetime):
        _expect(start.tzinfo is not None, "start", "a time with its zone", start.isoformat())
    else:
        is_usable = (isinstance(start, str) and start in ("now", "earliest")) or _is_integer(start, 0, MAX_SEQ)
        _expect(is_usable, "start", "'now', 'earliest', a seq of 0 or more or a time", start)
    return cast(Start, start)


def _is_integer(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_number(value: object, minimum: float, maximum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum


def _expect(is_usable: bool, name: str, expected: str, got: object) -> None:
    if not is_usable:
        raise InvalidInput(f"{name}: expected {expected}, got {quote(got)}")
