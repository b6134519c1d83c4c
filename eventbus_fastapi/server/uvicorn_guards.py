"""uvicorn's protocols with limits for what an app never sees: `eventbus serve` has them, and so can any app.

    uvicorn.Config(app, http=GuardedHTTP, ws=GuardedWebSocket, ws_max_size=2_097_152, ws_per_message_deflate=False)

- The head of an HTTP request has `HEAD_TIMEOUT` seconds and `MAX_HEAD` bytes to arrive, and a body that was answered
  already `LINGER` seconds to end.
- Of requests that come together `MAX_WAITING` may wait for the answer to those before, and all are told when their
  client is gone.
- Of a WebSocket a little is parsed at a time, and others get the loop before the next: 256 KB of frames of a few bytes
  each, which is what the loop reads at once, took a quarter of a second and became megabytes of messages. Connections
  that keep the loop busy, with frames or with requests, take turns (`turns`).
- Where the first message is to say who comes (`?auth=frame`), it has at most `MAX_FIRST` bytes: nobody knows yet who
  sends it.
- A message has at most `MAX_FRAGMENTS` fragments: empty ones never reach a limit in bytes.
- What a client sends on and on after the server has closed is not read until it ends, nor parsed for long.
- Pings come at most `MAX_PINGS` times in some seconds.
- A client that does not read is sent no pongs, and a handshake that cannot be read is refused.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import thread_time
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from eventbus_fastapi.server.address import UNKNOWN, address_at
from eventbus_fastapi.server.turns import Share

HEAD_TIMEOUT = 10.0
MAX_HEAD = 65_536
LINGER = 5.0
"""Seconds that a client has to send the rest of a body that is not read any more: it may read the answer only then."""
MAX_WAITING = 100
"""Requests that may wait for the answers to earlier ones of their connection: they are small, and what is made of each
is not; of the smallest 14,000 come at once.
"""
CONNECTION = 0.0005
"""Seconds of work that a connection is counted as; see `turns`."""
REQUEST = 0.001
"""Seconds of work that a request is counted as; see `turns`."""
SLICE = 8_192
"""Bytes of a WebSocket that are parsed at once, at most: fewer where the frames are tiny."""
SMALLEST_SLICE = 512
SLICE_TIME = 0.001
"""Seconds that a slice should take. One of tiny frames takes twenty times as long as one of a large one."""
MAX_FIRST = 65_536
"""Bytes of a first message that says who comes: more than the longest one that is taken has."""
MAX_FRAGMENTS = 1_024
MAX_AFTER_CLOSE = 262_144
"""Bytes that a client may send after the server has closed and before it does, too."""
MAX_TIME_AFTER_CLOSE = 0.05
"""Seconds that parsing them may take, for its close to be found."""
MAX_PINGS = 1_000
"""Pings that a client may send in `PING_WINDOW` seconds."""
PING_WINDOW = 10.0
MAX_UNREAD = 65_536
"""Bytes that a client has not read beyond which its pings are not answered."""

_TOO_LARGE = f"expected a request head of at most {MAX_HEAD} bytes"
_TOO_MANY = f"expected at most {MAX_WAITING} requests before the answer to an earlier one"


def _whose(client: tuple[str, int] | None, app: Any, transport: asyncio.BaseTransport) -> str:
    """Return whose share of the loop a connection has. A proxy that is trusted to say for whom it asks carries those of
    many, who would all wait for one another: each of its connections is one's of its own. Over a Unix socket it has no
    address; it is trusted then if all are.
    """
    if isinstance(app, ProxyHeadersMiddleware) and (client[0] if client else None) in app.trusted_hosts:
        return "{}:{}".format(*client) if client else f"{UNKNOWN}:{id(transport)}"
    return address_at(client)


class GuardedHTTP(HttpToolsProtocol):
    """Ends what does not arrive."""

    _limit: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _is_in_head = False
    _is_in_body = False
    _head = 0
    """Bytes of a head that have come with it still unfinished."""
    _share: Share

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._share = Share(self.loop, _whose(self.client, self.app, transport))
        self._share.spend(CONNECTION)
        if self._share.is_used_up:
            transport.pause_reading()
            self._share.when_free(self._begin)
        else:
            self._expect_within(HEAD_TIMEOUT)

    def _begin(self) -> None:
        """Read what a connection has to say that had to wait."""
        if not self.transport.is_closing():
            self._expect_within(HEAD_TIMEOUT)
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_arrived()
        super().connection_lost(exc)
        # Of requests that came together uvicorn tells the last one only: the others would be answered, to nobody.
        for cycle in (self._answering, *[waiting for waiting, _ in self.pipeline]):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self._share.spend(REQUEST)
        self._share.when_free(partial(self._answer, cycle, app))

    def _answer(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not cycle.disconnected:
            self._share.begin()
            super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response(_TOO_LARGE)

    def handle_websocket_upgrade(self) -> None:
        self._has_arrived()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head = True, 0
        if self._limit is None:
            self._expect_within(HEAD_TIMEOUT)

    def on_headers_complete(self) -> None:
        self._has_arrived()
        self._is_in_head, self._is_in_body = False, True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            raise ValueError(_TOO_LARGE)  # for the parser, which has the request refused
        if len(self.pipeline) >= MAX_WAITING:
            raise ValueError(_TOO_MANY)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._has_arrived()
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._share.end()
        super().on_response_complete()
        if self._is_in_body and not self.transport.is_closing():
            self._expect_within(LINGER)

    def _expect_within(self, seconds: float) -> None:
        self._has_arrived()
        self._limit = self.loop.call_later(seconds, self.transport.close)

    def _has_arrived(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """Parses a little at a time."""

    _rest = b""
    """What has come and is not parsed yet. While there is some, nothing more is read."""
    _is_in_line = False
    """Whether the next slice will be parsed without anybody asking for it."""
    _slice = SMALLEST_SLICE
    """Bytes of the next slice, which grows while they take little time."""
    _share: Share
    _pings = 0
    _pings_until = 0.0
    _after_close = 0
    """Bytes that have come since the server has closed."""
    _time_after_close = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._share = Share(self.loop, _whose(self.client, self.app, transport))

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:  # the whole head, as the HTTP side has read it
            super().data_received(data)
            if not self.handshake_initiated:
                self._refuse_handshake()
            return
        if self.close_sent:
            self._after_close += len(data)
            if self._after_close > MAX_AFTER_CLOSE:
                self._drop()
                return
        if not self._rest and len(data) <= self._slice and not self._share.is_used_up:
            self._parse(data)
            return
        self._rest += data
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
        self._go_on()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if "auth=frame" in event.path.partition("?")[2].split("&"):
            self.conn.max_message_size = min(MAX_FIRST, self.config.ws_max_size)

    def send_receive_event_to_app(self) -> None:
        self.conn.max_message_size = self.config.ws_max_size
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.queue.empty():
            self._go_on()
        return message

    def _refuse_handshake(self) -> None:
        """Answer a head that the parser does not take: it would be waited for without end."""
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _go_on(self) -> None:
        """Parse the next slice after others had the loop, and in its turn; or read on, if all is parsed."""
        if not self._rest:
            self._read_on()
        elif not self._is_in_line:
            self._is_in_line = True
            self.loop.call_soon(self._share.when_free, self._parse_slice)

    def _parse_slice(self) -> None:
        """Parse the next slice; go on when the app has taken what was in it."""
        self._is_in_line = False
        if self.transport.is_closing():
            self._rest = b""
            return
        data, self._rest = self._rest[: self._slice], self._rest[self._slice :]
        self._parse(data)
        if self.queue.empty() or self.close_sent:  # after a close nothing is for the app
            self._go_on()

    def _parse(self, data: bytes) -> None:
        began = thread_time()
        super().data_received(data)
        used = thread_time() - began
        self._share.spend(used)
        if used > SLICE_TIME:
            self._slice = max(self._slice // 2, SMALLEST_SLICE)
        elif len(data) == self._slice and used < SLICE_TIME / 4:
            self._slice = min(self._slice * 2, SLICE)
        if self.close_sent:
            self._time_after_close += used
            if self._time_after_close > MAX_TIME_AFTER_CLOSE:
                self._drop()

    def _drop(self) -> None:
        """Close without waiting for the client's close."""
        self._rest = b""
        self.transport.close()

    def _read_on(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:
            self.frames.clear()
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments")
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        now = self.loop.time()
        if now >= self._pings_until:
            self._pings, self._pings_until = 0, now + PING_WINDOW
        self._pings += 1
        pongs = self.conn.data_to_send()
        if self._pings > MAX_PINGS and not self.close_sent:
            self.conn.fail(CloseCode.POLICY_VIOLATION, f"more than {MAX_PINGS} pings in {PING_WINDOW:g} seconds")
            self.handle_parser_exception()
        elif self.transport.get_write_buffer_size() < MAX_UNREAD:
            self.transport.write(b"".join(pongs))
