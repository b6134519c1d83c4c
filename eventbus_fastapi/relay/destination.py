"""What a relay needs of a broker, and what a broker says of each parcel.

confirmed   it is there
refused     it can never be there: no queue takes it, it is too large
unsent      it is not there, and may be later: the broker is away or full
unknown     it was sent, and the confirm was lost
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from eventbus_fastapi.relay.parcel import Parcel

Verdict = Literal["confirmed", "refused", "unsent", "unknown"]


class Outcome(NamedTuple):
    """What has become of a parcel."""

    verdict: Verdict
    reason: str = ""
    """Why it was not confirmed, for logs and dead letters."""


CONFIRMED = Outcome("confirmed")


def unsent(reason: object) -> Outcome:
    return Outcome("unsent", shown(reason))


def unknown(reason: object) -> Outcome:
    return Outcome("unknown", shown(reason))


def refused(reason: object) -> Outcome:
    return Outcome("refused", shown(reason))


def shown(reason: object) -> str:
    """Return why, in words; of an error with its type."""
    if isinstance(reason, BaseException):
        return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
    return str(reason)


class Destination(Protocol):
    """A broker, as one relay uses it."""

    kind: str
    """In the default name of a relay."""
    prefix: str
    """Of headers that have attributes of a CloudEvent, as CloudEvents' binding to the broker has it."""

    def write_key(self, key: str) -> str:
        """Return a key as a part of a subject."""

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        """Learn for whom it sends. Called once, before `connect`.

        Raises:
            InvalidRelay: the broker cannot have such subjects.
        """

    async def connect(self) -> None:
        """Have a connection: at once if there is one.

        Raises:
            BrokerUnavailable: it cannot be reached now.
            InvalidRelay: something has to be changed first; the message says what.
        """

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Send parcels in their order without waiting in between, and wait for what becomes of each. Raises nothing."""

    async def close(self) -> None:
        """Let go of what was opened here; a broker that was handed in stays connected."""
