"""What a test does with a bus: look at what was published, and have it handled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, overload

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import InvalidEvent, quote
from eventbus_fastapi.events import Event, Message
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.pipeline.patterns import pattern_of
from eventbus_fastapi.testing.clock import Clock
from eventbus_fastapi.testing.drain import Errors, Handled, check_errors, drain, sequence
from eventbus_fastapi.testing.inline import Inline

E = TypeVar("E", bound=Event)

SHOWN = 10
"""Events that a failed assertion shows, the newest."""


class BusTester:
    """See the module's docstring. Made by `swap`, or by the fixture `bus`.

    All that awaits does so in the event loop in which the bus was started.
    """

    def __init__(self, eventbus: EventBus) -> None:
        self.eventbus = eventbus
        self.clock = Clock()
        self._inline: Inline | None = None
        """None: handlers run in `drain` only."""

    async def __aenter__(self) -> Self:
        """Start the bus, where no lifespan of an app does. Each start begins with an empty database."""
        await self.eventbus.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.eventbus.__aexit__(*exc)

    # --- what was published ---

    @overload
    async def published(self, wanted: type[E], **match: Any) -> list[E]: ...
    @overload
    async def published(self, wanted: str = "#", **match: Any) -> list[Message]: ...
    async def published(self, wanted: type[E] | str = "#", **match: Any) -> list[E] | list[Message]:
        """Return the events of the log, in its order: of an `Event` class as such, of a pattern as messages.

        What was rolled back is not there, and a scheduled event is not before it is due.

        Args:
            wanted: an `Event` class or a pattern.
            match: fields of the payload, by name, and what they must be equal to.

        Raises:
            InvalidPattern, InvalidEvent: there cannot be such events.
            InvalidPayload: a payload is none of the class.
            NotRunning: the bus is not started.
        """
        matcher = Matcher([pattern_of(wanted)])
        messages = [message for message in await self._log() if matcher.matches(message.topic)]
        if isinstance(wanted, str):
            return [message for message in messages if _has(message.payload, match)]
        for name in match:
            if name not in wanted.model_fields:
                raise InvalidEvent(f"{wanted.__name__} has no field {quote(name)}")
        events = [message.decode(wanted) for message in messages]
        return [event for event in events if all(getattr(event, name) == match[name] for name in match)]

    async def assert_published(self, wanted: type[Event] | str, **match: Any) -> None:
        """Fail unless at least one such event was published; see `published`."""
        if not await self.published(wanted, **match):
            pytest.fail(f"expected {_described(wanted, match)}, but {await self._shown()}", pytrace=False)

    async def refute_published(self, wanted: type[Event] | str, **match: Any) -> None:
        """Fail if such an event was published; see `published`."""
        if await self.published(wanted, **match):
            pytest.fail(f"expected no {_described(wanted, match)}, but {await self._shown()}", pytrace=False)

    # --- handling ---

    async def drain(self, *, errors: Errors = "raise") -> list[Handled]:
        """Handle events until none is due, also those that handlers publish; return the attempts, in their order.

        Retries that are due by the clock are among them; in a block of `inline`, those that are not as well. A failed
        attempt is settled as in production: it waits for the next one, or is a dead letter.

        Args:
            errors: `raise`: raise what a handler raises, when it is settled; the next drain goes on from there.
                `record`: go on at once, and return the errors with the attempts.

        Raises:
            Exception: what a handler raised.
            RuntimeError: after 1,000 attempts there is still something due.
        """
        check_errors(errors)
        handled: list[Handled] = []
        await drain(self.eventbus, handled, errors, retries_wait=self._inline is None)
        return handled

    @contextmanager
    def inline(self, *, errors: Errors = "raise") -> Iterator[list[Handled]]:
        """Have publishing call the handlers, until the end of the block; give the list of the attempts made so far.

        When `publish` or `publish_many` returns, over HTTP and WebSocket as well, all that was due is handled: first
        what was published, then what its handlers published, and so on. So it is when the commit of an `AsyncSession`
        returns that `publish_txn` was given. What an `AsyncConnection` or a sync session commits waits for the next
        publish or `drain`; so does what becomes due when the clock moves.

        Retries do not wait: the next attempt is due at once, whatever the backoff or `Retry(after=…)` says. A `Snooze`
        waits for the clock. The rest is as in `drain`.

        Args:
            errors: `raise`: raise what a handler raises where the event was published, when the attempt is settled.
                What was published stays in the log; the next publish or drain goes on, with the retry first.
                `record`: go on with the retry, and keep the errors with the attempts.

        Raises:
            RuntimeError: the block is in another one of the same bus.
        """
        check_errors(errors)
        if self._inline is not None:
            raise RuntimeError("the bus is inline already")
        self._inline = Inline(self.eventbus, errors)
        try:
            with self._inline.installed():
                yield self._inline.handled
        finally:
            self._inline = None

    # --- parts ---

    async def _log(self) -> list[Message]:
        await sequence(self.eventbus)
        messages: list[Message] = []
        after, is_last = 0, False
        while not is_last:
            scan = await self.eventbus.node.store.read(after, 1_000)
            messages += scan.messages
            after, is_last = scan.scanned_to, scan.is_last
        return messages

    async def _shown(self) -> str:
        lines = [f"  {message.seq} {message.topic} {message.payload!r}" for message in await self._log()]
        look = await self.eventbus.node.store.peek()
        if look.next_due is not None:
            lines.append(f"  (the next scheduled event is due in {(look.next_due - look.now) / 1_000_000:.1f} s)")
        return "\n".join(["the log has:", *lines[-SHOWN:]]) if lines else "nothing was published"


def _has(payload: object, match: dict[str, Any]) -> bool:
    if not match:
        return True
    return isinstance(payload, dict) and all(name in payload and payload[name] == match[name] for name in match)


def _described(wanted: type[Event] | str, match: dict[str, Any]) -> str:
    name = wanted if isinstance(wanted, str) else wanted.__name__
    return " with ".join([name, *([", ".join(f"{key}={value!r}" for key, value in match.items())] if match else [])])
