"""The queue steward: looks after queues for those who run a bus. How they are served and by whom; pause, resume, scale.

It works on the store alone. A process that serves a queue learns within about a second what was said, and tells every
few seconds how it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from eventbus_fastapi.store import Store
from eventbus_fastapi.store.queues import Control, check_queue_name
from eventbus_fastapi.store.roster import Serving, WorkerStatus

NOTHING_SAID = Control(None, is_paused=False)


class QueueStatus(NamedTuple):
    """A queue: what operators have said about it, and how it is served."""

    name: str
    workers: int | None
    """Events that each process handles at the same time: as operators say, else as the processes do, the most where
    they differ. None: no process serves it, and nobody has said anything."""
    is_scaled: bool
    """Operators have said how many."""
    is_paused: bool
    """Operators have paused it."""
    processes: int
    """Processes that serve it, as far as they were seen lately."""
    busy: int
    """Events that they are handling."""
    groups: tuple[str, ...]
    """Groups that they serve, by name."""


class QueueSteward:
    """See the module's docstring.

    All raise `InvalidQueue` where there cannot be such a queue, and `StoreUnavailable` where the database is away. A
    queue that no process serves may be paused and scaled as well: for when one does.
    """

    def __init__(self, store: Store, *, require: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._require = require

    async def queues(self) -> list[QueueStatus]:
        """Return the queues that are served or of which something is said, by name."""
        self._require()
        controls = await self._store.queues.controls()
        served: dict[str, list[Serving]] = {name: [] for name in controls}
        for worker in await self._store.roster.all():
            if worker.is_alive:
                for name, serving in worker.queues.items():
                    served.setdefault(name, []).append(serving)
        return [_status(name, controls.get(name, NOTHING_SAID), served[name]) for name in sorted(served)]

    async def queue(self, name: str) -> QueueStatus:
        """Return how a queue is; one that nobody serves and of which nothing is said has no processes."""
        check_queue_name(name)
        for status in await self.queues():
            if status.name == name:
                return status
        return _status(name, NOTHING_SAID, [])

    async def workers(self) -> list[WorkerStatus]:
        """Return the processes that serve queues, by host and start; those that died are among them for minutes."""
        self._require()
        return await self._store.roster.all()

    async def pause(self, name: str) -> None:
        """Have nothing more taken for a queue, in any process. What runs goes on; what has not begun is given back."""
        self._require()
        await self._store.queues.pause(name)

    async def resume(self, name: str) -> None:
        """End a pause."""
        self._require()
        await self._store.queues.resume(name)

    async def scale(self, name: str, workers: int | None) -> None:
        """Have each process that serves a queue handle so many events at the same time; None: as its program says.

        Raises:
            InvalidQueue: it is no integer from 1 to 1,000.
        """
        self._require()
        await self._store.queues.scale(name, workers)


def _status(name: str, control: Control, served: list[Serving]) -> QueueStatus:
    return QueueStatus(
        name,
        control.workers or max((each.workers for each in served), default=None),
        control.workers is not None,
        control.is_paused,
        len(served),
        sum(each.busy for each in served),
        tuple(sorted({group for each in served for group in each.groups})),
    )
