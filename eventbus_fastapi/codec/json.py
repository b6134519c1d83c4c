"""JSON that every database can hold and every parser reads the same: written, and read from strangers.

Everything is checked on whole bodies, by code in C; only what is refused is looked at value by value (`refusal`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json, to_json, to_jsonable_python

from eventbus_fastapi.codec.refusal import (
    MAX_DEPTH,
    not_finite,
    too_deep,
    twin_name,
    why_not_parsed,
    why_not_written,
)
from eventbus_fastapi.errors import InvalidPayload, PayloadTooLarge, quote

BYTES = (bytes, bytearray, memoryview)


def encode_json(value: Any, *, max_depth: int = 32, max_size: int | None = None, what: str = "payload") -> bytes:
    """Return the value as JSON. `what` is what error messages call it; `max_size`, in bytes: None is any.

    Raises:
        PayloadTooLarge: it is larger, whatever it is.
        InvalidPayload: it has something that JSON, or another JSON parser, does not know.
    """
    try:
        if type(value) is not dict and isinstance(value, Iterator):
            value = list(value)  # it can be looked at only once
        body = to_json(value, inf_nan_mode="constants")
    except Exception as exc:  # writing runs the program's own serializers, which may raise anything
        raise InvalidPayload(f"{what} {why_not_written(value, exc, max_depth)}") from exc
    if max_size is not None and len(body) > max_size:  # reading it back takes longest
        raise PayloadTooLarge(len(body), max_size)
    try:
        read = _read(body, max_depth, what)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {_why_not_read_back(body, max_depth)}") from exc
    try:
        if read == value:  # as plain dicts and lists do
            return body
    except Exception:  # noqa: BLE001, S110 - an __eq__ of the program's own
        pass
    _check_names(read, body, what)
    if 110 in body and b"null" in body:
        _check_nulls(value, read, body, what)
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
        value = _read(body, max_depth, what)
    except ValueError as exc:
        raise InvalidPayload(f"{what} {why_not_parsed(body, exc, max_depth)}") from exc
    # The parser keeps the last of two names, and reads 1e400 as infinity. Written again, the first lacks a colon
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


def _read(body: bytes, max_depth: int, what: str) -> Any:
    """Return JSON as Python values; a ValueError says why it is none.

    Raises:
        InvalidPayload: it is nested deeper than `max_depth`.
    """
    # An int in bytes (91 is "[", 123 "{") is found several times faster than a bytes in bytes.
    brackets = body.count(91) + body.count(123)
    with _collector_paused() if brackets > _MANY_CONTAINERS else nullcontext():
        value = from_json(body, allow_inf_nan=False)
    if brackets > min(max_depth, MAX_DEPTH):
        _check_depth(body, max_depth, what)
    return value


_MANY_CONTAINERS = 1_000


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from going again and again through the containers that are just being made.

    JSON has no cycles, and a MiB of empty arrays took ten times as long to read.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check_depth(body: bytes, max_depth: int, what: str) -> None:
    """Refuse nesting deeper than `max_depth`."""
    outside_strings = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside_strings.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > min(max_depth, MAX_DEPTH):
        raise InvalidPayload(f"{what} {too_deep(max_depth)}")


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""One level down, one level up (-1 as a signed byte)."""
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _why_not_read_back(body: bytes, max_depth: int) -> str:
    """Say why JSON that was just written cannot be read: numbers that are not finite, or too long."""
    try:
        return not_finite(from_json(body))
    except ValueError as exc:
        return why_not_parsed(body, exc, max_depth)


def _check_names(read: Any, body: bytes, what: str) -> None:
    """Refuse an object with the same name twice: `{1: …, "1": …}`, or an alias that another field has as well."""
    names = body.count(58)
    if isinstance(read, dict) and len(read) == names:  # flat
        return
    # Reading keeps the last of two names. Written again, the first lacks its colon.
    if to_json(read).count(58) != names:
        raise InvalidPayload(f"{what} has an object with {twin_name(body)} twice")


def _check_nulls(value: Any, read: Any, body: bytes, what: str) -> None:
    """Refuse a null that was NaN or infinity, as models write them, each by its own configuration."""
    if isinstance(value, BaseModel) and read == value.__dict__:  # a flat model, whose nulls are None
        return
    nulls = body.count(b"null")
    try:
        plain = to_jsonable_python(value)  # fields of type float stay what they are
        written = to_json(plain, inf_nan_mode="constants")
    except Exception as exc:  # see encode_json
        raise InvalidPayload(f"{what} {why_not_written(value, exc, MAX_DEPTH)}") from exc
    if written.count(b"null") < nulls:
        if (reason := _why_not_finite(plain, written)) is not None:
            raise InvalidPayload(f"{what} {reason}")
        raise InvalidPayload(f"{what} has null in an iterator, which may have been NaN; expected a list instead of it")
    with suppress(Exception):  # a set of models, say: their dicts cannot be hashed
        plain = _ANYTHING.dump_python(value, by_alias=True, warnings=False)  # fields of type Any stay what they are
        written = to_json(plain, inf_nan_mode="constants")
    if written.count(b"null") < nulls and (reason := _why_not_finite(plain, written)) is not None:
        raise InvalidPayload(f"{what} {reason}")


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def _why_not_finite(plain: Any, written: bytes) -> str | None:
    """Name the number that is not finite; None if there is none."""
    try:
        from_json(written, allow_inf_nan=False)
    except ValueError:
        return not_finite(plain)
    return None


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
