"""The entrance: who may see the dashboard.

Where the bus asks who somebody is (`authenticate`), admins may, from anywhere. Where it does not, whoever sits at this
machine may: the connection comes from a loopback address, nothing says that a proxy has handed it on, and the browser
was sent to a name of this machine. The last is for browsers that are at this machine and show a page of somebody else,
whose name was made to lead here (DNS rebinding).

A browser cannot send a token when a person opens a page, so there is a form that takes one. It becomes a cookie of the
dashboard's paths, which no script can read and which comes with no request of another site; each request is judged as
if it brought that token, so a cookie is good for as long as its token. No session is kept here: any node will do.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import EVERYONE, Gate, Principal
from eventbus_fastapi.auth.loopback import is_loopback, names_loopback
from eventbus_fastapi.errors import Forbidden, Unauthenticated, quote

COOKIE = "eventbus_dashboard"
"""Holds the token that somebody has logged in with."""
LONGEST_TOKEN = 2_800
"""Characters; a browser keeps no cookie that is much longer than 4,096 bytes."""
HANDED_ON = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers that proxies add."""


class Visitor(NamedTuple):
    """Who looks at the dashboard."""

    name: str
    may_leave: bool
    """Whether there is a login to end."""
    principal: Principal = EVERYONE
    """`EVERYONE` where nobody is asked."""


class Entrance:
    """See the module's docstring."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def check_way(self, request: HTTPConnection) -> None:
        """Raise Forbidden if nobody may see anything this way, whoever it is."""
        if not self._gate.is_guarded:
            _require_loopback(request)

    async def admit(self, request: HTTPConnection) -> Visitor:
        """Return who asks.

        Raises:
            Unauthenticated: nobody knows who it is; they may log in.
            Forbidden: it is nobody who may see the dashboard.
        """
        self.check_way(request)
        if not self._gate.is_guarded:
            return Visitor("on this machine", may_leave=False)
        token = None if "authorization" in request.headers else token_in(request)
        return _visitor(await self._identify(request, token), may_leave=token is not None)

    async def admit_token(self, request: HTTPConnection, token: str) -> Visitor:
        """Return who logs in with a token. Raises as `admit`."""
        self.check_way(request)
        if len(token) > LONGEST_TOKEN:
            raise Unauthenticated(f"the token has {len(token):,} characters; a cookie holds {LONGEST_TOKEN:,} at most")
        return _visitor(await self._identify(request, token), may_leave=True)

    async def _identify(self, request: HTTPConnection, token: str | None) -> Principal:
        """Ask the gate, of a token both as a bearer token and as a key: nobody knows which it is meant to be."""
        if token is not None:
            others = [each for each in request.scope["headers"] if each[0].lower() != b"x-api-key"]
            headers = [*others, (b"x-api-key", token.encode("latin-1", "replace"))]
            request = HTTPConnection({**request.scope, "headers": headers})
        try:
            return await self._gate.identify(request, token)
        except HTTPException as exc:  # the app's own words for the same
            if exc.status_code == 401:
                raise Unauthenticated(exc.detail) from exc
            if exc.status_code == 403:
                raise Forbidden(exc.detail) from exc
            raise


def cookie_of(token: str) -> str:
    """Return the value of the cookie that holds a token."""
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def token_in(request: HTTPConnection) -> str | None:
    """Return the token that somebody has logged in with; None: nobody has."""
    value = request.cookies.get(COOKIE, "")
    with suppress(binascii.Error, ValueError):
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True).decode("ascii") or None
    return None


def _visitor(principal: Principal, *, may_leave: bool) -> Visitor:
    if not principal.is_admin:
        raise Forbidden(f"{quote(principal.name)} is no admin; the dashboard is for admins")
    return Visitor(principal.name, may_leave, principal)


def _require_loopback(request: HTTPConnection) -> None:
    what = "the dashboard of a bus without authentication is for browsers on its own machine"
    if request.client is None or not is_loopback(request.client.host):
        raise Forbidden(f"{what}, and this connection comes from another one")
    handed_on = next((name for name in HANDED_ON if name in request.headers), None)
    if handed_on is not None:
        raise Forbidden(f"{what}, and a proxy has handed this request on (header {handed_on})")
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not names_loopback(hosts[0]):
        raise Forbidden(f"{what}; open it at http://127.0.0.1 or http://localhost, not at another name")
