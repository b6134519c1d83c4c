"""The requests of a client: publishes and acks that wait for their answer, over any number of connections.

    taken ─▶ queue ─▶ in flight ─▶ settled: the answer, or an error
               ▲          │ the connection is lost, or the server refuses it for the moment
               └──────────┘

They go out in the order in which they were taken, acks before publishes that wait. After a refusal for the moment none
goes out before the publishes in flight are answered, as they may have to be sent again, too. What goes out then is the
next *wave*, by which the server knows it from what was on its way. Acks of a group's events that wait
together are one frame, and one answer is for all of them. How many events may be published and not answered is bounded,
by number and by bytes. When to try again is said by whoever owns this; it knows no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from eventbus_fastapi.errors import ConnectionLost, EventBusError, FrameTooLarge, LeaseLost, PublishBufferFull
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.protocol.commands import MAX_ACKS, Acknowledge, client_frame, in_wave
from eventbus_fastapi.protocol.membership import Held

ACK_BYTES = 120
"""Bytes of the frame of an ack, at most."""
SEQ_BYTES = 20
"""Bytes that each further event adds to it, at most."""


class Settled(NamedTuple):
    """A request that needs no more work: its answer, or its error."""

    request_id: int
    result: list[Receipt] | None
    """What a publish is answered with; None for an ack."""
    error: EventBusError | None


@dataclass(slots=True, eq=False)
class Request:
    """A publish or an ack that waits for its answer. The same frame is sent again after a reconnect."""

    id: int
    frame: str | None
    """None: the ack of a group's event, which is written when it goes out, with those that wait behind it."""
    size: int
    """Bytes of the frame."""
    events: int
    """How many are published; 0 for an ack."""
    is_live: bool = False
    """Published without storage, so that a second time would be a second event."""
    held: Held | None = None
    """The event of a group that it is about, which is lost with the connection."""
    is_in_flight: bool = False
    attempts: int = 0
    """Retryable refusals so far."""


class Requests:
    """See the module's docstring."""

    def __init__(self, *, max_pending: int, max_pending_bytes: int) -> None:
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self.settled: list[Settled] = []
        """Those that have come to an end; whoever carries them out empties it."""
        self._held_until: float | None = None
        """When those that wait go on; None: at once."""
        self._flying = 0
        """Publishes that are in flight."""
        self._wave = 0
        """0 or 1: changes whenever those that wait go on after a refusal."""
        self._requests: dict[int, Request] = {}
        self._pending_events = 0
        self._pending_bytes = 0
        self._first: deque[Request] = deque()
        """Acks and the like that wait to be sent; they go before the publishes of `_queue`."""
        self._queue: deque[Request] = deque()
        self._joined: dict[int, list[Request]] = {}
        """The acks that went out as one frame, by the id that it has."""

    def has_frame(self) -> bool:
        """Say whether there is one to send now."""
        return bool(self._first or self._queue)

    @property
    def resumes_at(self) -> float | None:
        """When those that wait go on; None: at once, or when an answer has come."""
        return None if self._flying else self._held_until

    def answered(self, frame_id: int) -> list[Request]:
        """Return the requests that an answer is for, without those that were dropped meanwhile."""
        requests = self._joined.pop(frame_id, None)
        if requests is None:
            request = self._requests.get(frame_id)
            return [] if request is None else [request]
        return [request for request in requests if request.id in self._requests]

    def require_room(self, events: int) -> None:
        """Raise PublishBufferFull if so many events are too many."""
        if self._pending_events + events > self._max_pending:
            raise PublishBufferFull(
                f"{self._pending_events:,} events wait for an answer already, "
                f"{events:,} more exceed the limit of {self._max_pending:,} (ClientConfig.max_pending)"
            )

    def publish(self, request_id: int, frame: str, events: int, *, is_live: bool) -> None:
        """Take a publish, to be sent after all that were taken before.

        Raises:
            PublishBufferFull: its bytes are too many; it was not taken.
        """
        size = _bytes(frame)
        if self._pending_bytes + size > self._max_pending_bytes:
            raise PublishBufferFull(
                f"{self._pending_bytes:,} bytes wait for an answer already, "
                f"{size:,} more exceed the limit of {self._max_pending_bytes:,} (ClientConfig.max_pending_bytes)"
            )
        request = self._requests[request_id] = Request(request_id, frame, size, events, is_live)
        self._pending_events += events
        self._pending_bytes += size
        if self._held_until is None:
            self._queue.append(request)

    def ask_first(self, request_id: int, frame: str, held: Held | None) -> None:
        """Take what says something of events, to be sent before publishes that wait."""
        self._ask(Request(request_id, frame, _bytes(frame), 0, held=held))

    def ack(self, request_id: int, held: Held) -> None:
        """Take the ack of a group's event, to be sent before publishes that wait."""
        self._ask(Request(request_id, None, ACK_BYTES, 0, held=held))

    def _ask(self, request: Request) -> None:
        self._requests[request.id] = request
        if self._held_until is None:
            self._first.append(request)

    def next_frames(self, room: int, limit: int, *, is_first: bool) -> list[str]:
        """Return the frames to send now, as many as there is room for. Those beyond the limit are settled.

        Args:
            room: bytes.
            limit: bytes of one frame.
            is_first: the first one is sent whatever room it needs.
        """
        frames: list[str] = []
        for queue in (self._first, self._queue):
            while queue and ((is_first and not frames) or room > queue[0].size):
                request = queue.popleft()
                if request.id not in self._requests:
                    continue
                if request.size > limit:
                    self.settle(request, error=FrameTooLarge(request.size, limit))
                    continue
                frame = self._depart(request, room)
                frames.append(frame)
                room -= len(frame) + 1 if request.frame is None else request.size + 1
        return frames

    def _depart(self, request: Request, room: int) -> str:
        """Note that a request is in flight now. Return its frame."""
        request.is_in_flight = True
        if request.frame is None:
            return self._join(request, room)
        if not request.events:
            return request.frame
        self._flying += 1
        return in_wave(request.frame, self._wave)

    def _land(self, request: Request) -> None:
        """Note that a request is not in flight."""
        if request.is_in_flight and request.events:
            self._flying -= 1
        request.is_in_flight = False

    def _join(self, first: Request, room: int) -> str:
        """Write the frame of an ack and of those behind it that can share it."""
        assert first.held is not None
        acks = [first]
        membership, attempt = first.held.membership, first.held.attempt
        most = min(MAX_ACKS, (room - ACK_BYTES) // SEQ_BYTES)
        while self._first and len(acks) < most:
            other = self._first[0]
            if other.id in self._requests:
                held = other.held
                if other.frame is not None or held is None:
                    break
                if held.membership is not membership or held.attempt != attempt:
                    break
                other.is_in_flight = True
                acks.append(other)
            self._first.popleft()
        if len(acks) > 1:
            self._joined[first.id] = acks
        seqs = [(ack.held.message.seq, None) for ack in acks if ack.held is not None]
        return client_frame(Acknowledge(seqs, first.id, membership.sub, attempt))

    def settle(self, request: Request, result: list[Receipt] | None = None, error: EventBusError | None = None) -> None:
        self.remove(request.id)
        self.settled.append(Settled(request.id, result, error))

    def remove(self, request_id: int) -> None:
        """Drop a request. If it was not sent yet it never will be."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._land(request)
            self._pending_events -= request.events
            self._pending_bytes -= request.size if request.events else 0

    def hold(self, request: Request, until: float) -> None:
        """Send a request again, at a time. All that is not on its way yet waits as well, so that the order stays."""
        self._land(request)
        self._first.clear()
        self._queue.clear()
        self._held_until = max(self._held_until or 0.0, until)

    def resume(self, now: float) -> None:
        """Go on, if it is time."""
        if self.resumes_at is not None and self.resumes_at <= now:
            self._held_until = None
            self._wave = 1 - self._wave
            self._enqueue()

    def disconnected(self) -> None:
        """Line up again what was not answered, but for what must not be sent twice: that is settled."""
        self._held_until = None
        for request in list(self._requests.values()):
            if request.is_in_flight and request.is_live:
                # A log would know the message_id; without storage a second time would be a second event.
                lost = ConnectionLost("the connection was lost before the server answered; the event is not stored")
                self.settle(request, error=lost)
            elif request.held is not None:
                self.settle(request, error=LeaseLost([request.held.message.seq]))
            self._land(request)
        self._joined.clear()
        self._enqueue()

    def _enqueue(self) -> None:
        """Line up all that is to be sent: acks, which the next replay depends on, then publishes in their order."""
        waiting = [request for request in self._requests.values() if not request.is_in_flight]
        self._first = deque(request for request in waiting if not request.events)
        self._queue = deque(request for request in waiting if request.events)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
