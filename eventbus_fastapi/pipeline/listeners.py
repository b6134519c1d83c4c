"""Listeners: functions that are called with an event in this process, before `emit` returns. Nothing is stored.

They are for the program's own parts that must not know one another, in the transaction and the task of whoever emits.
What must survive a crash, be tried again, or reach another process is published, and handled by a handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from eventbus_fastapi.errors import InvalidEvent, InvalidHandler
from eventbus_fastapi.events import Event
from eventbus_fastapi.pipeline.patterns import check_wanted
from eventbus_fastapi.pipeline.signature import BY_POSITION, VARIADIC, kind_of, name_of, parameters_of
from eventbus_fastapi.topics import matches

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    call: Callable[[Event], Awaitable[Any]]
    wanted: tuple[str | type[Event], ...]

    def wants(self, kind: type[Event]) -> bool:
        return any(
            issubclass(kind, each) if isinstance(each, type) else bool(kind.__topic__) and matches(each, kind.__topic__)
            for each in self.wanted
        )


class Listeners:
    """The listeners of one program, in the order in which they were registered."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []
        self._wanting: dict[type[Event], tuple[_Listener, ...]] = {}

    def listener(self, *wanted: str | type[Event]) -> Callable[[F], F]:
        """Register the function below as a listener; it stays what it is.

        It takes the event, and nothing else. A sync function runs in a thread.

        Args:
            wanted: `Event` classes, for their events and those of their subclasses, with a topic or without; or
                patterns.

        Raises:
            InvalidPattern, InvalidEvent: one of these cannot be used.
            InvalidHandler: the function cannot be called with an event alone.
        """
        if not wanted:
            raise InvalidEvent("give at least one Event class or pattern to listen to")
        checked = tuple(map(check_wanted, wanted))

        def register(listener: F) -> F:
            self._listeners.append(_Listener(_called_with_event(listener), checked))
            self._wanting.clear()
            return listener

        return register

    async def emit(self, event: Event) -> None:
        """Call the listeners that want an event, one after the other, and return when all have run.

        One that fails keeps none from running.

        Raises:
            ExceptionGroup: of what the listeners raised.
            InvalidEvent: it is no `Event`.
        """
        kind = type(event)
        found = self._wanting.get(kind)
        if found is None:
            if not isinstance(event, Event):
                raise InvalidEvent(f"expected an Event, got {_shown(event)}")
            found = self._wanting[kind] = tuple(each for each in self._listeners if each.wants(kind))
        errors: list[Exception] = []
        for listener in found:
            try:
                await listener.call(event)
            except Exception as exc:  # noqa: BLE001 - raised when the others have run
                errors.append(exc)
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(found)} listeners failed on {kind.__name__}", errors)


def _called_with_event(listener: object) -> Callable[[Event], Awaitable[Any]]:
    """Return how a listener is called: awaited, whatever it is.

    Raises:
        InvalidHandler: it cannot be called with an event alone.
    """
    name = name_of(listener)
    if not callable(listener) or isinstance(listener, type):
        raise InvalidHandler(name, "expected a function", kind="listener")
    parameters = parameters_of(listener, name)
    if not parameters or parameters[0].kind not in (*BY_POSITION, Parameter.VAR_POSITIONAL):
        raise InvalidHandler(name, "its first parameter must take the event", kind="listener")
    for each in parameters[1:]:
        if each.default is Parameter.empty and each.kind not in VARIADIC:
            raise InvalidHandler(name, f"it is called with the event alone, and needs {each.name}", kind="listener")
    kind = kind_of(listener)
    if kind in ("generator", "async generator"):
        raise InvalidHandler(name, "it must not yield", kind="listener")
    return listener if kind == "async" else partial(run_in_threadpool, listener)


def _shown(event: object) -> str:
    return f"the class {event.__name__} itself" if isinstance(event, type) else type(event).__name__
