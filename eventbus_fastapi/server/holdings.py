"""What a member of a group holds: the events that were sent to it and are not settled, and until when each must be.

    sent ──▶ held ──settle──▶ gone
              │ the ack wait ends, or the lease of the node is lost
              ▼
           overdue ──named by the member──▶ gone

What is overdue is no longer the member's, and yet counts as held until the member has spoken of it: it may be working
on it still, and one that has stalled must not be sent more and more. One look at the first deadline tells whether
anything is overdue, as all have the same wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from eventbus_fastapi.pipeline.delivery import Delivery


class Holdings:
    """See the module's docstring. Times are the event loop's."""

    def __init__(self, ack_wait: float) -> None:
        self._ack_wait = ack_wait
        self._held: dict[int, tuple[float, Delivery]] = {}
        """By seq: until when, ascending."""
        self._overdue: dict[int, list[int]] = {}
        """By seq: the attempts that were taken back."""
        self._overdue_count = 0

    def __len__(self) -> int:
        """How many count against the credit."""
        return len(self._held) + self._overdue_count

    @property
    def first_due(self) -> float | None:
        """When the first wait ends; None: nothing is held."""
        for due, _ in self._held.values():
            return due
        return None

    def hold(self, deliveries: Iterable[Delivery], now: float) -> None:
        """Begin the wait of deliveries."""
        for delivery in deliveries:
            self._held[delivery.message.seq] = (now + self._ack_wait, delivery)

    def find(self, seq: int, attempt: int | None = None) -> Delivery | None:
        """Return what is held of a seq; None: nothing, or another attempt."""
        _, delivery = self._held.get(seq, (0.0, None))
        if delivery is None or delivery.is_lost or (attempt is not None and delivery.attempt != attempt):
            return None
        return delivery

    def up_to(self, seq: int) -> list[int]:
        """Return the seqs up to one that the member may speak of, first what is overdue."""
        overdue = [late for late, attempts in self._overdue.items() for _ in attempts if late <= seq]
        return [*overdue, *(held for held in self._held if held <= seq)]

    def release(self, seq: int, attempt: int | None = None) -> Delivery | None:
        """Return what is held of a seq, which the member has settled; None: it is not the member's (any more)."""
        if self._forget_overdue(seq, attempt):
            return None
        delivery = self.find(seq, attempt)
        if delivery is not None:
            del self._held[seq]
        return delivery

    def extend(self, seq: int, attempt: int | None, now: float) -> bool:
        """Begin the wait of a seq anew; return False where it is not the member's."""
        delivery = self.find(seq, attempt)
        if delivery is None:
            return False
        del self._held[seq]  # to the end of the order
        self._held[seq] = (now + self._ack_wait, delivery)
        return True

    def take_back(self, delivery: Delivery) -> None:
        """It is no longer the member's."""
        seq = delivery.message.seq
        _, held = self._held.get(seq, (0.0, None))
        if held is delivery:
            del self._held[seq]
            self._overdue.setdefault(seq, []).append(delivery.attempt)
            self._overdue_count += 1

    def take_overdue(self, now: float) -> list[Delivery]:
        """Take back what should have been settled by now, and return it."""
        overdue = []
        for due, delivery in self._held.values():
            if due > now:
                break
            overdue.append(delivery)
        for delivery in overdue:
            self.take_back(delivery)
        return overdue

    def clear(self) -> list[Delivery]:
        """Return all that is held, as the member has left."""
        held = [delivery for _, delivery in self._held.values()]
        self._held.clear()
        self._overdue.clear()
        self._overdue_count = 0
        return held

    def _forget_overdue(self, seq: int, attempt: int | None) -> bool:
        """Let go of the attempt that was taken back, if it is what the member speaks of.

        A member that does not say which attempt it means speaks of the oldest: it was sent that one first.
        """
        attempts = self._overdue.get(seq)
        if attempts is None or (attempt is not None and attempt not in attempts):
            return False
        attempts.remove(attempts[0] if attempt is None else attempt)
        if not attempts:
            del self._overdue[seq]
        self._overdue_count -= 1
        return True
