"""Payloads as bytes, and back.

| payload | no content type | `application/json`, `…+json` | `text/…` | any other |
|---|---|---|---|---|
| bytes | as given, `application/octet-stream` | must be JSON, stored as given | must be UTF-8 | as given |
| str | UTF-8, `text/plain` | a JSON *string* | UTF-8 | UTF-8 |
| any other value | JSON, `application/json` | JSON | refused | refused |

So only bytes are ever taken for JSON that is written already; a str is a value like any other. Models and dataclasses
are written as Pydantic writes them, by alias. NaN and infinity are refused wherever they are, also where Pydantic would
write null in their place; a model whose `ser_json_inf_nan` is `strings`, or whose own serializer writes something else,
keeps that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from eventbus_fastapi.codec.content_type import BINARY, JSON, TEXT, check_content_type, is_json, is_text
from eventbus_fastapi.codec.json import BYTES, encode_json, encode_text, load_json, parse_json
from eventbus_fastapi.errors import InvalidPayload

T = TypeVar("T")


def encode(
    payload: Any, content_type: str | None = None, *, max_depth: int = 32, max_size: int | None = None
) -> tuple[bytes, str]:
    """Return the payload as bytes, and their content type. The table above says how.

    Raises:
        PayloadTooLarge: it is written as JSON here, and larger than `max_size` bytes.
        InvalidPayload: it cannot be stored and read back, or the content type is malformed or does not fit.
    """
    if content_type is None:
        if isinstance(payload, str):
            return encode_text(payload), TEXT
        if isinstance(payload, BYTES):
            return bytes(payload), BINARY
        return encode_json(payload, max_depth=max_depth, max_size=max_size), JSON
    content_type = check_content_type(content_type)
    if is_json(content_type):
        if not isinstance(payload, BYTES):
            return encode_json(payload, max_depth=max_depth, max_size=max_size), content_type
        body = bytes(payload)
        parse_json(body, max_depth=max_depth, what="payload")
        return body, content_type
    if isinstance(payload, str):
        return encode_text(payload), content_type
    if not isinstance(payload, BYTES):
        came = type(payload).__name__
        raise InvalidPayload(f"payload of content type {content_type} must be str or bytes, got {came}")
    body = bytes(payload)
    if is_text(content_type):
        _decode_text(body)
    return body, content_type


def decode(body: bytes, content_type: str) -> Any:
    """Return JSON as Python values, text as str, anything else as the bytes themselves.

    Raises:
        InvalidPayload: the bytes are not what the content type says.
    """
    if is_json(content_type):
        return load_json(body)
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


def _decode_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise InvalidPayload(f"payload is not UTF-8: byte 0x{body[exc.start]:02x} at {exc.start:,}") from exc


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
