"""A membership of a group as the program sees it: an async iterator of messages, each to be settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, Self

from eventbus_fastapi.backoff import seconds
from eventbus_fastapi.client.subscription import Source, Subscribed
from eventbus_fastapi.client.waiters import fresh
from eventbus_fastapi.errors import InvalidInput, LeaseLost, RemoteError
from eventbus_fastapi.events import Message, Receipt
from eventbus_fastapi.protocol.client import ClientSession
from eventbus_fastapi.protocol.membership import Held, Membership

Answer = asyncio.Future[list[Receipt] | None]


class GroupSource(Source, Protocol):
    """What a membership needs of its client, besides what every subscription does."""

    def _take_held(self, membership: Membership) -> Held | None: ...
    def _tell(self, ask: Callable[[ClientSession], int]) -> Answer: ...


class GroupMessage(Message):
    """An event that a group has given to this client: settle it with `ack`, `nack` or `reject`.

    Each returns when the server has committed it, and raises `LeaseLost` if the event is another member's by now: its
    ack wait has ended, or the connection that it came over has. Cancelling one only ends the wait: what was said is
    said, and `ack` waits for it again.
    """

    __slots__ = ("_answer", "_held", "_kind", "_source", "_value")

    def __init__(self, held: Held, kind: Any, source: GroupSource) -> None:
        message = held.message
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
        self._payload = message._payload
        self._held = held
        self._kind = kind
        self._source = source
        self._answer: Answer | None = None
        """What the server says to how it was settled; None before that."""

    @property
    def payload(self) -> Any:
        """The payload, as the type that the subscription named, if it named one.

        Raises:
            InvalidPayload: it does not fit.
        """
        if self._kind is None:
            return super().payload
        if not hasattr(self, "_value"):
            self._value = self.decode(self._kind)
        return self._value

    @property
    def attempt(self) -> int:
        """The number of this delivery, counted from 1."""
        return self._held.attempt

    @property
    def is_settled(self) -> bool:
        """True once `ack`, `nack` or `reject` was called."""
        return self._held.is_settled

    @property
    def is_lost(self) -> bool:
        """True once it is known to be another member's."""
        return self._held.is_lost

    async def ack(self) -> None:
        """Say that it is done. Doing so twice is doing it once, and does nothing after `nack` or `reject`.

        Raises:
            LeaseLost: it is another member's.
            RemoteError, NotRunning: the server could not be told.
        """
        if self._answer is None or self.is_lost:
            self._settle(lambda session: session.ack(self._held))
        await self._answered()

    async def nack(self, *, delay: float | timedelta | None = None, reason: str | None = None) -> None:
        """Have it tried again, here or elsewhere, after `delay` (seconds or a timedelta); None: the server's backoff.

        At its last attempt it becomes a dead letter. `reason` is what operators are shown.

        Raises:
            InvalidInput: the delay is no duration.
            LeaseLost: it is another member's, or settled already.
        """
        try:
            wait = None if delay is None else seconds("delay", delay)
        except ValueError as exc:
            raise InvalidInput(str(exc)) from None
        self._require_unsettled()
        self._settle(lambda session: session.nack(self._held, wait, reason))
        await self._answered()

    async def reject(self, reason: str | None = None) -> None:
        """Give it up: it becomes a dead letter at once.

        Raises:
            LeaseLost: it is another member's, or settled already.
        """
        self._require_unsettled()
        self._settle(lambda session: session.reject(self._held, reason))
        await self._answered()

    async def extend(self) -> None:
        """Begin its ack wait anew.

        Raises:
            LeaseLost: it is another member's, or settled already.
        """
        self._require_unsettled()
        await self._reply(self._source._tell(lambda session: session.extend(self._held)))

    def _require_unsettled(self) -> None:
        if self.is_settled and not self.is_lost:
            raise LeaseLost([self.seq])

    def _settle(self, ask: Callable[[ClientSession], int]) -> None:
        held = self._held
        answer = self._source._tell(ask)
        self._answer, held.is_settled = answer, True
        answer.add_done_callback(self._end)

    def _end(self, answer: Answer) -> None:
        """Take note of how settling it has ended, also where nobody waits for that any more."""
        held, error = self._held, answer.exception()
        if error is None:
            held.membership.forget(held)
            return
        if _is_loss(error):
            held.lose()
        self._answer, held.is_settled = None, held.is_lost  # what was not done may be done again

    async def _answered(self) -> None:
        assert self._answer is not None
        await self._reply(asyncio.shield(self._answer))

    async def _reply(self, answer: Answer) -> None:
        try:
            await answer
        except RemoteError as exc:
            if not _is_loss(exc):
                raise
            self._held.lose()
            raise LeaseLost([self.seq]) from exc


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and error.code == LeaseLost.code


class GroupSubscription(Subscribed[Membership]):
    """Messages that a group gives to this client.

        async for message in client.subscribe("user.*", group="user-sync"):
            ...
            await message.ack()

    It starts when it is made and goes on over reconnects; the group keeps the place. It ends as other subscriptions do;
    what was not settled by then goes to other members.
    """

    _source: GroupSource

    def __init__(self, source: GroupSource, membership: Membership, types: Any, default_type: Any) -> None:
        super().__init__(source, membership, types, default_type)

    @property
    def group(self) -> str:
        assert self._reading.options.group is not None
        return self._reading.options.group

    @property
    def answer(self) -> dict[str, Any] | None:
        """What the server has said last: the `patterns` and `max_attempts` that the group has, `created`, and the
        member's `credit` and `ack_wait`; None until it has.
        """
        answer = self._reading.answer
        names = ("patterns", "max_attempts", "created", "credit", "ack_wait")
        return None if answer is None else {name: answer.get(name) for name in names}

    async def wait_started(self) -> None:
        """Wait until the server has confirmed the membership.

        Raises:
            RemoteError: the server refused it.
            ConnectionLost, ConnectionRefused, NotRunning: there is no server to ask.
        """
        await self._until(lambda: self._reading.answer is not None)

    async def __aenter__(self) -> Self:
        try:
            await self.wait_started()
        except BaseException:
            self._end()
            raise
        return self

    async def __anext__(self) -> GroupMessage:
        """Return the next message, waiting for it. Cancelling this loses nothing.

        Raises:
            RemoteError: the server ended the subscription, as the group was deleted.
            ConnectionLost, ConnectionRefused: the connection ended for good.
            StopAsyncIteration: the subscription or its client was closed.
        """
        while not self._is_closed:
            held = self._source._take_held(self._reading)
            if held is not None:
                kind = self._types.get(held.message.topic, self._default_type)
                return GroupMessage(held, kind, self._source)
            if self._reading.error is not None:
                raise fresh(self._reading.error)
            self._source._ensure_running()
            await self._waiters.wait()
        raise StopAsyncIteration

    def __repr__(self) -> str:
        state = " closed" if self._is_closed else ""
        return f"<GroupSubscription {self.group}: {' '.join(self.patterns)}{state}>"
