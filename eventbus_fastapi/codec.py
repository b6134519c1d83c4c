"""Payloads, metadata and ids between Python and what is stored: bytes with a content type, JSON text, UUIDs.

What is accepted here can be stored in every database and read by every JSON parser as the same value: UTF-8, no NaN or
infinity, no lone surrogate, bounded depth. A refusal is an `InvalidPayload` (or `InvalidEvent`) that says what was
wrong; foreign input raises nothing else. Sizes of payloads, and topics, are not judged here.

How a payload becomes bytes:

| payload | no content type | `application/json`, `…+json` | `text/…` | any other |
|---|---|---|---|---|
| bytes | as given, `application/octet-stream` | must be JSON, stored as given | must be UTF-8 | as given |
| str | UTF-8, `text/plain` | a JSON *string* | UTF-8 | UTF-8 |
| any other value | JSON, `application/json` | JSON | refused | refused |

So only bytes are ever taken for JSON that is written already; a str is a value like any other. Models and dataclasses
are written as Pydantic writes them, by alias. Names of objects that are not str become str, as in all of JSON.

A model decides itself how it writes NaN and infinity (`ser_json_inf_nan`, in Pydantic `null` by default); an `Event`
decides to have them refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from eventbus_fastapi.errors import InvalidEvent, InvalidPayload, quote

T = TypeVar("T")

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"

MAX_CONTENT_TYPE = 127
"""Longest content type, characters."""
MAX_DEPTH = 200
"""Deepest nesting of JSON, whatever a caller allows: the parser ends there."""
MAX_DIGITS = 4_300
"""Most digits of an integer. More take quadratic time, so that Python refuses them, too."""
MAX_METADATA = 16_384
"""Largest metadata, bytes of JSON."""
MAX_METADATA_KEYS = 64
MAX_METADATA_DEPTH = 32
RESERVED_METADATA = frozenset({"timestamp", "content_type"})
"""Metadata keys that belong to the bus: it sets them on the wire."""

_BYTES = (bytes, bytearray, memoryview)


# --- payloads ------------------------------------------------------------------------------------


def encode(payload: Any, content_type: str | None = None, *, max_depth: int = 32) -> tuple[bytes, str]:
    """Return the payload as bytes, and their content type. The table above says how.

    Raises:
        InvalidPayload: it cannot be stored and read back, or the content type is malformed or does not fit.
    """
    if content_type is None:
        if isinstance(payload, str):
            return _encode_text(payload), TEXT
        if isinstance(payload, _BYTES):
            return bytes(payload), BINARY
        return encode_json(payload, max_depth=max_depth), JSON
    content_type = check_content_type(content_type)
    if is_json(content_type):
        if not isinstance(payload, _BYTES):
            return encode_json(payload, max_depth=max_depth), content_type
        body = bytes(payload)
        parse_json(body, max_depth=max_depth, what="payload")
        return body, content_type
    if isinstance(payload, str):
        return _encode_text(payload), content_type
    if not isinstance(payload, _BYTES):
        came = type(payload).__name__
        raise InvalidPayload(f"payload of content type {content_type} must be str or bytes, got {came}")
    body = bytes(payload)
    if is_text(content_type):
        _decode_text(body)
    return body, content_type


def encode_json(value: Any, *, max_depth: int = 32, what: str = "payload") -> bytes:
    """Return the value as JSON. `what` is what error messages call it.

    Raises:
        InvalidPayload: it has something that JSON, or another JSON parser, does not know.
    """
    try:
        body = to_json(value, inf_nan_mode="constants")
    except Exception as exc:  # writing runs the program's own serializers, which may raise anything
        raise InvalidPayload(f"{what} {_why_not_written(value, exc, max_depth)}") from exc
    # An int in bytes (91 is "[", 123 "{", 78 "N", 73 "I") is found several times faster than a bytes in bytes.
    brackets = body.count(91) + body.count(123)
    if brackets > max_depth or brackets > MAX_DEPTH:
        _check_depth(body, max_depth, what)
    if (78 in body and b"NaN" in body) or (73 in body and b"Infinity" in body):
        _check_constants(body, what)
    if len(body) > MAX_DIGITS:
        _check_digits(body, what)
    return body


def decode(body: bytes, content_type: str) -> Any:
    """Return JSON as Python values, text as str, anything else as the bytes themselves.

    Raises:
        InvalidPayload: the bytes are not what the content type says.
    """
    if is_json(content_type):
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as exc:
            raise InvalidPayload(f"payload {_why_not_parsed(body, exc, MAX_DEPTH)}") from exc
    if is_text(content_type):
        return _decode_text(body)
    return body


def decode_as(body: bytes, content_type: str, kind: type[T]) -> T:
    """Return the payload as `kind`: a Pydantic model, dataclass, TypedDict or any type that Pydantic validates.

    JSON names may be those of the fields or their aliases. On Python 3.11 Pydantic takes a TypedDict only if it comes
    from `typing_extensions`.

    Raises:
        InvalidPayload: the payload does not fit.
    """
    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        if is_json(content_type):
            return adapter.validate_json(body, by_alias=True, by_name=True)
        return adapter.validate_python(decode(body, content_type), by_alias=True, by_name=True)
    except ValidationError as exc:
        name = getattr(kind, "__qualname__", None) or str(kind)
        raise InvalidPayload(f"payload does not fit {name}: {_faults(exc)}") from exc


def parse_json(text: str | bytes, *, max_depth: int = 64, what: str = "it") -> Any:
    """Return foreign JSON as Python values, strictly. `what` is what error messages call it.

    Refused are NaN and infinity, numbers beyond a double's range, integers of more than 4,300 digits, lone surrogates,
    invalid UTF-8, a byte order mark, trailing characters, an object with the same name twice, and nesting deeper than
    `max_depth` (at most 200).

    Raises:
        InvalidPayload: one of these.
    """
    if isinstance(text, str):
        body = _encode_text(text, what)
    elif isinstance(text, _BYTES):
        body = bytes(text)
    else:
        raise InvalidPayload(f"{what} must be str or bytes of JSON, got {type(text).__name__}")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {_why_not_parsed(body, exc, max_depth)}") from exc
    if body.count(91) + body.count(123) > max_depth:
        _check_depth(body, max_depth, what)
    # The parser keeps the last of two names, and reads 1e400 as infinity. Written again, the first lacks a colon (58)
    # and the second is spelt out: much cheaper than looking at every value.
    written = to_json(value, inf_nan_mode="constants")
    if written.count(58) != _colons(body):
        raise InvalidPayload(f"{what} has an object with {_twin_name(body)} twice")
    if 73 in written and b"Infinity" in written:
        _check_overflow(value, written, what)
    return value


# --- content types -------------------------------------------------------------------------------


@lru_cache(maxsize=1_024)
def is_json(content_type: str) -> bool:
    """Say whether a content type is JSON: `application/json` or `…+json`, with any parameters."""
    media_type = _media_type(content_type)
    return media_type == JSON or media_type.endswith("+json")


@lru_cache(maxsize=1_024)
def is_text(content_type: str) -> bool:
    """Say whether a content type is text: `text/…` with any parameters, unless it is JSON."""
    return _media_type(content_type).startswith("text/") and not is_json(content_type)


def check_content_type(content_type: object) -> str:
    """Return the content type as it came.

    Raises:
        InvalidPayload: it is not ASCII `type/subtype` with optional parameters, is longer than 127 characters, or names
            a charset other than UTF-8 for text or JSON.
    """
    if not isinstance(content_type, str):
        raise InvalidPayload(f"content type must be str, got {type(content_type).__name__}")
    return _checked_content_type(content_type)


_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")
_CHARSET = re.compile(r';[ \t]*charset="?([^";]*)', re.IGNORECASE)


@lru_cache(maxsize=1_024)
def _checked_content_type(content_type: str) -> str:
    if len(content_type) > MAX_CONTENT_TYPE:
        raise InvalidPayload(f"content type is {len(content_type):,} characters, limit is {MAX_CONTENT_TYPE}")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidPayload(f"invalid content type {quote(content_type)}: expected type/subtype, like {JSON}")
    charset = _CHARSET.search(content_type)
    is_read_as_utf8 = is_json(content_type) or is_text(content_type)
    if charset and is_read_as_utf8 and charset[1].strip().lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidPayload(f"content type {quote(content_type)}: text is UTF-8; send other charsets as {BINARY}")
    return str.__str__(content_type)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


# --- metadata and ids ----------------------------------------------------------------------------


def encode_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    """Return metadata as the text of a JSON object; None for none and for an empty mapping.

    Raises:
        InvalidEvent: it is not a mapping from str to JSON values, has more than 64 keys or 16 KiB, or has a key that
            the bus sets (`timestamp`, `content_type`).
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata must be a mapping, got {type(metadata).__name__}")
    if len(metadata) > MAX_METADATA_KEYS:
        raise InvalidEvent(f"metadata has {len(metadata):,} keys, limit is {MAX_METADATA_KEYS}")
    for key in metadata:
        if not isinstance(key, str):
            raise InvalidEvent(f"metadata keys must be str, got {type(key).__name__}")
        if key in RESERVED_METADATA:
            raise InvalidEvent(f"metadata key {quote(key)} is reserved: the bus sets it")
    if not metadata:
        return None
    try:
        body = encode_json(dict(metadata), max_depth=MAX_METADATA_DEPTH, what="metadata")
    except InvalidPayload as exc:
        raise InvalidEvent(str(exc)) from exc
    if len(body) > MAX_METADATA:
        raise InvalidEvent(f"metadata is {len(body):,} bytes, limit is {MAX_METADATA:,}")
    return body.decode()


def load_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a text, such as stored metadata.

    Raises:
        InvalidPayload: it is something else.
    """
    value = decode(text.encode("utf-8", "surrogatepass"), JSON)
    if not isinstance(value, dict):
        raise InvalidPayload(f"expected a JSON object, got {type(value).__name__}")
    return value


def new_message_id() -> UUID:
    """Return a new UUIDv7 (RFC 9562, section 5.7): unix milliseconds, then 74 random bits from the operating system.

    Ids of the same millisecond are in no order.
    """
    milliseconds = time.time_ns() // 1_000_000
    # Not from `random`: a program that seeds it would repeat its ids, and lose events as duplicates.
    random_bits = int.from_bytes(os.urandom(10), "big")
    return UUID(int=milliseconds << 80 | random_bits & _V7_RANDOM | _V7)


_V7 = 0x7 << 76 | 0b10 << 62
"""Version and variant, in their places."""
_V7_RANDOM = 0xFFF << 64 | (1 << 62) - 1
"""The places of the random bits."""


def check_message_id(value: object) -> UUID:
    """Return a message id from a UUID or its 36 characters.

    Raises:
        InvalidEvent: it is neither.
    """
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _MESSAGE_ID.fullmatch(value):
        return UUID(value)
    raise InvalidEvent(f"message_id must be a UUID, like 0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3, got {quote(value)}")


_MESSAGE_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


# --- text ----------------------------------------------------------------------------------------


def _encode_text(text: str, what: str = "payload") -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidPayload(
            f"{what} has the lone surrogate {quote(text[exc.start])} at character {exc.start:,}"
        ) from exc


def _decode_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise InvalidPayload(f"payload is not UTF-8: byte 0x{body[exc.start]:02x} at {exc.start:,}") from exc


# --- checks of JSON that parses ------------------------------------------------------------------


def _check_depth(body: bytes, max_depth: int, what: str) -> None:
    """Refuse nesting deeper than `max_depth`."""
    outside_strings = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside_strings.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > min(max_depth, MAX_DEPTH):
        raise InvalidPayload(f"{what} {_too_deep(max_depth)}")


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""One level down, one level up (-1 as a signed byte)."""
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _check_constants(body: bytes, what: str) -> None:
    """Refuse NaN and infinities; a string may contain the same letters."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {_not_finite(from_json(body))}") from exc


def _check_digits(body: bytes, what: str) -> None:
    """Refuse integers that cannot be read back; a string may have as many digits as it likes."""
    if _TOO_MANY_DIGITS not in body.translate(_ANY_DIGIT):
        return
    try:
        from_json(body)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {_why_not_parsed(body, exc, MAX_DEPTH)}") from exc


_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_DIGITS = b"0" * (MAX_DIGITS + 1)


def _check_overflow(value: Any, written: bytes, what: str) -> None:
    """Refuse numbers that became infinite; a string may contain the same letters."""
    if len(to_json(value, inf_nan_mode="strings")) != len(written):
        raise InvalidPayload(f"{what} {_not_finite(value)}: it is beyond a double's range")


def _colons(body: bytes) -> int:
    """Count the colons of JSON, escaped ones included."""
    colons = body.count(58)
    if 92 in body and b"\\u003" in body:
        escapes = body.replace(b"\\\\", b"")
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    return colons


# --- explanations, only for what is refused ------------------------------------------------------

_LOOKED_AT = 10_000
"""Most values (or bytes, tenfold) that are looked at to say where the fault is: a refusal must stay cheap."""


def _too_deep(max_depth: int) -> str:
    return f"is nested deeper than {min(max_depth, MAX_DEPTH)} levels"


def _why_not_written(value: Any, exc: Exception, max_depth: int) -> str:
    """Say why `to_json` refused the value."""
    reason = str(exc)
    if "depth exceeded" in reason or isinstance(exc, RecursionError):
        return _too_deep(max_depth)
    if "Circular reference" in reason:
        return "contains itself"
    if "surrogates not allowed" in reason:
        return f"has a lone surrogate{_place(value, _has_surrogate)}"
    if "invalid utf-8" in reason:
        return f"has bytes that are not UTF-8{_place(value, _is_not_utf8)}"
    if "unknown type" in reason:
        return _unknown_type(value)
    return f"cannot be written as JSON: {reason}"


def _why_not_parsed(body: bytes, exc: ValueError, max_depth: int) -> str:
    """Say why `from_json` refused the bytes."""
    reason = str(exc)
    if body.startswith(b"\xef\xbb\xbf"):
        return "is not JSON: it starts with a byte order mark"
    if reason.startswith("recursion limit"):
        return _too_deep(max_depth)
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


def _not_finite(value: Any) -> str:
    for path, found in islice(_walk(value), _LOOKED_AT):
        if isinstance(found, float) and not math.isfinite(found):
            return f"has {'NaN' if math.isnan(found) else 'an infinite number'} at {path}"
    return "has a number that is not finite"


def _twin_name(body: bytes) -> str:
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
    return f"the name {quote(twins[0])}"


def _has_surrogate(found: object) -> bool:
    return isinstance(found, str) and _SURROGATE.search(found) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_not_utf8(found: object) -> bool:
    if not isinstance(found, _BYTES):
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
        return next((f" at {path}" for path, found in looked_at if is_meant(found)), "")
    return ""


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


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # it cannot be hashed: Annotated with a list, say
        return TypeAdapter(kind)


@lru_cache(maxsize=1_024)
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _faults(exc: ValidationError) -> str:
    """Return what does not fit and where, at most three faults; never the values, which may be private."""
    faults = exc.errors(include_url=False, include_context=False, include_input=False)
    phrases = [": ".join((*[".".join(map(str, fault["loc"]))] * bool(fault["loc"]), fault["msg"])) for fault in faults]
    more = [f"and {len(faults) - 3:,} more"] if len(faults) > 3 else []
    return "; ".join(phrases[:3] + more)
