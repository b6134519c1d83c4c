"""One subscription as the client keeps it: what has arrived, what the program has taken, where to resume.

The place to resume from follows what was *taken*, not what arrived: what still waits here when a connection is lost is
asked for again, so the program sees no hole and no double. Nothing here sends, waits or reads a clock.
"""

from __future__ import annotations

from collections import deque
from uuid import UUID

from eventbus_fastapi.errors import BadFrame, EventBusError, LogGap
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.commands import Subscribe
from eventbus_fastapi.protocol.frames import CaughtUp, Gap


class Reading:
    """A subscription, over any number of connections.

    At most `window` events are on their way or wait here: the server sends no more than it has credit for, and gets new
    credit as the program takes. So a slow program bounds the memory of both sides, and holds up nothing else.
    """

    __slots__ = (
        "_consumed",
        "_from",
        "_items",
        "_processed_before",
        "_received",
        "_server_epoch",
        "attempts",
        "epoch",
        "error",
        "is_confirmed",
        "options",
        "position",
        "started_at",
        "window",
    )

    def __init__(self, options: Subscribe, window: int) -> None:
        self.options = options
        """What the program asked for; `sub` names the subscription on every connection."""
        self.window = window
        """Most events that are on their way or wait to be taken."""
        self.position: int | None = options.start if isinstance(options.start, int) else None
        """Seq of the last event taken; at first where the subscription started, None until the server has said so."""
        self.epoch: UUID | None = options.epoch
        """The log that `position` belongs to; None: whichever the first server has."""
        self.started_at: int | None = None
        """The `after` of the first `ok`; None before that."""
        self.error: EventBusError | None = None
        """Why the subscription ended; None while it goes on. What has arrived before may still be taken."""
        self.is_confirmed = False
        """True once the server has answered on this connection."""
        self.attempts = 0
        """Retryable refusals since the last event."""
        self._items: deque[Message | Gap | CaughtUp] = deque()
        self._received = 0
        """Seq of the last event that arrived on this connection."""
        self._from = 0
        """Where this connection started."""
        self._server_epoch: UUID | None = None
        self._processed_before: int | None = None
        """A replay leaves out what was processed before this time; None until the server has said so."""
        self._consumed = 0
        """Events that no longer wait here, and for which no new credit was given yet."""

    @property
    def sub(self) -> int:
        assert isinstance(self.options.sub, int)
        return self.options.sub

    # --- the connection ---

    def subscribe(self, frame_id: int) -> Subscribe:
        """Return the command that starts it, or resumes it after what was taken; the rest will come again."""
        self.suspend()
        self._items.clear()
        self._consumed = 0
        start = self.options.start if self.position is None else self.position
        return self.options._replace(
            id=frame_id,
            start=start,
            epoch=self.epoch,
            credit=self.window,
            processed_before=self._processed_before,
        )

    def suspend(self) -> None:
        """Note that the server sends nothing more. What has arrived may still be taken meanwhile."""
        self.is_confirmed = False

    def confirm(self, after: int, processed_before: int, epoch: UUID) -> None:
        """Note the server's answer: it sends what follows `after`, in the log named `epoch`.

        The first `processed_before` says when this subscription began, on every later connection, too.
        """
        if self._processed_before is None or epoch != self.epoch:
            self._processed_before = processed_before
        self.is_confirmed = True
        self._from = self._received = after
        self._server_epoch = epoch
        if self.position is None:
            self.position = after
        if self.epoch is None:
            self.epoch = epoch
        if self.started_at is None:
            self.started_at = after

    # --- what arrives ---

    def deliver(self, message: Message) -> bool:
        """Keep an event until it is taken. Return False, and forget it, if it or a later one came before.

        Raises:
            BadFrame: the server had no credit for it by far, or has not confirmed the subscription.
        """
        self._expect_confirmed()
        if message.seq:
            if message.seq <= self._received:
                self._consumed += 1
                return False
            self._received = message.seq
        self._keep(message)
        self.attempts = 0
        return True

    def gap(self, gap: Gap) -> None:
        """Keep a gap until it is taken, in its place among the events."""
        self._expect_confirmed()
        if gap.reason != "epoch":
            self._received = max(self._received, gap.last_seq)
        self._keep(gap)

    def caught_up(self, caught_up: CaughtUp) -> None:
        """Note that no event up to its seq is missing: the position moves there once all before it was taken."""
        self._expect_confirmed()
        if not self._items:
            self._pass(caught_up.seq)
            return
        if isinstance(self._items[-1], CaughtUp):
            self._items.pop()
        self._keep(caught_up)

    def _expect_confirmed(self) -> None:
        if not self.is_confirmed:
            raise BadFrame(f"subscription {self.sub} got something before it was confirmed")

    def _keep(self, item: Message | Gap | CaughtUp) -> None:
        # Gaps and events that are not stored may come beside what the credit allows: hence the slack.
        if len(self._items) > 2 * self.window + _SLACK:
            raise BadFrame(f"subscription {self.sub} got more events than its credit of {self.window:,} allows")
        self._items.append(item)

    # --- what the program takes ---

    def take(self) -> Message | LogGap | None:
        """Return what comes next, and move the position past it; None if nothing waits."""
        while self._items:
            item = self._items.popleft()
            if isinstance(item, Message):
                self._consumed += 1
                self._pass(item.seq)
                return item
            if isinstance(item, Gap):
                if item.reason == "epoch":  # another log: its numbers say nothing about the old ones
                    self.position, self.epoch = self._from, self._server_epoch
                else:
                    self._pass(item.last_seq)
                return LogGap(item.first_seq, item.last_seq, item.reason)
            self._pass(item.seq)
        return None

    def refill(self) -> int:
        """Return the credit to give now; 0: it is not time yet. Half a window goes at once, so that few frames do."""
        if not self.is_confirmed or self._consumed < max(1, self.window // 2):
            return 0
        credit, self._consumed = self._consumed, 0
        return credit

    def _pass(self, seq: int) -> None:
        self.epoch = self._server_epoch
        self.position = seq if self.position is None else max(self.position, seq)


_SLACK = 1_000
