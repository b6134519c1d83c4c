"""Rate limits: how often attempts may begin, over all processes together."""

from __future__ import annotations

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, InvalidRequest
from eventbus_fastapi.store.limits import MAX_PERMITS


async def show(visit: Visit, error: EventBusError | None = None) -> Response:
    steward = visit.node.steward
    users: dict[str | None, list[str]] = {}
    for group, _ in await steward.groups():
        users.setdefault(group.rate_limit, []).append(group.name)
    return visit.show(
        "rate_limits.html",
        error=error,
        limits=page_of(await steward.rate_limits(), visit.query),
        users=users,
        most=MAX_PERMITS,
    )


async def change(visit: Visit) -> Response:
    form = visit.form
    try:
        name, permits, per = form.required("name"), form.integer("permits", 1, MAX_PERMITS), form.seconds("per")
        if permits is None or per is None:
            raise InvalidRequest("expected both a number of permits and a period in seconds")
        await visit.node.steward.set_rate_limit(name, permits, per)
    except EventBusError as exc:
        return await show(visit, exc)
    return visit.go("rate-limits", "limited")
