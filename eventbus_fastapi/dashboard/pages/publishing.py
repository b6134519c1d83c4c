"""Publishing an event by hand."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from eventbus_fastapi import codec
from eventbus_fastapi.dashboard.forms import Fields
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, InvalidPayload, InvalidRequest
from eventbus_fastapi.events import Draft, make_draft
from eventbus_fastapi.server.guard import counted_as

FIELDS = ("topic", "payload", "kind", "key", "metadata", "tags", "ttl", "delay", "message_id", "live")
KINDS = ("json", "text")


async def show(visit: Visit, error: EventBusError | None = None) -> Response:
    fields = visit.query if error is None else visit.form
    return visit.show("publish.html", error=error, typed=fields.as_typed(), limits=visit.node.settings)


async def publish(visit: Visit) -> Response:
    """Publish it; where it cannot be, show the form again as it was filled in."""
    try:
        draft = _draft(visit)
        visit.limits.publish_rate.take(counted_as(visit.principal, visit.request), 1)
        if visit.form.text("live") == "yes":
            visit.node.publish_live(draft)
            return visit.go("publish", "live")
        (receipt,) = await visit.node.submit([draft])
    except EventBusError as exc:
        return await show(visit, exc)
    if receipt.seq is None:
        return visit.go("publish", "duplicate" if receipt.duplicate else "waiting")
    return visit.go("event", "duplicate" if receipt.duplicate else "published", receipt.seq, seq=receipt.seq)


def _draft(visit: Visit) -> Draft:
    form, limits = visit.form, visit.node.settings
    kind = form.choice("kind", KINDS) or "json"
    text = form.raw("payload") or ""
    if kind == "json" and not text.strip():
        raise InvalidRequest("field 'payload' is empty; the null of JSON is written null")
    tags = (form.text("tags") or "").split()
    return make_draft(
        form.required("topic"),
        _json(text, limits.max_depth) if kind == "json" else text,
        content_type=codec.JSON if kind == "json" else None,
        key=form.text("key"),
        metadata=_metadata(form),
        tags=tags or None,
        ttl=form.seconds("ttl"),
        delay=form.seconds("delay"),
        message_id=form.text("message_id"),
        max_payload=limits.max_payload,
        max_depth=limits.max_depth,
    )


def _json(text: str, max_depth: int) -> bytes:
    """Return JSON as it was typed, so that its numbers and the order of its names stay."""
    codec.parse_json(text, max_depth=max_depth, what="payload")
    return text.strip().encode()


def _metadata(form: Fields) -> dict[str, Any] | None:
    text = form.text("metadata")
    if text is None:
        return None
    value = codec.parse_json(text, what="metadata")
    if not isinstance(value, dict):
        raise InvalidPayload("metadata must be a JSON object")
    return value
