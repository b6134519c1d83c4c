"""`/events/stream`: serves one subscription as server-sent events, until the client leaves or comes back.

    subscription ─▶ feed ─┐
            heartbeats    ├─▶ outlet ─▶ response
      rotation, goodbye ──┘

It is FastAPI's own response for server-sent events, but not written by FastAPI from what an endpoint yields: that way
each event is a write of its own, a client that does not read is waited for without end, a refusal comes after the 200,
and the blank line after a keep-alive is an empty event for some clients. So it is written here, by the feed that
WebSockets have.

A browser resumes after the last `id:` that it has seen. That is the seq of an event, or of `position`, the one word of
the bus's own that has an id: it says that everything up to there was sent. It opens the stream, because a browser that
began at `now` and has seen no event yet would begin at another `now` when it comes back; and it follows a silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from fastapi.sse import EventSourceResponse
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from eventbus_fastapi.auth import Gate, principal_of
from eventbus_fastapi.errors import (
    EventBusError,
    Forbidden,
    NotRunning,
    SlowConsumer,
    StreamRotated,
    SubscriptionClosed,
)
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.protocol.commands import Subscribe
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.address import address_of
from eventbus_fastapi.server.admission import Admission
from eventbus_fastapi.server.dialects import ServerSent, said
from eventbus_fastapi.server.feed import Feed, Frame
from eventbus_fastapi.server.guard import known_as
from eventbus_fastapi.server.handshake import ending_of
from eventbus_fastapi.server.outlet import ConnectionEnded, Ending, Outlet
from eventbus_fastapi.server.problems import problem
from eventbus_fastapi.server.replies import internal
from eventbus_fastapi.server.rounds import Rounds
from eventbus_fastapi.server.tasks import Work
from eventbus_fastapi.server.transport import abort, find_transport, on_shutdown
from eventbus_fastapi.server.warden import Warden

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Nobody on the way keeps the stream, or holds it back."""
ANOTHER_LOG = UUID(int=0)
"""The epoch of no log."""
STOP_PATIENCE = 2.0
"""Seconds that a server which stops waits for clients that do not read: less than servers give their apps."""
RETRY = 1.0
"""Seconds after which a client comes back whose stream was cut off."""
SPREAD = 5
"""It may be told to take up to so many times that: all clients of a node at once would be many."""


class EventStream(EventSourceResponse):
    """The answer to one request for a stream.

    `request` was let in by the `gate`, which goes on to ask who it is.

    `resumes_after` is the last id that the client has seen, None if it has seen none. It begins the stream in place of
    `wanted.start`.
    """

    def __init__(
        self,
        node: Node,
        gate: Gate,
        admission: Admission,
        request: HTTPConnection,
        wanted: Subscribe,
        dialect: ServerSent,
        *,
        resumes_after: int | None = None,
    ) -> None:
        super().__init__((), headers=HEADERS)
        self._gate = gate
        self._request = request
        self._node = node
        self._admission = admission
        self._wanted = wanted
        self._dialect = dialect
        self._resumes_after = resumes_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as stack:
            try:
                principal = principal_of(self._request)
                stack.enter_context(self._admission.admit(address_of(self._request), known_as(principal)))
                subscription = await self._subscribe()
            except EventBusError as exc:
                await problem(exc)(scope, receive, send)
                return
            await self._serve(subscription, scope, receive, send)

    async def _serve(self, subscription: Subscription, scope: Scope, receive: Receive, send: Send) -> None:
        async with subscription:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            line = StreamLine(receive, send, is_shared=scope.get("http_version", "1.1") not in ("1.0", "1.1"))
            await Stream(self._node, subscription, self._dialect, line, self._gate, self._request).run()

    async def _subscribe(self) -> Subscription:
        """Open the subscription. What was acknowledged is part of it: it is a view of the log, as `GET /events` is."""
        wanted, after = self._wanted, self._resumes_after
        # An event that was sent is never taken back. So an id beyond the log is of one that was made anew since.
        is_of_another_log = after is not None and after > (await self._node.head()).last_seq
        return await self._node.subscribe(
            wanted.patterns,
            wanted.start if after is None else after,
            include_processed=True,
            overflow=wanted.overflow,
            buffer=wanted.buffer,
            epoch=ANOTHER_LOG if is_of_another_log else None,
        )


class Stream:
    """One stream whose answer has begun."""

    def __init__(
        self,
        node: Node,
        subscription: Subscription,
        dialect: ServerSent,
        line: StreamLine,
        gate: Gate,
        request: HTTPConnection,
    ) -> None:
        self.id = secrets.token_hex(8)
        self._node = node
        self._settings = node.settings
        self._line = line
        self._ended: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        self._outlet = Outlet(line, send_timeout=self._settings.send_timeout, on_end=self._end)
        self._subscription = subscription
        self._feed = Feed(
            1,
            subscription,
            self._outlet,
            node,
            dialect=dialect,
            acknowledging=asyncio.Lock(),
            start=self._start_feed,
            rounds=Rounds(),
        )
        self._warden = Warden(
            request.scope,
            gate,
            principal_of(request),
            interval=self._settings.recheck_interval,
            on_end=self._expel,
            on_change=self._check_grants,
        )
        self._told = subscription.reached  # before what is missing, where the stream begins with a gap
        """The last position that was sent; below 0: none of this log."""

    async def run(self) -> None:
        """Serve until the client leaves or the stream has to end."""
        with on_shutdown(self._line.transport, self._stop):  # also while it is closing, which may take long
            await self._run()

    async def _run(self) -> None:
        self._subscription.on_close = self._note_closed
        work = {
            "leave": self._line.leave(),
            "opening": self._send_events(),
            "heart": self._beat(),
            "rotation": self._rotate(),
            "warden": self._watch(),
        }
        meters = self._node.meters
        meters.connections.add(self._outlet)
        ending: Ending | None = None
        running = [asyncio.create_task(each, name=f"stream-{self.id}-{name}") for name, each in work.items()]
        try:
            ending = await self._first_ending(running)
        finally:
            self._warden.stop()
            self._feed.stop()
            feeding = self._feed.task
            await tasks.end(*running, *([] if feeding is None else [feeding]))
            if ending is None:
                meters.note_ended(self._outlet, "left")
        if ending is None:
            return
        logger.info("ended stream %s (%s)", self.id, ending.error.code)
        is_stopping = isinstance(ending.error, NotRunning)
        try:
            await self._outlet.close(ending, STOP_PATIENCE if is_stopping else self._settings.close_timeout)
            await self._line.cut()
        finally:
            meters.note_ended(self._outlet, str(ending.code))

    # --- the end ---

    async def _first_ending(self, running: list[asyncio.Task[Ending | None]]) -> Ending | None:
        """Wait for whatever ends the stream first; None: the client has left."""
        done, _ = await asyncio.wait({self._ended, *running}, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            return self._ended.result()
        error = next((error for each in done if (error := each.exception()) is not None), None)
        if error is not None:
            logger.error("stream %s failed", self.id, exc_info=error)
            return Ending(4500, internal())
        return next(each.result() for each in done)

    def _end(self, ending: Ending | None) -> None:
        if not self._ended.done():
            self._ended.set_result(ending)

    def _expel(self, ending: Ending) -> None:
        """End the stream of a client that may not stay: from now on nothing is sent, but the goodbye."""
        self._outlet.shut()
        self._end(ending)

    async def _watch(self) -> Ending | None:
        await self._warden.run()
        return await self._ended

    async def _check_grants(self) -> None:
        try:
            self._warden.principal.require_subscribe(*self._subscription.patterns)
        except Forbidden as exc:
            self._expel(ending_of(exc))

    def _stop(self) -> None:
        """The server stops, and waits for us."""
        error = NotRunning("the server stops; resume after the last id")
        self._end(Ending(4000, error, after=self._settings.restart_spread / SPREAD))
        self._outlet.cut_off(STOP_PATIENCE)

    def _note_closed(self, reason: SubscriptionClosed) -> None:
        """An overflow policy ended the subscription, also while a send is stalled."""
        if isinstance(reason, SlowConsumer):
            self._end(Ending(4100, reason))

    # --- what is sent ---

    async def _send_events(self) -> Ending | None:
        try:
            opening = f"retry: {_spread(RETRY) * 1_000:.0f}\n"
            await self._outlet.send(opening if self._told < 0 else opening + _position(self._told))
        except ConnectionEnded:
            return self._ended.result()
        self._feed.open()
        return await self._ended

    def _start_feed(self, feed: Feed, work: Work) -> asyncio.Task[None]:
        return asyncio.create_task(self._feed_until_closed(work), name=f"stream-{self.id}-feed")

    async def _feed_until_closed(self, work: Work) -> None:
        try:
            await work()
        except SubscriptionClosed as exc:
            self._end(Ending(4000, exc))
        except ConnectionEnded:
            pass
        except Exception:
            logger.exception("stream %s failed", self.id)
            self._end(Ending(4500, internal()))

    async def _beat(self) -> Ending | None:
        """Say something in a silence, for ever: what is in between must not take the connection for dead."""
        loop, interval = asyncio.get_running_loop(), self._settings.heartbeat
        try:
            while True:
                silent_for = loop.time() - self._outlet.sent_at
                if silent_for >= interval:
                    reached = self._node.dispatcher.position
                    # What the dispatcher gave out up to there has woken the feed. It runs before us now.
                    await asyncio.sleep(0)
                    await self._outlet.send_next(self._heartbeat(reached))
                    silent_for = 0.0
                await asyncio.sleep(max(interval - silent_for, interval / 20))
        except ConnectionEnded:
            return self._ended.result()

    def _heartbeat(self, reached: int) -> Iterator[Frame]:
        """Make one when its turn comes: a feed that has sent more meanwhile must not be taken back by it."""
        is_new = reached > max(self._told, self._feed.sent_to) or self._told < 0
        if self._feed.is_idle and is_new:
            self._told = max(reached, self._feed.sent_to)
            yield Frame(_HEARTBEAT + _position(self._told))
        else:
            yield Frame(_HEARTBEAT)

    async def _rotate(self) -> Ending | None:
        """End after some minutes: so clients spread over the nodes that there are, and no proxy ends it for us."""
        lifetime = self._settings.stream_lifetime
        await asyncio.sleep(random.uniform(0.8 * lifetime, 1.2 * lifetime))  # noqa: S311 - see _spread
        return Ending(4000, StreamRotated("the stream has lasted long enough; resume after the last id"), after=0.0)


class StreamLine:
    """The response of a stream. `is_shared`: others are on the same connection, which must not be cut off."""

    kind = "stream"
    sender = None

    def __init__(self, receive: Receive, send: Send, *, is_shared: bool) -> None:
        self._receive = receive
        self._send = send
        self._is_finished = False
        self.transport = None if is_shared else find_transport(receive)

    async def write(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def finish(self, ending: Ending) -> None:
        await self._send({"type": "http.response.body", "body": _bye(ending).encode(), "more_body": False})
        self._is_finished = True

    async def leave(self) -> None:
        message: Mapping[str, Any] = {}
        while message.get("type") != "http.disconnect":
            message = await self._receive()

    async def cut(self) -> None:
        """End the connection of a client that has not read until the end, and wait until the server knows of it."""
        if self._is_finished or self.transport is None:
            return
        abort(self.transport)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE):
                await self.leave()


_HEARTBEAT = ": heartbeat\n"
"""Without a blank line after it: clients that are less than exact take that for an event without data."""


def _position(seq: int) -> str:
    return f'id: {seq}\nevent: position\ndata: {{"seq":{seq}}}\n\n'


def _bye(ending: Ending) -> str:
    after = _spread(ending.after)
    return said(
        "bye", retry=round(after * 1_000), error=ending.error.describe(), reconnect=ending.reconnect, after=after
    )


def _spread(after: float) -> float:
    """Return a time, seconds, at random so that not all who got it come back together; 0: soon."""
    return round(random.uniform(after, SPREAD * after or 1.0), 3)  # noqa: S311 - nobody gains by guessing it
