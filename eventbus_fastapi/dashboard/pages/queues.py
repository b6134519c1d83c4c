"""Queues and who serves them: pause, resume, scale."""

from __future__ import annotations

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.settings import MOST_WORKERS


async def show(visit: Visit, error: EventBusError | None = None) -> Response:
    return visit.show(
        "queues.html",
        error=error,
        queues=page_of(await visit.node.queues.queues(), visit.query),
        workers=await visit.node.queues.workers(),
        most_workers=MOST_WORKERS,
    )


async def pause(visit: Visit) -> Response:
    await visit.node.queues.pause(visit.form.required("name"))
    return visit.go("queues", "paused")


async def resume(visit: Visit) -> Response:
    await visit.node.queues.resume(visit.form.required("name"))
    return visit.go("queues", "resumed")


async def scale(visit: Visit) -> Response:
    """Scale; an empty number: as the program says."""
    try:
        name, workers = visit.form.required("name"), visit.form.integer("workers", 1, MOST_WORKERS)
        await visit.node.queues.scale(name, workers)
    except EventBusError as exc:
        return await show(visit, exc)
    return visit.go("queues", "scaled")
