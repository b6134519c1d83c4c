"""The gate: finds out who asks, before anything is done for them. It holds the one `authenticate` of a bus.

    connection ─▶ origin ─▶ credentials ─▶ authenticate ─▶ Principal, kept in the connection's scope

Without `authenticate` everybody may do everything, but for pages of other origins, and the app guards the routes
itself. What a principal may do is asked where it is done: by the endpoints and by the WebSocket.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.asking import ask
from eventbus_fastapi.auth.credentials import presented, presenting
from eventbus_fastapi.auth.origins import check_origin, check_origins
from eventbus_fastapi.auth.principal import EVERYONE, Principal
from eventbus_fastapi.auth.tickets import Tickets
from eventbus_fastapi.auth.way import Way, ways_of
from eventbus_fastapi.errors import (
    AccessDenied,
    CredentialsExpired,
    EventBusError,
    SettingsError,
    Unauthenticated,
    quote,
)

logger = logging.getLogger(__name__)

Authenticate = Callable[[HTTPConnection], Principal | Awaitable[Principal | None] | None]
"""Says who asks, of the request or handshake: a Principal, or None where it has no credentials that this callable
knows. It may be async; if not, it is called in a thread. It raises `Unauthenticated` or `Forbidden`, or Starlette's
`HTTPException` with an answer of its own."""

PRINCIPAL = "eventbus.principal"
"""Where the scope of a connection has its principal."""


TICKET = "eventbus.ticket"
"""Where it has the principal of its ticket, if it came with one."""

_HINT = "no valid credentials were given; a token in the URL is not looked at"


class Gate:
    """See the module's docstring.

    Args:
        authenticate: says who asks; None: everybody may do everything.
        tickets: whether a ticket may stand for credentials, in the query of a URL.
        allowed_origins: other origins than the bus's own whose pages may use it.

    Raises:
        SettingsError: it cannot be called, or an origin is malformed.
    """

    def __init__(
        self,
        authenticate: Authenticate | None = None,
        *,
        allowed_origins: Iterable[str] = (),
        tickets: bool = False,
    ) -> None:
        if authenticate is not None and not callable(authenticate):
            raise SettingsError(f"authenticate: expected a callable, got {quote(authenticate)}")
        if inspect.isclass(authenticate):
            raise SettingsError(f"authenticate: expected an instance, got the class {authenticate.__name__}")
        self._authenticate = authenticate
        self._tickets = Tickets() if tickets and authenticate is not None else None
        self._allowed = check_origins(allowed_origins)

    @property
    def is_guarded(self) -> bool:
        """Whether anybody is asked who they are."""
        return self._authenticate is not None

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways to say who one is; none where nobody is asked."""
        if self._authenticate is None:
            return ()
        return (*ways_of(self._authenticate), *((Way("ticket"),) if self.gives_tickets else ()))

    @property
    def gives_tickets(self) -> bool:
        """Whether a ticket may stand for credentials."""
        return self._tickets is not None

    def give_ticket(self, principal: Principal) -> str:
        """Return a ticket for one request of a principal."""
        assert self._tickets is not None
        return self._tickets.give(principal)

    async def admit(self, connection: HTTPConnection) -> Principal:
        """Return who asks, of a request or a handshake; `principal_of` finds it from then on.

        Raises:
            AccessDenied: they may not come in.
            HTTPException: the same, in the words of `authenticate`.
            EventBusError: `authenticate` failed; its log has the details.
        """
        self.check_origin(connection)
        if self._tickets is not None and _may_have_ticket(connection):
            connection.scope[TICKET] = self._tickets.take(connection.query_params["ticket"])
        principal = await self.identify(connection)
        connection.scope[PRINCIPAL] = principal
        return principal

    def check_origin(self, connection: HTTPConnection) -> None:
        """Turn away pages of others.

        Raises:
            OriginForbidden: it is one, or may be.
        """
        check_origin(connection, self._allowed)

    async def identify(self, connection: HTTPConnection, token: str | None = None) -> Principal:
        """Return who asks. `token` came apart from the connection, and replaces that of its header.

        Raises:
            AccessDenied, HTTPException, EventBusError: see `admit`.
        """
        if self._authenticate is None:
            return EVERYONE
        if token is not None:
            principal = await self._ask(self._authenticate, presenting(connection, token))
        elif TICKET in connection.scope:
            principal = connection.scope[TICKET]
        else:
            principal = await self._ask(self._authenticate, presented(connection))
        if principal is None:
            raise Unauthenticated(_HINT, challenge=getattr(self._authenticate, "challenge", None))
        if principal.has_expired:
            raise CredentialsExpired("the credentials have expired")
        return principal

    async def _ask(self, authenticate: Authenticate, connection: HTTPConnection) -> Principal | None:
        try:
            return _checked(await ask(authenticate, connection))
        except (AccessDenied, HTTPException):
            raise
        except Exception as exc:
            if isinstance(exc, EventBusError) and exc.retry:
                raise
            logger.error("authenticate failed: %s", _place_of(exc))
            raise EventBusError("the server failed; its log has the details") from None


def principal_of(connection: HTTPConnection) -> Principal:
    """Return who asks, as the gate of the route has found. It serves as a dependency, too, for HTTP and WebSocket:

        async def endpoint(who: Annotated[Principal, Depends(principal_of)]): ...

    Raises:
        EventBusError: the route has no gate.
    """
    principal: Principal | None = connection.scope.get(PRINCIPAL)
    if principal is None:
        raise EventBusError("the route has no gate, so nobody was asked who they are")
    return principal


def _may_have_ticket(connection: HTTPConnection) -> bool:
    """Say whether a request is one that a ticket is good for: it reads, or opens a WebSocket."""
    is_reading = connection.scope["type"] == "websocket" or connection.scope["method"] == "GET"
    return is_reading and "ticket" in connection.query_params


def _checked(found: object) -> Principal | None:
    if found is None or isinstance(found, Principal):
        return found
    raise TypeError(f"expected a Principal or None, got {type(found).__name__}")


def _place_of(exc: Exception) -> str:
    """Say what was raised, and where, without its text."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(exc).__name__}{place}"
