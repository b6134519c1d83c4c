"""The log: its newest events, searched by topic, place and time; and one event with its payload."""

from __future__ import annotations

from fastapi import Response

from eventbus_fastapi.dashboard.pages.content import content_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, InvalidRequest
from eventbus_fastapi.pipeline.log_view import PAGE, PAGES
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.protocol.commands import MAX_PATTERNS

ROWS = 50


async def show(visit: Visit) -> Response:
    query, page, error = visit.query, None, None
    try:
        patterns = (query.text("pattern") or "").split()
        if len(patterns) > MAX_PATTERNS:
            raise InvalidRequest(f"expected at most {MAX_PATTERNS} patterns, got {len(patterns):,}")
        before, after = query.integer("before", 1), query.integer("after")
        page = await visit.node.log_view.page(
            patterns,
            before=before if after is None else None,
            after=after,
            since=query.time("since"),
            until=query.time("until"),
            limit=ROWS,
        )
    except EventBusError as exc:
        error = exc
    typed = query.as_typed()
    return visit.show(
        "log.html",
        error=error,
        events=page,
        typed=typed,
        looked_at=PAGE * PAGES,
        is_newest=page is not None and page.newer is None and "until" not in typed,
        search={name: typed.get(name) for name in ("pattern", "since", "until")},
    )


async def show_event(visit: Visit) -> Response:
    stored = await visit.node.get(_seq(visit))
    topic = stored.message.topic
    groups = [each.group for each in await visit.node.steward.groups() if Matcher(each.group.patterns).matches(topic)]
    return visit.show(
        "event.html",
        status_of_event=stored.status,
        groups=groups,
        head=await visit.node.head(),
        **content_of(visit, stored.message),
    )


async def download(visit: Visit) -> Response:
    """Answer the payload as a file of bytes: nothing of it is meant for the browser."""
    message = (await visit.node.get(_seq(visit))).message
    name = f"event-{message.seq}.bin"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(message.body, headers=headers, media_type="application/octet-stream")


def _seq(visit: Visit) -> int:
    seq = visit.query.integer("seq", 1)
    if seq is None:
        raise InvalidRequest("expected the seq of an event")
    return seq
