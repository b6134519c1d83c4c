"""`AnyOf`: several ways to say who one is, side by side."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.asking import ask
from eventbus_fastapi.auth.gate import Authenticate
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.auth.way import ways_of
from eventbus_fastapi.errors import SettingsError, Unauthenticated


class AnyOf:
    """Asks one after the other, and believes the first that knows who it is.

    EventBus(authenticate=AnyOf(BearerAuth(tokens), CookieAuth(from_session)))
    """

    def __init__(self, *ways: Authenticate) -> None:
        if not ways or not all(map(callable, ways)):
            raise SettingsError("expected one or more callables that say who asks")
        self._ways = ways
        self.ways = tuple(dict.fromkeys(each for way in ways for each in ways_of(way)))
        self.challenge = ", ".join(
            dict.fromkeys(challenge for way in ways if (challenge := getattr(way, "challenge", None)))
        )

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        refusal: Unauthenticated | None = None
        for way in self._ways:
            try:
                principal = await ask(way, connection)
            except Unauthenticated as exc:
                refusal = refusal or exc
                continue
            if principal is not None:
                return principal
        if refusal is not None:
            raise refusal
        return None
