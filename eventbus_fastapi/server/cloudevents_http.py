"""CloudEvents over HTTP: their headers in binary mode, and answers for those who ask for CloudEvents."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response

from eventbus_fastapi import codec
from eventbus_fastapi.errors import InvalidCloudEvent, InvalidPayload, UnsupportedMediaType, quote
from eventbus_fastapi.events import UNSET, Message
from eventbus_fastapi.pipeline.node import HistoryPage
from eventbus_fastapi.protocol.cloudevents import BATCH, STRUCTURED, cloudevent_object, cloudevents_batch

PREFIX = "ce-"


# --- binary mode ---------------------------------------------------------------------------------


def binary_attributes(request: Request) -> dict[str, str]:
    """Return the attributes of a CloudEvent that are headers; none: it is not in binary mode.

    Raises:
        InvalidCloudEvent: a header is there twice, or its value is malformed.
        UnsupportedMediaType: there are several content types.
    """
    attributes: dict[str, str] = {}
    for header, value in request.headers.items():
        if not header.startswith(PREFIX):
            continue
        name = header.removeprefix(PREFIX)
        if name in attributes:
            raise InvalidCloudEvent(name, "expected one header, got several")
        if name in ("datacontenttype", "data"):
            where = "the header Content-Type" if name == "datacontenttype" else "the body"
            raise InvalidCloudEvent(name, f"expected it as {where}, got a header of its own")
        attributes[name] = _decoded(name, value)
    content_types = request.headers.getlist("content-type")
    if attributes and len(content_types) > 1:
        raise UnsupportedMediaType(f"expected one header Content-Type, got {len(content_types)}")
    if attributes and content_types:
        [attributes["datacontenttype"]] = content_types
    return attributes


def binary_data(body: bytes, attributes: dict[str, str], max_depth: int) -> Any:
    """Return the data of a CloudEvent in binary mode, which is bytes. Without a content type it is JSON if it can be:
    the CloudEvents SDK says nothing of what it has written as JSON by default.
    """
    if not body:
        return UNSET
    if "datacontenttype" in attributes:
        return body
    try:
        codec.parse_json(body, max_depth=max_depth)
    except InvalidPayload:
        return body
    attributes["datacontenttype"] = codec.JSON
    return body


_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED = re.compile(r"\\(.)")


def _decoded(name: str, value: str) -> str:
    """Take a header's value out of its quotes and percent-encoding (HTTP binding, section 3.1.3.2)."""
    if not value.isascii():
        raise InvalidCloudEvent(name, f"expected ASCII, with other characters percent-encoded, got {quote(value)}")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    if _PERCENT.search(value):
        raise InvalidCloudEvent(name, f"expected two hexadecimal digits after each %, got {quote(value)}")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidCloudEvent(name, f"expected percent-encoded UTF-8, got {quote(value)}") from None


# --- answers -------------------------------------------------------------------------------------


def wants_cloudevents(request: Request) -> bool:
    """Say whether the client asks for CloudEvents, and not rather for the bus's own JSON."""
    qualities = _qualities(request)
    best = max(qualities.get(STRUCTURED, 0.0), qualities.get(BATCH, 0.0))
    return best > 0 and best >= qualities.get(codec.JSON, 0.0)


def cloudevent_answer(message: Message, source: str) -> Response:
    """Return one event in structured mode."""
    return _answer(cloudevent_object(message, source), STRUCTURED, {})


def cloudevents_page(request: Request, page: HistoryPage, source: str) -> Response:
    """Return a page of the log in batch mode. What has no place in a batch is in headers."""
    headers = {"Eventbus-Head": str(page.head), "Eventbus-First-Seq": str(page.first_seq)}
    if page.next is not None:
        following = request.url.include_query_params(after=page.next)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return _answer(cloudevents_batch(page.messages, source), BATCH, headers)


def _answer(content: str, media_type: str, headers: dict[str, str]) -> Response:
    return Response(content, 200, {"Cache-Control": "no-store", "Vary": "Accept", **headers}, media_type)


def _qualities(request: Request) -> dict[str, float]:
    """Return the media types that the client accepts, with how much it likes each."""
    qualities: dict[str, float] = {}
    for part in ",".join(request.headers.getlist("accept")).split(","):
        media_type, *parameters = part.lower().split(";")
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q" and _QUALITY.fullmatch(value.strip()):
                quality = float(value)
        qualities[media_type.strip()] = quality
    return qualities


_QUALITY = re.compile(r"[01](?:\.[0-9]{0,3})?")
