"""Cookies: `CookieAuth`, for apps whose users are logged in with a session."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.asking import ask
from eventbus_fastapi.auth.credentials import are_explicit
from eventbus_fastapi.auth.gate import Authenticate
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.auth.way import Way
from eventbus_fastapi.errors import SettingsError


class CookieAuth:
    """Knows principals by the session that a cookie names, as a callable of the app reads it.

        def from_session(connection: HTTPConnection) -> Principal | None:
            user = connection.session.get("user")            # Starlette's SessionMiddleware, or connection.cookies
            return Principal(user, subscribe=[f"users.{user}.#"]) if user else None

        EventBus(authenticate=CookieAuth(from_session))

    A browser sends cookies whichever page asks for it. So the gate lets in pages of the bus's own origin and of
    `Settings.allowed_origins` only, and turns a WebSocket or a change away that has a cookie and says no origin. A
    request that also has a token or an API key is that of a program, and its cookies are not looked at.

    The callable is asked again while a connection lives, so a logout ends it.
    """

    challenge = 'Cookie realm="eventbus"'
    ways = (Way("cookie"),)

    def __init__(self, from_session: Authenticate) -> None:
        if not callable(from_session):
            raise SettingsError(f"expected a callable that reads the session, got {type(from_session).__name__}")
        self._from_session = from_session

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        if "cookie" not in connection.headers or are_explicit(connection):
            return None
        return await ask(self._from_session, connection)
