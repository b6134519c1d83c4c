"""JSON that every database can hold and every parser reads the same: written, and read from strangers.

Everything is checked on whole bodies, by code in C; only what is refused is looked at value by value (`refusal`).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from pydantic_core import from_json, to_json

from eventbus_fastapi.codec.refusal import (
    MAX_DEPTH,
    MAX_DIGITS,
    not_finite,
    too_deep,
    twin_name,
    why_not_parsed,
    why_not_written,
)
from eventbus_fastapi.errors import InvalidPayload, quote

BYTES = (bytes, bytearray, memoryview)


def encode_json(value: Any, *, max_depth: int = 32, what: str = "payload") -> bytes:
    """Return the value as JSON. `what` is what error messages call it.

    Raises:
        InvalidPayload: it has something that JSON, or another JSON parser, does not know.
    """
    try:
        body = to_json(value, inf_nan_mode="constants")
    except Exception as exc:  # writing runs the program's own serializers, which may raise anything
        raise InvalidPayload(f"{what} {why_not_written(value, exc, max_depth)}") from exc
    # An int in bytes (91 is "[", 123 "{", 78 "N", 73 "I") is found several times faster than a bytes in bytes.
    brackets = body.count(91) + body.count(123)
    if brackets > max_depth or brackets > MAX_DEPTH:
        _check_depth(body, max_depth, what)
    if (78 in body and b"NaN" in body) or (73 in body and b"Infinity" in body):
        _check_constants(body, what)
    if len(body) > MAX_DIGITS:
        _check_digits(body, what)
    return body


def parse_json(text: str | bytes, *, max_depth: int = 64, what: str = "it") -> Any:
    """Return foreign JSON as Python values, strictly. `what` is what error messages call it.

    Refused are NaN and infinity, numbers beyond a double's range, integers of more than 4,300 digits, lone surrogates,
    invalid UTF-8, a byte order mark, trailing characters, an object with the same name twice, and nesting deeper than
    `max_depth` (at most 200).

    Raises:
        InvalidPayload: one of these.
    """
    if isinstance(text, str):
        body = encode_text(text, what)
    elif isinstance(text, BYTES):
        body = bytes(text)
    else:
        raise InvalidPayload(f"{what} must be str or bytes of JSON, got {type(text).__name__}")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {why_not_parsed(body, exc, max_depth)}") from exc
    if body.count(91) + body.count(123) > max_depth:
        _check_depth(body, max_depth, what)
    # The parser keeps the last of two names, and reads 1e400 as infinity. Written again, the first lacks a colon (58)
    # and the second is spelt out: much cheaper than looking at every value.
    written = to_json(value, inf_nan_mode="constants")
    if written.count(58) != _colons(body):
        raise InvalidPayload(f"{what} has an object with {twin_name(body)} twice")
    if 73 in written and b"Infinity" in written:
        _check_overflow(value, written, what)
    return value


def load_json(body: bytes) -> Any:
    """Return stored JSON as Python values; it was checked when it was stored.

    Raises:
        InvalidPayload: it is not JSON.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(f"payload {why_not_parsed(body, exc, MAX_DEPTH)}") from exc


def load_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a stored text, such as metadata.

    Raises:
        InvalidPayload: it is something else.
    """
    value = load_json(encode_text(text))
    if not isinstance(value, dict):
        raise InvalidPayload(f"expected a JSON object, got {type(value).__name__}")
    return value


def encode_text(text: str, what: str = "payload") -> bytes:
    """Return text as UTF-8.

    Raises:
        InvalidPayload: it has a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidPayload(
            f"{what} has the lone surrogate {quote(text[exc.start])} at character {exc.start:,}"
        ) from exc


def _check_depth(body: bytes, max_depth: int, what: str) -> None:
    """Refuse nesting deeper than `max_depth`."""
    outside_strings = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside_strings.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > min(max_depth, MAX_DEPTH):
        raise InvalidPayload(f"{what} {too_deep(max_depth)}")


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""One level down, one level up (-1 as a signed byte)."""
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _check_constants(body: bytes, what: str) -> None:
    """Refuse NaN and infinities; a string may contain the same letters."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {not_finite(from_json(body))}") from exc


def _check_digits(body: bytes, what: str) -> None:
    """Refuse integers that cannot be read back; a string may have as many digits as it likes."""
    if _TOO_MANY_DIGITS not in body.translate(_ANY_DIGIT):
        return
    try:
        from_json(body)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {why_not_parsed(body, exc, MAX_DEPTH)}") from exc


_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_DIGITS = b"0" * (MAX_DIGITS + 1)


def _check_overflow(value: Any, written: bytes, what: str) -> None:
    """Refuse numbers that became infinite; a string may contain the same letters."""
    if len(to_json(value, inf_nan_mode="strings")) != len(written):
        raise InvalidPayload(f"{what} {not_finite(value)}: it is beyond a double's range")


def _colons(body: bytes) -> int:
    """Count the colons of JSON, escaped ones included."""
    colons = body.count(58)
    if 92 in body and b"\\u003" in body:
        escapes = body.replace(b"\\\\", b"")
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    return colons
