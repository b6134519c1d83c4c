"""One membership of a group as the client keeps it: what has arrived, and what of it is still its own.

The group keeps the place, not the member: after a reconnect it begins anew, and whatever it was sent before is lost to
it, as the server has given it to others. Nothing here sends, waits or reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eventbus_fastapi.errors import BadFrame, EventBusError
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.commands import Subscribe


class Held:
    """An event that this member was sent, until it is settled or lost."""

    __slots__ = ("attempt", "connection", "is_lost", "is_settled", "membership", "message", "on_lost")

    def __init__(self, membership: Membership, message: Message, attempt: int) -> None:
        self.membership = membership
        self.message = message
        self.attempt = attempt
        """Counted from 1."""
        self.connection = membership.connection
        """The number of the connection that it came over."""
        self.is_settled = False
        """True once the program has said what has become of it."""
        self.is_lost = False
        """True once it is another member's."""
        self.on_lost: Callable[[], object] | None = None
        """Called when it is lost."""

    def lose(self) -> None:
        """It is another member's from now on."""
        self.membership.forget(self)
        if not self.is_lost:
            self.is_lost = True
            if not self.is_settled and self.on_lost is not None:
                self.on_lost()


class Membership:
    """A subscription with a group, over any number of connections."""

    __slots__ = ("_held", "_items", "answer", "attempts", "connection", "error", "is_confirmed", "options")

    def __init__(self, options: Subscribe) -> None:
        self.options = options
        """What the program asked for; `sub` names the subscription on every connection."""
        self.answer: Mapping[str, Any] | None = None
        """What the server has said about the group; None before that."""
        self.error: EventBusError | None = None
        """Why the membership ended; None while it goes on."""
        self.is_confirmed = False
        """True once the server has answered on this connection."""
        self.attempts = 0
        """Retryable refusals since the last event."""
        self.connection = 0
        """Counts the times that it began."""
        self._items: deque[Held] = deque()
        self._held: dict[tuple[int, int], Held] = {}

    @property
    def sub(self) -> int:
        assert isinstance(self.options.sub, int)
        return self.options.sub

    @property
    def unsettled(self) -> list[Held]:
        """What the member holds, taken by the program or not."""
        return [held for held in self._held.values() if not held.is_settled]

    # --- the connection ---

    def subscribe(self, frame_id: int) -> Subscribe:
        """Return the command that joins the group, again or for the first time."""
        self.suspend()
        self.connection += 1
        return self.options._replace(id=frame_id)

    def suspend(self) -> None:
        """Note that the connection, or the subscription on it, has ended: what was sent is for others now."""
        self.is_confirmed = False
        self._items.clear()
        for held in list(self._held.values()):
            held.lose()

    def confirm(self, answer: Mapping[str, Any]) -> None:
        """Note the server's answer.

        Raises:
            BadFrame: it is not the answer of a group.
        """
        if not isinstance(answer.get("ack_wait"), int | float) or not isinstance(answer.get("patterns"), list):
            raise BadFrame("the server did not answer with a group")
        self.answer = answer
        self.is_confirmed = True

    # --- what arrives ---

    def deliver(self, message: Message, attempt: object) -> None:
        """Keep an event until it is taken.

        Raises:
            BadFrame: it was not sent to a member of a group, or to one that has no credit for it by far.
        """
        if not self.is_confirmed:
            raise BadFrame(f"subscription {self.sub} got something before it was confirmed")
        if type(attempt) is not int or attempt < 1:
            raise BadFrame(f"subscription {self.sub} got an event without an attempt")
        if len(self._items) > _MOST:
            raise BadFrame(f"subscription {self.sub} got more events than any credit allows")
        held = self._held[message.seq, attempt] = Held(self, message, attempt)
        self._items.append(held)
        self.attempts = 0

    def lose(self, seqs: Sequence[int]) -> None:
        """The server has taken events back."""
        lost = set(seqs)
        for held in [held for (seq, _), held in self._held.items() if seq in lost]:
            held.lose()

    # --- what the program does ---

    def take(self) -> Held | None:
        """Return what comes next, also what was lost while it waited; None if nothing waits."""
        return self._items.popleft() if self._items else None

    def forget(self, held: Held) -> None:
        """It is settled or lost."""
        self._held.pop((held.message.seq, held.attempt), None)


_MOST = 20_000
