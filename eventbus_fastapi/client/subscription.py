"""A subscription as the program sees it: an async iterator of messages that goes on over reconnects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar
from uuid import UUID

from eventbus_fastapi.client.waiters import Waiters, fresh
from eventbus_fastapi.errors import EventBusError, LogGap, NotRunning
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.membership import Membership
from eventbus_fastapi.protocol.reading import Reading

R = TypeVar("R", Reading, Membership)


class Source(Protocol):
    """What a subscription needs of its client."""

    def _take(self, reading: Reading) -> Message | LogGap | None: ...
    def _drop(self, reading: Reading | Membership) -> None: ...
    def _ensure_running(self) -> None: ...
    async def ack(self, message: Message) -> None: ...


class Subscribed(Generic[R]):
    """What all subscriptions have in common: they start, wait and end."""

    def __init__(self, source: Source, reading: R, types: Mapping[str, Any], default_type: Any) -> None:
        self._source = source
        self._reading: R = reading
        self._types = types
        self._default_type = default_type
        self._waiters = Waiters()
        self._is_closed = False

    @property
    def patterns(self) -> tuple[str, ...]:
        return self._reading.options.patterns

    async def aclose(self) -> None:
        """End the subscription; iteration ends. What has arrived and was not taken is dropped."""
        self._end()

    async def _until(self, is_started: Callable[[], bool]) -> None:
        while not is_started():
            if self._reading.error is not None:
                raise fresh(self._reading.error)
            if self._is_closed:
                raise NotRunning("the subscription is closed")
            self._source._ensure_running()
            await self._waiters.wait()

    def _end(self) -> None:
        """Do what `aclose` does, from synchronous code."""
        if not self._is_closed:
            self._is_closed = True
            self._source._drop(self._reading)
            self._waiters.wake()

    def _wake(self) -> None:
        """Tell those who wait that there is something new."""
        self._waiters.wake()

    def _fail(self, error: EventBusError) -> None:
        """Raise an error from those who wait now."""
        self._waiters.fail(error)

    async def __aexit__(self, *exc_info: object) -> None:
        self._end()

    def __aiter__(self) -> Self:
        return self


class ClientSubscription(Subscribed[Reading]):
    """Messages of a remote bus, in order, without hole or double.

        async for message in client.subscribe("user.*"):
            ...

    It starts when it is made, not when it is first read. It ends with its `async with` block, with `aclose()`, when
    nothing refers to it any more, or with its client; then iteration ends. So the loop above ends it when it is left;
    where the program keeps the subscription, a loop may be left, or cancelled, and begun again: nothing is lost.

    After an error that iteration raises it may be iterated again: after `LogGap` it goes on behind the gap, after
    `ConnectionLost` it connects again.
    """

    def __init__(
        self,
        source: Source,
        reading: Reading,
        types: Mapping[str, Any],
        default_type: Any,
        on_gap: Callable[[LogGap], object] | None,
    ) -> None:
        super().__init__(source, reading, types, default_type)
        self._on_gap = on_gap

    @property
    def after(self) -> int | None:
        """The seq that it started after, exclusive; None until the server has said so."""
        return self._reading.started_at

    @property
    def position(self) -> int | None:
        """The seq to resume after: of the last event taken, at first `after`. None until the server has said so."""
        return self._reading.position

    @property
    def epoch(self) -> UUID | None:
        """Which log `position` belongs to; None until the server has said so."""
        return self._reading.epoch

    async def wait_started(self) -> int:
        """Wait until the server has confirmed the subscription, and return `after`.

        Raises:
            RemoteError: the server refused it.
            ConnectionLost, ConnectionRefused, NotRunning: there is no server to ask.
        """
        await self._until(lambda: self.after is not None)
        assert self.after is not None
        return self.after

    async def __aenter__(self) -> Self:
        try:
            await self.wait_started()
        except BaseException:
            self._end()
            raise
        return self

    async def __anext__(self) -> Message:
        """Return the next message, waiting for it. Cancelling this loses nothing.

        Raises:
            LogGap: events are missing here, unless `on_gap` takes it.
            RemoteError: the server ended the subscription.
            ConnectionLost, ConnectionRefused: the connection ended for good.
            StopAsyncIteration: the subscription or its client was closed.
        """
        while not self._is_closed:
            item = self._source._take(self._reading)
            if isinstance(item, Message):
                return self._prepared(item)
            if item is not None:
                if self._on_gap is None:
                    raise item
                self._on_gap(item)
            elif self._reading.error is not None:
                raise fresh(self._reading.error)
            else:
                self._source._ensure_running()
                await self._waiters.wait()
        raise StopAsyncIteration

    def _prepared(self, message: Message) -> Message:
        kind = self._types.get(message.topic, self._default_type)
        if kind is not None:
            message = TypedMessage(message, kind)
        message._acknowledge = self._source.ack
        return message

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"position={self.position}"
        return f"<ClientSubscription {' '.join(self.patterns)} {state}>"


class TypedMessage(Message):
    """A message whose payload is of a type that the subscription named.

    `payload` raises InvalidPayload if it does not fit; `body` and `decode` still give it otherwise.
    """

    __slots__ = ("_kind", "_value")

    def __init__(self, message: Message, kind: Any) -> None:
        super().__init__(
            message.seq,
            message.message_id,
            message.topic,
            message.key,
            message.body,
            message.content_type,
            message.metadata_json,
            message.created_at,
            message.expires_at,
        )
        self._kind = kind

    @property
    def payload(self) -> Any:
        """The payload as the type that the subscription named.

        Raises:
            InvalidPayload: it does not fit.
        """
        if not hasattr(self, "_value"):
            self._value = self.decode(self._kind)
        return self._value
