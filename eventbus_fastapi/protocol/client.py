"""The client's side of `eventbus.v1` without sockets, clocks and tasks.

A `ClientSession` outlives connections. It knows which requests wait for an answer and in which order they go out, what
to send when a connection opens, and what each frame of the server changes. It never waits: whoever owns a socket asks
it for `next_frame()`, gives it what it `receive()`s, and carries out what it `settled`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from pydantic import SecretStr

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import (
    BadFrame,
    EventBusError,
    LeaseLost,
    LogGap,
    RemoteError,
    quote,
)
from eventbus_fastapi.events import Draft, Message, Receipt
from eventbus_fastapi.protocol.commands import (
    Acknowledge,
    Authenticate,
    Chosen,
    Credit,
    Extend,
    Nack,
    Ping,
    Publish,
    Reject,
    Subscribe,
    Unsubscribe,
    client_frame,
)
from eventbus_fastapi.protocol.frames import (
    Bye,
    CaughtUp,
    Closed,
    Delivered,
    Failed,
    Gap,
    Lost,
    Ok,
    ServerFrame,
    Welcome,
    parse_server_frame,
    receipts,
)
from eventbus_fastapi.protocol.membership import Held, Membership
from eventbus_fastapi.protocol.reading import Reading
from eventbus_fastapi.protocol.requests import Request, Requests, Settled

logger = logging.getLogger("eventbus_fastapi.client")

Verdict = Literal["return", "back_off", "stop"]
"""What a client does after a connection has ended: come back at once (with jitter), with backoff, or not at all."""

JOINED = 65_536
"""Requests that wait together go out as one frame of up to so many bytes."""
MAX_ADVICE = 60.0
"""Longest `retry_after` of a server that is followed, seconds."""
DEFAULT_MAX_FRAME = 1_048_576


def verdict(code: int | None) -> Verdict:
    """Say what the close code of a connection means for coming back; None: there was no close frame."""
    if code in (1001, 1012) or (code is not None and 4000 <= code <= 4099):
        return "return"
    if code is not None and 4400 <= code <= 4499:
        return "stop"
    return "back_off"


class ClientSession:
    """Everything a client knows, over any number of connections."""

    def __init__(
        self, *, backoff: FullJitter, max_retries: int | None, max_pending: int, max_pending_bytes: int
    ) -> None:
        self._backoff = backoff
        self._max_retries = max_retries
        self._requests = Requests(max_pending=max_pending, max_pending_bytes=max_pending_bytes)
        self.welcome: Welcome | None = None
        """What the server said when the present connection opened; None while there is none."""
        self.bye: Bye | None = None
        """What the server said before it closes the present connection."""
        self.expires_in: float | None = None
        """Seconds from its last word on it until the server takes the client's token no more. The owner empties it."""
        self.limits: dict[str, int] = {}
        """The limits of the last server, as far as they can be used."""
        self.changed: set[Reading | Membership] = set()
        """Subscriptions that have something new: an event, the server's answer, an end. The owner empties it."""
        self._last_id = 0
        self._control: deque[str] = deque()
        self._renewals: set[int] = set()
        self._readings: dict[int, Reading | Membership] = {}
        self._last_sub = 0
        self._unconfirmed: dict[int, Reading | Membership] = {}
        self._due: dict[Reading | Membership, float] = {}

    @property
    def settled(self) -> list[Settled]:
        """Requests that have come to an end; the owner empties it."""
        return self._requests.settled

    # --- what the program asks for -------------------------------------------------------------------

    def publish(self, drafts: Sequence[Draft], *, is_batch: bool, is_live: bool) -> int:
        """Take events to publish; they are sent after all that were taken before. Return the request's id.

        Raises:
            PublishBufferFull: too many wait already; none was taken.
        """
        self._requests.require_room(len(drafts))
        request_id = self._next_id()
        frame = client_frame(Publish(drafts, request_id, is_batch, is_live, wave=0))
        self._requests.publish(request_id, frame, len(drafts), is_live=is_live)
        return request_id

    def acknowledge(self, seq: int, message_id: UUID) -> int:
        """Take an ack; it is sent before publishes that wait. Return the request's id."""
        return self._ask_first(Acknowledge([(seq, message_id)], self._next_id()))

    def _ask_first(self, command: Acknowledge | Nack | Reject | Extend, held: Held | None = None) -> int:
        assert command.id is not None
        self._requests.ask_first(command.id, client_frame(command), held)
        return command.id

    def forget(self, request_id: int) -> None:
        """Drop a request. If it was not sent yet it never will be; an answer is ignored."""
        self._requests.remove(request_id)

    def subscribe(self, options: Subscribe, window: int) -> Reading:
        """Start a subscription; it goes on over reconnects until `unsubscribe`."""
        self._last_sub += 1
        reading = Reading(options._replace(sub=self._last_sub), window)
        self._begin(reading)
        return reading

    def unsubscribe(self, reading: Reading | Membership) -> None:
        """End a subscription; nothing of it arrives any more. What a group's held is for others."""
        if self._readings.pop(reading.sub, None) is None:
            return
        reading.suspend()
        self._due.pop(reading, None)
        self.changed.discard(reading)
        if self.welcome is not None:
            self._control.append(client_frame(Unsubscribe(reading.sub, self._next_id())))

    def take(self, reading: Reading) -> Message | LogGap | None:
        """Return what comes next in a subscription, and give the server credit for more."""
        item = reading.take()
        self._refill(reading)
        return item

    # --- groups --------------------------------------------------------------------------------------

    def join(self, options: Subscribe) -> Membership:
        """Become a member of a group; it goes on over reconnects until `unsubscribe`."""
        self._last_sub += 1
        membership = Membership(options._replace(sub=self._last_sub))
        self._begin(membership)
        return membership

    def take_held(self, membership: Membership) -> Held | None:
        """Return the next event that the member holds; None if there is none."""
        while (held := membership.take()) is not None:
            if not held.is_lost:
                return held
            self._name(held)
        return None

    def ack(self, held: Held) -> int:
        """Take an ack of a group's event; it is sent before publishes that wait. Return the request's id.

        Raises:
            LeaseLost: it is another member's.
        """
        self._require(held)
        request_id = self._next_id()
        self._requests.ack(request_id, held)
        return request_id

    def nack(self, held: Held, delay: float | None, reason: str | None) -> int:
        """The same, to have it tried again."""
        self._require(held)
        return self._ask_first(Nack(_chosen(held), held.membership.sub, delay, reason, self._next_id()), held)

    def reject(self, held: Held, reason: str | None) -> int:
        """The same, to have it given up."""
        self._require(held)
        return self._ask_first(Reject(_chosen(held), held.membership.sub, reason, self._next_id()), held)

    def extend(self, held: Held) -> int:
        """The same, to keep it for longer."""
        self._require(held)
        return self._ask_first(Extend(_chosen(held), held.membership.sub, self._next_id()), held)

    def extend_all(self, membership: Membership) -> None:
        """Keep all that the member holds for longer. What is lost by then, the server tells by itself."""
        seqs = [held.message.seq for held in membership.unsettled]
        if seqs and membership.is_confirmed:
            # With an id, as the answer to one is not reported where nobody waits for it.
            self._control.append(client_frame(Extend(Chosen(seqs), membership.sub, self._next_id())))

    def _require(self, held: Held) -> None:
        if held.is_lost:
            self._name(held)
            raise LeaseLost([held.message.seq])

    def _name(self, held: Held) -> None:
        """Speak of an event that was taken back: until then the server counts it against the credit."""
        membership = held.membership
        if membership.is_confirmed and held.connection == membership.connection and not held.is_settled:
            held.is_settled = True
            self._control.append(client_frame(Nack(_chosen(held), membership.sub, id=self._next_id())))

    # --- what the owner of the socket does -----------------------------------------------------------

    def next_frame(self, now: float) -> str | None:
        """Return the text to send now, one frame or several joined; None if there is none."""
        if self.welcome is None:
            return None
        self._resume(now)
        limit = self.limits.get("max_frame", DEFAULT_MAX_FRAME)
        frames: list[str] = []
        room = min(JOINED, limit) - 1
        while self._control and (not frames or room > len(self._control[0])):
            frames.append(self._control.popleft())
            room -= len(frames[-1]) + 1
        frames += self._requests.next_frames(room, limit, is_first=not frames)
        if len(frames) > 1:
            return f"[{','.join(frames)}]"
        return frames[0] if frames else None

    def has_frame(self) -> bool:
        """Say whether there is something to send now, or would be if a connection were open."""
        return bool(self._control) or self._requests.has_frame()

    def due(self) -> float | None:
        """Return the time at which `next_frame` may have something new to send; None: when something happens."""
        times = list(self._due.values())
        if (resumes_at := self._requests.resumes_at) is not None:
            times.append(resumes_at)
        return min(times, default=None)

    def ping(self) -> str:
        """Return the frame that says that this side is alive."""
        return client_frame(Ping())

    def authenticate(self, token: str) -> None:
        """Show the server another token, on the present connection."""
        if self.welcome is not None:
            renewal = self._next_id()
            self._renewals.add(renewal)
            self._control.append(client_frame(Authenticate(SecretStr(token), renewal)))

    def receive(self, text: str | bytes, now: float) -> None:
        """Take in what the server sent.

        Raises:
            BadFrame: it does not follow the protocol. Something may have been lost with it, so the connection is no
                longer good for anything: close it and resume on another one.
        """
        if not isinstance(text, str):
            raise BadFrame("the server sent a binary frame")
        try:
            for frame in parse_server_frame(text):
                self._on(frame, now)
        except (ArithmeticError, AttributeError, TypeError, ValueError, KeyError) as exc:
            raise BadFrame(f"the server sent a frame that cannot be used: {type(exc).__name__}: {exc}") from exc

    def disconnected(self) -> None:
        """Note that the connection is gone. What was not answered is sent again on the next one, in order."""
        self.welcome = self.bye = self.expires_in = None
        self._renewals.clear()
        self._control.clear()
        self._unconfirmed.clear()
        self._due.clear()
        for reading in self._readings.values():
            reading.suspend()
        self._requests.disconnected()

    # --- frames --------------------------------------------------------------------------------------

    def _on(self, frame: ServerFrame, now: float) -> None:
        if isinstance(frame, Welcome):
            self._on_welcome(frame)
            return
        if self.welcome is None:
            raise BadFrame(f"the server sent {type(frame).__name__} before its welcome")
        match frame:
            case Delivered() | Lost() | Gap() | CaughtUp() | Closed():
                self._on_subscription(frame, now)
            case Ok():
                self._on_ok(frame, self.welcome)
            case Failed():
                self._on_failed(frame, now)
            case Bye():
                self.bye = frame
            case _:
                pass  # a heartbeat or a pong: that it came is all it says

    def _on_welcome(self, welcome: Welcome) -> None:
        if self.welcome is not None:
            raise BadFrame("the server sent a second welcome")
        if not 0 < welcome.heartbeat <= 86_400:
            raise BadFrame("the server's heartbeat is not a number of seconds")
        self.limits = {name: limit for name, limit in welcome.limits.items() if type(limit) is int and limit > 0}
        self.welcome = welcome
        self.expires_in = _seconds(welcome.expires_in)
        for reading in self._readings.values():
            self._start(reading)

    def _on_subscription(self, frame: Delivered | Lost | Gap | CaughtUp | Closed, now: float) -> None:
        reading = self._readings.get(_integer(frame.sub)) if isinstance(frame.sub, int) else None
        if reading is None:
            return  # it was unsubscribed while this was on its way
        if isinstance(reading, Membership):
            self._on_membership(reading, frame, now)
            return
        match frame:
            case Delivered(message=message):
                _check(message)
                if reading.deliver(message):
                    self.changed.add(reading)
                else:
                    self._refill(reading)
            case Gap(first_seq=first_seq, last_seq=last_seq):
                _integer(first_seq), _integer(last_seq)
                reading.gap(frame._replace(reason=str(frame.reason)))
                self.changed.add(reading)
            case CaughtUp(seq=seq):
                _integer(seq)
                reading.caught_up(frame)
            case Closed(error=error):
                reading.suspend()
                self._retry_or_end(reading, error, now)

    def _on_membership(
        self, membership: Membership, frame: Delivered | Lost | Gap | CaughtUp | Closed, now: float
    ) -> None:
        match frame:
            case Delivered(message=message, attempt=attempt):
                _check(message)
                membership.deliver(message, attempt)
                self.changed.add(membership)
            case Lost(seqs=seqs):
                membership.lose([_integer(seq) for seq in seqs])
            case Closed(error=error):
                membership.suspend()
                self._retry_or_end(membership, error, now)
            case _:
                pass  # a group has none of these

    def _on_ok(self, ok: Ok, welcome: Welcome) -> None:
        if ok.id in self._renewals:
            self._renewals.remove(ok.id)
            self.expires_in = _seconds(ok.result.get("expires_in"))
        elif requests := self._requests.answered(_integer(ok.id)):
            for request in requests:
                if not request.is_in_flight:
                    raise BadFrame(f"the server answered request {ok.id}, which was not sent")
                self._requests.settle(request, _receipts(ok, request.events) if request.events else None)
        elif (reading := self._unconfirmed.pop(ok.id, None)) is None:
            return
        elif isinstance(reading, Membership):
            reading.confirm(ok.result)
            self.changed.add(reading)
        else:
            after = _integer(ok.result["after"])
            reading.confirm(after, _integer(ok.result.get("processed_before", 0)), welcome.epoch)
            self.changed.add(reading)

    def _on_failed(self, failed: Failed, now: float) -> None:
        if failed.id is None:
            logger.warning("the server reported %s: %s", quote(failed.error.code), quote(str(failed.error), 300))
        elif failed.id in self._renewals:
            self._renewals.remove(failed.id)
            logger.warning("the server did not take another token: %s", quote(failed.error.code))
        elif requests := self._requests.answered(_integer(failed.id)):
            for request in requests:
                if _is_about(failed.error, request):
                    self._retry_or_settle(request, failed.error, now)
                else:
                    self._requests.settle(request)
        elif reading := self._unconfirmed.pop(failed.id, None):
            self._retry_or_end(reading, failed.error, now)

    # --- again ---------------------------------------------------------------------------------------

    def _retry_or_settle(self, request: Request, error: EventBusError, now: float) -> None:
        request.attempts += 1
        if not error.retry or self._exhausted(request.attempts):
            self._requests.settle(request, error=error)
        else:
            self._requests.hold(request, now + self._delay(error, request.attempts))

    def _resume(self, now: float) -> None:
        """Do again what had to wait until now."""
        self._requests.resume(now)
        for reading in [reading for reading, due in self._due.items() if due <= now]:
            del self._due[reading]
            self._start(reading)

    # --- subscriptions -------------------------------------------------------------------------------

    def _begin(self, reading: Reading | Membership) -> None:
        self._readings[reading.sub] = reading
        if self.welcome is not None:
            self._start(reading)

    def _start(self, reading: Reading | Membership) -> None:
        command = reading.subscribe(self._next_id())
        self._unconfirmed[self._last_id] = reading
        self._control.append(client_frame(command))

    def _retry_or_end(self, reading: Reading | Membership, error: EventBusError, now: float) -> None:
        if self._readings.get(reading.sub) is not reading:
            return  # it was unsubscribed while this was on its way
        reading.attempts += 1
        if error.retry and not self._exhausted(reading.attempts):
            self._due[reading] = now + self._delay(error, reading.attempts)
            return
        reading.error = error
        del self._readings[reading.sub]
        self.changed.add(reading)

    def _refill(self, reading: Reading) -> None:
        if self.welcome is not None and (credit := reading.refill()):
            self._control.append(client_frame(Credit(reading.sub, credit)))

    # --- arithmetic ----------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _exhausted(self, attempts: int) -> bool:
        return self._max_retries is not None and attempts > self._max_retries

    def _delay(self, error: EventBusError, attempts: int) -> float:
        """Seconds to wait: what the server advises, and jitter on top so that clients do not come all at once."""
        advice = error.retry_after
        known = isinstance(advice, int | float) and math.isfinite(advice) and advice > 0
        return (min(float(advice), MAX_ADVICE) if known and advice else 0.0) + self._backoff.delay(attempts - 1)


def _is_about(error: EventBusError, request: Request) -> bool:
    """Say whether a request failed by an error that may name those of its events that it is about."""
    if request.held is None or not isinstance(error, RemoteError) or not isinstance(error.seqs, list):
        return True
    return request.held.message.seq in error.seqs


def _chosen(held: Held) -> Chosen:
    return Chosen((held.message.seq,), attempt=held.attempt)


def _integer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise BadFrame(f"expected an integer ≥ 0, got {type(value).__name__}")
    return value


def _seconds(value: object) -> float | None:
    """Return seconds that the server names; None: it names none that can be used."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _check(message: Message) -> None:
    """Refuse an event whose fields have the wrong types."""
    _integer(message.seq)
    if type(message.topic) is not str or not isinstance(message.key, str | None):
        raise BadFrame("an event's topic or key is not a string")


def _receipts(ok: Ok, expected: int) -> list[Receipt]:
    answered = receipts(ok)
    if len(answered) != expected:
        raise BadFrame(f"the server answered {len(answered)} of {expected} published events")
    for receipt in answered:
        if receipt.seq is not None:
            _integer(receipt.seq)
    return answered
