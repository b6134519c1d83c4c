"""Inline: handlers run where events are published, before the call that published them returns.

    publish, publish_many ─▶ commit ─▶ drain ─▶ the call returns, or raises what a handler has raised
    the commit of a session ─────────────┘

What handlers publish is not handled inside of them, but by the drain that has called them, when they have returned: the
event that they handle is theirs until then, as is the lock of a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import await_only, in_greenlet

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.testing.drain import Errors, Handled, drain

HAS_COMMITTED = "eventbus_inline_has_committed"
"""Where a session keeps that its transaction was committed and is about to end."""

_caller: ContextVar[object] = ContextVar("_caller", default=None)
"""The drain that has called the handler which runs in this context."""


class Inline:
    """See the module's docstring. One block of `BusTester.inline`."""

    def __init__(self, eventbus: EventBus, errors: Errors) -> None:
        self.handled: list[Handled] = []
        """Every attempt so far."""
        self._eventbus = eventbus
        self._errors = errors
        self._turn = asyncio.Lock()
        self._running: object = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand behind every publish and every commit of a session, until the end of the block."""
        node = self._eventbus.node
        submit = node.submit

        def submit_and_handle(drafts: Sequence[Draft]) -> asyncio.Future[list[Receipt]]:
            return asyncio.ensure_future(self._handle_after(submit(drafts)))

        listeners = (("after_commit", self._note_commit), ("after_transaction_end", self._end_transaction))
        node.submit = submit_and_handle  # type: ignore[method-assign]
        for name, listener in listeners:
            sqlalchemy_event.listen(Session, name, listener)
        try:
            yield
        finally:
            for name, listener in listeners:
                sqlalchemy_event.remove(Session, name, listener)
            del node.submit

    async def _handle_after(self, published: asyncio.Future[list[Receipt]]) -> list[Receipt]:
        receipts = await published
        await self._handle()
        return receipts

    def _note_commit(self, session: Session) -> None:
        session.info[HAS_COMMITTED] = True

    def _end_transaction(self, session: Session, transaction: SessionTransaction) -> None:
        """A session has given its connection back: only now may others write, and the caller still waits."""
        if transaction.parent is not None or not session.info.pop(HAS_COMMITTED, False):
            return
        if self._eventbus.node.is_running and in_greenlet():
            await_only(self._handle())

    async def _handle(self) -> None:
        if self._running is not None and _caller.get() is self._running:
            return  # a handler of it has published: it goes on with that
        async with self._turn:
            self._running = object()
            outer = _caller.set(self._running)
            try:
                await drain(self._eventbus, self.handled, self._errors, retries_wait=False)
            finally:
                _caller.reset(outer)
                self._running = None
