"""Handlers: typed functions that are called with events, each as a group of its own.

A handler's group is where its cursor, its retries and its dead letters are, so its name must stay the same. It is
`group=`, or else the top-level package and the function's (or class's) own name: `send_welcome` in `shop/users.py` is
`shop.send_welcome`, and stays it when it moves to another module of `shop`. A program that is run as a script has the
name that it would be imported by. Renaming the function makes a new group, unless `group=` keeps the old name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from eventbus_fastapi.backoff import Backoff, Duration, Sequence, seconds
from eventbus_fastapi.errors import InvalidEvent, InvalidGroup, InvalidHandler, quote
from eventbus_fastapi.events import Event
from eventbus_fastapi.names import MAX_NAME, is_name
from eventbus_fastapi.pipeline.outcome import DEFAULT_BACKOFF
from eventbus_fastapi.pipeline.patterns import pattern_of
from eventbus_fastapi.pipeline.signature import name_of
from eventbus_fastapi.pipeline.target import Factory, Target, make_target
from eventbus_fastapi.store.group_name import check_group_name

F = TypeVar("F", bound=Callable[..., Any])

OrderedBy = Literal["key"]

DEFAULT_MAX_RETRIES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """What a worker knows of a handler."""

    group: str
    """Names the group that the handler is."""
    patterns: tuple[str, ...]
    queue: str
    """The pool of workers that serves it."""
    max_attempts: int
    """How often it is called with an event at most: once more than `max_retries`."""
    timeout: float | None
    """Seconds that an attempt may take, with its dependencies; None: any time."""
    backoff: Backoff
    priority: int
    """Of two handlers of a queue that have work, the one with the higher priority gets a worker first."""
    ordered_by: OrderedBy | None
    """`key`: the events of one key one after the other, in the order of the log; None: any order."""
    target: Target
    """Its code."""
    max_in_flight: int | None = None
    """Events that all nodes together handle at the same time; None: as many as their workers."""
    rate_limit: str | None = None
    """The name of the limit that its attempts share with those of others."""
    events: tuple[type[Event], ...] = ()
    """The `Event` classes among what it handles."""

    @property
    def is_transactional(self) -> bool:
        """Whether it writes its effects and its ack in one transaction, the bus's."""
        return self.target.plan.is_transactional


class HandlerOptions(TypedDict, total=False):
    """What may be said about a handler; see `HandlerGroup.handler`."""

    group: str | None
    queue: str
    max_retries: int | None
    timeout: Duration | None
    backoff: Backoff | None
    priority: int
    ordered_by: OrderedBy | None
    max_in_flight: int | None
    rate_limit: str | None
    factory: Factory | None


class HandlerGroup:
    """Handlers that belong together, such as those of one module; `include` puts them into another.

        users = HandlerGroup()

        @users.handler(UserCreated, queue="email", max_retries=3)
        async def send_welcome(event: UserCreated) -> None: ...

        eventbus.include(users)

    It may get more handlers after it was included: they are in the other one as well.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._included_in: list[HandlerGroup] = []

    def __iter__(self) -> Iterator[Handler]:
        return iter(tuple(self._handlers.values()))

    def __len__(self) -> int:
        return len(self._handlers)

    def __getitem__(self, group: str) -> Handler:
        return self._handlers[group]

    def handler(
        self,
        *patterns: str | type[Event],
        group: str | None = None,
        queue: str = "default",
        max_retries: int | None = None,
        timeout: Duration | None = None,
        backoff: Backoff | None = None,
        priority: int = 0,
        ordered_by: OrderedBy | None = None,
        max_in_flight: int | None = None,
        rate_limit: str | None = None,
        factory: Factory | None = None,
    ) -> Callable[[F], F]:
        """Register the function or class below as a handler; it stays what it is.

        An async function is awaited, a sync one runs in a thread. The object of a class, whose method `handle` is
        called, is made once per worker: without arguments, or by `factory`. The first parameter takes the event, in the
        form that its type says (see `pipeline.target`); others are provided (see `pipeline.dependencies`). It returns
        None when it is done, or an outcome: `Retry`, `Snooze`, `Discard`. What it raises is tried again after the
        backoff.

        Args:
            patterns: the topics that it handles; an `Event` class stands for its topic.
            group: the handler's name. Defaults to the top-level package and the function's name.
            queue: the pool of workers that serves it. Defaults to `default`.
            max_retries: attempts after the first. Defaults to 10, with a `Sequence` as backoff to its length.
            timeout: seconds or a timedelta that an attempt may take, with its dependencies; it is cancelled then. A
                thread cannot be: the attempt of a sync function ends as timed out, while its thread runs on and is
                taken until the function returns. None: no timeout.
            backoff: the failed attempt's number, counted from 1 → seconds until the next; None: a dead letter. Defaults
                to `Exponential()`.
            priority: handlers of a queue with a higher one come first. Defaults to 0.
            ordered_by: `key`: one event of each key at a time, in order.
            max_in_flight: events that all processes together handle at the same time. None: as many as their workers.
            rate_limit: the name of a limit (see `EventBus.rate_limit`), of which each attempt takes a permit.
            factory: makes the object of a class, once per worker; may be async.

        Raises:
            InvalidHandler: the handler cannot be registered, and why.
            InvalidPattern, InvalidEvent: one of the patterns cannot be used.
        """
        if not patterns:
            raise InvalidEvent("give at least one pattern or Event class to handle")
        handled = tuple(dict.fromkeys(map(pattern_of, patterns)))
        events = tuple(dict.fromkeys(each for each in patterns if isinstance(each, type)))

        def register(handler: F) -> F:
            name = _name(handler, group)
            self._add(
                Handler(
                    group=name,
                    patterns=handled,
                    queue=_checked_name(name, "queue", queue),
                    max_attempts=_max_attempts(name, max_retries, backoff),
                    timeout=_timeout(name, timeout),
                    backoff=_backoff(name, backoff),
                    priority=_priority(name, priority),
                    ordered_by=_ordered_by(name, ordered_by),
                    target=make_target(name, handler, factory),
                    max_in_flight=_max_in_flight(name, max_in_flight),
                    rate_limit=None if rate_limit is None else _checked_name(name, "rate_limit", rate_limit),
                    events=events,
                )
            )
            return handler

        return register

    def include(self, group: HandlerGroup) -> None:
        """Take the handlers of another group too, also those that it gets later.

        Raises:
            InvalidHandler: two handlers have the same name; nothing was taken.
        """
        if group is self or group._contains(self):
            raise ValueError("a HandlerGroup cannot include itself")
        for handler in group:
            self._check_free(handler)
        for handler in group:
            self._put(handler)
        group._included_in.append(self)

    def _contains(self, group: HandlerGroup) -> bool:
        return any(each is self or self._contains(each) for each in group._included_in)

    def _add(self, handler: Handler) -> None:
        self._check_free(handler)
        self._put(handler)

    def _check_free(self, handler: Handler) -> None:
        if handler.group in self._handlers:
            raise InvalidHandler(
                handler.group, "there is a handler of this name already; give one of them another with group="
            )
        for each in self._included_in:
            each._check_free(handler)

    def _put(self, handler: Handler) -> None:
        self._handlers[handler.group] = handler
        for each in self._included_in:
            each._put(handler)


# --- what can be used ----------------------------------------------------------------------------


def _name(handler: Callable[..., Any], group: str | None) -> str:
    if group is not None:
        return _checked_group(group, group)
    name = name_of(handler)
    if "<" in name:
        raise InvalidHandler(name, "it has no name of its own; give it one with group=")
    return _checked_group(name, f"{_package_of(handler)}.{name}")


def _checked_group(handler: object, name: object) -> str:
    try:
        return check_group_name(name)
    except InvalidGroup as exc:
        raise InvalidHandler(str(handler), str(exc)) from None


def _package_of(handler: Callable[..., Any]) -> str:
    """Return the top-level package of a handler, also if that is being run as a script or with `python -m`."""
    module: str = getattr(handler, "__module__", None) or type(handler).__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        path = getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(path).stem if path else module
    return module.partition(".")[0]


def _checked_name(handler: object, what: str, name: object) -> str:
    if not isinstance(name, str) or not is_name(name):
        expected = f"{what} must be a text of 1 to {MAX_NAME} bytes without spaces and control characters"
        raise InvalidHandler(str(handler), f"{expected}, got {quote(name)}")
    return name


def _max_attempts(name: str, max_retries: object, backoff: Backoff | None) -> int:
    if max_retries is None:
        return 1 + (len(backoff) if isinstance(backoff, Sequence) else DEFAULT_MAX_RETRIES)
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or not 0 <= max_retries < 2**31 - 1:
        raise InvalidHandler(name, f"max_retries must be an int of at least 0, got {quote(max_retries)}")
    return 1 + max_retries


def _timeout(name: str, timeout: Duration | None) -> float | None:
    if timeout is None:
        return None
    try:
        value = seconds("timeout", timeout)
    except ValueError as exc:
        raise InvalidHandler(name, str(exc)) from None
    if value == 0:
        raise InvalidHandler(name, "timeout must be more than 0 seconds; None is no timeout")
    return value


def _backoff(name: str, given: Backoff | None) -> Backoff:
    backoff: object = given
    if given is None:
        return DEFAULT_BACKOFF
    if not callable(backoff) or isinstance(backoff, type):
        expected = "Exponential(…), Fixed(…), Sequence([…]) or a function of the attempt"
        raise InvalidHandler(name, f"backoff must be {expected}, got {quote(backoff)}")
    return given


def _priority(name: str, priority: object) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidHandler(name, f"priority must be an int, got {quote(priority)}")
    return priority


def _max_in_flight(name: str, max_in_flight: object) -> int | None:
    if max_in_flight is None:
        return None
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or not 1 <= max_in_flight < 2**31:
        raise InvalidHandler(name, f"max_in_flight must be an int of at least 1, got {quote(max_in_flight)}")
    return max_in_flight


def _ordered_by(name: str, ordered_by: object) -> OrderedBy | None:
    if ordered_by not in (None, "key"):
        raise InvalidHandler(name, f"ordered_by must be 'key' or None, got {quote(ordered_by)}")
    return "key" if ordered_by == "key" else None
