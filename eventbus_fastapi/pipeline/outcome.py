"""What becomes of one attempt: the outcomes, as values, and the rule that decides.

    Ack       the handler is done with the event
    Retry     another attempt, after a while
    Snooze    the same attempt, after a while: it is not counted
    Discard   the event needs no handling; it is neither a success nor a failure
    Dead      given up: the event becomes a dead letter of the handler's group

A handler returns None (for `Ack`), `Retry`, `Snooze` or `Discard`, or raises. `decide` turns that into the outcome,
which somebody else stores. Nothing here waits, stores or logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from eventbus_fastapi.backoff import Backoff, Duration, Exponential, seconds
from eventbus_fastapi.errors import InvalidOutcome, UndecodablePayload
from eventbus_fastapi.pipeline.error_record import ErrorRecord, message_of

DEFAULT_BACKOFF = Exponential()


@dataclass(frozen=True, slots=True)
class Ack:
    """The handler is done with the event."""


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """Another attempt, if there is one left.

    Raises:
        ValueError: `after` is no duration.
    """

    after: float | None
    """Seconds until then; None: the backoff says it. Never None in what `decide` returns."""
    reason: str | None
    """What operators are shown."""
    error: ErrorRecord | None
    """Why this attempt failed; `decide` sets it."""

    def __init__(
        self, after: Duration | None = None, reason: str | None = None, *, error: ErrorRecord | None = None
    ) -> None:
        object.__setattr__(self, "after", None if after is None else seconds("after", after))
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "error", error)


@dataclass(frozen=True, slots=True, init=False)
class Snooze:
    """The same attempt after a while, as often as asked: for what is not ready yet, such as a report being made.

    Raises:
        ValueError: `after` is no duration above 0.
    """

    after: float
    """Seconds until then, more than 0."""

    def __init__(self, after: Duration) -> None:
        object.__setattr__(self, "after", seconds("after", after))
        if not self.after > 0:
            raise ValueError("after must be more than 0 seconds: an event would come back without end, at once")


@dataclass(frozen=True, slots=True)
class Discard:
    """The event needs no handling, whatever the attempt: it is gone for this group, and no dead letter."""

    reason: str
    """What operators are shown."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up: the event becomes a dead letter of the handler's group."""

    error: ErrorRecord
    """Why the last attempt failed."""


Result: TypeAlias = Ack | Retry | Snooze | Discard | None
"""What a handler may return."""

Outcome: TypeAlias = Ack | Retry | Snooze | Discard | Dead

ACK = Ack()


def decide(
    result: object, *, attempt: int, max_attempts: int, backoff: Backoff, handler: str, node: str, now: int
) -> Outcome:
    """Return the outcome of an attempt that returned `result`, or raised it. Never raises.

    An event whose payload cannot be decoded is dead at once, and so is one whose handler returned no outcome: the same
    attempt would end the same, or do its work twice. A backoff that fails, or returns what is no duration, is replaced
    by the default one, and the record of the error says so.

    Args:
        result: what the handler returned, or the exception that it raised.
        attempt: number of this attempt, counted from 1.
        max_attempts: how many there may be.
        backoff: asked for the time until the next attempt, unless the handler said it.
        handler, node: names, for the record of an error.
        now: unix microseconds, for the same.
    """
    if result is None:
        return ACK
    if isinstance(result, Ack | Snooze | Discard):
        return result
    if isinstance(result, Retry):
        error = ErrorRecord(
            "Retry", result.reason or "the handler asked for another attempt", time=now, node=node, attempt=attempt
        )
        return _try_again(error, result.after, result.reason, max_attempts, backoff)
    exc = result if isinstance(result, BaseException) else InvalidOutcome(handler, result)
    error = ErrorRecord.of(exc, time=now, node=node, attempt=attempt)
    if isinstance(exc, UndecodablePayload | InvalidOutcome):
        return Dead(error)
    return _try_again(error, None, None, max_attempts, backoff)


def _try_again(
    error: ErrorRecord, after: float | None, reason: str | None, max_attempts: int, backoff: Backoff
) -> Retry | Dead:
    if error.attempt >= max_attempts:
        return Dead(error)
    if after is None:
        try:
            delay = backoff(error.attempt)
            after = None if delay is None else seconds("what the backoff returned", delay)
        except Exception as exc:  # noqa: BLE001 - a callable of the program's own
            why = f"{type(exc).__name__}: {message_of(exc)}"
            error = error.with_note(f"the backoff failed ({why}), so the default one was asked")
            after = DEFAULT_BACKOFF(error.attempt)
        if after is None:
            return Dead(error)
    return Retry(after, reason, error=error)
