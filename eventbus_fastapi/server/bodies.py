"""The bodies of HTTP: JSON that is read before anything is done, and JSON that is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import Request, Response

from eventbus_fastapi import codec
from eventbus_fastapi.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidPayload,
    InvalidRequest,
    UnsupportedMediaType,
    quote,
)
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.settings import Settings


async def read_body(request: Request, limits: Settings) -> bytes:
    """Return the body, which must say that it is JSON.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow: it is another, larger than `max_body` bytes, or not here within
            `body_timeout` seconds.
    """
    _check_media_type(request)
    return await read_any_body(request, limits)


async def read_any_body(request: Request, limits: Settings) -> bytes:
    """Return the body, of any content type, but not in a content encoding.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow: it is encoded, or as `read_body`.
    """
    _check_encoding(request)
    return await read_bounded(request, limits)


async def read_bounded(request: Request, limits: Settings) -> bytes:
    """Return the body, whatever it is.

    Raises:
        BodyTooLarge, BodyTooSlow: as `read_body`.
    """
    try:
        async with asyncio.timeout(limits.body_timeout):
            return await _read_up_to(request, limits.max_body)
    except TimeoutError:
        raise BodyTooSlow(limits.body_timeout) from None


async def _read_up_to(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and (len(declared) > len(str(fields.MAX_SEQ)) or int(declared) > limit):
        raise BodyTooLarge(limit)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise BodyTooLarge(limit)
        body += chunk
    return bytes(body)


def parse_body(body: bytes, max_depth: int) -> Any:
    """Return what a body says.

    Raises:
        InvalidRequest: it is no JSON, or nested more deeply.
    """
    try:
        return codec.parse_json(body, max_depth=max_depth)
    except InvalidPayload as exc:
        raise InvalidRequest(f"the body cannot be used: {exc}") from exc


async def read_object(
    request: Request, limits: Settings, known: Collection[str], *, max_depth: int, is_optional: bool = False
) -> Mapping[str, Any]:
    """Return the object that a body is, which has none but the fields that are known.

    `is_optional`: no body is an empty one.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidRequest: see `read_body` and `parse_body`; or it is no
            such object.
    """
    text = await read_body(request, limits)
    if is_optional and not text:
        return {}
    body = parse_body(text, max_depth)
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"expected an object, got {fields.shown(body)}")
    refuse_unknown(body, known)
    return body


def refuse_unknown(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse an object that has other fields.

    Raises:
        InvalidRequest: it has one.
    """
    for name in body:
        if name not in known:
            expected = f"expected {', '.join(sorted(known))}" if known else "expected no field"
            raise InvalidRequest(f"unknown field {quote(name)}; {expected}")


def json_answer(content: bytes | str, status: int = 200) -> Response:
    """Return an answer of JSON text."""
    return Response(content, status, {"Cache-Control": "no-store"}, codec.JSON)


def _check_media_type(request: Request) -> None:
    """Refuse what is not JSON: a form or plain text can be sent by any web page without asking first."""
    given = request.headers.get("content-type", "")
    if not _is_json_in_utf8(given):
        raise UnsupportedMediaType(f"expected content type application/json (UTF-8), got {quote(given)}")


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(f"expected a body without content encoding, got {quote(encoding)}")


def _is_json_in_utf8(content_type: str) -> bool:
    # As an event's own content type is read: quickly, also where somebody has made it long and full of semicolons.
    try:
        codec.check_content_type(content_type.strip(" \t;"))
    except InvalidPayload:
        return False
    return content_type.partition(";")[0].strip().lower() == codec.JSON
