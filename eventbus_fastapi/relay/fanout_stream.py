"""The stream of the fan-out on NATS JetStream: one per log, in memory, bounded by age and bytes.

A connection lives from `open` until it is lost; it never reconnects by itself, because what it missed meanwhile the
node finds in the log anyway. Each node has an ephemeral consumer that begins with what comes. Heartbeats of the
consumer and the acks of what was pushed say that all of it works; what fails to come for some turns is lost. Order and
holes do not matter here, so neither does a restart that leaves the stream empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any
from uuid import UUID

import nats
import nats.aio.client
import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, Error

from eventbus_fastapi.pipeline.fanout import StreamReader, StreamUnavailable

SUBJECT = "eventbus.fanout"
MAX_AGE = 60.0
"""Seconds that the stream keeps a run: nobody reads its past, but a node may be slow for a moment."""
MAX_BYTES = 67_108_864
"""Bytes that the stream keeps at most."""
DUPLICATE_WINDOW = 10.0
"""Seconds within which the same push of two nodes is stored once."""
TIMEOUT = 2.0
"""Seconds that NATS has to let us in, or to answer."""
TURN = 0.5
"""Seconds between two looks whether it still does its work."""
HEARTBEAT = 1.0
"""Seconds of silence after which a consumer says that it lives."""
MOST_SILENT_TURNS = 6
"""Looks in a row at which nothing has come, or no ack for the oldest push, until the connection counts as lost."""
MOST_UNACKED = 8
"""Pushes on their way at the same time."""
HEADER_BYTES = 256
"""Bytes that NATS may count beside a run: it ends the connection where a run and its header are too large together."""
CLOSE_GRACE = 1.0
"""Seconds that acks have to come when the connection is closed."""
NAME_IN_USE = 10058
"""JetStream's error: the stream is there, with other limits; somebody who runs NATS chose them."""


class JetStream:
    """See the module's docstring; a `pipeline.fanout.Stream`."""

    def __init__(self, servers: list[str]) -> None:
        self.name = ", ".join(server.rpartition("@")[2].rpartition("/")[2] for server in servers)
        self.most_bytes = 0
        self._servers = servers
        self._connection: nats.aio.client.Client | None = None
        self._reader: StreamReader | None = None
        self._watching: asyncio.Task[None] | None = None
        self._subject = ""
        self._acks = ""
        self._is_silent = True
        self._pushed = 0
        self._acked = 0
        self._has_room = asyncio.Event()

    async def open(self, epoch: UUID, reader: StreamReader) -> None:
        """See `Stream`."""
        connection = self._connection = nats.aio.client.Client()
        self._pushed = self._acked = 0
        self._has_room.set()
        self._reader = reader
        try:
            async with asyncio.timeout(3 * TIMEOUT):
                await self._connect(connection)
                await self._read(connection, epoch)
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as exc:
            self._reader = None
            await self.close()
            raise StreamUnavailable(_reason(exc)) from exc
        except BaseException:
            self._reader = None
            await self.close()
            raise
        self.most_bytes = connection.max_payload - HEADER_BYTES
        self._watching = asyncio.create_task(self._watch(), name="eventbus-fanout-watch")

    async def _connect(self, connection: nats.aio.client.Client) -> None:
        await connection.connect(
            self._servers,
            name="eventbus-fanout",
            allow_reconnect=False,
            connect_timeout=int(TIMEOUT),
            error_cb=_ignore,  # what matters ends the connection
            closed_cb=self._on_closed,
        )

    async def _read(self, connection: nats.aio.client.Client, epoch: UUID) -> None:
        """Have the stream, and be told of what is pushed to it from now on."""
        stream, self._subject = f"EVENTBUS_{epoch.hex}", f"{SUBJECT}.{epoch.hex}"
        jetstream = connection.jetstream(timeout=TIMEOUT)
        await _make_stream(jetstream, stream, self._subject)
        inbox = connection.new_inbox()
        self._acks = f"{inbox}.ack"
        await connection.subscribe(self._acks, cb=self._on_ack)
        await connection.subscribe(inbox, cb=self._on_message)
        await jetstream.add_consumer(
            stream,
            deliver_subject=inbox,
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.NONE,
            replay_policy=api.ReplayPolicy.INSTANT,
            idle_heartbeat=HEARTBEAT,
            flow_control=True,
            inactive_threshold=5 * HEARTBEAT,
            max_deliver=1,
            mem_storage=True,
            num_replicas=1,
        )

    @property
    def is_idle(self) -> bool:
        """See `Stream`."""
        return self._acked == self._pushed

    async def push(self, encoded: bytes, push_id: str | None = None) -> None:
        """See `Stream`."""
        await self._has_room.wait()
        if self._connection is None or self._reader is None:
            raise StreamUnavailable("the connection is closed")
        self._pushed += 1
        if self._pushed - self._acked >= MOST_UNACKED:
            self._has_room.clear()
        headers = None if push_id is None else {api.Header.MSG_ID.value: push_id}
        try:
            await self._connection.publish(self._subject, encoded, reply=self._acks, headers=headers)
        except (nats.errors.Error, OSError) as exc:
            raise StreamUnavailable(_reason(exc)) from exc

    async def close(self) -> None:
        """See `Stream`."""
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_GRACE):
                    while self._acked < self._pushed and self._reader is not None:
                        self._has_room.clear()
                        await self._has_room.wait()
        self._reader = None
        self._has_room.set()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        connection, self._connection = self._connection, None
        if connection is not None:
            # The AssertionError is of a client whose connect failed before it began.
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
                async with asyncio.timeout(TIMEOUT):
                    await connection.close()

    # --- what NATS calls ---

    async def _on_message(self, message: Msg) -> None:
        self._is_silent = False
        if self._reader is None:
            return
        if message.headers is not None and message.headers.get(api.Header.STATUS.value) is not None:
            await self._answer(message)
            return
        self._reader.hear(message.data)

    async def _answer(self, message: Msg) -> None:
        """Say that we keep up, where the consumer wants to know before it sends more."""
        assert message.headers is not None
        subject = message.reply or message.headers.get(api.Header.CONSUMER_STALLED.value)
        if subject and self._connection is not None:
            await self._connection.publish(subject)

    async def _on_ack(self, message: Msg) -> None:
        self._acked += 1
        self._has_room.set()
        if self._reader is None:
            return
        if message.headers is not None and message.headers.get(api.Header.STATUS.value) is not None:
            self._lose("the stream is gone")
            return
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            self._lose(f"a push was refused: {answer['error'].get('description', 'for no reason given')}")
            return
        self._reader.note_pushed(not answer.get("duplicate", False))

    async def _on_closed(self) -> None:
        error = self._connection.last_error if self._connection is not None else None
        self._lose("the connection was closed" if error is None else _reason(error))

    def _lose(self, reason: str) -> None:
        reader, self._reader = self._reader, None
        self._has_room.set()
        if reader is not None and self._watching is not None:  # else `open` says it
            reader.note_lost(reason)

    async def _watch(self) -> None:
        """Count the looks at which nothing has come. A process that was stopped for a while has not looked."""
        silent = late = 0
        acked = self._acked
        while self._reader is not None:
            self._is_silent = True
            await asyncio.sleep(TURN)
            silent = silent + 1 if self._is_silent else 0
            late = late + 1 if self._acked < self._pushed and self._acked == acked else 0
            acked = self._acked
            if silent >= MOST_SILENT_TURNS or late >= MOST_SILENT_TURNS:
                what = "from the stream" if silent >= MOST_SILENT_TURNS else "in answer to a push"
                self._lose(f"nothing has come {what} for {MOST_SILENT_TURNS * TURN:g} s")


async def _make_stream(jetstream: JetStreamContext, name: str, subject: str) -> None:
    try:
        await jetstream.add_stream(
            name=name,
            subjects=[subject],
            storage=api.StorageType.MEMORY,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=MAX_AGE,
            max_bytes=MAX_BYTES,
            duplicate_window=DUPLICATE_WINDOW,
            num_replicas=1,
        )
    except APIError as exc:
        if exc.err_code != NAME_IN_USE:
            raise


def _reason(error: BaseException) -> str:
    if isinstance(error, APIError | Error):
        return f"JetStream: {getattr(error, 'description', None) or type(error).__name__}"
    return str(error) or type(error).__name__


async def _ignore(error: Exception) -> None:
    return None
