"""NATS JetStream as a destination of a relay.

Every message has `Nats-Msg-Id` = message_id, so a second copy within the stream's window for duplicates is dropped.
In a stream that is the relay's alone, each also names the last sequence that the stream must have: nothing gets in
out of order, and one whose lease has moved on is refused. Who begins to send there reads the stream's last message,
and leaves out what is there already, however long ago that was.

FastStream's `publish` waits for each ack before the next message. So this publishes through the client that the
broker holds, with an inbox of its own for the acks. A batch is written in slices, so that NATS works on one while the
next is made; and only while the connection is the one that it began with. What waits to be written when that is lost is
dropped (`_Unwritten`). So a lost connection takes all of the batch or its end, never a part in between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote as percent_encode

from nats.errors import BadSubjectError
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig
from nats.js.errors import APIError, NotFoundError

from eventbus_fastapi.errors import BrokerUnavailable, InvalidRelay, quote
from eventbus_fastapi.relay.destination import CONFIRMED, Outcome, refused, shown, unknown, unsent
from eventbus_fastapi.relay.headers import MESSAGE_ID as EVENT_ID
from eventbus_fastapi.relay.headers import SEQ
from eventbus_fastapi.relay.opening import BrokerSource
from eventbus_fastapi.relay.parcel import EPOCH, REACHED, RELAY, Parcel, written

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

MESSAGE_ID, EXPECTED_SEQUENCE, EXPECTED_STREAM = "Nats-Msg-Id", "Nats-Expected-Last-Sequence", "Nats-Expected-Stream"
TOO_LARGE = (10054, 10097)
"""JetStream's error codes where the stream takes no message of this size, or none with such headers (64 KiB)."""
SLICE = 100
"""Messages that are handed to the connection at once."""
LOOK_EVERY = 0.25
"""Seconds between two looks at the connection while acks are waited for."""
QUIET = 10.0
"""Seconds without any ack after which those that are missing are given up."""
FAILURES = (NatsError, OSError, TimeoutError, asyncio.TimeoutError)


class Position(NamedTuple):
    """Where a stream of the relay's alone is."""

    last: int
    """Its last sequence."""
    reached: int
    """The seq that the relay has come to in it."""


class JetStream:
    """See the module's docstring.

    Args:
        stream: the stream's name; None: whichever takes the subjects, and it is not the relay's alone.
        create: make the stream if there is none, for the subjects of the relay.
        exclusive: whether the stream is the relay's alone; None: if the relay has made it.
    """

    kind = "jetstream"
    prefix = "ce-"

    def __init__(
        self, source: BrokerSource, *, stream: str | None = None, create: bool = False, exclusive: bool | None = None
    ) -> None:
        if stream is None and (create or exclusive):
            raise InvalidRelay("a stream to be made, or to be the relay's alone, needs its name: stream=…")
        self._source = source
        self._stream = stream
        self._create = create
        self._wants_exclusive = exclusive
        self._is_exclusive = False
        self._is_found = False  # the stream that has a name
        self._client: Client | None = None
        self._inbox = ""
        self._acks: Subscription | None = None
        self._unwritten: _Unwritten | None = None
        self._wave: _Wave | None = None
        self._position: Position | None = None
        self._relay = self._epoch = ""
        self._subjects: list[str] = []

    def write_key(self, key: str) -> str:
        """One token: what NATS gives a meaning, or cannot have in a subject, is percent-encoded."""
        return percent_encode(key, safe=":@/").replace(".", "%2E")

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        self._relay, self._epoch = relay, epoch
        literal = template.replace("{topic}", "").replace("{key}", "")
        filled = template.replace("{topic}", "t").replace("{key}", "k")
        if any(each in literal for each in (" ", "\t", "\r", "\n", "*", ">")) or "" in filled.split("."):
            raise InvalidRelay(
                f"subject template {quote(template)} is no subject of NATS: it has spaces, wildcards or empty parts"
            )
        self._subjects = subjects_of(template, patterns)
        if self._create and ">" in self._subjects:
            raise InvalidRelay(
                "a stream cannot have all subjects of NATS: give a subject template such as 'events.{topic}'"
            )

    async def connect(self) -> None:
        client = self._client
        if client is not None and client.is_connected and (self._is_found or self._stream is None):
            return
        if client is None or client.is_closed:
            client = await self._open()
        if not client.is_connected:
            raise BrokerUnavailable("NATS is not connected")
        self._position = None
        if self._stream is not None:
            try:
                await self._look_at_stream(client, self._stream)
                self._is_found = True
            except ValueError as exc:
                raise InvalidRelay(f"NATS cannot have the stream {quote(self._stream)}: {exc}") from exc
            except FAILURES as exc:
                raise BrokerUnavailable(f"JetStream cannot be asked for the stream: {shown(exc)}") from exc
        self._client = client

    async def _open(self) -> Client:
        """Open a connection, and an inbox for acks."""
        self._forget_client()
        await self._source.discard()
        client: Client = await self._source.connect()
        if client.is_closed:
            raise BrokerUnavailable(
                "the client of the broker that was handed in has given up: have it reconnect for ever, with"
                " NatsBroker(…, max_reconnect_attempts=-1)"
            )
        _look_at_writing(client)
        self._inbox = client.new_inbox()
        self._unwritten = _Unwritten.of(client)
        self._unwritten.inboxes.add(self._inbox)
        try:
            self._acks = await client.subscribe(f"{self._inbox}.*", cb=self._hear)
        except FAILURES as exc:
            raise BrokerUnavailable(f"NATS cannot be reached: {shown(exc)}") from exc
        return client

    async def _look_at_stream(self, client: Client, stream: str) -> None:
        """Find the stream, or make it; learn whether it is the relay's alone."""
        js = client.jetstream()
        own = f"Made by the relay {written(self._relay)} of an event bus"
        try:
            config = (await js.stream_info(stream)).config
        except NotFoundError:
            if not self._create:
                raise InvalidRelay(
                    f"NATS has no stream {quote(stream)}; make it, or have the relay make it with create_stream=True"
                ) from None
            try:
                made = await js.add_stream(StreamConfig(name=stream, subjects=self._subjects, description=own))
            except APIError as exc:
                raise InvalidRelay(f"NATS does not make the stream {quote(stream)}: {exc.description}") from exc
            config = made.config
        is_made = config.description == own
        self._is_exclusive = is_made if self._wants_exclusive is None else self._wants_exclusive

    async def _find_position(self, client: Client, stream: str) -> Position:
        """Read how far the relay has come in a stream of its own.

        Raises:
            InvalidRelay: it is not its own.
        """
        js = client.jetstream()
        last = (await js.stream_info(stream)).state.last_seq
        try:
            headers = (await js.get_msg(stream, last)).headers or {} if last else None
        except NotFoundError:  # it was purged, or is too old; what is known is the window for duplicates
            headers = None
        if headers is None:
            return Position(last, 0)
        came = (headers.get(RELAY), headers.get(EPOCH))
        if came != (written(self._relay), self._epoch):
            raise InvalidRelay(
                f"stream {quote(stream)} is not this relay's alone: its last message is from {quote(came[0])}"
                f" with the log {quote(came[1])}; give it another stream, or say exclusive=False"
            )
        return Position(last, int(headers.get(REACHED) or headers[SEQ]))

    # --- sending ---

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        client = self._client
        if client is None or not client.is_connected:
            return [unsent("NATS is not connected")] * len(parcels)
        position: Position | None = None
        if self._is_exclusive and self._stream is not None:
            try:
                position = self._position or await self._find_position(client, self._stream)
            except NotFoundError:
                return [self._lose_stream(self._stream)] * len(parcels)
            except (InvalidRelay, *FAILURES) as exc:
                return [unsent(exc)] * len(parcels)
        self._position = None  # until all of this is known to be there
        wave = self._wave = _Wave(self._wave, len(parcels))
        reconnects = client.stats["reconnects"]
        place = 0
        try:
            for place, parcel in enumerate(parcels):
                if place % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
                if _is_lost(client, reconnects):
                    raise ConnectionError("the connection to NATS was lost")
                outcome, position = await self._publish(client, wave, place, parcel, position)
                if outcome is not None:
                    wave.settle(place, outcome)
        except FAILURES as exc:
            wave.give_up(unsent(exc), start=place)
        await _wait_for(wave, client, reconnects)
        if wave.is_all_confirmed:
            self._position = position
        return await self._judged(client, parcels, wave.outcomes)

    async def _publish(
        self, client: Client, wave: _Wave, place: int, parcel: Parcel, position: Position | None
    ) -> tuple[Outcome | None, Position | None]:
        """Write one message; return its outcome if that is known already, and the position behind it."""
        seq = parcel.message.seq
        headers = parcel.headers
        headers[MESSAGE_ID] = headers[EVENT_ID]
        if position is not None:
            if seq <= position.reached and not parcel.is_revived:
                return CONFIRMED, position
            headers[EXPECTED_SEQUENCE] = str(position.last)
            if seq <= position.reached:
                headers[REACHED] = str(position.reached)
        elif self._stream is not None:
            headers[EXPECTED_STREAM] = self._stream
        size = len(parcel.body) + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers) + 16
        if size > client.max_payload:
            return refused(f"{size:,} bytes with headers, NATS takes {client.max_payload:,}"), position
        try:
            reply = f"{self._inbox}.{wave.first + place}"
            await client.publish(parcel.subject, parcel.body, reply=reply, headers=headers)
        except BadSubjectError:
            return refused(f"{quote(parcel.subject)} is no subject of NATS"), position
        if position is not None:
            position = Position(position.last + 1, max(seq, position.reached))
        return None, position

    async def _hear(self, message: Msg) -> None:
        """Take an ack."""
        wave = self._wave
        number = message.subject[len(self._inbox) + 1 :]
        if wave is None or not number.isdecimal():
            return
        place = int(number) - wave.first
        if not 0 <= place < len(wave.outcomes):
            return  # of one that was given up
        if message.data and b'"error"' not in message.data:
            wave.settle(place, CONFIRMED)
        else:
            wave.settle(place, _outcome_of(message))

    async def _judged(
        self, client: Client, parcels: Sequence[Parcel], outcomes: Sequence[Outcome | None]
    ) -> list[Outcome]:
        """Tell subjects that no stream takes from a JetStream, or a stream, that is away."""
        judged: list[Outcome] = []
        known: dict[str, Outcome] = {}
        for parcel, outcome in zip(parcels, outcomes, strict=True):
            if outcome is _NOBODY:
                if parcel.subject not in known:
                    known[parcel.subject] = await self._judge_subject(client, parcel.subject)
                judged.append(known[parcel.subject])
            else:
                judged.append(outcome or unknown("no ack"))
        return judged

    async def _judge_subject(self, client: Client, subject: str) -> Outcome:
        js = client.jetstream()
        try:
            if self._stream is not None:
                await js.stream_info(self._stream)
        except NotFoundError:
            return self._lose_stream(self._stream)
        except FAILURES as exc:
            return unsent(exc)
        try:
            await js.find_stream_name_by_subject(subject)
        except NotFoundError:
            return refused(f"no stream of NATS takes the subject {quote(subject)}")
        except FAILURES as exc:
            return unsent(exc)
        return unsent("JetStream does not answer")

    def _lose_stream(self, stream: str | None) -> Outcome:
        """Its stream was deleted: look for it, or make it, before anything is sent again."""
        self._is_found = False
        return unsent(f"NATS has no stream {quote(stream)} any more")

    async def close(self) -> None:
        self._forget_client()
        acks, self._acks = self._acks, None
        if acks is not None:  # the client may go on without us
            with suppress(*FAILURES):
                await acks.unsubscribe()
        await self._source.close()

    def _forget_client(self) -> None:
        self._client = None
        if self._unwritten is not None:
            self._unwritten.inboxes.discard(self._inbox)


class _Wave:
    """A batch on its way: the outcome of each message, as acks come."""

    def __init__(self, before: _Wave | None, size: int) -> None:
        self.first: int = 0 if before is None else before.first + len(before.outcomes)
        """Number of its first message; no two messages of a relay have the same."""
        self.outcomes: list[Outcome | None] = [None] * size
        self.left = size
        self.done = asyncio.Event()
        if not size:
            self.done.set()

    @property
    def is_all_confirmed(self) -> bool:
        return all(outcome is CONFIRMED for outcome in self.outcomes)

    def settle(self, place: int, outcome: Outcome) -> None:
        if self.outcomes[place] is None:
            self.outcomes[place] = outcome
            self.left -= 1
            if self.left == 0:
                self.done.set()

    def give_up(self, outcome: Outcome, *, start: int = 0) -> None:
        """Wait no more for what has no outcome, from place `start` on."""
        for place in range(start, len(self.outcomes)):
            self.settle(place, outcome)


async def _wait_for(wave: _Wave, client: Client, reconnects: int) -> None:
    """Wait for all acks, or until there will be no more."""
    clock = asyncio.get_running_loop().time
    left, moved_at = wave.left, clock()
    while not wave.done.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY):
                await wave.done.wait()
        if wave.left < left:
            left, moved_at = wave.left, clock()
        if _is_lost(client, reconnects):
            wave.give_up(unknown("the connection to NATS was lost"))
        elif clock() > moved_at + QUIET:
            wave.give_up(unknown(f"JetStream acknowledged nothing for {QUIET:.0f} s"))


def _is_lost(client: Client, reconnects: int) -> bool:
    """Whether the connection is not the one that had been opened anew so often."""
    return not client.is_connected or client.stats["reconnects"] != reconnects


class _Unwritten:
    """What waits in nats-py to be written when a connection is lost: it would write that on the next one, in front of
    what was lost with the first. This drops what asks for acks to these inboxes; all else is the program's own.

    It takes the place of what nats-py calls between two connections, which is called all the same.
    """

    def __init__(self, client: Client, after: Callable[[], Awaitable[None]] | None) -> None:
        self.inboxes: set[str] = set()
        self._client = client
        self._after = after

    @classmethod
    def of(cls, client: Client) -> Self:
        """Return that of a client, one for all relays over it."""
        if not isinstance(client._disconnected_cb, cls):
            client._disconnected_cb = cls(client, client._disconnected_cb)
        return client._disconnected_cb

    async def __call__(self) -> None:
        client, ours = self._client, [f" {inbox}.".encode() for inbox in self.inboxes]
        client._pending = [command for command in client._pending if not any(each in command for each in ours)]
        client._pending_data_size = sum(map(len, client._pending))
        if self._after is not None:
            await self._after()


def _look_at_writing(client: Client) -> None:
    """Look at how the task of nats-py ends that writes: nobody does. It fails where a connection breaks while it is
    being closed, which is known by then, and asyncio would log that as an error.
    """
    writing = getattr(client, "_flusher_task", None)
    if isinstance(writing, asyncio.Task):
        writing.add_done_callback(lambda task: task.cancelled() or task.exception())


_NOBODY = unsent("no stream answers")


def _outcome_of(message: Msg) -> Outcome:
    """Return what an ack says that may be none."""
    if not message.data:
        return _NOBODY
    error: dict[str, Any] | None = json.loads(message.data).get("error")
    if error is None:  # its stream has the name "error"
        return CONFIRMED
    reason = f"JetStream: {error.get('description', 'no ack')} ({error.get('err_code', '?')})"
    return refused(reason) if error.get("err_code") in TOO_LARGE else unsent(reason)


# --- subjects ------------------------------------------------------------------------------------


def subjects_of(template: str, patterns: Sequence[str]) -> list[str]:
    """Return the subjects that a stream needs for events of these patterns, none of them a part of another."""
    found: list[str] = []
    for pattern in patterns:
        found += [template.replace("{topic}", topic).replace("{key}", "*") for topic in _as_wildcards(pattern)]
    cut = [_cut(subject) for subject in dict.fromkeys(found)]
    kept: list[str] = []
    for subject in cut:
        if not any(_covers(other, subject) for other in kept):
            kept = [other for other in kept if not _covers(subject, other)] + [subject]
    return kept


def _as_wildcards(pattern: str) -> list[str]:
    """Return a pattern in NATS's words: `#` is zero segments or more, `>` one or more, and only at the end."""
    segments = pattern.split(".")
    if "#" not in segments:
        return [pattern]
    place = segments.index("#")
    before = segments[:place]
    is_alone = place == len(segments) - 1
    return [".".join(before), ".".join([*before, ">"])] if before and is_alone else [".".join([*before, ">"])]


def _cut(subject: str) -> str:
    """Return a subject up to its first `>`: nothing may follow it."""
    tokens = subject.split(".")
    return ".".join(tokens[: tokens.index(">") + 1]) if ">" in tokens else subject


def _covers(wide: str, narrow: str) -> bool:
    """Whether all that matches `narrow` matches `wide`."""
    ours, theirs = wide.split("."), narrow.split(".")
    for place, token in enumerate(ours):
        if token == ">":
            return len(theirs) > place
        if place >= len(theirs) or theirs[place] == ">":
            return False
        if token not in ("*", theirs[place]):
            return False
    return len(ours) == len(theirs)
