"""What makes an event a duplicate of another: the rule (`Unique`), and what it comes to for one event (`Fingerprint`).

No I/O happens here; the store compares fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from eventbus_fastapi import codec
from eventbus_fastapi.durations import positive_microseconds
from eventbus_fastapi.errors import InvalidEvent, quote

REPLACEABLE = ("payload", "schedule")
MAX_NAMES = 64
"""Most fields that a rule names."""


@dataclass(frozen=True, kw_only=True)
class Unique:
    """When an event is a duplicate of one that was published before: nothing is stored then.

        await eventbus.publish(InvoiceDue(id=1), unique=Unique(fields=["id"], within=3_600))
        await eventbus.publish(Reindex(id=1), delay=30, unique=Unique(replace=["schedule"]))     # debounced

    Two events are the same if their topics are, and all that the rule compares.

    Raises:
        InvalidEvent: something of the rule cannot be used.
    """

    fields: Sequence[str] | None = None
    """Fields of the payload, a JSON object, that are compared. None: the whole payload; empty: nothing of it."""
    key: bool = False
    """Whether the events' keys are compared."""
    metadata: Sequence[str] = ()
    """Names in the metadata that are compared."""
    within: float | timedelta | None = None
    """How long after the first one (seconds or a timedelta, database clock). None: while the first one waits for its
    time, so that an event which does not wait makes nothing a duplicate."""
    replace: Sequence[str] = ()
    """What the first one takes over from a duplicate while it waits for its time: `payload` (with its content type,
    metadata and ttl), `schedule` (the time)."""

    def __post_init__(self) -> None:
        if self.fields is not None:
            object.__setattr__(self, "fields", _names("unique.fields", self.fields))
        object.__setattr__(self, "metadata", _names("unique.metadata", self.metadata))
        object.__setattr__(self, "replace", _names("unique.replace", self.replace))
        if type(self.key) is not bool:
            raise InvalidEvent(f"unique.key must be a bool, got {quote(self.key)}")
        if self.within is not None:
            positive_microseconds("unique.within", self.within)
        for name in self.replace:
            if name not in REPLACEABLE:
                raise InvalidEvent(f"unique.replace: expected {' or '.join(map(repr, REPLACEABLE))}, got {quote(name)}")


class Fingerprint(NamedTuple):
    """What a rule comes to for one event."""

    digest: str
    """SHA-256 of all that is compared, in hex: the same if and only if the events are."""
    within: int | None
    """Microseconds; None: while the first one waits for its time."""
    rule: Unique


def fingerprint_of(
    rule: Unique,
    *,
    topic: str,
    key: str | None,
    body: bytes,
    content_type: str,
    metadata: Mapping[str, Any] | None,
) -> Fingerprint:
    """Return what a rule comes to for an event, whose parts have passed the door.

    Raises:
        InvalidEvent: the event has not what the rule compares.
    """
    if not isinstance(rule, Unique):
        raise InvalidEvent(f"unique must be a Unique, got {type(rule).__name__}")
    compared: dict[str, Any] = {"topic": topic}
    if rule.fields is None:
        compared.update(_whole(body, content_type))
    elif rule.fields:
        compared["fields"] = _chosen("payload", _object(body, content_type), rule.fields)
    if rule.key:
        if key is None:
            raise InvalidEvent("unique by key, but the event has no key")
        compared["key"] = key
    if rule.metadata:
        compared["metadata"] = _chosen("metadata", metadata or {}, rule.metadata)
    text = json.dumps(_canonical(compared), sort_keys=True, separators=(",", ":"), allow_nan=False)
    within = None if rule.within is None else positive_microseconds("unique.within", rule.within)
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest(), within, rule)


def _names(what: str, names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InvalidEvent(f"{what} must be a list of str, got {type(names).__name__}")
    if len(names) > MAX_NAMES:
        raise InvalidEvent(f"{what} has {len(names):,} names, limit is {MAX_NAMES}")
    for name in names:
        if not isinstance(name, str):
            raise InvalidEvent(f"{what} must be a list of str, got one of {type(name).__name__}")
    return tuple(dict.fromkeys(names))


def _whole(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the payload under a name that says what it is: no JSON object can be taken for a text."""
    if codec.is_json(content_type):
        return {"payload": codec.decode(body, content_type)}
    return {"body": [content_type, hashlib.sha256(body).hexdigest()]}


def _object(body: bytes, content_type: str) -> Mapping[str, Any]:
    payload = codec.decode(body, content_type) if codec.is_json(content_type) else None
    if not isinstance(payload, dict):
        got = type(payload).__name__ if codec.is_json(content_type) else content_type
        raise InvalidEvent(f"unique by fields needs a payload that is a JSON object, got {got}")
    return payload


def _chosen(what: str, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if name not in values:
            raise InvalidEvent(f"unique by {quote(name)}, but the {what} has no such field")
    return {name: values[name] for name in names}


def _canonical(value: Any) -> Any:
    """Return a JSON value in which equal numbers look the same: 1.0 is 1."""
    if isinstance(value, dict):
        return {name: _canonical(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
