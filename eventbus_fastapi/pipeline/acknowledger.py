"""The acknowledger: collects acks of readers without a group and marks their events processed, many to one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from eventbus_fastapi.errors import EventBusError, NotRunning
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Ack, Store

MOST_ACKS = 1_000


class Unit(NamedTuple):
    acks: Sequence[Ack]
    answer: asyncio.Future[int]


class Acknowledger:
    name = "acknowledger"

    def __init__(self, store: Store) -> None:
        self.bell = Bell()
        self._store = store
        self._waiting: list[Unit] = []

    def submit(self, acks: Sequence[Ack]) -> asyncio.Future[int]:
        """Take acks; return a future of how many events they mark, set after the commit.

        Refused acks (NotFound, AckMismatch) change nothing; the future then carries the first refusal, and the other
        acks of the same call still count.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(Unit(acks, answer))
        self.bell.ring()
        return answer

    async def run_once(self) -> float | None:
        """Commit what has gathered."""
        units, self._waiting = self._take()
        if not units:
            return None
        try:
            verdicts = await self._store.acknowledge([ack for unit in units for ack in unit.acks])
        except EventBusError as exc:
            _fail(units, exc)
            return 0
        except BaseException:
            _fail(units, NotRunning("the bus stopped before the ack was known to be stored"))
            raise
        start = 0
        for unit in units:
            refusals = verdicts[start : start + len(unit.acks)]
            start += len(unit.acks)
            if unit.answer.done():
                continue
            refused = next((refusal for refusal in refusals if refusal is not None), None)
            if refused is None:
                unit.answer.set_result(len(unit.acks))
            else:
                unit.answer.set_exception(refused)
        return 0 if self._waiting else None

    def fail_waiting(self, error: EventBusError) -> None:
        """Answer what was not committed, at the end."""
        _fail(self._waiting, error)
        self._waiting.clear()

    def _take(self) -> tuple[list[Unit], list[Unit]]:
        taken = 0
        for place, unit in enumerate(self._waiting):
            if taken and taken + len(unit.acks) > MOST_ACKS:
                return self._waiting[:place], self._waiting[place:]
            taken += len(unit.acks)
        return self._waiting, []


def _fail(units: Sequence[Unit], error: EventBusError) -> None:
    for unit in units:
        if not unit.answer.done():
            unit.answer.set_exception(error)
