"""Tickets: what stands for a principal once, for a moment, in a place where a token must not be.

A browser's `EventSource` can send no header, and what is in a URL ends up in logs. So a client that has shown who it is
gets a ticket, for one request that begins within the next 30 seconds.

They are kept in the memory of the process that gave them: so nothing of them is at rest, nobody who is not known yet
makes the database work, and the principal may be of a class of the app's own. So a ticket is of use at the same process
only: where several serve one address, use a cookie, or have the balancer keep a client on one of them.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.errors import Unauthenticated

LIFETIME = 30.0
"""Seconds that a ticket is good for."""
MOST = 10_000
"""Most tickets at a time; beyond that the oldest go, first those of who wants more: nobody takes away another's."""
TICKET_BYTES = 24
"""Random bytes of a ticket."""


class Tickets:
    """See the module's docstring. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    def give(self, principal: Principal) -> str:
        """Return a ticket that stands for a principal, once."""
        self._forget()
        if len(self._given) >= MOST:
            del self._given[self._oldest(principal.name)]
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        self._given[ticket] = principal, self._clock() + LIFETIME
        return ticket

    def take(self, ticket: str) -> Principal:
        """Return whom a ticket stands for, for the only time.

        Raises:
            Unauthenticated: it was used already, is too old, or none of ours.
        """
        self._forget()
        found = self._given.pop(ticket, None)
        if found is None:
            raise Unauthenticated("the ticket is used already, older than 30 seconds, or of another node")
        return found[0]

    def __len__(self) -> int:
        """Return how many wait to be used."""
        self._forget()
        return len(self._given)

    def _oldest(self, name: str) -> str:
        """Return the oldest ticket of a principal; if it has none, the oldest of all."""
        own = (ticket for ticket, (principal, _) in self._given.items() if principal.name == name)
        return next(own, next(iter(self._given)))

    def _forget(self) -> None:
        now = self._clock()
        while self._given:
            ticket, (_, until) = next(iter(self._given.items()))
            if now < until:
                return
            del self._given[ticket]
