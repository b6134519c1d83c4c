"""One connection to the server, from dialling to its end.

It moves frames between a socket and the `ClientSession`, sends heartbeats and listens for them. It decides nothing but
how the connection ended; whether to come back is for the client to say.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, NoReturn

from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    SecurityError,
    WebSocketException,
)
from websockets.frames import CloseCode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from eventbus_fastapi.client.config import ClientConfig, seconds
from eventbus_fastapi.client.token import obtain
from eventbus_fastapi.errors import BadFrame
from eventbus_fastapi.protocol.client import MAX_ADVICE, ClientSession, Verdict, verdict
from eventbus_fastapi.protocol.frames import SUBPROTOCOL

logger = logging.getLogger("eventbus_fastapi.client")

CLOSING = 1.0
"""Longest closing handshake, seconds. A server that takes longer is left without one."""
SILENCE = 2.5
"""Heartbeats without a frame from the server after which a connection counts as lost."""
TRANSIENT_STATUSES = frozenset({408, 425, 429})
"""HTTP statuses of the 4xx class that a later attempt may not get."""

UNAUTHENTICATED = 4401
"""The close code of a server that does not take the token, or no longer."""
MARGIN = 30.0
"""Seconds before its end at which a token is renewed; a quarter of its time, if that is less."""
SHORTEST_RENEWAL = 0.5
"""Shortest time between two renewals, seconds."""
RENEWAL_PAUSE = 5.0
"""Seconds until a fresh token is asked for again, where there was none."""

FINAL_ERRORS = (NegotiationError, SecurityError, ssl.SSLCertVerificationError)
"""What a later attempt would meet again."""
PASSING_ERRORS = (OSError, EOFError, WebSocketException)
"""What a later attempt may not meet."""


class Ending(NamedTuple):
    """How a connection, or the attempt to open one, ended."""

    verdict: Verdict
    reason: str
    is_failure: bool
    """True: it counts against `max_retries`, as it never opened or the server broke the protocol."""
    after: float = 0.0
    """Seconds that the server asked to wait."""
    lived: float = 0.0
    """Seconds that it was open, from the server's welcome on; 0: it never was."""
    cause: Exception | None = None
    is_unauthenticated: bool = False
    """True: the server does not take the token, or no longer."""


class Connection:
    """One socket, the task that reads it and the task that writes it."""

    def __init__(self, config: ClientConfig, session: ClientSession, on_progress: Callable[[], None]) -> None:
        self._config = config
        self._session = session
        self._on_progress = on_progress
        """Called after the session has changed, to carry out what it settled."""
        self._loop = asyncio.get_running_loop()
        self._has_work = asyncio.Event()
        self._heard_at = self._loop.time()
        self._opened_at: float | None = None
        self._is_suspect = False
        self._is_silent = False
        self._silence: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Say that the session may have something to send."""
        self._has_work.set()

    async def run(self) -> Ending:
        """Connect, and serve the session until the connection ends. Nothing of it is left afterwards."""
        try:
            token = None if self._config.token is None else await obtain(self._config.token)
        except Exception as exc:  # noqa: BLE001 - the program's own; its text may quote a token
            return Ending("back_off", f"there is no token: {type(exc).__name__}", is_failure=True)
        dialling = self._dial(token)
        try:
            websocket = await dialling
        except Exception as exc:  # noqa: BLE001 - proxies, names and redirects fail with errors of all kinds
            ending = _refusal(exc, is_answered=dialling.is_answered)
            return ending._replace(after=min(ending.after, seconds(self._config.max_reconnect_interval)))
        try:
            if websocket.subprotocol != SUBPROTOCOL:
                return Ending("stop", f"the server does not speak {SUBPROTOCOL}", is_failure=True)
            ending = await self._serve(websocket)
            return ending if self._opened_at is None else ending._replace(lived=self._loop.time() - self._opened_at)
        finally:
            self._session.disconnected()
            self._on_progress()
            await _close(websocket)

    def _dial(self, token: str | None) -> _Dialling:
        options: dict[str, Any] = {} if self._config.ssl is None else {"ssl": self._config.ssl}
        return _Dialling(
            self._config.url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=_headers(self._config.headers, token),
            proxy=self._config.proxy,
            compression=None,
            open_timeout=seconds(self._config.open_timeout),
            ping_interval=None,  # the protocol has its own heartbeats, both ways
            close_timeout=CLOSING,
            max_size=self._config.max_frame,
            **options,
        )

    async def _serve(self, websocket: ClientConnection) -> Ending:
        self._listen_for_silence(websocket)
        writer = self._loop.create_task(self._write(websocket), name="eventbus-client-writer")
        writer.add_done_callback(lambda task: _end_reading(task, websocket))
        try:
            await self._read(websocket)
        except ConnectionClosed as exc:
            return self._ending(exc)
        except BadFrame as exc:
            await _close(websocket, CloseCode.PROTOCOL_ERROR)
            return Ending("back_off", str(exc), is_failure=True, cause=exc)
        finally:
            if self._silence is not None:
                self._silence.cancel()
            writer.cancel()
            await asyncio.wait([writer])
            await self._stop_renewing()
            if not writer.cancelled() and (fault := writer.exception()):
                raise fault

    async def _read(self, websocket: ClientConnection) -> NoReturn:
        while True:
            text = await websocket.recv()
            self._heard_at = self._loop.time()
            was_open = self._session.welcome is not None
            self._session.receive(text, self._heard_at)
            if not was_open:
                self._opened_at = self._heard_at
                logger.info("connected to %s", self._config.address)
                self._listen_for_silence(websocket)  # by the heartbeat from now on
            if (expires_in := self._session.expires_in) is not None:
                self._session.expires_in = None
                self._renew_in(expires_in - min(MARGIN, expires_in / 4))
            if self._session.has_frame() or self._session.due() is not None:
                self._has_work.set()
            self._on_progress()

    async def _write(self, websocket: ClientConnection) -> None:
        sent_at = self._loop.time()
        try:
            while True:
                self._has_work.clear()
                while (frame := self._session.next_frame(self._loop.time())) is not None:
                    await websocket.send(frame)
                    sent_at = self._loop.time()
                self._on_progress()
                heartbeat = self._heartbeat
                if heartbeat is not None and self._loop.time() >= sent_at + heartbeat:
                    await websocket.send(self._session.ping())
                    sent_at = self._loop.time()
                await self._work_or(None if heartbeat is None else sent_at + heartbeat)
        except ConnectionClosed:
            pass  # the reader sees it as well, and tells why

    async def _work_or(self, ping_at: float | None) -> None:
        """Wait until there may be something to send, or it is time to ping."""
        times = [time for time in (ping_at, self._session.due()) if time is not None]
        try:
            async with asyncio.timeout_at(min(times, default=None)):
                await self._has_work.wait()
        except TimeoutError:
            pass

    @property
    def _heartbeat(self) -> float | None:
        """Seconds between heartbeats; None: the server has not said yet."""
        return None if self._session.welcome is None else self._session.welcome.heartbeat

    # --- the token ---

    def _renew_in(self, delay: float) -> None:
        """Show the server a fresh token after so many seconds, if there can be one."""
        if self._renewal is not None:
            self._renewal.cancel()
        if callable(self._config.token):
            self._renewal = self._loop.call_later(max(delay, SHORTEST_RENEWAL), self._start_renewing)

    def _start_renewing(self) -> None:
        self._renewing = self._loop.create_task(self._renew(), name="eventbus-client-token")

    async def _renew(self) -> None:
        assert self._config.token is not None
        try:
            token = await obtain(self._config.token)
        except Exception as exc:  # noqa: BLE001 - the program's own; its text may quote a token
            logger.warning("no fresh token for %s: %s", self._config.address, type(exc).__name__)
            self._renew_in(RENEWAL_PAUSE)
            return
        self._session.authenticate(token)
        self._has_work.set()

    async def _stop_renewing(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])

    # --- silence ---

    def _listen_for_silence(self, websocket: ClientConnection) -> None:
        """Drop the connection if the server is silent for too long; look again later if not."""
        if self._silence is not None:
            self._silence.cancel()
        heartbeat = self._heartbeat
        limit = seconds(self._config.open_timeout) if heartbeat is None else SILENCE * heartbeat
        left = self._heard_at + limit - self._loop.time()
        if left > 0:
            self._is_suspect = False
        elif not self._is_suspect:
            # If it was this program that did not get to reading, what has arrived is read before the next look.
            self._is_suspect, left = True, limit / 10
        else:
            self._is_silent = True
            websocket.transport.abort()
            return
        self._silence = self._loop.call_later(left, self._listen_for_silence, websocket)

    def _ending(self, closed: ConnectionClosed) -> Ending:
        opened = self._session.welcome is not None
        if closed.sent is not None and closed.rcvd_then_sent is not True and closed.sent.code != 1000:
            return self._own_ending(closed.sent.code, closed.sent.reason, closed)
        if self._is_silent:
            return Ending("back_off", "the server was silent for too long", is_failure=not opened, cause=closed)
        code = None if closed.rcvd is None else closed.rcvd.code
        reason = "no close frame" if closed.rcvd is None else f"{closed.rcvd.code} {closed.rcvd.reason}".strip()
        bye = self._session.bye
        refused = code == UNAUTHENTICATED
        if bye is not None and not bye.reconnect:
            said = f"{bye.error.code}: {bye.error}"
            return Ending("stop", said, is_failure=True, cause=bye.error, is_unauthenticated=refused)
        asked = bye.after if bye is not None and math.isfinite(bye.after) else 0.0
        after = min(max(asked, 0.0), seconds(self._config.max_reconnect_interval))
        return Ending(
            verdict(code), reason, is_failure=not opened, after=after, cause=closed, is_unauthenticated=refused
        )

    def _own_ending(self, code: int, reason: str, closed: ConnectionClosed) -> Ending:
        """The WebSocket layer here has ended the connection, because of what the server sent."""
        if code == CloseCode.MESSAGE_TOO_BIG:
            said = f"the server sent a frame of more than {self._config.max_frame:,} bytes (ClientConfig.max_frame)"
            return Ending("stop", said, is_failure=True, cause=closed)
        return Ending("back_off", f"the server broke the protocol: {code} {reason}", is_failure=True, cause=closed)


class _Dialling(connect):
    """An attempt to connect that knows whether the server has answered."""

    is_answered = False

    def process_redirect(self, exc: Exception) -> Exception | str:
        self.is_answered = True
        asked, has_token = _origin(self.uri), "Authorization" in Headers(self.additional_headers or {})
        found = super().process_redirect(exc)
        if has_token and isinstance(found, str) and _origin(found) != asked:
            return SecurityError("the server redirects to another one, which is not to see the token")
        return found


def _refusal(error: Exception, *, is_answered: bool) -> Ending:
    """Say what an attempt that did not open a connection means.

    An error of a kind that nobody foresaw comes from what the server answered, such as a redirect to a URL that is
    none, and may pass; or, before it has answered, from this side, and will come again.
    """
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        is_final = 400 <= status < 500 and status not in TRANSIENT_STATUSES
        return Ending(
            "stop" if is_final else "back_off",
            f"the server answered HTTP {status}",
            is_failure=True,
            after=0.0 if is_final else _advice(error.response),
            cause=error,
            is_unauthenticated=status == HTTPStatus.UNAUTHORIZED,
        )
    if isinstance(error, FINAL_ERRORS):
        return Ending("stop", str(error), is_failure=True, cause=error)
    if isinstance(error, InvalidURI | InvalidProxy):
        # Their text quotes the whole URL, which may hold a password; so does the error itself.
        return _unforeseen(f"{type(error).__name__}: {error.msg}", is_answered=is_answered)
    if isinstance(error, PASSING_ERRORS):
        return Ending("back_off", str(error) or type(error).__name__, is_failure=True, cause=error)
    return _unforeseen(f"{type(error).__name__}: {error}", is_answered=is_answered)._replace(cause=error)


def _headers(headers: Mapping[str, str] | None, token: str | None) -> Mapping[str, str] | None:
    return headers if token is None else {**(headers or {}), "Authorization": f"Bearer {token}"}


def _origin(url: str) -> tuple[bool, str, int]:
    uri = parse_uri(url)
    return uri.secure, uri.host, uri.port


def _advice(response: Response) -> float:
    """Return the seconds of a `Retry-After`; 0: there is none, or it is a date."""
    said = response.headers.get("Retry-After", "")
    return min(float(said), MAX_ADVICE) if said.isascii() and said.isdecimal() and len(said) < 10 else 0.0


def _unforeseen(reason: str, *, is_answered: bool) -> Ending:
    if is_answered:
        return Ending("back_off", f"the server's answer cannot be used: {reason}", is_failure=True)
    return Ending("stop", reason, is_failure=True)


def _end_reading(writer: asyncio.Task[None], websocket: ClientConnection) -> None:
    """Let the reader end as well when the writer has failed."""
    if not writer.cancelled() and writer.exception() is not None:
        websocket.transport.abort()


async def _close(websocket: ClientConnection, code: int = CloseCode.NORMAL_CLOSURE) -> None:
    """Close the socket, with a handshake if the server does its part in time."""
    try:
        await websocket.close(code)
    finally:
        websocket.transport.abort()
        await websocket.wait_closed()
