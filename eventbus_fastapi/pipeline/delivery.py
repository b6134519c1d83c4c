"""A delivery: an event that this node holds for a group, until it is settled or lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.outcome import Outcome
from eventbus_fastapi.settings import ArchiveMode

if TYPE_CHECKING:
    from eventbus_fastapi.telemetry.spans import Delivering


@dataclass(frozen=True, slots=True)
class Release:
    """Given back at once; the attempt does not count, as nobody has finished it."""


Settled = Outcome | Release
"""How a delivery ends."""
RELEASE = Release()


class Delivery:
    """See the module's docstring."""

    __slots__ = (
        "_began_at",
        "archive",
        "attempt",
        "duration",
        "errors",
        "given_back",
        "group_id",
        "is_lost",
        "is_retry",
        "is_settled",
        "message",
        "on_gone",
        "on_lost",
        "on_written",
        "queue",
        "span",
        "token",
    )

    def __init__(
        self,
        message: Message,
        *,
        group_id: int,
        token: UUID,
        attempt: int = 1,
        errors: list[dict[str, Any]] | None = None,
        is_retry: bool = False,
    ) -> None:
        self.message = message
        self.group_id = group_id
        self.token = token
        """Names the lease; whoever settles without it changes nothing."""
        self.attempt = attempt
        """Counted from 1."""
        self.errors = [] if errors is None else errors
        """Records of the attempts that failed, oldest first."""
        self.is_retry = is_retry
        """True if it has a row of its own in the store, False if it is part of a range."""
        self.archive: ArchiveMode = "none"
        """Which endings its group keeps; the consumer sets it."""
        self.queue = ""
        """The queue that serves its group here; empty: none. The consumer sets it."""
        self.span: Delivering | None = None
        """What follows it in the trace of its event, while a client has it; None: nobody looks."""
        self.duration: int | None = None
        """How long the attempt took, microseconds; None: it was not begun, or has not ended."""
        self._began_at: float | None = None
        self.given_back: Settled = RELEASE
        """How it ends where nobody settles it, because the node stops or cannot renew its lease."""
        self.is_settled = False
        self.is_lost = False
        """True once the lease is another's: what is done now is done twice."""
        self.on_gone: Callable[[Delivery], object] | None = None
        """Called with it when it is lost, for the consumer that has claimed it. One function for all: if each delivery
        had its own, it would be a cycle, which only the garbage collector removes."""
        self.on_lost: Callable[[], object] | None = None
        """Called when it is lost, for whoever handles it."""
        self.on_written: Callable[[], object] | None = None
        """Called when its outcome is in the store."""

    def begin(self) -> None:
        """Whoever handles it has it now."""
        self._began_at = time.perf_counter()

    def end(self) -> None:
        """It was handled, however that ended."""
        if self._began_at is not None:
            self.duration = round((time.perf_counter() - self._began_at) * 1_000_000)

    def __repr__(self) -> str:
        return f"<Delivery seq={self.message.seq} attempt={self.attempt}>"
