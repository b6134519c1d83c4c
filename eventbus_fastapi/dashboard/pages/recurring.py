"""Recurring events: what is published by a schedule, and when; pause, resume, run now."""

from __future__ import annotations

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit


async def show(visit: Visit) -> Response:
    return visit.show("recurring.html", events=page_of(await visit.node.recurring.all(), visit.query))


async def pause(visit: Visit) -> Response:
    await visit.node.recurring.pause(visit.form.required("name"))
    return visit.go("recurring", "paused")


async def resume(visit: Visit) -> Response:
    await visit.node.recurring.resume(visit.form.required("name"))
    return visit.go("recurring", "resumed")


async def run(visit: Visit) -> Response:
    receipt = await visit.node.recurring.run(visit.form.required("name"))
    return visit.go("recurring", "published", receipt.seq)
