"""Tokens and API keys: `BearerAuth` for the header `Authorization`, `ApiKeyAuth` for one of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.asking import ask
from eventbus_fastapi.auth.credentials import API_KEY_HEADER, bearer_token, is_token
from eventbus_fastapi.auth.keys import Keys
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.auth.way import Way
from eventbus_fastapi.errors import SettingsError, Unauthenticated

FindPrincipal = Callable[[str], Principal | Awaitable[Principal | None] | None]
"""Says whom a token stands for; None: nobody. It may be async; if not, it is called in a thread."""

INVALID_TOKEN = 'Bearer realm="eventbus", error="invalid_token"'


class BearerAuth:
    """Knows principals by the token in `Authorization: Bearer …`, or wherever else a token may come.

        EventBus(authenticate=BearerAuth({os.environ["SHOP_TOKEN"]: Principal("shop", publish=["shop.#"])}))

    Args:
        tokens: principals by token (or by `sha256:` and its SHA-256, so that the program does not hold the token
            itself); or a callable that finds the principal of a token.

    Raises:
        SettingsError: a token is empty or weak.
    """

    challenge = 'Bearer realm="eventbus"'
    ways = (Way("token"),)

    def __init__(self, tokens: Mapping[str, Principal] | FindPrincipal) -> None:
        self._find = _finder(tokens)

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        token = bearer_token(connection)
        if token is None:
            return None
        principal = await ask(self._find, token)
        if principal is None:
            raise Unauthenticated("the token is not known", challenge=INVALID_TOKEN)
        return principal


class ApiKeyAuth:
    """Knows principals by the key in a header, `X-API-Key` unless another one is named. Otherwise as `BearerAuth`."""

    challenge = 'ApiKey realm="eventbus"'

    def __init__(self, keys: Mapping[str, Principal] | FindPrincipal, *, header: str = API_KEY_HEADER) -> None:
        self._find = _finder(keys)
        self._header = header
        self.ways = (Way("header", header),)

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        given = connection.headers.getlist(self._header)
        if not given:
            return None
        if len(given) > 1:
            raise Unauthenticated("expected one API key, got several", challenge=self.challenge)
        principal = await ask(self._find, given[0]) if is_token(given[0]) else None
        if principal is None:
            raise Unauthenticated("the API key is not known", challenge=self.challenge)
        return principal


def _finder(given: Mapping[str, Principal] | FindPrincipal) -> FindPrincipal:
    if isinstance(given, Mapping):
        if not given:
            raise SettingsError("expected at least one key, got none: nobody could come in")
        return _AsyncKeys(Keys(given))
    if not callable(given):
        raise SettingsError(f"expected principals by key or a callable, got {type(given).__name__}")
    return given


class _AsyncKeys:
    """Finds keys without a thread."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def __call__(self, key: str) -> Principal | None:
        return self._keys.find(key)
