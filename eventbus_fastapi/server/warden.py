"""The warden of a connection: holds who its client is, and ends what they may no longer do.

    the time is over ──▶ nothing more is sent, the connection ends
    asked again      ──▶ the same, or other grants: what they do not cover ends

While the connection lives, `authenticate` is asked again every `recheck_interval` seconds with what the client showed
last, so that a logout or a key that was taken back ends it, too. A ticket can be shown once only: there its own end is
all that counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Scope

from eventbus_fastapi.auth import Gate, Principal
from eventbus_fastapi.errors import AccessDenied, CredentialsExpired, EventBusError, Forbidden, quote
from eventbus_fastapi.server.handshake import ending_of, translated
from eventbus_fastapi.server.outlet import Ending

logger = logging.getLogger(__name__)

LONGEST_SLEEP = 86_400.0
"""The clock of the world may be set: it is looked at once a day at least, seconds."""


class Warden:
    """See the module's docstring. `run` is its task.

    Args:
        token: what the client showed, if it came apart from the connection.
        on_end: ends the connection, at once: nothing is sent after it was called, but the goodbye.
        on_change: ends what the new principal does not cover.
    """

    __slots__ = (
        "_changing",
        "_gate",
        "_interval",
        "_loop",
        "_on_change",
        "_on_end",
        "_scope",
        "_timer",
        "_token",
        "principal",
    )

    def __init__(
        self,
        scope: Scope,
        gate: Gate,
        principal: Principal,
        *,
        token: str | None = None,
        interval: float,
        on_end: Callable[[Ending], None],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self.principal = principal
        self._scope = scope
        self._gate = gate
        self._token = token
        self._interval = interval
        self._on_end = on_end
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._changing = asyncio.Lock()
        self._set_timer()

    async def renew(self, token: str) -> Principal:
        """Take another token in place of what the client showed before.

        Raises:
            EventBusError: it is of no use; the client is who it was, for as long as that lasts.
        """
        async with self._changing:
            principal = await self._identify(token)
            self._token = token
            await self._become(principal)
            return principal

    async def run(self) -> None:
        """Ask again from time to time, until the client may not stay."""
        if not self._gate.is_guarded:
            return
        while True:
            await asyncio.sleep(self._interval)
            async with self._changing:
                try:
                    principal = await self._identify(self._token)
                except AccessDenied as exc:
                    self._on_end(ending_of(exc))
                    return
                except EventBusError as exc:
                    logger.warning("could not ask again who a client is: %s", exc)
                    continue
                await self._become(principal)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def _identify(self, token: str | None) -> Principal:
        try:
            principal = await self._gate.identify(HTTPConnection(self._scope), token)
        except HTTPException as exc:
            raise translated(exc) from None
        if principal.name != self.principal.name:
            raise Forbidden(f"the connection is that of {quote(self.principal.name)}, the token is another's")
        return principal

    async def _become(self, principal: Principal) -> None:
        is_changed = principal != self.principal
        self.principal = principal
        if is_changed:
            self._set_timer()
            await self._on_change()

    def _set_timer(self) -> None:
        self.stop()
        left = self.principal.expires_in()
        if left is not None:
            self._timer = self._loop.call_later(min(left, LONGEST_SLEEP), self._look_at_clock)

    def _look_at_clock(self) -> None:
        if self.principal.has_expired:
            self._on_end(ending_of(CredentialsExpired("the credentials have expired; come back with new ones")))
        else:
            self._set_timer()
