"""Who asks, and what they may do: principals, the ways to find out who one is, and the gate that asks.

    from eventbus_fastapi.auth import BearerAuth, Principal

    eventbus = EventBus(authenticate=BearerAuth({token: Principal("shop", publish=["shop.#"])}))

Nothing here knows a route, a frame or a database.
"""

from eventbus_fastapi.auth.any_of import AnyOf
from eventbus_fastapi.auth.bearer import ApiKeyAuth, BearerAuth
from eventbus_fastapi.auth.cookie import CookieAuth
from eventbus_fastapi.auth.credentials import bearer_token
from eventbus_fastapi.auth.gate import Authenticate, Gate, principal_of
from eventbus_fastapi.auth.jwt import JWTAuth
from eventbus_fastapi.auth.principal import EVERYONE, Principal

__all__ = [
    "EVERYONE",
    "AnyOf",
    "ApiKeyAuth",
    "Authenticate",
    "BearerAuth",
    "CookieAuth",
    "Gate",
    "JWTAuth",
    "Principal",
    "bearer_token",
    "principal_of",
]
