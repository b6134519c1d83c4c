"""A seam: joins runs, in whatever order they come, to one line along the log.

`front` is how far the line is whole. A run that follows it moves it on; one that is older is dropped; one that leaves a
gap waits until the gap is closed. No I/O, no clock.
"""

from __future__ import annotations

from bisect import insort

from eventbus_fastapi.pipeline.run import Run


class Seam:
    """See the module's docstring."""

    def __init__(self, front: int = 0) -> None:
        self.front = front
        """Everything up to this seq has come."""
        self.waiting_bytes = 0
        """How large the runs beyond a gap are together, about."""
        self._ahead: list[Run] = []  # beyond a gap, in order

    @property
    def waiting(self) -> int:
        """Runs beyond a gap."""
        return len(self._ahead)

    @property
    def gap_to(self) -> int | None:
        """The last seq that is missing before something that has come; None: there is no gap."""
        return self._ahead[0].first - 1 if self._ahead else None

    def add(self, run: Run) -> list[Run]:
        """Take a run; return those that are next in line now. Their events up to the old front are old."""
        if run.last > self.front:
            insort(self._ahead, run, key=lambda each: (each.first, each.last))
            self.waiting_bytes += run.size
        return self._join()

    def move_to(self, front: int) -> list[Run]:
        """Count everything up to a seq as come; return the runs that are next in line now."""
        self.front = max(self.front, front)
        return self._join()

    def _join(self) -> list[Run]:
        joined = []
        while self._ahead and self._ahead[0].first <= self.front + 1:
            run = self._ahead.pop(0)
            self.waiting_bytes -= run.size
            if run.last > self.front:
                joined.append(run)
                self.front = run.last
        return joined
