"""A consumer: calls a handler with the events of a group, and settles them by itself.

    subscription ─▶ one task per event, up to `concurrency` ─▶ ack | nack

Events that the client holds, whether their handlers run or wait for their turn, have their ack wait extended by one
timer.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, Self

from eventbus_fastapi.client.group import GroupMessage, GroupSubscription
from eventbus_fastapi.errors import EventBusError, LeaseLost
from eventbus_fastapi.pipeline.error_record import ErrorRecord
from eventbus_fastapi.protocol.membership import Membership
from eventbus_fastapi.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from eventbus_fastapi.telemetry.spans import Spans

logger = logging.getLogger("eventbus_fastapi.client")

Handler = Callable[[GroupMessage], Any]
"""Takes a message; what it returns is awaited, if it can be, and of no other meaning."""

GRACE = 30.0
"""Seconds that handlers have to end."""
MAX_REASON = 1_000
"""Longest reason of a nack, characters."""


class ConsumerSource(Protocol):
    """What a consumer needs of its client."""

    def _extend_all(self, membership: Membership) -> None: ...


class ClientConsumer:
    """See the module's docstring. Made by `EventBusClient.consume`.

        async with client.consume(sync_user, "user.*", group="user-sync", concurrency=20):
            ...

    Awaiting it waits until it has ended: with `close()`, with its client, or because the server or the connection did.
    """

    def __init__(
        self,
        source: ConsumerSource,
        subscription: GroupSubscription,
        handler: Handler,
        concurrency: int,
        *,
        tracing: Tracing,
    ) -> None:
        self._tracing = tracing
        self._source = source
        self._subscription = subscription
        self._handler = handler
        self._turns = asyncio.Semaphore(concurrency)
        self._handling: set[asyncio.Task[None]] = set()
        self._taking: asyncio.Task[None] | None = None
        self._extending: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_end: Callable[[ClientConsumer], object] = lambda _: None
        self._is_closing = False

    @property
    def subscription(self) -> GroupSubscription:
        """The membership that it takes from."""
        return self._subscription

    def start(self, on_end: Callable[[ClientConsumer], object]) -> None:
        """Begin; `on_end` is called when it has ended."""
        self._on_end = on_end
        self._taking = _start(self._take(), "take")
        self._extending = _start(self._extend(), "extend")

    async def wait(self) -> None:
        """Wait until it has ended.

        Raises:
            RemoteError, ConnectionLost, ConnectionRefused: why it ended by itself.
        """
        await asyncio.shield(self._ended)

    async def close(self, grace: float = GRACE) -> None:
        """Take nothing more, let the handlers that run end within `grace` seconds, and cancel those that do not. What
        is not settled then goes to other members.
        """
        self._is_closing = True
        if self._ended.done():
            return
        try:
            if self._taking is not None:
                self._taking.cancel()
                await asyncio.wait([self._taking])
            if self._handling:
                await asyncio.wait(self._handling, timeout=grace)
        finally:
            self.abort()
        if self._handling:
            await asyncio.wait(self._handling)

    def abort(self) -> None:
        """End at once; handlers are cancelled."""
        self._end(None)
        for task in self._handling:
            task.cancel()

    async def __aenter__(self) -> Self:
        try:
            await self._subscription.wait_started()
        except BaseException:
            self.abort()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait_and_close().__await__()

    # --- parts ---

    async def _wait_and_close(self) -> None:
        try:
            await self.wait()
        finally:
            await self.close()

    async def _take(self) -> None:
        try:
            while True:
                await self._turns.acquire()
                message = await anext(self._subscription)
                task = _start(self._handle(message), f"handle-{message.seq}")
                self._handling.add(task)
                task.add_done_callback(self._handling.discard)
        except StopAsyncIteration:
            self._end(None)
        except EventBusError as exc:
            logger.warning("group %s is not consumed any more: %s", self._subscription.group, exc)
            self._end(exc)

    def _end(self, error: EventBusError | None) -> None:
        if self._ended.done():
            return
        self._subscription._end()
        for task in (self._taking, self._extending):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # seen, though perhaps nobody waits for it
        self._on_end(self)

    async def _extend(self) -> None:
        """Keep what is held, for as long as it takes."""
        membership = self._subscription._reading
        while True:
            answer = membership.answer
            ack_wait = 1.0 if answer is None else float(answer["ack_wait"])
            await asyncio.sleep(ack_wait / 3)
            self._source._extend_all(membership)

    async def _handle(self, message: GroupMessage) -> None:
        try:
            try:
                spans = self._tracing.spans()
                reason = await (self._call(message) if spans is None else self._call_traced(message, spans))
            finally:
                self._turns.release()  # the ack needs none: the credit bounds how many are under way
            if message.is_settled or message.is_lost:
                return
            if reason is None:
                await message.ack()
            else:
                await message.nack(reason=reason)
        except LeaseLost:
            logger.info("seq %d was handled and is another member's", message.seq)
        except EventBusError as exc:
            logger.warning("what has become of seq %d could not be told: %s", message.seq, exc)

    async def _call_traced(self, message: GroupMessage, spans: Spans) -> str | None:
        subscription = self._subscription
        with spans.handling(
            message, group=subscription.group, attempt=message.attempt, patterns=subscription.patterns
        ) as handling:
            reason = await self._call(message)
            if message.is_lost:
                handling.note("lost")
            elif reason is None:
                handling.note("acked")
            else:
                handling.note("retried", reason.partition(":")[0])
            return reason

    async def _call(self, message: GroupMessage) -> str | None:
        """Call the handler; return why it failed, None: it did not."""
        task = asyncio.current_task()
        assert task is not None
        message._held.on_lost = task.cancel
        try:
            result = self._handler(message)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            if not message.is_lost:
                raise
            task.uncancel()  # only this event was another's
            logger.warning("stopped the handler of seq %d: it is another member's", message.seq)
        except LeaseLost:
            raise
        except Exception as exc:  # noqa: BLE001 - told to the server, which tries again
            # Not its message, which may hold of the event what is not for a log.
            record = ErrorRecord.of(exc, time=0, node="", attempt=message.attempt)
            logger.warning("the handler failed at seq %d, attempt %d: %s", message.seq, message.attempt, record.summary)
            return f"{type(exc).__name__}: {exc}"[:MAX_REASON]
        finally:
            message._held.on_lost = None
        return None


def _start(coroutine: Any, name: str) -> asyncio.Task[None]:
    """Start a task in a context of its own: nothing of what called `consume`."""
    return asyncio.get_running_loop().create_task(
        coroutine, name=f"eventbus-consume-{name}", context=contextvars.Context()
    )
