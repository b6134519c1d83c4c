"""What a request of `POST /publish` asks for: events in JSON of the bus's own, or CloudEvents in one of their modes.

| content type | headers | mode |
|---|---|---|
| `application/json` | – | an event object or a list of them |
| `application/cloudevents+json` | no `ce-…` | structured: one CloudEvent |
| `application/cloudevents-batch+json` | no `ce-…` | batch: a list of CloudEvents |
| any other, or none | `ce-…` | binary: attributes are headers, the body is the data |

A page of another site can send none of these without asking first. All of a body is read and judged before any of it
is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID

from fastapi import Request

from eventbus_fastapi import codec
from eventbus_fastapi.errors import (
    BadFrame,
    BatchTooLarge,
    EventBusError,
    InvalidCloudEvent,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidPayload,
    InvalidRequest,
    UnsupportedMediaType,
    quote,
)
from eventbus_fastapi.events import Draft
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.cloudevents import BATCH, STRUCTURED, draft_of, parse_cloudevent
from eventbus_fastapi.protocol.commands import FRAME_DEPTH
from eventbus_fastapi.protocol.events import parse_draft
from eventbus_fastapi.server.address import address_of
from eventbus_fastapi.server.bodies import parse_body, read_any_body, read_body
from eventbus_fastapi.server.cloudevents_http import binary_attributes, binary_data
from eventbus_fastapi.server.idempotency import Key, parse_key
from eventbus_fastapi.server.turns import Share
from eventbus_fastapi.settings import Settings


class Published(NamedTuple):
    """What a body of POST /publish asks for."""

    drafts: Sequence[Draft]
    is_live: bool
    """True: for live subscriptions only (`durable` is false)."""
    is_list: bool
    key: Key | None = None
    """What `Idempotency-Key` says; None: nothing."""


async def read_published(request: Request, node: Node, *, whose: str | None) -> Published:
    """Return what a request asks for. `whose`: the principal that asks.

    Raises:
        InvalidInput: it cannot be used.
    """
    limits, key = node.settings, parse_key(request, whose)
    attributes = binary_attributes(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not attributes and not media_type.startswith("application/cloudevents"):
        body = await read_body(request, limits)
        return await _parsed(request, body, partial(_parse_native, body, limits, key))
    if key is not None:
        raise InvalidIdempotencyKey("a CloudEvent is known again by its source and id; expected no Idempotency-Key")
    now = node.store.estimate_now()
    if not media_type.startswith("application/cloudevents"):
        body = await read_any_body(request, limits)
        return await _parsed(request, body, partial(_parse_binary, body, attributes, limits, now))
    if attributes:
        why = f"expected it in the body only, which is {quote(media_type)}, got a header, too"
        raise InvalidCloudEvent(next(iter(attributes)), why)
    _check_format(request.headers["content-type"], media_type)
    body = await read_any_body(request, limits)
    is_list = media_type == BATCH
    return await _parsed(request, body, partial(_parse_cloudevents, body, limits, now, is_list=is_list))


async def _parsed(request: Request, body: bytes, parse: Callable[[], Published]) -> Published:
    """Parse a body, which is taken from the share of its address."""
    return await Share(asyncio.get_running_loop(), address_of(request)).read(len(body), parse)


def _parse_binary(body: bytes, attributes: dict[str, str], limits: Settings, now: int) -> Published:
    data = binary_data(body, attributes, limits.max_depth)
    return Published([draft_of(attributes, data, limits, now)], is_live=False, is_list=False)


def _parse_cloudevents(body: bytes, limits: Settings, now: int, *, is_list: bool) -> Published:
    parsed = parse_body(body, limits.max_depth + FRAME_DEPTH)
    if is_list:
        return Published(_parse_batch(parsed, limits, now), is_live=False, is_list=True)
    return Published([parse_cloudevent(parsed, limits, now)], is_live=False, is_list=False)


def _check_format(content_type: str, media_type: str) -> None:
    if media_type not in (STRUCTURED, BATCH):
        raise UnsupportedMediaType(f"expected content type {STRUCTURED} or {BATCH}, got {quote(media_type)}")
    try:
        codec.check_content_type(content_type.strip(" \t;"))
    except InvalidPayload as exc:
        raise UnsupportedMediaType(str(exc)) from exc


def _parse_batch(events: object, limits: Settings, now: int) -> list[Draft]:
    if type(events) is not list:
        raise InvalidRequest(f"expected a list of CloudEvents, got {fields.shown(events)}")
    if len(events) > limits.max_batch:
        raise BatchTooLarge(len(events), limits.max_batch)
    drafts = []
    for place, event in enumerate(events):
        try:
            drafts.append(parse_cloudevent(event, limits, now))
        except EventBusError as exc:
            exc.args = (f"events[{place}]: {exc}",)
            raise
    return drafts


def _parse_native(body: bytes, limits: Settings, key: Key | None) -> Published:
    parsed = parse_body(body, limits.max_depth + FRAME_DEPTH)
    if type(parsed) is not list:
        draft, is_live = _parse_event(parsed, limits, key)
        _require_key_alone(parsed, key, [] if key is None else key.message_ids(None))
        return Published([draft], is_live, is_list=False, key=key)
    if not parsed:
        raise InvalidRequest("expected an event or a list of at least one, got an empty list")
    if len(parsed) > limits.max_batch:
        raise BatchTooLarge(len(parsed), limits.max_batch)
    read = [_parse_listed(event, place, limits, key) for place, event in enumerate(parsed)]
    live = {is_live for _, is_live in read}
    if len(live) > 1:
        raise InvalidRequest("field 'durable': expected the same value in all events of a list, got both")
    return Published([draft for draft, _ in read], live.pop(), is_list=True, key=key)


def _parse_listed(event: object, place: int, limits: Settings, key: Key | None) -> tuple[Draft, bool]:
    try:
        parsed = _parse_event(event, limits, key)
        _require_key_alone(event, key)
        return parsed
    except EventBusError as exc:
        exc.args = (f"events[{place}]: {exc}",)
        raise


def _parse_event(event: object, limits: Settings, key: Key | None) -> tuple[Draft, bool]:
    """Return the draft of an event object, and whether it is for live subscriptions only."""
    if not isinstance(event, Mapping):
        raise InvalidRequest(f"expected an event object, got {fields.shown(event)}")
    try:
        draft, is_live = parse_draft(event, limits), fields.boolean(event, "durable") is False
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc
    if is_live and draft.is_scheduled:
        raise InvalidEvent("an event with durable=false cannot wait: delay needs storage")
    if is_live and draft.unique is not None:
        raise InvalidEvent("an event with durable=false cannot be unique: unique needs storage")
    if is_live and key is not None:
        raise InvalidIdempotencyKey("an event with durable=false is not stored, so it cannot be known again by a key")
    return draft, is_live


def _require_key_alone(event: object, key: Key | None, meant: Sequence[UUID] = ()) -> None:
    """Refuse an event that has a message_id beside a key, unless it is the one that is meant by it."""
    message_id = event.get("message_id") if isinstance(event, Mapping) else None
    if key is not None and message_id is not None and str(message_id).lower() not in map(str, meant):
        raise InvalidIdempotencyKey("expected one of Idempotency-Key and message_id, got both, and they differ")
