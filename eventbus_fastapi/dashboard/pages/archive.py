"""The archive: how events have ended in the groups that keep it."""

from __future__ import annotations

from typing import cast, get_args

from fastapi import Response

from eventbus_fastapi.dashboard.pages.content import content_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, InvalidRequest
from eventbus_fastapi.pipeline.filters import archive_filter
from eventbus_fastapi.store.group import Ended
from eventbus_fastapi.store.group_name import check_group_name

ROWS = 50
FILTERS = ("group", "pattern", "outcome", "error", "finished_after", "finished_before")


async def show(visit: Visit) -> Response:
    query, page, error = visit.query, None, None
    try:
        group, pattern = query.text("group"), query.text("pattern")
        page = await visit.node.steward.archive(
            None if group is None else check_group_name(group),
            archive_filter(
                *([] if pattern is None else [pattern]),
                outcome=cast(Ended | None, query.choice("outcome", get_args(Ended))),
                error=query.text("error"),
                finished_after=query.time("finished_after"),
                finished_before=query.time("finished_before"),
            ),
            after=query.integer("after") or 0,
            limit=ROWS,
        )
    except EventBusError as exc:
        error = exc
    typed = query.as_typed()
    return visit.show(
        "archive.html",
        error=error,
        endings=page,
        groups=[(group.name, group.archive) for group, _ in await visit.node.steward.groups()],
        outcomes=get_args(Ended),
        typed=typed,
        search={name: typed.get(name) for name in FILTERS},
    )


async def show_one(visit: Visit) -> Response:
    ending_id = visit.query.integer("id", 1)
    if ending_id is None:
        raise InvalidRequest("expected the id of an ending")
    group, archived = await visit.node.steward.archived(ending_id)
    return visit.show(
        "ending.html",
        group=group,
        entry=archived.entry,
        errors=list(reversed(archived.entry.errors)),
        **content_of(visit, archived.message),
    )
