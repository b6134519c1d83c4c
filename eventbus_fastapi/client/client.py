"""`EventBusClient`: what a program asks for, and the one task that keeps a connection open for it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, overload
from uuid import UUID

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.client.config import ClientConfig, config_of, seconds
from eventbus_fastapi.client.connection import Connection, Ending
from eventbus_fastapi.client.consumer import ClientConsumer, Handler
from eventbus_fastapi.client.drafts import Draftable, draft_of
from eventbus_fastapi.client.group import Answer, GroupSubscription
from eventbus_fastapi.client.options import check_concurrency, make_join, make_subscribe
from eventbus_fastapi.client.pauses import Pauses
from eventbus_fastapi.client.subscription import ClientSubscription, Subscribed
from eventbus_fastapi.client.token import Token
from eventbus_fastapi.client.waiters import Waiters, fresh
from eventbus_fastapi.errors import (
    BatchTooLarge,
    ClientError,
    ConnectionLost,
    ConnectionRefused,
    EventBusError,
    InvalidInput,
    LogGap,
    NotRunning,
)
from eventbus_fastapi.events import UNSET, Draft, Event, Message, Receipt, make_draft
from eventbus_fastapi.protocol.client import ClientSession
from eventbus_fastapi.protocol.commands import Start
from eventbus_fastapi.protocol.membership import Held, Membership
from eventbus_fastapi.protocol.reading import Reading
from eventbus_fastapi.settings import Overflow
from eventbus_fastapi.telemetry.tracing import Tracing
from eventbus_fastapi.unique import Unique

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger("eventbus_fastapi.client")

_MAX_PAYLOAD = 16_000_000


class EventBusClient:
    """A connection to a bus elsewhere that heals itself.

    It connects when it is first used, and keeps trying. Calls wait meanwhile; what they ask for is kept in memory, in
    order and bounded. A call fails only if the server refuses it, if it was cancelled, or if the connection ended for
    good: `ConnectionLost` after `max_retries` attempts (the next call tries again), `ConnectionRefused` where trying
    again makes no sense, `NotRunning` after `close()`.

    One client belongs to one event loop. Any number of its tasks may use it at once.

    Args:
        config: where the bus is and how to reach it, or just its URL; None: ws://127.0.0.1:3000/ws.
        token: who it is: a text, or a function (also async) that returns one, asked again in good time; None: nobody.
        tracer_provider: OpenTelemetry's, for the spans of events; None: the program's own, once it has set one.

    Raises:
        SettingsError: `config` is none of what it may be, or a URL that cannot be used.
    """

    def __init__(
        self,
        config: ClientConfig | str | None = None,
        *,
        token: Token | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.config = config_of(config, token)
        self._tracing = Tracing(tracer_provider)
        longest = seconds(self.config.max_reconnect_interval)
        self._backoff = FullJitter(min(seconds(self.config.reconnect_interval), longest), longest)
        self._session = ClientSession(
            backoff=self._backoff,
            max_retries=self.config.max_retries,
            max_pending=self.config.max_pending,
            max_pending_bytes=self.config.max_pending_bytes,
        )
        self._answers: dict[int, Answer] = {}
        self._subscriptions: weakref.WeakValueDictionary[Reading | Membership, Subscribed[Any]] = (
            weakref.WeakValueDictionary()
        )
        self._consumers: set[ClientConsumer] = set()
        self._connected = Waiters()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._refused: ConnectionRefused | None = None
        self._closed: asyncio.Event | None = None
        """None until `close()` is called; set when all is ended but the connection, which may still say goodbye."""

    # --- connection ----------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, config: ClientConfig | str | None = None, *, token: Token | None = None) -> Self:
        """Return a client that is connected.

        Raises:
            ConnectionLost: the server could not be reached within `max_retries`; never if that is None.
            ConnectionRefused: the server does not want this client.
        """
        client = cls(config, token=token)
        try:
            await client.wait_connected()
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def connected(self) -> bool:
        """Whether a connection is open now."""
        return self._session.welcome is not None

    async def wait_connected(self) -> None:
        """Wait until a connection is open.

        Raises:
            ConnectionLost, ConnectionRefused, NotRunning: see the class.
        """
        while not self.connected:
            self._ensure_running()
            await self._connected.wait()

    async def close(self) -> None:
        """End the client. Subscriptions end; what was published or acknowledged may still be answered. Handlers of
        `consume` that run have `close_timeout` to end.

        Requests without an answer after `close_timeout` fail with `NotRunning`; whether the server did them is not
        known. No task, socket or timer is left when this returns. Closing twice is closing once.

        Cancelling it ends the waiting for answers; the connection then closes by itself, within a second or so.
        """
        if self._closed is None:
            self._closed = asyncio.Event()
            try:
                grace = seconds(self.config.close_timeout)
                await asyncio.gather(*(consumer.close(grace) for consumer in list(self._consumers)))
                for subscription in list(self._subscriptions.values()):
                    subscription._end()
                if self._answers and self._is_running:
                    await asyncio.wait(self._answers.values(), timeout=seconds(self.config.close_timeout))
            finally:  # nothing here waits: a cancelled close() must not keep later ones from returning
                for consumer in list(self._consumers):
                    consumer.abort()
                self._fail(NotRunning("the client was closed before the server answered"))
                if self._task is not None:
                    self._task.cancel()
                self._closed.set()
        await self._closed.wait()
        if self._task is not None and self._is_running:
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- publishing ----------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str | Event,
        payload: Any = UNSET,
        *,
        message_id: UUID | str | None = None,
        ttl: float | timedelta | None = None,
        key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        delay: float | timedelta | None = None,
        content_type: str | None = None,
        tags: Sequence[str] | None = None,
        unique: Unique | None = None,
        durable: bool = True,
    ) -> Receipt:
        """Publish one event: a topic and a payload, or an `Event`. When this returns the server has committed it.

        Events of one client enter the log in the order of the calls, also over reconnects. One that is not answered yet
        when the connection is lost is sent again with the same message_id, so it is stored once. One that the server
        refuses for the moment (`publish.too_fast`, `store.unavailable`) holds back those behind it and is sent again,
        at most `max_retries` times; after `store.unavailable` those that were on their way may have overtaken it.

        Cancelling the call takes the event back if it was not sent yet.

        `durable=False`: the event reaches the live subscriptions of the server that gets it, without storage. Once it
        may have been delivered it is never sent again; after a refusal for the moment, which delivers nothing, it is.
        `ttl` and `delay` (seconds or a timedelta) count from when the server takes the event. With `unique` the server
        may wait for others that publish the same, and events that are sent meanwhile overtake it.

        Raises:
            InvalidInput: the event does not follow the rules.
            FrameTooLarge: it is more than the server accepts in one frame.
            PublishBufferFull: `max_pending` or `max_pending_bytes` wait already; nothing was taken.
            RemoteError: the server refused it; `code` says why.
            ConnectionLost: `durable=False` and the connection was lost before the answer; see the class as well.
        """
        draft = make_draft(
            topic,
            payload,
            key=key,
            message_id=message_id,
            metadata=metadata,
            ttl=ttl,
            delay=delay,
            content_type=content_type,
            tags=tags,
            unique=unique,
            max_payload=self._max_payload,
        )
        name = topic.__topic__ if isinstance(topic, Event) else ""
        return (await self._publish([draft], is_batch=False, is_live=not durable, name=name))[0]

    async def publish_many(self, events: Sequence[Draftable], *, durable: bool = True) -> list[Receipt]:
        """Publish all events or none, in order, as one batch. Otherwise as `publish`.

        Raises:
            InvalidInput: an event does not follow the rules, or there are more than the server accepts.
        """
        drafts = [draft_of(event, self._max_payload) for event in events]
        if not drafts:
            return []
        most = self._session.limits.get("max_batch", len(drafts))
        if len(drafts) > most:
            raise BatchTooLarge(len(drafts), most)
        return await self._publish(drafts, is_batch=True, is_live=not durable)

    async def publish_drafts(self, drafts: Sequence[Draft]) -> list[Receipt]:
        """Publish events that have passed the door already, as many batches as the server's `max_batch` makes of them.

        Raises:
            InvalidInput, RemoteError, ConnectionLost: see `publish`; batches before that are stored.
        """
        receipts: list[Receipt] = []
        most = self._session.limits.get("max_batch", len(drafts))
        for start in range(0, len(drafts), most or 1):
            self._ensure_running()
            receipts += await self._send(drafts[start : start + most], is_batch=True, is_live=False)
        return receipts

    async def _publish(
        self, drafts: Sequence[Draft], *, is_batch: bool, is_live: bool, name: str = ""
    ) -> list[Receipt]:
        self._ensure_running()
        if (spans := self._tracing.spans()) is None:
            return await self._send(drafts, is_batch=is_batch, is_live=is_live)
        with spans.publishing(drafts, name) as traced:
            return await self._send(traced, is_batch=is_batch, is_live=is_live)

    async def _send(self, drafts: Sequence[Draft], *, is_batch: bool, is_live: bool) -> list[Receipt]:
        receipts = await self._answer(self._session.publish(drafts, is_batch=is_batch, is_live=is_live))
        assert receipts is not None
        return receipts

    @property
    def _max_payload(self) -> int:
        """What the last server accepts; before one has said so, what no server exceeds."""
        return self._session.limits.get("max_payload", _MAX_PAYLOAD)

    # --- reading -------------------------------------------------------------------------------------

    @overload
    def subscribe(
        self,
        *patterns: str | type[Event],
        start: Start = "now",
        after: int | None = None,
        epoch: UUID | None = None,
        payload_type: Any = None,
        include_processed: bool = False,
        overflow: Overflow | None = None,
        buffer: int | None = None,
        on_gap: Callable[[LogGap], object] | None = None,
        group: None = None,
    ) -> ClientSubscription: ...
    @overload
    def subscribe(
        self,
        *patterns: str | type[Event],
        group: str,
        credit: int | None = None,
        ack_wait: float | None = None,
        max_attempts: int | None = None,
        start: Start = "now",
        after: int | None = None,
        payload_type: Any = None,
    ) -> GroupSubscription: ...
    def subscribe(
        self,
        *patterns: str | type[Event],
        start: Start = "now",
        after: int | None = None,
        epoch: UUID | None = None,
        payload_type: Any = None,
        include_processed: bool = False,
        overflow: Overflow | None = None,
        buffer: int | None = None,
        on_gap: Callable[[LogGap], object] | None = None,
        group: str | None = None,
        credit: int | None = None,
        ack_wait: float | None = None,
        max_attempts: int | None = None,
    ) -> ClientSubscription | GroupSubscription:
        """Subscribe to every event that matches one of the patterns, each once and in order.

        It starts at once; `async with client.subscribe(…) as subscription` waits until the server has confirmed it. It
        goes on until its `async with` block is left, with `aclose()`, until nothing refers to it any more, or with the
        client. A loop over it may be left and begun again: nothing is lost in between.

        `start` is `"now"`, `"earliest"`, a seq (exclusive, the same as `after`) or a time with its zone. `epoch` says
        which log that seq belongs to (`ClientSubscription.epoch`); if the server has another one by now, a gap with
        reason `epoch` comes first and reading starts at its beginning.

        A pattern may be an `Event` class: that is its topic, and its messages have instances of it as `payload`.
        `payload_type` does that for all others: any type that Pydantic validates. A payload that does not fit raises
        `InvalidPayload` when it is looked at; the subscription goes on.

        `on_gap` gets each `LogGap`, at its place among the messages, instead of the loop raising it. `overflow` and
        `buffer` are what the server does when the program falls behind; None: its own defaults.

        With `group` it becomes a member of that group, a durable reader of the log that all its members share: each
        event goes to one of them, with an `attempt`, until one has called its `ack()`. `patterns`, `start`, `after` and
        `max_attempts` (default 10) count where this makes the group. The member holds at most `credit` events (default
        100) that are not settled, and has `ack_wait` seconds (default 30) for each; then it is another member's, and so
        is everything after a lost connection. `consume` does the same with a handler, and settles by itself.

        Raises:
            InvalidPattern: a pattern does not follow the grammar.
            InvalidInput: another argument cannot be used.
            NotRunning, ConnectionRefused: see the class.
        """
        if group is not None:
            unusable = (epoch, include_processed or None, overflow, buffer, on_gap)
            if any(each is not None for each in unusable):
                raise InvalidInput("a group has its own place: no epoch, include_processed, overflow, buffer or on_gap")
            joining = make_join(
                patterns,
                start=start,
                after=after,
                group=group,
                credit=credit,
                ack_wait=ack_wait,
                max_attempts=max_attempts,
            )
            self._ensure_running()
            membership = self._session.join(joining)
            member = GroupSubscription(self, membership, _types(patterns), payload_type)
            self._keep(membership, member)
            return member
        if any(each is not None for each in (credit, ack_wait, max_attempts)):
            raise InvalidInput("only a subscription with a group has credit, ack_wait and max_attempts")
        options = make_subscribe(
            patterns,
            start=start,
            after=after,
            epoch=epoch,
            include_processed=include_processed,
            overflow=overflow,
            buffer=buffer,
        )
        self._ensure_running()
        reading = self._session.subscribe(options, self.config.window)
        subscription = ClientSubscription(self, reading, _types(patterns), payload_type, on_gap)
        self._keep(reading, subscription)
        return subscription

    def _keep(self, reading: Reading | Membership, subscription: Subscribed[Any]) -> None:
        self._subscriptions[reading] = subscription
        # One that nobody refers to cannot be read any more: the server need not send it.
        loop = asyncio.get_running_loop()
        weakref.finalize(subscription, _drop_later, weakref.ref(self), loop, reading).atexit = False
        self._wake()

    def consume(
        self,
        handler: Handler,
        *patterns: str | type[Event],
        group: str,
        concurrency: int = 10,
        credit: int | None = None,
        ack_wait: float | None = None,
        max_attempts: int | None = None,
        start: Start = "now",
        after: int | None = None,
        payload_type: Any = None,
    ) -> ClientConsumer:
        """Call a handler with each event that a group gives this client, up to `concurrency` at the same time.

        When the handler returns, its event is acked; when it raises, nacked, with the error as the reason: the server
        brings it again after a backoff, here or to another member, until `max_attempts`. While it runs it may take as
        long as it likes: the ack wait is extended. A handler whose event is lost to another member, as after a lost
        connection, is cancelled. It may also settle its message itself: `nack(delay=…)`, `reject(reason)`.

        It begins at once and goes on over reconnects, until `close()` of what is returned, or of the client; `await`
        what is returned to wait for that. The rest is as in `subscribe`; `credit` is twice `concurrency` by default.

        Raises:
            InvalidInput: an argument cannot be used.
            NotRunning, ConnectionRefused: see the class.
        """
        check_concurrency(concurrency)
        subscription = self.subscribe(
            *patterns,
            group=group,
            credit=2 * concurrency if credit is None else credit,
            ack_wait=ack_wait,
            max_attempts=max_attempts,
            start=start,
            after=after,
            payload_type=payload_type,
        )
        consumer = ClientConsumer(self, subscription, handler, concurrency, tracing=self._tracing)
        self._consumers.add(consumer)
        consumer.start(self._consumers.discard)
        return consumer

    async def ack(self, message: Message) -> None:
        """Mark a message processed, as `message.ack()` does. Returns when the server has confirmed it.

        A message that is not stored (`durable=False`) needs no ack; this does nothing then.

        Raises:
            RemoteError: the server refused it: `event.not_found`, `ack.mismatch`.
        """
        if message.is_durable:
            self._ensure_running()
            await self._answer(self._session.acknowledge(message.seq, message.message_id))

    # --- for its subscriptions -----------------------------------------------------------------------

    def _take(self, reading: Reading) -> Message | LogGap | None:
        item = self._session.take(reading)
        if self._session.has_frame():
            self._wake()
        return item

    def _take_held(self, membership: Membership) -> Held | None:
        held = self._session.take_held(membership)
        if self._session.has_frame():
            self._wake()
        return held

    def _extend_all(self, membership: Membership) -> None:
        self._session.extend_all(membership)
        self._wake()

    def _tell(self, ask: Callable[[ClientSession], int]) -> Answer:
        """Tell the server something about an event that is held; the answer comes, whoever waits for it.

        Raises:
            LeaseLost: it is known already that it is another member's.
        """
        try:
            request_id = ask(self._session)
        finally:
            self._wake()
        answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
        return answer

    def _drop(self, reading: Reading | Membership) -> None:
        self._session.unsubscribe(reading)
        self._wake()

    def _ensure_running(self) -> None:
        """Make sure that a connection is open or being opened.

        Raises:
            NotRunning: the client is closed.
            ConnectionRefused: the server does not want it.
        """
        if self._closed is not None:
            raise NotRunning("the client is closed")
        if self._refused is not None:
            raise fresh(self._refused)
        if not self._is_running:
            # In a context of its own: what the first caller holds there must not live as long as the client.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name="eventbus-client", context=contextvars.Context()
            )

    # --- the task ------------------------------------------------------------------------------------

    @property
    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _run(self) -> None:
        """Keep a connection open until that makes no sense any more."""
        pauses = Pauses(self._backoff)
        failures = 0
        has_asked_again = False
        try:
            while True:
                self._connection = Connection(self.config, self._session, self._carry_out)
                ending = await self._connection.run()
                has_asked_again = has_asked_again and not ending.lived
                if ending.is_unauthenticated and callable(self.config.token) and not has_asked_again:
                    has_asked_again = True  # its token may be an old one: once more, with a fresh one
                    ending = ending._replace(verdict="return")
                failures = failures if ending.is_failure else 0
                if error := self._end_of(ending, failures):
                    self._fail(error)
                    return
                pause = pauses.after(ending)
                logger.warning(
                    "no connection to %s (%s), next attempt in %.2f s", self.config.address, ending.reason, pause
                )
                failures += 1
                await asyncio.sleep(pause)
        except Exception as exc:
            logger.exception("the client of %s has failed", self.config.address)
            self._fail(ClientError(f"the client has failed: {type(exc).__name__}: {exc}"))
        finally:
            self._connection = None

    def _end_of(self, ending: Ending, failures: int) -> ClientError | None:
        """Return why the client stops, or None if it goes on."""
        error: ClientError
        if ending.verdict == "stop":
            error = self._refused = ConnectionRefused(f"{self.config.address} refused the connection: {ending.reason}")
        elif self.config.max_retries is not None and failures >= self.config.max_retries:
            tried = f" after {failures} retries" if failures else ""
            error = ConnectionLost(f"no connection to {self.config.address}{tried}: {ending.reason}")
        else:
            return None
        error.__cause__ = ending.cause
        return error

    def _carry_out(self) -> None:
        """Tell those who wait what the session has settled."""
        session = self._session
        for request_id, result, error in session.settled:
            answer = self._answers.pop(request_id, None)
            if answer is None or answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
        session.settled.clear()
        for reading in session.changed:
            if subscription := self._subscriptions.get(reading):
                subscription._wake()
        session.changed.clear()
        if self.connected:
            self._connected.wake()

    def _fail(self, error: EventBusError) -> None:
        """Raise an error wherever somebody waits."""
        for request_id, answer in list(self._answers.items()):
            self._session.forget(request_id)
            if not answer.done():
                answer.set_exception(fresh(error))
        self._answers.clear()
        self._connected.fail(error)
        for subscription in list(self._subscriptions.values()):
            subscription._fail(error)

    async def _answer(self, request_id: int) -> list[Receipt] | None:
        """Wait for the answer to a request; take it back if that is cancelled."""
        answer: Answer = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        self._wake()
        try:
            return await answer
        finally:
            self._answers.pop(request_id, None)
            self._session.forget(request_id)
            if answer.cancelled():
                self._wake()  # those that waited for its answer, too, may go on
            elif answer.done():
                answer.exception()  # seen, even if this task was cancelled before it could raise it

    def _wake(self) -> None:
        if self._connection is not None:
            self._connection.wake()

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed" if self._closed is not None else "not connected"
        return f"<EventBusClient {self.config.address} {state}>"


def _types(patterns: Sequence[str | type[Event]]) -> dict[str, type[Event]]:
    """Return the types that payloads have, by topic."""
    return {pattern.__topic__: pattern for pattern in patterns if not isinstance(pattern, str)}


def _drop_later(
    client: weakref.ref[EventBusClient], loop: asyncio.AbstractEventLoop, reading: Reading | Membership
) -> None:
    """End a subscription that was garbage collected, which may happen in any thread."""
    if (alive := client()) is not None:
        with suppress(RuntimeError):  # the loop is closed, and the client with it
            loop.call_soon_threadsafe(alive._drop, reading)
