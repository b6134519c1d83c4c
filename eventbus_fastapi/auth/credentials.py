"""The credentials of a connection: where a token may be, and how a callable finds it.

A token comes in the header `Authorization: Bearer …`; on a WebSocket also as a subprotocol, `bearer.<base64url>`, as
browsers can send no header there, or in a frame. However it came, `authenticate` is shown a connection that has it in
the header `Authorization`, so that one way of reading serves for all. Nothing here says a token in a message.
"""

from __future__ import annotations

import base64
import binascii
import re

from starlette.requests import HTTPConnection

from eventbus_fastapi.errors import Unauthenticated

BEARER_SUBPROTOCOL = "bearer."
"""Begins a subprotocol that carries a token; the rest is base64url."""
MAX_TOKEN = 8_192
"""Longest token, characters."""
API_KEY_HEADER = "x-api-key"

_TOKEN = re.compile(r"[\x21-\x7e]+")
_AMBIENT_SCHEMES = frozenset({"basic", "digest", "negotiate", "ntlm"})
"""Schemes of `Authorization` that a browser uses by itself, once somebody has logged in."""


def bearer_token(connection: HTTPConnection) -> str | None:
    """Return the token in `Authorization: Bearer …`; None: there is none.

    Raises:
        Unauthenticated: it is no token.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return check_token(token.strip(" "))


def check_token(token: object) -> str:
    """Return a token if it can be one.

    Raises:
        Unauthenticated: it cannot.
    """
    if not isinstance(token, str) or not is_token(token):
        raise Unauthenticated(f"the token is not 1 to {MAX_TOKEN:,} visible ASCII characters")
    return token


def is_token(text: str) -> bool:
    """Say whether a text can be a token or key."""
    return len(text) <= MAX_TOKEN and _TOKEN.fullmatch(text) is not None


def presented(connection: HTTPConnection) -> HTTPConnection:
    """Return the connection as `authenticate` is to see it: with the token, if there is one, in its header.

    Raises:
        Unauthenticated: there are several, or one that is malformed.
    """
    if len(connection.headers.getlist("authorization")) > 1:
        raise Unauthenticated("expected one header Authorization, got several")
    tokens = [name for name in connection.scope.get("subprotocols", ()) if name.startswith(BEARER_SUBPROTOCOL)]
    if not tokens:
        return HTTPConnection(connection.scope)
    if len(tokens) > 1 or "authorization" in connection.headers:
        raise Unauthenticated("expected a token once, got it twice: as a subprotocol and in a header or another one")
    return presenting(connection, _decoded(tokens[0].removeprefix(BEARER_SUBPROTOCOL)))


def presenting(connection: HTTPConnection, token: str) -> HTTPConnection:
    """Return the connection as if it had this token in its header.

    Raises:
        Unauthenticated: it cannot be a token.
    """
    header = (b"authorization", b"Bearer " + check_token(token).encode())
    others = [each for each in connection.scope["headers"] if each[0].lower() != b"authorization"]
    return HTTPConnection({**connection.scope, "headers": [*others, header]})


def are_explicit(connection: HTTPConnection) -> bool:
    """Say whether the credentials are such that a program has put them there, and no browser by itself.

    A page of another origin cannot send these headers unless the app's CORS rules let it.
    """
    if API_KEY_HEADER in connection.headers:
        return True
    scheme = connection.headers.get("authorization", "").partition(" ")[0].lower()
    return bool(scheme) and scheme not in _AMBIENT_SCHEMES


def are_ambient(connection: HTTPConnection) -> bool:
    """Say whether a browser may have sent the credentials by itself, whichever page asked for it."""
    return not are_explicit(connection) and not {"cookie", "authorization"}.isdisjoint(connection.headers)


def _decoded(encoded: str) -> str:
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise Unauthenticated(f"the subprotocol '{BEARER_SUBPROTOCOL}…' is not base64url of a token") from None
