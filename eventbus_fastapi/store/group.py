"""The values of groups: how one is, what is held of it, and what has become of that. `groups` reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.settings import ArchiveMode as ArchiveMode  # of a group, and what a deployment says of it

OrderedBy = Literal["key", "log"]
"""`key`: of a key one event after the other. `log`: all events in the order of the log, and one owner at a time."""
Ended = Literal["acked", "discarded", "dead"]
"""How an event can end in a group."""

MOST_ERRORS = 20
"""Errors of an event that are kept, the newest."""


class Group(NamedTuple):
    """A durable reader of the log."""

    id: int
    name: str
    patterns: tuple[str, ...]
    cursor: int
    """The last seq that was claimed, or passed over because it did not match."""
    ordered_by: OrderedBy | None
    max_attempts: int
    """Attempts after which an event becomes a dead letter."""
    is_paused: bool
    lost: int
    """Events that retention removed before the group had read them, or while a failed attempt of it had them."""
    archive: ArchiveMode = "none"
    max_in_flight: int | None = None
    """Events that all nodes together may hold at the same time; None: any number."""
    rate_limit: str | None = None
    """The name of the limit that says how often an attempt may begin; None: as often as there are events."""

    @property
    def is_limited(self) -> bool:
        """Whether there may be events that must not be taken yet."""
        return self.max_in_flight is not None or self.rate_limit is not None


class Figures(NamedTuple):
    """How a group is doing."""

    lag: int
    """Events of the log, matching or not, that it has not looked at."""
    lag_seconds: float
    """How long the oldest of them has been in the log."""
    in_flight: int
    retries: int
    """Events that wait for another attempt."""
    dead: int


class Claim(NamedTuple):
    """What a node holds of a range: settle all of `seqs` under the token, before the lease ends or renewing it."""

    token: UUID
    seqs: tuple[int, ...]
    up_to: int
    """The group's cursor after it: less than was asked for, where a limit of the group leaves no room for all."""


class Held(NamedTuple):
    """An event that is handed out for another attempt."""

    message: Message
    attempt: int
    """The number of this attempt; 1 where none had begun before."""
    token: UUID
    errors: list[dict[str, Any]]
    """What went wrong before, oldest first."""


class Again(NamedTuple):
    """An event that is to be tried again."""

    seq: int
    attempt: int
    """Attempts that count so far."""
    delay: int
    """Microseconds from now."""
    errors: list[dict[str, Any]]


class Death(NamedTuple):
    """An event that is given up."""

    seq: int
    attempt: int
    errors: list[dict[str, Any]]


class Ending(NamedTuple):
    """How an event has ended, for the archive of its group."""

    message: Message
    outcome: Ended
    attempt: int
    duration: int | None
    """Of the last attempt, microseconds; None: nobody knows."""
    owner: str
    """The node that made it."""
    errors: Sequence[dict[str, Any]]


class Settlement(NamedTuple):
    """What has become of events that one token holds."""

    group_id: int
    token: UUID
    done: Sequence[int] = ()
    """Seqs that were acked or discarded."""
    again: Sequence[Again] = ()
    dead: Sequence[Death] = ()
    pending: Sequence[int] | None = None
    """Of a claim: the seqs that are still held after this. None: the token is that of a retry."""
    endings: Sequence[Ending] = ()
    """What of it goes to the archive."""

    @property
    def seqs(self) -> list[int]:
        return [*self.done, *(item.seq for item in self.again), *(item.seq for item in self.dead)]


class HeldRetry(NamedTuple):
    """A retry that a token holds."""

    group_id: int
    seq: int
    token: UUID


class Look(NamedTuple):
    """Where a group is, and what it has to do besides reading on."""

    group: Group
    lease_ends: int | None
    retry_due: int | None
    now: int


class WaitingRetry(NamedTuple):
    """An event that waits for another attempt, or is held for it."""

    seq: int
    message_id: UUID
    topic: str
    key: str | None
    attempt: int
    """Attempts begun so far."""
    run_at: int
    """When the next attempt is due, unix microseconds; while it is held, when the lease ends."""
    is_held: bool
    errors: list[dict[str, Any]]
    """What went wrong so far; empty: it waits for another event of its key, or was given back."""


class DeadLetter(NamedTuple):
    """An event that its group has given up."""

    id: int
    message: Message
    attempt: int
    errors: list[dict[str, Any]]
    died_at: int


def errors_text(errors: Sequence[dict[str, Any]]) -> str:
    """Return errors as they are stored, the newest."""
    return json.dumps(errors[-MOST_ERRORS:])
