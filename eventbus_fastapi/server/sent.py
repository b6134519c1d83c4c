"""What was sent to one subscription, as runs of the log: within a run, every event that matches was sent.

A run ends where the subscription was told of a gap. So what is remembered does not grow with the number of events, and
an ack of everything up to a seq finds the events in the log again.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Gap


class Sent:
    __slots__ = ("_runs",)

    def __init__(self, after: int) -> None:
        self._runs: list[tuple[int, int]] = [(after, after)]
        """(exclusive, inclusive), ascending. The last one grows."""

    @property
    def last_seq(self) -> int:
        """No event after this seq was sent."""
        return self._runs[-1][1]

    def note(self, messages: Sequence[Message]) -> None:
        """Events were sent."""
        for message in reversed(messages):
            if message.is_durable:
                after, _ = self._runs[-1]
                self._runs[-1] = (after, message.seq)
                return

    def note_gap(self, gap: Gap) -> None:
        """Events were left out. What another log had (`epoch`) has no place in this one."""
        if gap.reason == "epoch":
            return
        after, until = self._runs[-1]
        if after == until:
            self._runs.pop()
        self._runs.append((gap.last_seq, gap.last_seq))

    def first_up_to(self, seq: int) -> tuple[int, int] | None:
        """Return the first run, up to `seq`, inclusive; None: nothing is left up to there."""
        after, until = self._runs[0]
        return (after, min(until, seq)) if after < min(until, seq) else None

    def forget(self, seq: int) -> None:
        """Do not return again what the first run has up to `seq`; the rest stays, also what was sent meanwhile."""
        after, until = self._runs[0]
        if seq < until or len(self._runs) == 1:
            self._runs[0] = (max(after, min(until, seq)), until)
        else:
            del self._runs[0]
