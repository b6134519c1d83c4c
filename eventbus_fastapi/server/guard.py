"""The guard of a route: a dependency that asks the gate who comes, before anything else of the route is done.

It is a dependency of the route itself, so it stays with it wherever the route is included.
"""

# Annotations are evaluated here: FastAPI reads that of the call.
from typing import Annotated, Literal

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import EVERYONE, Gate, Principal, principal_of
from eventbus_fastapi.server.address import address_of

Access = Literal["open", "any", "admin"]
"""Who may use a route: everybody without a question, any principal, or admins only."""

Caller = Annotated[Principal, Depends(principal_of)]
"""The principal that uses a route, as the parameter of its endpoint."""


class Guard:
    """See the module's docstring."""

    def __init__(self, gate: Gate, *, for_admins: bool) -> None:
        self._gate = gate
        self._for_admins = for_admins

    async def __call__(self, connection: HTTPConnection) -> None:
        """Let a request in.

        Raises:
            EventBusError, HTTPException: see `Gate.admit`; or only admins may.
        """
        principal = await self._gate.admit(connection)
        if self._for_admins:
            principal.require_admin()


class TokenGuard(Guard, SecurityBase):
    """One that OpenAPI knows to want a token: the page of the documentation asks for it, and shows it from then on."""

    model = HTTPBearerModel(description="A token, or a key, of a principal.")
    scheme_name = "token"


def guard_of(gate: Gate, access: Access) -> Guard | None:
    """Return what guards a route; None: nobody does."""
    if access == "open":
        return None
    made = TokenGuard if gate.is_guarded else Guard
    return made(gate, for_admins=access == "admin")


def counted_as(principal: Principal, connection: HTTPConnection) -> str:
    """Return what the limits of a principal count by: its name, or its address where nobody is asked for a name."""
    return known_as(principal) or address_of(connection)


def known_as(principal: Principal) -> str | None:
    """Return the name of a principal; None: nobody was asked for one."""
    return None if principal is EVERYONE else principal.name
