"""What was sent to one subscription, as runs of the log: within a run, every event that matches was sent.

A run ends where the subscription was told of a gap. So what is remembered does not grow with the number of events, and
an ack of everything up to a seq finds the events in the log again.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Gap


class Sent:
    def __init__(self, after: int) -> None:
        self._runs: list[tuple[int, int]] = [(after, after)]
        """(exclusive, inclusive), ascending."""

    def note(self, messages: Sequence[Message]) -> None:
        """Events were sent."""
        for message in reversed(messages):
            if message.is_durable:
                after, _ = self._runs[-1]
                self._runs[-1] = (after, message.seq)
                return

    def note_gap(self, gap: Gap) -> None:
        """Events were left out."""
        after, until = self._runs[-1]
        if after == until:
            self._runs.pop()
        self._runs.append((gap.last_seq, gap.last_seq))

    def up_to(self, seq: int) -> list[tuple[int, int]]:
        """Return the runs up to `seq`, inclusive."""
        return [(after, min(until, seq)) for after, until in self._runs if after < min(until, seq)]

    def forget(self, seq: int) -> None:
        """Everything up to `seq` was acknowledged: `up_to` need not return it again."""
        latest = self._runs[-1]
        self._runs = [(max(after, min(until, seq)), until) for after, until in self._runs if until > seq]
        if not self._runs:
            self._runs = [(latest[1], latest[1])]
