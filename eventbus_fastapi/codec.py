"""Payloads, metadata and ids between Python and what is stored: bytes with a content type, JSON text, UUIDs.

What is accepted here can be stored by every database, and read back by every JSON parser, as the same value: UTF-8, no
NaN or infinity, no lone surrogates, no endless depth. Every refusal is an `InvalidPayload` (or `InvalidEvent`) that says
what was wrong; no foreign exception leaves this module because of foreign input. Nothing here knows about topics or limits of size.

How a payload becomes bytes:

| payload | no content type | `application/json`, `…+json` | `text/…` | any other |
|---|---|---|---|---|
| `bytes` | as given, `application/octet-stream` | checked to be JSON, stored as given | checked to be UTF-8 | as given |
| `str` | UTF-8, `text/plain` | a JSON *string* | UTF-8 | UTF-8 |
| anything else | JSON | JSON | refused | refused |

So only bytes are ever taken as text that is JSON already; a `str` is a value like any other.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn, TypeVar
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
MAX_DIGITS = 4_300
"""Most digits of an integer: more is refused by Python itself, as parsing them takes quadratic time."""
MAX_METADATA = 16_384
"""Largest metadata, bytes of JSON."""
MAX_METADATA_KEYS = 64
RESERVED_METADATA = frozenset({"timestamp", "content_type"})
"""Keys that the wire adds to the metadata itself."""

_METADATA_DEPTH = 32
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")
_CHARSET = re.compile(r';[ \t]*charset="?([^";]*)', re.IGNORECASE)
_MESSAGE_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BYTES = (bytes, bytearray, memoryview)


# --- payloads ------------------------------------------------------------------------------------


def encode(payload: Any, content_type: str | None = None, *, max_depth: int = 32) -> tuple[bytes, str]:
    """Return the payload as bytes, and their content type. The table above says how.

    JSON is whatever Pydantic serialises: models and dataclasses (by alias), datetimes, UUIDs, Decimals, enums, sets, …

    Raises:
        InvalidPayload: it cannot be stored and read back the same, or the content type is malformed or does not fit.
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
        parse_json(body, max_depth=max_depth)
        return body, content_type
    if isinstance(payload, str):
        return _encode_text(payload), content_type
    if not isinstance(payload, _BYTES):
        raise InvalidPayload(
            f"payload of content type {content_type} must be str or bytes, got {type(payload).__name__}"
        )
    body = bytes(payload)
    if is_text(content_type):
        _decode_text(body)
    return body, content_type


def encode_json(value: Any, *, max_depth: int = 32) -> bytes:
    """Return the value as JSON.

    Raises:
        InvalidPayload: it has something that JSON, or another JSON parser, does not know.
    """
    try:
        body = to_json(value, inf_nan_mode="constants")
    except Exception as exc:  # serialising runs the program's own code, which may raise anything
        raise InvalidPayload(_why_not_json(value, exc, max_depth)) from exc
    if b"NaN" in body or b"Infinity" in body or len(body) > MAX_DIGITS:
        _check_numbers(body)
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
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
            raise InvalidPayload(f"payload is not JSON: {exc}") from exc
    if is_text(content_type):
        return _decode_text(body)
    return body


def decode_as(body: bytes, content_type: str, kind: type[T]) -> T:
    """Return the payload as `kind`: a Pydantic model, dataclass, TypedDict or any type that Pydantic validates.

    Raises:
        InvalidPayload: the payload does not fit.
    """
    adapter = _adapter(kind)
    try:
        if is_json(content_type):
            return adapter.validate_json(body)
        return adapter.validate_python(decode(body, content_type))
    except ValidationError as exc:
        raise InvalidPayload(f"payload is not {_name_of(kind)}: {_explain(exc)}") from exc


@lru_cache(maxsize=1_024)
def is_json(content_type: str) -> bool:
    """Say whether the content type is JSON: `application/json` or `…+json`, with any parameters."""
    kind = _media_type(content_type)
    return kind == JSON or kind.endswith("+json")


@lru_cache(maxsize=1_024)
def is_text(content_type: str) -> bool:
    """Say whether the content type is text: `text/…`, with any parameters, unless it is JSON."""
    return _media_type(content_type).startswith("text/") and not is_json(content_type)


def check_content_type(content_type: object) -> str:
    """Return the content type as it came.

    Raises:
        InvalidPayload: it is not ASCII `type/subtype` with optional parameters, is longer than 127 characters, or
            names a charset other than UTF-8 for text or JSON.
    """
    if not isinstance(content_type, str):
        raise InvalidPayload(f"content type must be str, got {type(content_type).__name__}")
    return _checked_content_type(content_type)


# --- foreign JSON --------------------------------------------------------------------------------


def parse_json(text: str | bytes, *, max_depth: int = 64) -> Any:
    """Return foreign JSON as Python values, strictly.

    Refused are NaN and infinity, numbers beyond a double's range, integers of more than 4,300 digits, lone
    surrogates, invalid UTF-8, a byte order mark, trailing characters, names that occur twice in an object, and
    nesting deeper than `max_depth` (at most 200).

    Raises:
        InvalidPayload: for each of these.
    """
    body = _utf8(text)
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(_why_not_parsed(body, exc, max_depth)) from exc
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
    # Written again, what was lost or changed in parsing shows: each name that came twice lacks a colon, and a number
    # beyond a double's range has become Infinity. That is far cheaper than a walk over the values.
    written = to_json(value, inf_nan_mode="constants")
    if written.count(b":") != body.count(b":") or b"\\u003" in body:
        _check_names(body)
    if b"Infinity" in written:
        _check_finite(value)
    return value


def load_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a text that this module wrote.

    Raises:
        InvalidPayload: it is something else.
    """
    try:
        value = from_json(text)
    except ValueError as exc:
        raise InvalidPayload(f"expected a JSON object: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidPayload(f"expected a JSON object, got {type(value).__name__}")
    return value


# --- metadata and ids ----------------------------------------------------------------------------


def encode_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    """Return metadata as the text of a JSON object; None for none or an empty mapping.

    Raises:
        InvalidEvent: it is not a mapping from str to JSON values, has more than 64 keys or 16 KiB, or uses a reserved
            key (`timestamp`, `content_type`).
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata must be a mapping, got {type(metadata).__name__}")
    values = dict(metadata)
    if len(values) > MAX_METADATA_KEYS:
        raise InvalidEvent(f"metadata has {len(values)} keys, limit is {MAX_METADATA_KEYS}")
    for key in values:
        if not isinstance(key, str):
            raise InvalidEvent(f"metadata keys must be str, got {type(key).__name__}")
    if reserved := RESERVED_METADATA & values.keys():
        raise InvalidEvent(f"metadata key {quote(min(reserved))} is reserved: the bus sets it")
    if not values:
        return None
    try:
        body = encode_json(values, max_depth=_METADATA_DEPTH)
    except InvalidPayload as exc:
        raise InvalidEvent(str(exc).replace("payload", "metadata", 1)) from exc
    if len(body) > MAX_METADATA:
        raise InvalidEvent(f"metadata is {len(body):,} bytes, limit is {MAX_METADATA:,}")
    return body.decode()


def new_message_id() -> UUID:
    """Return a new UUIDv7 (RFC 9562, 5.7): unix milliseconds, then 74 random bits of the operating system."""
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def check_message_id(value: object) -> UUID:
    """Return a message id from a UUID or its 36 characters.

    Raises:
        InvalidEvent: it is neither.
    """
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _MESSAGE_ID.fullmatch(value):
        return UUID(value)
    raise InvalidEvent(f"message_id must be a UUID like 0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3, got {quote(value)}")


# --- checks --------------------------------------------------------------------------------------


def _check_numbers(body: bytes) -> None:
    """Refuse JSON of our own making that has NaN, infinities or endless integers; strings may look like them."""
    if b"NaN" in body or b"Infinity" in body:
        _check_finite(from_json(body))
    if len(body) > MAX_DIGITS and _ENDLESS in body.translate(_DIGITS_TO_ZERO):
        try:
            from_json(body)
        except ValueError as exc:
            raise InvalidPayload(f"payload has an integer of more than {MAX_DIGITS:,} digits") from exc


_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_ENDLESS = b"0" * (MAX_DIGITS + 1)


def _check_depth(body: bytes, max_depth: int) -> None:
    """Refuse (valid) JSON that nests deeper than `max_depth`."""
    outside_strings = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside_strings.translate(_TO_BRACKETS, _NO_BRACKETS)
    # Each round takes away the innermost level everywhere.
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise InvalidPayload(_too_deep(max_depth))


_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _check_names(body: bytes) -> None:
    """Refuse (valid) JSON in which an object has a name twice."""

    def refuse_twins(pairs: list[tuple[str, Any]]) -> None:
        names = set()
        for name, _ in pairs:
            if name in names:
                raise InvalidPayload(f"payload has an object with the name {quote(name)} twice")
            names.add(name)

    # Numbers are not the question here, and Python's own parser of them has limits that a program may lower.
    json.loads(body, object_pairs_hook=refuse_twins, parse_int=len, parse_float=len)


def _check_finite(value: Any) -> None:
    """Refuse parsed JSON that has NaN or an infinity."""
    for path, found in _walk(value):
        if isinstance(found, float) and not -_INFINITY < found < _INFINITY:
            raise InvalidPayload(f"payload has {found!r} at {path}, which JSON does not know")


_INFINITY = float("inf")


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, str):
        return _encode_text(text)
    if isinstance(text, _BYTES):
        return bytes(text)
    raise InvalidPayload(f"JSON must be str or bytes, got {type(text).__name__}")


def _encode_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidPayload(
            f"payload has the lone surrogate {quote(text[exc.start])} at character {exc.start}"
        ) from exc


def _decode_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise InvalidPayload(f"payload is not UTF-8: byte 0x{body[exc.start]:02x} at {exc.start}") from exc


@lru_cache(maxsize=1_024)
def _checked_content_type(content_type: str) -> str:
    if len(content_type) > MAX_CONTENT_TYPE:
        raise InvalidPayload(f"content type is {len(content_type)} characters, limit is {MAX_CONTENT_TYPE}")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidPayload(f"invalid content type {quote(content_type)}: expected type/subtype like {JSON}")
    charset = _CHARSET.search(content_type)
    if charset and (is_json(content_type) or is_text(content_type)):
        if charset[1].strip().lower() not in ("utf-8", "utf8", "us-ascii"):
            raise InvalidPayload(
                f"content type {quote(content_type)}: text is stored as UTF-8; publish other charsets as {BINARY}"
            )
    return str.__str__(content_type)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


@lru_cache(maxsize=1_024)
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


# --- explanations --------------------------------------------------------------------------------


def _why_not_json(value: Any, exc: Exception, max_depth: int) -> str:
    """Say why `to_json` refused the value."""
    text = str(exc)
    if "Circular reference" in text:
        return "payload contains itself"
    if "depth exceeded" in text or isinstance(exc, RecursionError):
        return _too_deep(max_depth)
    if "surrogates not allowed" in text:
        return f"payload has a lone surrogate{_place(value, _has_surrogate)}"
    unknown = _unknown_in(value)
    if unknown is not None:
        where = _place(value, lambda found: found is unknown)
        return (
            f"payload has a {type(unknown).__qualname__}{where}; expected a Pydantic model, dataclass, dict, list, str,"
            " number, bool, None or another type that Pydantic serialises"
        )
    return f"payload cannot be written as JSON: {text}"


def _why_not_parsed(body: bytes, exc: ValueError, max_depth: int) -> str:
    text = str(exc)
    if body.startswith(b"\xef\xbb\xbf"):
        return "payload is not JSON: it starts with a byte order mark"
    if text.startswith("recursion limit"):
        return _too_deep(max_depth)
    if text.startswith("number out of range"):
        return f"payload has an integer of more than {MAX_DIGITS:,} digits"
    return f"payload is not JSON: {text}"


def _too_deep(max_depth: int) -> str:
    return f"payload is nested deeper than {max_depth} levels"


def _unknown_in(value: Any) -> object | None:
    """Return the object that Pydantic cannot serialise; None if that is not the reason."""
    unknown: list[object] = []

    def note(found: object) -> NoReturn:
        unknown.append(found)
        raise TypeError

    try:
        to_json(value, fallback=note)
    except Exception:  # it failed before, so it fails again; only what it notes matters
        pass
    return unknown[0] if unknown else None


def _has_surrogate(value: object) -> bool:
    return isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)


def _place(value: Any, is_meant: Callable[[Any], bool]) -> str:
    return next((f" at {path}" for path, found in _walk(value) if is_meant(found)), "")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value within plain containers and models, and every name of a dict, with its path from `$`."""
    stack = [("$", value)]
    while stack:
        path, found = stack.pop()
        yield path, found
        if isinstance(found, BaseModel):
            found = found.__dict__
        if isinstance(found, dict):
            for key in found:
                yield f"a name in {path}", key
            stack.extend((f"{path}.{quote(key)[1:-1] if isinstance(key, str) else key}", found[key]) for key in found)
        elif isinstance(found, list | tuple):
            stack.extend((f"{path}[{number}]", item) for number, item in enumerate(found))


def _name_of(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or str(kind)


def _explain(exc: ValidationError) -> str:
    """One phrase per fault, at most three; never the values themselves."""
    faults = exc.errors(include_url=False, include_context=False, include_input=False)
    phrases = []
    for fault in faults[:3]:
        where = ".".join(str(part) for part in fault["loc"])
        phrases.append(f"{where}: {fault['msg']}" if where else fault["msg"])
    if len(faults) > 3:
        phrases.append(f"and {len(faults) - 3} more")
    return "; ".join(phrases)
