"""Fields of a foreign JSON object, each read with its type checked.

A field that is `null` counts as absent. Every function returns the value, or None when the field is absent, or raises
`BadFrame` that names the field, what was expected and what came. Booleans are not integers here. Nothing is coerced;
JSON has one kind of number, so 1.0 is the integer 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from eventbus_fastapi.codec import check_message_id
from eventbus_fastapi.errors import BadFrame, InvalidEvent, quote

T = TypeVar("T")
Object = Mapping[str, Any]

MAX_ID = 2**53 - 1
"""Largest integer that every JSON implementation holds exactly."""
MAX_SEQ = MAX_ID
"""Largest seq that may be named, for the same reason."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Integers of 64 bits."""


def wrong(name: str, expected: str, got: object) -> BadFrame:
    """Build the error of a field that holds something else."""
    return BadFrame(f"field '{name}': expected {expected}, got {shown(got)}")


def required(name: str, value: T | None) -> T:
    """Return `value`, or raise BadFrame where the field is absent."""
    if value is None:
        raise BadFrame(f"field '{name}' is missing")
    return value


def integer(fields: Object, name: str, minimum: int = 1, maximum: int = MAX_ID) -> int | None:
    value = whole(fields.get(name))
    if value is None:
        return None
    if type(value) is not int or not minimum <= value <= maximum:
        expected = f"an integer ≥ {minimum}"
        if type(value) is int and value > maximum:
            expected = f"an integer from {minimum} to {maximum}"
        raise wrong(name, expected, value)
    return value


def any_integer(fields: Object, name: str) -> int | None:
    """Read an integer of 64 bits."""
    value = whole(fields.get(name))
    if value is not None and (type(value) is not int or not MIN_INTEGER <= value <= MAX_INTEGER):
        raise wrong(name, "an integer of 64 bits", value)
    return value


def integers(fields: Object, name: str, most: int) -> list[int] | None:
    """Read a list of 1 to `most` seqs; the result has each once."""
    values = array(fields, name)
    if values is None:
        return None
    if not 1 <= len(values) <= most:
        raise wrong(name, f"a list of 1 to {most:,} integers", values)
    found = [whole(value) for value in values]
    for value in found:
        if type(value) is not int or not 1 <= value <= MAX_SEQ:
            raise wrong(name, "integers ≥ 1", value)
    return list(dict.fromkeys(found))


def whole(value: Any) -> Any:
    """Return a number that is whole as an integer, and anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


def seconds(fields: Object, name: str) -> float | None:
    """Read a duration: a number ≥ 0."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= MAX_ID:
        raise wrong(name, "a number of seconds ≥ 0", value)
    return float(value)


def string(fields: Object, name: str) -> str | None:
    value = fields.get(name)
    if value is not None and type(value) is not str:
        raise wrong(name, "a string", value)
    return value


def boolean(fields: Object, name: str) -> bool | None:
    value = fields.get(name)
    if value is not None and type(value) is not bool:
        raise wrong(name, "true or false", value)
    return value


def choice(fields: Object, name: str, choices: Sequence[str]) -> str | None:
    value = fields.get(name)
    if value is not None and value not in choices:
        raise wrong(name, "one of " + ", ".join(repr(each) for each in choices), value)
    return None if value is None else str(value)


def array(fields: Object, name: str) -> list[Any] | None:
    value = fields.get(name)
    if value is not None and type(value) is not list:
        raise wrong(name, "a list", value)
    return value


def mapping(fields: Object, name: str) -> dict[str, Any] | None:
    value = fields.get(name)
    if value is not None and type(value) is not dict:
        raise wrong(name, "an object", value)
    return value


def message_id(fields: Object) -> UUID | None:
    """Read a message id.

    Raises:
        InvalidEvent: it is a string, but not a UUID.
    """
    value = string(fields, "message_id")
    return None if value is None else check_message_id(value)


def uuid(fields: Object, name: str) -> UUID | None:
    value = string(fields, name)
    try:
        return None if value is None else check_message_id(value)
    except InvalidEvent:
        raise wrong(name, "a UUID", value) from None


def time(value: str, name: str) -> datetime:
    """Parse an RFC 3339 time; the result is UTC."""
    try:
        parsed = datetime.fromisoformat(value)
        if parsed.tzinfo is not None:
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise wrong(name, "an RFC 3339 time with its offset, like '2026-01-01T00:00:00Z'", value)


def shown(value: object) -> str:
    """Show a foreign value in a message: short, one line, containers only by their kind."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > 64:
            return "an integer beyond 64 bits"  # Python refuses to print very large ones
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
    return quote(value)
