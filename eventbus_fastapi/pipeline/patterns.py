"""What handlers and listeners want: patterns, or `Event` classes."""

from __future__ import annotations

from inspect import isfunction

from eventbus_fastapi.errors import InvalidEvent
from eventbus_fastapi.events import Event
from eventbus_fastapi.topics import check_pattern


def check_wanted(wanted: object) -> str | type[Event]:
    """Return a pattern or an `Event` class if it is one.

    Raises:
        InvalidPattern: it does not follow the grammar.
        InvalidEvent: it is another class, or a function: the decorator was used without its parentheses.
    """
    if isinstance(wanted, type):
        if issubclass(wanted, Event):
            return wanted
        raise InvalidEvent(f"expected a pattern or an Event class, got the class {wanted.__name__}")
    if isfunction(wanted):
        raise InvalidEvent(
            f"expected a pattern or an Event class, got the function {wanted.__name__}; give the decorator what to wait"
            ' for, as in ("user.created")'
        )
    return check_pattern(wanted)


def pattern_of(wanted: str | type[Event]) -> str:
    """Return a pattern as text; that of an `Event` class is its topic.

    Raises:
        InvalidPattern: it does not follow the grammar.
        InvalidEvent: it is another class, a class without a topic, or a function.
    """
    wanted = check_wanted(wanted)
    if isinstance(wanted, str):
        return wanted
    if not wanted.__topic__:
        name = wanted.__name__
        raise InvalidEvent(f'{name} has no topic: declare it as class {name}(Event, topic="…"), or give a pattern')
    return wanted.__topic__
