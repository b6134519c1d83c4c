"""The executor: calls a handler with one event, and says what became of it.

It owns what a worker's handlers share: the threads of sync functions, the objects of classes, the counts of what may be
open at the same time. It stores nothing, takes no event and has no loop; the session of a transaction is given to it.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi.errors import HandlerCancelled, HandlerTimeout, InvalidOutcome
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.dependencies import Overrides, Plan, Solver
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.outcome import ACK, Ack, Discard, Outcome, Result, Retry, Snooze, decide
from eventbus_fastapi.pipeline.threads import Threads
from eventbus_fastapi.pipeline.timeouts import Timeouts
from eventbus_fastapi.settings import Settings


class Executor:
    """Calls handlers, in one event loop.

    Args:
        settings: given to handlers that ask for `Settings`.
        node: names this process in the records of errors.
        overrides: called in the place of dependencies, such as an app's `dependency_overrides`; may change at any time.
        threads: how many sync functions may run at the same time.
    """

    def __init__(
        self, settings: Settings, *, node: str = "", overrides: Overrides | None = None, threads: int = 40
    ) -> None:
        self._settings = settings
        self._node = node
        self._overrides = {} if overrides is None else overrides
        self._overridden: dict[Handler, tuple[Overrides, Plan]] = {}
        self._timeouts = Timeouts()
        self._threads = Threads(threads)
        self._solver = Solver(self._threads)
        self._objects: dict[Handler, Any] = {}
        self._making = asyncio.Lock()

    async def prepare(self, handlers: Iterable[Handler]) -> None:
        """Make the objects of handlers that are classes, so that one that cannot be made fails now and not per event.

        Raises what a factory raises.
        """
        for handler in handlers:
            if handler.target.factory is not None:
                await self._object(handler)

    def close(self) -> None:
        """End the threads, each after what it does; those that hang are left to the end of the process.

        For when no handler runs any more.
        """
        self._timeouts.close()
        self._threads.close()

    async def execute(
        self, handler: Handler, message: Message, attempt: int, *, session: AsyncSession | None = None
    ) -> Outcome:
        """Call a handler and return the outcome. Nothing of the handler is raised but its being cancelled with the
        task.

        `session` is on the bus's transaction, for a handler that `is_transactional`. It is neither committed nor rolled
        back here: commit it together with an `Ack`, a `Snooze` or a `Discard`, roll it back with any other outcome.
        """
        result: Result | Exception
        try:
            result = await self.run(handler, message, attempt, session=session)
        except Exception as exc:  # noqa: BLE001 - the outcome tells
            result = exc
        return self.decide(handler, result, attempt)

    def decide(self, handler: Handler, result: object, attempt: int) -> Outcome:
        """Return the outcome of an attempt that returned `result` or raised it, also of one that failed after the
        handler had returned, such as in the commit of its transaction.
        """
        if result is None:
            return ACK
        return decide(
            result,
            attempt=attempt,
            max_attempts=handler.max_attempts,
            backoff=handler.backoff,
            handler=handler.group,
            node=self._node,
            now=time.time_ns() // 1_000,
        )

    async def run(
        self, handler: Handler, message: Message, attempt: int = 1, *, session: AsyncSession | None = None
    ) -> Result:
        """Call a handler and return what it returns.

        Raises:
            UndecodablePayload: the payload is not what it takes.
            HandlerTimeout: it did not end within its timeout, and was cancelled.
            HandlerCancelled: something that it waited for was cancelled.
            InvalidOutcome: it returned something that is no outcome.
            Exception: what it raised, or a dependency of it did.
        """
        try:
            if handler.timeout is None:
                return await self._call(handler, message, attempt, session)
            return await self._call_within(handler.timeout, handler, message, attempt, session)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise HandlerCancelled(handler.group) from exc
        except SystemExit as exc:  # of a function that is also a command; the worker has other events to handle
            raise RuntimeError(f"the handler called sys.exit({exc.code!r})") from exc

    async def _call_within(
        self, timeout: float, handler: Handler, message: Message, attempt: int, session: AsyncSession | None
    ) -> Result:
        limit = self._timeouts.within(timeout)
        try:
            with limit:
                return await self._call(handler, message, attempt, session)
        except TimeoutError as exc:
            if limit.has_expired:
                raise HandlerTimeout(handler.group, timeout) from exc.__cause__
            raise  # the handler's own

    async def _call(self, handler: Handler, message: Message, attempt: int, session: AsyncSession | None) -> Result:
        target = handler.target
        event = target.decode(message)
        call = target.call if target.factory is None else (await self._object(handler)).handle
        plan = self._plan_with_overrides(handler) if self._overrides else target.plan
        if not plan.arguments:
            result = await call(event) if target.is_async else await self._threads.run(partial(call, event))
        else:
            assert session is not None or not plan.is_transactional, "a transactional handler needs a session"
            values = [message, attempt, session, self._settings]
            if plan.needs_exits:
                result = await self._call_and_end(target.is_async, call, event, plan, values)
            else:
                await self._solver.solve(plan, values, None)
                result = await self._called(target.is_async, call, event, plan, values)
        return None if result is None else _checked(handler, result)

    async def _call_and_end(
        self, is_async: bool, call: Callable[..., Any], event: Any, plan: Plan, values: list[Any]
    ) -> Any:
        """Call a handler, then end its dependencies, which get its error. They may replace it, but not conceal it."""
        failure: BaseException | None = None
        result = None
        async with AsyncExitStack() as exits:
            try:
                await self._solver.solve(plan, values, exits)
                result = await self._called(is_async, call, event, plan, values)
            except BaseException as exc:
                failure = exc
                raise
        if failure is not None:
            raise failure
        return result

    async def _called(self, is_async: bool, call: Callable[..., Any], event: Any, plan: Plan, values: list[Any]) -> Any:
        arguments = {name: values[place] for name, place in plan.arguments}
        if is_async:
            return await call(event, **arguments)
        return await self._threads.run(partial(call, event, **arguments))

    async def _object(self, handler: Handler) -> Any:
        """Return the object of a handler that is a class, made when it is first needed."""
        if handler in self._objects:
            return self._objects[handler]
        async with self._making:
            if handler not in self._objects:
                factory = handler.target.factory
                assert factory is not None
                made = factory()
                self._objects[handler] = await made if inspect.isawaitable(made) else made
        return self._objects[handler]

    def _plan_with_overrides(self, handler: Handler) -> Plan:
        overrides, plan = self._overridden.get(handler, ({}, handler.target.plan))
        if overrides != self._overrides:
            overrides = dict(self._overrides)  # as they are now
            plan = handler.target.plan_with(overrides)
            self._overridden[handler] = (overrides, plan)
        return plan


def _checked(handler: Handler, result: object) -> Result:
    if isinstance(result, Ack | Retry | Snooze | Discard):
        return result
    if inspect.iscoroutine(result):
        result.close()  # a sync function that returned one; nobody will await it
    raise InvalidOutcome(handler.group, result)
