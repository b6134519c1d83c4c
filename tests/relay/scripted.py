"""A destination whose answers a test decides: it keeps what arrived, as a broker does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import BrokerUnavailable
from eventbus_fastapi.relay.destination import CONFIRMED, Outcome, unknown, unsent
from eventbus_fastapi.relay.parcel import Parcel
from eventbus_fastapi.relay.relay import Relay
from tests.waiting import eventually

Answer = Callable[[Parcel], Outcome]


class Scripted:
    """See the module's docstring."""

    kind = "scripted"
    prefix = "ce-"

    def __init__(self) -> None:
        self.arrived: list[Parcel] = []
        self.answer: Answer = lambda parcel: CONFIRMED
        """Says what becomes of a parcel; it arrives unless it is unsent or refused."""
        self.is_away = False
        self.gate = asyncio.Event()
        """Closed: a send does not end."""
        self.gate.set()
        self.sends = 0
        self.is_closed = False

    @property
    def seqs(self) -> list[int]:
        return [parcel.message.seq for parcel in self.arrived]

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Seq and attempt of each copy."""
        return [(parcel.message.seq, int(parcel.headers["eventbus-attempt"])) for parcel in self.arrived]

    def write_key(self, key: str) -> str:
        return key

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        pass

    async def connect(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("it is away")

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        self.sends += 1
        if self.is_away:
            return [unsent("it is away")] * len(parcels)
        outcomes = [self.answer(parcel) for parcel in parcels]
        self.arrived += [
            parcel
            for parcel, outcome in zip(parcels, outcomes, strict=True)
            if outcome.verdict in ("confirmed", "unknown")
        ]
        await self.gate.wait()
        return outcomes

    async def close(self) -> None:
        self.is_closed = True


def once(outcome: Outcome, *seqs: int) -> Answer:
    """Answer so to the first copy of these events, and confirm all else."""
    left = set(seqs)

    def answer(parcel: Parcel) -> Outcome:
        if parcel.message.seq in left:
            left.discard(parcel.message.seq)
            return outcome
        return CONFIRMED

    return answer


LOST = unknown("the connection was lost")


def relay_of(bus: EventBus, destination: Scripted, *patterns: str, **options: Any) -> Relay:
    options = {"name": "relay", "start": "earliest", **options}
    return Relay(bus.node, destination, patterns or ("#",), **options)


async def drained(bus: EventBus, name: str = "relay", timeout: float = 10.0) -> None:
    """Wait until the group has nothing left."""

    async def is_done() -> bool:
        figures = (await bus.groups.group(name)).figures
        return (figures.lag, figures.in_flight, figures.retries) == (0, 0, 0)

    await eventually(is_done, timeout)
