"""The admission: how many connections one address and one principal may have open on this node.

    with admission.admit(address_of(websocket), principal) as seat:     # before accept
        ...
        seat.identify(principal)                                        # where it says only later who it is

A seat is free again when its block ends, however it does. Who is refused holds none.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from eventbus_fastapi.errors import TooManyConnections, quote
from eventbus_fastapi.settings import Settings


class Admission:
    """See the module's docstring."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._by_address: Counter[str] = Counter()
        self._by_principal: Counter[str] = Counter()

    def admit(self, address: str, principal: str | None = None) -> Seat:
        """Return a seat for one more connection. `principal`: the name of who it is, if that is known.

        Raises:
            TooManyConnections: the address or the principal has no seat left.
        """
        limit = self._limits.max_connections_per_address
        _take(self._by_address, address, limit, "address", "EVENTBUS_MAX_CONNECTIONS_PER_ADDRESS")
        seat = Seat(self, address)
        try:
            if principal is not None:
                seat.identify(principal)
        except TooManyConnections:
            seat.leave()
            raise
        return seat

    def __len__(self) -> int:
        """Return how many seats are taken."""
        return self._by_address.total()

    def by_address(self, most: int) -> list[tuple[str, int]]:
        """Return the addresses with the most connections, and how many each has."""
        return self._by_address.most_common(most)

    def by_principal(self, most: int) -> list[tuple[str, int]]:
        """Return the same of principals."""
        return self._by_principal.most_common(most)

    def _take_principal(self, principal: str) -> None:
        limit = self._limits.max_connections_per_principal
        _take(self._by_principal, principal, limit, "principal", "EVENTBUS_MAX_CONNECTIONS_PER_PRINCIPAL")

    def _give_back(self, address: str, principal: str | None) -> None:
        _give_back(self._by_address, address)
        if principal is not None:
            _give_back(self._by_principal, principal)


class Seat:
    """One open connection."""

    __slots__ = ("_address", "_admission", "_is_taken", "_principal")

    def __init__(self, admission: Admission, address: str) -> None:
        self._admission = admission
        self._address = address
        self._principal: str | None = None
        self._is_taken = True

    def identify(self, principal: str) -> None:
        """Note who the connection is, for the first time or after a change.

        Raises:
            TooManyConnections: the principal has no seat left; nothing has changed.
        """
        if principal == self._principal:
            return
        self._admission._take_principal(principal)
        if self._principal is not None:
            _give_back(self._admission._by_principal, self._principal)
        self._principal = principal

    def leave(self) -> None:
        """Give the seat back. Leaving twice is once."""
        if self._is_taken:
            self._is_taken = False
            self._admission._give_back(self._address, self._principal)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


def _take(taken: Counter[str], name: str, limit: int, what: str, setting: str) -> None:
    if taken[name] >= limit:
        raise TooManyConnections(f"{what} {quote(name)} has {limit:,} open connections, which is the limit ({setting})")
    taken[name] += 1


def _give_back(taken: Counter[str], name: str) -> None:
    taken[name] -= 1
    if not taken[name]:
        del taken[name]
