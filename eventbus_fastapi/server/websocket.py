"""`/ws`: serves one WebSocket in one of the dialects of docs/protocol.md.

    socket ─▶ reader ─▶ session ─▶ node ─▶ replies ─┐
                           └─▶ subscriptions: feeds ─┼─▶ outlet ─▶ socket
                                       heart (v1) ───┘

`handshake` lets it in, and a `warden` watches whether it may stay. A connection reads commands and begins and ends what
carries them out: a `session`. It reads in the task that the server made for it; the others have a task only while there
is something to do, so that an idle connection is small. Whatever ends the connection, `run` returns only when every
task of it has ended. No connection to the database is held here, and nothing that a client sent is logged.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import secrets
from functools import partial
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope
from starlette.websockets import WebSocket

from eventbus_fastapi.auth import Gate, Principal
from eventbus_fastapi.errors import (
    BinaryFrame,
    EventBusError,
    NotRunning,
)
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import cloudevents, frames
from eventbus_fastapi.protocol.commands import (
    Command,
    Ping,
    Refused,
    Subscribe,
)
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.protocol.parser import parse_client_frame, parse_cloudevent_frame
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.address import address_of
from eventbus_fastapi.server.admission import Seat
from eventbus_fastapi.server.guard import counted_as, known_as
from eventbus_fastapi.server.handover import handover_of
from eventbus_fastapi.server.handshake import Admitted, refuse, shake_hands
from eventbus_fastapi.server.heart import Heart
from eventbus_fastapi.server.limits import Limits
from eventbus_fastapi.server.outlet import ConnectionEnded, Ending, Outlet, SocketLine
from eventbus_fastapi.server.problems import problem
from eventbus_fastapi.server.publish_rate import Pace
from eventbus_fastapi.server.replies import Replies, failed_frame, internal
from eventbus_fastapi.server.session import Session
from eventbus_fastapi.server.subscriptions import Subscriptions
from eventbus_fastapi.server.tasks import Work
from eventbus_fastapi.server.transport import forget_handshake, on_shutdown, raw_channels
from eventbus_fastapi.server.turns import Share
from eventbus_fastapi.server.warden import Warden
from eventbus_fastapi.store import Head
from eventbus_fastapi.version import VERSION

logger = logging.getLogger(__name__)

DONE_AT_ONCE = 20
"""Commands that are done before others get the loop."""
COMMAND = 0.0001
"""Seconds of work that a command is counted as, beside reading its frame; see `turns`."""
HANDSHAKE = 0.002
"""The same of a new connection."""
SUBSCRIBE = 0.001
"""The same of one that subscribes, which asks the database."""
STOP_PATIENCE = 2.0
"""Seconds that a client has to read the goodbye of a server that stops."""


async def serve_websocket(websocket: WebSocket, node: Node, gate: Gate, limits: Limits) -> None:
    """Let a WebSocket in, or refuse it. Leave it to the router then, or serve it until it ends where there is none."""
    address = address_of(websocket)
    share = Share(asyncio.get_running_loop(), address)
    await share.turn()  # many may come at once
    share.spend(HANDSHAKE)
    share.begin()
    try:
        seat = limits.admission.admit(address)
    except EventBusError as exc:
        await refuse(websocket, problem(exc))
        return
    handover = handover_of(websocket)
    connection: Connection | None = None
    try:
        admitted = await shake_hands(websocket, node, gate, seat)
        if admitted is not None:
            receive, send = raw_channels(websocket) if handover is None else (handover.receive, handover.send)
            line = SocketLine(receive, send, has_bye=admitted.subprotocol == frames.SUBPROTOCOL)
            connection = Connection(line, websocket.scope, node, gate, limits, seat, admitted, share)
    finally:
        share.end()
        if connection is None:
            seat.leave()
    if handover is not None:
        handover.served = connection
    elif connection is not None:
        await connection.run()


class Connection:
    """One accepted WebSocket."""

    __slots__ = (
        "_admitted",
        "_ended",
        "_gate",
        "_heart",
        "_line",
        "_node",
        "_outlet",
        "_pace",
        "_pulse",
        "_reader",
        "_replies",
        "_seat",
        "_session",
        "_settings",
        "_share",
        "_subprotocol",
        "_subscriptions",
        "_tasks",
        "_warden",
        "id",
    )

    def __init__(
        self,
        line: SocketLine,
        scope: Scope,
        node: Node,
        gate: Gate,
        limits: Limits,
        seat: Seat,
        admitted: Admitted,
        share: Share,
    ) -> None:
        self.id = secrets.token_hex(8)
        self._line = line
        self._seat = seat
        self._admitted: Admitted | None = admitted  # until it is served
        self._node = node
        self._gate = gate
        self._pulse = limits.pulse
        self._settings = node.settings
        self._subprotocol = admitted.subprotocol
        self._ended: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        self._share = share
        self._reader: asyncio.Task[Any] | None = None  # while it reads
        # A dict in place of a set, which takes more memory while it is empty.
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._outlet = Outlet(line, send_timeout=self._settings.send_timeout, on_end=self.end)
        self._replies = Replies(
            self._outlet,
            is_plain=self._subprotocol != frames.SUBPROTOCOL,
            max_queued=self._settings.max_queued,
            start=self.start,
            write_error=self._error_event if self._speaks_cloudevents else failed_frame,
        )
        self._subscriptions = Subscriptions(
            self, self._outlet, self._replies, node, limits.rounds, subprotocol=self._subprotocol
        )
        self._warden = Warden(
            scope,
            gate,
            admitted.principal,
            token=None if admitted.hello is None else admitted.hello.token.get_secret_value(),
            interval=self._settings.recheck_interval,
            on_end=self.expel,
            on_change=self._subscriptions.end_uncovered,
        )
        self._pace = Pace(limits.publish_rate, asyncio.get_running_loop().time)
        self._session = Session(
            self,
            self._replies,
            self._subscriptions,
            self._warden,
            node,
            self._pace,
            counted_as=counted_as(admitted.principal, HTTPConnection(scope)),
            subprotocol=self._subprotocol,
        )
        self._heart = Heart(
            self._outlet,
            node.dispatcher,
            self._subscriptions.feeds,
            interval=self._settings.heartbeat,
            start=self.start,
            on_lost=self.end,
        )

    @property
    def principal(self) -> Principal:
        """Who the client is now."""
        return self._warden.principal

    @property
    def _speaks_cloudevents(self) -> bool:
        return self._subprotocol == cloudevents.SUBPROTOCOL

    def _error_event(self, error: EventBusError, number: int | None, sub: Sub | None) -> str:
        return cloudevents.error_event(error, number, self._settings.cloudevents_source)

    async def run(self) -> None:
        """Serve until the peer leaves or the server has to end it; it is open until the last of it is gone."""
        ending: Ending | None = None
        meters = self._node.meters
        meters.connections.add(self._outlet)
        forget_handshake(self._line.transport)
        try:
            with on_shutdown(self._line.transport, self.shut_down, is_instead=True):
                ending = await self._serve()
                if ending is not None:
                    logger.info("ended connection %s with %d (%s)", self.id, ending.code, ending.error.code)
                    await self._outlet.close(ending, self._patience(ending))
        finally:
            self._seat.leave()
            meters.note_ended(self._outlet, "left" if ending is None else str(ending.code))

    def give_up(self) -> None:
        """Let it go, if it was never run."""
        self._warden.stop()
        self._seat.leave()

    async def _serve(self) -> Ending | None:
        """Serve until the end. Return how it is to be closed; None: the peer has left."""
        ending: Ending | None = None
        try:
            await self._begin()
            ending = await self._read_until_ended()
        except ConnectionEnded:
            ending = self._ended.result()
        finally:
            self._warden.stop()
            self._pulse.remove(self._heart)
            if ending is None:
                self._outlet.let_go(self._settings.send_timeout)
            await self._stop()
        return ending

    async def _begin(self) -> None:
        """Say welcome, and do what the handshake has asked for."""
        admitted, self._admitted = self._admitted, None
        assert admitted is not None
        if self._subprotocol == frames.SUBPROTOCOL:
            await self._welcome(admitted.head)
            self._pulse.add(self._heart)
        if admitted.hello is not None and not self._speaks_cloudevents:
            self._session.tell_identity(admitted.hello.id)
        if self._gate.is_guarded:
            self.start(self._warden.run, "warden")
        if admitted.wanted is not None:
            await self._subscribe_as_wanted(admitted.wanted)

    async def _subscribe_as_wanted(self, wanted: Subscribe) -> None:
        """Subscribe to what the URL says, before anything is read: there is no frame that could be answered."""
        try:
            await self._subscriptions.subscribe(wanted)
        except EventBusError as exc:
            self.end(Ending(4500, exc))

    def shut_down(self) -> None:
        """Tell the client to come back, and when: not all at once. The server stops."""
        after = random.uniform(0, self._settings.restart_spread)  # noqa: S311 - nobody gains by guessing it
        self.end(Ending(1012, NotRunning("the server stops"), after=round(after, 3)))
        self._outlet.cut_off(STOP_PATIENCE)

    def _patience(self, ending: Ending) -> float:
        return min(STOP_PATIENCE if ending.code == 1012 else math.inf, self._settings.close_timeout)

    # --- life ---

    def start(self, work: Work, name: str = "say") -> asyncio.Task[None]:
        """See `Life`."""
        task = asyncio.create_task(self._guard(work), name=f"websocket-{self.id}-{name}")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def _guard(self, work: Work) -> None:
        """Let a fault of ours end its connection, and nothing else."""
        try:
            await work()
        except ConnectionEnded:
            pass
        except Exception:
            logger.exception("connection %s failed", self.id)
            self.end(Ending(4500, internal()))

    def end(self, ending: Ending | None) -> None:
        """See `Life`."""
        if not self._ended.done():
            self._ended.set_result(ending)
            if self._reader is not None and self._reader is not asyncio.current_task():
                self._reader.cancel()

    def expel(self, ending: Ending) -> None:
        """See `Life`."""
        self._outlet.shut()
        self.end(ending)

    async def _stop(self) -> None:
        """End every task, and what the client has begun."""
        self._subscriptions.stop()
        try:
            await tasks.end(*self._tasks)
        finally:
            self._subscriptions.give_back()
        await self._subscriptions.leave()
        await self._session.close(self._settings.statement_timeout)
        await self._subscriptions.close()

    async def _welcome(self, head: Head) -> None:
        settings = self._settings
        limits = {
            "max_frame": settings.max_frame,
            "max_payload": settings.max_payload,
            "max_batch": settings.max_batch,
            "max_subscriptions": settings.max_subscriptions,
            "max_credit": settings.max_credit,
            "buffer": settings.buffer,
        }
        welcome = frames.Welcome(
            VERSION,
            self.id,
            head.epoch,
            head.last_seq,
            settings.heartbeat,
            limits,
            known_as(self.principal),
            self.principal.expires_in(),
        )
        await self._outlet.send(frames.server_frame(welcome))

    # --- reading ---

    async def _read_until_ended(self) -> Ending | None:
        """Read in the task that we were called in: a task of its own would be one more for each connection."""
        if self._ended.done():
            return self._ended.result()
        self._reader = asyncio.current_task()
        assert self._reader is not None
        try:
            await self._guard(self._read)
        except asyncio.CancelledError:
            if not self._ended.done() or self._reader.uncancel() > 0:
                raise  # it was not, or not only, `end`
        finally:
            self._reader = None
        return await self._ended

    async def _read(self) -> None:
        done = 0
        for number in itertools.count(1):
            await self._replies.room()
            self._heart.begin_listening()
            message = await self._line.receive()
            self._heart.end_listening()
            self._subscriptions.hear()
            if message["type"] == "websocket.disconnect":
                logger.debug("connection %s was left with %s", self.id, message.get("code"))
                self.end(None)
                return
            text = message.get("text")
            size = len(text or "")
            commands = await self._share.read(size, partial(self._parse, text, number))
            size //= max(len(commands), 1)
            for command in commands:
                await self._replies.room()
                if isinstance(command, Ping):
                    self._heart.expect_pings()
                self._share.begin()
                await self._session.do(command, size)
                self._share.end()
                if self._ended.done():
                    return
                done += 1
                if self._pace.drag or done % DONE_AT_ONCE == 0:
                    await asyncio.sleep(self._pace.drag)
                self._share.spend(SUBSCRIBE if isinstance(command, Subscribe) else COMMAND)
                await self._share.free()

    def _parse(self, text: str | None, number: int) -> list[Command | Refused]:
        if text is None:
            return [Refused(BinaryFrame(), number if self._speaks_cloudevents else None)]
        try:
            if self._speaks_cloudevents:
                return [parse_cloudevent_frame(text, number, self._settings, self._node.store.estimate_now())]
            return parse_client_frame(text, self._settings, arrays=self._subprotocol == frames.SUBPROTOCOL)
        except Exception:
            logger.exception("failed to read a frame of connection %s", self.id)
            return [Refused(internal())]
