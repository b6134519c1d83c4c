"""Why a value is not JSON that can be kept, and where the fault is.

Nothing here decides: it only explains what was refused already. As a refusal must stay cheap, the search for the place
ends after a while, and then the explanation goes without it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from itertools import islice
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from eventbus_fastapi.errors import quote

MAX_DEPTH = 200
"""Deepest nesting of JSON, whatever a caller allows: the parser ends there."""
MAX_DIGITS = 4_300
"""Most digits of an integer. More take quadratic time, so that Python refuses them, too."""

_LOOKED_AT = 10_000
"""Most values (or bytes, tenfold) that are looked at to say where the fault is: a refusal must stay cheap."""


def too_deep(max_depth: int) -> str:
    """Say how deep it may be."""
    return f"is nested deeper than {min(max_depth, MAX_DEPTH)} levels"


def why_not_written(value: Any, exc: Exception, max_depth: int) -> str:
    """Say why `to_json` refused the value."""
    reason = str(exc)
    if "depth exceeded" in reason or isinstance(exc, RecursionError):
        return too_deep(max_depth)
    if "Circular reference" in reason:
        return "contains itself"
    if "surrogates not allowed" in reason:
        return f"has a lone surrogate{_place(value, _has_surrogate)}"
    if "invalid utf-8" in reason:
        return f"has bytes that are not UTF-8{_place(value, _is_not_utf8)}"
    if "unknown type" in reason:
        return _unknown_type(value)
    return f"cannot be written as JSON: {reason}"


def why_not_parsed(body: bytes, exc: ValueError, max_depth: int) -> str:
    """Say why `from_json` refused the bytes."""
    reason = str(exc)
    if body.startswith(b"\xef\xbb\xbf"):
        return "is not JSON: it starts with a byte order mark"
    if reason.startswith("recursion limit"):
        return too_deep(max_depth)
    if reason.startswith("number out of range"):
        return f"has an integer of more than {MAX_DIGITS:,} digits"
    return f"is not JSON: {reason}"


def _unknown_type(value: Any) -> str:
    """Name the object that Pydantic cannot write: try again, and note what it asks about."""
    unknown: list[object] = []

    def note(found: object) -> None:
        if not unknown:
            unknown.append(found)

    with suppress(Exception):  # the program's own serializers
        to_json(value, fallback=note)
    if not unknown:  # the value is another one now: an iterator that has run out
        return "has a value of a type that Pydantic cannot write as JSON"
    where = _place(value, lambda found: found is unknown[0])
    return (
        f"has a value of type {type(unknown[0]).__qualname__}{where}; expected a Pydantic model, dataclass, dict, list,"
        " str, number, bool, None or another type that Pydantic writes as JSON"
    )


def not_finite(value: Any) -> str:
    """Name the first number of parsed JSON that is not finite."""
    for path, found in islice(_walk(value), _LOOKED_AT):
        if isinstance(found, float) and not math.isfinite(found):
            return f"has {'NaN' if math.isnan(found) else 'an infinite number'} at {_short(path)}"
    return "has a number that is not finite"


def twin_name(body: bytes) -> str:
    """Return the name that an object has twice."""
    twins: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                twins.append(name)
            names.add(name)

    if len(body) > 10 * _LOOKED_AT:
        return "a name"
    try:
        json.loads(body, object_pairs_hook=look, parse_int=len)
    except RecursionError:  # it counts the frames of the caller, too
        return "a name"
    return f"the name {quote(twins[0])}" if twins else "a name"


def _has_surrogate(found: object) -> bool:
    return isinstance(found, str) and _SURROGATE.search(found) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_not_utf8(found: object) -> bool:
    if not isinstance(found, bytes | bytearray):
        return False
    try:
        bytes(found).decode()
    except UnicodeDecodeError:
        return True
    return False


def _place(value: Any, is_meant: Callable[[object], bool]) -> str:
    """Return ` at $.path` of the first value that is meant; nothing if it is not found soon."""
    looked_at = islice(_walk(value), _LOOKED_AT)
    with suppress(Exception):  # a container of the program's own may raise anything
        return next((f" at {_short(path)}" for path, found in looked_at if is_meant(found)), "")
    return ""


def _short(path: str, limit: int = 120) -> str:
    return path if len(path) <= limit else path[: limit - 1] + "…"


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the value and all values and names within, in order, with their paths; never deeper than `MAX_DEPTH`."""
    levels: list[Iterator[tuple[str, Any]]] = [iter([("$", value)])]
    while levels:
        for path, found in levels[-1]:
            yield path, found
            if len(levels) < MAX_DEPTH:
                levels.append(iter(_within(path, found)))
                break
        else:
            levels.pop()


def _within(path: str, found: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(found, BaseModel) or (is_dataclass(found) and hasattr(found, "__dict__")):
        found = found.__dict__
    if isinstance(found, dict):
        for name, each in found.items():
            yield f"a name in {path}", name
            yield f"{path}.{quote(name)[1:-1] if isinstance(name, str) else type(name).__name__}", each
    elif isinstance(found, list | tuple):
        for number, each in enumerate(found):
            yield f"{path}[{number}]", each
