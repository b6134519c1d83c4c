"""Which topics there are: those of the newest events, so that it costs the same however long the log is."""

from __future__ import annotations

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.topics import check_pattern


async def show(visit: Visit) -> Response:
    node, error = visit.node, None
    counted = await node.log_view.topics()
    found = counted.topics
    try:
        pattern = visit.query.text("pattern")
        if pattern is not None:
            matcher = Matcher([check_pattern(pattern)])
            found = [each for each in found if matcher.matches(each.topic)]
        page = page_of(found, visit.query)
    except EventBusError as exc:
        error, page = exc, page_of([], None)
    readers = [(each.name, Matcher(each.patterns)) for each, _ in await node.steward.groups()]
    return visit.show(
        "topics.html",
        error=error,
        typed=visit.query.as_typed(),
        counted=counted,
        topics=page,
        readers={
            each.topic: [name for name, matcher in readers if matcher.matches(each.topic)] for each in page.entries
        },
    )
